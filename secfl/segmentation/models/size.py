"""How large a model is: parameters, memory and work, counted on shapes alone, without computing anything."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from secfl.segmentation.models.registry import ModelSpec, build_model

if TYPE_CHECKING:
    import torch

__all__ = ["ModelSize", "measure_size"]

_BYTES_OF_STATE = 16
"""Per parameter while training: value, gradient and both moments of AdamW, float32 each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """The size of a model for one image.

    Attributes:
        family: Its name.
        spatial_dims: 2 or 3.
        image: Sides of the image, pixels; all counts are for one such image.
        multiple: Sides must be multiples of it.
        parameters: Numbers that are learned, and sent in a round.
        gigaflops: Of a forward pass, in 1e9; a multiplication and an addition count as two. A training step takes
            about three times as many.
        state_megabytes: Parameters, gradients and the optimiser's moments, in 1e6 bytes.
        activation_megabytes: What a training step keeps for its backward pass, in 1e6 bytes.
    """

    family: str
    spatial_dims: int
    image: tuple[int, ...]
    multiple: int
    parameters: int
    gigaflops: float
    state_megabytes: float
    activation_megabytes: float

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "image": list(self.image)}


def measure_size(spec: ModelSpec, *, side: int) -> ModelSize:
    """Count for one image of ``side`` pixels in every direction, rounded up to the model's multiple.

    Raises:
        ConfigError: The model cannot be built.
    """
    import torch
    from torch.autograd.graph import saved_tensors_hooks
    from torch.utils.flop_counter import FlopCounterMode

    multiple = spec.multiple
    sides = (max(2, -(-side // multiple)) * multiple,) * spec.spatial_dims
    with torch.device("meta"):
        model = build_model(spec, seed=0)
        image = torch.zeros(1, spec.in_channels, *sides)
    parameters = {_storage(value) for value in model.parameters()}
    kept: dict[int, int] = {}
    held: list[torch.Tensor] = []  # so that no storage's handle is used twice

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if _storage(tensor) not in parameters:
            kept[_storage(tensor)] = tensor.untyped_storage().nbytes()
            held.append(tensor)
        return tensor

    with FlopCounterMode(display=False) as counter, saved_tensors_hooks(keep, lambda tensor: tensor):
        model(image)
    count = sum(value.numel() for value in model.parameters())
    return ModelSize(
        family=spec.family,
        spatial_dims=spec.spatial_dims,
        image=sides,
        multiple=multiple,
        parameters=count,
        gigaflops=counter.get_total_flops() / 1e9,
        state_megabytes=round(count * _BYTES_OF_STATE / 1e6, 3),
        activation_megabytes=round(sum(kept.values()) / 1e6, 3),
    )


def _storage(tensor: torch.Tensor) -> int:
    """What tells storages apart; those of shapes alone have no address."""
    handle: int = tensor.untyped_storage()._cdata  # noqa: SLF001 - there is no public name for it
    return handle
