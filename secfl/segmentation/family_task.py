"""One model family in a federation of several: local training, its view of the proxy images, and distillation.

The proxy images belong to nobody, and their labels are never read: what crosses between families is the mean of all
clients' class probabilities on them (Li and Wang 2019, "FedMD"; Lin et al. 2020, "FedDF"), quantised and added like
any other vector.
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
        self._task = SegmentationTask(config.model_copy(update={"model": model}), dataset)

    @property
    def task(self) -> Task:
        """Local training and evaluation."""
        return self._task

    def undecided(self) -> State:
        """One map per proxy image, foreground classes first axis, one half everywhere."""
        return {
            f"maps.{number:05d}": np.full((self._classes - 1, *image.shape[1:]), UNDECIDED, np.float32)
            for number, (image, _) in enumerate(self._proxy)
        }

    def maps(self, state: State) -> State:
        """The model's probability of every foreground class on every proxy image; shapes as `undecided`."""
        from secfl.segmentation.inference import probabilities
        from secfl.segmentation.training import deterministic

        found: dict[str, NDArray[np.float32]] = {}
        with deterministic(self._config.threads):
            import torch

            model, multiple = self._task.module(state)
            for number, (image, _) in enumerate(self._proxy):
                batch = torch.from_numpy(np.ascontiguousarray(image))[None]
                values = probabilities(model, batch, multiple=multiple)[0, 1:]
                found[f"maps.{number:05d}"] = values.float().cpu().numpy()
        return found

    def distill(self, state: State, maps: State, *, epochs: int, round_index: int, label: str) -> State:
        """Train a model on the proxy images towards the consensus.

        Args:
            state: The model.
            maps: The mean of all clients' maps; values are cut to 0..1.
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
            ProxyImage.of(image, maps[f"maps.{number:05d}"], valid)
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
