"""Models to NumPy and back. A state holds every parameter once, in the model's order, as float32."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from secfl.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from secfl.segmentation.task import State

__all__ = ["load_state", "state_of"]


def state_of(model: nn.Module) -> State:
    """A copy of the model's parameters. One that the model shares between modules appears once."""
    return {
        name: np.array(parameter.detach().cpu().numpy(), dtype=np.float32)
        for name, parameter in model.named_parameters()
    }


def load_state(model: nn.Module, state: State) -> None:
    """Copy a state into the model.

    Raises:
        ConfigError: Another model's state: a name is missing or unknown, or a shape or type differs.
    """
    import torch

    parameters = dict(model.named_parameters())
    if different := sorted(set(parameters) ^ set(state)):
        raise ConfigError(
            f"model state: tensor {different[0]} is missing or unknown; expected the same model"
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            values = state[name]
            if values.shape != tuple(parameter.shape) or values.dtype != np.float32:
                raise ConfigError(
                    f"model state: tensor {name} is {values.dtype} of shape {values.shape}; "
                    f"expected float32 of shape {tuple(parameter.shape)}"
                )
            parameter.copy_(torch.from_numpy(np.array(values)))
