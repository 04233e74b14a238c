"""Signatures: whose, over what, and of which size."""

from __future__ import annotations

import pytest

from secfl.crypto.identity import SIGNATURE_BYTES, Directory, Identity
from secfl.errors import RemoteProtocolError
from secfl.randomness import InsecureSeededRng

ANNA = Identity.generate("anna", InsecureSeededRng(1))
BERT = Identity.generate("bert", InsecureSeededRng(2))
DIRECTORY = Directory.enroll([ANNA, BERT])
SIGNATURE = ANNA.sign(b"purpose", b"one", b"two")


def test_a_signature_holds_for_its_name_purpose_and_fields():
    DIRECTORY.verify("anna", SIGNATURE, b"purpose", b"one", b"two")
    for name, purpose, fields in [
        ("bert", b"purpose", (b"one", b"two")),
        ("anna", b"another", (b"one", b"two")),
        ("anna", b"purpose", (b"onet", b"wo")),
        ("anna", b"purpose", (b"one",)),
    ]:
        with pytest.raises(RemoteProtocolError, match=f"bad signature on {purpose.decode()}") as caught:
            DIRECTORY.verify(name, SIGNATURE, purpose, *fields)
        assert caught.value.peer == name


def test_who_is_not_enrolled_signs_nothing():
    with pytest.raises(RemoteProtocolError, match="not enrolled"):
        DIRECTORY.verify("carl", SIGNATURE, b"purpose", b"one", b"two")


@pytest.mark.parametrize("size", [0, 1, SIGNATURE_BYTES - 1, SIGNATURE_BYTES + 1, 1 << 16])
def test_the_size_is_looked_at_before_the_content(size):
    """The library underneath gets nothing of another size to read."""
    signature = (SIGNATURE * (size // SIGNATURE_BYTES + 1))[:size]
    with pytest.raises(RemoteProtocolError, match=f"signature of {size} bytes, expected {SIGNATURE_BYTES}"):
        DIRECTORY.verify("anna", signature, b"purpose", b"one", b"two")
