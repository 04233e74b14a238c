"""The page's sentences; conclusions are computed from the figures, whatever they are."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean

from secfl.ledger.verify import Status
from secfl.studies.published.adaptive_dp.arms import ADAPTIVE_START, PRIVATE, STATIC_CLIP, Arm, Modality
from secfl.studies.published.adaptive_dp.figures import (
    LEAST_LEARNED,
    LEAST_LOSS,
    TARGET,
    classes_of,
    dice_of_classes,
    learned_classes,
    loss,
    share_of_means,
    statement,
)
from secfl.studies.published.adaptive_dp.presets import PLANS
from secfl.studies.published.adaptive_dp.settings import CLINICS, DELTA, EPSILON, modalities_of
from secfl.studies.published.adaptive_dp.study import PUBLIC_SEED, TRY_SEED, arm_job, tried
from secfl.studies.published.adaptive_dp.trials import HOW_SETTINGS_WERE_FOUND
from secfl.studies.published.interface import Preset, Prose, Request, Results

__all__ = ["words"]

CONVERGED = 0.01
"""Dice; training without privacy that gains more than this between its last two evaluations is still learning."""


def words(request: Request, results: Results) -> Prose:
    """All paragraphs."""
    return Prose(
        run=tuple(_run(request, results)),
        known=_known(),
        ours=_ours(request),
        conclusions=tuple(_conclusions(request, results)),
    )


def _run(request: Request, results: Results) -> Iterable[str]:
    plan = PLANS[request.preset]
    phantom = request.data == "phantom"
    yield (
        f"{f'{CLINICS} phantom clinics' if phantom else 'The sites of each folder'}, every arm on the same patients "
        f"and the same network, all sums under `{request.scheme.value}`. Private arms: every step is one secure sum "
        "over a secret Poisson sample of patients, the server's Adam makes the step; the three arms differ in the "
        "clip norm, in nothing else but the step size. Arms without proved privacy: federated averaging, one pass "
        "over the data a round."
    )
    lines = [
        "| modality | images | patients a clinic | parameters | q | steps | rounds without DP |",
        "|---|---|---|---|---|---|---|",
    ]
    for modality in modalities_of(request):
        size = plan.sizes[modality.name]
        parameters = results[arm_job(modality, Arm.STATIC, request.seeds[0])]["parameters"]
        shape = f"{modality.task}, side {size.image_size}" if phantom else "as in the folder"
        people = str(size.patients) if phantom else "as declared"
        lines.append(
            f"| {modality.name} | {shape} | {people} | {parameters:,} | {size.sampling_rate:g} | {size.steps} | "
            f"{size.rounds} |"
        )
    yield "\n".join(lines)
    lines = [
        "| modality | step size: static | tuned | adaptive | tuned clip | adaptive rule |",
        "|---|---|---|---|---|---|",
    ]
    for modality in modalities_of(request):
        size = plan.sizes[modality.name]
        steps = " | ".join(f"{size.step_size[arm]:g}" for arm in PRIVATE)
        lines.append(f"| {modality.name} | {steps} | {size.tuned_clip:g} | `{_rule(size.rule)}` |")
    yield "\n".join(lines)
    if tried(request):
        yield (
            f"Rules were tried on seed {TRY_SEED}, and clips taken from a public phantom come from seed "
            f"{PUBLIC_SEED}; no arm is tested on either. On a clinic's own patients such tries would be releases, "
            "and would have to be paid for."
        )


def _rule(rule: object) -> str:
    if not isinstance(rule, dict):
        return str(rule)
    return ", ".join(
        f"{key} = {{{_rule(value)}}}" if isinstance(value, dict) else f"{key} = {value}"
        for key, value in rule.items()
    )


def _known() -> tuple[str, ...]:
    return (
        (
            "The publication compares training without privacy, with static DP and with its adaptive method in "
            "dermoscopy, kidney CT and brain MRI, and reports Dice of 93.12 / 85.38 / 92.81 % (skin), 81.00 / 69.08 "
            "/ 77.26 % (kidney tumour and cyst) and 57.64 / 24.69 / 42.05 % (NETC): 96, 69 and 53 % of the loss "
            "recovered."
        ),
        (
            "Its method keeps the largest coordinates of an update, clips them at a percentile of the update "
            "itself, and adds Laplace noise scaled to that threshold, at a stated ε of 0.001. Threshold and pattern "
            "are functions of the data that are used without noise, and one coordinate's noise does not cover a "
            "vector in which all coordinates change: 0.001 cannot be the guarantee of what is released. The ledger "
            "therefore writes `NonPrivate` for it, and no ε is printed."
        ),
    )


def _ours(request: Request) -> tuple[str, ...]:
    points = (
        (
            f"**Privacy**: ε = {EPSILON:g}, δ = {DELTA:g} for one patient (add or remove), proved by each run's "
            "ledger for the integer mechanism that ran, against an aggregator that follows the protocol or does "
            "not, nobody colluding; the same for all three private arms."
        ),
        (
            f"**Static DP**: clip norm {STATIC_CLIP:g}, the default of this program and of common tutorials, and about "
            "the median norm of a patient's gradient before the first step (1.0 to 1.3 on the phantoms of seed 101). "
            "Its step size is the best of those tried for it on seed 100; number of steps, batches, ε and everything "
            "else are those of the other private arms."
        ),
        (
            "**Static DP, tuned clip**: a fixed clip near the quantile of the norms that the adaptive arm follows, "
            "about as they were while a model was learned on a seed that is not reported; no search was made. The "
            "difference between it and the adaptive arm is what adapting itself gives; the rest of what is recovered "
            "is what a better clip gives. A clinic could only have this clip by paying for the search."
        ),
        (
            f"**Adaptive DP**: starts at a clip of {ADAPTIVE_START:g}, as Andrew et al. (arXiv 1905.03871) recommend; "
            "from then on the clip follows a quantile of the patients' norms, known only through one noisy count in "
            "each secure sum, which is paid for inside the same ε (`[privacy.quantile_clip]`)."
        ),
        (
            "**Noise, on paper**: a step's mean of clipped gradients is at most as long as the clip norm C; the noise "
            "in it has the norm z √d C / (q N), for d parameters and N patients (rows below). At one ε, what T steps "
            "agree on stands against a noise of z √d / (q √T N): z / (q √T) is 1.31 with q = 0.05 and 120 steps, 1.05 "
            "with 240, 0.89 with q = 0.1 and 120, 0.70 with q = 0.2, and 0.60 with all patients in every step, "
            "however many. So patients help most, then larger samples and more steps, for all private arms alike; a "
            "better clip helps by at most the factor between C and the norms."
        ),
        (
            "**Falling steps**: in all private arms the step size falls linearly, to "
            "`privacy.final_step_size`. Small last steps average the noise out, and are post-processing."
        ),
        (
            "**Paper reading**: federated averaging of updates changed by the recipe, at its stated parameter of "
            "0.001; that a tenth of the coordinates is kept and the percentile is 90 are our choices."
        ),
        (
            "**Share recovered**: (adaptive - static) / (no privacy - static), by seed and of the means; not stated "
            f"where static DP loses less than {LEAST_LOSS:g} Dice. Beside the published figure stands the phantom's "
            "class that comes closest. A class counts where training without privacy beats a model that never "
            f"predicts it by {LEAST_LEARNED:g} Dice: what nobody learns cannot be lost."
        ),
        (
            "**Rounds to 95 %**: first evaluated round whose Dice reaches 95 % of the final one. **Movement**: how "
            "far Dice still moves between evaluations in the second half. **HD95**: over cases in which truth and "
            "prediction both hold the class."
        ),
        "Dice of a case is 1 where truth and prediction are both empty; every figure is a mean over sites.",
    )
    size = (
        (
            (
                "Cohorts were chosen so that static DP loses some points, as in the publication: with few patients "
                "noise drowns both private arms; with many more every arm comes close to no privacy."
            ),
            *HOW_SETTINGS_WERE_FOUND,
        )
        if request.preset is Preset.SMALL and request.data == "phantom"
        else ()
    )
    return ("\n".join(f"- {point}" for point in points), *size)


def _conclusions(request: Request, results: Results) -> Iterable[str]:
    if request.preset is Preset.SMOKE:
        yield "**This size is there to see that everything works. Its figures mean nothing.**"
    for modality in modalities_of(request):
        yield " ".join(_of_modality(request, results, modality))
    runs = [
        results[arm_job(modality, arm, seed)]
        for modality in modalities_of(request)
        for arm in PRIVATE
        for seed in request.seeds
    ]
    closed = sum(
        ledger["status"] == Status.CLOSED.value for run in runs for ledger in run["ledgers"].values()
    )
    highest = max(statement(run, who)["epsilon"] for run in runs for who in ("curious", "malicious"))
    stopped = sum(run["stopped"] != "completed" for run in runs)
    yield (
        f"All {len(runs)} private runs have a ledger that verifies ({closed} closed by every clinic's signature); "
        f"the highest ε that one of them proves is {highest:.2f}. {stopped} of them stopped early because the budget "
        "was spent."
    )


def _of_modality(request: Request, results: Results, modality: Modality) -> Iterable[str]:
    learned = learned_classes(request, results, modality)
    if not learned:
        yield f"**{modality.name}**: no class is learned even without privacy, so nothing can be said."
        return
    free, static, tuned, adaptive, paper = (
        100 * fmean(dice_of_classes(request, results, modality, arm, learned).values()) for arm in Arm
    )
    yield (
        f"**{modality.name}** ({', '.join(learned)}): Dice {free:.1f} % without privacy, {static:.1f} % with static "
        f"DP, {adaptive:.1f} % with adaptive DP, {tuned:.1f} % with static DP and a tuned clip."
    )
    left_out = [name for name in classes_of(request, results, modality) if name not in learned]
    if left_out:
        yield f"Not learned even without privacy, and left out: {', '.join(left_out)}."
    share = share_of_means(request, results, modality, Arm.ADAPTIVE, learned)
    if share is None:
        lost = 100 * loss(request, results, modality, Arm.STATIC, learned)
        yield f"Static DP loses {lost:.1f} points, too few to speak of a share."
    else:
        verdict = "met" if share >= TARGET else f"missed by {100 * (TARGET - share):.0f} points of the share"
        yield f"Adaptive DP recovers {100 * share:.0f} % of the loss (target {100 * TARGET:.0f} %): {verdict}."
        yield from _class(request, results, modality, learned)
        other = share_of_means(request, results, modality, Arm.TUNED, learned)
        assert other is not None
        yield (
            f"A tuned fixed clip recovers {100 * other:.0f} %: adapting gives {100 * (share - other):+.0f} points of "
            "the share over knowing a good clip beforehand."
        )
        if share < TARGET and other < TARGET:
            yield "A good fixed clip misses the target, too: most of what is left does not lie in the clip."
    if max(adaptive, tuned) > free:
        yield (
            "A private arm ends above the arm without privacy, so that one had too few passes to learn all that can be "
            "learned; shares are too high."
        )
    yield from _still_learning(request, results, modality)
    yield (
        f"The paper reading ends at {paper:.1f} % and is not private."
        if paper >= static
        else f"The paper reading ends at {paper:.1f} % and is not private: with its noise at the stated 0.001, the "
        "published Dice cannot be had in this reading."
    )


def _still_learning(request: Request, results: Results, modality: Modality) -> Iterable[str]:
    """A warning where training without privacy had not converged, because shares then flatter."""
    curves = [results[arm_job(modality, Arm.OPEN, seed)]["curve"] for seed in request.seeds]
    gain = fmean(curve[-1]["dice"] - curve[-2]["dice"] for curve in curves if len(curve) > 1)
    if gain > CONVERGED:
        yield (
            f"Training without privacy still gained {100 * gain:.1f} points of mean Dice between its last two "
            "evaluations: with more passes it would be better, and the share smaller."
        )


def _class(request: Request, results: Results, modality: Modality, learned: tuple[str, ...]) -> Iterable[str]:
    label = modality.published_class
    if label not in learned or len(learned) == 1:
        return
    share = share_of_means(request, results, modality, Arm.ADAPTIVE, (label,))
    if share is not None:
        yield f"Of the class {label} alone, {100 * share:.0f} %."
