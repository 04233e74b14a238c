"""The privacy curve: fair arms, an honest account, figures that follow from the runs, one resumable command."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from secfl.cli.main import main
from secfl.config import DpMode, Scheme
from secfl.errors import ConfigError
from secfl.federation.privacy import run_terms
from secfl.ledger.verify import Status, verify_file
from secfl.randomness import ExperimentSeed
from secfl.segmentation.data.phantom import scanner_of_site
from secfl.studies import dp_curve_work as work
from secfl.studies.dp_curve import CLASS_NAMES, PRESETS, Arm, JobSpec, job_specs, preset_named
from secfl.studies.dp_curve_tables import figures, markdown

SMOKE = PRESETS["smoke"]
FULL = PRESETS["full"]


def spec(arm, epsilon=8.0, seed=1):
    return JobSpec(arm=arm, epsilon=epsilon, seed=seed)


class TestSettings:
    def test_the_published_study_is_the_one_that_was_asked_for(self):
        assert (FULL.clinics, FULL.patients, FULL.delta) == (3, 1000, 1e-5)
        assert FULL.epsilons == (8.0, 2.0)
        assert len(FULL.seeds) == 3
        assert 48 <= FULL.image_size <= 64
        assert len(job_specs(FULL)) == 4 * 2 * 3 + 2 * 3
        assert FULL.public_seed not in FULL.seeds

    def test_names_of_runs_are_distinct(self):
        names = [one.name for one in job_specs(FULL)]
        assert len(set(names)) == len(names)

    def test_an_unknown_preset_is_refused(self):
        with pytest.raises(ConfigError, match="expected one of full, smoke"):
            preset_named("tiny")


class TestData:
    def test_every_patient_has_one_image_and_pooling_keeps_them_apart(self):
        clinics = work.study_dataset(SMOKE, seed=3, pooled=False)
        pooled = work.study_dataset(SMOKE, seed=3, pooled=True)
        assert [len(site.train) for site in clinics.sites.values()] == [SMOKE.patients] * 3
        assert [len(site.test) for site in clinics.sites.values()] == [SMOKE.test_patients] * 3
        together = pooled.sites[work.POOLED_SITE]
        assert len({case.patient for case in together.train}) == 3 * SMOKE.patients
        everybody = [case.image for site in clinics.sites.values() for case in site.train]
        assert np.array_equal(np.stack(everybody), np.stack([case.image for case in together.train]))

    def test_the_public_phantom_shows_other_people_on_other_scanners(self):
        public = work.public_dataset(SMOKE)
        assert FULL.public_seed not in {1, 2, 3}
        clinics = work.study_dataset(SMOKE, seed=1, pooled=False)
        pixels = {site.train[0].spacing[0] * SMOKE.image_size for site in public.sites.values()}
        ranges = {
            scanner_of_site(index, ExperimentSeed(seed)).field_of_view
            for index in range(3)
            for seed in (1, 2)
        }
        assert min(pixels) > max(ranges)
        one = next(iter(public.sites.values())).train[0].image
        assert all(
            not np.array_equal(one, case.image) for site in clinics.sites.values() for case in site.train
        )


class TestArms:
    def test_all_arms_take_the_same_steps_from_the_same_patients_with_the_same_noise(self):
        found = {arm: work.configuration(SMOKE, spec(arm), noise_multiplier=1.5) for arm in Arm}
        for config in found.values():
            privacy = config.privacy
            assert privacy.mode is DpMode.PATIENT
            assert (privacy.steps, privacy.sampling_rate) == (SMOKE.steps, SMOKE.sampling_rate)
            assert (privacy.clip, privacy.step_size) == (SMOKE.clip, SMOKE.step_size)
        assert found[Arm.SECURE].secure_agg.scheme is Scheme.MASKING
        assert found[Arm.PRETRAINED].secure_agg.scheme is Scheme.MASKING
        assert found[Arm.LOCAL].secure_agg.scheme is Scheme.PLAIN
        assert found[Arm.POOLED].privacy.nominal_patients == 3 * SMOKE.patients

    def test_without_secure_aggregation_the_sum_carries_three_times_the_variance(self):
        """What local noise costs, in the noise that the server's mean carries; and pooled equals secure."""
        deviation = {}
        for arm in (Arm.SECURE, Arm.LOCAL, Arm.POOLED):
            config = work.configuration(SMOKE, spec(arm), noise_multiplier=1.5)
            dataset = work.study_dataset(SMOKE, seed=1, pooled=arm is Arm.POOLED)
            task = work._StudyTask(config, dataset, label="test", first=None)
            sites = len(task.sites)
            if arm is Arm.SECURE:
                config = config.model_copy(
                    update={
                        "privacy": config.privacy.model_copy(
                            update={"epsilon": None, "noise_multiplier": 1.5}
                        )
                    }
                )
            terms = run_terms(config, task, parameters=4000, threshold=sites)
            step = terms.plan.clip_norm / terms.plan.grid_norm
            total = terms.plan.noise_share().sigma * step * sites**0.5
            deviation[arm] = total / abs(terms.round_terms.divisor)
        assert deviation[Arm.LOCAL] == pytest.approx(3**0.5 * deviation[Arm.SECURE], rel=1e-9)
        assert deviation[Arm.POOLED] == pytest.approx(deviation[Arm.SECURE], rel=1e-9)

    def test_the_first_weights_enter_the_digest_of_the_task(self):
        config = work.configuration(SMOKE, spec(Arm.SECURE))
        dataset = work.study_dataset(SMOKE, seed=1, pooled=False)
        task = work._StudyTask(config, dataset, label="dp-curve/secure", first=None)
        other = work._StudyTask(config, dataset, label="dp-curve/pretrained", first=None)
        assert task.digest() != other.digest()
        first = {name: tensor + 1 for name, tensor in task.initial_state().items()}
        started = work._StudyTask(config, dataset, label="dp-curve/pretrained", first=first)
        assert all(np.array_equal(first[name], tensor) for name, tensor in started.initial_state().items())


def result(dice, epsilon=None, curve=None):
    return {
        "dice": dict.fromkeys(CLASS_NAMES, dice),
        "curve": [
            {"round": i + 1, "dice": dict.fromkeys(CLASS_NAMES, v)} for i, v in enumerate(curve or [dice])
        ],
        "epsilon": {"aggregator_curious": epsilon, "aggregator_malicious": epsilon},
        "noise_multiplier": None if epsilon is None else 1.0,
        "scheme": "masking",
        "rounds": 4,
    }


def results(*, secure=(0.7, 0.8, 0.9), pooled=(0.72, 0.8, 0.9), curve=(0.1, 0.99, 1.0, 1.0)):
    preset = replace(SMOKE, seeds=(1, 2, 3))
    found = {}
    for one in job_specs(preset):
        if one.epsilon is None:
            found[one] = result(1.0, curve=curve)
        else:
            dice = {Arm.POOLED: pooled, Arm.LOCAL: (0.1, 0.1, 0.1)}.get(one.arm, secure)[one.seed - 1]
            found[one] = result(dice, epsilon=8.0)
    return figures(preset, found, {})


class TestFigures:
    def test_means_spreads_and_shares(self):
        found = results()
        entry = found["arms"]["secure"]["8"]
        assert entry["dice"]["vein"]["mean"] == pytest.approx(0.8)
        assert entry["dice"]["vein"]["spread"] == pytest.approx(0.1)
        assert entry["kept"]["vein"]["mean"] == pytest.approx(0.8)
        assert found["kept_at_target"]["secure"]["vein_met"]
        assert not found["kept_at_target"]["secure"]["large_tissues_met"]
        text = markdown(found)
        assert "| secure aggregation | 8 | 8.00 | 1.000 | 0.800 ± 0.100 |" in text
        assert "vein 80.0 % (target 75 %): met" in text

    def test_a_gap_wider_than_the_spread_is_no_match(self):
        assert results()["matches_pooled"]["8"]["mean"]["met"]
        apart = results(secure=(0.5, 0.51, 0.52))["matches_pooled"]["8"]
        assert not results(secure=(0.5, 0.51, 0.52), pooled=(0.8, 0.81, 0.82))["matches_pooled"]["8"]["mean"][
            "met"
        ]
        assert apart["mean"]["difference"] < 0

    def test_a_baseline_that_still_moves_is_said_not_to_have_converged(self):
        assert results()["convergence"]["met"]
        moving = results(curve=(0.1, 0.5, 0.9, 0.95, 0.96, 0.97, 0.98, 0.99))
        assert not moving["convergence"]["met"]
        assert "(limit 0.005): not met" in markdown(moving)


class TestPublishedFigures:
    @pytest.fixture
    def published(self, project):
        return json.loads((project / "docs/results/dp-curve/curve.json").read_text(encoding="utf-8"))

    def test_the_page_and_the_table_say_what_the_file_says(self, project, published):
        table = markdown(published)
        folder = project / "docs/results"
        assert (folder / "dp-curve/table.md").read_text(encoding="utf-8") == table
        assert table.strip() in (folder / "dp-curve.md").read_text(encoding="utf-8")

    def test_they_were_measured_with_the_settings_that_the_code_holds(self, published):
        assert published["settings"] == FULL.as_dict()
        assert published["parameters"] <= 60_000
        for levels in published["arms"].values():
            for level, entry in levels.items():
                assert sorted(entry["runs"]) == ["1", "2", "3"]
                if level != "no noise":
                    assert entry["rounds"] == FULL.steps
                    assert entry["epsilon"]["aggregator_malicious"] <= float(level)

    def test_summaries_follow_from_the_runs_in_the_same_file(self, published):
        runs = {
            JobSpec(arm=Arm(arm), epsilon=run["epsilon_target"], seed=run["seed"]): run
            for arm, levels in published["arms"].items()
            for entry in levels.values()
            for run in entry["runs"].values()
        }
        again = figures(FULL, runs, published["public_model"])
        assert again == {name: published[name] for name in again}


@pytest.mark.slow
def test_the_command_is_resumable_and_its_figures_come_from_closed_ledgers(tmp_path, capsys):
    arguments = [
        "study", "dp-curve", "--preset", "smoke", "--out", str(tmp_path / "out"), "--runs", str(tmp_path / "runs"),
    ]  # fmt: skip
    assert main([*arguments, "--json"]) == 0
    said = capsys.readouterr()
    assert "6 runs left, about" in said.err
    document = json.loads(said.out)
    assert document == json.loads((tmp_path / "out" / "curve.json").read_text(encoding="utf-8"))
    folder = tmp_path / "runs" / "dp-curve-smoke"
    for one in job_specs(SMOKE):
        verdict = verify_file(folder / one.name / "ledger.jsonl")
        assert verdict.status is Status.CLOSED
        proved = document["arms"][one.arm.value]["8" if one.epsilon else "no noise"]["epsilon"]
        if one.epsilon is None:
            assert proved["aggregator_malicious"] is None
        else:
            assert 7.9 < proved["aggregator_malicious"] <= 8.0
    for name in ("table.md", "dp-curve.png", "dp-curve.svg"):
        assert (tmp_path / "out" / name).stat().st_size > 500

    # A missing result alone is worked for again, from its finished run.
    name = spec(Arm.SECURE).name
    others = {
        path: path.stat().st_mtime_ns for path in (folder / "results").glob("*.json") if path.stem != name
    }
    (folder / "results" / f"{name}.json").unlink()
    before = document["arms"]["secure"]["8"]["runs"]["1"]["final_model_sha256"]
    assert main([*arguments, "--json"]) == 0
    said = capsys.readouterr()
    assert "1 runs left" in said.err
    assert {path: path.stat().st_mtime_ns for path in others} == others
    assert json.loads(said.out)["arms"]["secure"]["8"]["runs"]["1"]["final_model_sha256"] == before


class CutOff:
    """Stops a run in its second round, like an interruption."""

    def __init__(self):
        self.rounds = 0

    def round_finished(self, report):
        self.rounds += 1
        if self.rounds == 2:
            raise KeyboardInterrupt

    def __getattr__(self, name):
        return lambda *arguments: None


def test_an_interrupted_run_goes_on_and_its_ledger_counts_every_step_once(tmp_path, monkeypatch):
    one = spec(Arm.SECURE)
    with monkeypatch.context() as patch:
        patch.setattr(work, "SilentObserver", CutOff)
        with pytest.raises(KeyboardInterrupt):
            work.run_job(SMOKE, one, tmp_path, tmp_path / "result.json")
    assert work.finished_rounds(tmp_path / one.name) == 2
    assert not (tmp_path / "result.json").exists()
    work.run_job(SMOKE, one, tmp_path, tmp_path / "result.json")
    found = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert found["rounds"] == SMOKE.steps
    assert found["ledger"]["status"] == "closed"
    assert found["ledger"]["rounds"]["committed"] == SMOKE.steps
    assert 7.9 < found["epsilon"]["aggregator_malicious"] <= 8.0


def test_a_run_of_other_settings_is_refused(tmp_path):
    one = spec(Arm.POOLED, epsilon=None)
    config = work.configuration(replace(SMOKE, rounds=1), one)
    folder = tmp_path / one.name
    folder.mkdir()
    (folder / "config.toml").write_text(config.to_toml(), encoding="utf-8")
    with pytest.raises(ConfigError, match="was run with other settings"):
        work.run_job(SMOKE, one, tmp_path, tmp_path / "result.json")
    assert not (tmp_path / "result.json").exists()
