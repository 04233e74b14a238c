"""Federated medical image segmentation with secure aggregation and a privacy ledger."""

from secfl._version import __version__

__all__ = ["__version__"]
