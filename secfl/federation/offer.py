"""What the aggregator announces before a round, and what each client makes of it.

A client never copies a digest: it recomputes the round's specification from the model it was given, its own task
and the terms it agreed to. An aggregator that gives one client another model or another learning rate therefore
ends up with signatures that do not verify and masks that do not cancel (docs/protocol.md, section 2).
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field

from secfl.crypto.codec import Grid
from secfl.crypto.identity import Directory
from secfl.crypto.weights import Weighting
from secfl.errors import RemoteProtocolError
from secfl.federation.drift import DriftMeter
from secfl.federation.releases import NOTHING_ANNOUNCED, Announcement, Releases
from secfl.federation.state import state_digest
from secfl.segmentation.task import State
from secfl.types import (
    AGGREGATOR,
    PROTOCOL_VERSION,
    ClientId,
    RoundId,
    RoundSpec,
    SchemeSpec,
    VectorSpec,
    join_fields,
)

__all__ = ["UPDATE_VECTOR", "RoundOffer", "RoundTerms"]

UPDATE_VECTOR = "update"
"""Name of the vector that carries the model update."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundTerms:
    """The public numbers that all clients of a run use.

    Attributes:
        grid: The grid on which updates are rounded.
        bits: Modulus width of the update vector.
        weighting: Bound on the weights, or ``None`` for equal weights.
        task_digest: SHA-256 of the settings and code that affect training.
        plan_digest: SHA-256 of the privacy plan.
        divisor: By what an opened sum is divided: a public constant (negative for gradients, so that the mean
            points downhill), or ``None`` for the number of survivors.
        releases: Clip, noise and event of every round; ``None`` without differential privacy. Where several
            private steps make up a round, they happen before the sum, and ``grid`` is not a clip's.
        drift: How the sites' squared norms are added; ``None`` where drift is not measured.
    """

    grid: Grid
    bits: int
    weighting: Weighting | None
    task_digest: bytes
    plan_digest: bytes
    divisor: float | None = None
    releases: Releases | None = None
    drift: DriftMeter | None = None

    def grid_of(self, announced: Announcement) -> Grid:
        """The grid of the vector that is summed in a round with this announcement."""
        if self.releases is None or announced.clip_norm is None:
            return self.grid
        return self.releases.grid(announced)

    def vectors(self, clients: int) -> tuple[VectorSpec, ...]:
        """The vectors of a round of so many clients."""
        update = VectorSpec(name=UPDATE_VECTOR, length=self.grid.length, modulus_bits=self.bits)
        more = [
            part.vector_spec(clients=clients) for part in (self.weighting, self.drift) if part is not None
        ]
        return (update, *more)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundOffer:
    """An invitation: the global model and who is asked.

    Attributes:
        run_id: 16 bytes.
        round_id: Rises with every attempt; keys and noise are never used for two.
        round_index: Which round of training this is, from 0; the same for each attempt at it.
        cohort: The invited clients, sorted.
        threshold: Fewest survivors.
        scheme: Scheme and parameters.
        state: The global model.
        announced: What was chosen for this round because of earlier sums.
    """

    run_id: bytes
    round_id: RoundId
    round_index: int
    cohort: tuple[ClientId, ...]
    threshold: int
    scheme: SchemeSpec
    state: State = field(repr=False)
    announced: Announcement = NOTHING_ANNOUNCED

    def specification(self, terms: RoundTerms, directory: Directory) -> RoundSpec:
        """The round as seen by a party that holds these terms and this directory.

        Raises:
            RemoteProtocolError: The offer announces what the terms do not provide for, or is for a round of training
                beyond the plan.
        """
        parts = [
            PROTOCOL_VERSION,
            b"task",
            terms.task_digest,
            struct.pack("<Q", self.round_index),
        ]
        if terms.releases is None:
            if self.announced != NOTHING_ANNOUNCED:
                raise RemoteProtocolError(
                    AGGREGATOR, "announces a clip or noise in a run without a privacy plan"
                )
            parts.append(terms.grid.encode())
        else:
            terms.releases.check(self.announced)
            terms.releases.check_round(self.round_index)
            more = terms.releases.encode(self.announced)
            parts += [terms.grid_of(self.announced).encode(), *([more] if more else [])]
        task = hashlib.sha256(join_fields(*parts)).digest()
        return RoundSpec(
            run_id=self.run_id,
            round_id=self.round_id,
            cohort=self.cohort,
            threshold=self.threshold,
            vectors=terms.vectors(len(self.cohort)),
            scheme=self.scheme,
            manifest_digest=directory.digest(),
            model_digest=state_digest(self.state),
            task_digest=task,
            plan_digest=terms.plan_digest,
        )
