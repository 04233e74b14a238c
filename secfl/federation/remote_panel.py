"""Sites at the other end of an exchange co-sign the ledger: two questions to each, put to all at the same time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from secfl.errors import RemoteProtocolError
from secfl.federation.exchange import Exchange
from secfl.federation.request_codec import decode_reply, encode
from secfl.federation.requests import (
    AskWitness,
    CoSign,
    Declined,
    Failed,
    Refused,
    Request,
    Signature,
    WitnessAt,
)
from secfl.ledger.checkpoints import Checkpoint
from secfl.types import ClientId, RoundId

__all__ = ["RemotePanel"]

_LEAST_SECONDS = 60.0


class RemotePanel:
    """The sites' side of the ledger's checkpoints; a `secfl.ledger.checkpoints.Panel`.

    Args:
        names: The sites.
        exchange: How to reach them.
        run_id: The run, 16 bytes.
        most_bytes: Larger replies are refused unread.
        seconds: How long all of them are waited for, each time; at least a minute.
    """

    def __init__(
        self,
        names: Sequence[ClientId],
        *,
        exchange: Exchange,
        run_id: bytes,
        most_bytes: int,
        seconds: float = _LEAST_SECONDS,
    ) -> None:
        self._names = tuple(names)
        self._exchange = exchange
        self._run_id = run_id
        self._most_bytes = most_bytes
        self._seconds = max(seconds, _LEAST_SECONDS)

    def sizes(self) -> Mapping[ClientId, int]:
        """See `secfl.ledger.checkpoints.Panel.sizes`; a site that says something else cannot be reached."""
        replies = self._ask(dict.fromkeys(self._names, AskWitness(run_id=self._run_id)), WitnessAt)
        return {name: reply.size for name, reply in replies.items() if isinstance(reply, WitnessAt)}

    def co_sign(
        self, proposal: Checkpoint, proofs: Mapping[ClientId, Sequence[bytes]]
    ) -> Mapping[ClientId, bytes]:
        """See `secfl.ledger.checkpoints.Panel.co_sign`; who says nothing in time has no signature."""
        requests = {
            name: CoSign(checkpoint=proposal, proof=tuple(proofs.get(name, ()))) for name in proposal.signers
        }
        replies = self._ask(requests, Signature)
        signatures: dict[ClientId, bytes] = {}
        for name in proposal.signers:
            reply = replies.get(name)
            if reply is None:
                continue
            if not isinstance(reply, Signature):
                raise RemoteProtocolError(name, f"does not sign the ledger: {reply.reason}")
            signatures[name] = reply.value
        return signatures

    def _ask(
        self, requests: Mapping[ClientId, Request], wanted: type[WitnessAt | Signature]
    ) -> dict[ClientId, WitnessAt | Signature | Refused | Failed | Declined]:
        """The first reply of each site that answers this question; others are late, or are no replies."""
        found: dict[ClientId, WitnessAt | Signature | Refused | Failed | Declined] = {}
        asked = {name: encode(request) for name, request in requests.items()}
        for name, data in self._exchange.exchange(asked, seconds=self._seconds):
            if name not in requests or name in found:
                continue
            try:
                reply = decode_reply(data, peer=name, most_bytes=self._most_bytes)
            except RemoteProtocolError as error:
                found[name] = Refused(round_id=RoundId(0), reason=error.reason)
                continue
            if isinstance(reply, Refused | Failed | Declined) and reply.round_id:
                continue  # late: it is about a round, and these questions are about none
            if isinstance(reply, wanted | Refused | Failed | Declined):
                found[name] = reply
            if len(found) == len(requests):
                break
        return found
