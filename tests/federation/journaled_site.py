"""One client in a process of its own, for the tests of the journal; and the round that it plays in.

Run as a script it serves one journaled party: requests come on standard input, answers go to standard output,
both length-prefixed, so that the process can be killed anywhere and started again.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from secfl.crypto.aggregation import Aborted, Envelope, Finished, Running
from secfl.crypto.identity import Directory, Identity
from secfl.errors import LocalProtocolError, RemoteProtocolError, RoundAborted
from secfl.federation.journal import Journal
from secfl.federation.journaled_party import JournaledParty
from secfl.federation.schemes import scheme_for
from secfl.federation.snapshot_vault import SnapshotVault
from secfl.randomness import InsecureSeededRng, SystemRng
from secfl.types import ClientId, PrivatizedUpdate, RoundId, RoundSpec, SchemeSpec, VectorSpec

KEY = bytes(range(32))
SCHEMES = {
    "masking": SchemeSpec(name="masking"),
    "sum-key": SchemeSpec(name="ckks", parameters=(("key_mode", "sum-key"),)),
    "shared": SchemeSpec(name="ckks", parameters=(("key_mode", "shared"),)),
    "plain": SchemeSpec(name="plain"),
}
LENGTH = 40


class Round:
    """Four clients, threshold three, the same in every process."""

    def __init__(self, scheme: str, *, round_id: int = 3) -> None:
        rng = InsecureSeededRng(11)
        self.identities = {name: Identity.generate(name, rng) for name in ("a", "b", "c", "d")}
        self.directory = Directory.enroll(self.identities.values())
        self.spec = RoundSpec(
            run_id=bytes(16),
            round_id=RoundId(round_id),
            cohort=tuple(self.identities),
            threshold=3,
            vectors=(VectorSpec(name="update", length=LENGTH, modulus_bits=20),),
            scheme=SCHEMES[scheme],
            manifest_digest=self.directory.digest(),
            model_digest=bytes(32),
            task_digest=bytes(32),
            plan_digest=bytes(32),
        )
        self.scheme = scheme_for(self.spec.scheme)

    def values(self, name: str) -> np.ndarray:
        """What a client contributes."""
        return np.arange(LENGTH, dtype=np.uint32) * np.uint32(7) + np.uint32(ord(name))

    def update(self, name: str) -> PrivatizedUpdate:
        """The same, as a scheme takes it."""
        return PrivatizedUpdate.without_noise({"update": self.values(name)})

    def total(self, names: Sequence[str]) -> np.ndarray:
        """The exact sum."""
        return sum(self.values(name).astype(np.int64) for name in names) % 2**20

    def client(self, name: str):
        """A client's party without a journal."""
        return self.scheme.client(
            self.spec,
            self.identities[name],
            directory=self.directory,
            update=self.update(name),
            rng=SystemRng(),
        )

    def aggregator(self):
        """The aggregator's party."""
        return self.scheme.aggregator(self.spec, directory=self.directory)

    def enter(self, name: str, journal: Journal, vault: SnapshotVault, *, draw=None) -> JournaledParty:
        """A client's journaled party, new in the round."""
        return JournaledParty.enter(
            self.scheme,
            self.spec,
            self.identities[name],
            directory=self.directory,
            draw_update=draw or (lambda: self.update(name)),
            rng=SystemRng(),
            journal=journal,
            vault=vault,
        )

    def restore(self, journal: Journal, vault: SnapshotVault, *, snapshot=None) -> JournaledParty:
        """A client's journaled party, continued."""
        return JournaledParty.restore(
            self.scheme, self.spec, directory=self.directory, journal=journal, vault=vault, snapshot=snapshot
        )


def site(folder: Path, name: str) -> tuple[Journal, SnapshotVault]:
    """The journal and the vault of a client under a folder."""
    client = ClientId(name)
    return Journal(folder / f"{name}.journal", client=client), SnapshotVault(
        folder / f"{name}.vault", client=client, key=KEY
    )


class ProcessParty:
    """A party in a child process; when the child dies it is started again and asked the same again.

    Args:
        folder: Of the client's journal and vault.
        scheme: A key of `SCHEMES`.
        kill: ``(function, call, moment)`` at which the first child kills itself: function of ``os``, number of
            the call from 1, and ``before``, ``during`` (half the bytes written) or ``after``.
        kill_after_answers: Kill the child with SIGKILL whenever it has answered.
        file_limit: Largest file in bytes that the first child may write.
    """

    def __init__(self, folder, scheme, *, kill=None, kill_after_answers=False, file_limit=None) -> None:
        self.arguments = [sys.executable, __file__, str(folder), scheme]
        self.kill = "-".join(map(str, kill)) if kill else ""
        self.kill_after_answers = kill_after_answers
        self.file_limit = file_limit
        self.deaths = 0
        self.resends = 0
        self.errors: list[str] = []
        self.said: dict[bytes, list[bytes]] = {}
        self.child = None
        self.state = Running("advertise")

    def start(self):
        return self._ask(b"start")

    def receive(self, envelope):
        return self._ask(b"receive" + envelope.payload)

    def phase_over(self):
        return []

    def _ask(self, request: bytes, attempts: int = 3):
        for _ in range(attempts):
            answer = self._exchange(request)
            if answer is None:
                self.deaths += 1
                self.close()
                continue
            kind, *rest = answer
            if kind == b"refused":
                raise RemoteProtocolError("aggregator", rest[0].decode())
            if kind == b"error":
                self.errors.append(rest[0].decode())
                self.close()
                continue
            self.state = Finished() if rest[0] == b"finished" else Running(rest[0].decode())
            if kind == b"aborted":
                self.state = Aborted(RoundAborted(rest[0].decode()))
                return []
            payloads = rest[1:]
            assert self.said.setdefault(request, payloads) == payloads, "two answers to one request"
            if self.kill_after_answers:
                self.child.send_signal(signal.SIGKILL)
                self.child.wait()
                self.deaths += 1
                self.close()
            return [Envelope(ClientId("a"), ClientId("aggregator"), payload) for payload in payloads]
        return []

    def _exchange(self, request: bytes):
        if self.child is None:
            fresh = bool(self.said)
            environment = os.environ | {
                "TEST_KILL": self.kill,
                "TEST_FILE_LIMIT": str(self.file_limit or ""),
            }
            self.kill, self.file_limit = "", None
            self.child = subprocess.Popen(
                self.arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
            )
            if fresh and not self._repeats_itself():
                return None
        return self._once(request)

    def _once(self, request: bytes):
        try:
            write(self.child.stdin, [request])
            return read(self.child.stdout)
        except (BrokenPipeError, EOFError):
            return None

    def _repeats_itself(self) -> bool:
        """Whether a restarted child answers everything that it ever answered with the same bytes."""
        for request, payloads in self.said.items():
            answer = self._once(request)
            if answer is None:
                return False
            assert answer[2:] == payloads, "two answers to one request"
            self.resends += 1
        return True

    def close(self):
        if self.child is not None:
            for pipe in (self.child.stdin, self.child.stdout):
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
            self.child.wait(timeout=30)
            self.child = None


def write(pipe, parts: Sequence[bytes]) -> None:
    """One message of several parts."""
    pipe.write(
        struct.pack("<I", len(parts)) + b"".join(struct.pack("<I", len(part)) + part for part in parts)
    )
    pipe.flush()


def read(pipe) -> list[bytes]:
    """Undo `write`; `EOFError` when the other side is gone."""

    def take(count: int) -> bytes:
        data = pipe.read(count)
        if len(data) < count:
            raise EOFError
        return data

    (count,) = struct.unpack("<I", take(4))
    return [take(struct.unpack("<I", take(4))[0]) for _ in range(count)]


def arm(kill: str) -> None:
    """Kill this process at one call of one function of ``os``."""
    function, call, moment = kill.split("-")
    original, calls = getattr(os, function), 0

    def deadly(*arguments):
        nonlocal calls
        calls += 1
        if calls != int(call):
            return original(*arguments)
        if moment == "during":
            descriptor, data, offset = arguments
            original(descriptor, bytes(data)[: len(data) // 2], offset)
        elif moment == "after":
            original(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("still alive")

    setattr(os, function, deadly)


def serve(folder: Path, scheme: str) -> None:
    """Answer requests until standard input ends."""
    one = Round(scheme)
    journal, vault = site(folder, "a")
    try:
        party = one.restore(journal, vault)
    except LocalProtocolError:
        party = one.enter("a", journal, vault)
    while True:
        try:
            (request,) = read(sys.stdin.buffer)
        except EOFError:
            return
        write(sys.stdout.buffer, reply(party, request))


def reply(party: JournaledParty, request: bytes) -> list[bytes]:
    """What the party says to one request, and where it then stands."""
    try:
        if request == b"start":
            sent = party.start()
        else:
            payload = request.removeprefix(b"receive")
            sent = party.receive(Envelope(ClientId("aggregator"), ClientId("a"), payload))
    except RemoteProtocolError as error:
        return [b"refused", error.reason.encode()]
    except LocalProtocolError as error:
        return [b"error", str(error).encode()]
    payloads = [envelope.payload for envelope in sent]
    match party.state:
        case Aborted(reason=reason):
            return [b"aborted", str(reason).encode()]
        case Finished():
            return [b"sent", b"finished", *payloads]
        case Running(phase=phase):
            return [b"sent", phase.encode(), *payloads]


if __name__ == "__main__":
    if os.environ["TEST_KILL"]:
        arm(os.environ["TEST_KILL"])
    if limit := os.environ["TEST_FILE_LIMIT"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    serve(Path(sys.argv[1]), sys.argv[2])
