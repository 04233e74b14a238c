"""Secure aggregation by double masking: the scheme ``masking``.

Every client adds to its input a mask of its own and, for every other client, a mask that this other client
subtracts. The aggregator sees only masked inputs. When it has them, the clients tell it, by shares, the self
masks of those who answered or the pairwise keys of those who did not, and never both; it can then take the
masks off the sum, and off nothing else.

Sources: Bonawitz et al., CCS 2017, Figure 4; Bell et al., CCS 2020, section 3 (what a malicious aggregator can
do with the choice of survivors). docs/protocol.md, section 3, is normative.
"""

from __future__ import annotations

import math
from typing import Final

from secfl.crypto.aggregation import Party
from secfl.crypto.hazmat.prg import usable_threads
from secfl.crypto.identity import Directory, Identity
from secfl.crypto.masking_aggregator import MaskingAggregator
from secfl.crypto.masking_aggregator_memory import AGGREGATOR_RECORD
from secfl.crypto.masking_client import MaskingClient
from secfl.crypto.masking_client_memory import CLIENT_RECORD
from secfl.crypto.masking_round import MaskedRound, default_threshold
from secfl.crypto.snapshots import record_kind
from secfl.errors import ConfigError, LocalProtocolError
from secfl.guarantees import Assumption, Guarantee, Visibility
from secfl.randomness import Rng
from secfl.types import PrivatizedUpdate, RoundSpec

__all__ = [
    "ADVERSARY_WORK_LOG2",
    "MASKING_ASSUMPTIONS",
    "Masking",
    "advantage_log2",
    "default_threshold",
    "masking_guarantee",
]

ADVERSARY_WORK_LOG2: Final = 64
"""log2 of the operations, spent on one round, against which `advantage_log2` is stated."""

MASKING_ASSUMPTIONS: Final = (
    Assumption(
        name="x25519-or-ml-kem-768",
        statement="X25519 or ML-KEM-768 is unbroken: pair secrets and sealed shares are hybrids of both.",
        post_quantum=True,
    ),
    Assumption(
        name="aes-256",
        statement="AES-256 in counter mode is a pseudorandom generator, and AES-256-GCM a secure AEAD.",
        post_quantum=True,
    ),
    Assumption(
        name="hkdf-sha-256",
        statement="HKDF-SHA-256 combines and derives keys as a random oracle would; SHA-256 has no collisions.",
        post_quantum=True,
    ),
    Assumption(
        name="ed25519-at-run-time",
        statement=(
            "Nobody forges an Ed25519 signature while the round runs. It carries authenticity, not secrecy: a "
            "quantum computer that is built later gains nothing from recordings."
        ),
        post_quantum=True,
    ),
    Assumption(
        name="authenticated-manifest",
        statement=(
            "Every client pinned the true manifest of identities before the run, not through the aggregator."
        ),
        post_quantum=True,
    ),
    Assumption(
        name="honest-quorum",
        statement=(
            "Apart from the stated number of colluders, clients follow the protocol; against a malicious "
            "aggregator at least t of them do."
        ),
        post_quantum=True,
    ),
    Assumption(
        name="host-not-rolled-back",
        statement=(
            "No honest client's host is set back to an earlier state together with its journal; one that is "
            "counts as a colluder."
        ),
        post_quantum=True,
    ),
)


def advantage_log2(masked: MaskedRound) -> float:
    """A conservative bound on the summed distinguishing advantage of one round, as log2.

    For an adversary that spends at most W = 2^64 operations on the round, the hybrid argument replaces, one
    after the other, with n clients, P = n(n-1)/2 pairs and V vectors:

    * P pair secrets and n(n-1) sealed boxes: the hybrid KEM of each, and the KDF or cipher that it keys,
      2·(P + n(n-1)) instances of at least 128 bits: W/2^128 each;
    * the values derived from roots, self-mask seeds and shares: at most 8 a client (keys and commitments),
      2n(n-1) commitments to shares and (P + n)·V mask keys: W/2^128 each;
    * n escrows under AES-256-GCM: W/2^128 each;
    * (P + n)·V mask streams of B blocks: W/2^256 each, and B^2/2^129 for AES being a permutation.

    It covers confidentiality only. Integrity (canaries, 2^-64 a vector; signatures) does not enter δ.
    """
    clients = len(masked.spec.cohort)
    pairs = clients * (clients - 1) // 2
    streams = (pairs + clients) * len(masked.vectors)
    agreed = 2 * (pairs + 2 * pairs)
    derived = 8 * clients + 4 * pairs + streams
    instances = agreed + derived + clients
    total = instances * 2.0 ** (ADVERSARY_WORK_LOG2 - 128)
    for vector in masked.vectors:
        blocks = masked.masked_length(vector) * vector.dtype.itemsize / 16 + 1
        total += (pairs + clients) * (2.0 ** (ADVERSARY_WORK_LOG2 - 256) + blocks**2 * 2.0**-129)
    return math.log2(total)


def masking_guarantee(masked: MaskedRound, *, survivors: int, scheme: str, key_mode: str) -> Guarantee:
    """What masking promises for a round in which ``survivors`` inputs are summed.

    Raises:
        LocalProtocolError: ``survivors`` is below the threshold or above the cohort.
    """
    clients, threshold = len(masked.spec.cohort), masked.spec.threshold
    if not threshold <= survivors <= clients:
        raise LocalProtocolError(
            f"{survivors} survivors, expected from the threshold {threshold} to the cohort's {clients}"
        )
    return Guarantee(
        scheme=scheme,
        key_mode=key_mode,
        cohort_size=clients,
        survivors=survivors,
        threshold=threshold,
        curious_colluders=min(threshold - 1, survivors - 2),
        malicious_colluders=min(2 * threshold - clients - 1, threshold - 2),
        network_sees=Visibility.SUM,
        client_with_network=Visibility.SUM,
        assumptions=MASKING_ASSUMPTIONS,
        advantage_log2=advantage_log2(masked),
        notes=(
            (
                "Ed25519 is not post-quantum: the post-quantum statement is about confidentiality, also of "
                "recordings, and not about who could take part in a round that runs when Ed25519 is broken."
            ),
            (
                "The aggregator chooses the survivors: sums of several rounds with different survivors can be "
                "subtracted from each other."
            ),
            "A lying aggregator or client can spoil the sum; canaries find wrong masks, not wrong inputs.",
            f"The cryptographic advantage is stated against 2^{ADVERSARY_WORK_LOG2} operations a round.",
        ),
    )


class Masking:
    """The scheme ``masking``.

    Transcripts are not reproducible from a seed, because KEM encapsulation and sealing take their randomness
    from OpenSSL; the sums are.

    Args:
        minimum: The client's own least number of members and survivors, where it wants more than the
            round's threshold.
        threads: How many threads expand masks and add inputs; by default the cores at hand, at most 4.
    """

    __slots__ = ("_minimum", "_threads")

    def __init__(self, *, minimum: int = 0, threads: int | None = None) -> None:
        self._minimum = minimum
        self._threads = usable_threads() if threads is None else threads

    @property
    def name(self) -> str:
        """``masking``."""
        return "masking"

    def client(
        self, spec: RoundSpec, identity: Identity, *, directory: Directory, update: PrivatizedUpdate, rng: Rng
    ) -> Party:
        """The client's party; see `SecureAggregation.client` and `MaskingClient.create`."""
        return MaskingClient.create(
            self._round(spec),
            identity,
            directory=directory,
            vectors=update.vectors,
            rng=rng,
            minimum=self._minimum,
            threads=self._threads,
        )

    def aggregator(self, spec: RoundSpec, *, directory: Directory) -> Party:
        """The aggregator's party; see `SecureAggregation.aggregator`."""
        return MaskingAggregator.create(self._round(spec), directory=directory, threads=self._threads)

    def restore(self, spec: RoundSpec, *, directory: Directory, snapshot: bytes) -> Party:
        """Continue a party; see `SecureAggregation.restore`."""
        masked = self._round(spec)
        kind = record_kind(snapshot)
        if kind == CLIENT_RECORD:
            return MaskingClient.restore(
                masked, directory=directory, snapshot=snapshot, threads=self._threads
            )
        if kind == AGGREGATOR_RECORD:
            return MaskingAggregator.restore(
                masked, directory=directory, snapshot=snapshot, threads=self._threads
            )
        raise LocalProtocolError("snapshot: not one of a party of masking")

    def guarantee(self, spec: RoundSpec, *, survivors: int) -> Guarantee:
        """What each adversary sees; see `masking_guarantee`."""
        return masking_guarantee(
            self._round(spec), survivors=survivors, scheme=self.name, key_mode="pairwise"
        )

    def _round(self, spec: RoundSpec) -> MaskedRound:
        if spec.scheme.name != self.name:
            raise ConfigError(f"the round's scheme is {spec.scheme.name!r}, expected {self.name!r}")
        return MaskedRound(spec=spec, vectors=spec.vectors)
