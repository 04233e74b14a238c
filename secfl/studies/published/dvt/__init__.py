"""Deep veins of the leg, segmented by unlike models: the published system in three phases, measured again."""

from secfl.studies.published.dvt.study import STUDY

__all__ = ["STUDY"]
