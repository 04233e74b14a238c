"""MedUniverse: a backbone pre-trained without labels and averaged securely over eight unlike tasks."""

from secfl.studies.published.universal.study import UniversalStudy

__all__ = ["STUDY"]

STUDY = UniversalStudy()
