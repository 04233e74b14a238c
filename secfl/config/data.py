"""The section ``[data]``: where images are, and how files become a model's inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import Field, ValidationError, field_validator, model_validator

from secfl.config.base import Section
from secfl.errors import ConfigError
from secfl.types import client_id

__all__ = ["DataConfig", "PhantomTaskName", "SiteDataConfig"]

_Millimetres: TypeAlias = Annotated[float, Field(gt=0, le=100)]


PhantomTaskName: TypeAlias = Literal[
    "leg-ct", "fundus", "dermoscopy", "ultrasound", "brain-mri", "kidney-ct", "chest-xray", "retina-oct"
]


def _one_value_or_several(given: Any) -> Any:
    if not isinstance(given, Mapping):
        return given
    return {
        name: (value,) if isinstance(value, int | str) and not isinstance(value, bool) else value
        for name, value in given.items()
    }


class SiteDataConfig(Section):
    """One site's own data: ``[data.sites.<name>]``. A key that is not given is that of ``[data]``.

    Attributes:
        source: This site's own folder, with ``images`` and ``masks`` in it, or ``phantom``. A ``splits.json`` and a
            ``patients.csv`` beside that folder count.
        phantom_task: As in ``[data]``, and so are all other keys.
        phantom_images: See there.
        phantom_target: See there.
        test_fraction: See there.
        normalization: See there.
        labels: See there.
        windows: See there.
        spacing: See there.
        slices: See there.
    """

    source: str | None = Field(default=None, min_length=1)
    phantom_task: PhantomTaskName | None = None
    phantom_images: int | None = None
    phantom_target: Literal["vein", "thrombus", "tissues"] | None = None
    test_fraction: float | None = None
    normalization: Literal["zscore", "local"] | None = None
    labels: Mapping[str, tuple[int | str, ...]] | None = None
    windows: tuple[tuple[float, float], ...] | None = None
    spacing: tuple[_Millimetres, _Millimetres, _Millimetres] | None = None
    slices: int | None = None

    _labels = field_validator("labels", mode="before")(_one_value_or_several)


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
        channels: Bring every image to so many channels, where modalities differ: fewer are repeated in turn, several
            are averaged into 1.
        slices: Take so many equally spaced axial slices of every volume as pictures.
        sites: Sites with data of their own, by name, such as another task or other classes; ``source`` then has no
            meaning. Classes may differ where ``training.local_parameters`` is ``head``.
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
    channels: int | None = Field(default=None, ge=1, le=64)
    slices: int | None = Field(default=None, ge=1, le=4096)
    sites: Mapping[str, SiteDataConfig] = {}

    _labels = field_validator("labels", mode="before")(_one_value_or_several)

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

    @model_validator(mode="after")
    def _sites_are_possible(self) -> Self:
        for name in self.sites:
            try:
                client_id(name)
            except ConfigError as error:
                raise ValueError(f"sites: {error}") from None
            try:
                self.of_site(name)
            except ValidationError as error:
                first = error.errors()[0]
                key = ".".join(str(part) for part in (name, *first["loc"]))
                raise ValueError(f"sites.{key}: {first['msg'].removeprefix('Value error, ')}") from None
        return self

    def of_site(self, name: str) -> DataConfig:
        """The data of one site as if it were alone, its own keys laid over the common ones.

        Raises:
            KeyError: It has no table of its own.
        """
        common = self.model_dump(exclude={"sites", "public"})
        return DataConfig.model_validate(common | self.sites[name].model_dump(exclude_none=True))

    @property
    def is_phantom(self) -> bool:
        """Whether the embedded generator makes all images."""
        if self.sites:
            return all(self.of_site(name).is_phantom for name in self.sites)
        return self.source == "phantom"
