"""Trained models for other programs: ONNX, with free batch and image sizes."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from secfl.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from secfl.segmentation.models.registry import ModelSpec

__all__ = ["export_onnx"]

_OPSET = 18


def export_onnx(model: nn.Module, spec: ModelSpec, path: Path) -> None:
    """Write a model as ONNX: input ``image`` ``(batch, in_channels, *spatial)``, output ``logits``.

    Sides of the image are free within multiples of ``spec.multiple``; intensities must be normalised as in
    training. Needs the extra ``secfl[onnx]``.

    Raises:
        ConfigError: The extra is not installed, the file cannot be written, or the network cannot be exported.
    """
    import torch

    try:
        import onnx  # noqa: F401 - torch imports it late and fails with a traceback
    except ImportError as error:
        raise ConfigError(
            f"ONNX: {error.name} is not installed; expected: pip install 'secfl[onnx]'"
        ) from None
    side = 2 * spec.multiple
    image = torch.zeros(2, spec.in_channels, *(side,) * spec.spatial_dims)
    names = ("height", "width") if spec.spatial_dims == 2 else ("depth", "height", "width")
    free = {0: "batch"} | {2 + axis: name for axis, name in enumerate(names)}
    was_training, device = model.training, next(model.parameters()).device
    model.eval().cpu()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    staged = path.with_name(f".{path.name}.part")
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            torch.onnx.export(
                model,
                (image,),
                str(staged),
                dynamo=False,
                opset_version=_OPSET,
                input_names=["image"],
                output_names=["logits"],
                dynamic_axes={"image": free, "logits": free},
            )
        staged.replace(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror})") from None
    except Exception as error:  # noqa: BLE001 - the exporter raises many kinds of errors
        line = str(error).split("\n", 1)[0][:200]
        raise ConfigError(
            f"{path}: {spec.family} cannot be exported ({type(error).__name__}: {line})"
        ) from None
    finally:
        staged.unlink(missing_ok=True)
        model.train(was_training).to(device)
