"""Gradients of single images from one backward pass over a batch, layer by layer.

An ordinary backward pass knows, at every layer, the gradient of each image's loss with respect to the layer's
output; the gradient of its weights is a product of that and the layer's input, image by image (Goodfellow 2015,
"Efficient per-example gradient computations"; Rochette et al. 2019 for convolutions). The batch's own weight
gradients are left out, so that this costs little more than a plain step.

This way trusts the model to keep images apart and to use each layer's weights in that layer alone;
`secfl.segmentation.patient_gradients.fastest_method` asks the model itself before it is used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import nn
from torch.nn import functional

__all__ = ["LayerGradients"]

_Rows: TypeAlias = dict[int, torch.Tensor]
"""Identity of a parameter -> its gradients, shape ``(images, *parameter)``."""

_CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
_NORMALISATIONS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.GroupNorm)


@dataclass(slots=True)
class _Visit:
    """One call of a layer: its input, as it was, and the gradient that came back to its output."""

    layer: nn.Module
    entered: torch.Tensor
    returned: torch.Tensor | None = None


class LayerGradients:
    """Per-image gradients of a model whose every parameter belongs to a layer that is known here.

    Args:
        model: Convolutions, transposed convolutions, instance and group normalisations, and layers without
            parameters.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    @staticmethod
    def covers(model: nn.Module) -> bool:
        """Whether every parameter belongs to one known layer. Subclasses count as unknown."""
        owners = [
            module for module in model.modules() if next(module.parameters(recurse=False), None) is not None
        ]
        names = sum(len(list(module.parameters(recurse=False))) for module in owners)
        return names == len(list(model.parameters())) and all(_is_known(module) for module in owners)

    def rows(
        self, image: torch.Tensor, losses: Callable[[torch.Tensor], torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Gradients by the parameters' names, shape ``(images, *parameter)``.

        Args:
            image: Shape ``(images, channels, *spatial)``.
            losses: From logits to one loss per image, shape ``(images,)``; image by image.

        Raises:
            RuntimeError: A layer's input was changed in place (autograd notices), or had another number of images.
        """
        visits: list[_Visit] = []
        parameters = dict(self._model.named_parameters())
        asked = {name: parameter.requires_grad for name, parameter in parameters.items()}
        owners = [module for module in self._model.modules() if _is_known(module)]
        # What changes a layer's output in place would take the layer out of the graph.
        changing = [module for module in self._model.modules() if getattr(module, "inplace", False) is True]
        handles = [module.register_forward_hook(_recorder(visits)) for module in owners]
        try:
            for module in changing:
                module.inplace = False
            for parameter in parameters.values():
                parameter.requires_grad_(requires_grad=False)
            # The batch's own weight gradients are never computed: only activations carry gradients.
            total = losses(self._model(image)).sum()
            torch.autograd.backward(total)
        finally:
            for handle in handles:
                handle.remove()
            for module in changing:
                module.inplace = True
            for name, parameter in parameters.items():
                parameter.requires_grad_(requires_grad=asked[name])
        found: _Rows = {}
        with torch.no_grad():
            for visit in visits:
                _add(found, visit, images=image.shape[0])
        return {
            name: found.get(id(parameter), parameter.new_zeros(image.shape[0], *parameter.shape))
            for name, parameter in parameters.items()
        }


def _is_known(module: nn.Module) -> bool:
    kind = type(module)
    if kind in _CONVOLUTIONS:
        assert isinstance(module, nn.modules.conv._ConvNd)  # noqa: SLF001 - the base of all convolutions
        return module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)
    if kind is nn.GroupNorm:
        return True
    return kind in _NORMALISATIONS and not module.track_running_stats


def _recorder(visits: list[_Visit]) -> Callable[..., None]:
    def hook(layer: nn.Module, entered: tuple[torch.Tensor, ...], left: torch.Tensor) -> None:
        visit = _Visit(layer, entered[0].detach())
        visits.append(visit)

        def keep(gradient: torch.Tensor) -> None:
            visit.returned = gradient

        # Not the image: the gradient of a convolution's input is slow where it has one channel, and nobody needs it.
        left.requires_grad_()
        left.register_hook(keep)

    return hook


def _add(found: _Rows, visit: _Visit, *, images: int) -> None:
    """Add one visit's share to its layer's parameters."""
    layer, entered, returned = visit.layer, visit.entered, visit.returned
    if returned is None:  # its output does not reach the loss
        return
    if entered.shape[0] != images or returned.shape[0] != images:
        raise RuntimeError(f"{type(layer).__name__}: {entered.shape[0]} inputs for {images} images")
    kind = type(layer)
    if kind in _CONVOLUTIONS:
        weight = _weight_rows(layer, entered, returned)
    else:
        weight = (
            (returned * _normalised(layer, entered)).flatten(2).sum(2) if layer.weight is not None else None
        )
    _accumulate(found, layer.weight, weight)
    if layer.bias is not None:
        _accumulate(found, layer.bias, returned.flatten(2).sum(2))


def _accumulate(found: _Rows, parameter: torch.Tensor | None, rows: torch.Tensor | None) -> None:
    if parameter is None or rows is None:
        return
    rows = rows.reshape(-1, *parameter.shape)
    earlier = found.get(id(parameter))
    found[id(parameter)] = rows if earlier is None else earlier + rows


def _weight_rows(layer: nn.Module, entered: torch.Tensor, returned: torch.Tensor) -> torch.Tensor:
    """Weight gradients of a convolution, image by image: images become groups of one convolution.

    Returns:
        Shape ``(images * first axis of the weight, *rest of the weight)``.
    """
    images = entered.shape[0]
    shape = layer.weight.shape
    _, weight, _ = torch.ops.aten.convolution_backward(
        returned.reshape(1, -1, *returned.shape[2:]),
        entered.reshape(1, -1, *entered.shape[2:]),
        layer.weight.new_empty(images * shape[0], *shape[1:]),  # only its shape counts
        None,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.transposed,
        layer.output_padding,
        images,
        [False, True, False],
    )
    return weight


def _normalised(layer: nn.Module, entered: torch.Tensor) -> torch.Tensor:
    if isinstance(layer, nn.GroupNorm):
        return functional.group_norm(entered, layer.num_groups, eps=layer.eps)
    return functional.instance_norm(entered, eps=layer.eps)
