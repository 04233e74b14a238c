"""Where images come from: folders, or the embedded phantom. No torch in here."""

from secfl.segmentation.data.cases import Case, Dataset, SiteData

__all__ = ["Case", "Dataset", "SiteData"]
