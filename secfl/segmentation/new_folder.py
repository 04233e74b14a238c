"""A folder that appears whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from secfl.errors import ConfigError

__all__ = ["new_folder", "refuse_existing"]


def refuse_existing(out: Path) -> None:
    """Refuse a place that is taken, before any work.

    Raises:
        ConfigError: ``out`` exists.
    """
    if out.exists():
        raise ConfigError(f"--out {out}: exists already; expected a new folder")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A hidden folder beside ``out`` to write into; it becomes ``out`` when the block ends, and goes away if it fails.

    Args:
        out: A folder that does not exist yet; its parents are made.

    Raises:
        ConfigError: ``out`` exists, or it, or a file in it, cannot be written.
    """
    refuse_existing(out)
    staging: Path | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
        staging.chmod(0o755)
        yield staging
        staging.rename(out)
    except OSError as error:
        raise ConfigError(
            f"--out {out}: cannot be written ({error.strerror}); expected a writable folder"
        ) from None
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
