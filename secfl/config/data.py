"""The section ``[data]``: where images are, and how files become a model's inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import Field, field_validator, model_validator

from secfl.config.base import Section

__all__ = ["DataConfig", "PhantomTaskName"]

_Millimetres: TypeAlias = Annotated[float, Field(gt=0, le=100)]


PhantomTaskName: TypeAlias = Literal[
    "leg-ct", "fundus", "dermoscopy", "ultrasound", "brain-mri", "kidney-ct", "chest-xray", "retina-oct"
]


class DataConfig(Section):
    """Where the images are.

    Attributes:
        source: A folder ``<site>/images``, ``<site>/masks``, or ``phantom``.
        phantom_task: Which phantom: modality and anatomy.
        phantom_images: Images per site of the phantom (train and test together).
        image_size: Side of the phantom's images, pixels.
        phantom_target: What is to be found in the leg: the deep ``vein`` with any thrombus in it, the ``thrombus``
            alone, or all ``tissues`` (skin and fat, muscle, bone, artery, vein).
        test_fraction: Share of each site's patients kept for the test where there is no ``splits.json``.
        normalization: Of folder images, inside the field of view: one mean and deviation per image and channel,
            or ``local`` ones around every pixel, which also removes uneven illumination.
        labels: Foreground class -> stored values in the masks (for DICOM SEG also segment labels); a table
            ``[data.labels]``. Without it masks are binary.
        windows: Intervals of the images' units (HU for CT) mapped to -1..1, one channel each, in place of
            ``normalization``; for images with one channel.
        spacing: Voxel size in mm that volumes are resampled to: to the right, to the front, to the head.
        cache: A folder for prepared images, which are then mapped rather than held in memory.
        public: Sites whose images belong to nobody in the federation: they validate for early stopping (with
            their masks) and are the proxy set of several model families (without). Of the phantom, sites of
            these names are made in addition.
    """

    source: str = "phantom"
    phantom_task: PhantomTaskName = "leg-ct"
    phantom_images: int = Field(default=60, ge=8, le=100_000)
    image_size: int = Field(default=96, ge=32, le=1024)
    phantom_target: Literal["vein", "thrombus", "tissues"] = "vein"
    test_fraction: float = Field(default=0.25, gt=0, lt=1)
    normalization: Literal["zscore", "local"] = "zscore"
    labels: Mapping[str, tuple[int | str, ...]] = {}
    windows: tuple[tuple[float, float], ...] = Field(default=(), max_length=8)
    spacing: tuple[_Millimetres, _Millimetres, _Millimetres] | None = None
    cache: str | None = Field(default=None, min_length=1)
    public: tuple[str, ...] = ()

    @field_validator("labels", mode="before")
    @classmethod
    def _one_value_or_several(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        return {
            name: (value,) if isinstance(value, int | str) and not isinstance(value, bool) else value
            for name, value in given.items()
        }

    @field_validator("windows")
    @classmethod
    def _from_low_to_high(cls, given: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
        if any(low >= high for low, high in given):
            raise ValueError("expected pairs of a lower and a higher value, such as [[-160, 240]]")
        return given

    @model_validator(mode="after")
    def _the_leg_has_targets(self) -> Self:
        if self.phantom_task != "leg-ct" and self.phantom_target != "vein":
            raise ValueError(f"phantom_target: {self.phantom_target} belongs to leg-ct; leave it out")
        return self

    @property
    def is_phantom(self) -> bool:
        """Whether the embedded generator makes the images."""
        return self.source == "phantom"
