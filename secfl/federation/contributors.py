"""Nothing is opened of which a single client's part could be read: the guard of a federation of unlike models.

A secure sum over one client is that client's values. Where every client has its own architecture, a "sum" of a
private block is just that, so each tensor that would be opened is listed with the clients it comes from, before
anything runs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from secfl.errors import ConfigError, RoundAborted

__all__ = ["require_contributors", "require_survivors"]


def require_contributors(contributors: Mapping[str, Collection[str]], *, least: int) -> None:
    """Refuse a configuration that would open a tensor of too few clients.

    Args:
        contributors: Every tensor that would be opened -> the clients whose values are in it.
        least: ``min_contributors``.

    Raises:
        ConfigError: Names the first such tensor and its clients.
    """
    for tensor, clients in contributors.items():
        if len(clients) < least:
            raise ConfigError(
                f"multi_model: tensor {tensor} would be opened from {len(clients)} client"
                f"{'' if len(clients) == 1 else 's'} ({', '.join(sorted(clients))}); expected at least {least} "
                "(min_contributors)"
            )


def require_survivors(name: str, survivors: Collection[str], *, least: int) -> None:
    """Refuse an opened sum of too few clients; the threshold of its round makes this impossible.

    Raises:
        RoundAborted: Fewer than ``least`` clients are in it.
    """
    if len(survivors) < least:
        raise RoundAborted(
            f"{name}: {len(survivors)} clients in the sum, fewer than min_contributors {least}"
        )
