"""A finished or interrupted run put to work: its last global model segments image files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from secfl.config import RunConfig
from secfl.errors import ConfigError, DataError
from secfl.federation import checkpoint
from secfl.federation.rundir import RunDirectory
from secfl.segmentation.task import State

if TYPE_CHECKING:
    from secfl.segmentation.prediction import Predictor

__all__ = ["predictor_of_run"]


def predictor_of_run(path: Path, *, site: str | None = None, family: str | None = None) -> Predictor:
    """The model that a run gives: after its last finished round, or the best one where it stops early.

    Of a federation of unlike models it is the student, unless a client's model is asked for; where parts of the model
    stay at the sites, it is one site's.

    Args:
        path: The run directory.
        site: Whose own parameters complete the model, or whose model it is among unlike ones.
        family: Of unlike models, the one of this family; if clients with it differ, the site tells which.

    Raises:
        ConfigError: Not a run directory, or a site or family that is missing, unknown or of no use.
        DataError: No checkpoint yet, a damaged one, or a model that does not fit it.
    """
    run = RunDirectory.open(path)
    config, inputs = run.config(), run.read_inputs()
    chosen = _checkpoint(run, config)
    loaded = checkpoint.load(chosen)
    state = dict(loaded.state)
    if config.multi_model.families:
        family, state = _unlike(config, state, site=site, family=family)
        site = None
    elif family is not None:
        raise ConfigError(
            f"--family {family}: the run has one family, {config.model.name}; leave --family out"
        )
    if config.training.local_parameters != "none":
        state |= _own(run, site, loaded.rounds_completed)
        inputs = inputs.at(site)
        if site in config.data.sites:
            config = config.model_copy(update={"data": config.data.of_site(site)})
    elif site is not None:
        raise ConfigError(f"--site {site}: the whole model is shared in this run; leave --site out")
    from secfl.segmentation.prediction import Predictor

    try:
        return Predictor(config, inputs, state, family=family)
    except DataError:
        raise
    except ConfigError as error:
        raise DataError(f"{chosen}: {error}") from None


def _unlike(
    config: RunConfig, state: State, *, site: str | None, family: str | None
) -> tuple[str, dict[str, Any]]:
    """Family and tensors of the student or of one client, out of a checkpoint of all models."""
    models: dict[str, dict[str, Any]] = {}
    for name, tensor in state.items():
        kind, _, rest = name.partition("/")
        owner, _, tensor_name = rest.partition("/") if kind == "site" else ("", "", rest)
        models.setdefault(owner, {})[tensor_name] = tensor
    student = models.pop("")
    family_of = dict(zip(sorted(models), config.multi_model.families, strict=True))
    if site is None and family is None:
        return config.multi_model.student, student
    if site is not None and site not in family_of:
        raise ConfigError(f"--site {site}: no such client; expected one of {', '.join(family_of)}")
    asked = [one for one in family_of if site in (None, one) and family in (None, family_of[one])]
    if not asked and site is None and family == config.multi_model.student:
        return family, student
    if not asked:
        where = f"{site} has {family_of[site]}" if site is not None else "no model of it"
        known = dict.fromkeys([*family_of.values(), config.multi_model.student])
        raise ConfigError(f"--family {family}: {where}; expected one of {', '.join(known)}")
    first = models[asked[0]]
    if any(not np.array_equal(models[one][name], first[name]) for one in asked for name in first):
        raise ConfigError(
            f"--family {family}: the models of its clients differ; expected --site with one of {', '.join(asked)}"
        )
    return family_of[asked[0]], first


def _checkpoint(run: RunDirectory, config: RunConfig) -> Path:
    best = run.checkpoints / "best.safetensors"
    if (
        config.training.early_stopping is not None
        and config.training.local_parameters == "none"
        and best.exists()
    ):
        return best
    latest = checkpoint.latest_checkpoint(run.checkpoints)
    if latest is None:
        raise DataError(f"{run.checkpoints}: no checkpoint; expected a run with at least one finished round")
    return latest


def _own(run: RunDirectory, site: str | None, rounds: int) -> State:
    """The parameters that stayed at a site."""
    ending = f"-round-{rounds:05d}.safetensors"
    sites = sorted(path.name.removesuffix(ending) for path in run.sites.glob(f"*{ending}"))
    if site not in sites:
        given = "not given" if site is None else f"{site} is not one of them"
        raise ConfigError(
            f"--site: {given}; parts of the model stay at the sites, expected one of {', '.join(sites)}"
        )
    return checkpoint.load(run.sites / f"{site}{ending}").state
