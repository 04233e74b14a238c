"""Federated optimisation on sites that differ: FedAvg, FedProx and own normalisation against local and pooled training.

Every run is a whole simulation under secure aggregation, with its own directory and ledger. Local and pooled models
take as many passes over the data and are trained by the first arm's runs. The claim under test: the federated mean
Dice lies within 0.02 of the pooled one. FedProx has a strength of its own (μ): where several are given, every model's
is chosen on training images held out (`secfl.studies.held_out`), by one run each with a seed that is not reported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from types import MappingProxyType
from typing import Any

from secfl.config import load_config
from secfl.errors import ConfigError
from secfl.federation import simulation
from secfl.federation.observer import SilentObserver
from secfl.federation.rundir import RunDirectory, read_summary
from secfl.studies.held_out import hold_out
from secfl.studies.jobs import Job, Listener, read_result, run_jobs, store_result

__all__ = ["ARMS", "OptimisationStudy", "markdown", "run_study"]

FORMAT_VERSION = 2
CLAIM = 0.02
"""How far below the pooled Dice the federated one may lie."""

PROXIMAL = (0.01,)
"""μ of FedProx unless others are given."""

ARMS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "FedAvg": {},
        "FedProx": {"proximal": PROXIMAL[0]},
        "FedBN-style": {"local_parameters": "normalization"},
    }
)
"""Name -> what its ``[training]`` adds; μ may be chosen."""

_PROXIMAL_ARM = "FedProx"


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimisationStudy:
    """What is compared.

    Attributes:
        data: A data folder, or ``phantom``.
        models: Model families.
        seeds: How many, from 0.
        scheme: How updates are added.
        rounds: Federated rounds; ``None`` for the default of the data's kind.
        proximal: Candidates for μ of FedProx. Of several, each model takes the one with the best mean Dice on
            training images held out, by the run of the first seed after the reported ones.
        more: Further configuration, laid under everything else.
    """

    data: str
    models: tuple[str, ...] = ("unet", "monai:SegResNet")
    seeds: int = 3
    scheme: str = "masking"
    rounds: int | None = None
    proximal: tuple[float, ...] = PROXIMAL
    more: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check what the configuration's own check would meet too late.

        Raises:
            ConfigError: No candidate, or one twice.
        """
        if not self.proximal or len(set(self.proximal)) < len(self.proximal):
            raise ConfigError(f"proximal: {self.proximal}; expected at least one value, each of them once")

    def settings(self, model: str, arm: str, seed: int, *, proximal: float = PROXIMAL[0]) -> dict[str, Any]:
        """One run's configuration as a tree; ``proximal`` is μ of the arm that has one."""
        tree: dict[str, Any] = {
            name: dict(value) if isinstance(value, Mapping) else value for name, value in self.more.items()
        }
        tree |= {"seed": seed, "threads": 1, "evaluate_every": 10**6, "references": arm == next(iter(ARMS))}
        for section, values in (
            ("data", {"source": self.data}),
            (
                "model",
                {"name": model} | ({"arguments": {"init_filters": 8}} if model == "monai:SegResNet" else {}),
            ),
            ("training", self._training(arm, proximal)),
            ("secure_agg", {"scheme": self.scheme}),
        ):
            tree[section] = {**tree.get(section, {}), **values}
        return tree

    def _training(self, arm: str, proximal: float) -> dict[str, Any]:
        own = {**ARMS[arm], **({"proximal": proximal} if "proximal" in ARMS[arm] else {})}
        return own if self.rounds is None else {**own, "rounds": self.rounds}


def run_study(study: OptimisationStudy, *, out: Path, processes: int, listener: Listener) -> dict[str, Any]:
    """All runs that are not done yet, then the table.

    Args:
        study: What is compared.
        out: Run directories and results; again, it goes on with what is there.
        processes: Runs at once.
        listener: Told about progress.

    Raises:
        ConfigError: A setting cannot be used.
        DataError: The data, or a result on disk.
    """
    chosen = dict.fromkeys(study.models, study.proximal[0])
    scores: dict[str, dict[str, float]] = {}
    if len(study.proximal) > 1:
        scores = _choose(study, out=out, processes=processes, listener=listener)
        for model, score in scores.items():
            chosen[model] = max(study.proximal, key=lambda strength: score[str(strength)])
    trees = {
        (model, arm, seed): study.settings(model, arm, seed, proximal=chosen[model])
        for model in study.models
        for arm in ARMS
        for seed in range(study.seeds)
    }
    found = _run(
        {f"{model.replace(':', '-')}-{arm}-{seed}": tree for (model, arm, seed), tree in trees.items()},
        out=out,
        processes=processes,
        listener=listener,
    )
    rows = _rows(study, dict(zip(trees, found, strict=True)))
    document = {
        "format_version": FORMAT_VERSION,
        "data": study.data,
        "proximal": chosen,
        "held_out_dice": scores,
        "rows": rows,
    }
    store_result(out / "optimisation.json", document)
    return document


def _choose(
    study: OptimisationStudy, *, out: Path, processes: int, listener: Listener
) -> dict[str, dict[str, float]]:
    """Model -> candidate -> mean Dice over sites on the held-out training images."""
    if study.data == "phantom":
        raise ConfigError(
            "proximal: several candidates need a data folder with splits.json; expected one value"
        )
    data = hold_out(Path(study.data), out / "held-out", seed=study.seeds)
    trees = {}
    for model in study.models:
        for strength in study.proximal:
            tree = study.settings(model, _PROXIMAL_ARM, study.seeds, proximal=strength)
            tree["data"] |= {"source": str(data)}
            trees[model, str(strength)] = tree
    found = _run(
        {f"held-out-{model.replace(':', '-')}-{name}": tree for (model, name), tree in trees.items()},
        out=out,
        processes=processes,
        listener=listener,
    )
    scores: dict[str, dict[str, float]] = {model: {} for model in study.models}
    for (model, name), result in zip(trees, found, strict=True):
        scores[model][name] = round(mean(result["dice"]["per_site"].values()), 4)
    return scores


def _run(
    trees: Mapping[str, Mapping[str, Any]], *, out: Path, processes: int, listener: Listener
) -> list[dict[str, Any]]:
    """Run each configuration under its name, those that have no result yet; their results in the same order."""
    jobs, configs = [], []
    for name, tree in trees.items():
        config = load_config(None, tree)
        run, result = out / "runs" / name, out / "results" / f"{name}.json"
        configs.append(config)
        jobs.append(
            Job(
                name=name,
                result=result,
                rounds=config.training.rounds,
                work=_work,
                arguments=(tree, run, result),
                done_rounds=lambda run=run: len(RunDirectory(run).read_metrics()),
            )
        )
    run_jobs(jobs, processes=processes, listener=listener)
    found = [read_result(job.result) for job in jobs]
    for result, config in zip(found, configs, strict=True):
        if result.get("config_sha256") != config.digest().hex():
            raise ConfigError(f"{out}: holds results of another study; expected a new folder")
    return found


def _work(settings: Mapping[str, Any], run: Path, result: Path) -> None:
    """One simulation, gone on with where it was interrupted."""
    if (run / "summary.json").exists():
        summary = read_summary(run)
    elif run.exists():
        summary = simulation.resume(run, observer=SilentObserver())
    else:
        run.parent.mkdir(parents=True, exist_ok=True)
        summary = simulation.simulate(load_config(None, settings), out=run, observer=SilentObserver())
    evaluation = summary["evaluation_only"]
    facts = {
        "config_sha256": summary["config_sha256"],
        "final_model_sha256": summary["final_model_sha256"],
        "dice": evaluation["dice"],
    }
    store_result(
        result, facts | ({"references": evaluation["references"]} if "references" in evaluation else {})
    )


def _rows(study: OptimisationStudy, found: Mapping[tuple[str, str, int], Any]) -> list[dict[str, Any]]:
    first = next(iter(ARMS))
    rows = []
    for model in study.models:
        seeds = range(study.seeds)
        with_references = [found[model, first, seed]["references"] for seed in seeds]
        pooled = [references["pooled"]["per_site"] for references in with_references]
        at_home = [
            {site: row["per_site"][site] for site, row in references["local"].items()}
            for references in with_references
        ]
        everywhere = [
            {site: row["mean"] for site, row in references["local"].items()} for references in with_references
        ]
        level = mean(_means(pooled))
        for name, values in (
            ("each site alone, at home", at_home),
            ("each site alone, at all sites", everywhere),
            ("pooled", pooled),
            *((arm, [found[model, arm, seed]["dice"]["per_site"] for seed in seeds]) for arm in ARMS),
        ):
            means = _means(values)
            rows.append(
                {
                    "model": model,
                    "arm": name,
                    "mean": round(mean(means), 4),
                    "spread": round(stdev(means), 4) if len(means) > 1 else None,
                    "worst": round(mean(min(seed.values()) for seed in values), 4),
                    "per_site": {site: round(mean(seed[site] for seed in values), 4) for site in values[0]},
                    "below_pooled": round(level - mean(means), 4),
                    "claim": None if name not in ARMS else bool(level - mean(means) <= CLAIM),
                }
            )
    return rows


def _means(values: Sequence[Mapping[str, float]]) -> list[float]:
    return [mean(seed.values()) for seed in values]


def markdown(document: Mapping[str, Any]) -> str:
    """The table for people, mean over sites, mean and deviation over seeds; and below it how μ was chosen."""
    sites = list(document["rows"][0]["per_site"])
    lines = [
        "| model | | " + " | ".join(sites) + " | mean | ± seeds | worst site | below pooled |",
        "|---|---|" + "---|" * (len(sites) + 4),
    ]
    for row in document["rows"]:
        cells = [f"{row['per_site'][site]:.3f}" for site in sites]
        spread = "-" if row["spread"] is None else f"{row['spread']:.3f}"
        lines.append(
            f"| {row['model']} | {row['arm']} | {' | '.join(cells)} | {row['mean']:.3f} | {spread} | "
            f"{row['worst']:.3f} | {row['below_pooled']:+.3f} |"
        )
    lines.append("")
    for model, strength in document["proximal"].items():
        tried = document["held_out_dice"].get(model, {})
        scores = ", ".join(f"{dice:.3f} with {name}" for name, dice in tried.items())
        lines.append(
            f"- FedProx of {model}: μ = {strength}"
            + (f"; Dice on training images held out: {scores}" if tried else "")
        )
    return "\n".join(lines)
