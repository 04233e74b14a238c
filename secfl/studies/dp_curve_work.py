"""The work of one job of the privacy curve: data, configuration, run, result. Runs in a process of its own."""

from __future__ import annotations

import hashlib
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from secfl.config import (
    DataConfig,
    DpMode,
    ModelConfig,
    PrivacyConfig,
    RunConfig,
    Scheme,
    SecureAggregationConfig,
    TrainingConfig,
)
from secfl.errors import ConfigError
from secfl.federation import checkpoint, simulation
from secfl.federation.observer import SilentObserver
from secfl.federation.privacy import run_terms
from secfl.federation.rundir import RunDirectory, read_summary
from secfl.federation.state import count_parameters
from secfl.ledger.verify import verify_file
from secfl.randomness import ExperimentSeed
from secfl.segmentation.data.cases import Case, Dataset, SiteData
from secfl.segmentation.data.phantom import Scanner, make_phantom_dataset
from secfl.segmentation.segmentation_task import SegmentationTask
from secfl.segmentation.task import State
from secfl.studies.dp_curve import Arm, JobSpec, Preset
from secfl.studies.jobs import store_result
from secfl.types import join_fields

__all__ = [
    "POOLED_SITE",
    "PUBLIC_MODEL",
    "configuration",
    "finished_rounds",
    "measure_costs",
    "pretrain",
    "public_dataset",
    "run_job",
    "study_dataset",
]

POOLED_SITE = "pooled"
PUBLIC_MODEL = "public-model.safetensors"
_EVALUATIONS = 4  # of a private run; baselines are evaluated after every round
_COST_PATIENTS = 48


class _StudyTask(SegmentationTask):
    """Segmentation of a study's own data set, from given first weights if any; both enter its digest."""

    def __init__(self, config: RunConfig, dataset: Dataset, *, label: str, first: State | None) -> None:
        super().__init__(config, dataset)
        self._label = label
        self._first = first

    def initial_state(self) -> State:
        """The given weights, or the seed's."""
        return super().initial_state() if self._first is None else self._first

    def digest(self) -> bytes:
        """Also of what the study changed."""
        return hashlib.sha256(join_fields(super().digest(), self._label.encode())).digest()


def study_dataset(preset: Preset, *, seed: int, pooled: bool) -> Dataset:
    """The phantom's clinics, one image a patient; or all their patients at one site."""
    dataset = make_phantom_dataset(
        sites=preset.clinics,
        images_per_site=preset.patients + preset.test_patients,
        size=preset.image_size,
        test_fraction=preset.test_patients / (preset.patients + preset.test_patients),
        seed=ExperimentSeed(seed),
        target="tissues",
        slices_per_patient=1,
    )
    if not pooled:
        return dataset
    together = SiteData(
        name=POOLED_SITE,
        train=tuple(_at_home(case, site) for site in dataset.sites.values() for case in site.train),
        test=tuple(_at_home(case, site) for site in dataset.sites.values() for case in site.test),
    )
    return replace(dataset, sites={POOLED_SITE: together})


def _at_home(case: Case, site: SiteData) -> Case:
    """Patients are numbered anew in every clinic; at one site their names must differ."""
    return replace(case, name=f"{site.name}-{case.name}", patient=f"{site.name}-{case.patient}")


def public_dataset(preset: Preset) -> Dataset:
    """Another phantom: another seed, and scanners and habitus outside the ranges of the clinics."""
    seed = ExperimentSeed(preset.public_seed)
    scanners = []
    for index in range(preset.clinics):
        draw = seed.generator(f"public/site/{index}").uniform
        scanners.append(
            Scanner(
                point_spread=draw(1.6, 2.2),
                noise=draw(26.0, 34.0),
                noise_grain=draw(1.2, 1.6),
                artery=draw(240.0, 300.0),
                vein=draw(80.0, 105.0),
                field_of_view=draw(190.0, 215.0),
                leg_radius=draw(72.0, 80.0),
                fat_share=draw(0.33, 0.40),
                prevalence=draw(0.05, 0.15),
            )
        )
    return make_phantom_dataset(
        sites=preset.clinics,
        images_per_site=preset.patients + preset.test_patients,
        size=preset.image_size,
        test_fraction=preset.test_patients / (preset.patients + preset.test_patients),
        seed=seed,
        target="tissues",
        slices_per_patient=1,
        scanners=scanners,
    )


def configuration(preset: Preset, spec: JobSpec, *, noise_multiplier: float | None = None) -> RunConfig:
    """The configuration of one run.

    Args:
        preset: The study.
        spec: The run.
        noise_multiplier: Of the arms other than the secure ones, which are calibrated to ε themselves.
    """
    pooled = spec.arm is Arm.POOLED
    secure = spec.arm in {Arm.SECURE, Arm.PRETRAINED}
    everybody = preset.patients + preset.test_patients
    private = spec.epsilon is not None
    privacy = PrivacyConfig(
        mode=DpMode.PATIENT,
        epsilon=spec.epsilon if secure else None,
        noise_multiplier=None if secure else noise_multiplier,
        delta=preset.delta,
        clip=preset.clip,
        sampling_rate=preset.sampling_rate,
        steps=preset.steps,
        nominal_patients=preset.patients * (preset.clinics if pooled else 1),
        physical_batch=preset.physical_batch,
        step_size=preset.step_size,
    )
    return RunConfig(
        seed=spec.seed,
        threads=1,
        evaluate_every=max(1, preset.steps // _EVALUATIONS) if private else 1,
        data=DataConfig(
            phantom_images=everybody,
            image_size=preset.image_size,
            phantom_target="tissues",
            test_fraction=preset.test_patients / everybody,
        ),
        model=ModelConfig(channels=preset.channels),
        training=TrainingConfig(
            rounds=preset.rounds,
            local_epochs=1,
            batch_size=preset.batch_size,
            learning_rate=preset.learning_rate,
            augmentation="none",
        ),
        secure_agg=SecureAggregationConfig(scheme=Scheme.MASKING if secure else Scheme.PLAIN),
        privacy=privacy if private else PrivacyConfig(mode=DpMode.OFF),
    )


def _task(preset: Preset, spec: JobSpec, config: RunConfig, runs: Path) -> _StudyTask:
    first = None
    if spec.arm is Arm.PRETRAINED:
        first = checkpoint.load(runs / PUBLIC_MODEL).state
    dataset = study_dataset(preset, seed=spec.seed, pooled=spec.arm is Arm.POOLED)
    return _StudyTask(config, dataset, label=f"dp-curve/{spec.arm.value}", first=first)


def _noise_multiplier(preset: Preset, spec: JobSpec, *, parameters: int) -> float:
    """What the secure arm needs for this ε; every arm uses the same."""
    secure = configuration(preset, JobSpec(arm=Arm.SECURE, epsilon=spec.epsilon, seed=spec.seed))
    # The plan depends on the clinics' number and on declared sizes, so a few images will do.
    few = study_dataset(replace(preset, patients=2, test_patients=1), seed=spec.seed, pooled=False)
    terms = run_terms(secure, SegmentationTask(secure, few), parameters=parameters, threshold=preset.clinics)
    assert terms.noise_multiplier is not None
    return terms.noise_multiplier


def run_job(preset: Preset, spec: JobSpec, runs: Path, result: Path) -> None:
    """Run one job to its end, from where it was left, and write its result.

    Raises:
        ConfigError: The run directory belongs to other settings.
    """
    began = time.perf_counter()
    multiplier = None
    folder = runs / spec.name
    draft = configuration(preset, spec, noise_multiplier=1.0)
    task = _task(preset, spec, draft, runs)
    if spec.epsilon is not None and spec.arm in {Arm.LOCAL, Arm.POOLED}:
        parameters = count_parameters(task.initial_state())
        multiplier = _noise_multiplier(preset, spec, parameters=parameters)
    config = configuration(preset, spec, noise_multiplier=multiplier)
    if folder.exists():
        found = RunDirectory.open(folder).config()
        if found.digest() != config.digest():
            raise ConfigError(f"{folder}: was run with other settings; expected an empty --runs folder")
    if (folder / "summary.json").exists():
        summary = read_summary(folder)
    elif folder.exists():
        summary = simulation.resume(folder, observer=SilentObserver(), task=task)
    else:
        summary = simulation.simulate(config, out=folder, observer=SilentObserver(), task=task)
    store_result(result, _result(spec, summary, folder, seconds=time.perf_counter() - began))


def _result(spec: JobSpec, summary: dict[str, Any], folder: Path, *, seconds: float) -> dict[str, Any]:
    run = RunDirectory.open(folder)
    evaluated = [row for row in run.read_metrics() if row["evaluation_only"] is not None]
    verdict = verify_file(run.ledger)
    views = {
        (row["view"], row["adversary"], row["colluders"]): row["epsilon"]
        for row in summary["privacy"]["views"]
    }
    return {
        "arm": spec.arm.value,
        "epsilon_target": spec.epsilon,
        "seed": spec.seed,
        "dice": _means(summary["evaluation_only"]),
        "curve": [{"round": row["round"] + 1, "dice": _means(row["evaluation_only"])} for row in evaluated],
        "parameters": summary["parameters"],
        "rounds": summary["rounds_completed"],
        "scheme": summary["secure_agg"]["scheme"],
        "noise_multiplier": summary["privacy"]["noise_multiplier"],
        "epsilon": {
            "aggregator_curious": views.get(("aggregator", "curious", 0)),
            "aggregator_malicious": views.get(("aggregator", "malicious", 0)),
        },
        "ledger": {"status": verdict.status.value, "rounds": verdict.rounds, "root": verdict.root},
        "final_model_sha256": summary["final_model_sha256"],
        "config_sha256": summary["config_sha256"],
        "seconds": round(seconds, 1),
        "train_seconds": summary["time_s"]["train"],
    }


def _means(evaluation: dict[str, Any]) -> dict[str, float]:
    return {name: entry["mean"] for name, entry in evaluation["dice_by_class"].items()}


def finished_rounds(folder: Path) -> int:
    """Rounds of a run directory, finished or under way."""
    try:
        return (folder / "metrics.jsonl").read_text(encoding="utf-8").count("\n")
    except OSError:
        return 0


def pretrain(preset: Preset, runs: Path, result: Path) -> None:
    """Train the public model, without privacy, and measure it on every seed's test patients as it is."""
    spec = JobSpec(arm=Arm.PRETRAINED, epsilon=None, seed=preset.public_seed)
    config = configuration(preset, spec)
    public = SegmentationTask(config, public_dataset(preset))
    began = time.perf_counter()
    state = public.train_reference(public.sites, rounds=preset.public_epochs)
    runs.mkdir(parents=True, exist_ok=True)
    checkpoint.store(
        runs / PUBLIC_MODEL,
        checkpoint.Checkpoint(
            state=state, rounds_completed=preset.public_epochs, config_digest=config.digest().hex()
        ),
    )
    found = {}
    for seed in preset.seeds:
        dataset = study_dataset(preset, seed=seed, pooled=True)
        found[str(seed)] = dict(SegmentationTask(config, dataset).evaluate(POOLED_SITE, state).dice_by_class)
    own = {site: public.evaluate(site, state).dice_by_class for site in public.sites}
    store_result(
        result,
        {
            "dice_on_test_patients": found,
            "dice_on_public_test": {name: dict(values) for name, values in own.items()},
            "epochs": preset.public_epochs,
            "seconds": round(time.perf_counter() - began, 1),
        },
    )


def measure_costs(preset: Preset, result: Path) -> None:
    """Seconds of one patient's gradient, of one image in plain training, and of one evaluation; here and now."""
    import numpy as np

    small = replace(preset, patients=_COST_PATIENTS)
    spec = JobSpec(arm=Arm.POOLED, epsilon=8.0, seed=preset.public_seed)
    config = configuration(small, spec, noise_multiplier=1.0)
    task = SegmentationTask(config, study_dataset(small, seed=spec.seed, pooled=True))
    state = task.initial_state()
    chosen = np.arange(_COST_PATIENTS)
    for _ in task.patient_gradients(POOLED_SITE, state, chosen[:16]):
        pass  # the first call loads and compiles
    seconds = {}
    began = time.perf_counter()
    for _ in task.patient_gradients(POOLED_SITE, state, chosen):
        pass
    seconds["patient_gradient"] = (time.perf_counter() - began) / len(chosen)
    began = time.perf_counter()
    task.train_reference(task.sites, rounds=1)
    seconds["training_image"] = (time.perf_counter() - began) / (_COST_PATIENTS * preset.clinics)
    began = time.perf_counter()
    task.evaluate(POOLED_SITE, state)
    seconds["evaluation"] = time.perf_counter() - began
    began = time.perf_counter()
    study_dataset(small, seed=1, pooled=False)
    images = (small.patients + small.test_patients) * preset.clinics
    seconds["image"] = (time.perf_counter() - began) / images
    store_result(result, seconds)
