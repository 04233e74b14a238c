"""Any network of MONAI by its name: ``monai:SegResNet``, with ``model.arguments`` from the configuration.

Arguments that every segmentation network needs (dimensions, channels, classes, normalisation) are filled in from
the data and the configuration where the network has them and they are not given.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from secfl.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from secfl.segmentation.models.registry import ModelSpec

__all__ = ["PREFIX", "build", "multiple"]

PREFIX = "monai:"
_MULTIPLE = 32


def build(spec: ModelSpec) -> nn.Module:
    """The network of ``monai.networks.nets`` that the family names.

    Raises:
        ConfigError: There is no such network, or it does not take these arguments.
    """
    from monai.networks import nets
    from torch import nn

    name = spec.family.removeprefix(PREFIX)
    network = getattr(nets, name, None)
    if not (isinstance(network, type) and issubclass(network, nn.Module)):
        raise ConfigError(
            f"model.name: {spec.family}: no such network; expected the name of a class of monai.networks.nets, "
            "for example monai:SegResNet"
        )
    wanted = inspect.signature(network.__init__).parameters
    arguments = {name: value for name, value in _usual(spec).items() if name in wanted}
    if "norm" in wanted:
        arguments.pop("norm_name", None)  # where there are both, this one wants a bare name
    arguments |= dict(spec.arguments)
    if unknown := sorted(set(arguments) - set(wanted)):
        raise ConfigError(f"model.arguments: {unknown[0]}: not an argument of {spec.family}")
    try:
        model: nn.Module = network(**arguments)
    except Exception as error:  # noqa: BLE001 - a library's constructor may raise anything
        line = str(error).split("\n", 1)[0][:200]
        raise ConfigError(
            f"model.arguments: {spec.family} cannot be built with them ({type(error).__name__}: {line})"
        ) from None
    model.register_forward_hook(_only)
    return model


def _only(model: nn.Module, inputs: object, outputs: object) -> object:  # noqa: ARG001 - the signature of a hook
    """Some networks return their logits as a list of one, for a supervision at several depths that is off."""
    return outputs[0] if isinstance(outputs, list | tuple) and len(outputs) == 1 else outputs


def multiple(spec: ModelSpec) -> int:  # noqa: ARG001 - every family answers the same question
    """Enough for five halvings; ``model.multiple`` of the configuration overrides it."""
    return _MULTIPLE


def _usual(spec: ModelSpec) -> dict[str, Any]:
    """What networks call the usual arguments."""
    layer: tuple[str, dict[str, Any]] = ("INSTANCE", {"affine": True})
    if spec.normalization == "group":
        layer = ("GROUP", {"num_groups": 8, "affine": True})
    return {
        "spatial_dims": spec.spatial_dims,
        "in_channels": spec.in_channels,
        "out_channels": spec.classes,
        "num_classes": spec.classes,
        "norm": layer,
        "norm_name": layer,
        "norm_type": layer,
    }
