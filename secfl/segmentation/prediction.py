"""A trained model at work: image files in, masks of the same format and geometry and overlays out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from secfl.config import RunConfig
from secfl.errors import ConfigError, DataError
from secfl.randomness import ExperimentSeed
from secfl.segmentation.data.dicom import is_dicom
from secfl.segmentation.data.dicom_seg import Identifiers, write_segmentation
from secfl.segmentation.data.folder import Reading
from secfl.segmentation.data.nifti import write_nifti_mask
from secfl.segmentation.data.preparation import axial_slice
from secfl.segmentation.data.scan import Geometry, ImageFormat, Scan
from secfl.segmentation.data.sources import files_by_stem, format_of, read_labels, read_scan, stem_of
from secfl.segmentation.new_folder import new_folder, refuse_existing
from secfl.segmentation.segmentation_task import reading_of
from secfl.segmentation.task import ModelInputs, State

if TYPE_CHECKING:
    from torch import nn

    from secfl.segmentation.models.registry import ModelSpec

__all__ = ["Identifiers", "PredictedImage", "Predictor", "Writing", "predict_files"]

_LOSSLESS = {".jpg": ".png", ".jpeg": ".png"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictedImage:
    """What was written for one image.

    Attributes:
        image: The input.
        mask: The written mask.
        overlay: The written picture, if there is one.
        voxels: Voxels of every foreground class.
        millilitres: Their volume, where the voxels have a size in all three directions.
        dice: Against the truth, on the image's own grid, if there is one.
    """

    image: Path
    mask: Path
    overlay: Path | None
    voxels: Mapping[str, int]
    millilitres: Mapping[str, float] | None
    dice: float | None


class Predictor:
    """A model and everything that makes an image its input.

    Args:
        config: The run's configuration.
        inputs: What the model was trained on.
        state: Its tensors.
        family: In place of the configuration's ``model.name``.
    """

    def __init__(
        self, config: RunConfig, inputs: ModelInputs, state: State, *, family: str | None = None
    ) -> None:
        from secfl.segmentation.models.making import ModelMaker
        from secfl.segmentation.models.registry import model_spec
        from secfl.segmentation.training import resolve_device

        self._config = config
        self._inputs = inputs
        self.reading: Reading = reading_of(config.data)
        if self.reading.labels.names != tuple(inputs.class_names):
            raise ConfigError(
                "data.labels: other classes than the model has; expected the run's configuration"
            )
        self._spec: ModelSpec = model_spec(
            config.model,
            in_channels=inputs.channels,
            classes=len(inputs.class_names),
            spatial_dims=inputs.spatial_dims,
            family=family,
        )
        self._model: nn.Module = ModelMaker(
            self._spec,
            seed=ExperimentSeed(config.seed),
            device=resolve_device(config.training.device, config.training.precision),
        ).loaded(state)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, the background first."""
        return tuple(self._inputs.class_names)

    def export_onnx(self, path: Path) -> None:
        """Write the model as ONNX; see `secfl.segmentation.models.exporting.export_onnx`."""
        from secfl.segmentation.models.exporting import export_onnx

        export_onnx(self._model, self._spec, path)

    def classes_of(self, scan: Scan) -> NDArray[np.uint8]:
        """The most probable class of every voxel on the scan's stored grid.

        A model that learned axial slices of volumes (``data.slices``) goes through a volume as it was trained: the
        whole volume is turned, resampled and normalised, and then cut. A model of pictures goes through it slice
        by slice as stored, each normalised alone; a slice without any contrast is background.

        Raises:
            DataError: Other channels or dimensions than the model was trained on, or an image that `Recipe.prepare`
                refuses.
        """
        if scan.spatial_dims < self._inputs.spatial_dims:
            raise DataError(
                f"{scan.path}: a picture or single slice; expected a volume as the model was trained on"
            )
        if scan.spatial_dims > self._inputs.spatial_dims:
            return self._axial(scan) if self._config.data.slices is not None else self._slice_by_slice(scan)
        prepared = self.reading.recipe.prepare(scan)
        self._check_channels(scan, prepared.image.shape[0])
        return prepared.restore(self._predict([prepared.image])[0])

    def _axial(self, scan: Scan) -> NDArray[np.uint8]:
        prepared = self.reading.recipe.prepare(scan)
        self._check_channels(scan, prepared.image.shape[0])
        planes = range(prepared.image.shape[-1])
        found = self._predict([axial_slice(prepared.image, plane) for plane in planes])
        return prepared.restore(np.stack([classes.T for classes in found], axis=-1))

    def _slice_by_slice(self, scan: Scan) -> NDArray[np.uint8]:
        assert scan.geometry is not None
        result = np.zeros(scan.geometry.shape, dtype=np.uint8)
        flat = Geometry(shape=(*scan.geometry.shape[:2], 1), affine=scan.geometry.affine)
        for index in range(scan.geometry.shape[2]):
            values = scan.values[..., index : index + 1]
            if not np.ptp(values.reshape(scan.channels, -1), axis=1).any():
                continue
            prepared = self.reading.recipe.prepare(replace(scan, values=values, geometry=flat))
            self._check_channels(scan, prepared.image.shape[0])
            result[..., index : index + 1] = prepared.restore(self._predict([prepared.image])[0])
        return result

    def _check_channels(self, scan: Scan, found: int) -> None:
        if found != self._inputs.channels:
            raise DataError(
                f"{scan.path}: {found} channels; expected {self._inputs.channels} as the model was trained on"
            )

    def _predict(self, images: Sequence[NDArray[np.float32]]) -> list[NDArray[np.uint8]]:
        from secfl.segmentation.inference import predict
        from secfl.segmentation.training import deterministic

        with deterministic(self._config.threads):
            return predict(
                self._model,
                images,
                multiple=self._spec.multiple,
                augmentation=self._config.model.test_time_augmentation,
                window=self._config.training.crop,
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Writing:
    """What is written besides masks, and how.

    Attributes:
        overlays: Whether pictures of image and mask are written.
        identifiers: What a DICOM SEG says about the person.
    """

    overlays: bool = True
    identifiers: Identifiers = Identifiers.REMOVE


def predict_files(
    predictor: Predictor,
    images: Sequence[Path],
    *,
    out: Path,
    writing: Writing | None = None,
    truth: Path | None = None,
    tell: Callable[[PredictedImage], None] = lambda _: None,
) -> list[PredictedImage]:
    """Segment images and write ``OUT/masks`` and ``OUT/overlays``; all of it appears at once, or nothing.

    Args:
        predictor: The model.
        images: Files, folders of one DICOM series each, or folders of pictures or NIfTI files.
        out: A folder that does not exist yet.
        writing: What is written besides masks.
        truth: A folder of masks with the images' stems; Dice is then computed on each image's own grid.
        tell: Told after every image.

    Raises:
        ConfigError: ``out`` exists or cannot be written, or two images have one stem.
        DataError: An image that cannot be used.
    """
    writing = writing or Writing()
    refuse_existing(out)
    chosen = _by_stem(images)
    truths = files_by_stem(truth) if truth is not None else {}
    if truth is not None and (missing := sorted(set(chosen) - set(truths))):
        raise DataError(f"{truth}: no mask {missing[0]}; expected one for every image")
    with new_folder(out) as staging:
        for part in ("masks", *(["overlays"] if writing.overlays else [])):
            (staging / part).mkdir()
        done = []
        for stem, path in chosen.items():
            one = _Work(predictor, path, stem, staging, out, writing).run(truths.get(stem))
            tell(one)
            done.append(one)
    return done


def _by_stem(images: Sequence[Path]) -> Mapping[str, Path]:
    found: dict[str, Path] = {}
    for given in images:
        for path in _expanded(given):
            stem = stem_of(path)
            if stem in found:
                raise ConfigError(
                    f"{path}: same stem as {found[stem]}; expected different names, for their masks"
                )
            found[stem] = path
    if not found:
        raise ConfigError("no image given; expected at least one")
    return found


def _expanded(path: Path) -> Sequence[Path]:
    """A folder of pictures or NIfTI files stands for them; a folder of DICOM files is one series."""
    if not path.is_dir():
        return [path]
    inside = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    if any(entry.is_file() and is_dicom(entry) for entry in inside):
        return [path]
    if inside and all(format_of(entry) is not None for entry in inside):
        return inside
    return [path]


@dataclass(frozen=True, slots=True)
class _Work:
    """One image; files are written to ``staging`` and will lie in ``out``."""

    predictor: Predictor
    path: Path
    stem: str
    staging: Path = field(repr=False)
    out: Path
    writing: Writing

    def run(self, truth: Path | None) -> PredictedImage:
        scan = read_scan(self.path)
        expected = None
        if truth is not None:
            expected = read_labels(truth, scan, self.predictor.reading.labels)
        classes = self.predictor.classes_of(scan)
        mask = self._write_mask(scan, classes)
        overlay = None
        if self.writing.overlays:
            from secfl.segmentation.overlays import overlay_of, save_png

            overlay = Path("overlays") / f"{self.stem}.png"
            save_png(self.staging / overlay, overlay_of(scan, classes))
        names = self.predictor.class_names
        counts = np.bincount(classes.ravel(), minlength=len(names))
        voxels = {name: int(counts[index]) for index, name in enumerate(names) if index}
        volume = None
        if scan.geometry is not None and scan.spatial_dims == 3:
            size = abs(float(np.linalg.det(scan.geometry.affine[:3, :3]))) / 1000.0
            volume = {name: round(count * size, 4) for name, count in voxels.items()}
        return PredictedImage(
            image=self.path,
            mask=self.out / mask,
            overlay=None if overlay is None else self.out / overlay,
            voxels=voxels,
            millilitres=volume,
            dice=None if expected is None else _dice(expected, classes, len(names)),
        )

    def _write_mask(self, scan: Scan, classes: NDArray[np.uint8]) -> Path:
        """The mask in the input's own format; JPEG, which would change labels, becomes PNG."""
        labels = self.predictor.reading.labels
        if scan.format is ImageFormat.DICOM:
            mask = Path("masks") / f"{self.stem}.dcm"
            write_segmentation(
                self.staging / mask, classes, scan, labels, identifiers=self.writing.identifiers
            )
        elif scan.format is ImageFormat.NIFTI:
            suffix = ".nii.gz" if self.path.name.lower().endswith(".gz") else ".nii"
            mask = Path("masks") / f"{self.stem}{suffix}"
            write_nifti_mask(self.staging / mask, labels.stored(classes), like=self.path)
        else:
            from secfl.segmentation.overlays import save_png

            suffix = self.path.suffix.lower()
            mask = Path("masks") / f"{self.stem}{_LOSSLESS.get(suffix, suffix)}"
            stored = labels.stored(classes, foreground=255)
            save_png(self.staging / mask, stored if stored.max(initial=0) > 255 else stored.astype(np.uint8))
        return mask


def _dice(truth: NDArray[np.uint8], classes: NDArray[np.uint8], count: int) -> float:
    from secfl.segmentation.data.cases import Case
    from secfl.segmentation.metrics import measure

    image = np.broadcast_to(np.float32(0), (1, *truth.shape))
    case = Case(name="", patient="", image=image, labels=truth)
    names = ["background", *(str(index) for index in range(1, count))]
    return measure([case], [classes], class_names=names).dice
