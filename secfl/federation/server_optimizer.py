"""What the server does with an opened mean: it is post-processing, so it costs no privacy.

Federated averaging applies the mean update as it is; momentum and Adam treat it as a pseudo-gradient (Reddi et
al. 2021, "Adaptive federated optimization"). Under step-wise private training the mean is minus the noisy
gradient, and the same rules are DP-SGD with momentum and DP-Adam.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from secfl.config import PrivacyConfig, ServerOptimizerName
from secfl.errors import DataError

__all__ = [
    "Adam",
    "Average",
    "Falling",
    "Momentum",
    "ServerOptimizer",
    "private_optimizer",
    "server_optimizer",
]

_COUNT: Final = "falling.count"


class ServerOptimizer(Protocol):
    """Turns means into steps; keeps state that a checkpoint carries."""

    def step(self, mean: NDArray[np.float64]) -> NDArray[np.float64]:
        """The step for the global model, float64, shape ``(d,)``."""
        ...

    def arrays(self) -> Mapping[str, NDArray[np.float64]]:
        """The state between rounds, by name."""
        ...

    def load(self, arrays: Mapping[str, NDArray[np.float64]]) -> None:
        """Take back what `arrays` gave.

        Raises:
            DataError: The arrays belong to another optimizer.
        """
        ...


class Average:
    """Federated averaging: the mean is the step, times a learning rate."""

    def __init__(self, *, learning_rate: float = 1.0) -> None:
        self._rate = learning_rate

    def step(self, mean: NDArray[np.float64]) -> NDArray[np.float64]:
        """``rate * mean``."""
        return mean if self._rate == 1 else self._rate * mean

    def arrays(self) -> Mapping[str, NDArray[np.float64]]:
        """Nothing."""
        return {}

    def load(self, arrays: Mapping[str, NDArray[np.float64]]) -> None:
        """Only nothing can be loaded."""
        _expect(arrays, set())


class Momentum:
    """Heavy-ball momentum (FedAvgM)."""

    def __init__(self, *, learning_rate: float, momentum: float = 0.9) -> None:
        self._rate = learning_rate
        self._momentum = momentum
        self._velocity: NDArray[np.float64] | None = None

    def step(self, mean: NDArray[np.float64]) -> NDArray[np.float64]:
        """``v <- momentum * v + mean``; returns ``rate * v``."""
        self._velocity = mean.copy() if self._velocity is None else self._momentum * self._velocity + mean
        return self._rate * self._velocity

    def arrays(self) -> Mapping[str, NDArray[np.float64]]:
        """The velocity."""
        return {} if self._velocity is None else {"velocity": self._velocity}

    def load(self, arrays: Mapping[str, NDArray[np.float64]]) -> None:
        """Take the velocity back."""
        if arrays:
            _expect(arrays, {"velocity"})
            self._velocity = arrays["velocity"].copy()


class Adam:
    """FedAdam, and DP-Adam under step-wise private training; biases corrected as by Kingma and Ba 2015."""

    def __init__(
        self, *, learning_rate: float, betas: tuple[float, float] = (0.9, 0.999), epsilon: float = 1e-8
    ) -> None:
        self._rate = learning_rate
        self._betas = betas
        self._epsilon = epsilon
        self._first: NDArray[np.float64] | None = None
        self._second: NDArray[np.float64] | None = None
        self._count = 0

    def step(self, mean: NDArray[np.float64]) -> NDArray[np.float64]:
        """``rate * m / (sqrt(v) + epsilon)`` with corrected moments."""
        one, two = self._betas
        if self._first is None or self._second is None:
            self._first, self._second = np.zeros_like(mean), np.zeros_like(mean)
        self._count += 1
        self._first = one * self._first + (1 - one) * mean
        self._second = two * self._second + (1 - two) * mean**2
        scale = self._rate * math.sqrt(1 - two**self._count) / (1 - one**self._count)
        return scale * self._first / (np.sqrt(self._second) + self._epsilon)

    def arrays(self) -> Mapping[str, NDArray[np.float64]]:
        """Both moments and the number of steps."""
        if self._first is None or self._second is None:
            return {}
        return {"first": self._first, "second": self._second, "count": np.array([float(self._count)])}

    def load(self, arrays: Mapping[str, NDArray[np.float64]]) -> None:
        """Take the moments back."""
        if arrays:
            _expect(arrays, {"first", "second", "count"})
            self._first, self._second = arrays["first"].copy(), arrays["second"].copy()
            self._count = int(arrays["count"][0])


class Falling:
    """Another optimizer, whose steps become smaller: a factor that falls linearly from 1 in the first step.

    Noise stays in the model for as long as later steps are as large as the first ones; small last steps average it
    out. The factor depends on the number of the step alone, so it costs no privacy.

    Args:
        inner: The optimizer.
        last: Factor of the last step, within (0, 1].
        steps: Of the run; further ones keep the last factor.
    """

    def __init__(self, inner: ServerOptimizer, *, last: float, steps: int) -> None:
        self._inner = inner
        self._last = last
        self._steps = steps
        self._count = 0

    def step(self, mean: NDArray[np.float64]) -> NDArray[np.float64]:
        """The inner step times the factor."""
        passed = min(1.0, self._count / max(1, self._steps - 1))
        self._count += 1
        return (1 - passed * (1 - self._last)) * self._inner.step(mean)

    def arrays(self) -> Mapping[str, NDArray[np.float64]]:
        """The inner state, and the number of steps."""
        return {**self._inner.arrays(), _COUNT: np.array([float(self._count)])}

    def load(self, arrays: Mapping[str, NDArray[np.float64]]) -> None:
        """Take both back.

        Raises:
            DataError: The state of another optimizer.
        """
        if _COUNT not in arrays:
            raise DataError("the checkpoint holds the state of another server optimizer")
        self._count = int(arrays[_COUNT][0])
        self._inner.load({name: kept for name, kept in arrays.items() if name != _COUNT})


def private_optimizer(privacy: PrivacyConfig) -> ServerOptimizer:
    """What makes the steps under ``--dp patient`` with the schedule ``step``: DP-Adam, of falling size if asked."""
    adam = Adam(learning_rate=privacy.step_size)
    if privacy.final_step_size is None:
        return adam
    return Falling(adam, last=privacy.final_step_size / privacy.step_size, steps=privacy.steps)


def server_optimizer(name: ServerOptimizerName, *, learning_rate: float) -> ServerOptimizer:
    """The optimizer of a configuration."""
    match name:
        case ServerOptimizerName.AVERAGE:
            return Average(learning_rate=learning_rate)
        case ServerOptimizerName.MOMENTUM:
            return Momentum(learning_rate=learning_rate)
        case ServerOptimizerName.ADAM:
            return Adam(learning_rate=learning_rate)


def _expect(arrays: Mapping[str, NDArray[np.float64]], names: set[str]) -> None:
    if set(arrays) != names:
        raise DataError("the checkpoint holds the state of another server optimizer")
