"""Audit a mechanism that is wrong on purpose, and the same one mended.

The mean of 100 blood pressures between 0 and 200, with Gaussian noise. The wrong version computes the noise for a
sensitivity of 1/n where it is 200/n: it forgot the range. Run it: ``python examples/audit_wrong_gaussian.py``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from secfl.audit import Calls, audit_mechanism
from secfl.dp.analytic import analytic_gaussian_epsilon

PATIENTS, HIGHEST, MULTIPLIER, DELTA = 100, 200.0, 1.5, 1e-5
SOURCE = np.random.default_rng(2024)  # an example: nothing private rests on this generator


def noisy_means(values: NDArray[np.float64], draws: int, *, sensitivity: float) -> NDArray[np.float64]:
    """``draws`` releases of the mean with noise for the given sensitivity."""
    return values.sum() / PATIENTS + SOURCE.normal(0.0, MULTIPLIER * sensitivity, draws)


def main() -> None:
    """Audit both versions against the claim that the noise multiplier makes."""
    everybody = SOURCE.uniform(80.0, HIGHEST, PATIENTS)
    one_less = everybody.copy()
    one_less[0] = 0.0  # zero-out neighbour
    everybody[0] = HIGHEST
    claim = (analytic_gaussian_epsilon(DELTA, MULTIPLIER), DELTA)
    for name, sensitivity in (("forgot the range", 1.0 / PATIENTS), ("mended", HIGHEST / PATIENTS)):
        found = audit_mechanism(
            lambda values, draws, s=sensitivity: noisy_means(values, draws, sensitivity=s),
            neighbours=(everybody, one_less),
            claimed=claim,
            draws=100_000,
            calls=Calls.BATCH,
        )
        print(f"{name}: {found}")


if __name__ == "__main__":
    main()
