"""One model family in a federation of several: local training, its view of the proxy images, and distillation.

The proxy images belong to nobody, and their labels are never read: what crosses between families is the mean of all
clients' class probabilities on them (Li and Wang 2019, "FedMD"; Lin et al. 2020, "FedDF"), quantised and added like
any other vector. Where maps are weighted, clients send the product of weight and probability, and the weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from secfl.config import RunConfig
from secfl.errors import ConfigError
from secfl.randomness import ExperimentSeed
from secfl.segmentation.data.cases import Case, Dataset
from secfl.segmentation.data.public import split_public
from secfl.segmentation.models.registry import check_family
from secfl.segmentation.segmentation_task import SegmentationTask, load_dataset
from secfl.segmentation.task import State, Task

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["FamilyTask", "build_family_tasks"]

UNDECIDED = 0.5
"""Where the maps of every round start: clients send by how much they differ from it."""

_WEIGHTS = "weights"

_SKILL_POWER = 8
"""Of the Dice that is a client's skill: 0.99 counts 0.92, 0.9 counts 0.43, 0.7 counts 0.06."""


def build_family_tasks(config: RunConfig) -> dict[str, FamilyTask]:
    """One task for every family of ``[multi_model]`` and for the student, over the same data.

    Raises:
        ConfigError: An unknown family, no public images, or another number of families than sites.
        DataError: An input file that cannot be used.
    """
    settings = config.multi_model
    names = sorted({*settings.families, settings.student})
    for name in names:
        check_family(name)
    dataset, public = split_public(load_dataset(config), config.data.public)
    if len(settings.families) != len(dataset.sites):
        raise ConfigError(
            f"multi_model.families: {len(settings.families)} families for {len(dataset.sites)} sites; expected one "
            "for each site"
        )
    return {name: FamilyTask(config, dataset, public, family=name) for name in names}


class FamilyTask:
    """A family over all sites' data and the proxy images.

    Args:
        config: The run.
        dataset: Every site's cases.
        public: The proxy images; their labels are not looked at.
        family: The model family.
    """

    def __init__(self, config: RunConfig, dataset: Dataset, public: Sequence[Case], *, family: str) -> None:
        same = family == config.model.name
        own = {"name": family} | ({} if same else {"arguments": {}, "multiple": None})
        model = config.model.model_copy(update=own)
        self._config = config
        self._classes = dataset.classes
        self._proxy = tuple((case.image, case.valid) for case in public)
        self._dataset = dataset
        self._typical: dict[str, NDArray[np.float32]] = {}
        self._task = SegmentationTask(config.model_copy(update={"model": model}), dataset)

    @property
    def task(self) -> Task:
        """Local training and evaluation."""
        return self._task

    def undecided(self) -> State:
        """One map per proxy image, foreground classes first axis, one half everywhere; then weights, if asked for."""
        maps = {
            _map(number): np.full((self._classes - 1, *image.shape[1:]), UNDECIDED, np.float32)
            for number, (image, _) in enumerate(self._proxy)
        }
        if self._config.multi_model.weights != "equal":
            maps[_WEIGHTS] = np.full(len(self._proxy), UNDECIDED, np.float32)
        return maps

    def maps(self, state: State, *, site: str) -> State:
        """What a client sends: its model's probability of every foreground class on every proxy image.

        Where maps are weighted, a probability's difference from one half is multiplied by the image's weight for the
        site, so that it lies within the same bounds. Shapes are those of `undecided`.
        """
        from secfl.segmentation.inference import probabilities
        from secfl.segmentation.training import deterministic

        found: dict[str, NDArray[np.float32]] = {}
        with deterministic(self._config.threads):
            import torch

            model, multiple = self._task.module(state)
            for number, (image, _) in enumerate(self._proxy):
                batch = torch.from_numpy(np.ascontiguousarray(image))[None]
                values = probabilities(model, batch, multiple=multiple)[0, 1:]
                found[_map(number)] = values.float().cpu().numpy()
        if self._config.multi_model.weights == "equal":
            return found
        weights = self.weights(site, state)
        for number, weight in enumerate(weights):
            found[_map(number)] = UNDECIDED + weight * (found[_map(number)] - np.float32(UNDECIDED))
        return found | {_WEIGHTS: weights}

    def weights(self, site: str, state: State) -> NDArray[np.float32]:
        """How much a site's map of every proxy image counts, ``1 / weight_ratio`` to 1.

        ``typical``: how typical the image is of the site's training images. ``skill``: how well the model segments
        these, a power of its mean Dice and the same for every image. Both come from what the site trains on; test
        images play no part.
        """
        settings = self._config.multi_model
        if settings.weights == "skill":
            skill = self._task.training_dice(site, state) ** _SKILL_POWER
            return np.full(len(self._proxy), max(skill, 1 / settings.weight_ratio), np.float32)
        from secfl.segmentation.typicality import describe_image, typicality

        if site not in self._typical:
            found = typicality(
                [describe_image(image, valid) for image, valid in self._proxy],
                [describe_image(case.image, case.valid) for case in self._dataset.sites[site].train],
                ratio=settings.weight_ratio,
            )
            self._typical[site] = found.astype(np.float32)
        return self._typical[site]

    def consensus(self, opened: State) -> State:
        """What all clients together think of the proxy images, out of the mean of what they sent.

        Returns:
            One map per proxy image, 0..1: the weighted mean of probabilities, sharpened if asked for.
        """
        settings = self._config.multi_model
        least = np.float32(1 / settings.weight_ratio)
        found: dict[str, NDArray[np.float32]] = {}
        for number in range(len(self._proxy)):
            values = opened[_map(number)]
            if settings.weights != "equal":
                weight = np.clip(opened[_WEIGHTS][number], least, 1)
                values = UNDECIDED + (values - np.float32(UNDECIDED)) / weight
            found[_map(number)] = _sharpened(np.clip(values, 0, 1), settings.sharpen)
        return found

    def distill(self, state: State, maps: State, *, epochs: int, round_index: int, label: str) -> State:
        """Train a model on the proxy images towards the consensus.

        Args:
            state: The model.
            maps: The consensus.
            epochs: Passes over the proxy images.
            round_index: From 0; places the passes in the learning rate's schedule.
            label: Whose model it is, for the order of the images.
        """
        if not epochs:
            return state
        from secfl.segmentation.distillation import ProxyImage, distill
        from secfl.segmentation.models.state import state_of
        from secfl.segmentation.training import Span, deterministic

        rounds = self._config.training.rounds
        images = [
            ProxyImage.of(image, maps[_map(number)], valid)
            for number, (image, valid) in enumerate(self._proxy)
        ]
        with deterministic(self._config.threads):
            model, multiple = self._task.module(state)
            distill(
                model,
                images,
                settings=self._config.training,
                span=Span(first=round_index * epochs, epochs=epochs, total=rounds * epochs),
                multiple=multiple,
                seed=ExperimentSeed(self._config.seed).derive(f"distill/{label}/{round_index}"),
            )
            return state_of(model)


def _map(number: int) -> str:
    """The tensor of a proxy image."""
    return f"maps.{number:05d}"


def _sharpened(maps: NDArray[np.float32], exponent: float) -> NDArray[np.float32]:
    """Foreground probabilities, first axis, with the background's, to a power and brought to 1 again."""
    if exponent == 1:
        return maps
    everything = np.concatenate([np.clip(1 - maps.sum(axis=0, keepdims=True), 0, 1), maps]) ** exponent
    found: NDArray[np.float32] = (everything / everything.sum(axis=0, keepdims=True))[1:].astype(np.float32)
    return found
