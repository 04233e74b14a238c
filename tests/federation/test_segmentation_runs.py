"""The main job with torch: a small U-Net on the phantom, and on real images where they are at hand."""

import json

import numpy as np
import pytest

from secfl.config import load_config
from secfl.federation import simulation
from secfl.federation.checkpoint import load
from secfl.federation.observer import SilentObserver
from secfl.segmentation.segmentation_task import build_task

SMALL = {
    "clients": 3,
    "threads": 1,
    "data": {"phantom_images": 16, "image_size": 32},
    "model": {"channels": [4, 8, 16]},
    "training": {"rounds": 2, "local_epochs": 1},
}


def settings(scheme, **more):
    return load_config(None, SMALL | {"secure_agg": {"scheme": scheme}} | more)


def simulate(path, config, observer=None):
    return simulation.simulate(config, out=path, observer=observer or SilentObserver())


class Interrupt(SilentObserver):
    """Ctrl-C in the middle of the second round."""

    def __init__(self):
        self.rounds = 0

    def round_finished(self, report):
        self.rounds += 1

    def phase(self, name, done, total):
        if self.rounds == 1 and name == "training" and done == 1:
            raise KeyboardInterrupt


@pytest.mark.parametrize("scheme", ["plain", "masking", "ckks"])
def test_schemes_and_interruptions_end_in_the_identical_model(tmp_path, scheme):
    expected = simulate(tmp_path / "expected", settings("plain"))["final_model_sha256"]
    with pytest.raises(KeyboardInterrupt):
        simulate(tmp_path / "run", settings(scheme), Interrupt())
    summary = simulation.resume(tmp_path / "run", observer=SilentObserver())
    assert summary["final_model_sha256"] == expected
    assert len(list((tmp_path / "run/previews").glob("*.png"))) == 9


def test_the_opened_model_is_the_float_average_to_grid_precision(tmp_path):
    config = settings("masking", training={"rounds": 1, "local_epochs": 1})
    summary = simulate(tmp_path / "run", config)
    opened = load(tmp_path / "run/checkpoints/final.safetensors").state
    task = build_task(config)
    start = task.initial_state()
    trained = [task.train(site, start, round_index=0).state for site in task.sites]
    step = config.secure_agg.coordinate_bound / 2 ** (config.secure_agg.value_bits - 1)
    for name, tensor in opened.items():
        mean = sum(state[name].astype(float) for state in trained) / 3
        np.testing.assert_allclose(tensor, mean, atol=step)
    assert summary["codec"]["clipped_fraction"] < 0.05
    assert summary["codec"]["relative_error"] < 0.01


def test_patient_level_training_runs_and_accounts(tmp_path):
    private = {"mode": "patient", "epsilon": 8.0, "steps": 2, "sampling_rate": 0.3, "physical_batch": 4}
    summary = simulate(tmp_path / "run", settings("masking", privacy=private))
    assert summary["rounds_completed"] == 2
    epsilons = {row["epsilon"] for row in summary["privacy"]["views"] if row["view"] == "aggregator"}
    assert max(epsilons) <= 8.0


class Listener(SilentObserver):
    """What is said, and when."""

    def __init__(self):
        self.said = []

    def message(self, text):
        self.said.append(text)

    def round_finished(self, report):
        self.said.append(f"round {report.round_index} is over")


def test_unlikeness_is_told_before_training_and_the_worst_site_after_it(tmp_path):
    listener = Listener()
    config = settings("plain", model={"name": "cnn", "channels": [4, 4, 4]}, references=True)
    summary = simulate(tmp_path / "run", config, listener)
    told = next(place for place, text in enumerate(listener.said) if text.startswith("heterogeneity"))
    assert told < listener.said.index("round 0 is over")
    assert listener.said[told] in (tmp_path / "run/log.txt").read_text()
    task = build_task(config)
    for name, value in task.heterogeneity().items():
        assert f"{name} {value:.3f}" in listener.said[told]
        assert 0 < value < 1
    dice = summary["evaluation_only"]["dice"]
    assert dice["worst"] == min(dice["per_site"].values()) == dice["per_site"][dice["worst_site"]]
    distance = summary["evaluation_only"]["hd95"]
    assert distance["worst"] == max(distance["per_site"].values()), "of a distance the largest is the worst"
    cases = summary["evaluation_only"]["cases"]
    assert set(cases) == set(dice["per_site"])
    for site, value in distance["per_site"].items():
        assert 0 <= cases[site]["empty"] <= cases[site]["count"]
        assert (value is None) <= (cases[site]["empty"] == cases[site]["count"])
    references = summary["evaluation_only"]["references"]
    assert set(references["local"]) == set(dice["per_site"])
    assert set(references["pooled"]["per_site"]) == set(dice["per_site"])


@pytest.mark.slow
@pytest.mark.real_data
def test_real_images_give_the_identical_model_under_every_scheme(tmp_path, real_data):
    def of(scheme):
        return load_config(
            None,
            {
                "threads": 1,
                "data": {"source": str(real_data / "fundus_vessels_256")},
                "secure_agg": {"scheme": scheme},
                "training": {"rounds": 2, "local_epochs": 1},
            },
        )

    models = {s: simulate(tmp_path / s, of(s))["final_model_sha256"] for s in ("plain", "masking", "ckks")}
    with pytest.raises(KeyboardInterrupt):
        simulate(tmp_path / "cut", of("ckks"), Interrupt())
    models["resumed"] = simulation.resume(tmp_path / "cut", observer=SilentObserver())["final_model_sha256"]
    assert len(set(models.values())) == 1, models
    assert not (tmp_path / "ckks/previews").exists(), "previews of patients need --include-images"
    rows = [json.loads(line) for line in (tmp_path / "ckks/metrics.jsonl").read_text().splitlines()]
    assert [len(row["survivors"]) for row in rows] == [3, 3]
