"""A site as a program: requests come in, replies go out, and nothing is lost when the process is killed.

`SiteAgent` is the client side of every engine that runs on several machines. It enters a round only on terms
that it computed itself, works on its data, and answers through a journal (docs/protocol.md, section 2): asked the
same again it repeats the same bytes, asked something else it refuses.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from secfl.crypto.aggregation import Aborted, Envelope, Finished, Running
from secfl.crypto.identity import Directory, Identity
from secfl.errors import ConfigError, LocalProtocolError, RemoteProtocolError, SecflError
from secfl.federation.attempts import AttemptsFile
from secfl.federation.checkpoint import write_atomically
from secfl.federation.failures import Reports, reply_to
from secfl.federation.guard import Guard
from secfl.federation.journal import Journal
from secfl.federation.journaled_party import JournaledParty
from secfl.federation.local_work import LocalReport, LocalWork
from secfl.federation.offer import RoundOffer, RoundTerms
from secfl.federation.request_codec import decode_request, encode
from secfl.federation.requests import (
    AskWitness,
    CoSign,
    Deliver,
    OfferRound,
    Opened,
    OpenRun,
    Reply,
    Sent,
    Signature,
    WitnessAt,
)
from secfl.federation.round_files import spec_from_json, spec_to_json
from secfl.federation.schemes import scheme_for, sends_before_input
from secfl.federation.snapshot_vault import SnapshotVault
from secfl.federation.state import count_parameters
from secfl.ledger.checkpoints import Witness
from secfl.ledger.storage import make_folder
from secfl.randomness import Rng
from secfl.segmentation.task import State
from secfl.types import AGGREGATOR, PrivatizedUpdate, RoundId, RoundSpec, SchemeSpec

__all__ = ["LocalTraining", "Reports", "SiteAgent", "SiteTerms", "largest_message", "leave_run"]

_OVERHEAD: Final = 1 << 20


def largest_message(parameters: int, clients: int) -> int:
    """No request or reply of a run is larger, bytes; an opener of shared CKKS gets everybody's ciphertext."""
    return 8 * parameters * (clients + 1) + clients * _OVERHEAD + _OVERHEAD


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteTerms:
    """What a site agreed to before the run; every round is checked against it.

    Attributes:
        run_id: The run, 16 bytes.
        directory: The enrolled keys; the cohort of every round is all of them.
        threshold: Fewest survivors.
        scheme: Scheme and parameters.
    """

    run_id: bytes
    directory: Directory
    threshold: int
    scheme: SchemeSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalTraining:
    """What a site needs to answer an offer, and for nothing else: making it may load data and libraries.

    Attributes:
        round_terms: Grid, modulus, weights, digests of task and plan.
        layout: A model with the names and shapes of the run's; its values do not matter.
        work: What the site does with its data.
        guard: Holds the run to the site's policy and to the agreed plan before anything is spent; ``None`` in tests of
            the layers below.
    """

    round_terms: RoundTerms
    layout: State = field(repr=False)
    work: LocalWork
    guard: Guard | None = None


class SiteAgent:
    """Handles one request after the other; use it from one thread, and not after `close`.

    Args:
        identity: The site's name and signing key.
        folder: Journal, sealed snapshots, the current offer and the last checkpoint; of this site alone.
        terms: What it agreed to.
        prepare: Makes what training needs; called once, when the first offer comes.
        rng: Keys and masks.
        reports: Whether figures of its own work are told.

    Raises:
        LocalProtocolError: Another process holds the folder, or the journal is damaged.
    """

    def __init__(
        self,
        identity: Identity,
        *,
        folder: Path,
        terms: SiteTerms,
        prepare: Callable[[], LocalTraining],
        rng: Rng,
        reports: Reports = Reports.NOTHING,
    ) -> None:
        try:
            make_folder(folder, mode=0o700)
        except OSError as error:
            raise LocalProtocolError(f"{folder}: cannot be made ({error.strerror})") from None
        self._identity = identity
        self._terms = terms
        self._prepare = prepare
        self._prepared: LocalTraining | None = None
        self._rng = rng
        self._reports = reports
        self._scheme = scheme_for(terms.scheme)
        self._spec_file = folder / "round.json"
        self._attempts = AttemptsFile(folder / f"attempts-{terms.run_id.hex()}.json")
        self._journal_path = folder / "journal"
        self._journal = Journal(self._journal_path, client=identity.name)
        self._vault = SnapshotVault.of_site(identity, folder, terms.run_id)
        self._vault.destroy_all_but(terms.run_id)
        self._witness = Witness(identity, run_id=terms.run_id, keep=folder / "checkpoint.json")
        self._party: JournaledParty | None = None
        self._spec: RoundSpec | None = None
        self._local: LocalReport | None = None

    def close(self) -> None:
        """Let go of the journal; another process may go on."""
        self._journal.close()

    def handle(self, request: bytes) -> bytes:
        """Reply to one request. Never raises for what came from outside, and in deployment not at all.

        An engine may tell its server the text of an error, and the text of any error may name files or patients.
        """
        number = RoundId(0)
        try:
            self._recover()
            message = decode_request(request, peer=AGGREGATOR, most_bytes=self._largest_request())
            match message:
                case OfferRound():
                    number = message.round_id
                    reply: Reply = self._enter(message)
                case Deliver():
                    number = message.round_id
                    reply = self._deliver(message)
                case AskWitness():
                    self._check_run(message.run_id)
                    reply = WitnessAt(size=self._witness.last_size)
                case OpenRun():
                    self._check_run(message.run_id)
                    reply = Opened(run_id=message.run_id)
                case CoSign():
                    reply = Signature(value=self._witness.co_sign(message.checkpoint, message.proof))
                    if message.checkpoint.kind == "close":
                        leave_run(self._terms.run_id, journal=self._journal, vault=self._vault)
        except (SecflError, OSError) as error:
            reply = reply_to(error, round_id=number, reports=self._reports)
        except Exception as error:  # an engine's server must not read it
            if self._reports is Reports.SIMULATION:
                raise
            # What the party in memory was doing is unknown; the journal and its snapshot are not.
            self._party, self._spec = None, None
            reply = reply_to(error, round_id=number, reports=self._reports)
        return encode(reply)

    def _recover(self) -> None:
        """After a write that the disk refused: take up what is on the disk, as a new process would."""
        if self._journal.closed:
            self._journal = Journal(self._journal_path, client=self._identity.name)
            self._party, self._spec = None, None

    def _enter(self, message: OfferRound) -> Reply:
        offer = self._read_offer(message)
        spec = offer.specification(self._training().round_terms, self._terms.directory)
        if self._spec is not None and self._spec.digest() == spec.digest() and self._party is not None:
            return self._say(self._party.start)
        try:
            self._journal.entry(spec)
        except LocalProtocolError:
            self._journal.check_enterable(spec)
            self._admit(offer)
            self._spec, self._party = spec, None
            self._party = JournaledParty.enter(
                self._scheme,
                spec,
                self._identity,
                directory=self._terms.directory,
                draw_update=lambda: self._contribute(offer, spec),
                rng=self._rng,
                journal=self._journal,
                vault=self._vault,
            )
        else:
            self._restore(spec)
        assert self._party is not None
        return self._say(self._party.start)

    def _training(self) -> LocalTraining:
        if self._prepared is None:
            self._prepared = self._prepare()
        return self._prepared

    def _largest_request(self) -> int:
        """Nothing larger is looked at: by the round that is under way, or by the site's own model."""
        if self._spec is None and self._prepared is None:
            self._spec = self._read_spec()
        if self._spec is not None:
            parameters = sum(vector.length for vector in self._spec.vectors)
        else:
            parameters = count_parameters(self._training().layout)
        return largest_message(parameters, len(self._terms.directory.keys))

    def _admit(self, offer: RoundOffer) -> None:
        """Ask the site's guard, and count the attempt on the disk before anything else is written or spent.

        Raises:
            RemoteProtocolError: It goes back to an earlier round of training, whose noise may have been less.
            PrivacyError: The site's policy or the agreed plan does not allow the attempt.
        """
        guard = self._training().guard
        if guard is None:
            return
        journaled = self._journal.last_round(offer.run_id)
        attempts = self._attempts.read(journaled=journaled)
        if offer.round_index < attempts.reached:
            raise RemoteProtocolError(
                AGGREGATOR,
                f"goes back to round {offer.round_index + 1} of training after round {attempts.reached + 1}",
            )
        # Entering this attempt closes those before it for good: what was not said in them never will be.
        before = sends_before_input(self._terms.scheme)
        unsent = {
            number for number, _ in attempts.entries if self._journal.answers(offer.run_id, number) <= before
        }
        guard.remember(attempts, unsent=unsent)
        guard.admit(offer)
        self._attempts.write(guard.attempts, journaled=journaled)

    def _contribute(self, offer: RoundOffer, spec: RoundSpec) -> PrivatizedUpdate:
        # Another process of this site goes on with the round by the specification alone.
        write_atomically(self._spec_file, spec_to_json(spec))
        contribution = self._training().work.contribute(offer, spec)
        self._local = contribution.report
        return contribution.privatized

    def _deliver(self, message: Deliver) -> Reply:
        if self._party is None or self._spec is None or self._spec.round_id != message.round_id:
            self._go_on()  # an earlier offer that came late may have called an earlier round up
        party, spec = self._party, self._spec
        if party is None or spec is None or spec.round_id != message.round_id:
            raise LocalProtocolError(f"round {message.round_id} is not the one under way here")
        name = self._identity.name

        def receive() -> list[Envelope]:
            sent: list[Envelope] = []
            for payload in message.payloads:
                sent += party.receive(Envelope(AGGREGATOR, name, payload))
            return sent

        return self._say(receive)

    def _go_on(self) -> None:
        """Take up the round that another process of this site had entered."""
        spec = self._read_spec()
        if spec is None:
            raise LocalProtocolError("no round is under way here")
        self._restore(spec)

    def _read_spec(self) -> RoundSpec | None:
        """The specification that this site computed when it entered the round; the journal holds its digest.

        Raises:
            LocalProtocolError: The file is damaged, or of other terms than this site has now.
        """
        try:
            spec = spec_from_json(self._spec_file.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ConfigError) as error:
            raise LocalProtocolError(f"{self._spec_file}: {error}") from None
        if spec.run_id != self._terms.run_id or spec.manifest_digest != self._terms.directory.digest():
            raise LocalProtocolError(f"{self._spec_file}: of another run or manifest than this site's")
        return spec

    def _restore(self, spec: RoundSpec) -> None:
        self._spec = spec
        self._party = JournaledParty.restore(
            self._scheme, spec, directory=self._terms.directory, journal=self._journal, vault=self._vault
        )

    def _say(self, step: Callable[[], list[Envelope]]) -> Reply:
        assert self._party is not None
        assert self._spec is not None
        began = time.perf_counter()
        sent = step()
        state = self._party.state
        if isinstance(state, Aborted):
            return reply_to(state.reason, round_id=self._spec.round_id, reports=self._reports)
        report: dict[str, float] = {}
        if self._local is not None and self._reports is Reports.SIMULATION:
            report = {
                "train_seconds": self._local.train_seconds,
                "protect_seconds": self._local.protect_seconds,
                "clipped_fraction": self._local.clipped_fraction,
            }
        self._local = None
        return Sent(
            round_id=self._spec.round_id,
            phase="end" if isinstance(state, Finished) or not isinstance(state, Running) else state.phase,
            payloads=tuple(envelope.payload for envelope in sent),
            seconds=time.perf_counter() - began if self._reports is Reports.SIMULATION else 0.0,
            report=report,
        )

    def _read_offer(self, message: OfferRound) -> RoundOffer:
        """The offer on this site's own terms.

        Raises:
            RemoteProtocolError: Another run, cohort, threshold, scheme or model than agreed.
        """
        terms = self._terms
        self._check_run(message.run_id)
        agreed = {
            "cohort": tuple(sorted(terms.directory.keys)),
            "threshold": terms.threshold,
            "scheme": terms.scheme,
        }
        for name, expected in agreed.items():
            if getattr(message, name) != expected:
                raise RemoteProtocolError(AGGREGATOR, f"offers a {name} that this site did not agree to")
        layout = self._training().layout
        wanted = count_parameters(layout)
        if message.model.size != wanted:
            raise RemoteProtocolError(
                AGGREGATOR, f"offers a model of {message.model.size} elements, expected {wanted}"
            )
        return RoundOffer(
            run_id=message.run_id,
            round_id=message.round_id,
            round_index=message.round_index,
            cohort=message.cohort,
            threshold=message.threshold,
            scheme=message.scheme,
            state=_shaped(message.model, layout),
            announced=message.announced,
        )

    def _check_run(self, run_id: bytes) -> None:
        if run_id != self._terms.run_id:
            raise RemoteProtocolError(AGGREGATOR, "asks about a run that this site did not join")


def leave_run(run_id: bytes, *, journal: Journal, vault: SnapshotVault) -> None:
    """End a run at its site: nothing is said in it any more, and the secrets of its last round are destroyed."""
    journal.finish_run(run_id)
    vault.destroy_run(run_id)


def _shaped(values: np.ndarray, layout: State) -> State:
    state, start = {}, 0
    for name, tensor in layout.items():
        state[name] = values[start : start + tensor.size].reshape(tensor.shape)
        start += tensor.size
    return state
