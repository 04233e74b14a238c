"""Small runs, made once: with noise, without, and of unlike models."""

from __future__ import annotations

from pathlib import Path

import pytest

from secfl.config import load_config
from secfl.federation import simulation
from secfl.federation.observer import SilentObserver

SMALL = {
    "threads": 1,
    "evaluate_every": 2,
    "data": {"phantom_images": 8, "image_size": 32},
    "model": {"channels": [4, 4, 8]},
    "secure_agg": {"scheme": "masking"},
}


@pytest.fixture(scope="session")
def private_run(tmp_path_factory) -> Path:
    """Six steps with noise for patients."""
    run = tmp_path_factory.mktemp("runs") / "private"
    privacy = {"mode": "patient", "epsilon": 8.0, "sampling_rate": 0.3, "steps": 6, "physical_batch": 4}
    simulation.simulate(load_config(None, SMALL | {"privacy": privacy}), out=run, observer=SilentObserver())
    return run


@pytest.fixture(scope="session")
def open_run(tmp_path_factory) -> Path:
    """Two rounds without noise, one site dropping out now and then."""
    run = tmp_path_factory.mktemp("runs") / "open"
    settings = SMALL | {
        "clients": 4,
        "dropout": 0.2,
        "seed": 3,
        "training": {"rounds": 4, "local_epochs": 1},
        "secure_agg": {"scheme": "masking", "threshold": 3},
        "references": True,
    }
    simulation.simulate(load_config(None, settings), out=run, observer=SilentObserver())
    return run


@pytest.fixture(scope="session")
def unlike_run(tmp_path_factory) -> Path:
    """Three sites that average their models apart, and one with another model; a student for all."""
    run = tmp_path_factory.mktemp("runs") / "unlike"
    settings = SMALL | {
        "clients": 4,
        "data": SMALL["data"] | {"public": ["open"]},
        "training": {"rounds": 2, "local_epochs": 1},
        "references": True,
        "multi_model": {
            "families": ["cnn", "cnn", "cnn", "unet"],
            "average": ["cnn"],
            "student": "unet",
            "distill_epochs": 1,
            "student_epochs": 1,
        },
    }
    simulation.simulate(load_config(None, settings), out=run, observer=SilentObserver())
    return run
