"""The schemes by name, and what a simulation needs to know about each."""

from __future__ import annotations

from secfl.config import KeyMode, Scheme, SecureAggregationConfig
from secfl.crypto.aggregation import SecureAggregation
from secfl.types import SchemeSpec

__all__ = ["key_mode_name", "scheme_for", "scheme_spec", "sends_before_input"]


def scheme_spec(config: SecureAggregationConfig) -> SchemeSpec:
    """Name and parameters as they are bound into every round."""
    if config.scheme is Scheme.CKKS:
        return SchemeSpec(name="ckks", parameters=(("key_mode", config.ckks_key.value),))
    return SchemeSpec(name=config.scheme.value)


def key_mode_name(config: SecureAggregationConfig) -> str:
    """Who holds keys, in one word."""
    match config.scheme:
        case Scheme.PLAIN:
            return "none"
        case Scheme.MASKING:
            return "pairwise"
        case Scheme.CKKS:
            return config.ckks_key.value


def scheme_for(spec: SchemeSpec) -> SecureAggregation:
    """The scheme that carries out a specification, and no other; heavy libraries load only when it needs them."""
    if spec.name == "ckks":
        from secfl.crypto.ckks import Ckks
        from secfl.crypto.ckks import KeyMode as CkksKeyMode

        return Ckks(key_mode=CkksKeyMode(spec.parameter("key_mode", CkksKeyMode.SUM_KEY.value)))
    if spec.name == "masking":
        from secfl.crypto.masking import Masking

        return Masking()
    from secfl.crypto.plain import Plain

    return Plain()


def sends_before_input(spec: SchemeSpec) -> int:
    """How many times a client speaks before it sends its input."""
    match spec.name, spec.parameter("key_mode", KeyMode.SUM_KEY.value):
        case Scheme.PLAIN, _:
            return 0
        case Scheme.CKKS, KeyMode.SHARED:
            return 1
        case _:
            return 2
