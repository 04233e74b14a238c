"""Length-prefixed messages over loopback sockets, between one coordinator and the sites' processes.

For processes of one host: the connection is neither encrypted nor meant for a network. A site proves by HMAC
over a fresh challenge that it knows the run's token, which it gets through its standard input.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import selectors
import socket
import struct
import time
from dataclasses import dataclass, field
from typing import Final

from secfl.errors import LocalProtocolError
from secfl.types import ClientId

__all__ = ["HOST", "Connection", "Hub", "connect"]

HOST: Final = "127.0.0.1"
_CHALLENGE: Final = 32
_NAME: Final = 64
_HELLO: Final = _NAME + 32
_HELLO_SECONDS: Final = 10.0
_MOST_STRANGERS: Final = 64
_BLOCK: Final = 1 << 20


@dataclass(slots=True)
class Connection:
    """One accepted socket: bytes in, bytes out, nothing blocking."""

    socket: socket.socket
    challenge: bytes
    since: float
    name: ClientId | None = None
    incoming: bytearray = field(default_factory=bytearray)
    outgoing: list[memoryview] = field(default_factory=list)


class Hub:
    """The coordinator's end: accepts sites, sends them messages, collects theirs.

    Args:
        names: Who may connect.
        token: 32 secret bytes that the sites know.
        most_bytes: A site that announces a larger message is cut off.
    """

    def __init__(self, names: tuple[ClientId, ...], *, token: bytes, most_bytes: int) -> None:
        self._names = names
        self._token = token
        self._most_bytes = most_bytes
        self._selector = selectors.DefaultSelector()
        self._listener = socket.create_server((HOST, 0), backlog=len(names) + 8)
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._strangers: list[Connection] = []
        self._by_name: dict[ClientId, Connection] = {}
        self.cut_off: dict[ClientId, str] = {}

    @property
    def port(self) -> int:
        """Where sites connect."""
        return int(self._listener.getsockname()[1])

    def connected(self, name: ClientId) -> bool:
        """Whether a site's connection stands."""
        return name in self._by_name

    def send(self, name: ClientId, message: bytes) -> bool:
        """Queue a message; false when the site is not connected."""
        connection = self._by_name.get(name)
        if connection is None:
            return False
        connection.outgoing += [memoryview(struct.pack("<Q", len(message))), memoryview(message)]
        self._watch(connection)
        return True

    def poll(self, seconds: float) -> tuple[list[tuple[ClientId, bytes]], list[ClientId]]:
        """Messages that are complete by now, and sites that have just connected."""
        messages: list[tuple[ClientId, bytes]] = []
        arrived: list[ClientId] = []
        for key, events in self._selector.select(seconds):
            if key.fileobj is self._listener:
                self._accept()
                continue
            connection: Connection = key.data
            if events & selectors.EVENT_WRITE:
                self._flush(connection)
            if events & selectors.EVENT_READ and self._fill(connection):
                if connection.name is None and self._greet(connection):
                    assert connection.name is not None
                    arrived.append(connection.name)
                if connection.name is not None:
                    messages += self._complete(connection)
        for stranger in [one for one in self._strangers if time.monotonic() - one.since > _HELLO_SECONDS]:
            self._drop(stranger)
        return messages, arrived

    def close(self) -> None:
        """Close every socket."""
        for connection in [*self._strangers, *self._by_name.values()]:
            self._drop(connection)
        self._selector.unregister(self._listener)
        self._listener.close()
        self._selector.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            accepted, _ = self._listener.accept()
            accepted.setblocking(False)
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = Connection(accepted, os.urandom(_CHALLENGE), time.monotonic())
            if len(self._strangers) >= _MOST_STRANGERS:
                accepted.close()
                return
            self._strangers.append(connection)
            connection.outgoing.append(memoryview(connection.challenge))
            self._selector.register(accepted, selectors.EVENT_READ | selectors.EVENT_WRITE, connection)

    def _greet(self, connection: Connection) -> bool:
        """Whether a stranger has proved to be a site of this run."""
        if len(connection.incoming) < _HELLO:
            return False
        name = bytes(connection.incoming[:_NAME]).rstrip(b"\0").decode("ascii", "replace")
        proof = bytes(connection.incoming[_NAME:_HELLO])
        expected = _proof(self._token, connection.challenge, name)
        if ClientId(name) not in self._names or not hmac.compare_digest(proof, expected):
            self._drop(connection)
            return False
        del connection.incoming[:_HELLO]
        known = self._by_name.get(ClientId(name))
        if known is not None:  # a restarted site; the old connection is dead or about to be
            self._drop(known)
        self._strangers.remove(connection)
        connection.name = ClientId(name)
        self._by_name[connection.name] = connection
        return True

    def _fill(self, connection: Connection) -> bool:
        """Read what is there; false when the connection is gone."""
        try:
            data = connection.socket.recv(_BLOCK)
        except (BlockingIOError, InterruptedError):
            return True
        except OSError:
            data = b""
        if not data:
            self._drop(connection)
            return False
        connection.incoming += data
        if connection.name is None and len(connection.incoming) > _HELLO + _BLOCK:
            self._drop(connection)
            return False
        return True

    def _complete(self, connection: Connection) -> list[tuple[ClientId, bytes]]:
        assert connection.name is not None
        messages = []
        while len(connection.incoming) >= 8:
            (size,) = struct.unpack_from("<Q", connection.incoming)
            if size > self._most_bytes:
                self.cut_off[connection.name] = (
                    f"announced a message of {size} bytes, expected at most {self._most_bytes}"
                )
                self._drop(connection)
                break
            if len(connection.incoming) < 8 + size:
                break
            messages.append((connection.name, bytes(connection.incoming[8 : 8 + size])))
            del connection.incoming[: 8 + size]
        return messages

    def _flush(self, connection: Connection) -> None:
        try:
            while connection.outgoing:
                sent = connection.socket.send(connection.outgoing[0][:_BLOCK])
                connection.outgoing[0] = connection.outgoing[0][sent:]
                if not connection.outgoing[0]:
                    del connection.outgoing[0]
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._drop(connection)
            return
        self._watch(connection)

    def _watch(self, connection: Connection) -> None:
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.outgoing else 0)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.modify(connection.socket, events, connection)

    def _drop(self, connection: Connection) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(connection.socket)
        connection.socket.close()
        if connection in self._strangers:
            self._strangers.remove(connection)
        if connection.name is not None and self._by_name.get(connection.name) is connection:
            del self._by_name[connection.name]


class _Stream:
    """The site's end: whole messages, blocking."""

    def __init__(self, connected: socket.socket, *, most_bytes: int) -> None:
        self._socket = connected
        self._most_bytes = most_bytes

    def receive(self) -> bytes | None:
        """The next message; ``None`` when the coordinator is gone."""
        head = self._take(8)
        if head is None:
            return None
        (size,) = struct.unpack("<Q", head)
        if size > self._most_bytes:
            raise LocalProtocolError(f"the coordinator announced a message of {size} bytes")
        return self._take(size)

    def send(self, message: bytes) -> None:
        """Send one message."""
        self._socket.sendall(struct.pack("<Q", len(message)))
        self._socket.sendall(message)

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def _take(self, size: int) -> bytes | None:
        data = bytearray(size)
        view, have = memoryview(data), 0
        while have < size:
            count = self._socket.recv_into(view[have:])
            if not count:
                return None
            have += count
        return bytes(data)


def connect(port: int, *, name: ClientId, token: bytes, most_bytes: int) -> _Stream:
    """Connect a site to its coordinator on this host.

    Raises:
        ConnectionError: The coordinator hung up, or cannot be reached.
        OSError: Nobody listens.
    """
    connected = socket.create_connection((HOST, port), timeout=_HELLO_SECONDS)
    connected.settimeout(None)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    stream = _Stream(connected, most_bytes=most_bytes)
    challenge = stream._take(_CHALLENGE)  # noqa: SLF001 - before the first message there is no frame
    if challenge is None:
        raise ConnectionError("the coordinator hung up")
    connected.sendall(name.encode().ljust(_NAME, b"\0") + _proof(token, challenge, name))
    return stream


def _proof(token: bytes, challenge: bytes, name: str) -> bytes:
    return hmac.new(token, challenge + name.encode("ascii", "replace"), hashlib.sha256).digest()
