"""The model and the images that belong to nobody."""

import torch
from torch import nn


class SmallNetwork(nn.Module):
    """Two layers: which of three classes a point of eight numbers belongs to."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        """Scores of the classes, shape ``(points, 3)``."""
        return self.layers(points)


def points_of(source: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points around three centres, and which one each belongs to; every source has its own."""
    centres = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(100 + source)
    classes = torch.randint(3, (count,), generator=generator)
    return centres[classes] + torch.randn(count, 8, generator=generator), classes
