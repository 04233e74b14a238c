"""Canaries: virtual patients whose gradients an auditor can look for, planted by fair coins.

Each canary's gradient is a sparse vector of the full clip norm. Supports do not overlap, so canaries do not disturb
each other's scores. They are sampled, clipped, summed, noised and aggregated like patients, by the same code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from secfl.audit.passing_task import PassingTask
from secfl.dp.clipping import GridClip, PatientAccumulator
from secfl.errors import ConfigError
from secfl.randomness import ExperimentSeed, Rng
from secfl.segmentation.task import PatientTask, State
from secfl.types import join_fields

__all__ = ["Canaries", "CanaryPlan", "CanaryTask", "plan_canaries", "task_digest"]

_FORMAT = b"secfl/v1/canary-audit"


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryPlan:
    """What is committed to before the run: canaries, coins and the rule by which guesses are made.

    Attributes:
        seed: 32 secret bytes; coins and directions follow from it.
        count: m, number of canaries.
        guesses: r of the one-run bound: the r/2 largest scores are guessed in, the r/2 smallest out.
        rule: Name of the score.
    """

    seed: bytes = field(repr=False)
    count: int
    guesses: int
    rule: str = "log-likelihood ratio of subsampled Gaussians, per view"

    def commitment(self) -> bytes:
        """SHA-256 that goes into the ledger's first entry, as part of the task's digest."""
        public = json.dumps({"count": self.count, "guesses": self.guesses, "rule": self.rule}, sort_keys=True)
        return hashlib.sha256(join_fields(_FORMAT, self.seed, public.encode())).digest()

    def coins(self) -> NDArray[np.bool_]:
        """Which canaries are in, shape ``(m,)``."""
        return self.generator("coins").integers(0, 2, self.count).astype(np.bool_)

    def sites(self, sites: int) -> NDArray[np.intp]:
        """Index of each canary's site, shape ``(m,)``: in turn."""
        return np.arange(self.count) % sites

    def generator(self, label: str) -> np.random.Generator:
        """Coins and directions: secret until the run is over, then anybody can repeat them."""
        derived = hashlib.sha256(join_fields(_FORMAT, self.seed, label.encode())).digest()
        return ExperimentSeed(int.from_bytes(derived[:7], "little")).generator(label)


def plan_canaries(count: int, *, guesses: int, rng: Rng) -> CanaryPlan:
    """A plan with a fresh secret seed.

    Raises:
        ConfigError: Fewer than 20 canaries, or guesses that are not an even number from 2 to the canaries'.
    """
    if count < 20:
        raise ConfigError(f"canaries {count}: expected at least 20")
    if not 2 <= guesses <= count or guesses % 2:
        raise ConfigError(f"guesses {guesses}: expected an even number from 2 to the number of canaries")
    return CanaryPlan(seed=rng.bytes(32), count=count, guesses=guesses)


@dataclass(frozen=True, slots=True, kw_only=True)
class Canaries:
    """The canaries of a run.

    Attributes:
        support: Coordinates of each canary, shape ``(m, w)``; no coordinate belongs to two.
        signs: int8, same shape: the direction.
        present: The coins, shape ``(m,)``.
        site: Index of each canary's site, shape ``(m,)``.
        integer: int64, ``(m, w)``: the canary on the grid, as the clip leaves it.
        norms: L2 norms of the integer canaries, shape ``(m,)``.
    """

    support: NDArray[np.intp] = field(repr=False)
    signs: NDArray[np.int8] = field(repr=False)
    present: NDArray[np.bool_] = field(repr=False)
    site: NDArray[np.intp] = field(repr=False)
    integer: NDArray[np.int64] = field(repr=False)
    norms: NDArray[np.float64] = field(repr=False)

    @classmethod
    def draw(cls, plan: CanaryPlan, *, clip: GridClip, sites: int) -> Canaries:
        """The canaries that a plan means for this clip.

        Raises:
            ConfigError: More canaries than coordinates.
        """
        dimension = clip.dimension
        width = dimension // plan.count
        if width < 1:
            raise ConfigError(f"canaries {plan.count}: more than the model's {dimension} parameters")
        order = plan.generator("support").permutation(dimension)[: plan.count * width]
        support = order.reshape(plan.count, width)
        signs = (2 * plan.generator("signs").integers(0, 2, support.shape) - 1).astype(np.int8)
        integer = np.empty(support.shape, dtype=np.int64)
        for number in range(plan.count):
            row = np.zeros(dimension, dtype=np.float32)
            row[support[number]] = signs[number] * _length(clip)
            integer[number] = clip.clip(row).values[support[number]]
        norms = np.sqrt((integer.astype(np.float64) ** 2).sum(axis=1))
        return cls(
            support=support,
            signs=signs,
            present=plan.coins(),
            site=plan.sites(sites),
            integer=integer,
            norms=norms,
        )

    @property
    def count(self) -> int:
        """M."""
        return len(self.support)

    def at(self, site: int) -> NDArray[np.intp]:
        """The canaries that were put in at a site."""
        return np.flatnonzero(self.present & (self.site == site))

    def row(self, number: int, clip: GridClip) -> NDArray[np.float32]:
        """The gradient of one canary, float32, shape ``(d,)``: longer than the clip, so that it is clipped."""
        row = np.zeros(clip.dimension, dtype=np.float32)
        row[self.support[number]] = self.signs[number] * _length(clip)
        return row

    def project(self, vector: NDArray[np.int64]) -> NDArray[np.float64]:
        """``<vector, y_j>/|y_j|²`` for every canary: 1 in the mean where it is in, 0 where not; shape ``(m,)``."""
        parts = vector[self.support].astype(np.float64)
        projected: NDArray[np.float64] = (parts * self.integer).sum(axis=1) / self.norms**2
        return projected

    def add_to(self, vector: NDArray[np.int64], chosen: NDArray[np.intp]) -> None:
        """Add canaries to an integer sum in place."""
        for number in chosen:
            vector[self.support[number]] += self.integer[number]


def _length(clip: GridClip) -> float:
    """Per coordinate; far beyond the clip in total."""
    return 4.0 * max(group.clip_norm for group in clip.groups)


def task_digest(inner: bytes, plan: CanaryPlan) -> bytes:
    """The digest of a task with planted canaries: binds the task's own digest and the commitment."""
    return hashlib.sha256(join_fields(_FORMAT, inner, plan.commitment())).digest()


class CanaryTask(PassingTask):
    """A task with canaries among the patients of its sites.

    Patients come first, then the canaries whose coins fell for "in". What a site did is kept for the auditor: the
    integer sum of its real patients, and which canaries were sampled.

    Args:
        inner: The task.
        plan: Committed to by this task's digest, and so by the ledger's first entry.
        clip: Of one patient.
    """

    def __init__(self, inner: PatientTask, plan: CanaryPlan, *, clip: GridClip) -> None:
        super().__init__(inner)
        self._plan = plan
        self._clip = clip
        self.canaries = Canaries.draw(plan, clip=clip, sites=len(inner.sites))
        self.known: dict[str, NDArray[np.int64]] = {}
        self.sampled: dict[str, NDArray[np.intp]] = {}

    def digest(self) -> bytes:
        """The inner task's, and the commitment to canaries, coins and rule."""
        return task_digest(self._inner.digest(), self._plan)

    def patients(self, site: str) -> int:
        """Real patients and the site's canaries that are in."""
        return self._inner.patients(site) + len(self.canaries.at(self.sites.index(site)))

    def patient_gradients(
        self, site: str, state: State, chosen: NDArray[np.intp]
    ) -> Iterator[NDArray[np.float32]]:
        """Rows of real patients as they come, then one row for each chosen canary."""
        real = self._inner.patients(site)
        known = PatientAccumulator(self._clip)
        for rows in self._inner.patient_gradients(site, state, chosen[chosen < real]):
            known.add_all(np.asarray(rows))
            yield rows
        self.known[site] = known.total().values
        here = self.canaries.at(self.sites.index(site))[chosen[chosen >= real] - real]
        self.sampled[site] = here
        for number in here:
            yield self.canaries.row(int(number), self._clip)[None, :]
