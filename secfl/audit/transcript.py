"""The audit of a recording: is anything in what the parties saw that should not be there?

It plays an aggregator that keeps everything. It knows the protocol, holds no client's key, and looks for structure:
inputs that are not uniform, masks or keys that come back, sizes that vary, numbers in clear, and anything that opens
under what it was given. It finds careless schemes; no test of transcripts proves one secure.
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secfl.audit.contents import Contents, Origin, take_apart
from secfl.audit.findings import Finding, from_p_value
from secfl.audit.opening import boxes_stay_shut, held_values, self_masks
from secfl.audit.recorded_sums import recorded_sums
from secfl.audit.recording import Recording, is_from_client
from secfl.audit.seen import Input, RunShape, Seen, look_through
from secfl.audit.uniformity import audit_updates
from secfl.audit.verdicts import REFUTED_LEVEL
from secfl.crypto.hazmat.prg import MaskStream, Sign, add_streams
from secfl.crypto.masking_keys import self_key
from secfl.crypto.wire import MessageType
from secfl.types import ClientId

__all__ = ["audit_run_transcript", "audit_transcript"]

_MOST_ELEMENTS = 1 << 24
_SIGNIFICANT_BYTES = 8
_CANDIDATE_ELEMENTS = 4096
_LEAST_ELEMENTS = 256


def audit_run_transcript(run: Path, *, level: float = REFUTED_LEVEL) -> list[Finding]:
    """Audit a run directory that was made with ``--record``: every sum of it, under its name where there are several.

    Raises:
        DataError: Not recorded, or damaged.
    """
    sums = recorded_sums(run)
    found = []
    for one in sums:
        prefix = f"{one.name}: " if len(sums) > 1 else ""
        findings = audit_transcript(one.recording, one.shape, level=level / len(sums))
        found += [replace(each, name=prefix + each.name) for each in findings]
    return found


def audit_transcript(recording: Recording, shape: RunShape, *, level: float = REFUTED_LEVEL) -> list[Finding]:
    """All tests of a recording; their false-alarm rates add up to at most ``level``.

    Args:
        recording: Every envelope of the run, or of some rounds of it.
        shape: What is public about the run.
        level: Split over the tests that have a false-alarm rate.
    """
    seen = look_through(recording, shape)
    found = [
        _structure(seen),
        _sizes(seen),
        _rounds(seen),
        _never_repeats(seen),
        _varies(seen, level=level / 4),
    ]
    found.append(_accounts(take_apart(recording, shape)))
    found.append(_plaintext(recording, shape))
    if not shape.hides:
        reason = "not run: the scheme states that every update is seen"
        return [*found, Finding(name="inputs are hidden", flagged=False, statistic="", power=reason)]
    names = sorted({name for one in seen.inputs for name in one.residues})
    if not names:
        return [*found, Finding(name="inputs are hidden", flagged=True, statistic="no input was recorded")]
    bits = {
        vector.name: vector.modulus_bits
        for kind in (MessageType.MASKED_INPUT, MessageType.PLAIN_INPUT, MessageType.CKKS_INPUT)
        for vector in shape.sent_vectors(kind)
        if vector.name in names
    }
    for name in names:
        rows = _rows(seen.inputs, name)
        found += audit_updates(rows, bits=bits[name], level=level / 4 / len(names), name=name)
    found += _after_unmasking(seen, shape, level=level / 4)
    found.append(_opens_under_public(seen, bits, level=level / 4))
    found.append(boxes_stay_shut(seen, shape))
    return found


# Facts


def _structure(seen: Seen) -> Finding:
    count = len(seen.malformed)
    first = f"; first: {seen.malformed[0]}" if count else ""
    return Finding(
        name="every byte belongs to the protocol",
        flagged=count > 0,
        statistic=f"{count} messages that do not fit{first}",
        power="a field more, or less, in any client's message",
    )


def _accounts(contents: Contents) -> Finding:
    first = f"; first that does not fit: {contents.unaccounted[0]}" if contents.unaccounted else ""
    return Finding(
        name="every byte has a field, the aggregator's too",
        flagged=bool(contents.unaccounted),
        statistic=f"{contents.accounted_bytes} of {contents.total_bytes} bytes{first}",
        power=f"room beside the vectors: {contents.largest(Origin.FRESH)} bytes in one field, "
        f"{contents.most_fresh()} random-looking bytes a party and round",
    )


def _sizes(seen: Seen) -> Finding:
    varying = [key for key, sizes in seen.sizes.items() if len(sizes) > 1]
    detail = f"; first: type {varying[0][0]} from {varying[0][1]}" if varying else ""
    return Finding(
        name="sizes do not depend on data",
        flagged=bool(varying),
        statistic=f"{len(varying)} of {len(seen.sizes)} kinds of messages vary in size{detail}",
        power="messages of one kind, with the same parties present, differ in size",
    )


def _rounds(seen: Seen) -> Finding:
    labels = Counter(digest for digests in seen.digests.values() for digest in digests)
    several = sum(len(digests) > 1 for digests in seen.digests.values())
    again = sum(count > 1 for count in labels.values())
    return Finding(
        name="every round has its own label",
        flagged=bool(several or again),
        statistic=f"{again} labels used in two rounds, {several} rounds with two labels, of {len(seen.digests)}",
    )


def _never_repeats(seen: Seen) -> Finding:
    values = Counter((one.kind, one.value) for one in seen.fresh)
    repeated = sorted({kind for (kind, _), count in values.items() if count > 1})
    return Finding(
        name="keys, nonces and ciphertexts never repeat",
        flagged=bool(repeated),
        statistic=f"{len(seen.fresh)} fields, repeated kinds: {', '.join(repeated) or 'none'}",
        level=len(seen.fresh) ** 2 * 2.0**-97,  # the shortest are nonces of 96 bits
        power="any field that must be fresh and comes twice",
    )


def _varies(seen: Seen, *, level: float) -> Finding:
    """Bytes of fresh fields that are the same in all messages: 7 bits of freedom each are granted as the least."""
    name = "fresh fields vary in every byte"
    groups: dict[tuple[str, int], list[bytes]] = {}
    for one in seen.fresh:
        groups.setdefault((one.kind, len(one.value)), []).append(one.value)
    worst, where, positions = 0.0, "", sum(size for _, size in groups)
    for (kind, size), values in groups.items():
        table = np.frombuffer(b"".join(values), np.uint8).reshape(len(values), size)
        constant = int((table == table[0]).all(axis=0).sum())
        if constant:
            strength = 7.0 * (len(values) - 1) * constant
            if strength > worst:
                worst, where = strength, f"{constant} bytes of {kind} in {len(values)} messages"
    p_value = min(1.0, 2.0 ** (math.log2(max(1, positions)) - worst))
    return from_p_value(
        name,
        p_value,
        statistic=where or "no byte is constant",
        level=level,
        power="a byte that never changes, given about six messages",
    )


def _plaintext(recording: Recording, shape: RunShape) -> Finding:
    """Known figures of single sites as doubles or as text, in any client's message."""
    needles: dict[bytes, str] = {}
    for name, value in shape.statistics.items():
        forms = [struct.pack("<d", value), struct.pack(">d", value), repr(value).encode()]
        for form in forms:
            if len(form.rstrip(b"\0")) >= _SIGNIFICANT_BYTES - 2 and len(form) >= _SIGNIFICANT_BYTES:
                needles[form] = name
    hits = []
    size = 0
    for one in recording.envelopes:
        if is_from_client(one):
            size += len(one.payload)
            hits += [name for form, name in needles.items() if form in one.payload]
    return Finding(
        name="no statistic of a site in clear",
        flagged=bool(hits),
        statistic=f"{len(hits)} of {len(needles)} encodings found" + (f"; first: {hits[0]}" if hits else ""),
        level=len(needles) * size * 2.0**-64,
        power="per-site metrics and local figures of the run, as 8-byte floats or text",
    )


# Opening


def _rows(inputs: list[Input], name: str) -> NDArray[Any]:
    """One vector of as many inputs as fit the memory, from all rounds."""
    chosen = [one.residues[name] for one in inputs if name in one.residues]
    most = max(3, _MOST_ELEMENTS // chosen[0].size)
    step = -(-len(chosen) // most)
    return np.stack(chosen[::step])


def _after_unmasking(seen: Seen, shape: RunShape, *, level: float) -> list[Finding]:
    """Take off the self masks that the clients' shares give away: inputs must still look uniform.

    In each round one input is left out: all of them together add up to the sum, which is meant to be seen.
    """
    name = "inputs stay hidden without their self masks"
    opened: dict[str, list[NDArray[Any]]] = {}
    bits: dict[str, int] = {}
    for round_id, answers in seen.shares.items():
        secrets = self_masks(seen, shape, round_id, answers)
        digests = seen.digests.get(round_id, set())
        if len(digests) != 1:
            continue
        digest = next(iter(digests))
        for one in [given for given in seen.inputs if given.round_id == round_id][:-1]:
            if one.sender not in secrets:
                continue
            for vector in shape.sent_vectors(MessageType.MASKED_INPUT):
                if vector.name not in one.residues or (shape.scheme == "ckks" and vector.modulus_bits == 60):
                    continue
                residues = one.residues[vector.name].copy()
                key = self_key(secrets[one.sender], vector, digest=digest, client=ClientId(one.sender))
                add_streams(residues, [MaskStream(key, Sign.SUBTRACT)])
                residues &= residues.dtype.type((1 << vector.modulus_bits) - 1)
                rows = opened.setdefault(vector.name, [])
                if (len(rows) + 1) * residues.size <= _MOST_ELEMENTS or len(rows) < 3:
                    rows.append(residues)
                bits[vector.name] = vector.modulus_bits
    if not opened:
        reason = "not run: no shares of self masks were recorded"
        return [Finding(name=name, flagged=False, statistic="", level=level, power=reason)]
    found: list[Finding] = []
    for vector_name, rows in opened.items():
        found += audit_updates(
            np.stack(rows), bits=bits[vector_name], level=level / len(opened), name=f"{vector_name} unmasked"
        )
    flagged = [one for one in found if one.flagged]
    worst = min((one for one in found if one.p_value is not None), key=lambda one: one.p_value or 0.0)
    return [
        from_p_value(
            name,
            worst.p_value or 0.0,
            statistic=f"{worst.name}: {worst.statistic}",
            level=max(worst.level, *(one.level for one in flagged)) if flagged else worst.level,
            power=f"{sum(len(rows) for rows in opened.values())} inputs, self masks rebuilt from the shares sent",
        )
    ]


def _opens_under_public(seen: Seen, bits: dict[str, int], *, level: float) -> Finding:
    """Use every 32-byte value that the aggregator holds as the key of a mask stream, added or subtracted."""
    name = "no input opens under a value that the aggregator holds"
    candidates = held_values(seen)
    p_values = [
        _opened_p_value(residues[:_CANDIDATE_ELEMENTS], bits[vector], MaskStream(key, sign))
        for one in seen.inputs[:: max(1, len(seen.inputs) // 4)][:4]
        for vector, residues in one.residues.items()
        if residues.size >= _LEAST_ELEMENTS
        for key in candidates
        for sign in Sign
    ]
    if not p_values:
        return Finding(
            name=name,
            flagged=False,
            statistic="",
            level=level,
            power=f"not run: inputs of fewer than {_LEAST_ELEMENTS} elements",
        )
    return from_p_value(
        name,
        min(1.0, 10 * len(p_values) * min(p_values)),
        statistic=f"smallest p-value {min(p_values):.3g} of {len(p_values)} trials, {len(candidates)} values",
        level=level,
        power="masks keyed directly with a public value, a share or a commitment",
    )


def _opened_p_value(head: NDArray[Any], bits: int, stream: MaskStream) -> float:
    """Chi-square of the four highest bits after one more mask."""
    from scipy.stats import chi2

    trial = head.copy()
    add_streams(trial, [stream])
    trial &= trial.dtype.type((1 << bits) - 1)
    width = min(4, bits)
    counts = np.bincount((trial >> trial.dtype.type(bits - width)).astype(np.int64), minlength=1 << width)
    expected = head.size / (1 << width)
    return float(chi2.sf(float(((counts - expected) ** 2).sum()) / expected, (1 << width) - 1))
