"""The published phases: their settings, a smoke run under both schemes, and rows that follow from the runs."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from secfl.config import Scheme, load_config
from secfl.errors import ConfigError
from secfl.ledger.verify import Status, verify_file
from secfl.studies.published import runner
from secfl.studies.published.dvt import STUDY, tables, words
from secfl.studies.published.dvt.phases import PHASES, SIZES, phases_of, settings
from secfl.studies.published.interface import Definition, Preset, Request
from secfl.studies.published.runner import run_published
from secfl.studies.published.table import STUDIES


def request(preset=Preset.SMOKE, seeds=1, **more):
    return Request(preset=preset, seeds=tuple(range(seeds)), **more)


def in_this_process(jobs, *, processes, listener):
    for job in jobs:
        if not job.result.exists():
            job.work(*job.arguments)
            listener.finished(job)


class Quiet:
    def began(self, rounds, runs): ...
    def moved(self, rounds): ...
    def finished(self, job): ...


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    out = tmp_path_factory.mktemp("dvt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "run_jobs", in_this_process)
        said = []
        document = run_published(STUDY, request(), out=out, processes=1, listener=Quiet(), say=said.append)
    return SimpleNamespace(out=out, document=document, said=said)


class TestSettings:
    def test_the_phases_are_the_published_ones(self):
        assert [(phase.clients, phase.images) for phase in PHASES] == [(3, 1000), (5, 2000), (7, 3000)]
        assert [phase.families for phase in PHASES] == [
            ("cnn", "sequential", "semantic"),
            ("cnn", "sequential", "semantic", "unet", "vgg19"),
            ("cnn", "sequential", "semantic", "unet", "vgg19", "modified_unet", "modified_net"),
        ]

    @pytest.mark.parametrize("preset", list(Preset))
    def test_every_preset_gives_configurations_that_can_be_run(self, preset):
        asked = request(preset)
        for phase in phases_of(asked):
            for scheme in (Scheme.MASKING, Scheme.CKKS):
                config = load_config(None, settings(asked, phase, seed=3, scheme=scheme, references=True))
                assert config.clients == phase.clients == len(config.multi_model.families)
                assert config.multi_model.min_contributors == 3
                assert config.secure_agg.scheme is scheme

    def test_at_full_size_the_images_are_as_many_as_published(self):
        size = SIZES[Preset.PAPER]
        for phase in PHASES:
            assert size.images_per_site(phase) * phase.clients == pytest.approx(phase.images, rel=0.002)
        small = SIZES[Preset.SMALL]
        images = [small.images_per_site(phase) * phase.clients for phase in PHASES]
        assert images == pytest.approx([images[0], 2 * images[0], 3 * images[0]], rel=0.03)

    def test_a_folder_has_one_folder_of_sites_for_each_phase(self, tmp_path):
        asked = request(data=str(tmp_path))
        with pytest.raises(ConfigError, match="phase-1, phase-2 or phase-3"):
            phases_of(asked)
        for site in ("a", "b", "c"):
            (tmp_path / "phase-1" / site).mkdir(parents=True)
        with pytest.raises(ConfigError, match="phase-1: 3 sites; expected 3 clients and one more, proxy"):
            phases_of(asked)
        (tmp_path / "phase-1" / "proxy").mkdir()
        assert phases_of(asked) == PHASES[:1]
        assert settings(asked, PHASES[0], seed=0, scheme=Scheme.MASKING, references=False)["data"] == {
            "source": str(tmp_path / "phase-1"),
            "public": ["proxy"],
        }

    def test_it_is_registered(self):
        assert STUDIES["dvt"].load() is STUDY


class TestSmoke:
    def test_every_run_has_a_closed_ledger_of_its_own(self, smoke):
        assert set(smoke.document["runs"]) == {
            "phase-1-seed-0-masking",
            "phase-2-seed-0-masking",
            "phase-3-seed-0-masking",
            "phase-1-seed-0-ckks",
        }
        for name in smoke.document["runs"]:
            verdict = verify_file(smoke.out / "runs" / name / "ledger.jsonl")
            assert verdict.status is Status.CLOSED
            assert verdict.rounds["committed"] == 2

    def test_both_schemes_end_in_the_same_student(self, smoke):
        agree = {
            row["where"]["phase"]: row["mean"]
            for row in smoke.document["rows"]
            if row["name"] == "masking and ckks agree to the bit"
        }
        assert agree == {"1 (3 clients)": 1.0, "2 (5 clients)": None, "3 (7 clients)": None}
        assert any("bit for bit, in phase 1" in line for line in smoke.document["conclusions"])

    def test_every_phase_has_every_figure(self, smoke):
        rows = smoke.document["rows"]
        for phase in ("1 (3 clients)", "2 (5 clients)", "3 (7 clients)"):
            names = {row["name"] for row in rows if row["where"]["phase"] == phase}
            assert {"accuracy", "F1", "IoU", "Tversky index", "validation loss", "up and down"} <= names
            assert {"cryptographic overhead, up", "training", "divergence of intensities"} <= names
            models = {row["where"].get("model") for row in rows if row["where"]["phase"] == phase}
            assert {"global student", "cnn, alone", "pooled", tables.MARGIN} <= models
        published = {
            (row["name"], row["where"]["phase"][0]): row["published"] for row in rows if row["published"]
        }
        assert published == {
            ("accuracy", "1"): 0.91,
            ("accuracy", "3"): 0.96,
            ("F1", "1"): 0.89,
            ("F1", "3"): 0.95,
            ("validation loss", "1"): 0.91,
            ("validation loss", "3"): 0.061,
            ("up and down", "1"): 14.0,
            ("up and down", "3"): 3279.0,
        }
        assert {row["definition"] for row in rows} == {one.value for one in Definition}

    def test_the_overhead_is_what_masking_sends_beyond_the_packed_numbers(self, smoke):
        run = json.loads((smoke.out / "runs" / "phase-1-seed-0-masking.json").read_text())
        bits = json.loads((smoke.out / "runs/phase-1-seed-0-masking/summary.json").read_text())["codec"][
            "bits"
        ]
        # A map of each of 8 proxy images, and how much each counts.
        assert run["coordinates"] == 8 * 32 * 32 + 8
        assert run["plain_megabytes_up"] == pytest.approx(
            2 * 3 * run["coordinates"] * bits / 8 / 1e6, rel=1e-3
        )
        overhead = run["megabytes"]["up"] - run["plain_megabytes_up"]
        assert 0 < overhead < 0.05

    def test_the_page_tells_what_was_run_and_whose_definitions_count(self, smoke):
        page = (smoke.out / "README.md").read_text()
        for text in (
            "Phase 3: 7 clients (cnn, sequential",
            "no tensor is opened unless at least 3 clients",
            "Scientific Reports 16, 11333",
            "no differential privacy",
            "(trend.png)",
            "(student-and-rivals.png)",
        ):
            assert text.lower() in page.lower()
        assert smoke.said[0].startswith("4 of 4 jobs left: about ")


def run(student, local, accuracy=0.9, loss=1.0):
    return {
        "evaluation": {"union": {"student": student, "local": local, "pooled": 0.95, "clients": local}},
        "families": dict(zip(local, PHASES[0].families, strict=True)),
        "final_model_sha256": "same",
    }


class TestConclusions:
    def conclusion(self, *students):
        asked = request(Preset.SMALL, len(students))
        local = {"a": 0.6, "b": 0.8, "c": 0.7}
        results = {
            f"phase-1-seed-{seed}-masking": run(student, local) for seed, student in enumerate(students)
        }
        return words._against_rivals(asked, results, PHASES[0])

    def test_a_student_that_is_always_ahead_is_said_to_be(self):
        text = self.conclusion(0.9, 0.85)
        assert (
            "the global student beats every model trained alone: Dice 0.875, the best of those 0.800" in text
        )
        assert "margin +0.050 to +0.100" in text

    def test_one_that_is_not_is_said_not_to_be(self):
        text = self.conclusion(0.9, 0.7)
        assert "with 1 of 2 seeds, so not always" in text
        assert "margin -0.100 to +0.100" in text

    def test_the_margin_is_against_the_best_model_alone(self):
        runs = {0: run(0.5, {"a": 0.1, "b": 0.45, "c": 0.2})}
        assert tables.margins(runs) == {0: pytest.approx(0.05)}

    def test_models_that_learned_too_little_are_counted(self):
        asked = request(Preset.SMALL)
        weak = {"phase-1-seed-0-masking": run(0.9, {"a": 0.1, "b": 0.4, "c": 0.7})}
        assert "2 of 3 models trained alone stay below" in words._weak_models(asked, weak, PHASES[:1])
        strong = {"phase-1-seed-0-masking": run(0.9, {"a": 0.6, "b": 0.8, "c": 0.7})}
        assert "Every model trained alone reaches" in words._weak_models(asked, strong, PHASES[:1])

    def test_students_that_differ_between_schemes_are_called_a_flaw(self):
        asked = request(Preset.SMALL)
        one = run(0.9, {"a": 0.1, "b": 0.1, "c": 0.1})
        results = {
            "phase-1-seed-0-masking": one,
            "phase-1-seed-0-ckks": one | {"final_model_sha256": "other"},
        }
        assert "a flaw" in words._agreement(asked, results, PHASES[:1])
        results["phase-1-seed-0-ckks"] = one
        assert "bit for bit" in words._agreement(asked, results, PHASES[:1])


def test_validation_by_hand():
    """A model of constant logits: the loss and the index from their formulas."""
    import torch

    from secfl.segmentation.data.cases import Case
    from secfl.segmentation.validation import validate

    class Constant(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.logits = torch.nn.Parameter(torch.tensor([0.0, 1.0]))

        def forward(self, image):
            return self.logits[None, :, None, None].expand(image.shape[0], 2, *image.shape[2:])

    labels = np.zeros((4, 4), np.uint8)
    labels[:2] = 1
    valid = np.ones((4, 4), bool)
    valid[:, 3] = False
    image = np.zeros((1, 4, 4), np.float32)
    found = validate(
        Constant(), [Case(name="a", patient="a", image=image, labels=labels, valid=valid)], multiple=1
    )
    p = 1 / (1 + np.exp(-1.0))
    inside, truth = 12, 6
    hit, false_positive, false_negative = truth * p, (inside - truth) * p, truth * (1 - p)
    cross_entropy = -(truth * np.log(p) + (inside - truth) * np.log(1 - p)) / inside
    dice = 2 * hit / (inside * p + truth)
    assert found.loss == pytest.approx(cross_entropy + 1 - dice, rel=1e-4)
    index = hit / (hit + 0.3 * false_positive + 0.7 * false_negative)
    assert found.tversky == pytest.approx(index, rel=1e-4)
