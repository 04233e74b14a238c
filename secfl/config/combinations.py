"""Which privacy mechanisms can be used together."""

from __future__ import annotations

from secfl.config.sections import DpMode, DpSchedule, PrivacyConfig

__all__ = ["check_mechanisms"]


def check_mechanisms(privacy: PrivacyConfig) -> None:
    """Refuse mechanisms that cannot be combined.

    Raises:
        ValueError: Names both keys.
    """
    off = privacy.mode is DpMode.OFF
    rounds = privacy.mode is DpMode.PATIENT and privacy.schedule is DpSchedule.ROUND
    clips = privacy.layer_clips
    quantile = privacy.quantile_clip
    refusals = {
        "noise_decay: needs --dp client or patient": off and privacy.noise_decay != 1,
        "layer_clips: needs --dp client or patient": off and clips is not None,
        "layer_clips: expected at least one positive number": clips is not None
        and not (clips and all(clip > 0 for clip in clips.values())),
        "layer_clips: give either clips of layers or one --clip": clips is not None
        and privacy.clip is not None,
        "quantile_clip: needs --dp client or patient": off and quantile is not None,
        "quantile_clip: needs --dp-schedule step, where the clip bits are part of a sum": rounds
        and quantile is not None,
        "quantile_clip: one clip follows one quantile; remove layer_clips": quantile is not None
        and clips is not None,
        "percentile_laplace: has no guarantee and cannot be combined with one; expected --dp off": not off
        and privacy.percentile_laplace is not None,
    }
    for message, refused in refusals.items():
        if refused:
            raise ValueError(f"privacy.{message}")
