"""One process per site on this host: for load, for faults, and to see that nothing rests on shared memory.

Not a deployment: the coordinator starts the sites and gives them their keys. A site whose process dies is started
again, is asked again what it had not answered, and repeats from its journal what it had.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Final, Self

from secfl.errors import ConfigError
from secfl.federation.sockets import Hub
from secfl.randomness import Rng
from secfl.types import ClientId

__all__ = ["SiteProcesses"]

_TICK: Final = 0.2
_STOP_SECONDS: Final = 10.0


class SiteProcesses:
    """Starts the sites and exchanges requests with them; an `Exchange`. Use it as a context manager.

    Args:
        names: The sites.
        command: Gives the command line of a site's process, which reads the token as one hexadecimal line from
            its standard input and connects to the port.
        most_bytes: The largest message.
        rng: Source of the token.
        restarts: How often a site that died is started again, in the whole run.
    """

    def __init__(
        self,
        names: Sequence[ClientId],
        *,
        command: Callable[[ClientId, int], Sequence[str]],
        most_bytes: int,
        rng: Rng,
        restarts: int = 3,
    ) -> None:
        self._names = tuple(names)
        self._command = command
        self._token = rng.bytes(32)
        self._restarts = dict.fromkeys(self._names, restarts)
        self._hub = Hub(self._names, token=self._token, most_bytes=most_bytes)
        self._processes: dict[ClientId, subprocess.Popen[bytes]] = {}
        self._asked: dict[ClientId, bytes] = {}
        self._unanswered: dict[ClientId, int] = dict.fromkeys(self._names, 0)
        self.deaths: dict[ClientId, int] = dict.fromkeys(self._names, 0)

    def __enter__(self) -> Self:
        try:
            for name in self._names:
                self._start(name)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def pid(self, name: ClientId) -> int:
        """The process of a site, for those who want to do something to it."""
        return self._processes[name].pid

    def exchange(
        self, requests: Mapping[ClientId, bytes], *, seconds: float
    ) -> Iterator[tuple[ClientId, bytes]]:
        """See `secfl.federation.exchange.Exchange`.

        A site that is restarted in between is asked again. One that cannot come back is not waited for.
        """
        self._asked = dict(requests)
        waiting = set(requests)
        for name, request in requests.items():
            self._ask(name, request)
        end = time.monotonic() + seconds
        while waiting and time.monotonic() < end:
            messages, arrived = self._hub.poll(min(_TICK, max(0.0, end - time.monotonic())))
            for name in arrived:
                self._unanswered[name] = 0
                if name in waiting:
                    self._ask(name, self._asked[name])
            for name, message in messages:
                self._unanswered[name] -= 1
                if self._unanswered[name] <= 0:  # else it answers what an earlier deadline did not wait for
                    waiting.discard(name)
                yield name, message
            for name in self._names:
                if not self._lives(name):
                    waiting.discard(name)
        self._asked = {}

    def gather(self) -> None:
        """Nothing to wait for: `exchange` itself starts dead sites again."""

    def close(self) -> None:
        """Stop every site and close every socket."""
        self._hub.close()
        for process in self._processes.values():
            if process.poll() is None:
                process.terminate()
        for process in self._processes.values():
            try:
                process.wait(timeout=_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _ask(self, name: ClientId, request: bytes) -> None:
        if self._hub.send(name, request):
            self._unanswered[name] += 1

    def _start(self, name: ClientId) -> None:
        try:
            process = subprocess.Popen(  # noqa: S603 - the coordinator's own command, without a shell
                self._command(name, self._hub.port), stdin=subprocess.PIPE
            )
        except OSError as error:
            raise ConfigError(f"site {name}: its process does not start ({error.strerror})") from None
        self._processes[name] = process
        assert process.stdin is not None
        try:
            process.stdin.write(self._token.hex().encode() + b"\n")
            process.stdin.close()
        except BrokenPipeError:
            return  # it is dead already; `_lives` sees that

    def _lives(self, name: ClientId) -> bool:
        """Whether a site may still answer; starts it again where it died and may be restarted."""
        if name in self._hub.cut_off:
            return False
        if self._processes[name].poll() is None:
            return True
        if not self._restarts[name]:
            return self._hub.connected(name)
        self._restarts[name] -= 1
        self.deaths[name] += 1
        self._start(name)
        return True


def python_module(module: str, *arguments: str) -> list[str]:
    """The command line of a module under this interpreter."""
    return [sys.executable, "-m", module, *arguments]
