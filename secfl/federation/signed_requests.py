"""Requests under the coordinator's key: a site whose manifest names a coordinator answers nobody else.

Without it a site believes whoever can put messages on the engine's link: at worst a malicious aggregator, against whom
the protocol and the site's own counting hold anyway, but one that can bind the site to a run that nobody wanted, or use
up its attempts. ``b"SFS1"``, the run (16 bytes), a signature (64), the request.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Final

from secfl.crypto.identity import SIGNATURE_BYTES, Directory, Identity
from secfl.errors import RemoteProtocolError
from secfl.federation.exchange import Exchange
from secfl.types import AGGREGATOR, ClientId

__all__ = ["SigningExchange", "open_request", "sign_request"]

_MAGIC: Final = b"SFS1"
_RUN: Final = 16
_HEAD: Final = len(_MAGIC) + _RUN + SIGNATURE_BYTES
_PURPOSE: Final = b"request"


def sign_request(coordinator: Identity, request: bytes, *, site: ClientId, run_id: bytes) -> bytes:
    """The request for this site in this run, signed."""
    return _signed(coordinator, request, hashlib.sha256(request).digest(), site=site, run_id=run_id)


def open_request(data: bytes, *, coordinator: tuple[ClientId, bytes], site: ClientId) -> tuple[bytes, bytes]:
    """The run and the request, which nothing has parsed yet.

    Args:
        data: What came.
        coordinator: Its name and public key, from the manifest.
        site: Who it must be for.

    Raises:
        RemoteProtocolError: It is not signed, or not by this coordinator for this site.
    """
    name, key = coordinator
    if len(data) < _HEAD or data[: len(_MAGIC)] != _MAGIC:
        raise RemoteProtocolError(AGGREGATOR, f"sent a request that {name} has not signed")
    run_id = data[len(_MAGIC) : len(_MAGIC) + _RUN]
    signature, request = data[len(_MAGIC) + _RUN : _HEAD], data[_HEAD:]
    try:
        Directory({name: key}).verify(
            name, signature, _PURPOSE, run_id, site.encode(), hashlib.sha256(request).digest()
        )
    except RemoteProtocolError:
        raise RemoteProtocolError(
            AGGREGATOR, f"sent a request that {name} has not signed for {site}"
        ) from None
    return run_id, request


class SigningExchange:
    """Signs what goes through another exchange; an `secfl.federation.exchange.Exchange`.

    Args:
        inner: Carries the requests.
        coordinator: The coordinator's name and key.
        run_id: The run.
    """

    def __init__(self, inner: Exchange, coordinator: Identity, *, run_id: bytes) -> None:
        self._inner = inner
        self._coordinator = coordinator
        self._run_id = run_id

    def gather(self) -> None:
        """See `secfl.federation.exchange.Exchange`."""
        self._inner.gather()

    def exchange(
        self, requests: Mapping[ClientId, bytes], *, seconds: float
    ) -> Iterator[tuple[ClientId, bytes]]:
        """See `secfl.federation.exchange.Exchange`; an offer is the same bytes for all sites and is hashed once."""
        digests = {request: hashlib.sha256(request).digest() for request in set(requests.values())}
        signed = {
            name: _signed(self._coordinator, request, digests[request], site=name, run_id=self._run_id)
            for name, request in requests.items()
        }
        yield from self._inner.exchange(signed, seconds=seconds)


def _signed(coordinator: Identity, request: bytes, digest: bytes, *, site: ClientId, run_id: bytes) -> bytes:
    signature = coordinator.sign(_PURPOSE, run_id, site.encode(), digest)
    return _MAGIC + run_id + signature + request
