"""The privacy curve as a picture: Dice over ε for every class and arm."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from secfl.studies.dp_curve import CLASS_NAMES

__all__ = ["draw"]

_STYLES: Mapping[str, tuple[str, str, str]] = {
    "secure": ("secure aggregation", "#0b6e99", "o"),
    "pooled": ("pooled DP-SGD", "#5a5a5a", "s"),
    "local": ("local noise only", "#c44536", "v"),
    "pretrained": ("secure, public pre-training", "#2e8b57", "^"),
}


def draw(document: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write ``dp-curve.png`` and ``dp-curve.svg``; the same figures give the same bytes of SVG."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    levels = [f"{epsilon:g}" for epsilon in sorted(document["settings"]["epsilons"])]
    with mpl.rc_context({"svg.hashsalt": "secfl", "svg.fonttype": "path", "font.size": 9}):
        figure, axes = plt.subplots(1, len(CLASS_NAMES), figsize=(13, 3.4), sharey=True)
        for axis, name in zip(axes, CLASS_NAMES, strict=True):
            _panel(axis, document["arms"], name, levels)
        axes[0].set_ylabel("Dice on test patients")
        axes[0].set_ylim(0, 1)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="lower center", ncols=len(labels), frameon=False)
        figure.tight_layout(rect=(0, 0.08, 1, 1))
        folder.mkdir(parents=True, exist_ok=True)
        png, svg = folder / "dp-curve.png", folder / "dp-curve.svg"
        figure.savefig(png, dpi=110)
        figure.savefig(svg, metadata={"Date": None})
        plt.close(figure)
    return [png, svg]


def _panel(axis: Any, arms: Mapping[str, Any], name: str, levels: list[str]) -> None:
    for number, (arm, (label, colour, marker)) in enumerate(_STYLES.items()):
        entries = [arms[arm][level]["dice"][name] for level in levels]
        axis.errorbar(
            [place + 0.06 * (number - 1.5) for place in range(len(levels))],
            [entry["mean"] for entry in entries],
            yerr=[entry["spread"] or 0.0 for entry in entries],
            label=label,
            color=colour,
            marker=marker,
            markersize=5,
            capsize=3,
            linewidth=1.2,
        )
    base = arms["secure"]["no noise"]["dice"][name]["mean"]
    axis.axhline(base, color="black", linewidth=0.8, linestyle="--", label="no noise")
    axis.set_xticks(range(len(levels)), levels)
    axis.set_xlabel("ε")
    axis.set_title(name)
    axis.grid(axis="y", alpha=0.3)
