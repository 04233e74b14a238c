"""Models of one run: fresh ones, first states, and ones that hold a given state, on the run's device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from secfl.randomness import ExperimentSeed
from secfl.segmentation.models.registry import ModelSpec, build_model
from secfl.segmentation.task import State

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["ModelMaker"]

_LABEL = "initial-state"


class ModelMaker:
    """Builds a run's model, for everybody or with a head for one site's own classes.

    Args:
        spec: The model for the classes that all sites have.
        seed: Of the run; the same first weights for the same seed.
        device: Where loaded models go.
        classes_at: Number of classes, for each site that has another number of them.
        pretrained: A safetensors file from which first states start.
    """

    def __init__(
        self,
        spec: ModelSpec,
        *,
        seed: ExperimentSeed,
        device: torch.device,
        classes_at: Mapping[str, int] = MappingProxyType({}),
        pretrained: Path | None = None,
    ) -> None:
        self.spec = spec
        self._seed = seed.derive(_LABEL)
        self._device = device
        self._classes_at = dict(classes_at)
        self._pretrained = pretrained

    def fresh(self, site: str | None = None) -> nn.Module:
        """The first model, with a head for the classes of a site.

        Raises:
            ConfigError: The family cannot be built as asked.
        """
        classes = self._classes_at.get(site, self.spec.classes) if site is not None else self.spec.classes
        return build_model(replace(self.spec, classes=classes), seed=self._seed)

    def loaded(self, state: State, site: str | None = None) -> nn.Module:
        """A model with this state, on the device.

        Raises:
            ConfigError: The state belongs to another model.
        """
        from secfl.segmentation.models.state import load_state

        model = self.fresh(site)
        load_state(model, state)
        return model.to(self._device)

    def first_state(self, site: str | None = None) -> State:
        """Where a whole model starts: everywhere the same, but for a head for a site's own classes.

        Raises:
            DataError: The pre-trained file cannot be used.
        """
        from secfl.segmentation.models.state import state_of

        if site is not None and site in self._classes_at:
            common, own = self.first_state(), state_of(self.fresh(site))
            return {
                name: common[name] if name in common and common[name].shape == tensor.shape else tensor
                for name, tensor in own.items()
            }
        model = self.fresh()
        if self._pretrained is None:
            return state_of(model)
        from secfl.segmentation.models.parts import head_names
        from secfl.segmentation.pretraining import read_pretrained, transfer

        pretrained = read_pretrained(self._pretrained)
        return transfer(pretrained, state_of(model), head=head_names(model, self.spec))
