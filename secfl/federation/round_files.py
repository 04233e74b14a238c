"""A round's specification as a file: public data, checked against the journal's digest by whoever uses it."""

from __future__ import annotations

import json
from typing import Any

from secfl.errors import ConfigError
from secfl.types import ClientId, RoundId, RoundSpec, SchemeSpec, VectorSpec

__all__ = ["spec_from_json", "spec_to_json"]

_DIGESTS = ("manifest_digest", "model_digest", "task_digest", "plan_digest")


def spec_to_json(spec: RoundSpec) -> bytes:
    """One JSON object."""
    document: dict[str, Any] = {
        "format_version": 1,
        "run_id": spec.run_id.hex(),
        "round_id": spec.round_id,
        "cohort": list(spec.cohort),
        "threshold": spec.threshold,
        "vectors": [[vector.name, vector.length, vector.modulus_bits] for vector in spec.vectors],
        "scheme": [spec.scheme.name, [list(pair) for pair in spec.scheme.parameters]],
    }
    document |= {name: getattr(spec, name).hex() for name in _DIGESTS}
    return json.dumps(document, sort_keys=True).encode()


def spec_from_json(data: bytes) -> RoundSpec:
    """Read `spec_to_json` back.

    Raises:
        ConfigError: Damaged, or of a newer format.
    """
    try:
        document = json.loads(data)
        if document["format_version"] > 1:
            raise ConfigError("format_version is newer than this secfl reads; upgrade secfl")
        name, parameters = document["scheme"]
        return RoundSpec(
            run_id=bytes.fromhex(document["run_id"]),
            round_id=RoundId(document["round_id"]),
            cohort=tuple(ClientId(name) for name in document["cohort"]),
            threshold=document["threshold"],
            vectors=tuple(
                VectorSpec(name=name, length=length, modulus_bits=bits)
                for name, length, bits in document["vectors"]
            ),
            scheme=SchemeSpec(name=name, parameters=tuple((key, value) for key, value in parameters)),
            **{digest: bytes.fromhex(document[digest]) for digest in _DIGESTS},
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"damaged round file ({type(error).__name__})") from None
