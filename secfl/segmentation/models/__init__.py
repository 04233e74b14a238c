"""Model families, by name. One file per family; torch is loaded when a model is built."""

from secfl.segmentation.models.registry import (
    ModelSpec,
    build_model,
    check_family,
    families,
    model_spec,
)

__all__ = ["ModelSpec", "build_model", "check_family", "families", "model_spec"]
