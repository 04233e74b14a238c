"""Tasks for sites that misbehave in a process of their own; named by the environment, so that only one does."""

from __future__ import annotations

import os
import struct
import sys

from secfl.federation import sockets
from secfl.testing.tasks import linear_task


def _is_the_one() -> bool:
    return os.environ.get("FAULTY_SITE") in sys.argv


def announcing(config):
    """A site that announces a message of a tebibyte and begins to send it."""
    if _is_the_one():

        def send(stream, _message):
            stream._socket.sendall(struct.pack("<Q", 2**40))
            for _ in range(64):
                stream._socket.sendall(bytes(1 << 20))

        sockets._Stream.send = send
    return linear_task(config)


def flooding(config):
    """A site that answers every request by a thousand messages of a quarter of a mebibyte."""
    if _is_the_one():
        original = sockets._Stream.send

        def send(stream, message):
            for _ in range(1000):
                original(stream, bytes(1 << 18))
            original(stream, message)

        sockets._Stream.send = send
    return linear_task(config)
