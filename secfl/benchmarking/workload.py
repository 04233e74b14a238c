"""What is summed in a benchmark: public, reproducible vectors, the same for every scheme and framework."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secfl.config import KeyMode, Scheme, SecureAggregationConfig
from secfl.crypto.codec import Grid, required_bits
from secfl.crypto.identity import Directory, Identity
from secfl.errors import ConfigError
from secfl.federation.schemes import key_mode_name, scheme_spec
from secfl.randomness import ExperimentSeed, SystemRng
from secfl.types import ClientId, RoundId, RoundSpec, SchemeSpec, VectorSpec

__all__ = ["VECTOR", "Stage", "Workload", "benchmarked_schemes"]

VECTOR = "update"
_BOUND = 1.0
_SPREAD = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """How much is summed, and how.

    Attributes:
        parameters: d.
        clients: n.
        value_bits: Width of one client's integers with their sign.
        threshold: Fewest survivors; ``None`` for the scheme's default.
        dropout: Share of the clients that falls silent before each of its messages, 0 to 0.2.
        threads: Threads that a party may use.
        repeats: Timed passes.
    """

    parameters: int = 1_000_000
    clients: int = 10
    value_bits: int = 16
    threshold: int | None = None
    dropout: float = 0.0
    threads: int = 1
    repeats: int = 3

    def __post_init__(self) -> None:
        if not 1 <= self.parameters <= 2**28:
            raise ConfigError(f"--params {self.parameters}: expected 1 to {2**28}")
        if not 3 <= self.clients <= 64:
            raise ConfigError(f"--clients {self.clients}: expected 3 to 64")
        if not 0 <= self.dropout <= 0.2:
            raise ConfigError(f"--dropout {self.dropout}: expected 0 to 0.2, in each phase")
        if not 1 <= self.threads <= 64 or not 1 <= self.repeats <= 1000:
            raise ConfigError("--threads: expected 1 to 64; --repeats: expected 1 to 1000")

    @property
    def grid(self) -> Grid:
        """The codec's grid: ``value_bits`` bits a value, coordinates within ±1, no L2 clip."""
        return Grid.for_coordinates(self.parameters, coordinate_bound=_BOUND, value_bits=self.value_bits)

    @property
    def bits(self) -> int:
        """Width of the sum."""
        return required_bits(self.grid, clients=self.clients)

    def values(self, client: int) -> NDArray[np.float32]:
        """The real vector of one client: normal, spread 0.1, float32, shape ``(d,)``."""
        generator = ExperimentSeed(client).generator("benchmark")
        values = generator.standard_normal(self.parameters, dtype=np.float32)
        values *= np.float32(_SPREAD)
        return np.clip(values, -_BOUND, _BOUND, out=values)

    def drops(self) -> dict[int, int]:
        """Client -> how many messages it sends before it falls silent; for at most five messages."""
        group = int(self.clients * self.dropout)
        return {place: place // group for place in range(5 * group)} if group else {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Keys and specification of one benchmarked round."""

    spec: RoundSpec
    identities: tuple[Identity, ...]
    directory: Directory

    @classmethod
    def make(cls, workload: Workload, scheme: SchemeSpec) -> Stage:
        """Fresh keys for a round of this scheme.

        Raises:
            ConfigError: The threshold does not suit the scheme.
        """
        rng = SystemRng()
        identities = tuple(Identity.generate(f"client-{place:02d}", rng) for place in range(workload.clients))
        directory = Directory.enroll(identities)
        spec = RoundSpec(
            run_id=rng.bytes(16),
            round_id=RoundId(0),
            cohort=tuple(ClientId(identity.name) for identity in identities),
            threshold=workload.threshold or max(3, workload.clients * 2 // 3 + 1),
            vectors=(VectorSpec(name=VECTOR, length=workload.parameters, modulus_bits=workload.bits),),
            scheme=scheme,
            manifest_digest=directory.digest(),
            model_digest=bytes(32),
            task_digest=bytes(32),
            plan_digest=bytes(32),
        )
        return cls(spec=spec, identities=identities, directory=directory)


def benchmarked_schemes(names: list[str]) -> list[tuple[str, SchemeSpec]]:
    """Key mode and specification of every benchmark that the names stand for; ``ckks`` is both key modes.

    Raises:
        ConfigError: A name that is no scheme.
    """
    chosen: list[tuple[str, SchemeSpec]] = []
    for name in names:
        try:
            scheme = Scheme(name)
        except ValueError:
            known = ", ".join(one.value for one in Scheme)
            raise ConfigError(f"--schemes {name!r}: expected some of {known}") from None
        for mode in (KeyMode.SUM_KEY, KeyMode.SHARED)[: 2 if scheme is Scheme.CKKS else 1]:
            config = SecureAggregationConfig(scheme=scheme, ckks_key=mode)
            chosen.append((key_mode_name(config), scheme_spec(config)))
    return chosen
