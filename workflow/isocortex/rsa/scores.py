"""Which layer of which model fits each region: scores of all subjects, ceilings, inference."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import xarray as xr

from isocortex import store
from isocortex.errors import InputError
from isocortex.multiple_tests import CORRECTIONS, correct_p
from isocortex.rsa.compare import COMPARISONS, KERNELS
from isocortex.rsa.crossvalidation import FEWEST_TO_FIT, FEWEST_TO_RESAMPLE
from isocortex.rsa.models import KINDS, Predictors, list_predictors
from isocortex.rsa.permutation import order_flags
from isocortex.rsa.rdms import BrainRDMs, ModelRDMs, align_models, load_rdms
from isocortex.rsa.score_tests import score_statistics, zero_is_chance
from isocortex.rsa.transforms import Transform, parse_transform

logger = logging.getLogger(__name__)

FACTORS = ("auto", "subjects", "stimuli", "both")
VARIANCES = ("dual", "debiased")
STIMULI_TO_RESAMPLE = 20
"""Below so many stimuli ``auto`` takes them as fixed: their bootstrap is too coarse."""
FEWEST_STIMULI = 10
"""With fewer a sample of stimuli often has no score, and those that have one vary too little."""


def compare_rdms(
    *,
    rdms: Sequence[str | Path],
    model_rdms: Sequence[str | Path],
    out: str | Path,
    comparisons: Sequence[str] = ("pearson", "spearman", "corr_cov"),
    model_kinds: Sequence[str] = ("fixed",),
    bootstrap: Mapping[str, str | int] | None = None,
    permutations: int = 1000,
    interval: float = 0.95,
    correction: str = "holm",
    seed: int = 0,
    code: str = "",
    threads: int = 1,
) -> Path:
    """Compare the RDMs of all subjects' regions with all models' and write the ``scores`` store.

    Parameters
    ----------
    rdms, model_rdms
        Stores, one a subject and one a model.
    out
        The store to write.
    comparisons
        Some of `isocortex.rsa.compare.COMPARISONS`, or with a transform of both RDMs after a colon,
        ``pearson:rgtm(0.2,0.8)``, see `isocortex.rsa.transforms.parse_transform`.
    model_kinds
        Some of `isocortex.rsa.models.KINDS`.
    bootstrap
        ``over``: ``subjects``, ``stimuli``, ``both`` (with the dual-bootstrap correction) or
        ``auto`` (both; only subjects below 20 stimuli, only stimuli with one subject);
        ``samples``: how many; ``variance``: with both, ``dual`` (rsatoolbox's) or ``debiased``
        (`isocortex.rsa.inference.debiased_variance`).
    permutations
        Orders of the models' stimuli to compare with, 0 for none.
    interval
        Coverage of the intervals.
    correction
        ``holm``, ``fdr`` or ``none``, over the predictors and regions of one comparison.
    seed
        Of the bootstrap, the permutations and the folds.

    Returns
    -------
    pathlib.Path
        The manifest.

    Raises
    ------
    InputError
        Where stimuli do not match, an RDM of the brain is constant, or an option is not known.

    Notes
    -----
    Intervals and p-values (one-sided, score over 0) are those of a t distribution with the
    bootstrap's variance, as rsatoolbox does it: degrees of freedom are one less than the number
    of subjects, of stimuli, or the smaller of both; Satterthwaite's with ``debiased``. Tests
    against the ceiling and between predictors are two-sided, of the bootstrapped difference.
    """
    options = {"over": "auto", "samples": 1000, "variance": "dual", **(bootstrap or {})}
    parsed = [_parse_comparison(text) for text in comparisons]
    if options["over"] not in FACTORS:
        raise InputError(
            f"rsa.bootstrap.over: {options['over']!r} is not one of {', '.join(FACTORS)}"
        )
    if options["variance"] not in VARIANCES:
        raise InputError(
            f"rsa.bootstrap.variance: {options['variance']!r} is not one of {', '.join(VARIANCES)}"
        )
    if correction not in CORRECTIONS:
        raise InputError(f"rsa.correction: {correction!r} is not one of {', '.join(CORRECTIONS)}")
    for kind in model_kinds:
        if kind not in KINDS:
            raise InputError(f"rsa.model_kinds: {kind!r} is not one of {', '.join(KINDS)}")
    brain = load_rdms(rdms)
    models = align_models(model_rdms, brain.stimuli, groups=brain.groups or None)
    _check_brain(brain)
    predictors = list_predictors(models, model_kinds)
    n_subjects, n_stimuli = len(brain.subjects), len(brain.stimuli)
    over = resolve_bootstrap(str(options["over"]), n_subjects=n_subjects, n_stimuli=n_stimuli)
    flags = _count_flags(brain, over, fitted=bool(predictors.fitted), permutations=permutations)
    parts = []
    for name, transform in parsed:
        seen, layers = brain.dissimilarity, models.dissimilarity
        if transform:
            transform.check_stimuli(n_stimuli, key="rsa.comparisons")
            seen, layers = transform.apply(seen), transform.apply(layers)
        label = f"{name}:{transform.name}" if transform else name
        flags += _spread_flags(brain, models, seen, layers, label)
        parts.append(
            score_statistics(
                seen,
                layers,
                comparison=name,
                over=over,
                samples=int(options["samples"]),
                seed=seed,
                predictors=predictors,
                level=interval,
                permutations=permutations,
                variance=str(options["variance"]),
                threads=threads,
            )
        )
        flags += _unscored_flags(brain, seen, predictors, parts[-1]["score"], label)
    for flag in dict.fromkeys(flags):
        logger.warning("%s", flag)
    stacked = {key: np.stack([part[key] for part in parts]) for key in parts[0]}
    for key, method in (("p_corrected", correction), ("p_fdr", "fdr"), ("p_fwe", "holm")):
        stacked[key] = np.stack([correct_p(p, correction=method) for p in stacked["p"]])
    best = np.full((len(parts), len(brain.regions)), "", dtype=object)
    for c, r in np.ndindex(best.shape):
        mean = stacked["mean"][c, :, r]
        if np.isfinite(mean).any():
            best[c, r] = predictors.labels[int(np.nanargmax(mean))]

    cube = ("comparison", "predictor", "region")
    dims = {"score": (*cube, "subject")}
    for key in stacked:
        if key.startswith("ceiling"):
            dims[key] = ("comparison", "region")
        elif key.startswith("difference"):
            dims[key] = ("comparison", "predictor", "other", "region")
        elif key == "weight":
            dims[key] = (*cube, "source")
    dataset = xr.Dataset(
        {key: (dims.get(key, cube), value) for key, value in stacked.items()}
        | {"best_predictor": (("comparison", "region"), best)},
        coords={
            "comparison": _text("comparison", [f"{n}:{f.name}" if f else n for n, f in parsed]),
            "predictor": _text("predictor", predictors.labels),
            "other": _text("other", predictors.labels),
            **({"source": _text("source", models.predictors)} if predictors.fitted else {}),
            "model": _text("predictor", predictors.models),
            "layer": _text("predictor", predictors.layers),
            "kind": _text("predictor", predictors.kinds),
            "region": _text("region", brain.regions),
            "subject": _text("subject", brain.subjects),
        },
        attrs={
            "measure": brain.measure,
            "task": brain.task,
            "bootstrap": over,
            "n_bootstrap": int(options["samples"]),
            "bootstrap_variance": str(options["variance"]) if over == "both" else "plain",
            "seed": seed,
            "correction": correction,
            "corrected_over": "predictors and regions of one comparison",
            "interval_level": interval,
            "n_permutations": _n_orders(n_stimuli, permutations),
            "difference_corrected_over": "pairs of predictors within a region and comparison",
            "n_stimuli": n_stimuli,
            "n_stimuli_dropped": brain.n_stimuli_dropped,
            "n_pairs_missing": {
                region: int((~valid_pairs(brain.dissimilarity[:, k])).sum())
                for k, region in enumerate(brain.regions)
            },
            "flags": list(dict.fromkeys(flags)),
        },
    )
    return store.write(dataset, out, spec="scores", sources=[*rdms, *model_rdms], code=code)


def resolve_bootstrap(over: str, *, n_subjects: int, n_stimuli: int) -> str:
    """Return what is resampled: ``subjects``, ``stimuli``, ``both``, or ``none``.

    With one subject only stimuli can be, if there are 10.

    Raises
    ------
    InputError
        Where stimuli are to be resampled and there are fewer than 10.
    """
    if over in ("stimuli", "both") and n_stimuli < FEWEST_STIMULI:
        raise InputError(
            f"rsa.bootstrap.over is {over} but there are {n_stimuli} stimuli, at least "
            f"{FEWEST_STIMULI} are needed: set it to subjects"
        )
    if n_subjects < 2:
        return "stimuli" if n_stimuli >= FEWEST_STIMULI else "none"
    if over == "auto":
        return "both" if n_stimuli >= STIMULI_TO_RESAMPLE else "subjects"
    return over


def _parse_comparison(text: str) -> tuple[str, Transform | None]:
    """Return the comparison and the transform that a text names."""
    name, colon, transform = text.partition(":")
    if name.strip() not in COMPARISONS:
        raise InputError(f"rsa.comparisons: {text!r} is not one of {', '.join(COMPARISONS)}")
    return name.strip(), parse_transform(transform) if colon else None


def _n_orders(n_stimuli: int, permutations: int) -> int:
    """Return how many orders of the stimuli, the given one among them, scores are compared with."""
    return min(permutations + 1, math.factorial(n_stimuli)) if permutations else 0


def _count_flags(brain: BrainRDMs, over: str, *, fitted: bool, permutations: int) -> list[str]:
    """Return what subjects or stimuli are too few for, with the number needed."""
    n_subjects, n_stimuli = len(brain.subjects), len(brain.stimuli)
    flags = []
    if brain.n_stimuli_dropped:
        flags.append(f"{brain.n_stimuli_dropped} stimuli that not all subjects saw were left out")
    if n_subjects < 2:
        flags.append("one subject: no noise ceiling and no p-value; at least 2 are needed")
    else:
        flags += [
            f"region {region} in one subject: no noise ceiling and no p-value; at least 2 are "
            "needed"
            for region, count in zip(brain.regions, brain.present.sum(axis=0))
            if count == 1
        ]
    if over == "none":
        flags.append(f"{n_stimuli} stimuli: no intervals; at least {FEWEST_STIMULI} are needed")
    if n_stimuli < FEWEST_TO_FIT:
        flags.append(
            f"{n_stimuli} stimuli: no cross-validated noise ceilings"
            f"{' and no fitted models' if fitted else ''}; at least {FEWEST_TO_FIT} are needed"
        )
    elif fitted and n_subjects < 2:
        flags.append("one subject: no fitted models; at least 2 subjects are needed")
    elif fitted and over in ("stimuli", "both") and n_stimuli < FEWEST_TO_RESAMPLE:
        flags.append(
            f"{n_stimuli} stimuli: no intervals and p-values of fitted models over stimuli; at "
            f"least {FEWEST_TO_RESAMPLE} are needed"
        )
    return flags + (order_flags(n_stimuli) if permutations else [])


def _spread_flags(
    brain: BrainRDMs, models: ModelRDMs, seen: np.ndarray, layers: np.ndarray, comparison: str
) -> list[str]:
    """Return which RDMs have no score by a comparison."""
    flags = [
        f"the RDM of {name} is constant or not finite: no scores by {comparison}"
        for name, row in zip(models.predictors, layers)
        if not np.isfinite(row).all() or np.ptp(row) == 0
    ]
    lost = brain.present & ~np.isfinite(seen).any(axis=-1)
    by_itself = ~zero_is_chance(seen, comparison.partition(":")[0])
    if by_itself.any():
        which = "" if by_itself.all() else " in " + ", ".join(np.array(brain.regions)[by_itself])
        flags.append(
            f"{comparison} of unrelated RDMs is not 0{which}: no p-value against 0; permutations "
            "test it"
        )
    return flags + [
        f"subject {brain.subjects[s]} region {brain.regions[r]}: pairs are missing, which "
        f"{comparison} needs"
        for s, r in np.argwhere(lost)
    ]


def _unscored_flags(
    brain: BrainRDMs,
    seen: np.ndarray,
    predictors: Predictors,
    score: np.ndarray,
    comparison: str,
) -> list[str]:
    """Return how many of the brain's RDMs a comparison gives no score, where a layer has any."""
    found = np.isfinite(score[[k for k, kind in enumerate(predictors.kinds) if kind == "fixed"]])
    has_score = found.any(axis=0).T
    without = np.isfinite(seen).any(axis=-1) & ~has_score
    kernel = comparison.partition(":")[0] in KERNELS
    if not without.any() or not (has_score.any() or (kernel and len(found))):
        return []
    s, r = np.argwhere(without)[0]
    why = ": their kernels are not positive definite, as with fewer channels than stimuli"
    where = f"subject {brain.subjects[s]} region {brain.regions[r]}{why if kernel else ''}"
    return [
        f"{comparison}: {int(without.sum())} of {int(brain.present.sum())} RDMs have no score, the "
        f"first that of {where}"
    ]


def _text(dim: str, values: Sequence[str]) -> tuple[str, np.ndarray]:
    return dim, np.array([str(v) for v in values], dtype=object)


def _check_brain(brain: BrainRDMs) -> None:
    """Raise `InputError` where an RDM is constant, so that no comparison is defined."""
    for s, r in np.argwhere(brain.present):
        if np.nanstd(brain.dissimilarity[s, r]) == 0:
            raise InputError(
                f"the RDM of region {brain.regions[r]} of subject {brain.subjects[s]} is constant: "
                "check its betas or leave the region out"
            )


def valid_pairs(brain: np.ndarray) -> np.ndarray:
    """Return the pairs that every subject who has the region has.

    Parameters
    ----------
    brain
        RDMs of one region, shape (n_subjects, n_pairs).
    """
    present = np.isfinite(brain).any(axis=1)
    return np.isfinite(brain[present]).all(axis=0)
