"""Secure aggregation with CKKS ciphertexts: the scheme ``ckks``, in two key modes.

- ``sum-key`` (the default): one-time keys, of which only the sum is ever opened (`secfl.crypto.ckks_sum_key`);
- ``shared``: one key in every client, for comparison with other frameworks (`secfl.crypto.ckks_shared_client`).

Both return exact integers, the same as ``masking`` and ``plain``. The ciphertexts, their layout and the bound that
makes them exact are in `secfl.crypto.ckks_ring` and `secfl.crypto.ckks_layout`. docs/protocol.md, section 4, is
normative.
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Final

from secfl.crypto.aggregation import Party
from secfl.crypto.ckks_shared_aggregator import AGGREGATOR_RECORD as SHARED_AGGREGATOR_RECORD
from secfl.crypto.ckks_shared_aggregator import SharedKeyAggregator
from secfl.crypto.ckks_shared_client import SharedKeyClient
from secfl.crypto.ckks_shared_client_memory import CLIENT_RECORD as SHARED_CLIENT_RECORD
from secfl.crypto.ckks_shared_messages import SharedRound
from secfl.crypto.ckks_sum_key import SumKeyRound
from secfl.crypto.hazmat.prg import usable_threads
from secfl.crypto.hazmat.ring_noise import TOTAL_VARIATION_LOG2
from secfl.crypto.hazmat.seal import DEGREE
from secfl.crypto.identity import Directory, Identity
from secfl.crypto.masking import ADVERSARY_WORK_LOG2, MASKING_ASSUMPTIONS, masking_guarantee
from secfl.crypto.masking_aggregator import MaskingAggregator
from secfl.crypto.masking_aggregator_memory import AGGREGATOR_RECORD as MASKING_AGGREGATOR_RECORD
from secfl.crypto.masking_client import MaskingClient
from secfl.crypto.masking_client_memory import CLIENT_RECORD as MASKING_CLIENT_RECORD
from secfl.crypto.snapshots import record_kind
from secfl.errors import ConfigError, LocalProtocolError
from secfl.guarantees import Assumption, Guarantee, Visibility
from secfl.randomness import Rng
from secfl.types import PrivatizedUpdate, RoundSpec

__all__ = ["RLWE", "RLWE_WITH_HINTS", "Ckks", "KeyMode"]

_RLWE_SECURITY_BITS: Final = 192

RLWE: Final = Assumption(
    name="rlwe-4096-60",
    statement=(
        "Ring-LWE is hard for N = 4096, a modulus of 60 bits, and keys and errors from the discrete Gaussian of "
        "width 4.5, with public elements expanded by AES-256 (HomomorphicEncryption.org: 192-bit level)."
    ),
    post_quantum=True,
)
RLWE_WITH_HINTS: Final = Assumption(
    name="hint-rlwe-4096-60",
    statement=(
        "Ring-LWE is hard for N = 4096, a modulus of 60 bits, and keys and errors from the discrete Gaussian of "
        "width 4.5, also when the sums of the survivors' keys and of their errors are known; two honest survivors "
        "leave each other a width of 3.18 (Hint-RLWE; HomomorphicEncryption.org: 192-bit level)."
    ),
    post_quantum=True,
)


class KeyMode(StrEnum):
    """The parameter ``key_mode`` of the scheme: who holds the decryption key."""

    SUM_KEY = "sum-key"
    SHARED = "shared"

    @classmethod
    def of(cls, spec: RoundSpec) -> KeyMode:
        """The mode that a round's specification names; ``sum-key`` when it names none.

        Raises:
            ConfigError: Another scheme's specification, or a parameter or value that CKKS does not know.
        """
        if spec.scheme.name != "ckks":
            raise ConfigError(f"the round's scheme is {spec.scheme.name!r}, expected 'ckks'")
        unknown = {name for name, _ in spec.scheme.parameters} - {"key_mode"}
        if unknown:
            raise ConfigError(f"ckks: unknown parameter {min(unknown)!r}, expected key_mode")
        value = spec.scheme.parameter("key_mode", cls.SUM_KEY.value)
        try:
            return cls(value)
        except ValueError:
            raise ConfigError(f"ckks: key_mode {value!r}, expected 'sum-key' or 'shared'") from None


class Ckks:
    """The scheme ``ckks``. The round's specification says which key mode; a client may insist on one.

    Transcripts are not reproducible from a seed, because sealing takes its randomness from OpenSSL; the sums are.

    Args:
        minimum: With ``sum-key``, the client's own least number of members and survivors, where it wants more than
            the round's threshold. Refused with ``shared``.
        key_mode: The only mode that is taken part in. By default whatever the round names, which is safe where
            the round is not proposed by the aggregator: ``shared`` protects from none that is malicious.
        threads: How many threads the masking of the key vector may use; by default the cores at hand, at most 4.
    """

    __slots__ = ("_key_mode", "_minimum", "_threads")

    def __init__(
        self, *, minimum: int = 0, key_mode: KeyMode | None = None, threads: int | None = None
    ) -> None:
        self._key_mode = key_mode
        self._minimum = minimum
        self._threads = usable_threads() if threads is None else threads

    @property
    def name(self) -> str:
        """``ckks``."""
        return "ckks"

    def client(
        self, spec: RoundSpec, identity: Identity, *, directory: Directory, update: PrivatizedUpdate, rng: Rng
    ) -> Party:
        """The client's party; see `SecureAggregation.client`. With ``sum-key`` it encrypts at once."""
        if self._mode(spec) is KeyMode.SHARED:
            if self._minimum > spec.threshold:
                raise ConfigError("ckks: a client's own minimum needs key_mode 'sum-key'")
            return SharedKeyClient.create(
                SharedRound(spec), identity, directory=directory, vectors=update.vectors, rng=rng
            )
        shape = SumKeyRound(spec)
        update.check(spec)
        keys, ciphertext = shape.protect(update.vectors, rng)
        return MaskingClient.create(
            shape.masked,
            identity,
            directory=directory,
            vectors=keys,
            rng=rng,
            attachment=ciphertext,
            minimum=self._minimum,
            threads=self._threads,
        )

    def aggregator(self, spec: RoundSpec, *, directory: Directory) -> Party:
        """The aggregator's party; see `SecureAggregation.aggregator`."""
        if self._mode(spec) is KeyMode.SHARED:
            return SharedKeyAggregator.create(SharedRound(spec), directory=directory)
        shape = SumKeyRound(spec)
        return MaskingAggregator.create(
            shape.masked, directory=directory, sink=shape.sink(), threads=self._threads
        )

    def restore(self, spec: RoundSpec, *, directory: Directory, snapshot: bytes) -> Party:
        """Continue a party; see `SecureAggregation.restore`."""
        kind, mode = record_kind(snapshot), self._mode(spec)
        match mode, kind:
            case KeyMode.SHARED, _ if kind == SHARED_CLIENT_RECORD:
                return SharedKeyClient.restore(SharedRound(spec), directory=directory, snapshot=snapshot)
            case KeyMode.SHARED, _ if kind == SHARED_AGGREGATOR_RECORD:
                return SharedKeyAggregator.restore(SharedRound(spec), directory=directory, snapshot=snapshot)
            case KeyMode.SUM_KEY, _ if kind == MASKING_CLIENT_RECORD:
                masked = SumKeyRound(spec).masked
                return MaskingClient.restore(
                    masked, directory=directory, snapshot=snapshot, threads=self._threads
                )
            case KeyMode.SUM_KEY, _ if kind == MASKING_AGGREGATOR_RECORD:
                shape = SumKeyRound(spec)
                return MaskingAggregator.restore(
                    shape.masked,
                    directory=directory,
                    snapshot=snapshot,
                    sink=shape.sink(),
                    threads=self._threads,
                )
            case _:
                raise LocalProtocolError(f"snapshot: not one of a party of ckks with {mode} key")

    def guarantee(self, spec: RoundSpec, *, survivors: int) -> Guarantee:
        """What each adversary sees: with ``sum-key`` what masking promises, with ``shared`` much less."""
        if self._mode(spec) is KeyMode.SHARED:
            return _shared_guarantee(SharedRound(spec), survivors=survivors)
        return _sum_key_guarantee(SumKeyRound(spec), survivors=survivors)

    def _mode(self, spec: RoundSpec) -> KeyMode:
        mode = KeyMode.of(spec)
        if self._key_mode not in (None, mode):
            raise ConfigError(
                f"ckks: the round has key_mode {mode.value!r}, expected {str(self._key_mode)!r}"
            )
        return mode


def _sum_key_guarantee(shape: SumKeyRound, *, survivors: int) -> Guarantee:
    base = masking_guarantee(shape.masked, survivors=survivors, scheme="ckks", key_mode=KeyMode.SUM_KEY.value)
    encryption = _encryption_advantage(len(shape.spec.cohort), shape.layout.polynomials)
    return Guarantee(
        scheme=base.scheme,
        key_mode=base.key_mode,
        cohort_size=base.cohort_size,
        survivors=base.survivors,
        threshold=base.threshold,
        curious_colluders=base.curious_colluders,
        malicious_colluders=base.malicious_colluders,
        network_sees=base.network_sees,
        client_with_network=base.client_with_network,
        assumptions=(*base.assumptions, RLWE_WITH_HINTS),
        advantage_log2=math.log2(2.0**base.advantage_log2 + encryption),
        notes=(
            *base.notes,
            "Nobody holds a decryption key; the aggregator opens the sum of one-time keys.",
            (
                "The aggregator learns the sum of the signed values as an integer. The codec's width makes that the "
                "sum itself; for other vectors it also shows how often the sum wrapped around its modulus."
            ),
        ),
    )


def _shared_guarantee(shared: SharedRound, *, survivors: int) -> Guarantee:
    clients, threshold = len(shared.spec.cohort), shared.spec.threshold
    if not threshold <= survivors <= clients:
        raise LocalProtocolError(
            f"{survivors} survivors, expected from the threshold {threshold} to the cohort's {clients}"
        )
    encryption = _encryption_advantage(clients, shared.layout.polynomials)
    sealing = clients * math.exp2(ADVERSARY_WORK_LOG2 - 128)
    return Guarantee(
        scheme="ckks",
        key_mode=KeyMode.SHARED.value,
        cohort_size=clients,
        survivors=survivors,
        threshold=threshold,
        curious_colluders=0,
        malicious_colluders=-1,
        network_sees=Visibility.SUM,
        client_with_network=Visibility.EVERY_UPDATE,
        assumptions=(*MASKING_ASSUMPTIONS, RLWE),
        advantage_log2=math.log2(encryption + sealing),
        notes=(
            (
                "Every client holds the key of the round: one client that reads the network, or that works with "
                "the aggregator, reads every update."
            ),
            "A malicious aggregator can have two openers open the sums of different survivors and subtract them.",
            "The opener returns the sum to the aggregator signed but not encrypted.",
            f"The cryptographic advantage is stated against 2^{ADVERSARY_WORK_LOG2} operations a round.",
        ),
    )


def _encryption_advantage(clients: int, polynomials: int) -> float:
    """Replacing n clients' ciphertexts by uniform ones: RLWE, the noise tables and the AES streams behind them."""
    draws = clients * (polynomials + 1) * DEGREE
    blocks = draws / 2  # of the widest stream, 8 bytes a coefficient
    instances = clients * math.exp2(ADVERSARY_WORK_LOG2 - _RLWE_SECURITY_BITS)
    return instances + draws * math.exp2(TOTAL_VARIATION_LOG2) + blocks**2 * 2.0**-129
