"""A task of your own behind the plug point: federated principal axis of points in the plane, in NumPy alone.

    python examples/own_model/own_task.py RUN

A federation needs a task's data by site, a first state, local training and an evaluation, all as NumPy values. It
never asks what is learned. Nothing in here knows of keys, envelopes or noise; the same run is added under any scheme.
"""

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from secfl.config import load_config
from secfl.federation.observer import SilentObserver
from secfl.federation.simulation import simulate
from secfl.randomness import ExperimentSeed
from secfl.segmentation import LocalResult, Preview, SiteMetrics, State

SITES = ("east", "middle", "west")
AXIS = np.array([0.8, 0.6])


class PrincipalAxis:
    """Each site has points along one line; Oja's rule finds its direction."""

    sites = SITES
    is_phantom = True

    def __init__(self) -> None:
        """Draw every site's points."""
        self._points = {}
        for site in SITES:
            draw = ExperimentSeed(0).generator(f"own-task/{site}")
            self._points[site] = draw.normal(size=(200, 1)) * AXIS + 0.1 * draw.normal(size=(200, 2))

    def digest(self) -> bytes:
        """What all sites must have in common besides the model."""
        return hashlib.sha256(b"principal-axis/1").digest()

    def examples(self, site: str) -> int:
        """Training points."""
        return len(self._points[site]) // 2

    def initial_state(self) -> State:
        """The first direction."""
        return {"axis": np.array([1.0, 0.0], np.float32)}

    def train(self, site: str, state: State, *, round_index: int) -> LocalResult:  # noqa: ARG002 - same every round
        """A few steps from the global state on one site's points."""
        trained = self._climb([site], state, steps=5)
        return LocalResult(state=trained, examples=self.examples(site), loss=1 - self._score(trained))

    def train_reference(self, sites: Sequence[str], *, rounds: int) -> State:
        """The same without a federation."""
        return self._climb(sites, self.initial_state(), steps=5 * rounds)

    def evaluate(self, site: str, state: State) -> SiteMetrics:  # noqa: ARG002 - one axis for all
        """How well the direction fits; the same figure stands for every metric."""
        score = self._score(state)
        return SiteMetrics.of_score(score, cases=1, foreground_fraction=0.5)

    def previews(self, site: str, state: State) -> Sequence[Preview]:  # noqa: ARG002 - there is nothing to show
        """No pictures."""
        return []

    def _climb(self, sites: Sequence[str], state: State, *, steps: int) -> State:
        points = np.concatenate([self._points[site][: self.examples(site)] for site in sites])
        axis = state["axis"].astype(float)
        for _ in range(steps):
            axis = axis + 0.2 * points.T @ (points @ axis) / len(points)
            axis /= np.linalg.norm(axis)
        return {"axis": axis.astype(np.float32)}

    def _score(self, state: State) -> float:
        axis = state["axis"] / np.linalg.norm(state["axis"])
        return float(abs(axis @ AXIS))


if __name__ == "__main__":
    settings = load_config(None, {"training": {"rounds": 3}, "secure_agg": {"scheme": "masking"}})
    summary = simulate(settings, out=Path(sys.argv[1]), observer=SilentObserver(), task=PrincipalAxis())
    print(
        f"fit {summary['evaluation_only']['dice']['mean']:.4f}, digest {summary['final_model_sha256'][:16]}"
    )
