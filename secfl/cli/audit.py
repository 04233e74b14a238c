"""``secfl audit``: tools that try to prove the ledger wrong."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secfl.cli.audit_tables import (
    FAILED,
    FORMAT_VERSION,
    p_value,
    print_canaries,
    print_findings,
    print_releases,
    print_table,
)
from secfl.errors import ConfigError

if TYPE_CHECKING:
    from secfl.audit.findings import Finding

__all__ = ["app"]

app = typer.Typer(
    help="Try to prove the ledger wrong: REFUTED, SUSPECT or NOT REFUTED, never proved.", no_args_is_help=True
)


class SuiteSize(StrEnum):
    """How much the suite runs."""

    SMOKE = "smoke"
    FULL = "full"


class PeerChoice(StrEnum):
    """Frameworks that can be looked at."""

    FLOWER_SECAGGPLUS = "flower-secaggplus"
    NVFLARE_HE = "nvflare-he"


@app.command("suite")
def suite(
    preset: Annotated[SuiteSize, typer.Option(help="smoke takes under three minutes.")] = SuiteSize.SMOKE,
    seed: Annotated[int, typer.Option(min=0, help="Of the controls' randomness; the first of several.")] = 0,
    seeds: Annotated[int, typer.Option(min=1, help="Repeat under so many seeds.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="The table as JSON.")] = False,
) -> None:
    """Run the controls: detectors must flag what is wrong on purpose, and keep silent about what is right.

    Example: secfl audit suite --preset smoke
    """
    from secfl.audit.controls import Preset
    from secfl.audit.suite import repeat_suite

    def progress(name: str, done: int, total: int) -> None:
        typer.echo(f"{done + 1}/{total} {name}", err=True)

    repeated = repeat_suite(Preset(preset.value), seeds=seeds, first=seed, progress=progress)
    report = repeated.reports[0]
    if as_json:
        typer.echo(json.dumps((report if seeds == 1 else repeated).to_dict(), indent=2))
    elif seeds == 1:
        rows = [
            (
                one.control.name,
                one.control.kind.value,
                "flagged" if one.control.expected else "silent",
                "flagged" if one.finding.flagged else "silent",
                p_value(one.finding.p_value),
                one.finding.statistic,
                f"{one.seconds:.1f} s",
            )
            for one in report.outcomes
        ]
        print_table(("control", "kind", "expected", "found", "p", "statistic", "time"), rows)
        wrong = sum(not one.passed for one in report.outcomes)
        typer.echo(
            f"{len(report.outcomes)} controls, {wrong} not as expected; each at a false-alarm rate of 1e-6"
        )
    else:
        table = repeated.rows()
        print_table(
            ("control", "kind", "expected", "flagged", "p from", "to", "time"),
            [
                (
                    row["name"],
                    row["kind"],
                    f"{seeds if row['expected'] else 0} of {seeds}",
                    f"{row['times_flagged']} of {seeds}",
                    p_value(row["p_value_least"]),
                    p_value(row["p_value_most"]),
                    f"{row['seconds']:.1f} s",
                )
                for row in table
            ],
        )
        wrong = sum(len(row["wrong_seeds"]) for row in table)
        typer.echo(
            f"{len(table)} controls under {seeds} seeds, {wrong} not as expected; each at a false-alarm rate of 1e-6"
        )
    if not repeated.passed:
        raise typer.Exit(FAILED)


@app.command("transcript")
def transcript(
    run: Annotated[Path, typer.Argument(help="A run directory made with --record.")],
    as_json: Annotated[bool, typer.Option("--json", help="The findings as JSON.")] = False,
) -> None:
    """Look through all that a recorded run sent: uniform inputs, fresh keys, constant sizes, nothing in clear.

    Example: secfl audit transcript RUN
    """
    from secfl.audit.transcript import audit_run_transcript

    print_findings(audit_run_transcript(run), what=f"transcript of {run}", as_json=as_json)


@app.command("run")
def run(
    out: Annotated[Path, typer.Option(help="The run directory to make.")],
    canaries: Annotated[int, typer.Option(metavar="M", min=20, help="At most one per parameter.")] = 1000,
    config: Annotated[
        Path | None, typer.Option(help="Configuration of a segmentation run with --dp patient.")
    ] = None,
    clients: Annotated[int, typer.Option(min=3, max=64, help="Sites of the small task.")] = 5,
    parameters: Annotated[int, typer.Option(min=20, help="Of the small task.")] = 2000,
    steps: Annotated[int, typer.Option(metavar="T", min=1, help="Private steps of the small task.")] = 500,
    sampling_rate: Annotated[float, typer.Option(metavar="Q", help="Of the small task.")] = 0.04,
    noise_multiplier: Annotated[float, typer.Option(metavar="Z", help="Of the small task.")] = 0.8628,
    scheme: Annotated[str, typer.Option(help="masking or ckks, for the small task.")] = "masking",
    record: Annotated[bool, typer.Option("--record", help="Keep the transcript.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="All figures as JSON.")] = False,
) -> None:
    """Train with canaries among the patients and judge the run's own ledger by them.

    Without --config a small linear task is trained. Canaries, coins and rule are committed to in the ledger first
    and revealed in audit.json afterwards.

    Example: secfl audit run --out audited --canaries 500
    """
    from secfl.audit.canary_protocol import audit_run
    from secfl.config import check_cohort, load_config
    from secfl.testing.tasks import LinearTask

    task: Any
    if config is not None:
        from secfl.segmentation.segmentation_task import build_task

        settings = load_config(config, {"record": True} if record else {})
        task = build_task(settings)
    else:
        settings = load_config(
            None,
            {
                "record": record,
                "secure_agg": {"scheme": scheme},
                "privacy": {
                    "mode": "patient",
                    "noise_multiplier": noise_multiplier,
                    "accept_weak": True,
                    "nominal_patients": 40 + canaries // clients,
                    "sampling_rate": sampling_rate,
                    "steps": steps,
                },
            },
        )
        task = LinearTask(sites=clients, features=parameters - 1, examples=40)
    try:
        threshold = check_cohort(
            len(task.sites), settings.secure_agg.scheme, settings.secure_agg.threshold, 0.0
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None

    def progress(done: int, total: int) -> None:
        if done % 50 == 0 or done == total:
            typer.echo(f"step {done} of {total}", err=True)

    found = audit_run(settings, task, out=out, canaries=canaries, threshold=threshold, progress=progress)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
    else:
        print_canaries(found)
    if found.verdict.value == "REFUTED":
        raise typer.Exit(FAILED)


@app.command("verify")
def verify(
    run_directory: Annotated[Path, typer.Argument(metavar="RUN", help="Made by secfl audit run.")],
    as_json: Annotated[bool, typer.Option("--json", help="The findings as JSON.")] = False,
) -> None:
    """Repeat a finished audit from its run directory: commitment, coins, figures, ε and verdicts.

    Example: secfl audit verify audited
    """
    from secfl.audit.canary_record import verify_audit

    print_findings(verify_audit(run_directory), what=f"canary audit of {run_directory}", as_json=as_json)


@app.command("replay")
def replay(
    model: Annotated[str | None, typer.Option(help="A model family; default: every one.")] = None,
    size: Annotated[int, typer.Option(min=32, max=256, help="Pixels of the phantom.")] = 32,
    as_json: Annotated[bool, typer.Option("--json", help="The findings as JSON.")] = False,
) -> None:
    """Measure what one patient changes in a site's step, through loaders, model, clip, grid and noise.

    Every family with both normalisations and under both schedules, and a folder of images with and without a patient.

    Example: secfl audit replay
    """
    from secfl.audit.family_replay import replay_family, replay_folder
    from secfl.segmentation.models.registry import check_family, families

    found: list[Finding] = []
    if model is not None:
        check_family(model)
    for family in families() if model is None else (model,):
        typer.echo(f"replaying {family}", err=True)
        found += replay_family(family, size=size)
    typer.echo("replaying a folder", err=True)
    found += replay_folder(size=size)
    print_findings(found, what="replay of the private step", as_json=as_json)


@app.command("release")
def release(
    run_directory: Annotated[
        Path | None, typer.Argument(metavar="[RUN]", help="Take the plan from this run's ledger.")
    ] = None,
    draws: Annotated[
        int, typer.Option(min=100, max=1_000_000, help="Of each neighbour and view.")
    ] = 1_000_000,
    clients: Annotated[int, typer.Option(metavar="N", min=3, max=64, help="Without RUN.")] = 5,
    noise_multiplier: Annotated[float, typer.Option(metavar="Z", help="Without RUN.")] = 2.0,
    as_json: Annotated[bool, typer.Option("--json", help="All figures as JSON.")] = False,
) -> None:
    """Draw one release often in every view: clip, round, noise and sum, with one patient and without.

    Clopper-Pearson bounds against the accountant's ε of one release without sampling.

    Example: secfl audit release RUN --draws 100000
    """
    from secfl.audit.release import audit_release, plan_of_run, releases_document, usual_plan
    from secfl.audit.verdicts import worst
    from secfl.randomness import SystemRng

    plan = (
        usual_plan(clients=clients, noise_multiplier=noise_multiplier)
        if run_directory is None
        else plan_of_run(run_directory)
    )
    found = audit_release(plan, draws=draws, rng=SystemRng())
    verdict = worst([one.audit.verdict for one in found])
    if as_json:
        typer.echo(json.dumps(releases_document(plan, found), indent=2))
    else:
        print_releases(found, verdict=verdict)
    if verdict.value == "REFUTED":
        raise typer.Exit(FAILED)


@app.command("power")
def power(
    repetitions: Annotated[int, typer.Option(min=1, help="Honest runs.")] = 40,
    thin: Annotated[int, typer.Option(min=1, help="Runs with 1.5 times too little noise.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="The table as JSON.")] = False,
) -> None:
    """Measure how often audits find what is there, and cry wolf: the table of docs/audit.md.

    Example: secfl audit power
    """
    from secfl.audit.power import measure_power

    document = measure_power(
        repetitions, thin, progress=lambda done, total: typer.echo(f"{done}/{total}", err=True)
    )
    if as_json:
        typer.echo(json.dumps(document, indent=2))
        return
    print_table(
        ("test", "fault", "found", "detail"),
        [
            (row["test"], row["fault"], f"{row['found']} of {row['repetitions']}", row["detail"])
            for row in document["rows"]
        ],
    )


@app.command("peer")
def peer(
    name: Annotated[PeerChoice, typer.Argument(help="Which framework.")],
    peers_dir: Annotated[Path, typer.Option(help="Where make peers put them.")] = Path(".peers"),
    as_json: Annotated[bool, typer.Option("--json", help="The facts as JSON.")] = False,
) -> None:
    """Look at another framework's keys or seeds with its own functions: facts about the installed version.

    Example: secfl audit peer flower-secaggplus
    """
    from secfl.audit.peers import PeerName, look_at_peer

    found = look_at_peer(PeerName(name.value), folder=peers_dir)
    if as_json:
        typer.echo(json.dumps({"format_version": FORMAT_VERSION, **found.to_dict()}, indent=2))
        return
    if found.facts is None:
        typer.echo(f"{name.value}: skipped, {found.skipped}")
        return
    for key, value in found.facts.items():
        typer.echo(f"{key.replace('_', ' ')}: {value}")


@app.command("inversion")
def inversion(
    out: Annotated[Path, typer.Option(help="Folder for the figure and the numbers; must not exist.")],
    images: Annotated[int, typer.Option(min=7, help="Single updates to invert.")] = 20,
    sums: Annotated[int, typer.Option(min=1, help="Targets within sums.")] = 5,
    iterations: Annotated[int, typer.Option(min=1, max=500, help="Of each attack.")] = 60,
    noise_multiplier: Annotated[float, typer.Option(metavar="Z", help="Of the noise in the sum.")] = 1.0,
) -> None:
    """Draw images from one update, from secure sums, and from a secure sum with DP; on phantoms. Takes a while.

    Example: secfl audit inversion --out pictures
    """
    from secfl.audit.inversion import inversion_study
    from secfl.randomness import SystemRng

    if out.exists():
        raise ConfigError(f"--out {out}: exists already; expected a new folder")
    out.mkdir(parents=True)
    document = inversion_study(
        images=images,
        sums=sums,
        iterations=iterations,
        noise_multiplier=noise_multiplier,
        rng=SystemRng(),
        figure=out / "inversion.png",
        progress=lambda done, total: typer.echo(f"{done}/{total}", err=True),
    )
    (out / "inversion.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print_table(
        ("seen", "images", "matched", "recognised", "SSIM mean", "least", "most", "PSNR dB"),
        [
            (
                row["seen"],
                str(row["images"]),
                str(row["matched"]),
                str(row["recognised"]),
                f"{row['ssim_mean']:.3f}",
                f"{row['ssim_min']:.3f}",
                f"{row['ssim_max']:.3f}",
                f"{row['psnr_mean_db']:.1f}",
            )
            for row in document["rows"]
        ],
    )


@app.command("membership")
def membership(
    run_directory: Annotated[Path, typer.Argument(metavar="RUN", help="A finished segmentation run.")],
    as_json: Annotated[bool, typer.Option("--json", help="The figures as JSON.")] = False,
) -> None:
    """Threshold the final model's loss: do training images stand out? True positives at 1 % false positives.

    Example: secfl audit membership RUN
    """
    from secfl.audit.membership import membership_attack, segmentation_losses
    from secfl.federation import checkpoint
    from secfl.federation.rundir import RunDirectory
    from secfl.segmentation.segmentation_task import build_task

    directory = RunDirectory.open(run_directory)
    final = checkpoint.load(directory.checkpoints / "final.safetensors")
    members, others = segmentation_losses(build_task(directory.config()), final.state)
    found = membership_attack(members, others)
    if as_json:
        typer.echo(json.dumps({"format_version": FORMAT_VERSION, **found.to_dict()}, indent=2))
        return
    low, high = found.interval
    typer.echo(
        f"true positives {found.true_positive_rate:.3f} (95 %: {low:.3f} to {high:.3f}) at false positives "
        f"{found.false_positive_rate:g} (measured {found.measured_false_positive_rate:.3f}), AUC {found.auc:.3f}; "
        f"{found.members} training and {found.others} test images"
    )
