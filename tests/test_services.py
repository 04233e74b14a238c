"""What a deployment is started with: systemd accepts the units, programs know their options, certificates are good."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

UNITS = ("secfl-link.service", "secfl-nvflare@.service", "secfl-site.service")


@pytest.fixture
def units(project) -> Path:
    return project / "examples" / "systemd"


def test_these_are_all_and_the_pages_name_them(project, units):
    assert sorted(path.name for path in units.iterdir()) == sorted(UNITS)
    pages = [
        (project / "docs" / f"deploy-{engine}.md").read_text("utf-8") for engine in ("flower", "nvflare")
    ]
    assert all(any(f"examples/systemd/{name}" in page for page in pages) for name in UNITS)


def test_systemd_accepts_them(units, tmp_path):
    if (tool := shutil.which("systemd-analyze")) is None:
        pytest.skip("needs systemd-analyze")
    for name in UNITS:
        text = (units / name).read_text(encoding="utf-8")
        here = tmp_path / name.replace("@", "@north")
        # The programs are not installed where the units say: systemd would miss them.
        here.write_text(re.sub(r"(?<==)/opt/\S+", "/bin/true", text), encoding="utf-8")
        done = subprocess.run(
            [tool, "verify", "--man=no", str(here)], capture_output=True, text=True, check=False
        )
        said = [
            line for line in done.stderr.splitlines() if name.split(".", maxsplit=1)[0].rstrip("@") in line
        ]
        assert (done.returncode, said) == (0, [])
    broken = tmp_path / "broken.service"
    broken.write_text("[Service]\nExecStart=/bin/true\nRestrat=always\n", encoding="utf-8")
    done = subprocess.run(
        [tool, "verify", "--man=no", str(broken)], capture_output=True, text=True, check=False
    )
    assert "Restrat" in done.stderr  # what is wrong is told


@pytest.mark.parametrize("name", ["secfl-link.service", "secfl-site.service"])
def test_flower_knows_every_option(units, name):
    pytest.importorskip("flwr", reason="needs the extra flower: make test-flower")
    (line,) = re.findall(r"^ExecStart=(.*)$", (units / name).read_text(encoding="utf-8"), flags=re.MULTILINE)
    program, *rest = line.split()
    tool = Path(sys.executable).with_name(Path(program).name)
    done = subprocess.run([str(tool), "--help"], capture_output=True, text=True, check=True)
    options = [word for word in rest if word.startswith("--")]
    assert len(options) > 3
    assert all(re.search(rf"{option}\b", done.stdout) for option in options)


def test_the_link_listens_to_more_than_its_own_host(project, units):
    """Without ``--host`` it listens on loopback, and no site of another host could ever connect."""
    for path in (units / "secfl-link.service", project / "docs" / "deploy-flower.md"):
        text = path.read_text(encoding="utf-8")
        (command,) = re.findall(r"flower-superlink --ssl-ca-certfile(?:\\\n|[^\n])*", text)
        assert "--host 0.0.0.0 --port 8000" in command


def test_a_site_cannot_be_read_by_others(units):
    for name in UNITS:
        text = (units / name).read_text(encoding="utf-8")
        for wanted in ("User=secfl", "UMask=0077", "StateDirectoryMode=0700", "NoNewPrivileges=yes"):
            assert wanted in text
        assert "LoadCredential=phrase:" in text
        assert "SECFL_PASSPHRASE_FILE=%d/phrase" in text


def test_the_certificates_of_the_page_are_what_the_link_and_its_nodes_need(project, tmp_path):
    for tool in ("openssl", "ssh-keygen"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}")
    page = (project / "docs" / "deploy-flower.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```sh\n(openssl .*?)```", page, flags=re.DOTALL)
    subprocess.run(["sh", "-e", "-c", block], cwd=tmp_path, check=True, capture_output=True)
    authority, link = (
        x509.load_pem_x509_certificate((tmp_path / name).read_bytes()) for name in ("ca.crt", "server.pem")
    )
    link.verify_directly_issued_by(authority)
    names = link.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["link.example"]
    node = load_ssh_private_key((tmp_path / "north.node").read_bytes(), None)
    public = load_ssh_public_key((tmp_path / "north.node.pub").read_bytes())
    assert isinstance(node, ec.EllipticCurvePrivateKey)
    assert node.public_key() == public
    assert node.curve.name == "secp384r1"
    for secret in ("ca.key", "server.key", "north.node"):
        assert (tmp_path / secret).stat().st_mode & 0o077 == 0
