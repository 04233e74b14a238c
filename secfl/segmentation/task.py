"""The plug point between federation and learning: what a federation needs from a task, as NumPy values.

The federation never sees torch. A task holds the data of every site it was given; in deployment that is one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, Self, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "DescribedTask",
    "LocalResult",
    "MeasuringTask",
    "ModelInputs",
    "OwnClassesTask",
    "PatientTask",
    "PersonalTask",
    "Preview",
    "PublicTask",
    "SegmentingTask",
    "SiteMetrics",
    "State",
    "Task",
    "Trainer",
]

State: TypeAlias = Mapping[str, NDArray[np.float32]]
"""A model's tensors by name, in the model's own order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalResult:
    """The outcome of one site's training in one round."""

    state: State = field(repr=False)
    examples: int
    loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteMetrics:
    """Metrics of one model on one site's test images. For evaluation in simulation only.

    Attributes:
        dice: Mean over cases of the Dice coefficient, 0..1.
        iou: Mean over cases of the Jaccard index, 0..1.
        accuracy: Share of pixels labelled correctly, 0..1.
        balanced_accuracy: Mean of sensitivity and specificity over pixels, 0..1.
        foreground_fraction: Share of foreground pixels in the truth.
        hd95: 95th percentile of the symmetric surface distance, pixels (mm with a voxel spacing); mean over
            cases where both masks are non-empty; ``None`` when there is none.
        empty_cases: Cases in which truth or prediction is empty.
        cases: Number of test cases.
        dice_by_class: Mean Dice over cases of every foreground class, by its name.
    """

    dice: float
    iou: float
    accuracy: float
    balanced_accuracy: float
    foreground_fraction: float
    hd95: float | None
    empty_cases: int
    cases: int
    dice_by_class: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of_score(cls, score: float, *, cases: int, foreground_fraction: float = 0.0) -> Self:
        """For a task that has one score, larger when better, instead of masks: it stands for every overlap."""
        return cls(
            dice=score,
            iou=score,
            accuracy=score,
            balanced_accuracy=score,
            foreground_fraction=foreground_fraction,
            hd95=None,
            empty_cases=0,
            cases=cases,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """Image, truth and prediction of one case, side by side: uint8, shape ``(height, 3 * width, 3)``."""

    site: str
    case: str
    pixels: NDArray[np.uint8] = field(repr=False)


class Trainer(Protocol):
    """What a site's part of a round needs of a task."""

    def train(self, site: str, state: State, *, round_index: int) -> LocalResult:
        """Work from ``state`` on one site; see `Task.train`."""
        ...


class Task(Protocol):
    """What is learned: data by site and one model family."""

    @property
    def sites(self) -> tuple[str, ...]:
        """Site names, sorted; valid client names."""
        ...

    @property
    def is_phantom(self) -> bool:
        """Whether no image shows a person."""
        ...

    def digest(self) -> bytes:
        """SHA-256 of everything that affects training besides the model and the data: settings and code."""
        ...

    def examples(self, site: str) -> int:
        """Training images of a site."""
        ...

    def initial_state(self) -> State:
        """The first global model; the same for the same seed."""
        ...

    def train(self, site: str, state: State, *, round_index: int) -> LocalResult:
        """Train from ``state`` on one site.

        Depends on nothing but the settings, the site, the round and the state, so that a resumed run repeats
        it bit for bit.
        """
        ...

    def train_reference(self, sites: Sequence[str], *, rounds: int) -> State:
        """A model trained without federation on the given sites' pooled training images.

        It takes as many passes over the data as ``rounds`` federated rounds.
        """
        ...

    def evaluate(self, site: str, state: State) -> SiteMetrics:
        """Metrics of a model on a site's test images."""
        ...

    def previews(self, site: str, state: State) -> Sequence[Preview]:
        """A few test cases with prediction, for people."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInputs:
    """What a model was trained on, as far as its settings do not say.

    Attributes:
        channels: Channels of the image.
        class_names: The classes in the order of the model's outputs, the background first.
        spatial_dims: 2 for pictures and slices, 3 for volumes.
        names_by_site: ``class_names`` of sites with a head for their own classes.
    """

    channels: int
    class_names: tuple[str, ...]
    spatial_dims: int
    names_by_site: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def at(self, site: str | None) -> ModelInputs:
        """The inputs of one site's model."""
        names = self.class_names if site is None else self.names_by_site.get(site, self.class_names)
        return replace(self, class_names=names, names_by_site={})


@runtime_checkable
class SegmentingTask(Task, Protocol):
    """A task whose model can be put to work on image files."""

    @property
    def inputs(self) -> ModelInputs:
        """What the model is trained on."""
        ...


@runtime_checkable
class DescribedTask(Task, Protocol):
    """A task that can compare the data of several sites; only a simulation holds them all."""

    def heterogeneity(self) -> Mapping[str, float]:
        """Indices between 0 (alike) and 1 (nothing in common), by name."""
        ...


@runtime_checkable
class OwnClassesTask(Task, Protocol):
    """A task in which sites may have classes of their own, each with a head for them."""

    @property
    def classes_are_common(self) -> bool:
        """Whether all sites have the same classes, so that every model fits every site."""
        ...


@runtime_checkable
class PersonalTask(Task, Protocol):
    """A task in which some parameters never leave their site: they are not in the states that are exchanged.

    `Task.train` moves them on, so whoever interrupts a run keeps them; a second training in the same round starts
    again from where the first one did.
    """

    def personal_state(self, site: str) -> State:
        """A site's own parameters; empty where there are none."""
        ...

    def load_personal_state(self, site: str, state: State) -> None:
        """Take them back."""
        ...


@runtime_checkable
class PublicTask(Task, Protocol):
    """A task with images that belong to nobody, on which anybody may measure."""

    def public_score(self, state: State) -> float | None:
        """Mean Dice of a model on the public images; ``None`` where there are none."""
        ...


@runtime_checkable
class MeasuringTask(Task, Protocol):
    """A task that knows whether it can measure: some processes have neither all heads nor labels."""

    @property
    def measures(self) -> bool:
        """Whether `Task.evaluate` and `Task.previews` mean anything here."""
        ...


@runtime_checkable
class PatientTask(Task, Protocol):
    """A task that can give the gradient of one patient at a time."""

    def patients(self, site: str) -> int:
        """Training patients of a site. Local: never sent."""
        ...

    def patient_gradients(
        self, site: str, state: State, chosen: NDArray[np.intp]
    ) -> Iterator[NDArray[np.float32]]:
        """Gradients of the loss at ``state``, one row per chosen patient, in chunks.

        All slices or patches of a patient are averaged into the patient's row. A row depends on the state and
        that patient alone. Rows are not clipped and may hold NaN.

        Args:
            site: The site.
            state: The global model.
            chosen: Indices of patients, increasing.

        Yields:
            float32, shape ``(k, d)``, tensors in the order of ``state``; memory is bounded by the physical batch.
        """
        ...
