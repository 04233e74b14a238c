"""Secret sources, seeded sources, and the wall between them."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import secfl
from secfl.randomness import ExperimentSeed, InsecureSeededRng, Rng, SystemRng

LABELS = st.text(st.characters(codec="ascii"), max_size=6)


def test_only_the_system_source_is_secret():
    assert isinstance(SystemRng(), Rng)
    assert isinstance(InsecureSeededRng(1), Rng)
    assert SystemRng().is_secret
    assert SystemRng().fork("noise").is_secret
    assert not InsecureSeededRng(1).is_secret
    assert not InsecureSeededRng(1).fork("noise").is_secret


def test_an_experiment_seed_is_no_source_of_secrets():
    assert not isinstance(ExperimentSeed(1), Rng)


def test_the_system_source_gives_fresh_bytes():
    rng = SystemRng()
    assert len({rng.bytes(16) for _ in range(100)}) == 100
    assert rng.bytes(0) == b""


@given(st.integers(0, 2**64), LABELS, st.lists(st.integers(0, 40), max_size=5))
def test_a_seeded_source_is_reproducible_however_it_is_read(seed, label, counts):
    pieces = InsecureSeededRng(seed).fork(label)
    whole = InsecureSeededRng(seed).fork(label)
    assert b"".join(pieces.bytes(count) for count in counts) == whole.bytes(sum(counts))


@given(st.integers(0, 2**64), LABELS, st.integers(0, 100))
def test_a_fork_does_not_depend_on_what_was_read(seed, label, count):
    read, fresh = InsecureSeededRng(seed), InsecureSeededRng(seed)
    read.bytes(count)
    assert read.fork(label).bytes(32) == fresh.fork(label).bytes(32)


@given(st.lists(LABELS, max_size=3), st.lists(LABELS, max_size=3))
def test_two_paths_of_forks_give_the_same_stream_only_when_equal(left, right):
    streams = []
    for path in (left, right):
        rng = InsecureSeededRng(5)
        for label in path:
            rng = rng.fork(label)
        streams.append(rng.bytes(16))
    assert (streams[0] == streams[1]) == (left == right)


def test_seeds_give_unrelated_streams():
    assert len({InsecureSeededRng(seed).bytes(16) for seed in range(200)}) == 200


def test_sources_do_not_print_their_seed():
    assert "31415" not in repr(InsecureSeededRng(31415).fork("secret"))


@given(st.integers(0, 2**63 - 1), LABELS, LABELS)
def test_experiment_seeds_derive_by_label(value, left, right):
    seed = ExperimentSeed(value)
    assert 0 <= seed.derive(left) < 2**63
    assert (seed.derive(left) == seed.derive(right)) == (left == right)


def test_experiment_generators_repeat():
    draws = [ExperimentSeed(4).generator("phantom").integers(0, 2**62, 8) for _ in range(2)]
    assert np.array_equal(*draws)
    assert not np.array_equal(draws[0], ExperimentSeed(4).generator("split").integers(0, 2**62, 8))


def test_no_module_but_the_seed_reaches_for_pseudo_random_numbers():
    """The rooms whose randomness protects people import neither `random` nor `numpy.random`."""
    package = Path(secfl.__file__).parent
    offenders = []
    for room in ("crypto", "dp", "ledger"):
        for module in sorted((package / room).rglob("*.py")):
            for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom):
                    names = [node.module or ""]
                drawn = isinstance(node, ast.Attribute) and ast.unparse(node).startswith(
                    ("np.random", "numpy.random")
                )
                if drawn or any(name.split(".")[0] in ("random", "pickle") for name in names):
                    offenders.append(f"{module.relative_to(package)}:{node.lineno}")
    assert offenders == []
