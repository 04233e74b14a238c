"""The replay of a round of local steps (`--dp-schedule round`): every local step's release, and what is sent.

A round of local steps is an adaptive composition. Each step must keep its sensitivity whatever model the steps before
it led to, and what is sent must be a function of the noisy sums alone. So the local optimizer is scripted: it takes
the same steps for both neighbours, as if the steps before had had the same outcome, and keeps the noisy sums that it
was given. With the same script the models' differences that are sent must be equal, to the last bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secfl.audit.client_step import neighbours_of, plain_offer
from secfl.audit.findings import Finding
from secfl.audit.replay import replay
from secfl.crypto.identity import Directory, Identity
from secfl.dp.plan import Schedule
from secfl.errors import ConfigError
from secfl.federation.local_rounds import PatientRound
from secfl.federation.offer import UPDATE_VECTOR
from secfl.federation.privacy import RunTerms
from secfl.guarantees import UnitOfPrivacy
from secfl.randomness import ExperimentSeed, InsecureSeededRng, Rng
from secfl.segmentation.task import PatientTask, State
from secfl.types import ClientId

__all__ = ["replay_patient_round"]

_BATCH = 1.0
_STEP_LENGTH = 1e-2


class _Scripted:
    """A local optimizer whose steps do not depend on what it is given; it keeps what it was given."""

    def __init__(self, dimension: int) -> None:
        self._source = ExperimentSeed(0).generator("scripted optimizer")
        self._dimension = dimension
        self.given: list[NDArray[np.float64]] = []

    def step(self, mean: NDArray[np.float64]) -> NDArray[np.float64]:
        """The next step of the script."""
        self.given.append(mean)
        return _STEP_LENGTH * self._source.standard_normal(self._dimension)

    def arrays(self) -> Mapping[str, NDArray[np.float64]]:
        """Nothing."""
        return {}

    def load(self, arrays: Mapping[str, NDArray[np.float64]]) -> None:
        """Nothing to take back."""


def replay_patient_round(
    task: PatientTask,
    terms: RunTerms,
    *,
    site: str | None = None,
    patients: Sequence[int] = (0,),
    neighbours: Sequence[PatientTask] = (),
    state: State | None = None,
) -> list[Finding]:
    """Measure the sensitivity of every local step of a round at one site, and that the rest is post-processing.

    Everybody takes part (rate 1), as in `secfl.audit.client_step.replay_patient_step`.

    Args:
        task: Gives per-patient gradients.
        terms: Of a run with patient-level privacy and schedule ``round``.
        site: Whose round; the first by default.
        patients: Indices of patients who are left out or replaced in turn.
        neighbours: The same task built from neighbouring data.
        state: The global model; the initial one by default.

    Returns:
        One finding for each kind of neighbour with the largest sensitivity of any local step, in grid units, and one
        that says whether what was sent depended on anything else.

    Raises:
        ConfigError: The terms have no patient-level plan with schedule ``round``.
    """
    releases = terms.round_terms.releases
    if (
        releases is None
        or releases.plan.unit is not UnitOfPrivacy.PATIENT
        or releases.plan.schedule is not Schedule.ROUND
    ):
        raise ConfigError("replay of a patient round: expected a run with --dp patient, schedule round")
    name = task.sites[0] if site is None else site
    offer = plain_offer(task, task.initial_state() if state is None else state)
    grid = releases.unit_clip(offer.announced, site=ClientId(name))
    unit = grid.to_real(np.ones(grid.length, dtype=np.int64)) / _BATCH
    directory = Directory.enroll([Identity.generate(one, InsecureSeededRng(0)) for one in task.sites])
    spec = offer.specification(terms.round_terms, directory)
    sent: list[bytes] = []

    def step(data: PatientTask, source: Rng) -> NDArray[Any]:
        optimizer = _Scripted(grid.dimension)
        work = PatientRound(
            ClientId(name),
            task=data,
            terms=terms.round_terms,
            sampling_rate=1.0,
            expected_batch=_BATCH,
            optimizer=lambda: optimizer,
            secret=source,
        )
        sent.append(work.contribute(offer, spec).privatized.vectors[UPDATE_VECTOR].tobytes())
        return np.rint(np.stack(optimizer.given) / unit).astype(np.int64)

    found = [
        replay(step, neighbours=pairs, sensitivity=releases.plan.sensitivity, bits=62).finding(label)
        for label, pairs in neighbours_of(task, name, patients=patients, others=neighbours).items()
    ]
    found.append(
        Finding(
            name="what is sent is a function of the noisy sums",
            flagged=len(set(sent)) != 1,
            statistic=f"{len(set(sent))} different vectors sent for one script of {releases.local_steps} steps",
            power=f"{len(sent)} replays",
        )
    )
    return found
