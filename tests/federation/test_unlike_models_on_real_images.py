"""Three sites of cell nuclei, three families: the student beats what any client has alone, under every scheme."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from secfl.config import load_config
from secfl.federation import simulation
from secfl.federation.observer import SilentObserver

pytestmark = [pytest.mark.slow, pytest.mark.real_data]

PROXY_EVERY = 4
"""Every fourth image of a site belongs to nobody instead."""


@pytest.fixture(scope="module")
def folder(real_data, tmp_path_factory):
    """Grey and half as large; the three sets have one and three channels."""
    source = real_data / "nuclei"
    if not source.is_dir():
        pytest.skip(f"{real_data} holds no nuclei")
    made = tmp_path_factory.mktemp("nuclei")
    for site in sorted(path for path in source.iterdir() if path.is_dir()):
        for number, image in enumerate(sorted((site / "images").iterdir())):
            place = made / ("proxy" if number % PROXY_EVERY == PROXY_EVERY - 1 else site.name)
            for kind, method in (
                ("images", Image.Resampling.BILINEAR),
                ("masks", Image.Resampling.NEAREST),
            ):
                (place / kind).mkdir(parents=True, exist_ok=True)
                picture = Image.open(site / kind / image.name).convert("L")
                small = picture.resize((picture.width // 2, picture.height // 2), method)
                if kind == "masks":
                    small = small.point(lambda value: 255 if value else 0)
                small.save(place / kind / f"{site.name}-{image.stem}.png")
    return made


def settings(folder, scheme, **more):
    return load_config(
        None,
        {
            "threads": 1,
            "evaluate_every": 1000,
            "data": {"source": str(folder), "public": ["proxy"], "normalization": "zscore"},
            "model": {"channels": [8, 16, 32, 64]},
            "training": {
                "rounds": 6,
                "local_epochs": 4,
                "batch_size": 4,
                "crop": 64,
                "augmentation": "standard",
            },
            "multi_model": {
                "families": ["cnn", "modified_unet", "semantic"],
                "student": "unet",
                "distill_epochs": 2,
                "student_epochs": 8,
                "weights": "typical",
                "sharpen": 2.0,
            },
            "secure_agg": {"scheme": scheme},
        }
        | more,
    )


def test_the_student_beats_every_local_model_and_schemes_agree(folder, tmp_path, record_property):
    digests = {}
    for scheme in ("plain", "masking", "ckks"):
        config = settings(folder, scheme, references=scheme == "plain")
        summary = simulation.simulate(config, out=tmp_path / scheme, observer=SilentObserver())
        digests[scheme] = summary["final_model_sha256"]
        entries = [json.loads(line) for line in (tmp_path / scheme / "ledger.jsonl").read_text().splitlines()]
        commits = [entry["body"] for entry in entries if entry["type"] == "commit"]
        assert len(commits) == config.training.rounds
        assert all(len(commit["survivors"]) == 3 for commit in commits)
        if scheme == "plain":
            union = summary["evaluation_only"]["union"]
            record_property("union", json.dumps(union))
            assert union["student"] > max(union["local"].values()), union
    assert len(set(digests.values())) == 1, digests
