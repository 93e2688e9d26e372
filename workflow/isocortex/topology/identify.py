"""Identification by every summary statistic: accuracies, intervals, p-values, confusions.

Regions of subjects and layers of seeds are one analysis: whoever is left out is called the
subject here, and what is identified the region.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from isocortex import parallel
from isocortex.errors import InputError
from isocortex.rsa.rdms import n_stimuli
from isocortex.rsa.scores import FEWEST_STIMULI
from isocortex.topology import identification
from isocortex.topology.grid import NESTED, Statistic, SummarySet, TopologyOptions
from isocortex.topology.identification import Draws

logger = logging.getLogger(__name__)

LEAST_PAIRS = 3
FEWEST_SUBJECTS = 3
"""Of fewer, a bootstrap sample with one to leave out and one to learn from is always the data, and
there is none left to choose (l, u) among."""

DIMS = {
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
    "sensitivity": ("statistic", "region"),
    "specificity": ("statistic", "region"),
    "accuracy_subject": ("statistic", "subject"),
    "confusion": ("statistic", "region", "predicted"),
}
"""Arrays that `identify` returns, and their dims; along statistics the nested one comes last."""


@dataclass(frozen=True)
class Prepared:
    """What an identification can use of the RDMs and options that it was given.

    Attributes
    ----------
    options
        With what can be resampled.
    flag
        Why there is no identification at all, empty where there is one.
    flags
        All that too few subjects, regions or stimuli take away, with the number needed.
    kept
        Index of the regions that all subjects have; all regions where there is a flag.
    left_out
        Reasons by name of the other regions.
    """

    options: TopologyOptions
    flag: str
    flags: list[str]
    kept: list[int]
    left_out: dict[str, str]


def prepare(
    rdms: np.ndarray,
    options: TopologyOptions,
    *,
    subjects: Sequence[str],
    regions: Sequence[str],
    who: str = "subjects",
    what: str = "region",
) -> Prepared:
    """Return what can be identified among RDMs, of which some may be missing or unusable.

    Parameters
    ----------
    rdms
        Shape (subject, region, pair).
    options
        See `TopologyOptions`.
    subjects, regions
        Their names, as messages have them.
    who, what
        What the first two axes are in messages: several of the first, one of the second.
    """
    options, flags = resampled(
        options, n_stimuli(rdms.shape[-1]), n_subjects=len(subjects), who=who
    )
    left_out: dict[str, str] = {}
    for (_, r), reason in unusable_rdms(rdms, subjects).items():
        name = regions[r]
        left_out[name] = f"{left_out[name]}, {reason}" if name in left_out else reason
    flags += [
        f"{what} {name} is left out of the identification, which needs a usable RDM of all "
        f"{len(subjects)} {who}: {reason}"
        for name, reason in left_out.items()
    ]
    kept = [r for r, name in enumerate(regions) if name not in left_out]
    flag = ""
    if len(subjects) < 2:
        flag = f"needs at least 2 {who}, has {len(subjects)}"
    elif len(kept) < 2:
        flag = f"needs at least 2 {what}s that all {who} have, has {len(kept)}"
    if flag:
        flags.insert(0, f"no identification: it {flag}")
        kept = list(range(len(regions)))
    elif len(subjects) < FEWEST_SUBJECTS:
        flags.append(
            f"no nested choice of (l, u): {len(subjects)} {who}, at least {FEWEST_SUBJECTS} are "
            "needed"
        )
    for line in flags:
        logger.warning("%s", line)
    return Prepared(options, flag, flags, kept, left_out)


def resampled(
    options: TopologyOptions,
    n_stimuli: int,
    *,
    n_subjects: int | None = None,
    who: str = "subjects",
) -> tuple[TopologyOptions, list[str]]:
    """Return the options with what can be resampled, and why that is less than was asked for.

    Stimuli need to be `FEWEST_STIMULI`. Subjects, where their number is given, need to be
    `FEWEST_SUBJECTS`: a sample of an identification needs one to leave out and another to learn
    from, so that of two subjects every sample is the data.
    """
    flags = []
    if n_stimuli < FEWEST_STIMULI and options.resample != "subjects":
        few = f"{n_stimuli} stimuli, at least {FEWEST_STIMULI} are needed to resample them"
        if options.resample == "stimuli":
            raise InputError(
                f"resample is stimuli in config section trsa, with {few}: use subjects"
            )
        flags.append(f"only {who} are resampled: {few}")
        options = replace(options, resample="subjects")
    elif n_subjects is not None and n_subjects < FEWEST_SUBJECTS and options.resample == "both":
        flags.append(
            f"only stimuli are resampled: {n_subjects} {who}, at least {FEWEST_SUBJECTS} are "
            "needed to resample them"
        )
        options = replace(options, resample="stimuli")
    return options, flags


def unusable_rdms(rdms: np.ndarray, subjects: Sequence[str]) -> dict[tuple[int, int], str]:
    """Return why RDMs cannot be used, by index of subject and region; usable ones are not in it.

    Parameters
    ----------
    rdms
        Shape (subject, region, pair).
    subjects
        Names of the subjects, as the reasons have them.
    """
    reasons = {}
    finite = np.isfinite(rdms)
    for s, r in np.ndindex(*rdms.shape[:2]):
        if not finite[s, r].any():
            reason = "has no RDM"
        elif not finite[s, r].all():
            reason = f"has an RDM with {int((~finite[s, r]).sum())} NaN dissimilarities"
        elif np.ptp(rdms[s, r]) == 0:
            reason = "has an RDM whose dissimilarities are all equal"
        else:
            continue
        reasons[s, r] = f"{subjects[s]} {reason}"
    return reasons


def identification_methods(
    options: TopologyOptions, n_subjects: int, *, who: str = "subject", what: str = "region"
) -> str:
    """Return the sentences on how identification was done, for the report."""
    if options.resample == "subjects" and n_subjects < FEWEST_SUBJECTS:
        intervals = f"There are no intervals, which {n_subjects} {who}s do not give;"
    else:
        drawn = {"both": f"{who}s and stimuli", "subjects": f"{who}s", "stimuli": "stimuli"}
        intervals = (
            f"Intervals ({100 * options.interval:g} %) come from {options.bootstrap_samples} "
            f"bootstrap samples of {drawn[options.resample]}, centred on the estimate;"
        )
    return (
        f"{what.capitalize()}s of each {who} were identified with the nearest centroid (Euclidean "
        f"distance) of the other {who}s' {what}s; threshold pairs were chosen, where marked as "
        f"nested, among the other {who}s. {intervals} p-values against chance come from "
        f"{options.permutations} permutations of {what}s within {who}s."
    )


@dataclass(frozen=True)
class Identified:
    """What one statistic gave in one set of RDMs; shares found are (sample, subject)."""

    predicted: np.ndarray
    ratio: float
    n_pairs: int
    bootstrap: np.ndarray
    null: np.ndarray
    nested: np.ndarray | None = None
    nested_null: np.ndarray | None = None


def identify(
    sets: np.ndarray, statistics: Sequence[Statistic], options: TopologyOptions, *, threads: int = 1
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Identify the regions of each subject by each statistic.

    Parameters
    ----------
    sets
        RDMs without gaps and with spread, shape (set, subject, region, pair), at least two
        subjects and regions. Several sets are repeated draws of the same study: accuracies,
        their bootstrap samples and their permutations are averaged over them.
    statistics
        See `grid.list_statistics`.
    options
        See `TopologyOptions`.
    threads
        Cores to use.

    Returns
    -------
    arrays : dict
        The arrays of `DIMS`.
    choice : numpy.ndarray
        Index of the statistic chosen by the others of each subject, shape (set, subject); that of
        `NESTED` where there is no choice.
    """
    _, n_subjects, n_regions, n_pairs = sets.shape
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
    summaries = [SummarySet(rdms.reshape(-1, n_pairs), options).prepare() for rdms in sets]
    blocks = [(k, statistic) for k in range(len(sets)) for statistic in statistics]
    results = parallel.map_blocks(
        identify_by,
        blocks,
        summaries,
        (n_subjects, n_regions),
        draws,
        permutations,
        threads=threads,
        label="identification",
    )
    found: list[list[Identified | None]] = [[] for _ in sets]
    for (k, statistic), result in zip(blocks, results):
        if result is None:
            logger.warning(
                "%s is the same for all RDMs, or hardly a pair is left: no result", statistic.name
            )
        found[k].append(result)
    choice = np.full((len(sets), n_subjects), len(statistics))
    for k, of_set in enumerate(found):
        of_set.append(_choose(of_set, choice[k]) if n_subjects >= FEWEST_SUBJECTS else None)
    if n_subjects < FEWEST_SUBJECTS:
        logger.warning("%s needs at least %d subjects: no result", NESTED, FEWEST_SUBJECTS)
    names = [statistic.name for statistic in statistics]
    return _summarise(found, draws, options, n_regions, names.index("rank_rdm")), choice


def identify_by(
    block: tuple[int, Statistic],
    summaries: Sequence[SummarySet],
    shape: tuple[int, int],
    draws: Draws,
    permutations: np.ndarray,
) -> Identified | None:
    """Return what one statistic of one set of RDMs gives, None where it tells nothing apart."""
    which, statistic = block
    values = summaries[which].compute(statistic)
    kept = np.isfinite(values).all(axis=0)
    if kept.sum() < LEAST_PAIRS or (np.ptp(values[:, kept], axis=0) == 0).all():
        return None
    values = values.reshape(*shape, -1)
    products = identification.gram(values[..., kept])
    nested = statistic.chosen_from and shape[0] >= FEWEST_SUBJECTS
    null, nested_null = identification.permutation_accuracy(products, permutations, nested=nested)
    return Identified(
        predicted=identification.leave_one_out_distances(products).argmin(axis=-1),
        ratio=identification.distance_ratio(products),
        n_pairs=int(kept.sum()),
        bootstrap=identification.bootstrap_accuracy(values, draws, pairs=kept),
        null=null,
        nested=identification.nested_scores(products) if nested else None,
        nested_null=nested_null,
    )


def _choose(found: Sequence[Identified | None], choice: np.ndarray) -> Identified | None:
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
    return Identified(
        predicted=np.stack([cells[best[s]].predicted[s] for s in subjects]),
        ratio=float(np.mean([cells[best[s]].ratio for s in subjects])),
        n_pairs=min(cells[best[s]].n_pairs for s in subjects),
        bootstrap=np.stack([cells[best[s]].bootstrap[:, s] for s in subjects], axis=1),
        null=null[null_best, samples, subjects],
    )


def empty_outcome(n_statistics: int, n_subjects: int, n_regions: int) -> dict[str, np.ndarray]:
    """Return the arrays of `DIMS` without results: NaN, counts 0."""
    sizes = {
        "statistic": n_statistics,
        "subject": n_subjects,
        "region": n_regions,
        "predicted": n_regions,
    }
    outcome = {name: np.full([sizes[dim] for dim in dims], np.nan) for name, dims in DIMS.items()}
    for name in ("n_pairs", "confusion"):
        outcome[name] = np.zeros(outcome[name].shape, dtype=np.int32)
    return outcome


def _summarise(
    found: Sequence[Sequence[Identified | None]],
    draws: Draws,
    options: TopologyOptions,
    n_regions: int,
    reference: int,
) -> dict[str, np.ndarray]:
    """Return the arrays of `DIMS` from the results of every set, by statistic."""
    n_subjects = draws.subjects.shape[1]
    by_statistic = [None if any(one is None for one in of) else of for of in zip(*found)]
    outcome = empty_outcome(len(by_statistic), n_subjects, n_regions)
    weights = draws.subjects / draws.subjects.sum(axis=1, keepdims=True)
    truth = np.arange(n_regions)

    def mean(values: Callable[[Identified], np.ndarray]) -> list[np.ndarray | None]:
        return [
            None if of is None else np.mean([values(one) for one in of], axis=0)
            for of in by_statistic
        ]

    rights = mean(lambda one: one.predicted == truth)
    nulls = mean(lambda one: one.null.mean(axis=1))
    samples = mean(lambda one: (one.bootstrap * weights).sum(axis=1))
    # The largest accuracy over the statistics in each permutation bounds the chance that any
    # of them is called significant; the nested one is a single test and needs no correction.
    tested = [null for null in nulls[:-1] if null is not None]
    largest = np.max(tested, axis=0) if tested else np.zeros(options.permutations)
    varies = options.resample != "subjects" or n_subjects >= FEWEST_SUBJECTS
    for k, of in enumerate(by_statistic):
        if of is None:
            continue
        accuracy = rights[k].mean()
        outcome["accuracy"][k] = accuracy
        outcome["accuracy_subject"][k] = rights[k].mean(axis=1)
        outcome["p"][k] = identification.permutation_p(accuracy, nulls[k])
        outcome["p_corrected"][k] = (
            identification.permutation_p(accuracy, largest)
            if k < len(by_statistic) - 1
            else outcome["p"][k]
        )
        intervals = [("accuracy", samples[k], accuracy, (0, 1))]
        if by_statistic[reference] is not None:
            gain = accuracy - rights[reference].mean()
            outcome["gain"][k] = gain
            intervals.append(("gain", samples[k] - samples[reference], gain, (-1, 1)))
        for name, drawn, estimate, bounds in intervals if varies else ():
            ends = identification.bootstrap_interval(
                drawn, estimate, interval=options.interval, bounds=bounds
            )
            outcome[f"{name}_low"][k], outcome[f"{name}_high"][k] = ends
        outcome["ratio"][k] = np.mean([one.ratio for one in of])
        outcome["n_pairs"][k] = min(one.n_pairs for one in of)
        for region in range(n_regions):
            outcome["confusion"][k, region] = np.bincount(
                np.concatenate([one.predicted[:, region] for one in of]), minlength=n_regions
            )
        rates = identification.sensitivity_specificity(outcome["confusion"][k])
        outcome["sensitivity"][k], outcome["specificity"][k] = rates
    return outcome
