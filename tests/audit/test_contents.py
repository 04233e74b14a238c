"""Every byte of a recording has a name, and a byte that has none is found; salt is found wherever it lies in clear."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from secfl.audit.contents import Contents, Field, Origin, take_apart
from secfl.audit.rounds import record_rounds
from secfl.audit.salted import PIECE, Salt, find_images, salt_pictures
from secfl.crypto.ckks import Ckks, KeyMode
from secfl.crypto.masking import Masking
from secfl.crypto.messages import Advertise, Consistency, Deal, InputHeader, Parcel, Unmask, escrow_bytes
from secfl.crypto.packing import pack, packed_size
from secfl.crypto.plain import Plain
from secfl.crypto.wire import FRAME_BYTES, MessageType
from secfl.errors import ConfigError
from secfl.randomness import InsecureSeededRng
from secfl.types import SchemeSpec, VectorSpec

SCHEMES = {
    "plain": (lambda: Plain(threads=1), SchemeSpec(name="plain")),
    "masking": (lambda: Masking(threads=1), SchemeSpec(name="masking")),
    **{
        mode.value: (
            lambda mode=mode: Ckks(key_mode=mode),
            SchemeSpec(name="ckks", parameters=(("key_mode", mode.value),)),
        )
        for mode in KeyMode
    },
}


def record(name="masking", *, rounds=2, clients=3, seed=1):
    make, spec = SCHEMES[name]
    return record_rounds(make(), spec, rounds=rounds, clients=clients, rng=InsecureSeededRng(seed))


def changed(recording, place, payload):
    recording.envelopes[place] = replace(recording.envelopes[place], payload=payload)
    return recording


def first(recording, kind, *, sender=None):
    return next(
        place
        for place, one in enumerate(recording.envelopes)
        if one.payload[4] == kind and sender in (None, one.sender)
    )


class TestAccounts:
    @pytest.mark.parametrize("name", SCHEMES)
    @pytest.mark.parametrize("clients", [3, 5])
    def test_every_byte_has_a_name(self, name, clients):
        contents = take_apart(*record(name, clients=clients))
        assert contents.unaccounted == []
        assert contents.accounted_bytes == contents.total_bytes > 0

    def test_the_formulas_of_masking(self):
        """What a client sends beside its vector: 5 statements with signatures, an escrow and n - 1 parcels."""
        recording, shape = record(rounds=1)
        contents = take_apart(recording, shape)
        statements = (
            Advertise.SIZE + Deal.SIZE + InputHeader.SIZE + Consistency.SIZE + Unmask.size(3) + 5 * 64
        )
        for place, name in enumerate(shape.cohort):
            parcels = sum(Parcel.size(sender=place, recipient=to) for to in range(3) if to != place)
            expected = statements + escrow_bytes(2 - place) + parcels
            mine = [one for one in contents.fields if one.author == name and one.origin is Origin.FRESH]
            assert sum(len(one.value) for one in mine) == expected
        assert contents.most_fresh() == statements + escrow_bytes(2) + 2 * Parcel.size(sender=0, recipient=1)
        assert contents.largest(Origin.FRESH) == 1216  # a public key

    def test_a_vector_has_no_spare_byte(self):
        contents = take_apart(*record("plain", rounds=1))
        (size,) = {len(one.value) for one in contents.fields if one.origin is Origin.VECTOR}
        assert size == packed_size(2000, bits=16)

    @pytest.mark.parametrize("name", SCHEMES)
    @pytest.mark.parametrize("where", ["client", "aggregator"])
    def test_bytes_after_a_message_are_found(self, name, where):
        recording, shape = record(name, rounds=1)
        places = [
            place
            for place, one in enumerate(recording.envelopes)
            if (one.sender == "aggregator") is (where == "aggregator")
        ]
        if not places:
            assert name == "plain", "there the aggregator says nothing"
            return
        for place in places:
            longer, _ = record(name, rounds=1)
            found = take_apart(changed(longer, place, longer.envelopes[place].payload + bytes(400)), shape)
            assert found.unaccounted
            assert found.accounted_bytes < found.total_bytes

    def test_what_the_aggregator_says_must_come_from_the_clients(self):
        _, shape = record(rounds=1)
        for kind in (MessageType.DIRECTORY, MessageType.DELIVERY, MessageType.SURVIVORS, MessageType.SIGNERS):
            other, _ = record(rounds=1)
            place = first(other, kind)
            payload = bytearray(other.envelopes[place].payload)
            payload[FRAME_BYTES + 8 + 5] ^= 1
            unaccounted = take_apart(changed(other, place, bytes(payload)), shape).unaccounted
            assert any("not what" in one for one in unaccounted)

    def test_bits_that_fill_the_last_byte_of_a_vector_are_found(self):
        odd = 2001
        make, spec = SCHEMES["plain"]
        vectors = (VectorSpec(name="update", length=odd, modulus_bits=15),)
        recording, shape = record_rounds(make(), spec, rounds=1, rng=InsecureSeededRng(1), vectors=vectors)
        payload = bytearray(recording.envelopes[0].payload)
        payload[-1] |= 0x80
        assert take_apart(changed(recording, 0, bytes(payload)), shape).unaccounted

    @pytest.mark.parametrize("cut", [0, 4, 20, FRAME_BYTES, FRAME_BYTES + 100])
    def test_torn_and_strange_messages_are_found(self, cut):
        recording, shape = record(rounds=1)
        payload = recording.envelopes[0].payload[:cut]
        assert take_apart(changed(recording, 0, payload), shape).unaccounted

    def test_unknown_types_and_another_rounds_frame_are_found(self):
        for place in (4, 5, 37):
            recording, shape = record(rounds=1)
            last = len(recording.envelopes) - 1
            payload = bytearray(recording.envelopes[last].payload)
            payload[place] ^= 0x40
            assert take_apart(changed(recording, last, bytes(payload)), shape).unaccounted


SIDE = 32


def coins(seed=7):
    raw = np.frombuffer(InsecureSeededRng(seed).bytes(SIDE * SIDE), np.uint8).reshape(SIDE, SIDE)
    return ((raw & 1).astype(np.int8) * 2 - 1).astype(np.int8)


def holding(*values, bits=0, name="escrow"):
    """Contents with one field of site a in several messages."""
    length = 0 if not bits else len(values[0]) * 8 // bits
    return Contents(
        fields=[
            Field(
                round_id=number,
                author="a",
                message=MessageType.MASKED_INPUT if bits else MessageType.SHARES,
                name="update" if bits else name,
                origin=Origin.VECTOR if bits else Origin.FRESH,
                value=value,
                bits=bits,
                length=length,
            )
            for number, value in enumerate(values)
        ]
    )


SALT = coins()
GREY = (130.0 + 48 * SALT + np.linspace(-40, 40, SIDE)[:, None]).astype(np.uint8)
MASK = (SALT > 0).astype(np.uint8)


class TestSearch:
    @pytest.mark.parametrize(
        "value",
        {
            "8-bit pixels": GREY.tobytes(),
            "by columns": GREY.T.tobytes(),
            "negative": (255 - GREY).tobytes(),
            "coarse, two bits of each pixel": (GREY >> 6).tobytes(),
            "half of it": GREY.tobytes()[: SIDE * SIDE // 2],
            "at an odd place": b"\x17" * 37 + GREY.tobytes(),
            "RGB": np.repeat(GREY.ravel(), 3).tobytes(),
            "16 bits": (GREY.astype("<u2") * 199).tobytes(),
            "normalised, float32": ((GREY - 130.0) / 60).astype("<f4").tobytes(),
            "normalised, float64": ((GREY - 130.0) / 60).astype("<f8").tobytes(),
            "mask": (MASK * 255).tobytes(),
            "mask, a bit a pixel": np.packbits(MASK).tobytes(),
            "mask, a bit a pixel, little": np.packbits(MASK, bitorder="little").tobytes(),
            "half a mask, a bit a pixel": np.packbits(MASK).tobytes()[: SIDE * SIDE // 16],
        }.items(),
        ids=lambda pair: pair[0],
    )
    def test_a_picture_is_found_in_a_field(self, value):
        salt = Salt(name="a/images/000.png", owner="a", coins=SALT)
        assert find_images(holding(value[1]), [salt]).flagged
        other = Salt(name="a/images/001.png", owner="a", coins=coins(8))
        assert not find_images(holding(value[1]), [other]).flagged, "the salt is what is found"

    def test_a_mask_is_found_in_the_lowest_bits_of_a_vector(self):
        values = np.frombuffer(InsecureSeededRng(3).bytes(2 * 4096), np.uint16) & 0x3FFE
        values = values.astype(np.uint32)
        salt = Salt(name="a/masks/000.png", owner="a", coins=SALT)
        clean = holding(pack(values, bits=14), bits=14)
        assert not find_images(clean, [salt]).flagged
        values[100 : 100 + MASK.size] |= MASK.ravel()
        found = find_images(holding(pack(values, bits=14), bits=14), [salt])
        assert found.flagged
        assert "bit 0 of residues" in found.statistic

    def test_a_picture_that_drips_through_many_messages_is_found(self):
        """12 bytes a message, as a nonce has: 43 messages hold 516 pixels."""
        drops = [GREY.tobytes()[start : start + 12] for start in range(0, 12 * 43, 12)]
        salt = Salt(name="a/images/000.png", owner="a", coins=SALT)
        assert find_images(holding(*drops, name="escrow nonce"), [salt]).flagged

    def test_others_pictures_are_searched_for_in_what_the_aggregator_says(self):
        contents = holding(GREY.tobytes())
        salt = Salt(name="b/images/000.png", owner="b", coins=SALT)
        assert not find_images(contents, [salt]).flagged, "site a has never seen it"
        contents.fields = [replace(one, author="aggregator") for one in contents.fields]
        assert find_images(contents, [salt]).flagged

    def test_the_threshold_keeps_the_false_alarm_rate(self):
        """At level 1/2 fresh coins against fixed bytes are flagged at most half of the time: Hoeffding is generous.

        60 trials; more than 45 of them would be 4 deviations above the rate that is claimed (3e-5).
        """
        field = holding(InsecureSeededRng(1).bytes(1200))
        flagged = sum(
            find_images(field, [Salt(name="x", owner="a", coins=coins(100 + seed))], level=0.5).flagged
            for seed in range(60)
        )
        assert flagged <= 45

    def test_salt_needs_pixels(self):
        tiny = Salt(name="x", owner="a", coins=np.ones((4, 4), np.int8))
        with pytest.raises(ConfigError, match="128 pixels"):
            find_images(holding(bytes(600)), [tiny])
        with pytest.raises(ConfigError, match="128 pixels"):
            find_images(holding(bytes(600)), [])

    def test_constant_fields_have_no_say(self):
        salt = Salt(name="x", owner="a", coins=SALT)
        assert not find_images(holding(bytes(4 * PIECE)), [salt]).flagged

    def test_pictures_are_what_their_salt_says(self, tmp_path):
        from PIL import Image

        salts = salt_pictures(tmp_path, sites=["a"], images=2, side=32, rng=InsecureSeededRng(1))
        assert [one.name for one in salts] == [
            f"a/{kind}/{number:03d}.png" for number in range(2) for kind in ("images", "masks")
        ]
        for one in salts:
            pixels = np.array(Image.open(tmp_path / one.name)).astype(float)
            assert np.corrcoef(pixels.ravel(), one.coins.ravel())[0, 1] > (
                0.75 if "images" in one.name else 0.99
            )
