"""Having a log signed: who signs, and what each of them is shown."""

from __future__ import annotations

from collections.abc import Sequence

from secfl.crypto.identity import Identity
from secfl.ledger.checkpoints import Checkpoint, CoSigner, EachInTurn, Panel, Witness, signed_by
from secfl.ledger.state import LedgerState

__all__ = ["CoSigners"]


class CoSigners:
    """The signers of one ledger; an identity signs through a witness that remembers what it signed.

    Args:
        run_id: Of the ledger.
    """

    def __init__(self, run_id: bytes) -> None:
        self._run_id = run_id
        self._witnesses: dict[str, Witness] = {}

    def sign(
        self,
        state: LedgerState,
        signers: Sequence[CoSigner | Identity] | Panel,
        *,
        kind: str,
        time: str,
        reason: str,
    ) -> Checkpoint:
        """Have the log so far signed, with a proof of consistency from what each signed before.

        Who falls silent when asked to sign is left out, and the others sign again: the signers are part of what is
        signed. Who refuses stops it, because that may be a log which was set back.

        Args:
            state: Everything recorded so far.
            signers: A panel; or co-signers, or identities whose witnesses live here, asked one after the other.
            kind: ``checkpoint`` or ``close``.
            time: Of the entry.
            reason: Why the run ended; empty for a checkpoint.

        Raises:
            RemoteProtocolError: A client refuses, because it signed something that does not fit.
        """
        panel = signers
        if not isinstance(panel, Panel):
            panel = EachInTurn([self._co_signer(signer) for signer in panel])
        gone: set[str] = set()
        while True:
            sizes = {name: size for name, size in panel.sizes().items() if name not in gone}
            proposal = Checkpoint(
                kind=kind,
                run_id=self._run_id,
                size=state.size,
                root=state.tree.root(),
                time=time,
                reason=reason,
                signers=tuple(sorted(sizes)),
            )
            proofs = {
                name: state.tree.consistency_proof(size)
                for name, size in sizes.items()
                if 0 < size <= state.size
            }
            signed = signed_by(proposal, panel, proofs=proofs)
            silent = set(signed.signers) - set(signed.signatures)
            if not silent:
                return signed
            gone |= silent

    def _co_signer(self, signer: CoSigner | Identity) -> CoSigner:
        if not isinstance(signer, Identity):
            return signer
        if signer.name not in self._witnesses:
            self._witnesses[signer.name] = Witness(signer, run_id=self._run_id)
        return self._witnesses[signer.name]
