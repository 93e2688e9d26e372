"""The study's two analyses: which region is which, and which model layer it resembles."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import dask
import numpy as np
import xarray as xr

from isocortex import parallel, store
from isocortex.errors import InputError
from isocortex.rsa.rdms import BrainRDMs, align_models, load_rdms, n_stimuli
from isocortex.rsa.scores import FEWEST_STIMULI
from isocortex.topology import identification, model_comparison
from isocortex.topology.grid import (
    NESTED,
    Statistic,
    SummarySet,
    TopologyOptions,
    list_statistics,
)

logger = logging.getLogger(__name__)

LEAST_PAIRS = 3
FEWEST_SUBJECTS = 3
"""Of fewer, a bootstrap sample with one to leave out and one to learn from is always the data."""


def identify_regions(
    *,
    rdms: Sequence[str | Path],
    out: str | Path,
    code: str = "",
    threads: int = 1,
    seed: int = 0,
    **options: object,
) -> None:
    """Identify held-out subjects' regions by each summary statistic; write `identification`.

    With fewer than 2 subjects or 2 regions there is nothing to identify: the store is written all
    the same, with NaN and the reason in its attribute ``flag``. Regions that some subject lacks,
    or whose RDM has gaps or no spread there, are left out, the reasons in ``regions_left_out``.

    Parameters
    ----------
    rdms
        ``rdms`` stores, one a subject, of one task and measure.
    out
        The ``identification`` store.
    code
        The rule's code version.
    threads
        Cores to use.
    seed
        Of the bootstrap samples and permutations.
    **options
        The config section ``trsa``, see `TopologyOptions`.

    Raises
    ------
    InputError
        For stores that do not fit together, or options out of range.
    """
    chosen = TopologyOptions(seed=seed, **options)
    brain = load_rdms(rdms)
    _check_options(brain, chosen)
    dataset = identification_dataset(brain, chosen, threads=threads)
    store.write(dataset, out, spec="identification", sources=list(rdms), code=code)


def compare_topology(
    *,
    rdms: Sequence[str | Path],
    model_rdms: Sequence[str | Path],
    out: str | Path,
    code: str = "",
    threads: int = 1,
    seed: int = 0,
    **options: object,
) -> None:
    """Compare brain and model layers by each summary statistic; write the `topology` store.

    Parameters
    ----------
    rdms
        ``rdms`` stores, one a subject, of one task and measure.
    model_rdms
        ``model_rdms`` stores, one a model.
    out
        The ``topology`` store.
    code
        The rule's code version.
    threads
        Cores to use.
    seed
        Of the bootstrap samples and permutations.
    **options
        The config section ``trsa``, see `TopologyOptions`.

    Raises
    ------
    InputError
        For stores that do not fit together, or options out of range.
    """
    chosen = TopologyOptions(seed=seed, **options)
    brain = load_rdms(rdms)
    _check_options(brain, chosen)
    models = align_models(model_rdms, brain.stimuli, groups=brain.groups or None)
    dataset = topology_dataset(
        brain,
        models.dissimilarity,
        chosen,
        predictors=models.predictors,
        models=models.models,
        layers=models.layers,
        threads=threads,
    )
    store.write(dataset, out, spec="topology", sources=[*rdms, *model_rdms], code=code)


def _check_options(brain: BrainRDMs, options: TopologyOptions) -> None:
    """Raise `InputError` for options that do not fit the RDMs."""
    if "k_nearest" in options.geodesic_graphs and not (
        options.geodesic_neighbours < len(brain.stimuli)
    ):
        raise InputError(
            f"geodesic_neighbours is {options.geodesic_neighbours} in config section trsa, with "
            f"{len(brain.stimuli)} stimuli: use at most {len(brain.stimuli) - 1}"
        )


def _resampled(brain: BrainRDMs, options: TopologyOptions) -> TopologyOptions:
    """Return the options with what can be resampled: stimuli only where there are enough."""
    if len(brain.stimuli) >= FEWEST_STIMULI or options.resample == "subjects":
        return options
    few = f"{len(brain.stimuli)} stimuli, at least {FEWEST_STIMULI} are needed to resample them"
    if options.resample == "stimuli":
        raise InputError(f"resample is stimuli in config section trsa, with {few}: use subjects")
    logger.warning("only subjects are resampled: task %s has %s", brain.task, few)
    return replace(options, resample="subjects")


def _identification_resampled(brain: BrainRDMs, options: TopologyOptions) -> TopologyOptions:
    """Return the options with what the bootstrap of an identification can resample.

    A sample needs one subject to leave out and another to learn from: of two subjects every
    sample is the data, so that only stimuli are left to resample.
    """
    options = _resampled(brain, options)
    if len(brain.subjects) >= FEWEST_SUBJECTS or options.resample != "both":
        return options
    logger.warning("only stimuli are resampled: %d subjects", len(brain.subjects))
    return replace(options, resample="stimuli")


def unusable(brain: BrainRDMs) -> dict[tuple[str, str], str]:
    """Return why RDMs cannot be used, by (subject, region); usable ones are not in it."""
    reasons = {}
    finite = np.isfinite(brain.dissimilarity)
    for s, subject in enumerate(brain.subjects):
        for r, region in enumerate(brain.regions):
            values = brain.dissimilarity[s, r]
            if not finite[s, r].any():
                reason = "has no RDM"
            elif not finite[s, r].all():
                reason = f"has an RDM with {int((~finite[s, r]).sum())} NaN dissimilarities"
            elif np.ptp(values) == 0:
                reason = "has an RDM whose dissimilarities are all equal"
            else:
                continue
            reasons[subject, region] = f"sub-{subject} {reason}"
    return reasons


def _run_all(
    statistics: Sequence[Statistic], work: Callable[[Statistic], dict], *, threads: int
) -> list[dict]:
    """Return the work's results for all statistics, in order, with a log line every tenth."""
    done: list[str] = []  # appending is atomic, so threads may share it

    def one(statistic: Statistic) -> dict:
        result = work(statistic)
        done.append(statistic.name)
        if len(done) % max(1, len(statistics) // 10) == 0 or len(done) == len(statistics):
            logger.info("%d of %d statistics done", len(done), len(statistics))
        return result

    with parallel.dask_workers(threads):
        return list(dask.compute(*(dask.delayed(one)(s) for s in statistics)))


def identification_dataset(
    brain: BrainRDMs, options: TopologyOptions, *, threads: int = 1
) -> xr.Dataset:
    """Return the identification analysis of a set of subjects' RDMs, see `identify_regions`."""
    options = _identification_resampled(brain, options)
    reasons = unusable(brain)
    left_out: dict[str, str] = {}
    for (_, region), reason in reasons.items():
        left_out[region] = f"{left_out[region]}, {reason}" if region in left_out else reason
    for region, reason in left_out.items():
        logger.warning("region %s is left out of the identification: %s", region, reason)
    regions = [region for region in brain.regions if region not in left_out]
    flag = ""
    if len(brain.subjects) < 2:
        flag = f"needs at least 2 subjects, has {len(brain.subjects)}"
    elif len(regions) < 2:
        flag = f"needs at least 2 regions that all subjects have, has {len(regions)}"
    statistics = list_statistics(options)
    if flag:
        logger.warning("no identification: it %s", flag)
        outcome = _empty_outcome(len(statistics) + 1, len(brain.subjects), len(brain.regions))
        regions = list(brain.regions)
    else:
        index = [brain.regions.index(region) for region in regions]
        outcome = _identify(brain.dissimilarity[:, index], statistics, options, threads)
    every = [*statistics, Statistic(NESTED, "nested")]
    arrays = {name: (dims, outcome[name]) for name, dims in _IDENTIFICATION_DIMS.items()}
    # Which pair each fold chose, by name.
    names = np.array([s.name for s in statistics] + [""], dtype=object)
    arrays["chosen"] = (("subject",), names[outcome["choice"]])
    return xr.Dataset(
        arrays,
        coords={
            "statistic": np.array([s.name for s in every], dtype=object),
            "family": ("statistic", np.array([s.family for s in every], dtype=object)),
            "lower": ("statistic", np.array([s.lower for s in every])),
            "upper": ("statistic", np.array([s.upper for s in every])),
            "region": np.array(regions, dtype=object),
            "predicted": np.array(regions, dtype=object),
            "subject": np.array(brain.subjects, dtype=object),
        },
        attrs={
            **_shared_attrs(brain, options),
            "chance": 1 / len(regions) if regions else float("nan"),
            "flag": flag,
            "methods": "" if flag else _identification_methods(options, len(brain.subjects)),
            "regions_left_out": left_out,
        },
    )


_IDENTIFICATION_DIMS = {
    "accuracy": ("statistic",),
    "accuracy_low": ("statistic",),
    "accuracy_high": ("statistic",),
    "p": ("statistic",),
    "p_corrected": ("statistic",),
    "gain": ("statistic",),
    "gain_low": ("statistic",),
    "gain_high": ("statistic",),
    "ratio": ("statistic",),
    "n_pairs": ("statistic",),
    "accuracy_subject": ("statistic", "subject"),
    "confusion": ("statistic", "region", "predicted"),
}


def _empty_outcome(n_statistics: int, n_subjects: int, n_regions: int) -> dict[str, np.ndarray]:
    sizes = {
        "statistic": n_statistics,
        "subject": n_subjects,
        "region": n_regions,
        "predicted": n_regions,
    }
    outcome = {
        name: np.full([sizes[dim] for dim in dims], np.nan)
        for name, dims in _IDENTIFICATION_DIMS.items()
    }
    for name in ("n_pairs", "confusion"):
        outcome[name] = np.zeros(outcome[name].shape, dtype=np.int32)
    outcome["choice"] = np.full(n_subjects, n_statistics - 1)
    return outcome


@dataclass(frozen=True)
class _Found:
    """What one statistic gave: shares found by (subject,) or (sample, subject), and the rest."""

    predicted: np.ndarray
    ratio: float
    n_pairs: int
    bootstrap: np.ndarray
    null: np.ndarray
    nested: np.ndarray | None
    nested_null: np.ndarray | None


def _identify(
    rdms: np.ndarray, statistics: Sequence[Statistic], options: TopologyOptions, threads: int
) -> dict[str, np.ndarray]:
    """Return the arrays of the identification store, `NESTED` last along statistics."""
    n_subjects, n_regions, n_pairs = rdms.shape
    draws = identification.draw_bootstrap(
        options.bootstrap_samples,
        subjects=n_subjects,
        stimuli=n_stimuli(n_pairs),
        resample=options.resample,
        seed=options.seed,
    )
    permutations = identification.draw_permutations(
        options.permutations, subjects=n_subjects, regions=n_regions, seed=options.seed
    )
    nested = n_subjects > 2  # one to leave out, two to choose among
    summaries = SummarySet(rdms.reshape(-1, n_pairs), options).prepare()

    def one(statistic: Statistic) -> _Found | None:
        values = summaries.compute(statistic)
        kept = np.isfinite(values).all(axis=0)
        if kept.sum() < LEAST_PAIRS:
            logger.warning("%s: %d pairs are left: no result", statistic.name, kept.sum())
            return None
        values = values.reshape(rdms.shape)
        used = values[..., kept]
        if (np.ptp(used.reshape(-1, used.shape[-1]), axis=0) == 0).all():
            logger.warning("%s is the same for all RDMs: no result", statistic.name)
            return None
        products = identification.gram(used)
        score = statistic.family not in ("baseline", "geodesic") and nested
        null, nested_null = identification.permutation_accuracy(
            products, permutations, nested=score
        )
        return _Found(
            predicted=identification.leave_one_out_distances(products).argmin(axis=-1),
            ratio=identification.distance_ratio(products),
            n_pairs=int(kept.sum()),
            bootstrap=identification.bootstrap_accuracy(values, draws, pairs=kept),
            null=null,
            nested=identification.nested_scores(products) if score else None,
            nested_null=nested_null,
        )

    found = _run_all(statistics, one, threads=threads)
    outcome = _empty_outcome(len(statistics) + 1, n_subjects, n_regions)
    if nested:
        found.append(_choose(found, outcome["choice"]))
    else:
        logger.warning("%s needs at least 3 subjects: no result", NESTED)
        found.append(None)
    weights = draws.subjects / draws.subjects.sum(axis=1, keepdims=True)
    truth = np.arange(n_regions)

    def pooled(result: _Found) -> np.ndarray:
        return (result.bootstrap * weights).sum(axis=1)

    # The largest accuracy over the statistics in each permutation bounds the chance that any
    # of them is called significant; the nested one is a single test and needs no correction.
    tested = [result for result in found[:-1] if result is not None]
    largest = (
        np.max([result.null.mean(axis=1) for result in tested], axis=0)
        if tested
        else np.zeros(options.permutations)
    )
    reference = found[[s.name for s in statistics].index("rank_rdm")]
    varies = options.resample != "subjects" or n_subjects >= FEWEST_SUBJECTS
    for k, result in enumerate(found):
        if result is None:
            continue
        right = result.predicted == truth
        accuracy = right.mean()
        outcome["accuracy"][k] = accuracy
        outcome["accuracy_subject"][k] = right.mean(axis=1)
        samples = pooled(result)
        if varies:
            ends = identification.bootstrap_interval(
                samples, accuracy, interval=options.interval, bounds=(0, 1)
            )
            outcome["accuracy_low"][k], outcome["accuracy_high"][k] = ends
        outcome["p"][k] = identification.permutation_p(accuracy, result.null.mean(axis=1))
        outcome["p_corrected"][k] = (
            identification.permutation_p(accuracy, largest)
            if k < len(statistics)
            else outcome["p"][k]
        )
        if reference is not None:
            gain = accuracy - (reference.predicted == truth).mean()
            outcome["gain"][k] = gain
            if varies:
                ends = identification.bootstrap_interval(
                    samples - pooled(reference), gain, interval=options.interval, bounds=(-1, 1)
                )
                outcome["gain_low"][k], outcome["gain_high"][k] = ends
        outcome["ratio"][k] = result.ratio
        outcome["n_pairs"][k] = result.n_pairs
        for region in range(n_regions):
            outcome["confusion"][k, region] = np.bincount(
                result.predicted[:, region], minlength=n_regions
            )
    return outcome


def _choose(found: Sequence[_Found | None], choice: np.ndarray) -> _Found | None:
    """Return the RGTM of the pair (l, u) chosen anew for each left-out subject by the others.

    Permutations repeat the choice; bootstrap samples keep that of the data. Writes the index of
    each subject's choice into ``choice``.
    """
    candidates = [k for k, result in enumerate(found) if result and result.nested is not None]
    if not candidates:
        return None
    cells = [found[k] for k in candidates]
    subjects = np.arange(len(choice))
    best = np.argmax([cell.nested for cell in cells], axis=0)
    choice[:] = np.array(candidates)[best]
    null_best = np.argmax([cell.nested_null for cell in cells], axis=0)
    null = np.stack([cell.null for cell in cells])
    samples = np.arange(null.shape[1])[:, None]
    return _Found(
        predicted=np.stack([cells[best[s]].predicted[s] for s in subjects]),
        ratio=float(np.mean([cells[best[s]].ratio for s in subjects])),
        n_pairs=min(cells[best[s]].n_pairs for s in subjects),
        bootstrap=np.stack([cells[best[s]].bootstrap[:, s] for s in subjects], axis=1),
        null=null[null_best, samples, subjects],
        nested=None,
        nested_null=None,
    )


def topology_dataset(
    brain: BrainRDMs,
    model_rdms: np.ndarray,
    options: TopologyOptions,
    *,
    predictors: Sequence[str],
    models: Sequence[str],
    layers: Sequence[str],
    threads: int = 1,
) -> xr.Dataset:
    """Return the comparison of brain and models, see `compare_topology`.

    Parameters
    ----------
    brain
        The subjects' RDMs.
    model_rdms
        Shape (predictor, pair), over the same stimuli.
    options
        See `TopologyOptions`.
    predictors, models, layers
        Name of each row of ``model_rdms``, and the two parts of it.
    threads
        Cores to use.
    """
    options = _resampled(brain, options)
    n_subjects, n_regions = brain.dissimilarity.shape[:2]
    reasons = unusable(brain)
    for (_, region), reason in reasons.items():
        logger.warning("region %s: %s: without that subject", region, reason)
    usable = np.array([[(s, r) not in reasons for r in brain.regions] for s in brain.subjects])
    if not usable.any():
        raise InputError(
            f"no subject has a usable RDM of measure {brain.measure} in task {brain.task} "
            f"({next(iter(reasons.values()))}): check the regions"
        )
    fit = np.isfinite(model_rdms).all(axis=1) & (np.ptp(np.nan_to_num(model_rdms), axis=1) > 0)
    for name in np.array(predictors, dtype=object)[~fit]:
        logger.warning("%s has an RDM with NaN or without spread: no score", name)
    draws = identification.draw_bootstrap(
        options.bootstrap_samples,
        subjects=n_subjects,
        stimuli=len(brain.stimuli),
        resample="both",
        seed=options.seed,
        least_subjects=1,
    )
    statistics = list_statistics(options)
    of_brain = SummarySet(brain.dissimilarity[usable], options).prepare()
    of_models = SummarySet(model_rdms[fit], options).prepare() if fit.any() else None

    def one(statistic: Statistic) -> dict[str, np.ndarray]:
        values = np.full(brain.dissimilarity.shape, np.nan)
        values[usable] = of_brain.compute(statistic)
        layer_values = np.full(model_rdms.shape, np.nan)
        if of_models is not None:
            layer_values[fit] = of_models.compute(statistic)
        pairs = np.isfinite(values[usable]).all(axis=0) & np.isfinite(layer_values[fit]).all(axis=0)
        scores = np.full((len(model_rdms), n_regions, n_subjects), np.nan)
        empty = np.full((1, len(model_rdms), n_regions), np.nan)
        by_stimuli, by_both = empty, empty
        if pairs.sum() >= LEAST_PAIRS:
            scores = model_comparison.correlations(values[..., pairs], layer_values[:, pairs])
            if options.resample != "subjects":
                by_stimuli, by_both = model_comparison.bootstrap_means(
                    values, layer_values, draws, pairs=pairs
                )
        else:
            logger.warning("%s: %d pairs are left: no result", statistic.name, pairs.sum())
        inferred = model_comparison.infer(
            scores,
            by_stimuli,
            by_both,
            n_stimuli=len(brain.stimuli),
            resample=options.resample,
            interval=options.interval,
        )
        return {**inferred, "score_subject": scores, "n_pairs": np.int32(pairs.sum())}

    results = _run_all(statistics, one, threads=threads)
    stacked = {key: np.stack([result[key] for result in results]) for key in results[0]}
    names = np.array([*predictors, ""], dtype=object)
    mean = stacked["score"]
    best = np.where(
        np.isfinite(mean).any(axis=1),
        np.argmax(np.where(np.isfinite(mean), mean, -np.inf), axis=1),
        len(predictors),
    )
    dims = ("statistic", "predictor", "region")
    arrays = {
        key: (dims, stacked[key])
        for key in ("score", "interval_low", "interval_high", "p", "p_corrected")
    }
    return xr.Dataset(
        {
            **arrays,
            "score_subject": ((*dims, "subject"), stacked["score_subject"]),
            "best_predictor": (("statistic", "region"), names[best]),
            "n_pairs": (("statistic",), stacked["n_pairs"]),
        },
        coords={
            "statistic": np.array([s.name for s in statistics], dtype=object),
            "family": ("statistic", np.array([s.family for s in statistics], dtype=object)),
            "lower": ("statistic", np.array([s.lower for s in statistics])),
            "upper": ("statistic", np.array([s.upper for s in statistics])),
            "region": np.array(brain.regions, dtype=object),
            "subject": np.array(brain.subjects, dtype=object),
            "predictor": np.array(predictors, dtype=object),
            "model": ("predictor", np.array(models, dtype=object)),
            "layer": ("predictor", np.array(layers, dtype=object)),
        },
        attrs={
            **_shared_attrs(brain, options),
            "alternative": "greater",
            "methods": _topology_methods(options),
            "left_out": {f"{region} of sub-{s}": why for (s, region), why in reasons.items()},
        },
    )


_RESAMPLED = {
    "both": "subjects and stimuli",
    "subjects": "subjects",
    "stimuli": "stimuli",
}


def _identification_methods(options: TopologyOptions, n_subjects: int) -> str:
    if options.resample == "subjects" and n_subjects < FEWEST_SUBJECTS:
        intervals = f"There are no intervals, which {n_subjects} subjects do not give;"
    else:
        intervals = (
            f"Intervals ({100 * options.interval:g} %) come from {options.bootstrap_samples} "
            f"bootstrap samples of {_RESAMPLED[options.resample]}, centred on the estimate;"
        )
    return (
        "Regions of each subject were identified with the nearest centroid (Euclidean distance) "
        "of the other subjects' regions; threshold pairs were chosen, where marked as nested, "
        f"among the other subjects. {intervals} p-values against chance come from "
        f"{options.permutations} permutations of regions within subjects."
    )


def _topology_methods(options: TopologyOptions) -> str:
    variance = {
        "both": "the dual bootstrap of subjects and stimuli (over stimuli alone where a region has "
        "a single subject)",
        "subjects": "the variance over subjects",
        "stimuli": "the bootstrap of stimuli",
    }[options.resample]
    return (
        "Summary statistics of regions and of model layers were compared by Pearson correlation, "
        f"means over subjects tested against 0 (one-sided t-test) with {variance}; p-values were "
        "corrected over layers and regions by Holm's method."
    )


def _shared_attrs(brain: BrainRDMs, options: TopologyOptions) -> dict[str, object]:
    return {
        "scale": options.scale,
        "threshold": options.threshold,
        "pool": options.pool,
        "geodesic": options.geodesic,
        "measure": brain.measure,
        "task": brain.task,
        "n_stimuli": len(brain.stimuli),
        "interval_level": options.interval,
        "options": asdict(options),
    }
