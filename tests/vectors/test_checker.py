"""The vectors say what docs/protocol.md says, computed without secfl; and the checker notices when they do not."""

from __future__ import annotations

import copy
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidTag

FOLDER = Path(__file__).resolve().parent
_SPEC = importlib.util.spec_from_file_location("secfl_vectors_checker", FOLDER / "checker.py")
assert _SPEC is not None
assert _SPEC.loader is not None
checker = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(checker)

CHANGED = {
    "codec": [
        ("grids", 1, "rounded", 5),
        ("grids", 2, "residues", 0),
        ("grids", 0, "encoded"),
        ("widths", 1, "bits"),
        ("weights", 1, "total"),
    ],
    "identities": [
        ("manifest", "digest"),
        ("rounds", 1, "threshold"),
        ("rounds", 2, "digest"),
        ("model", "digest"),
        ("task", "settings_digest"),
        ("statements", "signatures", "unmask"),
    ],
    "masking_client": [
        ("secrets", "root"),
        ("inputs", "weight", 0),
        ("secrets", "coefficients"),
        ("encapsulated", "c02"),
        ("inputs", "update", 3),
        ("start",),
        ("steps", 0, "answer"),
        ("steps", 1, "request"),
        ("steps", 2, "answer"),
        ("steps", 3, "answer"),
        ("signing_seeds", "c00"),
    ],
    "masking_keys": [
        ("mask_key_seeds", 0),
        ("escrow_key",),
        ("pair", "seed"),
        ("pair", "key"),
        ("self_key",),
        ("transcripts", "members"),
        ("tree", "root"),
    ],
    "masking_round": [
        (0, "events", 4, "deliver"),
        (1, "secrets", "c03", "root"),
        (1, "inputs", "c02", "update", 1),
        (1, "sums", "weights", 0),
        (0, "events", 2, "sends", 1, 1),
    ],
    "packing": [(7, "packed"), (11, "values", 3)],
    "plain_round": [
        ("clients", 0, "message_head"),
        ("clients", 2, "weight"),
        ("first_sums", 19),
        ("vectors", 0, 1),
    ],
    "prg": [(2, "first", 5), (9, "last"), (15, "sha256_of_64_bit_words")],
    "ring": [("thresholds", 40), ("layouts", 3, "fields"), ("plaintexts", 2, "sum_of_plaintexts", 0)],
    "sealed": [("keys", 0, "box"), ("keys", 1, "plaintext"), ("escrow", "ciphertext"), ("x25519_of_both",)],
    "shamir": [(1, "shares", "2"), (2, "secret"), (0, "threshold")],
    "shared_key": [
        ("secrets", "c00", "lead_seed"),
        ("keys_message",),
        ("messages", 9, "sha256"),
        ("sums", "update", 7),
    ],
    "sum_key": [("clients", 0, "key_vector_first", 3), ("clients", 1, "ciphertext_sha256"), ("key_bits",)],
}
"""Places whose change must be noticed: outputs, and inputs that show in one."""


def cases_of(name):
    return json.loads((FOLDER / f"{name}.json").read_text())["cases"]


@pytest.mark.parametrize("name", checker.FILES)
def test_the_vectors_are_what_the_page_says(name):
    checker.check(name)


def test_the_checker_uses_nothing_of_secfl():
    """A second implementation checked by the first one's code would prove nothing."""
    program = (
        "import runpy, sys\n"
        "sys.modules['secfl'] = sys.modules['numpy'] = None  # importing them fails\n"
        "sys.argv = ['checker', 'identities', 'masking_round', 'ring']\n"
        f"runpy.run_path({str(FOLDER / 'checker.py')!r}, run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("as docs/protocol.md says") == 3


def changed(cases, path):
    """The same with one number, digit or letter changed."""
    out = copy.deepcopy(cases)
    inner = out
    for key in path[:-1]:
        inner = inner[key]
    old = inner[path[-1]]
    if isinstance(old, int):
        inner[path[-1]] = old + 1
    else:
        place = len(old) // 2
        inner[path[-1]] = old[:place] + ("1" if old[place : place + 1] != "1" else "2") + old[place + 1 :]
    return out


@pytest.mark.parametrize("name", checker.FILES)
def test_a_changed_value_is_noticed(name):
    cases = cases_of(name)
    for path in CHANGED[name]:
        with pytest.raises((AssertionError, ValueError, KeyError, IndexError, InvalidTag)):
            checker.check(name, changed(cases, path))


def test_every_message_and_primitive_has_a_bad_case():
    text = {name: (FOLDER / f"{name}.json").read_text() for name in checker.FILES}
    without = {name for name, content in text.items() if '"bad' not in content}
    # Streams and derived keys have no form that could be wrong: another input gives another output.
    assert without == {"prg", "masking_keys"}
