"""What torch finds on this machine, for people who set one up."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["TorchEnvironment", "torch_environment"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchEnvironment:
    """Torch's version, the threads it takes by default, and the CUDA devices it can use, by name."""

    version: str
    threads: int
    cuda_devices: tuple[str, ...]


def torch_environment() -> TorchEnvironment:
    """Ask torch. `ImportError` when it is not installed, or a library that it needs is missing."""
    import torch

    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else range(0)
    return TorchEnvironment(
        version=torch.__version__,
        threads=torch.get_num_threads(),
        cuda_devices=tuple(torch.cuda.get_device_name(index) for index in devices),
    )
