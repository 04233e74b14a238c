"""Audit one step of Opacus' DP-SGD, and the same step with the clip taken off.

Neighbours: eight patients, and the same eight with one more whose gradient is far longer than the clip. The output
is the noisy gradient sum. Run it: ``python examples/audit_opacus.py`` (about half a minute).
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import nn

from secfl.audit import Assumed, audit_mechanism
from secfl.dp.analytic import analytic_gaussian_epsilon

MULTIPLIER, CLIP, DELTA, DRAWS = 2.0, 1.0, 1e-5, 3000


def one_step(inputs: torch.Tensor, *, clip: float) -> NDArray[np.float64]:
    """The noisy sum of clipped gradients of a linear model, as Opacus computes it; noise for a clip of 1."""
    model = GradSampleModule(nn.Linear(3, 1, bias=False))
    optimizer = DPOptimizer(
        torch.optim.SGD(model.parameters(), lr=1.0),
        noise_multiplier=MULTIPLIER * CLIP / clip,
        max_grad_norm=clip,
        expected_batch_size=1,
        loss_reduction="sum",
    )
    model.zero_grad()
    model(inputs).sum().backward()
    optimizer.pre_step()
    return model._module.weight.grad.double().numpy().ravel()  # noqa: SLF001 - the model that Opacus wrapped


def main() -> None:
    """Audit the right step and the wrong one."""
    warnings.filterwarnings("ignore", category=UserWarning)
    torch.manual_seed(7)  # an example: repeatable, and therefore not private
    eight = torch.randn(8, 3)
    nine = torch.cat([eight, torch.full((1, 3), 50.0)])
    claim = (analytic_gaussian_epsilon(DELTA, MULTIPLIER), DELTA)
    for name, clip in (("Opacus", CLIP), ("without its clip", 1e3)):
        found = audit_mechanism(
            lambda inputs, c=clip: one_step(inputs, clip=c),
            neighbours=(nine, eight),
            claimed=claim,
            draws=DRAWS,
            assume=Assumed.GAUSSIAN,
        )
        print(f"{name}: {found}")


if __name__ == "__main__":
    main()
