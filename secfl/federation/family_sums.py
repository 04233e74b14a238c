"""The secure sums of a federation of unlike models: one of maps for all clients, one of weights for each cohort.

Here it is decided what is opened and from whom, and a configuration that would open a tensor of too few clients is
refused by the tensor's name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from secfl.config import RunConfig, check_cohort
from secfl.crypto import codec
from secfl.crypto.identity import Identity
from secfl.errors import ConfigError
from secfl.federation import evaluation
from secfl.federation.accounts import RunAccounts
from secfl.federation.contributors import require_contributors
from secfl.federation.members import Members
from secfl.federation.offer import RoundTerms
from secfl.federation.privacy import RunTerms
from secfl.federation.repeated_sum import RepeatedSum
from secfl.federation.rundir import RunDirectory
from secfl.federation.state import count_parameters
from secfl.ledger.entry import KeyCustody
from secfl.segmentation.task import LocalResult, State
from secfl.types import PROTOCOL_VERSION, client_id, join_fields

if TYPE_CHECKING:
    from secfl.segmentation.family_task import FamilyTask

__all__ = ["CONSENSUS", "SENTENCE", "Maps", "PlannedSum", "averaged_families", "open_sums", "plan_sums"]

CONSENSUS = "consensus"
"""The sum of maps, of which every client is part."""
SENTENCE = "no differential privacy: ε is null; the mean probability maps on the proxy images are opened without noise"

_BOUND_OF_MAPS = 0.5
_UNPROTECTED_MAPS = (
    "the mean class probabilities of all models on the proxy images, every round: no noise protects them, and they "
    "may tell which images the models were trained on"
)


def averaged_families(config: RunConfig, family_of: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Family -> its clients, for the families whose weights are averaged."""
    settings = config.multi_model
    cohorts: dict[str, tuple[str, ...]] = {}
    for site, family in sorted(family_of.items()):
        cohorts[family] = (*cohorts.get(family, ()), site)
    wanted = settings.average
    if wanted is None:
        wanted = tuple(family for family in cohorts if len(cohorts[family]) >= settings.min_contributors)
    return {family: cohorts[family] for family in sorted(set(wanted))}


class Maps:
    """What a client does in the sum of maps: look at the proxy images with the model that it has now.

    Args:
        tasks: By family.
        family_of: Client -> its family.
    """

    def __init__(self, tasks: Mapping[str, FamilyTask], family_of: Mapping[str, str]) -> None:
        self._tasks = tasks
        self._family_of = family_of
        self.models: dict[str, State] = {}

    def train(self, site: str, state: State, *, round_index: int) -> LocalResult:  # noqa: ARG002 - see the protocol
        """The client's maps in place of the undecided ones."""
        maps = self._tasks[self._family_of[site]].maps(self.models[site], site=site)
        return LocalResult(state={name: maps[name] for name in state}, examples=1, loss=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedSum:
    """A sum that will be opened every round: of whom, from how many, on which terms."""

    clients: tuple[str, ...]
    threshold: int
    terms: RunTerms


def plan_sums(
    config: RunConfig, tasks: Mapping[str, FamilyTask], family_of: Mapping[str, str]
) -> dict[str, PlannedSum]:
    """All sums by name, `CONSENSUS` first; nothing is written.

    Raises:
        ConfigError: Too few clients for a sum, which is named with its tensor and the clients.
    """
    settings = config.multi_model
    student = tasks[settings.student]
    state_of = {CONSENSUS: student.undecided()}
    clients = {CONSENSUS: tuple(sorted(family_of)), **averaged_families(config, family_of)}
    state_of |= {family: tasks[family].task.initial_state() for family in clients if family != CONSENSUS}
    require_contributors(
        {f"{name}/{tensor}": clients[name] for name in clients for tensor in state_of[name]},
        least=settings.min_contributors,
    )
    return {
        name: PlannedSum(
            clients=members,
            threshold=_threshold(config, len(members), name=name),
            terms=_terms(
                config,
                state_of[name],
                clients=len(members),
                digest=(student if name == CONSENSUS else tasks[name]).task.digest(),
                maps=name == CONSENSUS,
            ),
        )
        for name, members in clients.items()
    }


def open_sums(
    planned: Mapping[str, PlannedSum],
    *,
    config: RunConfig,
    run: RunDirectory,
    tasks: Mapping[str, FamilyTask],
    maps: Maps,
    resumed: bool,
    progress: Callable[[str, int, int], None],
) -> dict[str, RepeatedSum]:
    """Start the clients and the ledger of every sum, or go on with ledgers that are there."""
    identities = {identity.name: identity for identity in run.identities()}
    sums: dict[str, RepeatedSum] = {}
    for name, plan in planned.items():
        chosen = [identities[client_id(site)] for site in plan.clients]
        place = run if name == CONSENSUS else RunDirectory(run.root / "cohorts" / name.replace(":", "-"))
        unprotected = evaluation.shown(config, next(iter(tasks.values())).task, KeyCustody.ONE_PROCESS)
        if name == CONSENSUS:
            unprotected += [_UNPROTECTED_MAPS, *_declared_weights(config)]
        sums[name] = RepeatedSum(
            name,
            config=config,
            run=run,
            trainer=maps if name == CONSENSUS else tasks[name].task,
            terms=plan.terms,
            threshold=plan.threshold,
            identities=chosen,
            accounts=_accounts(place, config, plan, chosen, resumed=resumed, unprotected=unprotected),
            progress=progress,
        )
    return sums


def _declared_weights(config: RunConfig) -> tuple[str, ...]:
    """What weights of maps tell, and how much of a map one client's can be."""
    settings = config.multi_model
    if settings.weights == "equal":
        return ()
    share = settings.weight_ratio / (settings.weight_ratio + settings.min_contributors - 1)
    bound = f"one client's part of a map is at most {share:.2f} with {settings.min_contributors} clients"
    if settings.weights == "skill":
        declared = (
            "the mean over clients of how well their models segment their own training images (a power of the Dice); "
            f"{bound}; weights change from round to round, but two rounds whose survivors differ by one client tell "
            "that client's weight nearly"
        )
    else:
        declared = (
            f"the mean over clients of how typical each proxy image is of their training images; {bound}; weights "
            "are the same in every round, so two rounds whose survivors differ by one client tell the weights of that "
            "client"
        )
    return (declared,)


def _threshold(config: RunConfig, clients: int, *, name: str) -> int:
    """At least ``min_contributors``, so that drop-outs never open a sum of fewer."""
    least = config.multi_model.min_contributors
    try:
        asked = config.secure_agg.threshold if name == CONSENSUS else None
        found = check_cohort(clients, config.secure_agg.scheme, asked, config.dropout)
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from None
    if name == CONSENSUS and asked is not None and asked < least:
        raise ConfigError(f"--threshold {asked}: expected at least min_contributors ({least})")
    return max(found, least)


def _terms(config: RunConfig, state: State, *, clients: int, digest: bytes, maps: bool) -> RunTerms:
    settings = config.secure_agg
    grid = codec.Grid.for_coordinates(
        count_parameters(state),
        coordinate_bound=_BOUND_OF_MAPS if maps else settings.coordinate_bound,
        value_bits=config.multi_model.probability_bits if maps else settings.value_bits,
    )
    kind = b"maps" if maps else b"weights"
    public = config.multi_model.model_dump_json().encode()
    return RunTerms(
        round_terms=RoundTerms(
            grid=grid,
            bits=codec.required_bits(grid, clients=clients),
            weighting=None,
            task_digest=hashlib.sha256(join_fields(b"families", kind, digest, public)).digest(),
            plan_digest=hashlib.sha256(join_fields(PROTOCOL_VERSION, b"plan", b"none")).digest(),
        ),
        plan=None,
        rounds=config.training.rounds,
        non_private="no noise is added (--dp off)",
        sentence=SENTENCE,
    )


def _accounts(
    place: RunDirectory,
    config: RunConfig,
    plan: PlannedSum,
    identities: Sequence[Identity],
    *,
    resumed: bool,
    unprotected: Sequence[str],
) -> RunAccounts:
    # A run that was cut off before this ledger existed has released nothing under it.
    if resumed and place.ledger.exists():
        return RunAccounts.resume(place, plan.terms, members=Members.simulated(identities))
    place.root.mkdir(parents=True, exist_ok=True)
    return RunAccounts.create(
        place,
        config,
        plan.terms,
        members=Members.simulated(identities),
        threshold=plan.threshold,
        unprotected=unprotected,
    )
