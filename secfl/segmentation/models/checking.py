"""Does a model do what the rest of the package expects of it? Asked once, before anything is written."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from secfl.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from secfl.segmentation.models.registry import ModelSpec

__all__ = ["check_model"]


def check_model(model: nn.Module, spec: ModelSpec) -> None:
    """Let a model look at an image of zeros.

    Raises:
        ConfigError: It fails, or does not return one logit per class and pixel; the message names the family.
    """
    side = 2 * spec.multiple
    image = torch.zeros(1, spec.in_channels, *(side,) * spec.spatial_dims)
    shape = "x".join(str(length) for length in image.shape)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            found = model(image)
    except Exception as error:  # noqa: BLE001 - somebody else's code may raise anything
        line = str(error).split("\n", 1)[0][:200]
        raise ConfigError(
            f"model.name: {spec.family} fails on an image of {shape} ({type(error).__name__}: {line}); expected a "
            f"network for images whose sides are multiples of {spec.multiple} (model.multiple)"
        ) from None
    finally:
        model.train(was_training)
    expected = (1, spec.classes, *image.shape[2:])
    if not isinstance(found, torch.Tensor) or found.shape != expected:
        got = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
        raise ConfigError(
            f"model.name: {spec.family} returns {got} for an image of {shape}; expected logits of shape {expected}"
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(f"model.name: {spec.family} has nothing to train; expected parameters")
