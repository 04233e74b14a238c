"""A gate against slowness: this run's ratios beside those of an earlier one. Absolute times are never compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from secfl.benchmarking.whole import FORMAT_VERSION, Kind
from secfl.errors import DataError

__all__ = ["SLOWER", "confirmed", "gate"]

SLOWER: Final = 1.6
"""A ratio of times may be so many times the earlier one; benchmarks/README.md has how far runs lie apart."""
_LARGER: Final = 1.01


def gate(document: Mapping[str, Any], earlier: Mapping[str, Any]) -> dict[str, str]:
    """What became slower or larger than in an earlier run of the same preset, a sentence for each name.

    A time is worse if the median of its ratios is more than `SLOWER` times the earlier one, and if the lower quarter of
    its repetitions also lies above the upper quarter of the earlier ones: an unsteady figure needs a clear difference.

    Args:
        document: From `secfl.benchmarking.whole.measure_all`.
        earlier: The same of an earlier version. Figures that one of them lacks are not compared.

    Raises:
        DataError: ``earlier`` is of another preset or format.
    """
    try:
        if (earlier["format_version"], earlier["preset"]) != (FORMAT_VERSION, document["preset"]):
            raise DataError(
                f"baseline: format {earlier['format_version']}, preset {earlier['preset']}; "
                f"expected {FORMAT_VERSION} and {document['preset']}"
            )
        before = {row["name"]: (float(row["ratio"]), float(row["spread"])) for row in earlier["figures"]}
    except (KeyError, TypeError, ValueError):
        raise DataError("baseline: expected what `secfl bench all --json` prints") from None
    found = {}
    for row in document["figures"]:
        if row["name"] not in before:
            continue
        was, spread = before[row["name"]]
        allowed = SLOWER if row["kind"] == Kind.TIME.value else _LARGER
        apart = row["ratio"] * (1 - row["spread"] / 2) > was * (1 + spread / 2)
        if row["ratio"] > allowed * was and apart:
            found[row["name"]] = (
                f"{row['name']}: {row['ratio']:.2f} times {row['reference']}, was {was:.2f} "
                f"(quarters {row['spread']:.0%} and {spread:.0%} apart)"
            )
    return found


def confirmed(
    worse: Mapping[str, str], earlier: Mapping[str, Any], again: Callable[[], Mapping[str, Any]]
) -> list[str]:
    """What is worse in a second run too; nothing is measured again where nothing was worse.

    Args:
        worse: From `gate`.
        earlier: What it was compared with.
        again: Measures once more.
    """
    if not worse:
        return []
    return [line for name, line in gate(again(), earlier).items() if name in worse]
