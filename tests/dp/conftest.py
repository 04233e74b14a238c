"""Independent, slow, exact arithmetic that the tests compare with: nothing here is imported by secfl."""

import itertools
import math
import sys
from decimal import Decimal, localcontext
from fractions import Fraction

import pytest

DIGITS = 70


@pytest.fixture(scope="session")
def exact():
    """The functions of this file."""
    return sys.modules[__name__]


def total_variation(drawn, ideal):
    """Half the L1 distance of integers over 2**128 from decimals on the same support, tails included."""
    with localcontext() as context:
        context.prec = DIGITS
        inside = sum(abs(Decimal(p) / 2**128 - i) for p, i in zip(drawn, ideal, strict=True))
        return float((inside + (1 - sum(ideal))) / 2)


def conditioned(pmf, stride):
    """Every stride-th probability of a list centred on 0, normalised."""
    with localcontext() as context:
        context.prec = DIGITS
        reach = len(pmf) // 2
        kept = pmf[reach % stride :: stride]
        total = sum(kept)
        return [p / total for p in kept]


def pmf_of(thresholds):
    """Exact probabilities of a table, as integers over 2**128, for -reach .. reach."""
    inner = [(int(h) << 64) | int(low) for h, low in zip(thresholds.high, thresholds.low, strict=True)]
    bounds = [0, *inner, 2**128]
    return [b - a for a, b in itertools.pairwise(bounds)]


def discrete_gaussian(variance, reach):
    """Decimal probabilities of N_Z(variance) on -reach .. reach, normalised over a much wider range."""
    with localcontext() as context:
        context.prec = DIGITS
        twice = 2 * Decimal(Fraction(variance).numerator) / Decimal(Fraction(variance).denominator)
        wide = reach + math.ceil(20 * math.sqrt(variance)) + 20
        weights = [(-Decimal(x * x) / twice).exp() for x in range(wide + 1)]
        total = weights[0] + 2 * sum(weights[1:])
        half = [weight / total for weight in weights[: reach + 1]]
        return [*reversed(half[1:]), *half]


def skellam(variance, reach):
    """Decimal probabilities of Skellam noise on -reach .. reach by the series of positive terms."""
    with localcontext() as context:
        context.prec = DIGITS
        mu = Decimal(Fraction(variance).numerator) / Decimal(Fraction(variance).denominator)
        half_mu = mu / 2
        scale = (-mu).exp()
        half = []
        lead = Decimal(1)
        for k in range(reach + 1):
            if k:
                lead = lead * half_mu / k
            term, total, j = lead, Decimal(0), 0
            while term > total * Decimal(10) ** -DIGITS:
                total += term
                j += 1
                term = term * half_mu * half_mu / (j * (j + k))
            half.append(total * scale)
        return [*reversed(half[1:]), *half]


def convolve(left, right):
    """Exact convolution of two lists of numbers (integers, fractions or decimals)."""
    out = [0 * left[0] for _ in range(len(left) + len(right) - 1)]
    for i, a in enumerate(left):
        for j, b in enumerate(right):
            out[i + j] += a * b
    return out


def hockey_stick(p, q, epsilon):
    """Δ_{e^ε}(P || Q) of two lists of floats on the same support."""
    factor = math.exp(epsilon)
    return math.fsum(max(0.0, a - factor * b) for a, b in zip(p, q, strict=True))


def shifted(pmf, shift, pad):
    """Probabilities of X + shift on a support widened by ``pad`` on both sides."""
    zeros = [0 * pmf[0]]
    return [*(zeros * (pad + shift)), *pmf, *(zeros * (pad - shift))]
