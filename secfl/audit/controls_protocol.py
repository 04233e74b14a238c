"""Controls of sampling and of what is sent: schedules, schemes, seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from secfl.audit.controls import Control, Preset, Run, wrong_and_right
from secfl.audit.findings import Finding
from secfl.audit.other_tests import collision_test
from secfl.audit.recording import Recording
from secfl.audit.rounds import record_rounds, small_values
from secfl.audit.sampling_tests import batch_size_test, inclusion_test, membership_matrix, repetition_test
from secfl.audit.seen import RunShape
from secfl.audit.transcript import audit_transcript
from secfl.audit.verdicts import REFUTED_LEVEL
from secfl.crypto.aggregation import SecureAggregation
from secfl.crypto.hazmat.prg import MaskStream, Sign, add_streams
from secfl.crypto.identity import SIGNATURE_BYTES
from secfl.crypto.masking import Masking
from secfl.crypto.masking_client import MaskingClient
from secfl.crypto.masking_keys import self_key
from secfl.crypto.messages import InputHeader
from secfl.crypto.packing import pack, packed_size, unpack
from secfl.crypto.plain import Plain
from secfl.crypto.wire import FRAME_BYTES, MessageType
from secfl.dp.sampling import PoissonSampler
from secfl.randomness import ExperimentSeed, InsecureSeededRng, Rng
from secfl.testing.adversaries.broken_masking import BrokenMasking, FoldedRng, LeakyClient, OneSecretClient
from secfl.types import ClientId, SchemeSpec, VectorSpec

__all__ = ["protocol_controls"]

_PATIENTS: Final = 200
_RATE: Final = 0.1
_STEPS: Final = 400
_STREAMS: Final = 1 << 18
_MASKING: Final = SchemeSpec(name="masking")


def protocol_controls() -> list[Control]:
    """All of them, wrong and right ones next to each other."""
    return [*_sampling_controls(), *_transcript_controls(), *_seed_controls()]


# Sampling


def _poisson(rng: Rng) -> NDArray[np.bool_]:
    sampler = PoissonSampler(population=_PATIENTS, rate=_RATE)
    return membership_matrix([sampler.draw(rng) for _ in range(_STEPS)], _PATIENTS)


def _shuffled(rng: Rng) -> NDArray[np.bool_]:
    """Wrong as Poisson: epochs of a permutation, batches of fixed size."""
    source = ExperimentSeed(int.from_bytes(rng.bytes(7), "little")).generator("shuffle")
    size = round(_PATIENTS * _RATE)
    batches: list[NDArray[np.intp]] = []
    while len(batches) < _STEPS:
        order = source.permutation(_PATIENTS)
        batches += [order[at : at + size] for at in range(0, _PATIENTS, size)]
    return membership_matrix(batches[:_STEPS], _PATIENTS)


def _sampling_controls() -> list[Control]:
    def restarted(sources: Callable[[InsecureSeededRng, int], Rng]) -> Run:
        def run(rng: InsecureSeededRng) -> Finding:
            starts = iter((0, 1))
            return repetition_test(lambda: _poisson(sources(rng, next(starts))), _RATE)

        return run

    return [
        *wrong_and_right(
            "batch sizes",
            wrong={
                "shuffling accounted as Poisson (sizes)": lambda rng: batch_size_test(_shuffled(rng), _RATE)
            },
            right={"Poisson sampling (sizes)": lambda rng: batch_size_test(_poisson(rng), _RATE)},
        ),
        *wrong_and_right(
            "inclusions",
            wrong={
                "shuffling accounted as Poisson (inclusions)": lambda rng: inclusion_test(
                    _shuffled(rng), _RATE
                )
            },
            right={"Poisson sampling (inclusions)": lambda rng: inclusion_test(_poisson(rng), _RATE)},
        ),
        *wrong_and_right(
            "restart",
            wrong={
                "seeded sampling presented as secret": restarted(
                    lambda rng, _: rng.fork("the experiment's seed")
                )
            },
            right={
                "sampling from a source of its own": restarted(lambda rng, start: rng.fork(f"start {start}"))
            },
        ),
    ]


# Transcripts


class _SelfMaskOnly(MaskingClient):
    """Wrong: the aggregator learns the only mask."""

    __slots__ = ()

    def _streams(self, vector: VectorSpec, seeds: object) -> list[MaskStream]:
        del seeds
        return super()._streams(vector, {})


def _transcript(scheme: SecureAggregation, spec: SchemeSpec, *, edit: object = None) -> Run:
    def run(rng: InsecureSeededRng) -> Finding:
        recording, shape = record_rounds(scheme, spec, rounds=6, rng=rng)
        if callable(edit):
            recording = edit(recording, shape, rng)
        return _summed_up(audit_transcript(recording, shape))

    return run


def _summed_up(found: list[Finding]) -> Finding:
    flagged = [one for one in found if one.flagged]
    shown = flagged[0] if flagged else min(found, key=lambda one: 1.0 if one.p_value is None else one.p_value)
    return Finding(
        name="transcript",
        flagged=bool(flagged),
        statistic=f"{shown.name}: {shown.statistic}",
        level=REFUTED_LEVEL,
        p_value=shown.p_value,
        power=f"{len(found)} tests",
    )


def _leak_one_coordinate(recording: Recording, shape: RunShape, rng: InsecureSeededRng) -> Recording:
    """The same recording as a scheme leaves it that does not mask coordinate 17."""
    (vector,) = shape.sent_vectors(MessageType.MASKED_INPUT)
    begin = FRAME_BYTES + InputHeader.SIZE + SIGNATURE_BYTES
    end = begin + packed_size(vector.length, bits=vector.modulus_bits)
    edited = []
    for number, one in enumerate(recording.envelopes):
        payload = one.payload
        if payload[4] == MessageType.MASKED_INPUT:
            residues = unpack(payload[begin:end], length=vector.length, bits=vector.modulus_bits)
            clear = small_values(1, bits=vector.modulus_bits, rng=rng.fork(f"clear {number}"))
            residues[17] = clear[0]
            payload = payload[:begin] + pack(residues, bits=vector.modulus_bits) + payload[end:]
        edited.append(replace(one, payload=payload))
    return Recording(edited)


def _transcript_controls() -> list[Control]:
    honest, test = Masking(threads=1), "transcript audit"
    return [
        *wrong_and_right(
            test,
            wrong={
                "plain presented as secure": _transcript(Plain(threads=1), SchemeSpec(name="plain")),
                "a scheme that leaks one coordinate": _transcript(
                    honest, _MASKING, edit=_leak_one_coordinate
                ),
                "a value where a nonce should be": _transcript(
                    BrokenMasking(client_class=LeakyClient), _MASKING
                ),
                "one secret for self mask and pair masks": _transcript(
                    BrokenMasking(client_class=OneSecretClient), _MASKING
                ),
                "self masks alone": _transcript(BrokenMasking(client_class=_SelfMaskOnly), _MASKING),
            },
            right={"masking": _transcript(honest, _MASKING)},
        ),
        *wrong_and_right(
            test,
            right={f"ckks, {mode}": _ckks(mode) for mode in ("sum-key", "shared")},
            preset=Preset.FULL,
        ),
    ]


def _ckks(mode: str) -> Run:
    def run(rng: InsecureSeededRng) -> Finding:
        from secfl.crypto.ckks import Ckks, KeyMode

        spec = SchemeSpec(name="ckks", parameters=(("key_mode", mode),))
        return _transcript(Ckks(key_mode=KeyMode(mode)), spec)(rng)

    return run


# Seeds


def _streams(rng: Rng) -> Iterator[bytes]:
    """The beginnings of many self masks, derived as clients derive them."""
    vector = VectorSpec(name="update", length=4, modulus_bits=32)
    for _ in range(_STREAMS):
        key = self_key(rng.bytes(32), vector, digest=bytes(32), client=ClientId("site"))
        words = np.zeros(4, np.uint32)
        add_streams(words, [MaskStream(key, Sign.ADD)])
        yield words.tobytes()


def _seed_controls() -> list[Control]:
    return wrong_and_right(
        "collisions",
        wrong={"mask seeds of 32 bits": lambda rng: collision_test(_streams(FoldedRng(rng, bits=32)))},
        right={"mask seeds of 256 bits": lambda rng: collision_test(_streams(rng))},
    )
