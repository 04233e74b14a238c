"""From a scan as stored to what a model sees, and from a model's answer back to the scan's own voxels.

Volumes are turned to RAS+ without interpolation and, if a spacing is asked for, resampled; slices and pictures
stay as they are, as rows and columns. Intensities are normalised per image, or mapped through CT windows.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from secfl.errors import DataError
from secfl.segmentation.data.normalization import Normalization, apply_windows, normalize
from secfl.segmentation.data.orientation import from_canonical, to_canonical
from secfl.segmentation.data.resampling import resample_image, resample_labels, resampled_shape
from secfl.segmentation.data.scan import Scan, shape_text

__all__ = ["MIN_SIDE", "Prepared", "Recipe", "axial_slice", "with_channels"]

MIN_SIDE = 8
"""Pixels. An image needs at least this many along two of its axes."""


def with_channels(image: NDArray[np.float32], count: int, *, name: str) -> NDArray[np.float32]:
    """An image of ``count`` channels: fewer are repeated in turn, several are averaged into one.

    Args:
        image: Shape ``(channels, *spatial)``.
        count: From 1.
        name: What an error calls the image.

    Raises:
        DataError: More channels than are wanted, and not one is wanted.
    """
    channels = image.shape[0]
    if channels == count:
        return image
    if count == 1:
        return image.mean(axis=0, keepdims=True, dtype=np.float32)
    if channels > count:
        raise DataError(
            f"{name}: {channels} channels; data.channels expected at most {count}, or 1 to average them"
        )
    return image[np.arange(count) % channels]


def axial_slice(volume: NDArray[np.float32], place: int) -> NDArray[np.float32]:
    """The picture that a model of pictures sees of a prepared volume.

    Args:
        volume: Shape ``(channels, x, y, z)``, RAS+.
        place: Along z.

    Returns:
        Shape ``(channels, y, x)``, contiguous.
    """
    return np.ascontiguousarray(volume[..., place].transpose(0, 2, 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How scans become inputs; the same for training and prediction.

    Attributes:
        normalization: Of intensities, where there are no windows.
        windows: Intervals of the file's units (HU for CT), each mapped to -1..1 as a channel of its own.
        spacing: Voxel size in mm that volumes are resampled to, along x (right), y (front), z (head).
        channels: Bring every image to so many, as `with_channels` does.
    """

    normalization: Normalization = "zscore"
    windows: tuple[tuple[float, float], ...] = ()
    spacing: tuple[float, float, float] | None = None
    channels: int | None = None

    def prepare(
        self,
        scan: Scan,
        *,
        labels: NDArray[np.uint8] | None = None,
        valid: NDArray[np.bool_] | None = None,
    ) -> Prepared:
        """Prepare one scan, with its classes and field of view on the stored grid.

        Raises:
            DataError: The image is constant, too small, or has several channels where there are windows.
        """
        self._check(scan, valid)
        image = scan.values
        spacing = self._stored_spacing(scan)
        if scan.geometry is not None and scan.spatial_dims == 3:
            image, labels, valid, spacing = self._volume(scan, labels, valid)
        elif scan.geometry is not None:
            image = image[..., 0].transpose(0, 2, 1)
            labels = None if labels is None else labels[..., 0].T
            valid = None if valid is None else valid[..., 0].T
        if self.windows:
            result = apply_windows(image[0], self.windows, valid=valid)
        else:
            result = normalize(image, valid=valid, method=self.normalization)
        if self.channels is not None:
            result = with_channels(result, self.channels, name=str(scan.path))
        return Prepared(
            image=np.ascontiguousarray(result),
            labels=None if labels is None else np.ascontiguousarray(labels),
            valid=None if valid is None else np.ascontiguousarray(valid),
            spacing=spacing,
            scan=scan,
        )

    def _check(self, scan: Scan, valid: NDArray[np.bool_] | None) -> None:
        sides = sorted(scan.values.shape[1:])
        if sum(side >= MIN_SIDE for side in sides) < 2:
            raise DataError(
                f"{scan.path}: {shape_text(scan.values.shape[1:])} voxels; expected at least {MIN_SIDE} along "
                "two axes"
            )
        inside = scan.values if valid is None or not valid.any() else scan.values[:, valid]
        if float(np.ptp(inside.reshape(scan.channels, -1), axis=1).max()) == 0.0:
            where = "" if valid is None else " inside its field of view"
            raise DataError(f"{scan.path}: a constant image{where}; expected intensities that differ")
        if self.windows and scan.channels != 1:
            raise DataError(
                f"{scan.path}: {scan.channels} channels; expected 1 where the configuration has data.windows"
            )

    def _stored_spacing(self, scan: Scan) -> tuple[float, ...] | None:
        """Of rows and columns; of volumes along x, y, z it follows from the orientation."""
        if scan.geometry is None:
            return None
        across, down, _ = scan.geometry.spacing
        return down, across

    def _volume(
        self, scan: Scan, labels: NDArray[np.uint8] | None, valid: NDArray[np.bool_] | None
    ) -> tuple[
        NDArray[np.float32], NDArray[np.uint8] | None, NDArray[np.bool_] | None, tuple[float, float, float]
    ]:
        assert scan.geometry is not None
        turned, geometry = to_canonical(np.moveaxis(scan.values, 0, -1), scan.geometry)
        image = np.moveaxis(turned, -1, 0)
        if labels is not None:
            labels, _ = to_canonical(labels, scan.geometry)
        if valid is not None:
            valid, _ = to_canonical(valid, scan.geometry)
        if self.spacing is None:
            return image, labels, valid, geometry.spacing
        shape = resampled_shape(geometry.shape, geometry.spacing, self.spacing)
        image = np.stack([resample_image(channel, shape) for channel in image])
        if labels is not None:
            labels = resample_labels(labels, shape)
        if valid is not None:
            valid = resample_labels(valid.astype(np.uint8), shape) > 0
        extent = [side * size for side, size in zip(geometry.shape, geometry.spacing, strict=True)]
        x, y, z = (length / side for length, side in zip(extent, shape, strict=True))
        return image, labels, valid, (x, y, z)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A model's input, and the way back.

    Attributes:
        image: float32, ``(channels, rows, columns)`` or ``(channels, x, y, z)``.
        labels: uint8 of the same shape without channels, if there is a truth.
        valid: The field of view, if there is one.
        spacing: mm along the spatial axes; ``None`` for pictures.
        scan: What was prepared.
    """

    image: NDArray[np.float32] = field(repr=False)
    labels: NDArray[np.uint8] | None = field(repr=False)
    valid: NDArray[np.bool_] | None = field(repr=False)
    spacing: tuple[float, ...] | None
    scan: Scan = field(repr=False)

    def restore(self, labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Classes on the prepared grid to classes on the scan's stored grid.

        Without resampling every voxel keeps its class. With it the classes are interpolated linearly, one by
        one, and the largest wins.
        """
        geometry = self.scan.geometry
        if geometry is None:
            return labels
        if self.scan.spatial_dims == 2:
            return np.ascontiguousarray(labels.T[..., None])
        _, canonical = to_canonical(np.empty(geometry.shape, dtype=np.bool_), geometry)
        if labels.shape != canonical.shape:
            labels = resample_labels(labels, canonical.shape)
        return from_canonical(labels, geometry)
