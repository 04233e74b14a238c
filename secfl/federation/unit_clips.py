"""From a configuration to the clip of one patient or one client: one clip, clips of layers, a private quantile."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from secfl.config import QuantileClipConfig, RunConfig
from secfl.dp.adaptive import QuantileClip, bit_slot_size
from secfl.dp.clipping import ClipGroup, GridClip
from secfl.dp.plan import PrivacyPlan
from secfl.errors import ConfigError
from secfl.segmentation.task import State, Task

__all__ = ["Layout", "layer_groups"]

_PRECISION: Final = 2.0**-8
"""Root mean square rounding error of a clipped update relative to the clip norm; far below any useful noise."""

_LAYER_PRECISION: Final = 2.0**-4
"""The same for the smallest layer relative to its own clip; the noise there is far wider than a grid step."""

_DEFAULT_CLIP: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Which coordinates share a clip, before noise and grid are known.

    Build it with `of`.

    Attributes:
        groups: Size and clip norm of each group, in the order of the vector.
        quantile: How the one clip follows a private quantile, or ``None``.
    """

    groups: tuple[tuple[int, float], ...]
    quantile: QuantileClipConfig | None

    @classmethod
    def of(cls, config: RunConfig, task: Task, *, parameters: int) -> Layout:
        """The layout of a configuration.

        Raises:
            ConfigError: A clip outside its limits, or clips that do not fit the model's tensors.
        """
        privacy = config.privacy
        if privacy.layer_clips is not None:
            return cls(groups=layer_groups(task.initial_state(), privacy.layer_clips), quantile=None)
        clip, quantile = _DEFAULT_CLIP if privacy.clip is None else privacy.clip, privacy.quantile_clip
        if quantile is not None and not quantile.smallest <= clip <= quantile.largest:
            raise ConfigError(
                f"--clip {clip:g}: expected within privacy.quantile_clip's limits, {quantile.smallest:g} to "
                f"{quantile.largest:g}"
            )
        return cls(groups=((parameters, clip),), quantile=quantile)

    @property
    def clip_norm(self) -> float:
        """L2 bound of the whole vector: ``sqrt(Σ C_l²)``."""
        return math.sqrt(math.fsum(clip**2 for _, clip in self.groups))

    @property
    def dimension(self) -> int:
        """Coordinates that are summed: the vector's, and one for the clip bit."""
        return sum(size for size, _ in self.groups) + (0 if self.quantile is None else 1)

    @property
    def least_grid_norm(self) -> float:
        """G that keeps rounding far below any useful noise, in the whole vector and in every group."""
        if len(self.groups) == 1:
            return math.sqrt(self.groups[0][0] / 12) / _PRECISION
        layers = (
            math.sqrt(size / 12) / _LAYER_PRECISION * self.clip_norm / clip for size, clip in self.groups
        )
        return max(math.sqrt(self.dimension / 12) / _PRECISION, *layers)

    def unit_clip(self, plan: PrivacyPlan, *, expected_units: float) -> GridClip:
        """The clip of one unit within the plan's grid norm.

        Every group has the same grid step, so that one width of noise for all coordinates is one width in units of
        the update, and ``Σ (C_l/σ)² = 1/z²``.

        Args:
            plan: With its noise settled.
            expected_units: A public constant: patients in a step, or clients in a round.

        Raises:
            ConfigError: Too few units for a private quantile at this noise.
        """
        if self.quantile is not None:
            try:
                slot = bit_slot_size(
                    grid_norm=plan.grid_norm,
                    noise_multiplier=plan.noise_multiplier,
                    bit_sigma=self.quantile.bit_noise * expected_units,
                )
            except ConfigError as error:
                raise ConfigError(f"privacy.quantile_clip: {error}") from None
            return GridClip.single(
                dimension=self.groups[0][0],
                clip_norm=self.clip_norm,
                grid_norm=plan.grid_norm,
                bit_slot=slot,
            )
        shares = [math.floor(plan.grid_norm * clip / self.clip_norm) for _, clip in self.groups]
        return GridClip(
            groups=tuple(
                ClipGroup(size=size, clip_norm=clip, grid_norm=share)
                for (size, clip), share in zip(self.groups, shares, strict=True)
            )
        )

    def quantile_clip(self, plan: PrivacyPlan, *, expected_units: float) -> QuantileClip | None:
        """How the clip moves, or ``None`` for a fixed one."""
        if self.quantile is None:
            return None
        return QuantileClip(
            clip_norm=self.clip_norm,
            expected_units=expected_units,
            grid=self.unit_clip(plan, expected_units=expected_units),
            quantile=self.quantile.quantile,
            learning_rate=self.quantile.learning_rate,
            smallest=self.quantile.smallest,
            largest=self.quantile.largest,
        )


def layer_groups(state: State, clips: Mapping[str, float]) -> tuple[tuple[int, float], ...]:
    """Size and clip of each group of consecutive tensors with the same key.

    Args:
        state: The model's tensors, in their order.
        clips: Clip norms by the first letters of tensors' names; the longest match counts.

    Raises:
        ConfigError: A tensor without a clip, a key without a tensor, or one whose tensors are not consecutive.
    """
    keys = [_longest(clips, name) for name in state]
    groups = [
        (key, sum(size for _, size in members))
        for key, members in groupby(
            zip(keys, (tensor.size for tensor in state.values()), strict=True), lambda it: it[0]
        )
    ]
    found = [key for key, _ in groups]
    for key in clips:
        if found.count(key) != 1:
            problem = (
                "no tensor of the model starts so" if key not in found else "its tensors are not consecutive"
            )
            raise ConfigError(f"privacy.layer_clips: {key!r}: {problem}; tensors are {_few(state)}")
    return tuple((size, clips[key]) for key, size in groups)


def _longest(clips: Mapping[str, float], name: str) -> str:
    fitting = [key for key in clips if name.startswith(key)]
    if not fitting:
        raise ConfigError(f'privacy.layer_clips: no clip for tensor {name!r}; a key of "" fits every tensor')
    return max(fitting, key=len)


def _few(state: State) -> str:
    def shown() -> Iterator[str]:
        names = list(state)
        yield from names[:4]
        if len(names) > 4:
            yield f"… ({len(names)} in all)"

    return ", ".join(shown())
