"""Transcript audits: honest schemes stay silent, careless ones do not, and damaged recordings are refused."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from secfl.audit.opening import self_masks
from secfl.audit.recording import Recorded, Recording, read_run_recording
from secfl.audit.rounds import record_rounds, small_values
from secfl.audit.seen import look_through
from secfl.audit.transcript import audit_run_transcript, audit_transcript
from secfl.audit.uniformity import audit_updates
from secfl.config import load_config
from secfl.crypto.ckks import Ckks, KeyMode
from secfl.crypto.hazmat.prg import MaskStream, Sign, add_streams
from secfl.crypto.hazmat.sealed import SealingKey
from secfl.crypto.masking import Masking
from secfl.crypto.masking_client import MaskingClient
from secfl.crypto.masking_keys import self_key
from secfl.crypto.plain import Plain
from secfl.crypto.wire import MessageType
from secfl.errors import ConfigError, DataError
from secfl.federation.observer import SilentObserver
from secfl.federation.simulation import simulate
from secfl.randomness import InsecureSeededRng
from secfl.testing.adversaries.broken_masking import BrokenMasking, FoldedRng, LeakyClient, OneSecretClient
from secfl.testing.tasks import LinearTask
from secfl.types import SchemeSpec

MASKING = SchemeSpec(name="masking")


def ckks(mode):
    return Ckks(key_mode=mode), SchemeSpec(name="ckks", parameters=(("key_mode", mode.value),))


def record(scheme, spec=MASKING, *, seed=1, rounds=6):
    return record_rounds(scheme, spec, rounds=rounds, rng=InsecureSeededRng(seed))


def flagged(recording, shape):
    return {one.name for one in audit_transcript(recording, shape) if one.flagged}


class TestHonestSchemes:
    @pytest.mark.parametrize("seed", range(3))
    def test_masking_stays_silent(self, seed):
        recording, shape = record(Masking(threads=1), seed=seed)
        found = audit_transcript(recording, shape)
        assert [one.name for one in found if one.flagged] == []
        assert not any(one.skipped for one in found)
        assert sum(one.level for one in found) <= 1.1e-6  # the sum of all false-alarm rates

    @pytest.mark.parametrize("mode", list(KeyMode))
    def test_ckks_stays_silent(self, mode):
        assert flagged(*record(*ckks(mode))) == set()

    @pytest.mark.parametrize(
        ("scheme", "name", "repeats"), [(Plain(), "plain", False), (None, "masking", True)]
    )
    def test_equal_updates_are_equal_messages_in_clear_alone(self, scheme, name, repeats):
        """Without a scheme nothing hides that two sites sent the same; under one, no bytes may come twice."""
        recording, shape = record(scheme or Masking(threads=1), SchemeSpec(name=name), rounds=1)
        inputs = [
            place
            for place, one in enumerate(recording.envelopes)
            if one.payload[4] in (MessageType.PLAIN_INPUT, MessageType.MASKED_INPUT)
        ]
        first, second = (recording.envelopes[place] for place in inputs[:2])
        recording.envelopes[inputs[1]] = replace(second, payload=first.payload)
        assert ("keys, nonces and ciphertexts never repeat" in flagged(recording, shape)) is repeats

    def test_masks_are_rebuilt_from_the_shares_as_the_aggregator_would(self):
        """Without self masks all inputs of a round add up to the sum: pairwise masks cancel, nothing else is left."""
        recording, shape = record(Masking(threads=1), rounds=1)
        seen = look_through(recording, shape)
        secrets = self_masks(seen, shape, 0, seen.shares[0])
        (digest,) = seen.digests[0]
        (vector,) = shape.sent_vectors(MessageType.MASKED_INPUT)
        total = np.zeros(vector.length, np.uint32)
        for one in seen.inputs:
            residues = one.residues["update"].copy()
            key = self_key(secrets[one.sender], vector, digest=digest, client=one.sender)
            add_streams(residues, [MaskStream(key, Sign.SUBTRACT)])
            total += residues
        total &= np.uint32(0xFFFF)
        centred = np.where(total >= 32768, total.astype(int) - 65536, total.astype(int))
        assert np.abs(centred[: shape.vectors[0].length]).max() <= 3 * 128
        assert (centred[shape.vectors[0].length :] == 3).all()  # the canaries


class WithoutPairMasks(MaskingClient):
    """Only its self mask, which the aggregator learns."""

    __slots__ = ()

    def _streams(self, vector, seeds):
        return super()._streams(vector, seeds)[:1]


class SealedToKnownKeys(MaskingClient):
    """Its sealing key comes from a seed that everybody can guess."""

    __slots__ = ()

    @classmethod
    def create(cls, masked, identity, **arguments):
        client = super().create(masked, identity, **arguments)
        client._memory.secrets = replace(client._memory.secrets, sealing=SealingKey(bytes(96)))
        return client


SHUT = "no sealed share or escrow opens under what the aggregator holds"


class TestCarelessSchemes:
    def test_an_escrow_that_opens_under_a_rebuilt_mask_is_found(self):
        assert flagged(*record(BrokenMasking(client_class=OneSecretClient), rounds=1)) == {SHUT}

    def test_shares_sealed_to_a_key_that_can_be_guessed_are_found(self):
        assert SHUT in flagged(*record(BrokenMasking(client_class=SealedToKnownKeys), rounds=1))

    def test_inputs_in_clear_are_found(self):
        names = flagged(*record(Plain(), SchemeSpec(name="plain")))
        assert any("high bits" in name for name in names)
        assert any("coordinate" in name for name in names)

    def test_a_value_in_a_nonce_is_found(self):
        assert flagged(*record(BrokenMasking(client_class=LeakyClient))) == {
            "fresh fields vary in every byte"
        }

    def test_short_seeds_repeat(self):
        names = flagged(*record(BrokenMasking(wrong_rng=FoldedRng), rounds=12))
        assert "keys, nonces and ciphertexts never repeat" in names

    def test_masks_that_come_off_by_shares_alone_are_found(self):
        names = flagged(*record(BrokenMasking(client_class=WithoutPairMasks)))
        assert "inputs stay hidden without their self masks" in names
        assert not any("high bits" in name for name in names)  # before that, inputs look fine

    def test_masks_that_repeat_are_found(self):
        values = InsecureSeededRng(3)
        mask = np.frombuffer(values.bytes(2 * 2000), np.uint16).astype(np.uint32)
        rows = np.stack(
            [(mask + small_values(2000, bits=16, rng=values.fork(str(n)))) & 0xFFFF for n in range(4)]
        )
        found = audit_updates(rows, bits=16)
        assert [one.name for one in found if one.flagged] != []
        assert any("differences" in one.name for one in found if one.flagged)

    def test_one_coordinate_in_clear_is_found(self):
        rows = np.frombuffer(InsecureSeededRng(4).bytes(2 * 12 * 5000), np.uint16).reshape(12, 5000)
        rows = rows.astype(np.uint32)
        assert not any(one.flagged for one in audit_updates(rows, bits=16))
        rows[:, 17] = small_values(12, bits=16, rng=InsecureSeededRng(5))
        found = [one for one in audit_updates(rows, bits=16) if one.flagged]
        assert [one.name for one in found] == ["updates: every coordinate moves"]
        assert "coordinate 17" in found[0].statistic

    def test_a_longer_message_is_found(self):
        recording, shape = record(Masking(threads=1))
        longer = recording.envelopes[-1]
        place = recording.envelopes.index(longer)
        recording.envelopes[place] = Recorded(
            round_id=longer.round_id,
            sender=longer.sender,
            recipient=longer.recipient,
            payload=longer.payload + b"Dice 0.9123",
        )
        assert {"every byte belongs to the protocol", "sizes do not depend on data"} & flagged(
            recording, shape
        )

    def test_a_statistic_in_clear_is_found(self):
        import struct
        from dataclasses import replace

        recording, shape = record(Masking(threads=1), rounds=2)
        shape = replace(shape, statistics={"dice of site-00": 0.8437219})
        assert "no statistic of a site in clear" not in flagged(recording, shape)
        place, last = next((i, e) for i, e in enumerate(recording.envelopes) if e.sender != "aggregator")
        payload = last.payload[:60] + struct.pack("<d", 0.8437219) + last.payload[68:]
        recording.envelopes[place] = Recorded(
            round_id=last.round_id, sender=last.sender, recipient=last.recipient, payload=payload
        )
        assert "no statistic of a site in clear" in flagged(recording, shape)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    settings = load_config(None, {"record": True, "training": {"rounds": 6}})
    simulate(settings, out=path, observer=SilentObserver(), task=LinearTask(features=400))
    return path


class TestRuns:
    def test_a_recorded_run_stays_silent(self, run):
        found = audit_run_transcript(run)
        assert [one.name for one in found if one.flagged] == []
        assert any(
            "encodings found" in one.statistic and not one.statistic.startswith("0 of 0") for one in found
        )

    def test_a_run_that_hides_nothing_says_so(self, tmp_path):
        settings = load_config(
            None, {"record": True, "secure_agg": {"scheme": "plain"}, "training": {"rounds": 1}}
        )
        simulate(settings, out=tmp_path / "run", observer=SilentObserver(), task=LinearTask(features=30))
        found = audit_run_transcript(tmp_path / "run")
        assert found[-1].skipped
        assert "every update is seen" in found[-1].power

    def test_a_run_without_recording_is_refused(self, tmp_path):
        simulate(
            load_config(None, {"training": {"rounds": 1}}),
            out=tmp_path / "run",
            observer=SilentObserver(),
            task=LinearTask(features=30),
        )
        with pytest.raises(DataError, match="--record"):
            audit_run_transcript(tmp_path / "run")

    @pytest.mark.parametrize(
        "line",
        [
            "not json",
            "[]",
            '{"format_version": 1}',
            '{"format_version":1,"file":"../../etc/passwd","round":0,"phase":"x","sender":"a","recipient":"b","bytes":1}',
            '{"format_version":99,"file":"0.bin","round":0,"phase":"x","sender":"a","recipient":"b","bytes":1}',
            '{"format_version":1,"file":"none.bin","round":0,"phase":"x","sender":"a","recipient":"b","bytes":1}',
            '{"format_version":1,"file":"0.bin","round":true,"phase":"x","sender":"a","recipient":"b","bytes":1}',
            '{"format_version":1,"file":"0.bin","round":0,"phase":"x","sender":"a","recipient":"b","bytes":7}',
        ],
    )
    def test_a_damaged_manifest_is_refused(self, tmp_path, line):
        (tmp_path / "transcript").mkdir()
        (tmp_path / "transcript" / "0.bin").write_bytes(b"x")
        (tmp_path / "transcript" / "manifest.jsonl").write_text(line + "\n")
        with pytest.raises(DataError, match=r"manifest|bin"):
            read_run_recording(tmp_path)

    def test_the_files_are_what_was_sent(self, run):
        recording = read_run_recording(run)
        rows = [json.loads(line) for line in (run / "transcript" / "manifest.jsonl").read_text().splitlines()]
        assert len(recording.envelopes) == len(rows)
        assert len(recording.rounds) == 6
        assert recording.seen_by("aggregator")


def test_odd_updates_are_refused():
    with pytest.raises(ConfigError):
        audit_updates(np.zeros((0, 4), np.uint32), bits=16)
    with pytest.raises(ConfigError):
        audit_updates(np.full((2, 4), 70000, np.uint32), bits=16)


def test_hostile_bytes_are_findings_not_errors():
    shape = record(Masking(threads=1), rounds=1)[1]
    junk = [b"", b"SFL1", b"SFL1" + bytes([99]) + bytes(60), b"SFL1" + bytes([3]) + bytes(500), bytes(4000)]
    recording = Recording(
        [Recorded(round_id=0, sender="site-00", recipient="aggregator", payload=part) for part in junk]
    )
    assert "every byte belongs to the protocol" in flagged(recording, shape)
