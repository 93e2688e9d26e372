"""Persistent homology of RDMs: Betti curves, bars, and distances between regions' diagrams.

The Vietoris-Rips filtration of an RDM joins stimuli in the order of their dissimilarities; H0 bars
are clusters that stay apart, H1 bars loops that stay open. Everything is done by GUDHI, through
its parts of free licences only (Rips complex, edge collapse and simplex tree: MIT; Hera's distances
between diagrams: BSD).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import gudhi
import numpy as np
import xarray as xr
from gudhi import hera

from isocortex import parallel, store
from isocortex.errors import InputError
from isocortex.rsa.inference import bootstrap_counts
from isocortex.rsa.rdms import BrainRDMs, load_rdms, to_matrices
from isocortex.rsa.transforms import rank_rdm
from isocortex.topology.identification import (
    bootstrap_interval,
    draw_bootstrap,
    draw_permutations,
    leave_one_out_distances,
    permutation_accuracy,
    permutation_p,
)
from isocortex.topology.identify import FEWEST_SUBJECTS
from isocortex.topology.study import usable_or_refuse

logger = logging.getLogger(__name__)

FILTRATIONS = ("rank", "maximum")
DISTANCES = ("wasserstein", "bottleneck")
DIMENSIONS = ("H0", "H1")

_RELATIVE_ERROR = 1e-6
_PAIRS_A_BLOCK = 200
_RDMS_A_BLOCK = 8


@dataclass(frozen=True)
class PersistenceOptions:
    """The section ``trsa.persistence`` of the config, and what it shares with ``trsa``.

    Parameters
    ----------
    filtration
        ``"rank"``: each RDM's ranks, 0 to 1, so that only the order of its dissimilarities counts;
        ``"maximum"``: dissimilarities over their largest, negative ones (crossnobis) taken for 0.
    distance
        Between diagrams: ``"wasserstein"`` or ``"bottleneck"``, see `diagram_distance`.
    thresholds
        Points of the Betti curves, from 0 to 1.
    permutations
        Orders of the regions within subjects.
    bootstrap_samples, interval
        Bootstrap samples of subjects, and the coverage of intervals.
    seed
        Of both.

    Raises
    ------
    InputError
        For values that the analysis cannot use, with the key.
    """

    filtration: str = "rank"
    distance: str = "wasserstein"
    thresholds: int = 101
    permutations: int = 1000
    bootstrap_samples: int = 1000
    interval: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        for key, value, known in (
            ("filtration", self.filtration, FILTRATIONS),
            ("distance", self.distance, DISTANCES),
        ):
            if value not in known:
                raise InputError(
                    f"{key} is {value!r} in config section trsa.persistence: use one of "
                    f"{', '.join(known)}"
                )
        if self.thresholds < 2:
            raise InputError(
                f"thresholds is {self.thresholds} in config section trsa.persistence: use at "
                "least 2"
            )
        if not 0 < self.interval < 1:
            raise InputError(
                f"interval is {self.interval} in config section trsa: use a value between 0 and 1"
            )


def filtration_values(rdms: np.ndarray, *, filtration: str) -> np.ndarray:
    """Return the values at which pairs of stimuli are joined, 0 to 1.

    Parameters
    ----------
    rdms
        Dissimilarities, shape (..., pair).
    filtration
        ``"rank"`` or ``"maximum"``, see `PersistenceOptions`.

    Raises
    ------
    ValueError
        For RDMs with NaN or without spread; for ``"maximum"`` also without any above 0.
    """
    ranked = rank_rdm(rdms)  # refuses NaN and constants for both
    if filtration == "rank":
        return ranked
    clipped = np.maximum(np.asarray(rdms, dtype=np.float64), 0.0)
    largest = clipped.max(axis=-1, keepdims=True)
    if (largest == 0).any():
        raise ValueError("no dissimilarity of an RDM is above 0: use the filtration rank")
    return clipped / largest


def persistence_diagrams(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the bars of the Vietoris-Rips filtration of one RDM, in dimensions 0 and 1.

    Parameters
    ----------
    values
        When pairs are joined, shape (pair,), not negative; see `filtration_values`.

    Returns
    -------
    h0, h1 : numpy.ndarray
        Births and deaths, shape (bar, 2), sorted. Bars of no length and the one component that
        never dies are left out.
    """
    complex_ = gudhi.RipsComplex(distance_matrix=to_matrices(values))
    tree = complex_.create_simplex_tree(max_dimension=1)
    # Leaves the diagrams as they are and a small share of the triangles.
    tree.collapse_edges()
    tree.expansion(2)
    tree.compute_persistence()
    found = []
    for dimension in range(len(DIMENSIONS)):
        bars = np.asarray(tree.persistence_intervals_in_dimension(dimension)).reshape(-1, 2)
        bars = bars[np.isfinite(bars[:, 1]) & (bars[:, 1] > bars[:, 0])]
        found.append(bars[np.lexsort(bars.T)])
    return tuple(found)


def betti_curve(bars: np.ndarray, thresholds: np.ndarray, *, dimension: int) -> np.ndarray:
    """Return how many bars are there at each threshold, shape (threshold,).

    Parameters
    ----------
    bars
        Births and deaths, shape (bar, 2), see `persistence_diagrams`.
    thresholds
        Values of the filtration.
    dimension
        Of the bars; in dimension 0 the component that never dies counts.
    """
    alive = (bars[:, :1] <= thresholds) & (thresholds < bars[:, 1:])
    return alive.sum(axis=0).astype(np.float64) + (dimension == 0)


def summarise_bars(bars: np.ndarray) -> dict[str, float]:
    """Return the total and longest length of bars, their entropy and their number.

    The entropy is that of the lengths as shares of the total, in nats: 0 for one bar, log n for n
    of one length (Chintakunta et al. 2015, Pattern Recognition 48). All are 0 without bars.
    """
    length = bars[:, 1] - bars[:, 0]
    total = length.sum()
    share = length / total if len(length) else length
    return {
        "total_persistence": float(total),
        "longest": float(length.max(initial=0.0)),
        "entropy": float(-(share * np.log(share)).sum()),
        "n_bars": float(len(length)),
    }


def diagram_distance(a: np.ndarray, b: np.ndarray, *, distance: str = "wasserstein") -> float:
    """Return the distance between two persistence diagrams.

    Parameters
    ----------
    a, b
        Births and deaths, shape (bar, 2), see `persistence_diagrams`.
    distance
        ``"bottleneck"``: how far the farthest bar moves in the best matching, exactly; at most the
        largest difference between the two RDMs' filtration values. ``"wasserstein"``: the sum of
        how far all bars move (order 1), to a relative error of 1e-6. Bars move by the larger
        change of birth and death; bars without a partner go to half their length.
    """
    if distance not in DISTANCES:
        raise ValueError(f"distance is {distance!r}: pass one of {', '.join(DISTANCES)}")
    if distance == "bottleneck":
        return float(hera.bottleneck_distance(a, b, delta=0.0))
    return float(hera.wasserstein_distance(a, b, order=1.0, delta=_RELATIVE_ERROR))


Diagrams = list[tuple[np.ndarray, np.ndarray]]


def _diagrams_of(rows: np.ndarray) -> Diagrams:
    return [persistence_diagrams(row) for row in rows]


def _distances_of(pairs: np.ndarray, diagrams: Diagrams, distance: str) -> np.ndarray:
    """Return distances of pairs of diagrams, shape (pair, dimension)."""
    return np.array(
        [
            [diagram_distance(a, b, distance=distance) for a, b in zip(diagrams[i], diagrams[j])]
            for i, j in pairs
        ]
    ).reshape(-1, len(DIMENSIONS))


def _blocks(items: np.ndarray, size: int) -> Iterable[np.ndarray]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def pairwise_distances(
    diagrams: Diagrams, *, distance: str = "wasserstein", threads: int = 1
) -> np.ndarray:
    """Return distances between all diagrams, shape (dimension, diagram, diagram).

    Parameters
    ----------
    diagrams
        H0 and H1 of each RDM, see `persistence_diagrams`.
    distance
        See `diagram_distance`.
    threads
        Cores to use.
    """
    pairs = np.array(np.triu_indices(len(diagrams), 1)).T
    matrices = np.zeros((len(DIMENSIONS), len(diagrams), len(diagrams)))
    found = parallel.map_blocks(
        _distances_of,
        _blocks(pairs, _PAIRS_A_BLOCK),
        diagrams,
        distance,
        threads=threads,
        label="distances of diagrams",
    )
    for block, (i, j) in zip(found, (b.T for b in _blocks(pairs, _PAIRS_A_BLOCK))):
        matrices[:, i, j] = matrices[:, j, i] = block.T
    return matrices


def inner_products(distances: np.ndarray) -> np.ndarray:
    """Return what stands for inner products of diagrams, which have no coordinates.

    With -1/2 of the squared distances in place of a Gram matrix the squared distance to a centroid
    is the mean squared distance to its members less half of that between them (Gower), as for
    vectors: region identification needs nothing else.
    """
    return -0.5 * np.square(distances)


def bootstrap_centroid_distances(distances: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return squared distances to the centroids of the other subjects' regions, over samples.

    Parameters
    ----------
    distances
        Shape (subject, region, subject, region).
    counts
        How often each subject is in each bootstrap sample, shape (sample, subject), at least two
        different ones. Copies of the subject left out are left out with it.

    Returns
    -------
    numpy.ndarray
        Shape (sample, subject, region, region of the centroid).
    """
    squares = np.square(distances)
    subjects = np.arange(len(distances))
    same = np.einsum("sqtq->qst", squares)
    squares[subjects, :, subjects] = 0.0
    others = counts.sum(axis=1, keepdims=True) - counts
    to_members = np.einsum("bt,srtq->bsrq", counts, squares, optimize=True)
    to_same = np.einsum("bt,qst->bsq", counts, same, optimize=True)
    between = np.einsum("bs,bsq->bq", counts, to_same)[:, None] - 2 * counts[..., None] * to_same
    return to_members / others[..., None, None] - between[..., None, :] / (
        2 * np.square(others)[..., None, None]
    )


def summarise_persistence(
    *,
    rdms: Sequence[str | Path],
    out: str | Path,
    code: str = "",
    threads: int = 1,
    seed: int = 0,
    **options: object,
) -> None:
    """Summarise the persistent homology of the regions' RDMs; write the `persistence` store.

    Parameters
    ----------
    rdms
        ``rdms`` stores, one a subject, of one task and measure.
    out
        The ``persistence`` store.
    code
        The rule's code version.
    threads
        Cores to use.
    seed
        Of the bootstrap samples and permutations.
    **options
        See `PersistenceOptions`.

    Raises
    ------
    InputError
        For stores that do not fit together, or options out of range.
    """
    chosen = PersistenceOptions(seed=seed, **options)
    dataset = persistence_dataset(load_rdms(rdms), chosen, threads=threads)
    store.write(dataset, out, spec="persistence", sources=list(rdms), code=code)


def persistence_dataset(
    brain: BrainRDMs, options: PersistenceOptions, *, threads: int = 1
) -> xr.Dataset:
    """Return the persistent homology of a set of subjects' RDMs, see `summarise_persistence`.

    Identification needs 2 subjects and 2 regions that all subjects have; without them its arrays
    are NaN, and ``flag`` says why. Intervals over subjects need 3 subjects.
    """
    usable, reasons = usable_or_refuse(brain)
    if options.filtration == "maximum":
        above = (np.nan_to_num(brain.dissimilarity) > 0).any(axis=-1)
        for s, r in np.argwhere(usable & ~above):
            key = (brain.subjects[s], brain.regions[r])
            reasons[key] = f"sub-{key[0]} has an RDM with no dissimilarity above 0"
        usable &= above
        if not usable.any():
            raise InputError(
                f"no RDM of measure {brain.measure} in task {brain.task} has a dissimilarity above "
                "0: set trsa.persistence.filtration to rank"
            )
    flags = [
        f"region {region}: {reason}: summarised without that subject"
        for (_, region), reason in reasons.items()
    ]
    values = filtration_values(brain.dissimilarity[usable], filtration=options.filtration)
    diagrams: Diagrams = []
    for block in parallel.map_blocks(
        _diagrams_of, _blocks(values, _RDMS_A_BLOCK), threads=threads, label="persistence"
    ):
        diagrams += block
    n_subjects, n_regions = usable.shape
    shape = (len(DIMENSIONS), n_regions, n_subjects)
    thresholds = np.linspace(0, 1, options.thresholds)
    summaries = {key: np.full(shape, np.nan) for key in summarise_bars(np.zeros((0, 2)))}
    betti = np.full((len(DIMENSIONS), len(thresholds), n_regions, n_subjects), np.nan)
    for (s, r), found in zip(np.argwhere(usable), diagrams):
        for d, bars in enumerate(found):
            betti[d, :, r, s] = betti_curve(bars, thresholds, dimension=d)
            for key, value in summarise_bars(bars).items():
                summaries[key][d, r, s] = value
    apart = pairwise_distances(diagrams, distance=options.distance, threads=threads)
    distances = np.full((len(DIMENSIONS), *usable.shape, *usable.shape), np.nan)
    # (dimension, subject, region, subject, region), NaN where one has no diagram
    known = usable[:, :, None, None] & usable[None, None]
    distances[:, known] = apart.reshape(len(DIMENSIONS), -1)

    complete = usable.all(axis=0)
    flag = ""
    if n_subjects < 2:
        flag = f"needs at least 2 subjects, has {n_subjects}"
    elif complete.sum() < 2:
        flag = f"needs at least 2 regions that all subjects have, has {int(complete.sum())}"
    if flag:
        flags.append(f"no identification: it {flag}")
    if n_subjects < FEWEST_SUBJECTS:
        flags.append(
            f"no intervals: they need at least {FEWEST_SUBJECTS} subjects, there are {n_subjects}"
        )
    for line in flags:
        logger.warning("%s", line)
    within = np.einsum("dsrsq->drqs", distances)
    arrays = {
        "betti": (("dimension", "threshold", "region", "subject"), betti),
        **{key: (("dimension", "region", "subject"), summaries[key]) for key in summaries},
        "distance_subject": (("dimension", "region", "other", "subject"), within),
        **_over_subjects(within, summaries["total_persistence"], options),
        **_across_subjects(distances),
        **_identify(distances, complete, options, skip=bool(flag)),
    }
    names = np.array(brain.regions, dtype=object)
    return xr.Dataset(
        arrays,
        coords={
            "region": names,
            "other": names,
            "subject": np.array(brain.subjects, dtype=object),
            "dimension": np.array(DIMENSIONS, dtype=object),
            "threshold": thresholds,
        },
        attrs={
            "measure": brain.measure,
            "task": brain.task,
            "filtration": options.filtration,
            "distance": options.distance,
            "n_stimuli": len(brain.stimuli),
            # Of all regions where none are identified: JSON has no NaN.
            "chance": 1 / (n_regions if flag else int(complete.sum())),
            "flag": flag,
            "flags": flags,
            "left_out": {f"{region} of sub-{s}": why for (s, region), why in reasons.items()},
            "interval_level": options.interval,
            "options": asdict(options),
            "methods": _methods(options, n_subjects, identified=not flag),
        },
    )


def _over_subjects(
    within: np.ndarray, total: np.ndarray, options: PersistenceOptions
) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    """Return means over subjects of regions' distances and differences, with intervals.

    Parameters
    ----------
    within
        Distances within subjects, shape (dimension, region, region, subject).
    total
        Total persistence, shape (dimension, region, subject).
    """
    dims = ("dimension", "region", "other")
    arrays = {}
    for name, values in (
        ("distance", within),
        ("difference", total[:, :, None] - total[:, None]),
    ):
        mean, low, high = _mean_over_subjects(values, options)
        arrays[name] = (dims, mean)
        arrays[f"{name}_low"] = (dims, low)
        arrays[f"{name}_high"] = (dims, high)
    return arrays


def _mean_over_subjects(
    values: np.ndarray, options: PersistenceOptions
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return means over the last axis, subjects, and percentiles of their bootstrap.

    Samples draw n subjects with replacement, whose means vary less than new subjects' would by
    (n - 1) / n: deviations are scaled to make up for it. NaN where fewer than 3 subjects have a
    value.
    """
    known = np.isfinite(values)
    filled = np.where(known, values, 0.0)
    count = known.sum(axis=-1)
    mean = np.divide(filled.sum(axis=-1), count, out=np.full(count.shape, np.nan), where=count > 0)
    rng = np.random.default_rng(options.seed)
    draws = bootstrap_counts(values.shape[-1], options.bootstrap_samples, rng=rng).astype(float)
    drawn = known @ draws.T
    # A sample without any of the subjects that have the region says nothing of it.
    samples = np.divide(filled @ draws.T, drawn, out=np.full(drawn.shape, np.nan), where=drawn > 0)
    enough = count >= FEWEST_SUBJECTS
    scale = np.sqrt(count / np.maximum(count - 1, 1))[..., None]
    samples = mean[..., None] + scale * (samples - mean[..., None])
    tail = (1 - options.interval) / 2
    low, high = np.full(mean.shape, np.nan), np.full(mean.shape, np.nan)
    if enough.any():
        low[enough], high[enough] = np.nanquantile(samples[enough], [tail, 1 - tail], axis=-1)
    return mean, low, high


def _across_subjects(distances: np.ndarray) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    """Return mean distances between different subjects, and the ratio of same to other regions."""
    n_subjects, n_regions = distances.shape[1:3]
    between = ~np.eye(n_subjects, dtype=bool)
    pairs = distances.transpose(0, 2, 4, 1, 3)[..., between]
    known = np.isfinite(pairs)
    count = known.sum(axis=-1)
    total = np.where(known, pairs, 0.0).sum(axis=-1)
    across = np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)
    same = np.eye(n_regions, dtype=bool)
    ratio = np.full(len(across), np.nan)
    for d, matrix in enumerate(across):
        own, other = matrix[same], matrix[~same]
        own, other = own[np.isfinite(own)], other[np.isfinite(other)]
        if len(own) and len(other) and other.mean() > 0:
            ratio[d] = own.mean() / other.mean()
    return {
        "distance_across": (("dimension", "region", "other"), across),
        "ratio": (("dimension",), ratio),
    }


def _identify(
    distances: np.ndarray, complete: np.ndarray, options: PersistenceOptions, *, skip: bool
) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    """Return the identification of regions by their diagrams, as the store holds it."""
    n_dimensions, n_subjects, n_regions = distances.shape[:3]
    single = {
        name: np.full(n_dimensions, np.nan)
        for name in ("accuracy", "accuracy_low", "accuracy_high", "p", "p_corrected")
    }
    by_subject = np.full((n_dimensions, n_subjects), np.nan)
    confusion = np.zeros((n_dimensions, n_regions, n_regions), dtype=np.int32)
    if not skip:
        used = np.flatnonzero(complete)
        n_used = len(used)
        kept = distances[:, :, used][..., used]
        permutations = draw_permutations(
            options.permutations, subjects=n_subjects, regions=n_used, seed=options.seed
        )
        draws = draw_bootstrap(
            options.bootstrap_samples,
            subjects=n_subjects,
            stimuli=1,
            resample="subjects",
            seed=options.seed,
        ).subjects
        truth = np.arange(n_used)
        products = [inner_products(matrix) for matrix in kept]
        null = np.array(
            [
                permutation_accuracy(product, permutations, nested=False)[0].mean(axis=1)
                for product in products
            ]
        )
        for d, matrix in enumerate(kept):
            predicted = leave_one_out_distances(products[d]).argmin(axis=-1)
            by_subject[d] = (predicted == truth).mean(axis=-1)
            single["accuracy"][d] = by_subject[d].mean()
            single["p"][d] = permutation_p(single["accuracy"][d], null[d])
            single["p_corrected"][d] = permutation_p(single["accuracy"][d], null.max(axis=0))
            for s in range(n_subjects):
                np.add.at(confusion[d], (used, used[predicted[s]]), 1)
            if n_subjects >= FEWEST_SUBJECTS:
                nearest = bootstrap_centroid_distances(matrix, draws).argmin(axis=-1)
                right = (nearest == truth).mean(axis=-1)
                samples = (right * draws).sum(axis=-1) / draws.sum(axis=-1)
                ends = bootstrap_interval(
                    samples, single["accuracy"][d], interval=options.interval, bounds=(0, 1)
                )
                single["accuracy_low"][d], single["accuracy_high"][d] = ends
    return {
        **{name: (("dimension",), values) for name, values in single.items()},
        "accuracy_subject": (("dimension", "subject"), by_subject),
        "confusion": (("dimension", "region", "other"), confusion),
    }


def _methods(options: PersistenceOptions, n_subjects: int, *, identified: bool) -> str:
    scale = {
        "rank": "the ranks of the dissimilarities, scaled to 0 to 1",
        "maximum": "the dissimilarities over the largest of each RDM, negative ones taken for 0",
    }[options.filtration]
    distance = {
        "wasserstein": "1-Wasserstein distance",
        "bottleneck": "bottleneck distance",
    }[options.distance]
    text = (
        "Persistent homology in dimensions 0 and 1 of the Vietoris-Rips filtration of each RDM "
        f"was computed with GUDHI on {scale}; diagrams were compared by their {distance}."
    )
    if identified:
        text += (
            " Regions of each subject were identified with the nearest centroid of the other "
            "subjects' regions, its squared distance being the mean squared distance of its "
            "members less half of that between them; p-values against chance come from "
            f"{options.permutations} permutations of regions within subjects."
        )
    if n_subjects >= FEWEST_SUBJECTS:
        text += (
            f" Intervals ({100 * options.interval:g} %) come from {options.bootstrap_samples} "
            "bootstrap samples of subjects."
        )
    return text
