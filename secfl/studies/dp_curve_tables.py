"""From the results of all runs to the study's figures: one JSON tree and one Markdown page."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean, stdev
from typing import Any

from secfl.studies.dp_curve import CLASS_NAMES, LARGE_TISSUES, VESSEL, Arm, JobSpec, Preset

__all__ = ["DEFINITIONS", "LEVELS", "conclusions", "figures", "markdown"]

_CONVERGED = 0.005
_KEPT_LARGE, _KEPT_VESSEL = 0.95, 0.75
_TARGET_EPSILON = 8.0

DEFINITIONS: Mapping[str, str] = {
    "dice": "per class: mean over the test patients of a clinic, then over clinics; mean over seeds",
    "spread": "sample standard deviation over seeds; a seed changes patients, scanners and first weights",
    "kept": "Dice divided by the Dice of the secure arm without noise, seed by seed; mean over seeds",
    "large tissues": ", ".join(LARGE_TISSUES),
    "vein": "the vein with any thrombus in it",
    "no noise": "training without clipping and without noise, more passes over the data than the private arms",
    "converged": "largest less smallest Dice over the last quarter of the baseline's rounds, mean over classes",
    "matches pooled": "the mean over seeds of (secure less pooled) is within the larger of the two arms' spreads",
    "epsilon": "of the aggregator in the integer mechanism, from the run's ledger; the target is what was asked for",
    "local": "each clinic adds the whole noise, so that its own sum is private against the aggregator",
}

LEVELS = (None, 8.0, 2.0)


def figures(
    preset: Preset, results: Mapping[JobSpec, Mapping[str, Any]], public: Mapping[str, Any]
) -> dict[str, Any]:
    """All figures of a study as a JSON tree.

    Args:
        preset: The study.
        results: Every run's result.
        public: The result of pre-training.
    """
    arms: dict[str, dict[str, Any]] = {}
    for arm in Arm:
        for epsilon in (None, *preset.epsilons):
            found = {s.seed: r for s, r in results.items() if s.arm is arm and s.epsilon == epsilon}
            if found:
                arms.setdefault(arm.value, {})[_level(epsilon)] = _entry(preset, found, results)
    kept = _kept(preset, arms)
    return {
        "arms": arms,
        "convergence": _convergence(preset, results),
        "matches_pooled": _matches(preset, results),
        "kept_at_target": kept,
        "public_model": dict(public),
        "definitions": dict(DEFINITIONS),
    }


def _level(epsilon: float | None) -> str:
    return "no noise" if epsilon is None else f"{epsilon:g}"


def _entry(
    preset: Preset, found: Mapping[int, Mapping[str, Any]], results: Mapping[JobSpec, Mapping[str, Any]]
) -> dict[str, Any]:
    """One arm at one ε."""
    dice, kept = {}, {}
    for name in CLASS_NAMES:
        values = {seed: run["dice"][name] for seed, run in found.items()}
        base = {seed: results[_baseline(seed)]["dice"][name] for seed in found}
        dice[name] = _summary(values)
        kept[name] = _summary({seed: values[seed] / base[seed] if base[seed] else 0.0 for seed in found})
    first = next(iter(found.values()))
    return {
        "dice": dice,
        "mean_dice": _summary({seed: fmean(run["dice"].values()) for seed, run in found.items()}),
        "kept": kept,
        "epsilon": first["epsilon"],
        "noise_multiplier": first["noise_multiplier"],
        "scheme": first["scheme"],
        "rounds": first["rounds"],
        "runs": {str(seed): dict(run) for seed, run in found.items()},
        "seeds": list(preset.seeds),
    }


def _baseline(seed: int) -> JobSpec:
    return JobSpec(arm=Arm.SECURE, epsilon=None, seed=seed)


def _summary(values: Mapping[int, float]) -> dict[str, Any]:
    numbers = list(values.values())
    return {
        "mean": round(fmean(numbers), 4),
        "spread": round(stdev(numbers), 4) if len(numbers) > 1 else None,
        "per_seed": {str(seed): round(value, 4) for seed, value in values.items()},
    }


def _convergence(preset: Preset, results: Mapping[JobSpec, Mapping[str, Any]]) -> dict[str, Any]:
    """How much each baseline still moved in its last quarter."""
    rows = {}
    for arm in (Arm.SECURE, Arm.POOLED):
        for seed in preset.seeds:
            run = results[JobSpec(arm=arm, epsilon=None, seed=seed)]
            curve = [fmean(point["dice"].values()) for point in run["curve"]]
            last = curve[-max(2, math.ceil(len(curve) / 4)) :]
            rows[f"{arm.value}-seed{seed}"] = round(max(last) - min(last), 4)
    return {"movement": rows, "limit": _CONVERGED, "met": max(rows.values()) < _CONVERGED}


def _matches(preset: Preset, results: Mapping[JobSpec, Mapping[str, Any]]) -> dict[str, Any]:
    """Secure against pooled, for every ε: mean over classes, and each class."""
    found = {}
    for epsilon in preset.epsilons:
        rows = {}
        for name in (*CLASS_NAMES, "mean"):
            secure = [_dice(results, Arm.SECURE, epsilon, seed, name) for seed in preset.seeds]
            pooled = [_dice(results, Arm.POOLED, epsilon, seed, name) for seed in preset.seeds]
            difference = fmean(secure) - fmean(pooled)
            spread = max(stdev(secure), stdev(pooled)) if len(secure) > 1 else None
            rows[name] = {
                "difference": round(difference, 4),
                "spread": None if spread is None else round(spread, 4),
                "met": None if spread is None else abs(difference) <= spread,
            }
        found[_level(epsilon)] = rows
    return found


def _dice(
    results: Mapping[JobSpec, Mapping[str, Any]], arm: Arm, epsilon: float | None, seed: int, name: str
) -> float:
    dice = results[JobSpec(arm=arm, epsilon=epsilon, seed=seed)]["dice"]
    return fmean(dice.values()) if name == "mean" else dice[name]


def _kept(preset: Preset, arms: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The share of Dice that the secure arms keep at ε = 8, against the targets."""
    if _TARGET_EPSILON not in preset.epsilons:
        return {}
    found: dict[str, Any] = {"epsilon": _TARGET_EPSILON}
    for arm in (Arm.SECURE, Arm.PRETRAINED):
        kept = arms[arm.value][_level(_TARGET_EPSILON)]["kept"]
        large = {name: kept[name]["mean"] for name in LARGE_TISSUES}
        found[arm.value] = {
            "large_tissues": large,
            "large_tissues_target": _KEPT_LARGE,
            "large_tissues_met": min(large.values()) >= _KEPT_LARGE,
            "vein": kept[VESSEL]["mean"],
            "vein_target": _KEPT_VESSEL,
            "vein_met": kept[VESSEL]["mean"] >= _KEPT_VESSEL,
        }
    return found


_ARM_WORDS = {
    "secure": "secure aggregation",
    "local": "local noise only",
    "pooled": "pooled DP-SGD",
    "pretrained": "secure, public pre-training",
}


def markdown(document: Mapping[str, Any]) -> str:
    """The tables of a finished study."""
    lines = [
        "| arm | ε asked | ε proved | noise multiplier | " + " | ".join(CLASS_NAMES) + " | mean |",
        "|---|---|---|---|" + "---|" * (len(CLASS_NAMES) + 1),
    ]
    for arm, levels in document["arms"].items():
        for level, entry in levels.items():
            proved = entry["epsilon"]["aggregator_malicious"]
            multiplier = entry["noise_multiplier"]
            cells = [
                _ARM_WORDS[arm],
                level if level != "no noise" else "no noise",
                "none" if proved is None else f"{proved:.2f}",
                "none" if multiplier is None else f"{multiplier:.3f}",
                *(_cell(entry["dice"][name]) for name in CLASS_NAMES),
                _cell(entry["mean_dice"]),
            ]
            lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "Dice ± spread over seeds.",
        "",
        *_kept_table(document),
        "",
        *(f"- {line}" for line in conclusions(document)),
    ]
    return "\n".join(lines) + "\n"


def _cell(summary: Mapping[str, Any]) -> str:
    spread = summary["spread"]
    return f"{summary['mean']:.3f}" + ("" if spread is None else f" ± {spread:.3f}")


def _kept_table(document: Mapping[str, Any]) -> list[str]:
    lines = [
        "| share of the Dice without noise that is kept | ε | " + " | ".join(CLASS_NAMES) + " |",
        "|---|---|" + "---|" * len(CLASS_NAMES),
    ]
    for arm, levels in document["arms"].items():
        for level, entry in levels.items():
            if level != "no noise":
                shares = [f"{100 * entry['kept'][name]['mean']:.1f} %" for name in CLASS_NAMES]
                lines.append(f"| {_ARM_WORDS[arm]} | {level} | " + " | ".join(shares) + " |")
    return lines


def conclusions(document: Mapping[str, Any]) -> list[str]:
    """What the figures say about the study's claims, one sentence each."""
    convergence = document["convergence"]
    largest = max(convergence["movement"].values())
    lines = [
        (
            f"Baselines moved by at most {largest:.4f} in the last quarter of their rounds "
            f"(limit {convergence['limit']}): {_word(convergence['met'])}."
        )
    ]
    for level, rows in document["matches_pooled"].items():
        mean = rows["mean"]
        spread = "one seed has no spread" if mean["spread"] is None else f"spread {mean['spread']:.4f}"
        outside = [name for name, row in rows.items() if row["met"] is False and name != "mean"]
        tail = f"; outside it by class: {', '.join(outside)}" if outside else ""
        lines.append(
            f"Secure less pooled at ε = {level}, mean over classes: {mean['difference']:+.4f} ({spread}): "
            f"{_word(mean['met'])}{tail}."
        )
    kept = document["kept_at_target"]
    for arm in ("secure", "pretrained"):
        if arm in kept:
            row = kept[arm]
            lines.append(
                f"{_ARM_WORDS[arm].capitalize()} keeps at ε = {kept['epsilon']:g}: large tissues at least "
                f"{100 * min(row['large_tissues'].values()):.1f} % (target 95 %): "
                f"{_word(row['large_tissues_met'])}; vein {100 * row['vein']:.1f} % (target 75 %): "
                f"{_word(row['vein_met'])}."
            )
    return lines


def _word(met: bool | None) -> str:  # noqa: FBT001 - a verdict, not a mode
    return {True: "met", False: "not met", None: "not decided"}[met]
