"""Parts of a model by their role: which parameters normalise, which are the head, which lie on the way up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from secfl.segmentation.models.registry import ModelSpec

__all__ = ["freeze_for_stage", "head_names", "local_names", "normalization_names", "order_of_use"]

_NORMALIZATIONS = (
    nn.GroupNorm,
    nn.LayerNorm,
    nn.modules.instancenorm._InstanceNorm,  # noqa: SLF001 - the common base of all dimensions
)


def normalization_names(model: nn.Module) -> frozenset[str]:
    """Parameters of normalisation layers."""
    inside = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, _NORMALIZATIONS)
        for parameter in module.parameters(recurse=False)
    }
    return frozenset(name for name, parameter in model.named_parameters() if id(parameter) in inside)


def order_of_use(model: nn.Module, spec: ModelSpec) -> tuple[str, ...]:
    """Names of parameters in the order in which a forward pass reaches their layers, whatever the model's own order.

    A layer that is used several times counts at its last use; parameters that no layer of their own holds are left
    out.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    seen: dict[str, None] = {}

    def note(module: nn.Module, inputs: object) -> None:  # noqa: ARG001 - the signature of a hook
        for parameter in module.parameters(recurse=False):
            seen.pop(names[id(parameter)], None)
            seen[names[id(parameter)]] = None

    handles = [module.register_forward_pre_hook(note) for module in model.modules()]
    was_training = model.training
    try:
        device = next(model.parameters()).device
        image = torch.zeros(1, spec.in_channels, *(2 * spec.multiple,) * spec.spatial_dims, device=device)
        with torch.no_grad():
            model.eval()(image)
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    return tuple(seen)


def head_names(model: nn.Module, spec: ModelSpec) -> frozenset[str]:
    """Parameters of the last layer that a forward pass reaches: its shape depends on the number of classes."""
    last = order_of_use(model, spec)[-1].rpartition(".")[0]
    return frozenset(name for name, _ in model.named_parameters() if name.rpartition(".")[0] == last)


def local_names(model: nn.Module, spec: ModelSpec, kind: str) -> frozenset[str]:
    """Parameters that ``training.local_parameters`` keeps at the sites."""
    if kind == "normalization":
        return normalization_names(model)
    return head_names(model, spec) if kind == "head" else frozenset()


def freeze_for_stage(model: nn.Module, spec: ModelSpec, *, stages: tuple[int, ...], round_index: int) -> None:
    """Let learn what learns in this round: the head alone, then all after the narrowest level, then everything.

    Args:
        model: Its parameters' ``requires_grad`` is set.
        spec: What it was built from.
        stages: Rounds of the first stage, and of the second.
        round_index: From 0.
    """
    if round_index >= sum(stages):
        return
    if round_index < stages[0]:
        learned = head_names(model, spec)
    else:
        order = order_of_use(model, spec)
        sizes = {name: parameter.shape[0] for name, parameter in model.named_parameters()}
        widest = max(range(len(order)), key=lambda place: (sizes[order[place]], place))
        learned = frozenset(order[widest + 1 :])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in learned)
