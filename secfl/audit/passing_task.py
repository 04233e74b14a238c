"""A task around another task, for auditors: what a subclass does not change passes through."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from secfl.segmentation.task import LocalResult, PatientTask, Preview, SiteMetrics, State

__all__ = ["PassingTask"]


class PassingTask:
    """Everything as inside.

    Args:
        inner: The task.
    """

    def __init__(self, inner: PatientTask) -> None:
        self._inner = inner

    @property
    def sites(self) -> tuple[str, ...]:
        """As inside."""
        return self._inner.sites

    @property
    def is_phantom(self) -> bool:
        """As inside."""
        return self._inner.is_phantom

    def digest(self) -> bytes:
        """As inside."""
        return self._inner.digest()

    def examples(self, site: str) -> int:
        """As inside."""
        return self._inner.examples(site)

    def initial_state(self) -> State:
        """As inside."""
        return self._inner.initial_state()

    def train(self, site: str, state: State, *, round_index: int) -> LocalResult:
        """As inside."""
        return self._inner.train(site, state, round_index=round_index)

    def train_reference(self, sites: Sequence[str], *, rounds: int) -> State:
        """As inside."""
        return self._inner.train_reference(sites, rounds=rounds)

    def evaluate(self, site: str, state: State) -> SiteMetrics:
        """As inside."""
        return self._inner.evaluate(site, state)

    def previews(self, site: str, state: State) -> Sequence[Preview]:
        """As inside."""
        return self._inner.previews(site, state)

    def patients(self, site: str) -> int:
        """As inside."""
        return self._inner.patients(site)

    def patient_gradients(
        self, site: str, state: State, chosen: NDArray[np.intp]
    ) -> Iterator[NDArray[np.float32]]:
        """As inside."""
        return self._inner.patient_gradients(site, state, chosen)
