"""The section ``[multi_model]``: every client its own model family."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from secfl.config.base import Section

__all__ = ["MultiModelConfig"]


class MultiModelConfig(Section):
    """Unlike models in one federation; off unless ``families`` is given.

    Attributes:
        families: One model family for each client, in the order of the sites' names.
        student: Family of the global model that is distilled from all of them.
        average: Families whose clients average their weights; by default those with enough clients.
        min_contributors: Fewest clients from whom any tensor may be opened.
        probability_bits: Bits of one client's probability on the grid.
        distill_epochs: Passes over the proxy images per round, for each client's model.
        student_epochs: The same for the student.
        weights: How much a client's map of a proxy image counts: all alike, more where the image is ``typical`` of
            the client's own training images, or more where the client's model shows ``skill`` on these images.
        weight_ratio: Largest weight over smallest, so that no map is one client's alone.
        sharpen: Exponent on the consensus' probabilities, which are then brought to 1 again; 1 leaves them.
    """

    families: tuple[str, ...] = ()
    student: str = "unet"
    average: tuple[str, ...] | None = None
    min_contributors: int = Field(default=3, ge=3)
    probability_bits: int = Field(default=8, ge=8, le=16)
    distill_epochs: int = Field(default=1, ge=0, le=1000)
    student_epochs: int = Field(default=4, ge=1, le=1000)
    weights: Literal["equal", "typical", "skill"] = "equal"
    weight_ratio: float = Field(default=4.0, gt=1, le=16)
    sharpen: float = Field(default=1.0, ge=1, le=16)
