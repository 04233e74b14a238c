"""The server's processes open no label file: before pre-training, and while they coordinate sites with own heads."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from secfl.config import load_config
from secfl.errors import DataError
from secfl.federation import evaluation, personal, simulation
from secfl.federation.checkpoint import load
from secfl.federation.observer import SilentObserver
from secfl.federation.personal import KeepingTrainer, load_kept
from secfl.federation.rundir import RunDirectory, read_summary
from secfl.ledger.entry import KeyCustody
from secfl.ledger.verify import Status, verify_file
from secfl.segmentation.segmentation_task import build_task
from secfl.studies.published.universal import work

SITES = ("eye", "leg", "skin")
_HEARD: list[str] = []
_LISTENING = [False]


def _hear(event, arguments):
    if _LISTENING[0] and event in {"open", "os.listdir", "os.scandir"}:
        _HEARD.append(str(arguments[0]))


sys.addaudithook(_hear)


@pytest.fixture
def opened():
    """Everything that this process, and no other, opens or lists during the test."""
    _HEARD.clear()
    _LISTENING[0] = True
    yield _HEARD
    _LISTENING[0] = False


def parts_of(paths: list[str], root: Path) -> set[str]:
    """Kinds of folder under the data's root that were touched."""
    return {
        Path(path).relative_to(root).parts[1] for path in paths if path.startswith(f"{root}/") and "." in path
    }


def told_by(run: Path) -> list[str]:
    """What the ledger says was shown without protection."""
    opening = json.loads((run / "ledger.jsonl").read_text(encoding="utf-8").splitlines()[0])
    return opening["body"]["unprotected"]


@pytest.fixture
def data(tmp_path):
    root = tmp_path / "data"
    draw = np.random.default_rng(3)
    for classes, site in enumerate(SITES, start=1):
        for number in range(4):
            mask = np.zeros((32, 32), np.uint8)
            for label in range(1, classes + 1):
                mask[4 * label : 4 * label + 6, 8:20] = label
            image = draw.integers(0, 90, mask.shape, np.uint8) + 30 * mask
            for kind, pixels in (("images", image), ("masks", mask)):
                (root / site / kind).mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.astype(np.uint8)).save(root / site / kind / f"{number}.png")
    return root


def tree(data, *, engine="inprocess", objective="segmentation", **training):
    head = {} if objective == "masked-images" else {"local_parameters": "head"}
    return {
        "threads": 1,
        "engine": engine,
        "data": {
            "channels": 3,
            "sites": {
                site: {
                    "source": str(data / site),
                    "labels": {f"part {label}": label for label in range(1, classes + 1)},
                }
                for classes, site in enumerate(SITES, start=1)
            },
        },
        "model": {"channels": [4, 8, 8]},
        "training": {"rounds": 2, "local_epochs": 1, "objective": objective, "crop": 32, **head, **training},
        "deadlines": {"training": 120, "phase": 60},
    }


def test_pre_training_opens_images_alone(data, tmp_path, opened):
    job = work.pretraining_job("before", tree(data, objective="masked-images", rounds=1), runs=tmp_path)
    job.work(*job.arguments)
    assert (tmp_path / "before" / work.BACKBONE).exists()
    assert parts_of(opened, data) == {"images"}


def test_pre_training_needs_no_masks_at_all(data):
    for mask in data.rglob("masks/*.png"):
        mask.unlink()
    task = build_task(load_config(None, tree(data, objective="masked-images")))
    assert task.examples("eye") == 3
    with pytest.raises(DataError, match="masks"):
        build_task(load_config(None, tree(data)))


def test_a_coordinator_opens_images_alone_and_gets_the_same_model(data, tmp_path, opened):
    there = load_config(None, tree(data, engine="multiprocess", stages=[1]))
    simulation.simulate(there, out=tmp_path / "there", observer=SilentObserver())
    assert parts_of(opened, data) == {"images"}
    # What it could not do without labels and heads, it left out.
    summary = read_summary(tmp_path / "there")
    assert summary["evaluation_only"]["dice"]["per_site"] == {}
    assert not list((tmp_path / "there" / "previews").glob("*"))
    assert verify_file(tmp_path / "there" / "ledger.jsonl").status is Status.CLOSED
    # Nor does the ledger say that it was shown.
    assert not [text for text in told_by(tmp_path / "there") if "images" in text or "reference" in text]
    # The control: one process with everybody's data opens masks, and ends in the same bits, heads included.
    opened.clear()
    here = simulation.simulate(
        load_config(None, tree(data, stages=[1])), out=tmp_path / "here", observer=SilentObserver()
    )
    assert parts_of(opened, data) == {"images", "masks"}
    assert any("per-site metrics on the test images" in text for text in told_by(tmp_path / "here"))
    assert here["final_model_sha256"] == summary["final_model_sha256"]
    for site in SITES:
        own = load_kept(tmp_path / "there" / "sites" / site / "own")
        expected = load(tmp_path / "here" / "sites" / f"{site}-round-00002.safetensors").state
        assert {name: value.tolist() for name, value in own.items()} == {
            name: value.tolist() for name, value in expected.items()
        }


def test_references_are_neither_trained_nor_listed_where_no_masks_are_read(data, tmp_path):
    config = load_config(None, tree(data, engine="multiprocess") | {"references": True})
    task = build_task(config)
    run = RunDirectory.create(tmp_path / "run", config)
    found = evaluation.references(task, run, rounds=1, config_digest="ab", progress=lambda *_: None)
    assert found is None
    assert not list(run.checkpoints.glob("*"))
    assert evaluation.shown(config, task, KeyCustody.SEPARATE) == []


def test_all_that_a_simulation_writes_down_of_the_data_is_listed(data):
    config = load_config(None, tree(data) | {"references": True, "include_images": True})
    listed = " ".join(evaluation.shown(config, build_task(config), KeyCustody.ONE_PROCESS))
    for kind in (
        "metrics",
        "unlike",
        "reference models",
        "previews",
        "clipped coordinates",
        "error of the opened",
    ):
        assert kind in listed
    blind = load_config(None, tree(data, engine="multiprocess"))
    (sentence,) = evaluation.shown(blind, build_task(blind), KeyCustody.ONE_PROCESS)
    assert "clipped coordinates" in sentence


class TestKeeping:
    """A site that is started again goes on with its own head."""

    def test_a_new_process_trains_as_the_old_one_would_have(self, data, tmp_path):
        config = load_config(None, tree(data))

        def trainer(name):
            return KeepingTrainer(build_task(config), tmp_path / name, config_digest="ab")

        (tmp_path / "site").mkdir()
        state = build_task(config).initial_state()
        old = trainer("site/own")
        first = old.train("leg", state, round_index=0).state
        second = old.train("leg", first, round_index=1).state
        kept = load_kept(tmp_path / "site/own")
        # The second round again, and again from a new process: from what the first one left, not the second.
        for one in (old, trainer("site/own")):
            again = one.train("leg", first, round_index=1).state
            assert all(np.array_equal(second[name], again[name]) for name in second)
            found = load_kept(tmp_path / "site/own")
            assert all(np.array_equal(kept[name], found[name]) for name in kept)

    def test_what_another_run_kept_is_refused(self, data, tmp_path):
        config = load_config(None, tree(data))
        state = build_task(config).initial_state()
        KeepingTrainer(build_task(config), tmp_path / "own", config_digest="ab").train(
            "leg", state, round_index=0
        )
        other = KeepingTrainer(build_task(config), tmp_path / "own", config_digest="cd")
        with pytest.raises(DataError, match="another run"):
            other.train("leg", state, round_index=1)

    def test_nothing_kept_is_said(self, tmp_path):
        with pytest.raises(DataError, match="kept nothing"):
            personal.load_kept(tmp_path)
