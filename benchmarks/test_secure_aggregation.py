"""Secure aggregation, part by part and as a whole; `secfl bench secagg` has the comparison with other frameworks.

Run: ``pytest benchmarks/test_secure_aggregation.py --benchmark-only``. ``extra_info`` holds ns per parameter. Every
benchmark checks what it computed.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from secfl.benchmarking.secagg import benchmark_scheme
from secfl.benchmarking.workload import Workload, benchmarked_schemes
from secfl.crypto.aggregation import Envelope
from secfl.crypto.ckks_layout import RoundLayout
from secfl.crypto.ckks_ring import CiphertextSum, Uniform, encrypt, open_sum, small_polynomial
from secfl.crypto.codec import Grid, dequantise, quantise, to_residues
from secfl.crypto.hazmat.prg import MaskStream, Sign, add_streams
from secfl.crypto.hazmat.ring_noise import RingNoise
from secfl.crypto.inputs import Accumulator, encode_vector
from secfl.crypto.packing import pack, unpack
from secfl.federation.journal import Journal, PhaseAfter
from secfl.types import AGGREGATOR, ClientId, RoundId, RoundSpec, SchemeSpec, Update, VectorSpec

PARAMETERS = 1_000_000
CLIENTS = 10
BITS = 20
VECTOR = VectorSpec(name="update", length=PARAMETERS, modulus_bits=BITS)


def per_parameter(benchmark, count=PARAMETERS):
    if benchmark.stats is not None:  # None under --benchmark-disable
        benchmark.extra_info["ns_per_parameter"] = round(benchmark.stats.stats.median / count * 1e9, 2)


@pytest.fixture(scope="module")
def real():
    generator = np.random.default_rng(1)
    values = (generator.standard_normal(PARAMETERS, dtype=np.float32) * 0.1).clip(-1, 1)
    return Update(values=values, names=("all",), sizes=(PARAMETERS,))


@pytest.fixture(scope="module")
def grid():
    return Grid.for_coordinates(PARAMETERS, coordinate_bound=1.0, value_bits=16)


@pytest.fixture(scope="module")
def residues(real, grid):
    return to_residues(quantise(real, grid).values, bits=BITS)


@pytest.mark.benchmark(group="codec")
def test_quantise(benchmark, real, grid):
    clipped = benchmark(quantise, real, grid)
    assert clipped.clipped_fraction == 0
    per_parameter(benchmark)


@pytest.mark.benchmark(group="codec")
def test_residues(benchmark, real, grid):
    clipped = quantise(real, grid)
    assert int(benchmark(to_residues, clipped.values, bits=BITS).max()) < 2**BITS
    per_parameter(benchmark)


@pytest.mark.benchmark(group="codec")
def test_dequantise(benchmark, residues, grid):
    assert benchmark(dequantise, residues, grid, bits=BITS).size == PARAMETERS
    per_parameter(benchmark)


@pytest.mark.benchmark(group="packing")
@pytest.mark.parametrize("bits", [16, 20, 22, 26, 40])
def test_pack(benchmark, residues, bits):
    values = residues & np.uint32((1 << min(bits, 32)) - 1)
    values = values.astype(np.uint64) if bits > 32 else values
    data = benchmark(pack, values, bits=bits)
    np.testing.assert_array_equal(unpack(data, length=PARAMETERS, bits=bits), values)
    per_parameter(benchmark)


@pytest.mark.benchmark(group="packing")
@pytest.mark.parametrize("bits", [16, 20, 22, 26, 40])
def test_unpack(benchmark, residues, bits):
    values = residues & np.uint32((1 << min(bits, 32)) - 1)
    values = values.astype(np.uint64) if bits > 32 else values
    data = pack(values, bits=bits)
    np.testing.assert_array_equal(benchmark(unpack, data, length=PARAMETERS, bits=bits), values)
    per_parameter(benchmark)


@pytest.mark.benchmark(group="masking")
@pytest.mark.parametrize("masks", [1, CLIENTS, 64])
def test_mask_streams(benchmark, residues, masks):
    streams = [MaskStream(bytes([place]) * 32, Sign.ADD) for place in range(masks)]
    vector = residues.copy()
    benchmark(add_streams, vector, streams)
    assert not np.array_equal(vector, residues)
    per_parameter(benchmark, PARAMETERS * masks)


@pytest.mark.benchmark(group="masking")
def test_masked_input(benchmark, residues):
    streams = [MaskStream(bytes([place]) * 32, Sign.ADD) for place in range(CLIENTS)]
    part = benchmark(encode_vector, VECTOR, residues, canaries=4, streams=streams)
    assert part.size == (PARAMETERS + 4) * BITS // 8
    per_parameter(benchmark)


@pytest.mark.benchmark(group="masking")
def test_adding_an_input(benchmark, residues):
    part = encode_vector(VECTOR, residues, canaries=4, streams=())
    data = memoryview(b"".join(part.pieces))
    sums = Accumulator((VECTOR,), canaries={"update": 4})

    def take():
        sums.check("a", data)
        assert sums.hashes(data) == part.hashes
        sums.add(data)

    benchmark(take)
    sums.reduce()
    expected = residues.astype(np.uint64) * sums.count % 2**BITS
    np.testing.assert_array_equal(sums.result()["update"], expected)
    per_parameter(benchmark)


@pytest.fixture(scope="module")
def ckks():
    layout = RoundLayout((VECTOR,), clients=CLIENTS)
    key = small_polynomial(RingNoise(bytes(32)))
    return layout, key, Uniform(b"benchmark")


@pytest.fixture(scope="module")
def ciphertext(ckks, residues):
    layout, key, uniform = ckks
    return encrypt(
        {"update": residues}, layout, uniform=uniform, key=key, noise=RingNoise(bytes(31) + b"\x01")
    )


@pytest.mark.benchmark(group="ckks")
def test_encrypt(benchmark, ckks, residues):
    layout, key, uniform = ckks
    noise = RingNoise(bytes(31) + b"\x01")
    data = benchmark(encrypt, {"update": residues}, layout, uniform=uniform, key=key, noise=noise)
    assert len(data) == layout.packed_bytes
    per_parameter(benchmark)


@pytest.mark.benchmark(group="ckks")
def test_adding_a_ciphertext(benchmark, ckks, ciphertext):
    layout, _, _ = ckks

    def take():
        total = CiphertextSum(layout)
        total.check("a", ciphertext)
        total.add("a", ciphertext)
        return total

    assert benchmark(take).count == 1
    per_parameter(benchmark)


@pytest.mark.benchmark(group="ckks")
def test_opening_the_sum(benchmark, ckks, ciphertext, residues):
    layout, key, uniform = ckks
    total = CiphertextSum(layout)
    total.add("a", ciphertext)
    sums = benchmark(open_sum, total, layout, uniforms=(uniform,), key=key)
    np.testing.assert_array_equal(sums["update"], residues)
    per_parameter(benchmark)


@pytest.mark.benchmark(group="journal")
@pytest.mark.parametrize("payload", [1_000, 1_000_000, 25_000_000])
def test_an_answer_on_the_disk(benchmark, tmp_path, payload):
    client = ClientId("a")
    spec = RoundSpec(
        run_id=bytes(16),
        round_id=RoundId(0),
        cohort=(client,),
        threshold=1,
        vectors=(VECTOR,),
        scheme=SchemeSpec(name="plain"),
        manifest_digest=bytes(32),
        model_digest=bytes(32),
        task_digest=bytes(32),
        plan_digest=bytes(32),
    )
    envelope = Envelope(client, AGGREGATOR, bytes(payload))
    with Journal(tmp_path / "journal", client=client) as journal:
        journal.enter(spec)
        numbers = iter(range(10**9))

        def answer():
            number = next(numbers)
            journal.record(
                spec,
                phase=f"phase {number}",
                request=hashlib.sha256(b"%d" % number).digest(),
                envelopes=[envelope],
                snapshot=bytes(32),
                after=PhaseAfter.CLOSED,
            )

        benchmark.pedantic(answer, rounds=5)
        assert journal.stored(spec, hashlib.sha256(b"0").digest()) == [envelope]


@pytest.mark.benchmark(group="whole round")
@pytest.mark.parametrize(("key_mode", "scheme"), benchmarked_schemes(["plain", "masking", "ckks"]))
def test_a_whole_round(benchmark, key_mode, scheme):
    workload = Workload(parameters=100_000, clients=CLIENTS, repeats=1)
    row = benchmark.pedantic(
        benchmark_scheme, args=(workload, scheme), kwargs={"key_mode": key_mode}, rounds=1
    )
    assert row.exact
    benchmark.extra_info |= {name: value for name, value in row.to_json().items() if "per_param" in name}
