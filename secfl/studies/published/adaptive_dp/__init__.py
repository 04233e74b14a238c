"""ADP-FL (arXiv 2604.06518): what privacy costs in three modalities, and what an adaptive mechanism gives back."""

from __future__ import annotations

from secfl.studies.published.adaptive_dp.study import AdaptiveDp

__all__ = ["STUDY"]

STUDY = AdaptiveDp()
