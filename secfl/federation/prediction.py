"""A finished or interrupted run put to work: its last global model segments image files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from secfl.errors import ConfigError, DataError
from secfl.federation import checkpoint
from secfl.federation.rundir import RunDirectory

if TYPE_CHECKING:
    from secfl.segmentation.prediction import Predictor

__all__ = ["predictor_of_run"]


def predictor_of_run(path: Path) -> Predictor:
    """The model after the run's last finished round.

    Raises:
        ConfigError: Not a run directory.
        DataError: No checkpoint yet, a damaged one, or a model that does not fit it.
    """
    run = RunDirectory.open(path)
    config, inputs = run.config(), run.read_inputs()
    latest = checkpoint.latest_checkpoint(run.checkpoints)
    if latest is None:
        raise DataError(f"{run.checkpoints}: no checkpoint; expected a run with at least one finished round")
    from secfl.segmentation.prediction import Predictor

    try:
        return Predictor(config, inputs, checkpoint.load(latest).state)
    except DataError:
        raise
    except ConfigError as error:
        raise DataError(f"{latest}: {error}") from None
