"""Five sites on this host under Flower's deployment engine, one of them killed in round 2 and back in round 3.

TLS and node authentication are on; the certificates and keys are made on the spot and are good for nothing else.
The same run in one process, with the same drop-out, must end in the same model. Usage: ``python demo.py [FOLDER]``.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import ipaddress
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from secfl.testing.rehearsal import SETTINGS, compare, prepare_homes, say

SITES = tuple(f"clinic-{number}" for number in range(1, 6))
KILLED = SITES[2]
APP = Path(__file__).resolve().parent
SECONDS = 1200.0
ASK_SECONDS = 60.0
AGAIN_SECONDS = 300.0
ACTIVATED = "[Fleet.ActivateNode] Activated"


def main() -> int:
    """Run the demonstration; returns 0 when the two models agree."""
    root = Path(sys.argv[1] if len(sys.argv) > 1 else f"runs/flower-demo-{time.strftime('%Y%m%d-%H%M%S')}")
    root = root.resolve()
    root.mkdir(parents=True)
    prepare_homes(root, SITES, settings=SETTINGS)
    certificates(root / "certificates")
    out = root / "run"
    with Processes(root) as processes:
        port = start_link(root, processes)
        for number, site in enumerate(SITES):
            start_node(root, processes, site, number=number, port=port)
        submit(root, out)
        wait_for_rounds(root, out, 1)
        say(f"round 1 is done; killing {KILLED}")
        processes.kill(KILLED)
        wait_for_rounds(root, out, 2)
        say(f"round 2 was done without it; starting {KILLED} again")
        start_node_again(root, processes, KILLED, number=SITES.index(KILLED), port=port)
        wait_for((out / "summary.json").exists, "the end of the run", root)
    return 0 if compare(out, settings=SETTINGS, beside=root) else 1


def certificates(folder: Path) -> None:
    """An authority, the link's certificate for this host, and a key pair for every node."""
    folder.mkdir(mode=0o700)
    now = dt.datetime.now(dt.UTC)
    authority = ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "secfl demonstration authority")])

    def issue(name: x509.Name, key: ec.EllipticCurvePrivateKey, *, is_authority: bool) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(minutes=5))
            .not_valid_after(now + dt.timedelta(days=2))
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )
        if not is_authority:
            names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(authority, hashes.SHA256())

    server = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    pem = serialization.Encoding.PEM
    (folder / "ca.crt").write_bytes(issue(issuer, authority, is_authority=True).public_bytes(pem))
    (folder / "server.pem").write_bytes(issue(subject, server, is_authority=False).public_bytes(pem))
    secret(
        folder / "server.key",
        server.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )
    for site in SITES:
        node = ec.generate_private_key(ec.SECP384R1())
        private = node.private_bytes(pem, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())
        secret(folder / f"{site}.node", private)
        public = node.public_key().public_bytes(
            serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        )
        (folder / f"{site}.node.pub").write_bytes(public)


def secret(path: Path, content: bytes) -> None:
    """Write a file for its owner only."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)


class Environment:
    """Runs programs beside this interpreter, with Flower's home in the demonstration's folder."""

    def __init__(self, root: Path) -> None:
        self.environment = os.environ | {
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_HOME": str(root / "flower"),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
        }

    def run(self, *command: str) -> str:
        """Run a program to its end; its output."""
        done = subprocess.run(  # noqa: S603 - fixed programs, no shell
            command, env=self.environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}: {done.stdout}{done.stderr}")
        return done.stdout


class Processes(Environment):
    """Everything that was started, by name; all of it ends with the block."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._logs = root / "logs"
        self._logs.mkdir()
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self._running):
            self.kill(name)

    def start(self, name: str, *command: str) -> None:
        """Start a program in a group of its own, its output in ``logs/NAME.log``."""
        with (self._logs / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(  # noqa: S603 - fixed programs, no shell
                command, stdout=log, stderr=log, env=self.environment, start_new_session=True
            )

    def runs(self, name: str) -> bool:
        """Whether a program that was started has not ended."""
        return self._running[name].poll() is None

    def kill(self, name: str) -> None:
        """SIGKILL to a program and to everything that it started."""
        process = self._running.pop(name)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def start_link(root: Path, processes: Processes) -> int:
    """Flower's link with TLS and node authentication, and the nodes' keys registered with it."""
    folder, port = root / "certificates", free_port()
    processes.start(
        "superlink",
        "flower-superlink",
        "--ssl-ca-certfile",
        str(folder / "ca.crt"),
        "--ssl-certfile",
        str(folder / "server.pem"),
        "--ssl-keyfile",
        str(folder / "server.key"),
        "--enable-supernode-auth",
        "--disable-runtime-dependency-installation",
        "--port",
        str(port),
    )
    home = root / "flower"
    home.mkdir()
    connection = f'[superlink]\ndefault = "demo"\n[superlink.demo]\naddress = "127.0.0.1:{port}"\n'
    (home / "config.toml").write_text(
        f'{connection}root-certificates = "{folder / "ca.crt"}"\n', encoding="utf-8"
    )
    wait_for(lambda: listens(port), "the link", root)
    for site in SITES:
        processes.run("flwr", "supernode", "register", str(folder / f"{site}.node.pub"), "demo")
    say(f"link on port {port} with TLS; {len(SITES)} nodes registered")
    return port


def start_node(root: Path, processes: Processes, site: str, *, number: int, port: int) -> None:
    """A site's node."""
    folder = root / "certificates"
    processes.start(
        site,
        "flower-supernode",
        "--superlink",
        f"127.0.0.1:{port}",
        "--root-certificates",
        str(folder / "ca.crt"),
        "--auth-supernode-private-key",
        str(folder / f"{site}.node"),
        "--port",
        str(free_port()),
        "--node-config",
        f'site="{site}" home="{root / "homes" / site}" number={number}',
    )


def start_node_again(root: Path, processes: Processes, site: str, *, number: int, port: int) -> None:
    """Start a killed node until the link takes it, as a service does.

    Flower refuses a node with the key of one whose heartbeats it still expects, for up to a minute.
    """
    log = root / "logs" / "superlink.log"

    def taken() -> int:
        return log.read_text(encoding="utf-8", errors="replace").count(ACTIVATED)

    before, end = taken(), time.monotonic() + AGAIN_SECONDS
    while time.monotonic() < end:
        start_node(root, processes, site, number=number, port=port)
        while processes.runs(site) and time.monotonic() < end:
            if taken() > before:
                return
            time.sleep(0.2)
        processes.kill(site)
        time.sleep(2)
    raise SystemExit(f"the link does not take {site} again; see {log}")


def submit(root: Path, out: Path) -> None:
    """Ask the link to run the app."""
    settings = {
        "home": f'"{root / "homes" / "coordinator"}"',
        "out": f'"{out}"',
        "tls": "true",
        "node-auth": "true",
        "processes": str(len(SITES) + 1),
    }
    given = " ".join(f"{name}={value}" for name, value in settings.items())
    Environment(root).run("flwr", "run", str(APP), "demo", "--run-config", given)
    say("submitted")


def wait_for_rounds(root: Path, out: Path, rounds: int) -> None:
    """Wait until so many rounds are in the run's metrics."""
    metrics = out / "metrics.jsonl"
    wait_for(
        lambda: metrics.exists() and metrics.read_text(encoding="utf-8").count("\n") >= rounds,
        f"round {rounds}",
        root,
    )


def wait_for(condition: object, what: str, root: Path) -> None:
    """Poll a condition; gives up after `SECONDS`."""
    assert callable(condition)
    end, ask = time.monotonic() + SECONDS, time.monotonic() + ASK_SECONDS
    while not condition():
        if time.monotonic() > end:
            raise SystemExit(f"{what} did not come within {SECONDS:.0f} s; see {root / 'logs'}")
        if time.monotonic() > ask and (root / "flower" / "config.toml").exists():
            ask = time.monotonic() + ASK_SECONDS
            runs = json.loads(Environment(root).run("flwr", "list", "demo", "--format", "json"))["runs"]
            if any("failed" in str(one["status"]) for one in runs):
                raise SystemExit(
                    f"{what}: the run has failed; its log: flwr log, FLWR_HOME={root / 'flower'}"
                )
        time.sleep(0.3)


def listens(port: int) -> bool:
    """Whether somebody accepts connections."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def free_port() -> int:
    """A port of this host that is free now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
