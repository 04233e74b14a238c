"""Configurations: flags over a file over defaults; what is impossible is refused by name, in one line."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secfl.config import (
    CONFIG_FORMAT_VERSION,
    DpMode,
    RunConfig,
    Scheme,
    check_cohort,
    default_threshold,
    load_config,
)
from secfl.errors import ConfigError


def refusal(overrides, path: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


class TestSources:
    def test_defaults_are_a_possible_run(self):
        config = load_config(None, {})
        assert config.data.is_phantom
        assert config.privacy.mode is DpMode.OFF

    def test_flags_win_over_the_file_and_leave_the_rest_of_it(self, tmp_path):
        path = tmp_path / "run.toml"
        path.write_text("seed = 5\n[training]\nrounds = 7\nbatch_size = 2\n")
        config = load_config(path, {"training": {"rounds": 9, "local_epochs": None}, "seed": None})
        assert (config.seed, config.training.rounds, config.training.batch_size) == (5, 9, 2)

    def test_a_missing_file_is_named(self, tmp_path):
        assert "absent.toml: cannot be read" in refusal({}, tmp_path / "absent.toml")

    def test_a_folder_is_named(self, tmp_path):
        assert f"{tmp_path}: cannot be read" in refusal({}, tmp_path)

    def test_a_file_that_is_no_toml_is_named(self, tmp_path):
        path = tmp_path / "run.toml"
        path.write_text("rounds = = 3")
        assert "run.toml: not valid TOML" in refusal({}, path)

    def test_a_file_that_is_no_text_is_named(self, tmp_path):
        path = tmp_path / "run.toml"
        path.write_bytes(b"\xff\xfe\x00")
        assert "run.toml: expected a TOML file in UTF-8" in refusal({}, path)

    @pytest.mark.parametrize(
        ("text", "key", "allowed"),
        [
            ("round = 3", "round:", "seed"),
            ("[training]\nround = 3", "training.round:", "local_epochs"),
            ("[secure_agg]\nkey = 'x'", "secure_agg.key:", "ckks_key"),
        ],
    )
    def test_an_unknown_key_is_named_with_those_that_exist(self, tmp_path, text, key, allowed):
        path = tmp_path / "run.toml"
        path.write_text(text)
        message = refusal({}, path)
        assert f"{path}: {key} unknown key; allowed here:" in message
        assert allowed in message

    def test_a_value_where_a_table_is_expected_is_named(self, tmp_path):
        path = tmp_path / "run.toml"
        path.write_text("training = 3")
        assert "training:" in refusal({}, path)

    def test_a_newer_format_is_refused(self):
        assert "newer" in refusal({"format_version": CONFIG_FORMAT_VERSION + 1})


class TestValues:
    @pytest.mark.parametrize(
        ("overrides", "key"),
        [
            ({"training": {"rounds": 0}}, "training.rounds"),
            ({"training": {"learning_rate": float("nan")}}, "training.learning_rate"),
            ({"training": {"learning_rate": -1.0}}, "training.learning_rate"),
            ({"dropout": 1.0}, "dropout"),
            ({"dropout": -0.1}, "dropout"),
            ({"seed": -1}, "seed"),
            ({"clients": 0}, "clients"),
            ({"privacy": {"mode": "client", "epsilon": 0.0}}, "privacy.epsilon"),
            ({"privacy": {"mode": "client", "epsilon": float("inf")}}, "privacy.epsilon"),
            ({"privacy": {"delta": 1.0}}, "privacy.delta"),
            ({"privacy": {"delta": 1e-13}}, "privacy.delta"),
            ({"privacy": {"delta": 0.0}}, "privacy.delta"),
            ({"privacy": {"clip": 0.0}}, "privacy.clip"),
            ({"privacy": {"mode": "both"}}, "privacy.mode"),
            ({"secure_agg": {"scheme": "xor"}}, "secure_agg.scheme"),
            ({"secure_agg": {"ckks_key": "public"}}, "secure_agg.ckks_key"),
            ({"data": {"test_fraction": 1.0}}, "data.test_fraction"),
            ({"model": {"normalization": "batch"}}, "model.normalization"),
        ],
    )
    def test_a_value_out_of_range_is_named(self, overrides, key):
        assert refusal(overrides).startswith(f"{key}: ")

    @pytest.mark.parametrize("scheme", ["xor", "CKKS", ""])
    def test_the_allowed_schemes_are_listed(self, scheme):
        message = refusal({"secure_agg": {"scheme": scheme}})
        assert all(known.value in message for known in Scheme)

    @pytest.mark.parametrize(
        ("privacy", "message"),
        [
            ({"epsilon": 8.0}, "need --dp client"),
            ({"noise_multiplier": 1.0}, "need --dp client"),
            ({"mode": "client"}, "exactly one of"),
            ({"mode": "client", "epsilon": 8.0, "noise_multiplier": 1.0}, "exactly one of"),
        ],
    )
    def test_impossible_combinations_are_refused(self, privacy, message):
        assert message in refusal({"privacy": privacy})

    def test_noise_with_private_counts_is_refused(self):
        overrides = {
            "privacy": {"mode": "client", "epsilon": 8.0},
            "training": {"weighting": "size"},
        }
        assert "weighting must be equal" in refusal(overrides)

    def test_a_configuration_cannot_be_changed_afterwards(self):
        with pytest.raises(ValueError, match="frozen"):
            load_config(None, {}).seed = 3


class TestCohort:
    @given(st.integers(3, 1024))
    def test_the_default_threshold_holds_an_honest_majority(self, clients):
        threshold = default_threshold(clients)
        assert 3 <= threshold <= clients
        assert 2 * threshold > clients
        for scheme in Scheme:
            assert check_cohort(clients, scheme, None, 0.0) == threshold

    @given(st.integers(1, 40), st.integers(-1, 41), st.sampled_from([0.0, 0.3]))
    def test_a_threshold_is_accepted_exactly_where_the_protocol_is_safe(self, clients, threshold, dropout):
        safe = clients >= 3 and 3 <= threshold <= clients and 2 * threshold > clients
        possible = safe and (dropout == 0 or threshold < clients)
        for scheme in (Scheme.MASKING, Scheme.CKKS):
            if possible:
                assert check_cohort(clients, scheme, threshold, dropout) == threshold
            else:
                with pytest.raises(ValueError, match=r"expected|no drop-out can be tolerated"):
                    check_cohort(clients, scheme, threshold, dropout)

    @pytest.mark.parametrize("scheme", ["masking", "ckks"])
    def test_two_clients_would_know_each_other(self, scheme):
        message = refusal({"clients": 2, "secure_agg": {"scheme": scheme}})
        assert "each would learn the other's update" in message

    def test_two_clients_may_add_in_the_open(self):
        assert load_config(None, {"clients": 2, "secure_agg": {"scheme": "plain"}}).clients == 2

    def test_three_clients_tolerate_no_drop_out_and_are_told_so(self):
        message = refusal({"clients": 3, "dropout": 0.1})
        assert "--dropout 0.1" in message
        assert "at least 4 clients" in message

    @pytest.mark.parametrize("threshold", [1, 2, 6])
    def test_the_threshold_is_named(self, threshold):
        assert f"--threshold {threshold}" in refusal({"clients": 5, "secure_agg": {"threshold": threshold}})


SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "seed": st.integers(0, 2**63 - 1),
        "clients": st.integers(3, 60),
        "record": st.booleans(),
        "data": st.fixed_dictionaries({"source": st.text(st.characters(codec="utf-8"), max_size=12)}),
        "training": st.fixed_dictionaries(
            {"rounds": st.integers(1, 500), "learning_rate": st.floats(1e-9, 10)}
        ),
        "secure_agg": st.fixed_dictionaries({"scheme": st.sampled_from(["plain", "masking", "ckks"])}),
        "privacy": st.fixed_dictionaries({"delta": st.floats(1e-12, 1e-2)}),
    },
)


class TestFile:
    @given(SETTINGS)
    def test_toml_reads_back_as_the_same_configuration(self, overrides):
        config = load_config(None, overrides)
        again = RunConfig.model_validate(tomllib.loads(config.to_toml()))
        assert again == config
        assert again.digest() == config.digest()

    @given(SETTINGS, SETTINGS)
    def test_digests_are_equal_only_for_equal_configurations(self, left, right):
        first, second = load_config(None, left), load_config(None, right)
        assert (first.digest() == second.digest()) == (first == second)
