"""The segmentation task behind the plug point: data, model, training and evaluation as one `Task`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secfl.config import DpMode, Engine, RunConfig, TrainingConfig
from secfl.errors import ConfigError
from secfl.randomness import ExperimentSeed
from secfl.segmentation.data.cases import Case, Dataset, Truth, by_patient
from secfl.segmentation.data.loading import load_dataset, reading_of
from secfl.segmentation.data.public import split_public
from secfl.segmentation.digests import code_digest, settings_bytes
from secfl.segmentation.models.making import ModelMaker
from secfl.segmentation.models.registry import check_family, family_code, model_spec
from secfl.segmentation.task import LocalResult, ModelInputs, Preview, SiteMetrics, State, Task
from secfl.types import join_fields

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from secfl.segmentation.augmentation import Sample
    from secfl.segmentation.patient_gradients import Method
    from secfl.segmentation.training import Span

__all__ = ["Learned", "SegmentationTask", "build_task", "load_dataset", "reading_of"]

_PREVIEWS_PER_SITE = 3


class Learned(StrEnum):
    """Which part of a model a site goes on to train by itself."""

    HEAD = "head"
    ALL = "all"


def build_task(config: RunConfig, *, site: str | None = None) -> Task:
    """Read all data and check it, and check that the model can be built. Nothing is written.

    The process that coordinates sites with parameters of their own in other processes reads no masks: whole models are
    at the sites alone.

    Args:
        config: The run.
        site: The site whose process this is; ``None`` for whoever coordinates, or holds all.

    Raises:
        ConfigError: An unknown model, a device that is not there, or another number of clients than sites.
        DataError: An input file that cannot be used; the message names it.
    """
    check_family(config.model.name)
    coordinates = site is None and config.engine is Engine.MULTIPROCESS
    blind = coordinates and config.training.local_parameters != "none"
    truth = Truth.ELSEWHERE if blind else Truth.HERE
    dataset, public = split_public(load_dataset(config, truth=truth), config.data.public)
    if config.training.objective == "masked-images":
        from secfl.segmentation.pretraining import PretrainingTask

        return PretrainingTask(config, dataset)
    return SegmentationTask(config, dataset, public=public, truth=truth)


class SegmentationTask:
    """A `Task` over a `Dataset`, trained with torch.

    Args:
        config: The run.
        dataset: Every site's cases; they stay here.
        public: Cases that belong to nobody in the federation.
        truth: Whether this process has the labels.
    """

    def __init__(
        self,
        config: RunConfig,
        dataset: Dataset,
        *,
        public: Sequence[Case] = (),
        truth: Truth = Truth.HERE,
    ) -> None:
        from secfl.segmentation.models.checking import check_model
        from secfl.segmentation.models.parts import local_names
        from secfl.segmentation.personal import PersonalStates
        from secfl.segmentation.training import resolve_device

        self._config = config
        self._dataset = dataset
        self._seed = ExperimentSeed(config.seed)
        self._public = tuple(public)
        self._truth = truth
        if not dataset.classes_are_common and config.training.local_parameters != "head":
            raise ConfigError(
                "data.sites: the sites' classes differ; expected the same everywhere, or training.local_parameters "
                '= "head"'
            )
        own_heads = {
            site: len(dataset.names_at(site))
            for site in dataset.sites
            if len(dataset.names_at(site)) != dataset.classes
        }
        self._spec = model_spec(
            config.model,
            in_channels=dataset.channels,
            classes=dataset.classes,
            spatial_dims=dataset.spatial_dims,
        )
        self._models = ModelMaker(
            self._spec,
            seed=self._seed,
            device=resolve_device(config.training.device, config.training.precision),
            classes_at=own_heads,
            pretrained=None if config.model.pretrained is None else Path(config.model.pretrained),
        )
        self._samples: dict[str, list[Sample]] = {}
        model = self._models.fresh()
        check_model(model, self._spec)
        self._personal = PersonalStates(
            local_names(model, self._spec, config.training.local_parameters),
            self._models.first_state(),
            by_site={site: self._models.first_state(site) for site in own_heads},
        )
        if config.privacy.mode is DpMode.PATIENT:
            from secfl.segmentation.patient_gradients import refuse_mixing_layers

            refuse_mixing_layers(model)

    @property
    def sites(self) -> tuple[str, ...]:
        """Site names, sorted; valid client names."""
        return tuple(sorted(self._dataset.sites))

    @property
    def is_phantom(self) -> bool:
        """Whether no image shows a person."""
        return self._dataset.is_phantom

    @property
    def inputs(self) -> ModelInputs:
        """What the model is trained on."""
        return ModelInputs(
            channels=self._dataset.channels,
            class_names=tuple(self._dataset.class_names),
            spatial_dims=self._dataset.spatial_dims,
            names_by_site={} if self.classes_are_common else self._names_by_site(),
        )

    @property
    def measures(self) -> bool:
        """Whether this process has labels, and whole models, to measure on."""
        return self._truth is Truth.HERE

    @property
    def classes_are_common(self) -> bool:
        """Whether all sites have the same classes."""
        return self._dataset.classes_are_common

    def _names_by_site(self) -> dict[str, tuple[str, ...]]:
        return {site: tuple(self._dataset.names_at(site)) for site in self.sites}

    def digest(self) -> bytes:
        """SHA-256 of the settings of data preparation, model and training, the seed and this package's code.

        Left out, because sites may differ in them: where the images and the cache are, the device and its threads.
        """
        names = self._dataset.class_names if self.classes_are_common else self._names_by_site()
        more = {"channels": self._dataset.channels, "classes": names}
        return hashlib.sha256(
            join_fields(
                b"secfl/v1/segmentation-task",
                settings_bytes(self._config, more),
                self._code_digest,
                self._own_code_digest,
            )
        ).digest()

    @cached_property
    def _code_digest(self) -> bytes:
        return code_digest()

    @cached_property
    def _own_code_digest(self) -> bytes:
        return family_code(self._config.model.name)

    def examples(self, site: str) -> int:
        """Training images of a site."""
        return len(self._dataset.sites[site].train)

    def heterogeneity(self) -> Mapping[str, float]:
        """Divergence of the sites' intensities and of their foreground; see `data.heterogeneity`."""
        from secfl.segmentation.data import heterogeneity

        return {
            "intensity": heterogeneity.intensity_heterogeneity(self._dataset),
            "foreground": heterogeneity.foreground_heterogeneity(self._dataset),
        }

    def initial_state(self) -> State:
        """The first global model, without what stays at the sites; the same for the same seed."""
        return self._personal.shared(self._models.first_state())

    def train(self, site: str, state: State, *, round_index: int) -> LocalResult:
        """Train ``local_epochs`` epochs from ``state`` on one site's training images."""
        from secfl.segmentation.training import Span

        settings = self._config.training
        trained, loss = self._train(
            [site],
            self._personal.at_start(site, state, round_index=round_index),
            settings=settings,
            round_index=round_index,
            span=Span(
                first=round_index * settings.local_epochs,
                epochs=settings.local_epochs,
                total=settings.rounds * settings.local_epochs,
            ),
            label=f"train/{site}/{round_index}",
        )
        shared = self._personal.keep(site, trained)
        return LocalResult(state=shared, examples=self.examples(site), loss=loss)

    def personal_state(self, site: str) -> State:
        """The parameters that never leave this site; empty unless the configuration keeps some there."""
        return self._personal.of(site)

    def load_personal_state(self, site: str, state: State) -> None:
        """Take a site's own parameters back, as `personal_state` gave them."""
        self._personal.load(site, state)

    def public_score(self, state: State) -> float | None:
        """Mean Dice on the public images; ``None`` where there are none."""
        return (
            self._measure(self._public, self._personal.whole(state, None), None).dice
            if self._public
            else None
        )

    def train_reference(self, sites: Sequence[str], *, rounds: int) -> State:
        """A model trained without federation on the given sites' pooled training images, in one go.

        Raises:
            ConfigError: The sites' classes differ.
        """
        if len({self._dataset.names_at(site) for site in sites}) > 1:
            raise ConfigError(
                "references: no one model has the classes of several sites; expected sites with the same classes"
            )
        epochs = rounds * self._config.training.local_epochs
        label = "reference/" + "/".join(sorted(sites))
        return self._alone(
            sorted(sites), self._models.first_state(min(sites)), epochs=epochs, changes={}, label=label
        )

    def adapt(
        self, site: str, state: State, *, epochs: int, learned: Learned, learning_rate: float | None = None
    ) -> State:
        """Train a model further on one site alone, in one go with a schedule of its own.

        Args:
            site: Whose training images.
            state: A whole model, or what is shared of one, completed by the site's own part.
            epochs: Passes over the images.
            learned: The head alone (a linear probe, since it is one layer), or everything.
            learning_rate: Its peak; ``None`` for that of the configuration.

        Returns:
            The whole model. The site's own part, as `personal_state` gives it, stays as it was.
        """
        changes: dict[str, Any] = {"stages": (1,)} if learned is Learned.HEAD else {}
        if learning_rate is not None:
            changes["learning_rate"] = learning_rate
        whole = self._personal.whole(state, site)
        return self._alone(
            [site], whole, epochs=epochs, changes=changes, label=f"adapt/{learned.value}/{site}"
        )

    def _alone(
        self, sites: Sequence[str], state: State, *, epochs: int, changes: Mapping[str, Any], label: str
    ) -> State:
        """Train without a federation: no stages, unless asked for, and nothing to be pulled back to."""
        from secfl.segmentation.training import Span

        settings = self._config.training.model_copy(update={"proximal": 0.0, "stages": (), **changes})
        span = Span(first=0, epochs=epochs, total=epochs)
        return self._train(sites, state, settings=settings, round_index=0, span=span, label=label)[0]

    def patients(self, site: str) -> int:
        """Training patients of a site."""
        return len(by_patient(self._dataset.sites[site].train))

    def patient_gradients(
        self, site: str, state: State, chosen: NDArray[np.intp]
    ) -> Iterator[NDArray[np.float32]]:
        """Unclipped gradients, one row per chosen patient; see `PatientTask.patient_gradients`."""
        from secfl.segmentation.patient_gradients import PatientGradients
        from secfl.segmentation.training import deterministic, samples_of

        groups = by_patient(self._dataset.sites[site].train)
        with deterministic(self._config.threads):
            gradients = PatientGradients(
                self._models.loaded(state),
                multiple=self._spec.multiple,
                physical_batch=self._config.privacy.physical_batch,
                method=self._gradient_method,
            )
            yield from gradients.rows([samples_of(groups[index]) for index in chosen])

    @cached_property
    def _gradient_method(self) -> Method:
        from secfl.segmentation.patient_gradients import fastest_method

        sides = (2 * self._spec.multiple,) * self._spec.spatial_dims
        image = (self._dataset.channels, *sides)
        return fastest_method(self._models.fresh(), image=image, classes=self._dataset.classes)

    def evaluate(self, site: str, state: State) -> SiteMetrics:
        """Metrics of a model, with the site's own parameters, on its test images, inside the field of view."""
        return self._measure(self._dataset.sites[site].test, self._personal.whole(state, site), site)

    def training_dice(self, site: str, state: State) -> float:
        """Mean Dice on those of the site's own training images that show something, 0..1; 0 where none does."""
        cases = [case for case in self._dataset.sites[site].train if case.labels.any()]
        return self._measure(cases, self._personal.whole(state, site), site).dice if cases else 0.0

    def _measure(self, cases: Sequence[Case], state: State, site: str | None) -> SiteMetrics:
        from secfl.segmentation.metrics import measure
        from secfl.segmentation.training import deterministic

        predictions = self._predict(cases, state, site)
        names = self._dataset.class_names if site is None else self._dataset.names_at(site)
        # Single masks are too small for threads to be worth their synchronisation.
        with deterministic(1):
            return measure(cases, predictions, class_names=names)

    def previews(self, site: str, state: State) -> Sequence[Preview]:
        """The first few test cases with prediction."""
        from secfl.segmentation.previews import side_by_side

        cases = self._dataset.sites[site].test[:_PREVIEWS_PER_SITE]
        return [
            Preview(site=site, case=case.name, pixels=side_by_side(case, prediction))
            for case, prediction in zip(
                cases, self._predict(cases, self._personal.whole(state, site), site), strict=True
            )
        ]

    def module(self, state: State) -> tuple[nn.Module, int]:
        """A whole model on its device, and what the sides of its input must be multiples of."""
        return self._models.loaded(state), self._spec.multiple

    def _train(
        self,
        sites: Sequence[str],
        state: State,
        *,
        settings: TrainingConfig,
        round_index: int,
        span: Span,
        label: str,
    ) -> tuple[State, float]:
        """Train on the sites' images together."""
        from secfl.segmentation.models.parts import freeze_for_stage
        from secfl.segmentation.models.state import state_of
        from secfl.segmentation.training import deterministic, samples_of, train_span

        for site in sites:
            if site not in self._samples:
                self._samples[site] = samples_of(self._dataset.sites[site].train)
        with deterministic(self._config.threads):
            model = self._models.loaded(state, sites[0])
            freeze_for_stage(model, self._spec, stages=settings.stages, round_index=round_index)
            loss = train_span(
                model,
                [sample for site in sites for sample in self._samples[site]],
                settings=settings,
                span=span,
                multiple=self._spec.multiple,
                seed=self._seed.derive(label),
            )
            return state_of(model), loss

    def _predict(self, cases: Sequence[Case], state: State, site: str | None) -> list[NDArray[np.uint8]]:
        from secfl.segmentation.inference import predict
        from secfl.segmentation.training import deterministic

        with deterministic(self._config.threads):
            return predict(
                self._models.loaded(state, site),
                [case.image for case in cases],
                multiple=self._spec.multiple,
                augmentation=self._config.model.test_time_augmentation,
                window=self._config.training.crop,
            )
