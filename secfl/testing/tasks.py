"""A task without torch: linear regression by site, in NumPy. Quick enough for fault and load tests."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from secfl.config import RunConfig
from secfl.randomness import ExperimentSeed
from secfl.segmentation.task import LocalResult, Preview, SiteMetrics, State

__all__ = ["DriftTask", "LinearTask", "drift_task", "drift_task_1m", "drift_task_10k", "linear_task"]


def linear_task(config: RunConfig) -> LinearTask:
    """The task for a configuration, as ``task_factory`` of `secfl.federation.simulation.simulate`."""
    return LinearTask(config.clients or 3, seed=config.seed)


def drift_task_10k(config: RunConfig) -> DriftTask:
    """A model of 10,000 parameters; see `linear_task`."""
    return DriftTask(config.clients or 3, parameters=10_000, seed=config.seed)


def drift_task_1m(config: RunConfig) -> DriftTask:
    """A model of 1,000,000 parameters; see `linear_task`."""
    return DriftTask(config.clients or 3, parameters=1_000_000, seed=config.seed)


def drift_task(config: RunConfig) -> DriftTask:
    """A model of as many parameters as ``SECFL_DRIFT_PARAMETERS`` in the environment says; see `linear_task`."""
    parameters = int(os.environ["SECFL_DRIFT_PARAMETERS"])
    return DriftTask(config.clients or 3, parameters=parameters, seed=config.seed)


class DriftTask:
    """A model of any size that costs nothing to train: each site pulls it towards its own point. For load tests.

    Args:
        sites: Number of sites.
        parameters: Number of parameters.
        seed: Public seed of the points.
    """

    def __init__(self, sites: int, *, parameters: int, seed: int) -> None:
        self._sites = tuple(f"site-{index:02d}" for index in range(sites))
        self._parameters = parameters
        self._seed = seed

    @property
    def sites(self) -> tuple[str, ...]:
        """Site names, sorted."""
        return self._sites

    @property
    def is_phantom(self) -> bool:
        """True: no image shows a person."""
        return True

    def digest(self) -> bytes:
        """SHA-256 of the settings."""
        return hashlib.sha256(f"drift-task/1/{self._parameters}/{self._seed}".encode()).digest()

    def examples(self, site: str) -> int:  # noqa: ARG002 - the same everywhere
        """One."""
        return 1

    def initial_state(self) -> State:
        """All zero."""
        return {"point": np.zeros(self._parameters, np.float32)}

    def train(self, site: str, state: State, *, round_index: int) -> LocalResult:  # noqa: ARG002 - see `Task`
        """A tenth of the way to the site's point."""
        point = state["point"] + np.float32(0.1) * (self._point(site) - state["point"])
        return LocalResult(state={"point": point}, examples=1, loss=0.0)

    def train_reference(self, sites: Sequence[str], *, rounds: int) -> State:  # noqa: ARG002 - see `Task`
        """The mean of the sites' points."""
        return {"point": np.mean([self._point(site) for site in sites], axis=0).astype(np.float32)}

    def evaluate(self, site: str, state: State) -> SiteMetrics:
        """One minus half the mean distance to the site's point stands for Dice."""
        near = 1 - float(np.abs(self._point(site) - state["point"]).mean()) / 2
        return SiteMetrics.of_score(near, cases=1, foreground_fraction=0.5)

    def previews(self, site: str, state: State) -> Sequence[Preview]:  # noqa: ARG002 - nothing to look at
        """None."""
        return ()

    def _point(self, site: str) -> NDArray[np.float32]:
        source = ExperimentSeed(self._seed).generator(f"drift-task/{site}")
        return source.uniform(-1, 1, self._parameters).astype(np.float32)


class LinearTask:
    """Least squares on synthetic data: each site sees the same line through its own noise.

    "Dice" is the share of test points whose sign is predicted correctly, so that a summary has its figure.

    Args:
        sites: Number of sites.
        features: Number of weights; the model has one tensor more, the intercept.
        seed: Public seed of data and initial model.
        examples: Training points of each site; the same number, or one per site.
    """

    def __init__(
        self, sites: int = 3, *, features: int = 50, seed: int = 0, examples: int | Sequence[int] = 40
    ) -> None:
        counts = [examples] * sites if isinstance(examples, int) else list(examples)
        names = [f"site-{index:02d}" for index in range(sites)]
        source = ExperimentSeed(seed).generator("linear-task")
        truth = source.normal(size=features)
        self._features = features
        self._seed = seed
        self._data: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]] = {}
        for name, count in zip(names, counts, strict=True):
            points = source.normal(size=(2 * count, features))
            self._data[name] = points, points @ truth + 0.1 * source.normal(size=2 * count)
        public = ExperimentSeed(seed).generator("linear-task/public").normal(size=(200, features))
        self._public = public, public @ truth

    @property
    def sites(self) -> tuple[str, ...]:
        """Site names, sorted."""
        return tuple(self._data)

    @property
    def is_phantom(self) -> bool:
        """True: no image shows a person."""
        return True

    def digest(self) -> bytes:
        """SHA-256 of the settings."""
        return hashlib.sha256(f"linear-task/1/{self._features}/{self._seed}".encode()).digest()

    def examples(self, site: str) -> int:
        """Training points of a site."""
        return len(self._data[site][1]) // 2

    def initial_state(self) -> State:
        """All weights zero."""
        return {"weight": np.zeros(self._features, np.float32), "bias": np.zeros(1, np.float32)}

    def train(self, site: str, state: State, *, round_index: int) -> LocalResult:  # noqa: ARG002 - same every round
        """A few steps of gradient descent."""
        trained, loss = self._descend([site], state, steps=5)
        return LocalResult(state=trained, examples=self.examples(site), loss=loss)

    def patients(self, site: str) -> int:
        """Every training point is a patient."""
        return self.examples(site)

    def patient_gradients(
        self, site: str, state: State, chosen: NDArray[np.intp]
    ) -> Iterator[NDArray[np.float32]]:
        """Gradients of the squared error, one row per chosen point."""
        points, values = self._data[site]
        error = points[chosen] @ state["weight"].astype(np.float64) + float(state["bias"][0]) - values[chosen]
        rows = np.concatenate([error[:, None] * points[chosen], error[:, None]], axis=1)
        for start in range(0, len(rows), 64):
            yield rows[start : start + 64].astype(np.float32)

    def train_reference(self, sites: Sequence[str], *, rounds: int) -> State:
        """Gradient descent on the pooled points."""
        return self._descend(sites, self.initial_state(), steps=5 * rounds)[0]

    def evaluate(self, site: str, state: State) -> SiteMetrics:
        """Share of correct signs on the test points."""
        points, values = self._data[site]
        half = len(values) // 2
        predicted = points[half:] @ state["weight"].astype(np.float64) + float(state["bias"][0])
        right = float(np.mean((predicted > 0) == (values[half:] > 0)))
        return SiteMetrics.of_score(right, cases=half, foreground_fraction=float(np.mean(values[half:] > 0)))

    def public_score(self, state: State) -> float | None:
        """Share of correct signs on points of no site."""
        points, values = self._public
        predicted = points @ state["weight"].astype(np.float64) + float(state["bias"][0])
        return float(np.mean((predicted > 0) == (values > 0)))

    def previews(self, site: str, state: State) -> Sequence[Preview]:
        """One grey picture of the weights."""
        weights = np.abs(state["weight"])
        grey = np.clip(weights / (weights.max() or 1) * 255, 0, 255).astype(np.uint8)
        pixels = np.broadcast_to(grey[None, :, None], (8, grey.size, 3))
        return [Preview(site=site, case="weights", pixels=np.ascontiguousarray(pixels))]

    def _descend(
        self, sites: Sequence[str], state: State, *, steps: int
    ) -> tuple[Mapping[str, NDArray[np.float32]], float]:
        halves = [
            (points[: len(values) // 2], values[: len(values) // 2])
            for points, values in map(self._data.__getitem__, sites)
        ]
        points = np.concatenate([part for part, _ in halves])
        values = np.concatenate([part for _, part in halves])
        weight, bias = state["weight"].astype(np.float64), float(state["bias"][0])
        error = points @ weight + bias - values
        for _ in range(steps):
            weight = weight - 0.1 * points.T @ error / len(values)
            bias -= 0.1 * float(error.mean())
            error = points @ weight + bias - values
        trained = {"weight": weight.astype(np.float32), "bias": np.array([bias], np.float32)}
        return trained, float(np.mean(error**2))
