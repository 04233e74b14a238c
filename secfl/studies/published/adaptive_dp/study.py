"""The study as jobs: every arm of every modality and seed, then public clips and the rules that were tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from secfl.errors import ConfigError
from secfl.studies.jobs import Job
from secfl.studies.published.adaptive_dp.arms import (
    MODALITIES,
    PROXY_RULES,
    RULES,
    SOURCE,
    Arm,
    Modality,
    Rule,
)
from secfl.studies.published.adaptive_dp.presets import PLANS, Plan
from secfl.studies.published.adaptive_dp.settings import (
    arm_settings,
    modalities_of,
    public_settings,
    rule_settings,
)
from secfl.studies.published.adaptive_dp.work import collect, measure_public_norms, run_with_public_clip
from secfl.studies.published.interface import Drawing, Prose, Request, Results, Row
from secfl.studies.published.runs import finished_rounds, run_job

if TYPE_CHECKING:
    from secfl.studies.published.adaptive_dp.arms import Size

__all__ = ["AdaptiveDp", "arm_job", "public_job", "try_job"]

TRY_SEED: Final = 901
"""Of the tries; no figure of an arm comes from it."""

TUNING_SEEDS: Final = frozenset({100, 101, TRY_SEED})
"""What settings were chosen on."""

PUBLIC_SEED: Final = 7001
"""Of the public phantom."""


def arm_job(modality: Modality, arm: Arm, seed: int) -> str:
    """Name of an arm's run."""
    return f"{modality.name}-{arm.word}-{seed}"


def try_job(modality: Modality, rule: Rule) -> str:
    """Name of a try's run."""
    return f"try-{modality.name}-{rule.name}"


def public_job(modality: Modality) -> str:
    """Name of the job that measures norms on the public phantom."""
    return f"public-{modality.name}"


class AdaptiveDp:
    """`PublishedStudy` of ADP-FL."""

    name = "adaptive-dp"
    title = "Adaptive differential privacy in three modalities"
    source = f"ADP-FL, adaptive differentially private federated learning for segmentation, {SOURCE}"
    libraries = ("torch", "monai", "numpy", "dp-accounting")

    def stages(self, request: Request, runs: Path) -> Sequence[Sequence[Job]]:
        """Arms; then norms on a public phantom, and the rules that were tried.

        Raises:
            ConfigError: A seed is that of the tries, or the folder cannot be used.
        """
        looked_at = sorted(TUNING_SEEDS & set(request.seeds))
        if looked_at:
            raise ConfigError(f"--first-seed: settings were chosen on seed {looked_at[0]}; expected others")
        plan = PLANS[request.preset]
        public, arms, tries = [], [], []
        for modality in modalities_of(request):
            size = plan.sizes[modality.name]
            arms += [
                run_job(
                    arm_job(modality, arm, seed),
                    arm_settings(request, modality, size, arm, seed=seed),
                    runs=runs,
                    collect=collect,
                )
                for seed in request.seeds
                for arm in Arm
            ]
            if modality.name in tried(request):
                public.append(_public(modality, size, runs))
                tries += _tries(request, modality, size, runs)
        # Seed by seed, so that an interrupted study has whole seeds.
        arms.sort(key=lambda job: int(job.name.rpartition("-")[2]))
        return [stage for stage in (arms, public, tries) if stage]

    def expected_seconds(self, request: Request, job: Job) -> float:
        """By kind of job and modality."""
        plan = PLANS[request.preset]
        modality = next(one for one in MODALITIES if one.name in job.name.split("-"))
        return _seconds(plan, modality, job.name)

    def rows(self, request: Request, results: Results) -> Sequence[Row]:
        """The table."""
        from secfl.studies.published.adaptive_dp.tables import table

        return table(request, results)

    def figures(self, request: Request, rows: Sequence[Row], results: Results) -> Mapping[str, Drawing]:  # noqa: ARG002 - the interface's
        """Dice by arm, Dice while learning, and the clip while learning."""
        from secfl.studies.published.adaptive_dp.pictures import pictures

        return pictures(request, results)

    def prose(self, request: Request, rows: Sequence[Row], results: Results) -> Prose:  # noqa: ARG002 - the interface's
        """What is said beside the table."""
        from secfl.studies.published.adaptive_dp.words import words

        return words(request, results)


def tried(request: Request) -> tuple[str, ...]:
    """Modalities in which rules are tried: on phantoms alone, because a try on patients would be a release."""
    return PLANS[request.preset].tried if request.data == "phantom" else ()


def _seconds(plan: Plan, modality: Modality, name: str) -> float:
    size = plan.sizes[modality.name]
    if name.startswith("public-"):
        return size.seconds[Arm.STATIC] / 2
    if name.startswith("try-"):
        return size.seconds[Arm.ADAPTIVE]
    word = name.removeprefix(f"{modality.name}-").rpartition("-")[0]
    return next(size.seconds[arm] for arm in Arm if arm.word == word)


def _public(modality: Modality, size: Size, runs: Path) -> Job:
    name = public_job(modality)
    batch = max(1, round(size.sampling_rate * size.patients))  # of one clinic: a third of a private step
    result = runs / f"{name}.json"
    settings = public_settings(modality, size, seed=PUBLIC_SEED)
    return Job(
        name=name,
        result=result,
        rounds=size.steps,
        work=measure_public_norms,
        arguments=(settings, size.steps, batch, size.step_size[Arm.ADAPTIVE], result),
        done_rounds=lambda: 0,
    )


def _tries(request: Request, modality: Modality, size: Size, runs: Path) -> list[Job]:
    asked = PLANS[request.preset].rules
    jobs = [
        run_job(
            try_job(modality, rule),
            rule_settings(request, modality, size, rule, seed=TRY_SEED, keys={}),
            runs=runs,
            collect=collect,
        )
        for rule in RULES
        if rule.name in asked
    ]
    for rule, key in zip(PROXY_RULES, ("clip", "layer_clips"), strict=True):
        if rule.name not in asked:
            continue
        name = try_job(modality, rule)
        settings = rule_settings(request, modality, size, rule, seed=TRY_SEED, keys={})
        folder = runs / name
        jobs.append(
            Job(
                name=name,
                result=runs / f"{name}.json",
                rounds=size.steps,
                work=run_with_public_clip,
                arguments=(name, settings, runs / f"{public_job(modality)}.json", key, runs),
                done_rounds=lambda folder=folder: finished_rounds(folder),
            )
        )
    return jobs
