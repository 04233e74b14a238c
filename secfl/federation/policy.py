"""A site's own policy: which runs it takes part in, whatever their coordinator says.

A policy is a TOML file of the site (`examples/policy.toml`, docs/policy.md). Before it trains, a site works out for
itself what the announced run would promise, one ε per adversary, from the numbers that it will execute; it takes
nobody's word for an ε. `secfl.federation.guard` then holds every round to what was announced.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from secfl.config import KeyMode, Scheme
from secfl.errors import ConfigError
from secfl.guarantees import Behaviour, UnitOfPrivacy, View

__all__ = ["ATTEMPTS", "POLICY_FORMAT_VERSION", "Policy", "announced_and_nothing_else", "load_policy"]

POLICY_FORMAT_VERSION = 1
ATTEMPTS = 16
"""How often one round of training may be tried; a coordinator gives up after half of them, and may be resumed once."""


class Policy(BaseModel):
    """What a site allows. Whatever is left out has the strict value.

    Attributes:
        format_version: Version of the file's format; a newer one is refused.
        units: Whose presence the run must hide.
        epsilon: Largest ε by view.
        adversary: ``malicious``: the limits hold for aggregators and clients that do not follow the protocol, too.
        colluders: How many clients may be on the aggregator's side for the limit of ``aggregator_colluders``.
        largest_delta: Largest δ.
        least_clients: Fewest clients in the cohort.
        least_threshold: Fewest survivors for which a sum is opened.
        schemes: Schemes of secure aggregation.
        key_modes: Who may hold keys, for schemes that have any.
        accept_weak: Whether ε above 20 in the aggregator's view is allowed.
        accept_non_private: Whether runs are allowed that promise nothing; limits on ε then do not count for them.
        attempts: How often one round of training may be tried, with or without noise.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    format_version: int = Field(default=POLICY_FORMAT_VERSION, ge=1)
    units: tuple[UnitOfPrivacy, ...] = Field(default=(UnitOfPrivacy.PATIENT,), min_length=1)
    epsilon: Mapping[View, float] = Field(default_factory=dict)
    adversary: Behaviour = Behaviour.MALICIOUS
    colluders: int = Field(default=1, ge=1)
    largest_delta: float = Field(default=1e-5, gt=0, lt=1)
    least_clients: int = Field(default=3, ge=1)
    least_threshold: int = Field(default=3, ge=1)
    schemes: tuple[Scheme, ...] = Field(default=(Scheme.MASKING, Scheme.CKKS), min_length=1)
    key_modes: tuple[Literal["pairwise", "sum-key", "shared"], ...] = Field(
        default=("pairwise", KeyMode.SUM_KEY.value), min_length=1
    )
    accept_weak: bool = False
    accept_non_private: bool = False
    attempts: int = Field(default=ATTEMPTS, ge=1)


def load_policy(path: Path | str) -> Policy:
    """Read a policy.

    Raises:
        ConfigError: The file cannot be read, a key is unknown, or a value is impossible; one line that names the key.
    """
    path = Path(path)
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--policy {path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ConfigError(f"--policy {path}: expected a TOML file in UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"--policy {path}: not valid TOML: {error}") from None
    try:
        policy = Policy.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"--policy {path}: {_one_line(error)}") from None
    if policy.format_version > POLICY_FORMAT_VERSION:
        raise ConfigError(
            f"--policy {path}: format_version: {policy.format_version} is newer than this secfl reads "
            f"({POLICY_FORMAT_VERSION}); upgrade secfl"
        )
    for view, limit in policy.epsilon.items():
        if limit < 0:
            raise ConfigError(f"--policy {path}: epsilon.{view.value}: {limit:g}, expected 0 or more")
    return policy


def announced_and_nothing_else(adversary: Behaviour) -> Policy:
    """Allows whatever was announced, as often as an honest coordinator needs it.

    Args:
        adversary: Against whom the announced ε is counted.
    """
    return Policy(
        units=tuple(UnitOfPrivacy),
        adversary=adversary,
        largest_delta=math.nextafter(1.0, 0.0),
        least_clients=1,
        least_threshold=1,
        schemes=tuple(Scheme),
        key_modes=("pairwise", KeyMode.SUM_KEY.value, KeyMode.SHARED.value),
        accept_weak=True,
        accept_non_private=True,
    )


def _one_line(error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"{key}: unknown key; allowed here: {', '.join(sorted(Policy.model_fields))}"
    return f"{key}: {first['msg']} (got {first['input']!r})"
