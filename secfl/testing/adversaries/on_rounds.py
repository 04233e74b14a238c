"""Attacks on what a round is bound to: its model and task, other rounds, restarts, and the numbers that go in."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from secfl.crypto import wire
from secfl.crypto.aggregation import Party
from secfl.crypto.attachments import Words
from secfl.crypto.codec import Grid, quantise
from secfl.crypto.inputs import Accumulator
from secfl.crypto.masking import Masking
from secfl.crypto.wire import MessageType, Phase, Roster
from secfl.dp.noise import NoiseFamily, integer_sampler
from secfl.errors import DataError, LocalProtocolError
from secfl.federation.journal import Journal
from secfl.federation.journaled_party import JournaledParty
from secfl.federation.offer import RoundOffer, RoundTerms
from secfl.federation.snapshot_vault import SnapshotVault
from secfl.randomness import InsecureSeededRng
from secfl.testing.adversaries.attacks import Attack, Guard, Outcome, learned, refused
from secfl.testing.adversaries.masking_view import MaliciousAggregator
from secfl.testing.adversaries.on_masking import ask_for_both_secrets, attacker_on
from secfl.testing.stage import Cast, Stage, same_sums
from secfl.types import ClientId, PrivatizedUpdate, RoundId, RoundSpec, SchemeSpec, Update

__all__ = ["ATTACKS"]

_MASKING = SchemeSpec(name="masking")
_GRID = Grid.for_coordinates(5, coordinate_bound=1.0, value_bits=12)


# Different models, different tasks


def _spec_of(cast: Cast, *, learning_rate: float, model: float) -> RoundSpec:
    """The round as a client computes it from the task that it runs and the model that it was given."""
    terms = RoundTerms(
        grid=_GRID,
        bits=16,
        weighting=None,
        task_digest=hashlib.sha256(f"learning rate {learning_rate}".encode()).digest(),
        plan_digest=bytes(32),
    )
    offer = RoundOffer(
        run_id=cast.spec.run_id,
        round_id=cast.spec.round_id,
        round_index=0,
        cohort=cast.cohort,
        threshold=cast.spec.threshold,
        scheme=_MASKING,
        state={"weight": np.full(5, model, np.float32)},
    )
    return offer.specification(terms, cast.directory)


def _isolate(guard: Guard, *, others: Mapping[str, float]) -> Outcome:
    """All but one client are given a task or a model that makes their updates zero."""
    cast = Cast.make(Masking(threads=1), _MASKING, clients=4, threshold=3)
    victim, *rest = cast.cohort
    zeros: dict[ClientId, Mapping[str, Words]] = {name: {"update": np.zeros(5, np.uint32)} for name in rest}
    cast = cast.with_inputs({victim: cast.inputs[victim], **zeros})
    honest = {"learning_rate": 0.1, "model": 1.0}
    specs = {
        name: _spec_of(cast, **(honest | (dict(others) if name in rest else {}))) for name in cast.cohort
    }
    if guard is Guard.REMOVED:  # every client believes the digest that the aggregator names
        specs = dict.fromkeys(cast.cohort, specs[rest[0]])
    rng = InsecureSeededRng(1)
    parties = {name: replace(cast, spec=specs[name]).client(name, rng.fork(name)) for name in cast.cohort}
    common = replace(cast, spec=specs[rest[0]])
    stage = Stage(common, rng=rng, parties=parties)
    result = stage.play()
    assert result is not None
    if victim in result.survivors:
        assert same_sums(result, common.expected([victim]))
        return learned("one client's update: the sum with three times nothing")
    return refused(next(refusal.error for refusal in stage.refusals if refusal.envelope.sender == victim))


def _another_model(guard: Guard) -> Outcome:
    return _isolate(guard, others={"model": 0.0})


def _another_task(guard: Guard) -> Outcome:
    return _isolate(guard, others={"learning_rate": 0.0})


# Another round


def _another_round(guard: Guard) -> Outcome:
    """Show a client the others' keys of an earlier round, whose private halves may have leaked since."""

    def unbound(phase: Phase, _: bytes, sender: ClientId, body: bytes) -> tuple[bytes, ...]:
        return (b"round/" + phase.encode(), sender.encode(), body)

    with contextlib.ExitStack() as without:
        if guard is Guard.REMOVED:
            without.enter_context(patch.object(wire, "_statement", unbound))
        earlier = attacker_on(Masking(threads=1))
        earlier.start()
        cast = earlier.cast.with_spec(round_id=RoundId(earlier.cast.spec.round_id + 1))
        rng = InsecureSeededRng(2)
        now = MaliciousAggregator(cast, {name: cast.client(name, rng.fork(name)) for name in cast.cohort})
        now.start()
        keys = now.statements[Phase.ADVERTISE]
        stale = earlier.statements[Phase.ADVERTISE] | {0: keys[0]}
        now.ask(0, MessageType.DIRECTORY, Roster(stale).encode())
    if 0 in now.parcels:
        return learned("a client's shares, sealed to keys of an earlier round")
    return refused(now.refusals[0])


# Restarts


@contextlib.contextmanager
def _journals(cast: Cast) -> Iterator[dict[ClientId, tuple[Journal, SnapshotVault]]]:
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        kept = {}
        for name in cast.cohort:
            journal = stack.enter_context(Journal(folder / f"{name}.journal", client=name))
            kept[name] = journal, SnapshotVault(folder / name, client=name, key=bytes(32))
        yield kept


def _enter(
    cast: Cast, name: ClientId, journal: Journal, vault: SnapshotVault, update: PrivatizedUpdate | None = None
) -> JournaledParty:
    contribution = PrivatizedUpdate.without_noise(cast.inputs[name]) if update is None else update
    return JournaledParty.enter(
        cast.scheme,
        cast.spec,
        cast.identities[name],
        directory=cast.directory,
        draw_update=lambda: contribution,
        rng=InsecureSeededRng(1).fork(name),
        journal=journal,
        vault=vault,
    )


def _rollback(guard: Guard) -> Outcome:
    """Put the others back to before they confirmed the survivors, and ask with the victim dropped."""
    cast = Cast.make(Masking(threads=1), _MASKING, clients=4, threshold=3)
    with _journals(cast) as journals:
        parties: dict[ClientId, Party]
        if guard is Guard.REMOVED:
            rng = InsecureSeededRng(1)
            parties = {name: cast.client(name, rng.fork(name)) for name in cast.cohort}
        else:
            parties = {name: _enter(cast, name, *journals[name]) for name in cast.cohort}
        attacker = MaliciousAggregator(cast, parties)
        attacker.collect_inputs()
        others = cast.cohort[1:]
        snapshots = {name: parties[name].snapshot() for name in others}

        def restored(name: ClientId) -> Party:
            if guard is Guard.REMOVED:
                return cast.restore(snapshots[name])
            journal, vault = journals[name]
            return JournaledParty.restore(
                cast.scheme,
                cast.spec,
                directory=cast.directory,
                journal=journal,
                vault=vault,
                snapshot=snapshots[name],
            )

        return ask_for_both_secrets(attacker, in_between=lambda: {name: restored(name) for name in others})


def _retry(guard: Guard) -> Outcome:
    """Have a client train again and answer again in the same round, under the masks of the first time."""
    cast = Cast.make(Masking(threads=1), _MASKING, clients=3, threshold=3)
    victim = cast.cohort[0]
    second = {name: words ^ words.dtype.type(1) for name, words in cast.inputs[victim].items()}
    attacker = MaliciousAggregator(cast, {})
    with _journals(cast) as journals:
        if guard is Guard.IN_PLACE:
            _enter(cast, victim, *journals[victim])
            try:
                _enter(cast, victim, *journals[victim], update=PrivatizedUpdate.without_noise(second))
            except LocalProtocolError as error:
                return refused(error)
    rng = InsecureSeededRng(1)
    attacker.clients = {name: cast.client(name, rng.fork(name)) for name in cast.cohort}
    attacker.start()
    for index in attacker.everybody:
        attacker.show_directory(index, attacker.everybody)
    again: Any = cast.restore(attacker.clients[victim].snapshot())
    again._memory.inputs = second  # noqa: SLF001 - what a client without a journal does
    words = []
    for party in (attacker.clients[victim], again):
        attacker.clients[victim] = party
        attacker.show_members(0, attacker.everybody)
        words.append(_words(attacker, 0))
    difference = (words[0] - words[1]) & np.uint32(0xFFFF)
    truth = (cast.inputs[victim]["update"] - second["update"]) & np.uint32(0xFFFF)
    assert (difference == truth).all()
    return learned("the difference of a client's two updates, from its two masked inputs")


def _words(attacker: MaliciousAggregator, index: int) -> Words:
    """The elements of a masked input, masks and all."""
    masked = attacker.masked
    sums = Accumulator(
        masked.vectors, canaries={vector.name: masked.canaries(vector) for vector in masked.vectors}
    )
    sums.add(memoryview(attacker.inputs[index]))
    sums.reduce()
    return sums.result()["update"]


def _noise_again(guard: Guard) -> Outcome:
    """Have a client enter a round again and again, and average its noise away."""
    cast = Cast.make(Masking(threads=1), _MASKING, clients=3, threshold=3)
    name, tries, sigma = cast.cohort[0], 400, 20.0
    sampler, rng = integer_sampler(NoiseFamily.DISCRETE_GAUSSIAN, sigma), InsecureSeededRng(5)
    drawn: list[int] = []

    def draw_update() -> PrivatizedUpdate:
        drawn.append(1000 + int(sampler.draw(1, rng)[0]))
        return PrivatizedUpdate.without_noise({"update": np.full(5, drawn[-1], np.uint32)})

    with _journals(cast) as journals:
        journal, vault = journals[name]
        for _ in range(tries):
            if guard is Guard.REMOVED:
                draw_update()
                continue
            try:
                JournaledParty.enter(
                    cast.scheme,
                    cast.spec,
                    cast.identities[name],
                    directory=cast.directory,
                    draw_update=draw_update,
                    rng=rng,
                    journal=journal,
                    vault=vault,
                )
            except LocalProtocolError as error:
                assert len(drawn) == 1
                return refused(error)
    assert abs(float(np.mean(drawn)) - 1000) < 5 * sigma / tries**0.5
    return learned(f"an input to within {sigma / tries**0.5:.0f}, out of noise of width {sigma:.0f}")


# What goes in


def _not_a_number(guard: Guard) -> Outcome:
    """One client's NaN in a federation that rounds what it is given."""
    values = np.array([0.5, np.nan, -0.5, 0.0, 0.25], np.float32)
    update = Update(values=values, names=("encoder.weight", "encoder.bias"), sizes=(2, 3))
    if guard is Guard.REMOVED:
        with np.errstate(invalid="ignore"):
            rounded = np.rint(values * np.float32(_GRID.scale)).astype(np.int32)
        return learned(f"a coordinate of {int(rounded[1])} in everybody's sum, without a word")
    try:
        quantise(update, _GRID)
    except DataError as error:
        return refused(error)
    return learned("a NaN was taken")


ATTACKS: tuple[Attack, ...] = (
    Attack(
        name="give all but one client another model",
        line="different models",
        guard="the model digest, computed by each client from the model that it received",
        play=_another_model,
    ),
    Attack(
        name="give all but one client the learning rate 0",
        line="same model with another task",
        guard="the task digest, computed by each client from the task that it runs",
        play=_another_task,
    ),
    Attack(
        name="show a client keys of an earlier round",
        line="a request repeated for another round; replayed messages",
        guard="the round's digest in every signature",
        play=_another_round,
    ),
    Attack(
        name="roll the clients' snapshots back and ask again",
        line="an unmask or consistency request repeated after a restore from an older snapshot",
        guard="the journal",
        play=_rollback,
    ),
    Attack(
        name="have a client train and answer again in one round",
        line="a retry that reuses masks",
        guard="the journal: a round is entered once, a retry is a new round with fresh keys",
        play=_retry,
    ),
    Attack(
        name="average a client's noise away over retries of one round",
        line="a retry that reuses noise (or draws it again)",
        guard="the journal: noise is spent once in a round",
        play=_noise_again,
    ),
    Attack(
        name="contribute a NaN",
        line="NaN",
        guard="the codec",
        play=_not_a_number,
    ),
)
