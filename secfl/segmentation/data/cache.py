"""Prepared cases on disk, so that a large set is decoded and resampled once and then mapped into memory.

MONAI's ``PersistentDataset`` keeps pickles under a key made of file names. This cache keeps plain NumPy files,
which hold no code, under a SHA-256 of the contents of image, mask and field of view, the settings and the format,
so that a file that was changed is read again. It holds images of patients: only its owner may look into it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from secfl.errors import DataError
from secfl.segmentation.data.cases import Case
from secfl.segmentation.data.dicom import series_files
from secfl.types import join_fields

__all__ = ["CaseCache"]

_FORMAT = b"secfl/v1/prepared-case"
_PIECE = 1 << 20


class CaseCache:
    """Cases by content.

    Args:
        folder: Where they are kept; made readable by its owner alone.
        settings: Everything besides the files that a case depends on.
    """

    def __init__(self, folder: Path, *, settings: str) -> None:
        self._folder = folder
        self._settings = settings.encode()
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise DataError(
                f"{folder}: cannot be made ({error.strerror}); expected a folder to cache in"
            ) from None

    def case(self, paths: Sequence[Path], *, name: str, patient: str, make: Callable[[], Case]) -> Case:
        """The case of these files, from the cache if it is there, else made and kept."""
        key = hashlib.sha256(join_fields(_FORMAT, self._settings, *(_digest(path) for path in paths)))
        place = self._folder / key.hexdigest()
        if (found := _load(place, name=name, patient=patient)) is not None:
            return found
        made = make()
        self._keep(place, made)
        return _load(place, name=name, patient=patient) or made

    def _keep(self, place: Path, case: Case) -> None:
        staging = Path(tempfile.mkdtemp(dir=self._folder, prefix=".new-"))
        try:
            np.save(staging / "image.npy", case.image)
            np.save(staging / "labels.npy", case.labels)
            if case.valid is not None:
                np.save(staging / "valid.npy", case.valid)
            (staging / "spacing.json").write_text(json.dumps(case.spacing), encoding="utf-8")
            if not place.exists():
                staging.rename(place)
        except OSError as error:
            raise DataError(
                f"{self._folder}: cannot be written ({error.strerror}); expected room to cache in"
            ) from None
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _load(place: Path, *, name: str, patient: str) -> Case | None:
    """A kept case, mapped rather than read; ``None`` if it is not there or not whole."""
    try:
        spacing = json.loads((place / "spacing.json").read_text(encoding="utf-8"))
        arrays = {
            part: np.load(place / f"{part}.npy", mmap_mode="c", allow_pickle=False)
            for part in ("image", "labels", "valid")
            if part != "valid" or (place / "valid.npy").exists()
        }
    except (OSError, ValueError):
        return None
    return Case(
        name=name,
        patient=patient,
        image=arrays["image"],
        labels=arrays["labels"],
        valid=arrays.get("valid"),
        spacing=None if spacing is None else tuple(spacing),
    )


def _digest(path: Path) -> bytes:
    """SHA-256 of a file, or of the files of a folder with their names."""
    digest = hashlib.sha256()
    for file in series_files(path) if path.is_dir() else [path]:
        inner = hashlib.sha256()
        try:
            with file.open("rb") as stream:
                while piece := stream.read(_PIECE):
                    inner.update(piece)
        except OSError as error:
            raise DataError(f"{file}: cannot be read ({error.strerror}); expected a readable file") from None
        digest.update(join_fields(file.relative_to(path).as_posix().encode(), inner.digest()))
    return digest.digest()
