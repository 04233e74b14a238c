"""The run directory: what a run leaves behind, each file with a format version.

``config.toml`` · ``inputs.json`` · ``metrics.jsonl`` · ``summary.json`` · ``ledger.jsonl`` · ``checkpoints/`` ·
``previews/`` · ``log.txt`` · with ``record`` also ``transcript/``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

from secfl.config import RunConfig, load_config
from secfl.crypto.aggregation import Envelope
from secfl.crypto.identity import Identity
from secfl.errors import ConfigError, DataError
from secfl.federation.checkpoint import write_atomically
from secfl.segmentation.new_folder import new_folder
from secfl.segmentation.task import ModelInputs, Preview
from secfl.types import client_id

__all__ = ["RUN_FORMAT_VERSION", "RunDirectory", "read_summary"]

RUN_FORMAT_VERSION = 1


class RunDirectory:
    """Reads and writes one run directory. Create it with `create` or `open`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.checkpoints = root / "checkpoints"
        self.sites = root / "sites"
        self.ledger = root / "ledger.jsonl"
        self.summary = root / "summary.json"
        self.metrics = root / "metrics.jsonl"
        self.inputs = root / "inputs.json"
        self._identities = root / ".simulated-identities.json"

    @classmethod
    def create(cls, root: Path, config: RunConfig) -> RunDirectory:
        """A new run directory; all of it appears at once, or nothing.

        Raises:
            ConfigError: It exists already, or its parent cannot be written.
        """
        if root.exists():
            raise ConfigError(
                f"--out {root}: exists already; expected a new folder (go on with an interrupted run by "
                f"--resume {root})"
            )
        with new_folder(root) as staging:
            (staging / "checkpoints").mkdir()
            (staging / "config.toml").write_text(config.to_toml(), encoding="utf-8")
        return cls(root)

    @classmethod
    def open(cls, root: Path) -> RunDirectory:
        """An existing run directory; `ConfigError` when it is none."""
        if not (root / "config.toml").is_file():
            raise ConfigError(f"{root}: expected a run directory with a config.toml")
        return cls(root)

    def config(self) -> RunConfig:
        """The configuration the run was started with."""
        return load_config(self.root / "config.toml", {})

    def write_inputs(self, inputs: ModelInputs) -> None:
        """Keep what the model is trained on in ``inputs.json``, for `secfl predict`."""
        row = {"format_version": RUN_FORMAT_VERSION, **asdict(inputs)}
        if not inputs.names_by_site:
            del row["names_by_site"]
        write_atomically(self.inputs, (json.dumps(row, indent=2) + "\n").encode())

    def read_inputs(self) -> ModelInputs:
        """What the model was trained on.

        Raises:
            DataError: Missing or damaged, or newer than this secfl reads.
        """
        try:
            row = json.loads(self.inputs.read_text(encoding="utf-8"))
            version = int(row["format_version"])
            inputs = ModelInputs(
                channels=int(row["channels"]),
                class_names=tuple(str(name) for name in row["class_names"]),
                spatial_dims=int(row["spatial_dims"]),
                names_by_site={
                    str(site): tuple(str(name) for name in names)
                    for site, names in row.get("names_by_site", {}).items()
                },
            )
        except FileNotFoundError:
            raise DataError(
                f"{self.inputs}: missing; expected a run of an image segmentation, made by this version or later"
            ) from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise DataError(f"{self.inputs}: damaged; expected what the model was trained on") from None
        if version > RUN_FORMAT_VERSION:
            raise DataError(
                f"{self.inputs}: format_version {version} is newer than this secfl reads; upgrade secfl"
            )
        return inputs

    def keep_identities(self, identities: Sequence[Identity]) -> None:
        """Keep the simulated clients' signing keys until the run ends, readable by its owner only.

        They protect nothing (one process holds them all) but let a resumed run sign the same ledger.
        """
        rows = {identity.name: identity.seed.hex() for identity in identities}
        handle = os.open(self._identities, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump({"format_version": RUN_FORMAT_VERSION, "seeds": rows}, file)
            file.flush()
            os.fsync(file.fileno())

    def identities(self) -> list[Identity]:
        """The simulated clients' identities of an unfinished run.

        Raises:
            ConfigError: The run is finished, and its keys are gone.
            DataError: The file is damaged.
        """
        try:
            document = json.loads(self._identities.read_text(encoding="utf-8"))
            seeds = {client_id(name): bytes.fromhex(seed) for name, seed in document["seeds"].items()}
        except FileNotFoundError:
            raise ConfigError(f"{self.root}: the run is finished (its signing keys are gone)") from None
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            raise DataError(f"{self._identities}: damaged; expected the signing keys of the run") from None
        return [Identity(name, seed) for name, seed in sorted(seeds.items())]

    def forget_identities(self) -> None:
        """Destroy the simulated signing keys: the ledger is closed."""
        self._identities.unlink(missing_ok=True)

    def add_metrics(self, row: dict[str, Any]) -> None:
        """Append one line to ``metrics.jsonl``."""
        line = json.dumps({"format_version": RUN_FORMAT_VERSION, **row}, sort_keys=True)
        _append(self.metrics, line)

    def read_metrics(self) -> list[dict[str, Any]]:
        """All whole lines of ``metrics.jsonl``; a torn last line of a killed run is left out."""
        if not self.metrics.exists():
            return []
        rows: list[dict[str, Any]] = []
        for line in self.metrics.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
        return rows

    def keep_metrics(self, rounds: int) -> list[dict[str, Any]]:
        """Drop the lines of rounds that will be run again, and return the others."""
        rows = [row for row in self.read_metrics() if row["round"] < rounds]
        text = "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows)
        write_atomically(self.metrics, text.encode())
        return rows

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write ``summary.json``, checked against the shipped JSON Schema."""
        import jsonschema

        jsonschema.validate(summary, summary_schema())
        write_atomically(self.summary, (json.dumps(summary, indent=2) + "\n").encode())

    def write_preview(self, preview: Preview, *, number: int) -> None:
        """One picture as ``previews/<site>-<number>.png``; the case's own name stays out of the file name."""
        from PIL import Image

        folder = self.root / "previews"
        folder.mkdir(exist_ok=True)
        Image.fromarray(preview.pixels).save(folder / f"{preview.site}-{number}.png")

    def log(self, text: str) -> None:
        """Append a line with the time in UTC to ``log.txt``."""
        stamp = datetime.now(UTC).isoformat(timespec="seconds")
        _append(self.root / "log.txt", f"{stamp} {text}")

    def recorder(self) -> TranscriptRecorder:
        """Keeps every envelope under ``transcript/``."""
        return TranscriptRecorder(self.root / "transcript")


def _append(path: Path, line: str) -> None:
    """Add a line to a file of the run; `ConfigError` when the disk refuses."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror})") from None


class TranscriptRecorder:
    """Every envelope as a file, and a manifest line with round, phase, sender, recipient and size."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self._folder = folder
        self._manifest = folder / "manifest.jsonl"
        self._count = sum(1 for _ in folder.glob("*.bin"))

    def __call__(self, round_id: int, phase: str, envelope: Envelope) -> None:
        """Keep one envelope."""
        name = f"{self._count:06d}.bin"
        self._count += 1
        (self._folder / name).write_bytes(envelope.payload)
        row = {
            "format_version": RUN_FORMAT_VERSION,
            "file": name,
            "round": round_id,
            "phase": phase,
            "sender": envelope.sender,
            "recipient": envelope.recipient,
            "bytes": len(envelope.payload),
        }
        with self._manifest.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, sort_keys=True) + "\n")


def summary_schema() -> dict[str, Any]:
    """The JSON Schema of ``summary.json``."""
    text = resources.files("secfl.federation").joinpath("summary.schema.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


def read_summary(run: Path) -> dict[str, Any]:
    """Read and check ``summary.json`` of a run of this or an older format version.

    Raises:
        DataError: Missing, damaged, or newer than this secfl reads.
    """
    import jsonschema

    path = run / "summary.json"
    try:
        summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version = summary["format_version"]
    except FileNotFoundError:
        raise DataError(f"{path}: missing; the run has not finished") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{path}: damaged; expected a summary written by secfl") from None
    if version > RUN_FORMAT_VERSION:
        raise DataError(f"{path}: format_version {version} is newer than this secfl reads; upgrade secfl")
    try:
        jsonschema.validate(summary, summary_schema())
    except jsonschema.ValidationError as error:
        raise DataError(f"{path}: {error.json_path}: {error.message}") from None
    return summary
