"""Nothing image-like crosses: real federations on salted images, every envelope taken apart and searched.

What is shown of each run: every byte belongs to a field of the protocol; no field but the vectors has room for an image
of the run, and no field of a site, vectors included, correlates with its images or masks. The search has a false-alarm
rate of at most 1e-6 a run whatever the fields hold; clients that hide a picture are caught by it.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

from secfl.audit.contents import Origin, take_apart
from secfl.audit.recorded_sums import recorded_sums
from secfl.audit.salted import find_images, salt_pictures
from secfl.audit.transcript import audit_run_transcript
from secfl.config import load_config
from secfl.crypto import masking_dealing
from secfl.errors import RoundAborted
from secfl.federation import local_work
from secfl.federation.observer import SilentObserver
from secfl.federation.simulation import simulate
from secfl.randomness import InsecureSeededRng

SIDE = 64
SITES = ["a", "b", "c"]
PATIENT = {
    "privacy": {
        "mode": "patient",
        "epsilon": 8.0,
        "steps": 1,
        "sampling_rate": 0.5,
        "physical_batch": 4,
        "nominal_patients": 8,
    }
}
CLIENT = {"privacy": {"mode": "client", "epsilon": 8.0, "clip": 1.0, "accept_weak": True}}
UNLIKE = {"multi_model": {"families": ["cnn", "sequential", "cnn"], "student": "cnn", "student_epochs": 1}}
AVERAGED = {"multi_model": {"families": ["cnn"] * 3, "student": "cnn", "student_epochs": 1}}
DRIFT = {"training": {"rounds": 1, "local_epochs": 1, "drift": "measured"}}
KINDS = {
    "drift": DRIFT,
    "no noise": {},
    "patient": PATIENT,
    "client": CLIENT,
    "unlike": UNLIKE,
    "averaged": AVERAGED,
}


@pytest.fixture(scope="module")
def salted(tmp_path_factory):
    """A folder of three sites and public images, and the salt of everything that belongs to a site."""
    folder = tmp_path_factory.mktemp("salted")
    names = [*SITES, "open"]
    salts = salt_pictures(folder, sites=names, images=4, side=SIDE, rng=InsecureSeededRng(11))
    parts = {"train": ["000", "001", "002"], "test": ["003"]}
    (folder / "splits.json").write_text(json.dumps(dict.fromkeys(names, parts)))
    return folder, [one for one in salts if one.owner != "open"]


def run(path, salted, scheme, *, key="sum-key", more=None):
    config = {
        "threads": 1,
        "record": True,
        "data": {"source": str(salted[0]), "public": ["open"]},
        "model": {"name": "cnn", "channels": [4, 4, 4]},
        "training": {"rounds": 1, "local_epochs": 1},
        "secure_agg": {"scheme": scheme, "ckks_key": key},
    } | (more or {})
    simulate(load_config(None, config), out=path, observer=SilentObserver())
    return path


def few(salts):
    """Of each site the first image and its mask: a leak of any picture would be a leak of these."""
    return [one for one in salts if one.name.endswith("000.png")]


def check(path, salts, *, sums=("update",)):
    found = recorded_sums(path)
    assert [one.name for one in found] == list(sums)
    for one in found:
        contents = take_apart(one.recording, one.shape)
        assert contents.unaccounted == []
        assert contents.accounted_bytes == contents.total_bytes > 0
        # An image of the run has 4096 bytes at 8 bits; the largest field beside the vectors is a public key.
        assert contents.largest(Origin.FRESH) <= 1216 < SIDE * SIDE
        lengths = {vector.name: vector.length for vector in one.shape.vectors}
        sent = {part.name for part in contents.fields if part.origin is Origin.VECTOR}
        assert sent <= {*lengths, "ckks-ciphertext", "ckks-key"}, sent
        finding = find_images(contents, salts, level=1e-6 / len(found))
        assert not finding.flagged, finding.statistic
        assert finding.power.startswith("512 successive pixels")
    findings = audit_run_transcript(path)
    assert [one.name for one in findings if one.flagged] == []
    if len(sums) > 1:
        assert {one.name.split(": ")[0] for one in findings} == set(sums)


@pytest.mark.parametrize(
    ("scheme", "key", "kind"),
    [
        ("masking", "sum-key", "no noise"),
        ("ckks", "sum-key", "patient"),
        pytest.param("masking", "sum-key", "drift", marks=pytest.mark.slow),
        *(
            pytest.param(scheme, key, kind, marks=pytest.mark.slow)
            for scheme, key in (
                ("plain", "sum-key"),
                ("masking", "sum-key"),
                ("ckks", "sum-key"),
                ("ckks", "shared"),
            )
            for kind in ("no noise", "patient", "client")
        ),
    ],
)
def test_of_one_model(tmp_path, salted, scheme, key, kind):
    check(run(tmp_path / "run", salted, scheme, key=key, more=KINDS[kind]), few(salted[1]))


@pytest.mark.parametrize(
    ("scheme", "kind", "sums"),
    [
        ("masking", "averaged", ("maps", "cnn")),
        *(
            pytest.param(scheme, kind, sums, marks=pytest.mark.slow)
            for scheme in ("plain", "ckks")
            for kind, sums in (("averaged", ("maps", "cnn")), ("unlike", ("maps",)))
        ),
    ],
)
def test_of_several_families(tmp_path, salted, scheme, kind, sums):
    """The maps have room for images, and are of public ones: those of the sites are not in them."""
    check(run(tmp_path / "run", salted, scheme, more=KINDS[kind]), few(salted[1]), sums=sums)


class TestLeakingClients:
    """Each hides a picture of site a in a real run; the audit finds it, and the first round would not have."""

    def test_in_a_field_that_nobody_opens(self, tmp_path, salted, monkeypatch):
        """The escrow is opened only if its owner drops out: 640 pixels of a mask fit, and the run ends well."""
        mask = next(one for one in salted[1] if one.name == "a/masks/000.png")
        bits = np.packbits(mask.coins.ravel() > 0).tobytes()
        honest = masking_dealing.aead_seal

        def seal(key, nonce, plaintext, *, associated):
            sealed = honest(key, nonce, plaintext, associated=associated)
            return bits[: len(sealed)] if len(plaintext) == 64 else sealed  # two later clients: site a

        monkeypatch.setattr(masking_dealing, "aead_seal", seal)
        path = run(tmp_path / "run", salted, "masking")
        (one,) = recorded_sums(path)
        finding = find_images(take_apart(one.recording, one.shape), few(salted[1]))
        assert finding.flagged
        assert "a/masks/000.png" in finding.statistic
        assert "escrow of shares from a" in finding.statistic

    def test_in_the_lowest_bits_of_its_update(self, tmp_path, salted, monkeypatch):
        """Under plain the aggregator reads it; under masking the same client tells it nothing."""
        mask = next(one for one in salted[1] if one.name == "a/masks/000.png")
        honest = local_work.quantise

        def quantise(update, grid, **more):
            clipped = honest(update, grid, **more)
            length = min(clipped.values.size, mask.coins.size)
            clipped.values[:length] &= ~1
            clipped.values[:length] |= (mask.coins.ravel()[:length] > 0).astype(clipped.values.dtype)
            return clipped

        monkeypatch.setattr(local_work, "quantise", quantise)
        findings = {}
        for scheme in ("plain", "masking"):
            (one,) = recorded_sums(run(tmp_path / scheme, salted, scheme))
            findings[scheme] = find_images(take_apart(one.recording, one.shape), few(salted[1]))
        assert findings["plain"].flagged
        assert "bit 0 of residues" in findings["plain"].statistic
        assert not findings["masking"].flagged, findings["masking"].statistic

    def test_behind_the_end_of_its_message(self, tmp_path, salted, monkeypatch):
        """Nobody takes the message, the round is given up, and the recording tells why."""
        from secfl.crypto.plain import PlainClient

        image = (tmp_path / "image").with_suffix(".png")
        image.write_bytes((salted[0] / "a/images/000.png").read_bytes())
        honest = PlainClient.start

        def start(self):
            (sent,) = honest(self)
            return [type(sent)(sent.sender, sent.recipient, sent.payload + image.read_bytes())]

        monkeypatch.setattr(PlainClient, "start", start)
        with pytest.raises(RoundAborted):
            run(tmp_path / "run", salted, "plain")
        (one,) = recorded_sums(tmp_path / "run")
        contents = take_apart(one.recording, one.shape)
        assert len(contents.unaccounted) >= 3
        assert "follow the end of the message" in contents.unaccounted[0]
