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
from secfl.audit.replay import replay
from secfl.dp.plan import Schedule
from secfl.errors import ConfigError
from secfl.federation.local_work import PatientStep
from secfl.federation.offer import UPDATE_VECTOR, RoundOffer
from secfl.federation.privacy import RunTerms
from secfl.guarantees import UnitOfPrivacy
from secfl.randomness import Rng
from secfl.segmentation.task import PatientTask, State
from secfl.types import ClientId, RoundId, SchemeSpec

if TYPE_CHECKING:
    from secfl.segmentation.segmentation_task import SegmentationTask

__all__ = [
    "HOSTILE_ROWS",
    "PatientView",
    "neighbours_of",
    "patient_names",
    "plain_offer",
    "replay_metrics",
    "replay_patient_step",
    "without_patient",
]

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

    Raises:
        ConfigError: The site has no training patient of that name.
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
    if (
        releases is None
        or releases.plan.unit is not UnitOfPrivacy.PATIENT
        or releases.plan.schedule is not Schedule.STEP
    ):
        raise ConfigError("replay of the patient step: expected a run with --dp patient, schedule step")
    name = task.sites[0] if site is None else site
    offer = plain_offer(task, task.initial_state() if state is None else state)

    def step(data: PatientTask, source: Rng) -> NDArray[Any]:
        work = PatientStep(
            ClientId(name), task=data, terms=terms.round_terms, sampling_rate=1.0, secret=source
        )
        spec: Any = None  # a patient step does not read the round's specification
        return work.contribute(offer, spec).privatized.vectors[UPDATE_VECTOR]

    return [
        replay(
            step, neighbours=pairs, sensitivity=releases.plan.sensitivity, bits=terms.round_terms.bits
        ).finding(label)
        for label, pairs in neighbours_of(task, name, patients=patients, others=neighbours).items()
    ]


def plain_offer(task: PatientTask, state: State) -> RoundOffer:
    """An invitation to one round of a run without protection, for a step that is looked at alone."""
    return RoundOffer(
        run_id=bytes(16),
        round_id=RoundId(0),
        round_index=0,
        cohort=tuple(ClientId(one) for one in task.sites),
        threshold=1,
        scheme=SchemeSpec(name="plain"),
        state=state,
    )


def neighbours_of(
    task: PatientTask, site: str, *, patients: Sequence[int], others: Sequence[PatientTask] = ()
) -> dict[str, list[tuple[PatientTask, PatientTask]]]:
    """Pairs of tasks that differ in one patient, by how the pairs were made.

    Args:
        task: On all data.
        site: Whose patients.
        patients: Indices of those who are left out or replaced in turn.
        others: Tasks built from neighbouring data.
    """
    left_out = {patient: PatientView(task, site, patient, row=None) for patient in patients}
    found: dict[str, list[tuple[PatientTask, PatientTask]]] = {
        "one patient's gradient left out": [(task, left_out[patient]) for patient in patients]
    }
    for label, row in HOSTILE_ROWS.items():
        found[f"left out, against {label}"] = [
            (PatientView(task, site, patient, row=row), left_out[patient]) for patient in patients
        ]
    if others:
        found["built from neighbouring data"] = [(task, other) for other in others]
    return found


def replay_metrics(
    task: PatientTask, neighbours: Sequence[PatientTask], *, state: State | None = None
) -> Finding:
    """What a site measures of a given model must be the same with and without a training patient.

    Metrics leave the sites in clear. As long as they are a function of the model and of patients who are not trained
    on, they tell nothing about the training patients that the model does not.

    Args:
        task: On all data.
        neighbours: The same without one training patient.
        state: The model; the initial one by default.
    """
    model = task.initial_state() if state is None else state
    different = [
        site
        for other in neighbours
        for site in task.sites
        if repr(task.evaluate(site, model)) != repr(other.evaluate(site, model))
    ]
    return Finding(
        name="metrics do not depend on training patients",
        flagged=bool(different),
        statistic=f"{len(different)} of {len(neighbours) * len(task.sites)} evaluations differ",
        power=f"{len(neighbours)} neighbours",
    )
