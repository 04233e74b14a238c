"""The study of adaptive DP: its smallest size runs whole, and its arithmetic is right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from secfl.config import DpMode, Scheme, load_config
from secfl.errors import ConfigError, DataError
from secfl.ledger.verify import Status, verify_file
from secfl.studies.published import runner
from secfl.studies.published.adaptive_dp import STUDY
from secfl.studies.published.adaptive_dp.arms import ADAPTIVE_START, MODALITIES, PRIVATE, Arm, published_share
from secfl.studies.published.adaptive_dp.figures import (
    movement,
    noise_over_clip,
    rounds_to,
    share_of_means,
)
from secfl.studies.published.adaptive_dp.presets import PLANS
from secfl.studies.published.adaptive_dp.settings import DELTA, EPSILON, arm_settings, modalities_of
from secfl.studies.published.adaptive_dp.study import TRY_SEED, TUNING_SEEDS, arm_job
from secfl.studies.published.adaptive_dp.tables import table
from secfl.studies.published.adaptive_dp.words import words
from secfl.studies.published.interface import Preset, Request
from secfl.studies.published.runner import run_published
from tests.studies.published.test_layer import Quiet, in_this_process

SKIN, KIDNEY, BRAIN = MODALITIES
SMOKE = Request(preset=Preset.SMOKE, seeds=(0,))


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    out = tmp_path_factory.mktemp("smoke")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "run_jobs", in_this_process)
        document = run_published(STUDY, SMOKE, out=out, processes=1, listener=Quiet(), say=lambda _: None)
    return out, document


def test_the_smallest_size_leaves_a_table_with_every_arm_of_every_modality(smoke):
    out, document = smoke
    for modality in MODALITIES:
        for arm in Arm:
            for name in ("Dice", "HD95", "rounds to 95 % of the final Dice", "movement", "sent up"):
                rows = [
                    row
                    for row in document["rows"]
                    if row["name"] == name
                    and row["where"]["modality"] == modality.name
                    and row["where"].get("arm") == arm.value
                ]
                assert rows, (modality.name, arm, name)
    published = {
        (row["where"]["modality"], row["where"]["arm"]): row["published"]
        for row in document["rows"]
        if row["published"] is not None and row["name"] == "Dice"
    }
    assert published == {
        (modality.name, arm.value): figure
        for modality in MODALITIES
        for arm, figure in modality.published.items()
    }
    for name in ("dice-by-arm.png", "dice-while-learning.svg", "clip-while-learning.svg", "table.md"):
        assert (out / name).stat().st_size > 0
    page = (out / "README.md").read_text()
    assert "Its figures mean nothing" in page
    assert "within the spread" in " ".join(page.split())


def test_private_arms_prove_the_same_epsilon_and_the_paper_reading_none(smoke):
    out, document = smoke
    for modality in MODALITIES:
        for arm in Arm:
            run = arm_job(modality, arm, 0)
            verdict = verify_file(out / "runs" / run / "ledger.jsonl")
            assert verdict.status is Status.CLOSED
            seen = [
                one
                for one in verdict.statements
                if (one.view.value, one.adversary.value, one.colluders) == ("aggregator", "malicious", 0)
            ]
            epsilon = seen[0].epsilon
            if arm in PRIVATE:
                assert 0.95 * EPSILON < epsilon <= EPSILON
                assert not seen[0].non_private
            else:
                assert epsilon is None
                assert seen[0].non_private
    stated = {
        (row["where"]["arm"], bool(row["per_seed"]))
        for row in document["rows"]
        if row["name"].startswith("ε")
    }
    assert stated == {(arm.value, arm in PRIVATE) for arm in Arm}


def test_only_the_adaptive_arm_moves_its_clip(smoke):
    out, _ = smoke
    for arm in PRIVATE:
        result = json.loads((out / "runs" / f"{arm_job(SKIN, arm, 0)}.json").read_text())
        assert bool(result["clips"]) is (arm is Arm.ADAPTIVE)
        if arm is Arm.ADAPTIVE:
            assert result["clips"][0] == ADAPTIVE_START
            assert len(set(result["clips"])) > 1


def test_a_public_clip_comes_from_the_public_job(smoke):
    out, _ = smoke
    public = json.loads((out / "runs" / "public-skin.json").read_text())
    whole = (out / "runs" / "try-skin-proxy-clip" / "config.toml").read_text()
    assert load_config(None, {}).privacy.clip is None
    assert f"clip = {public['norm']}" in whole
    absent = json.loads((out / "runs" / f"{arm_job(KIDNEY, Arm.OPEN, 0)}.json").read_text())["absent"]
    assert absent["kidney"] == 0.0
    assert 0.0 < absent["tumour"] < 1.0
    layers = load_config(out / "runs" / "try-skin-proxy-layers" / "config.toml", {}).privacy.layer_clips
    assert layers == public["parts"]
    assert len(layers) > 3
    assert len(set(layers.values())) > 1


@pytest.mark.parametrize("preset", Preset)
def test_arms_differ_in_clip_step_size_and_rule_alone(preset):
    request = Request(preset=preset, seeds=(0,))
    for modality in MODALITIES:
        size = PLANS[preset].sizes[modality.name]
        size = size if preset is not Preset.PAPER else size_on_this_machine(size)
        configs = {arm: load_config(None, arm_settings(request, modality, size, arm, seed=0)) for arm in Arm}
        for arm in PRIVATE:
            privacy = configs[arm].privacy
            assert (privacy.mode, privacy.epsilon, privacy.delta) == (DpMode.PATIENT, EPSILON, DELTA)
            same = {"clip": None, "quantile_clip": None, "noise_decay": 1.0}
            same |= {"step_size": 1.0, "final_step_size": size.last_step}
            assert privacy.final_step_size == pytest.approx(size.last_step * privacy.step_size)
            assert privacy.model_copy(update=same) == configs[Arm.STATIC].privacy.model_copy(update=same)
            assert configs[arm].data == configs[Arm.OPEN].data
            assert configs[arm].model == configs[Arm.OPEN].model
        assert configs[Arm.STATIC].privacy.clip == 1.0
        assert configs[Arm.ADAPTIVE].privacy.clip == ADAPTIVE_START
        assert all(config.secure_agg.scheme is Scheme.MASKING for config in configs.values())
        assert configs[Arm.PAPER].privacy.percentile_laplace.stated_epsilon == 0.001


def size_on_this_machine(size):
    from dataclasses import replace

    return replace(size, device="auto")


def test_no_figure_comes_from_the_seed_of_the_tries():
    jobs = [job.name for stage in STUDY.stages(SMOKE, Path("nowhere")) for job in stage]
    assert not any(name.endswith(str(TRY_SEED)) for name in jobs)
    for seed in TUNING_SEEDS:
        with pytest.raises(ConfigError, match=f"settings were chosen on seed {seed}"):
            STUDY.stages(Request(preset=Preset.SMOKE, seeds=(seed, seed + 5)), Path("nowhere"))


def result_of(dice, *, curve=((1, 0.5), (2, 0.9)), epsilon=None, hd95=None):
    statements = [
        {"view": "aggregator", "adversary": who, "colluders": 0, "epsilon": epsilon}
        for who in ("curious", "malicious")
    ]
    return {
        "evaluation": {
            "dice": {"mean": dice},
            "dice_by_class": {"lesion": {"mean": dice}},
            "hd95": {"mean": hd95},
            "cases": {"clinic-1": {"count": 10, "empty": 3}, "clinic-2": {"count": 10, "empty": 1}},
        },
        "absent": {"lesion": 0.0},
        "privacy": {"noise_multiplier": 0.5},
        "curve": [{"round": at, "dice": value} for at, value in curve],
        "clips": [],
        "rounds": curve[-1][0],
        "parameters": 10,
        "stopped": "completed",
        "megabytes": {"up": 1.0},
        "ledgers": {"ledger.jsonl": {"status": "closed", "statements": statements}},
    }


def results_of(monkeypatch, dice):
    """Only skin, two seeds; ``dice`` by arm and seed."""
    for place in ("tables", "words"):
        monkeypatch.setattr(
            f"secfl.studies.published.adaptive_dp.{place}.modalities_of", lambda request: (SKIN,)
        )
        monkeypatch.setattr(f"secfl.studies.published.adaptive_dp.{place}.tried", lambda request: ())
    return {
        arm_job(SKIN, arm, seed): result_of(value, epsilon=7.9 if arm in PRIVATE else None)
        for arm, values in dice.items()
        for seed, value in enumerate(values)
    }


LESION = ("lesion",)
TWO = Request(preset=Preset.SMALL, seeds=(0, 1))
DICE = {
    Arm.OPEN: (0.9, 0.9),
    Arm.STATIC: (0.6, 0.8),
    Arm.TUNED: (0.7, 0.9),
    Arm.ADAPTIVE: (0.8, 0.8),
    Arm.PAPER: (0.1, 0.1),
}


def test_the_share_recovered_is_of_means_and_by_seed(monkeypatch):
    results = results_of(monkeypatch, DICE)
    # Lost: 0.3 and 0.1, mean 0.2; left by the adaptive arm: 0.1 and 0.1.
    assert share_of_means(TWO, results, SKIN, Arm.ADAPTIVE, LESION) == pytest.approx(0.5)
    assert share_of_means(TWO, results, SKIN, Arm.TUNED, LESION) == pytest.approx(0.5)
    rows = {row.where["arm"]: row for row in table(TWO, results) if row.name == "loss recovered"}
    adaptive = rows["adaptive DP"]
    assert adaptive.values == pytest.approx({0: 200 / 3, 1: 0.0})
    assert (adaptive.published, adaptive.note) == (96, "of the means over seeds: 50 %")
    assert rows["static DP, tuned clip"].published is None
    said = " ".join(words(TWO, results).conclusions)
    assert "recovers 50 % of the loss (target 50 %): met" in said
    assert "adapting gives +0 points" in said
    assert "highest ε that one of them proves is 7.90" in said


def test_the_noise_is_set_against_the_clip(monkeypatch):
    results = results_of(monkeypatch, DICE)
    size = PLANS[Preset.SMALL].sizes["skin"]
    rows = {row.where["arm"]: row for row in table(TWO, results) if row.group == "Noise"}
    assert set(rows) == {arm.value for arm in PRIVATE}
    patients = 3 * size.sampling_rate * size.patients
    # Ten parameters and z = 0.5: noise of norm 0.5 √10 C on a sum of that many patients.
    assert rows["static DP"].values == pytest.approx(dict.fromkeys((0, 1), 0.5 * 10**0.5 / patients))
    folder = Request(preset=Preset.SMALL, seeds=(0, 1), data="somewhere")
    assert noise_over_clip(folder, results, SKIN, Arm.STATIC) == {}


def test_a_distance_says_how_many_cases_it_leaves_out(monkeypatch):
    results = results_of(monkeypatch, DICE)
    for seed in (0, 1):
        results[arm_job(SKIN, Arm.OPEN, seed)] = result_of(0.9, hd95=2.0)
    rows = {row.where["arm"]: row for row in table(TWO, results) if row.name == "HD95"}
    assert rows["no privacy"].values == {0: 2.0, 1: 2.0}
    assert rows["no privacy"].note == "left out: 8 of 40 cases"
    assert rows["static DP"].note == "nothing was found in any case"


def test_a_missed_target_is_said_with_numbers(monkeypatch):
    results = results_of(monkeypatch, DICE | {Arm.ADAPTIVE: (0.7, 0.8)})
    said = " ".join(words(TWO, results).conclusions)
    assert "recovers 25 % of the loss (target 50 %): missed by 25 points" in said


def test_without_a_loss_no_share_is_stated(monkeypatch):
    results = results_of(monkeypatch, DICE | {Arm.STATIC: (0.897, 0.899)})
    assert share_of_means(TWO, results, SKIN, Arm.ADAPTIVE, LESION) is None
    rows = [row for row in table(TWO, results) if row.name == "loss recovered"]
    assert all(not row.values and "no share is stated" in row.note for row in rows)
    assert "too few to speak of a share" in " ".join(words(TWO, results).conclusions)


def test_a_class_that_is_not_learned_without_privacy_is_left_out(monkeypatch):
    results = results_of(monkeypatch, DICE)
    for result in results.values():
        result["absent"] = {"lesion": 0.88}
    rows = [row for row in table(TWO, results) if row.name == "loss recovered"]
    assert all(not row.values for row in rows)
    assert any("never predicting it gives 88 % Dice" in row.note for row in rows)
    assert "no class is learned even without privacy" in " ".join(words(TWO, results).conclusions)


def test_training_that_has_not_converged_without_privacy_is_said(monkeypatch):
    results = results_of(monkeypatch, DICE)
    assert "still gained 40.0 points" in " ".join(words(TWO, results).conclusions)
    for result in results.values():
        result["curve"][0]["dice"] = 0.895
    said = " ".join(words(TWO, results).conclusions)
    assert "still gained" not in said
    assert "too few passes" not in said
    results = results_of(monkeypatch, DICE | {Arm.ADAPTIVE: (0.95, 0.9)})
    assert "too few passes" in " ".join(words(TWO, results).conclusions)


def test_published_shares_are_the_published_ones():
    assert [round(published_share(one)) for one in MODALITIES] == [96, 69, 53]


def test_speed_and_movement():
    curve = [{"round": 5 * n, "dice": dice} for n, dice in enumerate((0.1, 0.7, 0.96, 0.9, 1.0), 1)]
    assert rounds_to(curve, 0.95) == 15
    assert movement(curve) == pytest.approx((0.06 + 0.1) / 2)
    assert movement(curve[:1]) == 0.0


def test_a_folder_of_real_images_declares_its_patients(tmp_path):
    request = Request(preset=Preset.SMALL, seeds=(0,), data=str(tmp_path))
    with pytest.raises(ConfigError, match="at least one of skin, kidney, brain"):
        modalities_of(request)
    folder = tmp_path / "kidney"
    folder.mkdir()
    assert modalities_of(request) == (KIDNEY,)
    size = PLANS[Preset.SMALL].sizes["kidney"]
    with pytest.raises(ConfigError, match="nominal_patients"):
        arm_settings(request, KIDNEY, size, Arm.STATIC, seed=0)
    (folder / "config.toml").write_text(
        "[data]\nsource = 'elsewhere'\nwindows = [[-150, 300]]\n[data.labels]\nkidney = 1\n"
        "[privacy]\nnominal_patients = 40\nepsilon = 99\n"
    )
    config = load_config(None, arm_settings(request, KIDNEY, size, Arm.STATIC, seed=0))
    assert (config.data.source, config.data.windows) == (str(folder), ((-150.0, 300.0),))
    assert (config.privacy.nominal_patients, config.privacy.epsilon) == (40, EPSILON)
    (folder / "config.toml").write_text("[data")
    with pytest.raises(DataError, match="expected TOML"):
        arm_settings(request, KIDNEY, size, Arm.OPEN, seed=0)
