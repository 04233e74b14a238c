"""The replay of our own client step: sampling, gradients, clip, grid and noise as a site runs them.

Neighbours are made in three ways: a patient is left out of the data set before it reaches the task, so that loaders
and normalisation are part of what is measured; a patient's gradient is left out; and a patient's gradient is
replaced by the worst that it could be (far longer than the clip, against all others, NaN) and left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from secfl.audit.findings import Finding
from secfl.audit.passing_task import PassingTask
from secfl.audit.replay import ReplayAudit, replay
from secfl.errors import ConfigError
from secfl.federation.local_work import PatientStep
from secfl.federation.offer import RoundOffer
from secfl.federation.privacy import RunTerms
from secfl.guarantees import UnitOfPrivacy
from secfl.randomness import Rng
from secfl.segmentation.task import PatientTask, State
from secfl.types import ClientId, RoundId, SchemeSpec

if TYPE_CHECKING:
    from secfl.segmentation.segmentation_task import SegmentationTask

__all__ = ["HOSTILE_ROWS", "PatientView", "patient_names", "replay_patient_step", "without_patient"]

Row = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""From one patient's gradient to what stands in its place."""

HOSTILE_ROWS: dict[str, Row] = {
    "a gradient of 1e6 clips": lambda row: np.full_like(row, 1e6),
    "the opposite gradient, 1e6 times": lambda row: row * np.float32(-1e6),
    "NaN": lambda row: np.full_like(row, np.nan),
    "infinity in one coordinate": lambda row: np.concatenate([row[:-1], [np.float32(np.inf)]]),
}


class PatientView(PassingTask):
    """A task in which one patient's gradient is left out, or replaced; everything else passes through.

    Args:
        inner: The task.
        site: Whose patient.
        patient: Index of the patient.
        row: What takes the place of the gradient; ``None`` leaves it out. The patient's turn in the sampling stays,
            as if the patient had nothing to give.
    """

    def __init__(self, inner: PatientTask, site: str, patient: int, *, row: Row | None) -> None:
        super().__init__(inner)
        self._site = site
        self._patient = patient
        self._row = row

    def patient_gradients(
        self, site: str, state: State, chosen: NDArray[np.intp]
    ) -> Iterator[NDArray[np.float32]]:
        """The other patients' rows, computed without this one; then this one's, replaced, if it is not left out."""
        if site != self._site or self._patient not in chosen:
            yield from self._inner.patient_gradients(site, state, chosen)
            return
        yield from self._inner.patient_gradients(site, state, chosen[chosen != self._patient])
        if self._row is not None:
            alone = np.array([self._patient])
            for rows in self._inner.patient_gradients(site, state, alone):
                yield np.stack([self._row(row) for row in rows]).astype(np.float32)


def without_patient(task: SegmentationTask, config: Any, site: str, patient: str) -> SegmentationTask:
    """A segmentation task built from the data set without one patient's images.

    Args:
        task: The task on all data.
        config: The configuration it was built with.
        site: Whose patient.
        patient: Name of a training patient there.
    """
    from secfl.segmentation.segmentation_task import SegmentationTask

    dataset = task._dataset  # noqa: SLF001 - an audit looks at the data that the task holds
    data = dataset.sites[site]
    left = tuple(case for case in data.train if case.patient != patient)
    if len(left) == len(data.train):
        raise ConfigError(f"site {site}: no training patient of that name")
    sites = {**dataset.sites, site: replace(data, train=left)}
    return SegmentationTask(config, replace(dataset, sites=sites))


def patient_names(task: SegmentationTask, site: str) -> list[str]:
    """Names of a site's training patients in the order of their indices."""
    cases = task._dataset.sites[site].train  # noqa: SLF001 - an audit looks at the data that the task holds
    return sorted({case.patient for case in cases})


def replay_patient_step(
    task: PatientTask,
    terms: RunTerms,
    *,
    site: str | None = None,
    patients: Sequence[int] = (0,),
    neighbours: Sequence[PatientTask] = (),
    state: State | None = None,
) -> list[Finding]:
    """Measure the sensitivity of one private step of one site; one finding for each kind of neighbour.

    Everybody takes part (rate 1): sampling has its own tests, and leaving patients out only shrinks differences.

    Args:
        task: Gives per-patient gradients.
        terms: Of a run with patient-level privacy.
        site: Whose step; the first by default.
        patients: Indices of patients who are left out or replaced in turn.
        neighbours: The same task built from neighbouring data, for example by `without_patient`.
        state: The model at which the gradients are taken; the initial one by default.

    Raises:
        ConfigError: The terms have no patient-level plan.
    """
    releases = terms.round_terms.releases
    if releases is None or releases.plan.unit is not UnitOfPrivacy.PATIENT:
        raise ConfigError("replay of the patient step: expected a run with --dp patient")
    name = task.sites[0] if site is None else site
    bits = terms.round_terms.bits
    model = task.initial_state() if state is None else state

    def step(data: PatientTask, source: Rng) -> NDArray[Any]:
        work = PatientStep(
            ClientId(name), task=data, terms=terms.round_terms, sampling_rate=1.0, secret=source
        )
        offer = RoundOffer(
            run_id=bytes(16),
            round_id=RoundId(0),
            round_index=0,
            cohort=tuple(ClientId(one) for one in task.sites),
            threshold=1,
            scheme=SchemeSpec(name="plain"),
            state=model,
        )
        spec: Any = None  # a patient step does not read the round's specification
        return work.contribute(offer, spec).privatized.vectors["update"]

    def measure(pairs: Sequence[tuple[PatientTask, PatientTask]]) -> ReplayAudit:
        return replay(step, neighbours=pairs, sensitivity=releases.plan.sensitivity, bits=bits)

    left_out = {patient: PatientView(task, name, patient, row=None) for patient in patients}
    found = [
        measure([(task, left_out[patient]) for patient in patients]).finding(
            "one patient's gradient left out"
        )
    ]
    for label, row in HOSTILE_ROWS.items():
        pairs: list[tuple[PatientTask, PatientTask]] = [
            (PatientView(task, name, patient, row=row), left_out[patient]) for patient in patients
        ]
        found.append(measure(pairs).finding(f"left out, against {label}"))
    if neighbours:
        found.append(measure([(task, other) for other in neighbours]).finding("built from neighbouring data"))
    return found
