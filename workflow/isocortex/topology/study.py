"""The study's two analyses: which region is which, and which model layer it resembles."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import xarray as xr

from isocortex import parallel, store
from isocortex.errors import InputError
from isocortex.rsa.rdms import BrainRDMs, align_models, load_rdms
from isocortex.topology import identification, model_comparison
from isocortex.topology.grid import (
    NESTED,
    Statistic,
    SummarySet,
    TopologyOptions,
    list_statistics,
    statistic_coords,
)
from isocortex.topology.identification import Draws
from isocortex.topology.identify import (
    DIMS,
    LEAST_PAIRS,
    empty_outcome,
    identification_methods,
    identify,
    prepare,
    resampled,
    unusable_rdms,
)

logger = logging.getLogger(__name__)


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
    What too few subjects or stimuli kept from being computed is in ``flags``, with the number
    needed.

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
    chosen.check_stimuli(len(brain.stimuli))
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
    chosen.check_stimuli(len(brain.stimuli))
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


def unusable(brain: BrainRDMs) -> dict[tuple[str, str], str]:
    """Return why RDMs cannot be used, by (subject, region); usable ones are not in it."""
    names = [f"sub-{subject}" for subject in brain.subjects]
    return {
        (brain.subjects[s], brain.regions[r]): reason
        for (s, r), reason in unusable_rdms(brain.dissimilarity, names).items()
    }


def usable_or_refuse(brain: BrainRDMs) -> tuple[np.ndarray, dict[tuple[str, str], str]]:
    """Return which RDMs can be used, bool (subject, region), and why the others cannot.

    Raises
    ------
    InputError
        Where none can be used.
    """
    reasons = unusable(brain)
    usable = np.array([[(s, r) not in reasons for r in brain.regions] for s in brain.subjects])
    if not usable.any():
        raise InputError(
            f"no subject has a usable RDM of measure {brain.measure} in task {brain.task} "
            f"({next(iter(reasons.values()))}): check the regions"
        )
    return usable, reasons


def usable_models(
    model_rdms: np.ndarray, predictors: Sequence[str]
) -> tuple[np.ndarray, list[str]]:
    """Return which model RDMs can be used, bool (predictor,), and a line for each other one."""
    fit = np.isfinite(model_rdms).all(axis=1) & (np.ptp(np.nan_to_num(model_rdms), axis=1) > 0)
    return fit, [
        f"{name} has an RDM with NaN or without spread: no score"
        for name in np.array(predictors, dtype=object)[~fit]
    ]


def identification_dataset(
    brain: BrainRDMs, options: TopologyOptions, *, threads: int = 1
) -> xr.Dataset:
    """Return the identification analysis of a set of subjects' RDMs, see `identify_regions`."""
    prepared = prepare(
        brain.dissimilarity,
        options,
        subjects=[f"sub-{subject}" for subject in brain.subjects],
        regions=brain.regions,
    )
    options, regions = prepared.options, [brain.regions[r] for r in prepared.kept]
    statistics = list_statistics(options)
    if prepared.flag:
        outcome = empty_outcome(len(statistics) + 1, len(brain.subjects), len(regions))
        choice = np.full((1, len(brain.subjects)), len(statistics))
    else:
        outcome, choice = identify(
            brain.dissimilarity[None, :, prepared.kept], statistics, options, threads=threads
        )
    arrays = {name: (dims, outcome[name]) for name, dims in DIMS.items()}
    # Which pair each fold chose, by name.
    names = np.array([*(s.name for s in statistics), ""], dtype=object)
    arrays["chosen"] = (("subject",), names[choice[0]])
    return xr.Dataset(
        arrays,
        coords={
            **statistic_coords([*statistics, Statistic(NESTED, "nested")]),
            "region": np.array(regions, dtype=object),
            "predicted": np.array(regions, dtype=object),
            "subject": np.array(brain.subjects, dtype=object),
        },
        attrs={
            **_shared_attrs(brain, options),
            "chance": 1 / len(regions),
            "flag": prepared.flag,
            "flags": prepared.flags,
            "methods": ""
            if prepared.flag
            else identification_methods(options, len(brain.subjects)),
            "regions_left_out": prepared.left_out,
        },
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
    options, flags = resampled(options, len(brain.stimuli))
    n_subjects = len(brain.subjects)
    usable, reasons = usable_or_refuse(brain)
    flags += [
        f"region {region}: {reason}: compared without that subject"
        for (_, region), reason in reasons.items()
    ]
    for region, count in zip(brain.regions, usable.sum(axis=0)):
        if count < 2 and options.resample != "stimuli":
            flags.append(
                f"region {region} has {count} usable subjects, at least 2 are needed for inference "
                "over subjects"
            )
    fit, without = usable_models(model_rdms, predictors)
    flags += without
    for line in flags:
        logger.warning("%s", line)
    draws = identification.draw_bootstrap(
        options.bootstrap_samples,
        subjects=n_subjects,
        stimuli=len(brain.stimuli),
        resample="both",
        seed=options.seed,
        least_subjects=1,
    )
    statistics = list_statistics(options)
    results = list(
        parallel.map_blocks(
            compare_by,
            statistics,
            SummarySet(brain.dissimilarity[usable], options).prepare(),
            SummarySet(model_rdms[fit], options).prepare() if fit.any() else None,
            usable,
            fit,
            draws,
            options,
            threads=threads,
            label="comparison of statistics",
        )
    )
    for statistic, result in zip(statistics, results):
        if result["n_pairs"] < LEAST_PAIRS:
            logger.warning("%s: %d pairs are left: no result", statistic.name, result["n_pairs"])
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
            **statistic_coords(statistics),
            "region": np.array(brain.regions, dtype=object),
            "subject": np.array(brain.subjects, dtype=object),
            "predictor": np.array(predictors, dtype=object),
            "model": ("predictor", np.array(models, dtype=object)),
            "layer": ("predictor", np.array(layers, dtype=object)),
        },
        attrs={
            **_shared_attrs(brain, options),
            "alternative": "greater",
            "comparison": options.comparison,
            "flags": flags,
            "methods": _topology_methods(options),
            "left_out": {f"{region} of sub-{s}": why for (s, region), why in reasons.items()},
        },
    )


def compare_by(
    statistic: Statistic,
    of_brain: SummarySet,
    of_models: SummarySet | None,
    usable: np.ndarray,
    fit: np.ndarray,
    draws: Draws,
    options: TopologyOptions,
) -> Mapping[str, np.ndarray]:
    """Return scores and inference of one statistic, see `topology_dataset`.

    Parameters
    ----------
    statistic
        Which.
    of_brain, of_models
        The usable RDMs of subjects' regions and of model layers.
    usable, fit
        Which subjects' regions, (subject, region), and which layers those are, bool.
    draws
        Bootstrap samples.
    options
        See `TopologyOptions`.
    """
    of_usable = of_brain.compute(statistic)
    values = np.full((*usable.shape, of_usable.shape[-1]), np.nan)
    values[usable] = of_usable
    layers = np.full((len(fit), of_usable.shape[-1]), np.nan)
    if of_models is not None:
        layers[fit] = of_models.compute(statistic)
    pairs = np.isfinite(of_usable).all(axis=0) & np.isfinite(layers[fit]).all(axis=0)
    scores = np.full((len(fit), *usable.shape[::-1]), np.nan)
    empty = np.full((1, len(fit), usable.shape[1]), np.nan)
    by_stimuli, by_both = empty, empty
    if pairs.sum() >= LEAST_PAIRS:
        scores = model_comparison.correlations(
            values, layers, comparison=options.comparison, pairs=pairs
        )
        if options.resample != "subjects":
            by_stimuli, by_both = model_comparison.bootstrap_means(
                values, layers, draws, comparison=options.comparison, pairs=pairs
            )
    inferred = model_comparison.infer(
        scores,
        by_stimuli,
        by_both,
        n_stimuli=draws.stimuli.shape[1],
        resample=options.resample,
        interval=options.interval,
    )
    return {**inferred, "score_subject": scores, "n_pairs": np.int32(pairs.sum())}


_COMPARED = {
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "corr_cov": "whitened Pearson correlation",
    "rho_a": "Spearman correlation under random tie-breaking (rho-a)",
}


def _topology_methods(options: TopologyOptions) -> str:
    variance = {
        "both": "the dual bootstrap of subjects and stimuli (over stimuli alone where a region has "
        "a single subject)",
        "subjects": "the variance over subjects",
        "stimuli": "the bootstrap of stimuli",
    }[options.resample]
    return (
        "Summary statistics of regions and of model layers were compared by "
        f"{_COMPARED[options.comparison]}, "
        f"means over subjects tested against 0 (one-sided t-test) with {variance}; p-values were "
        "corrected over layers and regions by Holm's method."
    )


def _shared_attrs(brain: BrainRDMs, options: TopologyOptions) -> dict[str, object]:
    return {
        **options.attrs,
        "measure": brain.measure,
        "task": brain.task,
        "n_stimuli": len(brain.stimuli),
    }
