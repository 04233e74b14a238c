"""``secfl simulate``: a federation of clinics in one process."""

from __future__ import annotations

import json
import shlex
import warnings
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import typer

from secfl.cli.rare import HelpAll
from secfl.config import (
    PRIVATE_PHANTOM,
    Device,
    DpMode,
    DpSchedule,
    Engine,
    KeyMode,
    RunConfig,
    Scheme,
    load_config,
)
from secfl.errors import ConfigError

__all__ = ["RARE", "simulate"]

_INTERRUPTED = 130

# Parameter of the command -> path of the key in the configuration.
_KEYS: Mapping[str, tuple[str, ...]] = {
    "data": ("data", "source"),
    "phantom_task": ("data", "phantom_task"),
    "model": ("model", "name"),
    "families": ("multi_model", "families"),
    "student": ("multi_model", "student"),
    "clients": ("clients",),
    "rounds": ("training", "rounds"),
    "local_epochs": ("training", "local_epochs"),
    "secure_agg": ("secure_agg", "scheme"),
    "ckks_key": ("secure_agg", "ckks_key"),
    "threshold": ("secure_agg", "threshold"),
    "dp": ("privacy", "mode"),
    "epsilon": ("privacy", "epsilon"),
    "delta": ("privacy", "delta"),
    "noise_multiplier": ("privacy", "noise_multiplier"),
    "clip": ("privacy", "clip"),
    "ledger_dir": ("privacy", "ledger_dir"),
    "account_epsilon": ("privacy", "account_epsilon"),
    "policy": ("privacy", "policy"),
    "accept_weak": ("privacy", "accept_weak"),
    "dp_schedule": ("privacy", "schedule"),
    "sampling_rate": ("privacy", "sampling_rate"),
    "steps": ("privacy", "steps"),
    "local_steps": ("privacy", "local_steps"),
    "insecure_test_noise": ("privacy", "insecure_test_noise"),
    "dropout": ("dropout",),
    "engine": ("engine",),
    "device": ("training", "device"),
    "seed": ("seed",),
    "references": ("references",),
    "record": ("record",),
    "include_images": ("include_images",),
}

# Parameters that leave open what is trained and how it is protected.
_OPEN = frozenset(
    {
        "clients",
        "secure_agg",
        "ckks_key",
        "threshold",
        "ledger_dir",
        "policy",
        "dropout",
        "engine",
        "device",
        "seed",
        "record",
        "include_images",
    }
)

RARE = (
    "families",
    "student",
    "local_epochs",
    "ckks_key",
    "dropout",
    "delta",
    "noise_multiplier",
    "dp_schedule",
    "local_steps",
    "ledger_dir",
    "account_epsilon",
    "policy",
    "accept_weak",
    "insecure_test_noise",
    "device",
    "include_images",
    "phantom_task",
)
"""Parameters that ``--help-all`` lists and ``--help`` does not."""

_NOTHING: Mapping[str, Mapping[str, Any]] = MappingProxyType({})

_TRAINING = "Training"
_AGGREGATION = "Secure aggregation"
_PRIVACY = "Differential privacy"
_OUTPUT = "Output"


def simulate(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="TOML file; flags win over it.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="DIR|phantom", help="Folder of <site>/images and <site>/masks, or the phantom."),
    ] = None,
    phantom_task: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which phantom, such as fundus or kidney-ct.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Model family.", rich_help_panel=_TRAINING)
    ] = None,
    families: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,…",
            help="One model family for each site, in order; needs data.public.",
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    student: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="With --families: the global model's.", rich_help_panel=_TRAINING),
    ] = None,
    clients: Annotated[int | None, typer.Option(metavar="N", help="Sites of the phantom.")] = None,
    rounds: Annotated[
        int | None, typer.Option(metavar="R", help="Federated rounds.", rich_help_panel=_TRAINING)
    ] = None,
    local_epochs: Annotated[
        int | None,
        typer.Option(metavar="E", help="Passes over a site's images per round.", rich_help_panel=_TRAINING),
    ] = None,
    secure_agg: Annotated[
        Scheme | None, typer.Option(help="How updates are added.", rich_help_panel=_AGGREGATION)
    ] = None,
    ckks_key: Annotated[
        KeyMode | None, typer.Option(help="Who holds the CKKS key.", rich_help_panel=_AGGREGATION)
    ] = None,
    threshold: Annotated[
        int | None,
        typer.Option(
            metavar="T", help="Fewest survivors for which a sum is opened.", rich_help_panel=_AGGREGATION
        ),
    ] = None,
    dropout: Annotated[
        float | None,
        typer.Option(metavar="P", help="Chance of a drop-out per round.", rich_help_panel=_AGGREGATION),
    ] = None,
    dp: Annotated[
        DpMode | None, typer.Option(help="Whose presence noise hides.", rich_help_panel=_PRIVACY)
    ] = None,
    epsilon: Annotated[
        float | None,
        typer.Option(metavar="E", help="Target ε; calibrates the noise.", rich_help_panel=_PRIVACY),
    ] = None,
    delta: Annotated[
        float | None, typer.Option(metavar="D", help="δ of every statement.", rich_help_panel=_PRIVACY)
    ] = None,
    noise_multiplier: Annotated[
        float | None,
        typer.Option(
            metavar="Z",
            help="Noise deviation over sensitivity, instead of --epsilon.",
            rich_help_panel=_PRIVACY,
        ),
    ] = None,
    clip: Annotated[
        float | None, typer.Option(metavar="C", help="L2 clip norm of one unit.", rich_help_panel=_PRIVACY)
    ] = None,
    dp_schedule: Annotated[
        DpSchedule | None,
        typer.Option(
            help="What is summed under --dp patient: each step, or rounds.", rich_help_panel=_PRIVACY
        ),
    ] = None,
    sampling_rate: Annotated[
        float | None,
        typer.Option(metavar="Q", help="Chance of each patient to be in a step.", rich_help_panel=_PRIVACY),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(metavar="T", help="Private steps under --dp patient.", rich_help_panel=_PRIVACY),
    ] = None,
    ledger_dir: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="One privacy account per site, shared by all runs on the same patients.",
            rich_help_panel=_PRIVACY,
        ),
    ] = None,
    account_epsilon: Annotated[
        float | None,
        typer.Option(
            metavar="E", help="Cap of a new account; by default --epsilon.", rich_help_panel=_PRIVACY
        ),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="The sites' policy; a run that it does not allow ends with exit code 3.",
            rich_help_panel=_PRIVACY,
        ),
    ] = None,
    local_steps: Annotated[
        int | None,
        typer.Option(
            metavar="L",
            help="Private steps between two sums under --dp-schedule round.",
            rich_help_panel=_PRIVACY,
        ),
    ] = None,
    accept_weak: Annotated[
        bool | None,
        typer.Option(
            "--accept-weak", help="Run although the aggregator's ε is above 20.", rich_help_panel=_PRIVACY
        ),
    ] = None,
    insecure_test_noise: Annotated[
        int | None,
        typer.Option(
            metavar="SEED", help="Reproducible noise; the ledger says NonPrivate.", rich_help_panel=_PRIVACY
        ),
    ] = None,
    engine: Annotated[Engine | None, typer.Option(help="Who carries the envelopes.")] = None,
    device: Annotated[
        Device | None, typer.Option(help="Where models are trained.", rich_help_panel=_TRAINING)
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            metavar="S", help="Public experiment seed; never feeds keys or noise.", rich_help_panel=_TRAINING
        ),
    ] = None,
    references: Annotated[
        bool | None,
        typer.Option(
            "--references/--no-references", help="Also train every site alone and all sites pooled."
        ),
    ] = None,
    record: Annotated[
        bool | None,
        typer.Option("--record/--no-record", help="Keep every envelope as a file.", rich_help_panel=_OUTPUT),
    ] = None,
    include_images: Annotated[
        bool | None,
        typer.Option(
            "--include-images/--no-include-images",
            help="Write previews of images that are not a phantom.",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN", help="New run directory; by default runs/<time>-<scheme>.", rich_help_panel=_OUTPUT
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Go on with an interrupted run and its own configuration.",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="The summary alone on standard output.", rich_help_panel=_OUTPUT),
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Nothing but errors.", rich_help_panel=_OUTPUT)
    ] = False,
    help_all: HelpAll = False,
) -> None:
    """Train a segmentation model in a simulated federation of clinics.

    Without options: a U-Net on three sites of a CT phantom, aggregated with pairwise masks, with differential
    privacy for patients at ε = 8. Every other setting stands in a configuration: secfl init writes one.

    Examples: secfl simulate --secure-agg ckks; secfl simulate --data DIR --dp patient --epsilon 8 --references
    """
    given = {name: context.params[name] for name in _KEYS if context.params[name] is not None}
    if resume is not None:
        refuse = [*given, *(["config"] if config else []), *(["out"] if out else [])]
        if refuse:
            raise ConfigError(
                f"--resume {resume} goes on with the run's own configuration; remove {_flag(refuse[0])}"
            )
        run, settings = resume, None
    else:
        unasked = config is None and _asks_for_nothing(given)
        settings = _configuration(config, given, usual=PRIVATE_PHANTOM if unasked else _NOTHING)
        if unasked and not quiet:
            typer.echo(
                f"--dp patient at ε = {settings.privacy.epsilon:g} on the phantom, because nothing else was asked "
                "(--dp off trains without noise)",
                err=True,
            )
        run = out if out is not None else _new_run(settings)

    # Deprecations inside our dependencies are for us, not for whoever runs a simulation.
    warnings.filterwarnings("ignore", category=FutureWarning)
    from secfl.cli.progress import observe
    from secfl.cli.summary import print_summary
    from secfl.federation import simulation

    try:
        with observe(quiet=quiet) as observer:
            if settings is None:
                summary = simulation.resume(run, observer=observer)
            else:
                summary = simulation.simulate(settings, out=run, observer=observer)
    except KeyboardInterrupt:
        typer.echo(f"interrupted; {_how_to_go_on(run)}", err=True)
        raise typer.Exit(_INTERRUPTED) from None
    if as_json:
        typer.echo(json.dumps(summary, indent=2, allow_nan=False))
    elif not quiet:
        print_summary(summary, run)


def _asks_for_nothing(given: Mapping[str, Any]) -> bool:
    """Whether no flag says what is trained, on which data, or with which privacy."""
    return given.keys() - {"data"} <= _OPEN and given.get("data", "phantom") == "phantom"


def _configuration(
    file: Path | None, given: Mapping[str, Any], *, usual: Mapping[str, Mapping[str, Any]] = _NOTHING
) -> RunConfig:
    """The file, under the flags that were given; an error about a flag names the flag, not its key.

    Args:
        file: A configuration.
        given: Flags.
        usual: Values where neither says anything; only without a file.
    """
    overrides: dict[str, Any] = {section: dict(values) for section, values in usual.items()}
    for name, value in given.items():
        *sections, key = _KEYS[name]
        place = overrides
        for section in sections:
            place = place.setdefault(section, {})
        place[key] = value.split(",") if name == "families" else value
    try:
        return load_config(file, overrides)
    except ConfigError as error:
        message = str(error)
        for name in given:
            key = ".".join(_KEYS[name]) + ":"
            bare = message.removeprefix(f"{file}: ")
            if bare.startswith(key):
                raise ConfigError(_flag(name) + bare.removeprefix(key[:-1])) from None
        raise


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _new_run(settings: RunConfig) -> Path:
    stamp = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    first = Path("runs") / f"{stamp}-{settings.secure_agg.scheme.value}"
    run, number = first, 1
    while run.exists():
        number += 1
        run = first.with_name(f"{first.name}-{number}")
    return run


def _how_to_go_on(run: Path) -> str:
    if not (run / "config.toml").is_file():
        return "nothing was written"
    return f"go on with: secfl simulate --resume {shlex.quote(str(run))}"
