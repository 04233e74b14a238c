"""A canary audit without envelopes: real sites, real clip and noise, integers added as every scheme adds them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secfl.audit.canary_book import Book, CanaryAudit, view_multiplier
from secfl.audit.canary_world import CanaryWorld, offer_of, watched_sites
from secfl.crypto.codec import centre
from secfl.federation.state import apply_update
from secfl.guarantees import Adversary
from secfl.randomness import Rng

__all__ = ["audit_integers"]


def audit_integers(
    world: CanaryWorld,
    *,
    secret: Rng,
    optimizer_step: Callable[[NDArray[np.float64]], NDArray[np.float64]] = lambda mean: mean,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> CanaryAudit:
    """A canary audit without envelopes: the sites' vectors are added as every scheme adds them.

    Quick enough to be repeated, for measurements of power. ε of each view is the plan's; no ledger is written.

    Args:
        world: From `prepare`.
        secret: Sampling and noise of all sites. A seeded one repeats the audit.
        optimizer_step: What the server does with the mean.
        progress: Told after every step.
    """
    sites = watched_sites(world, secret=secret)
    book, state = Book(world), world.task.initial_state()
    terms = world.terms.round_terms
    mask = np.uint64((1 << terms.bits) - 1)
    word = np.uint32 if terms.bits <= 32 else np.uint64
    for step in range(world.terms.rounds):
        offer = offer_of(world, state, step)
        unread: Any = None  # a private step does not read the round's specification
        for work in sites.values():
            work.contribute(offer, unread)
        total = sum((work.vector.astype(np.uint64) for work in sites.values()), np.uint64(0)) & mask
        opened = total.astype(word)
        book.enter([work.vector for work in sites.values()], opened)
        mean = centre(opened, bits=terms.bits) * (terms.grid.clip_norm / terms.grid.grid_norm)
        assert terms.divisor is not None
        state = apply_update(state, optimizer_step(mean / terms.divisor))
        progress(step + 1, world.terms.rounds)
    plan = world.plan

    def promised(view: Adversary) -> float | None:
        epsilon = plan.epsilon(view_multiplier(plan, view))
        return epsilon if math.isfinite(epsilon) else None

    return book.close(promised)
