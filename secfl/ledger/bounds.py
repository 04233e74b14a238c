"""How many colluders each scheme tolerates, worked out again from its name and sizes.

A `Guarantee` arrives from the scheme's own code. The ledger does not take its word: for schemes whose
bounds are written down (docs/protocol.md, section 3) a larger claim is refused.
"""

from __future__ import annotations

from typing import Final

from secfl.errors import PrivacyError
from secfl.guarantees import Behaviour, Guarantee, Visibility

__all__ = ["check_claims", "colluder_bound"]

_KEY_MODES: Final = {
    "plain": frozenset({"none"}),
    "masking": frozenset({"pairwise"}),
    "ckks": frozenset({"sum-key", "shared"}),
}
_CRYPTOGRAPHIC: Final = frozenset({"masking", "ckks"})
_KEPT_APART: Final = frozenset({("masking", "pairwise"), ("ckks", "sum-key")})


def colluder_bound(guarantee: Guarantee, behaviour: Behaviour, *, survivors: int) -> int:
    """Most colluders for which the aggregator still learns the sum alone; -1 when even alone it sees more.

    Never above ``survivors - 2``: with all but one of the survivors on its side, it subtracts.
    """
    claimed = guarantee.curious_colluders if behaviour is Behaviour.CURIOUS else guarantee.malicious_colluders
    known = _known_bound(guarantee, behaviour, survivors=survivors)
    if known is not None and claimed == _known_bound(guarantee, behaviour, survivors=guarantee.survivors):
        # The claim was made for the planned survivors; what is written down holds for those who were there.
        claimed = known
    return max(-1, min(claimed, survivors - 2))


def check_claims(guarantee: Guarantee) -> None:
    """Refuse a guarantee that claims more than its scheme is known to give.

    Raises:
        PrivacyError: Names the member of the guarantee.
    """
    modes = _KEY_MODES.get(guarantee.scheme)
    if modes is not None and guarantee.key_mode not in modes:
        raise PrivacyError(
            f"body.guarantee.key_mode: {guarantee.key_mode!r}, {guarantee.scheme} has {' or '.join(sorted(modes))}"
        )
    if guarantee.key_mode == "shared" and guarantee.client_with_network is not Visibility.EVERY_UPDATE:
        raise PrivacyError(
            "body.guarantee.client_with_network: a client with the shared key that taps the network sees every update"
        )
    if guarantee.scheme in _CRYPTOGRAPHIC:
        if not guarantee.assumptions:
            raise PrivacyError(
                f"body.guarantee.assumptions: {guarantee.scheme} rests on some, none are stated"
            )
        if guarantee.advantage_log2 == float("-inf"):
            raise PrivacyError(f"body.guarantee.advantage_log2: {guarantee.scheme} has one, null is stated")
    for behaviour in Behaviour:
        name = f"{behaviour.value}_colluders"
        known = _known_bound(guarantee, behaviour, survivors=guarantee.survivors)
        claimed: int = getattr(guarantee, name)
        if known is not None and claimed > known:
            raise PrivacyError(
                f"body.guarantee.{name}: {claimed}, but {guarantee.scheme} ({guarantee.key_mode}) "
                f"gives {known}"
            )


def _known_bound(guarantee: Guarantee, behaviour: Behaviour, *, survivors: int) -> int | None:
    n, t = guarantee.cohort_size, guarantee.threshold
    if guarantee.scheme == "plain":
        return -1
    if guarantee.key_mode == "shared":
        return 0 if behaviour is Behaviour.CURIOUS else -1
    if (guarantee.scheme, guarantee.key_mode) not in _KEPT_APART:
        return None
    if behaviour is Behaviour.CURIOUS:
        return max(-1, min(t - 1, survivors - 2))
    return max(-1, min(2 * t - n - 1, t - 2))
