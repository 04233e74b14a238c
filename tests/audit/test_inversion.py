"""Gradient inversion: it works where it should, and judges pictures rightly."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from secfl.audit.inversion import Seen, _bars, _summary, attack, inversion_study, observed
from secfl.audit.inversion_pictures import best_match, similarity
from secfl.audit.inversion_scene import InversionScene, Weights
from secfl.cli.main import main
from secfl.errors import ConfigError
from secfl.randomness import InsecureSeededRng


@pytest.fixture(scope="module")
def scenes():
    return {weights: InversionScene.make(8, weights=weights) for weights in Weights}


def attacked(scenes, seen, *, iterations=15, noise_multiplier=1.0):
    return attack(
        scenes[seen.weights],
        list(range(seen.clients)),
        seen,
        iterations=iterations,
        noise_multiplier=noise_multiplier,
        rng=InsecureSeededRng(1),
    )


def test_chosen_weights_give_the_patient_away_and_fresh_ones_do_not(scenes):
    found, fresh = attacked(scenes, Seen.ONE_UPDATE), attacked(scenes, Seen.FRESH_UPDATE)
    assert found.ssim > 0.25  # 0.35 when it was written; 60 iterations give 0.75
    assert fresh.ssim < 0.12
    assert found.match == 0


def test_the_mask_alone_matches_its_patient_so_matching_is_not_recognising(scenes):
    found = [
        attack(
            scenes[Weights.CHOSEN],
            [index],
            seen,
            iterations=1,
            noise_multiplier=1.0,
            rng=InsecureSeededRng(1),
        )
        for seen in (Seen.NOTHING, Seen.MASK)
        for index in range(8)
    ]
    average, mask = found[:8], found[8:]
    assert sum(one.match == one.target for one in mask) >= 6  # 7 when it was written
    assert max(one.ssim for one in mask) < 0.2
    bars = _bars({Seen.NOTHING: average, Seen.MASK: mask})
    assert bars == {one.target: one.ssim for one in average}
    row = _summary(Seen.SUM_OF_3, mask, bars=bars)
    assert row["matched"] >= 6
    assert row["recognised"] == 0
    better = [replace(one, ssim=bars[one.target] + 0.01, match=one.target) for one in mask]
    assert _summary(Seen.ONE_UPDATE, better, bars=bars)["recognised"] == 8
    other = [replace(one, match=one.target + 1) for one in better]
    assert _summary(Seen.ONE_UPDATE, other, bars=bars)["recognised"] == 0


def test_noise_leaves_nothing(scenes):
    assert attacked(scenes, Seen.SUM_OF_3_WITH_NOISE, iterations=8).ssim < 0.1


def test_what_is_observed_of_a_sum_is_the_sum_of_single_updates(scenes):
    scene, rng = scenes[Weights.CHOSEN], InsecureSeededRng(1)
    single = [observed(scene, [index], Seen.ONE_UPDATE, noise_multiplier=1, rng=rng) for index in range(3)]
    together = observed(scene, range(3), Seen.SUM_OF_3, noise_multiplier=1, rng=rng)
    # The order in which floats are added depends on the number of threads; some layers' gradients nearly cancel.
    largest = max(float(whole.abs().max()) for whole in together)
    for parts, whole in zip(zip(*single, strict=True), together, strict=True):
        assert torch.allclose(sum(parts), whole, rtol=1e-3, atol=1e-5 * largest)


def test_noise_has_the_width_that_it_should(scenes):
    scene = scenes[Weights.CHOSEN]
    noisy = observed(
        scene, range(3), Seen.SUM_OF_3_WITH_NOISE, noise_multiplier=2.0, rng=InsecureSeededRng(2)
    )
    spread = float(torch.cat([part.flatten() for part in noisy]).std())
    assert spread == pytest.approx(2.0, rel=0.05)  # 10 standard errors; the clipped sum itself is 3 at most


def test_every_image_is_of_another_patient(scenes):
    scene = scenes[Weights.FRESH]
    assert scene.images.shape == (8, 1, 64, 64)
    assert [best_match(one[0], scene.images) for one in scene.images] == list(range(8))


def test_similarity_knows_equal_from_unlike():
    picture = torch.linspace(0, 1, 64)[:, None] * torch.linspace(0, 3, 64)[None, :].sin()
    noise = torch.randn(64, 64, generator=torch.Generator().manual_seed(1))
    assert similarity(picture, 3 * picture - 2)[0] > 0.999
    assert similarity(picture, noise)[0] < 0.6


@pytest.mark.parametrize("wrong", [{"images": 6}, {"sums": 0}, {"iterations": 501}])
def test_impossible_studies_are_refused(wrong):
    with pytest.raises(ConfigError):
        inversion_study(**({"images": 7, "sums": 1, "iterations": 1} | wrong), rng=InsecureSeededRng(1))


@pytest.mark.slow
def test_the_command_draws_its_figure(tmp_path, capsys):
    from PIL import Image

    out = tmp_path / "pictures"
    few = ["--images", "7", "--sums", "1", "--iterations", "2"]
    assert main(["audit", "inversion", "--out", str(out), *few]) == 0
    document = json.loads((out / "inversion.json").read_text())
    assert [row["seen"] for row in document["rows"]] == [seen.value for seen in Seen]
    assert document["columns_of_the_figure"] == ["truth", *(seen.value for seen in Seen)]
    with Image.open(out / "inversion.png") as picture:
        assert picture.size == (2 * 8 * 66, 2 * 66)
    assert "secure sum of 3" in capsys.readouterr().out
    assert main(["audit", "inversion", "--out", str(out), *few]) == 2
