"""Adaptive geo-topological dependence (AGTDM) of two sets of distances, and its permutation test.

The measure is the largest distance correlation over pairs of geo-topological transforms, one of
each set: Lin & Kriegeskorte, "Adaptive Geo-Topological Independence Criterion", arXiv 1810.02923.
A threshold pair chosen for its large correlation has one by chance too, so that the permutation
test chooses again in every permutation.

Distance correlations are bias-corrected (U-centred; Szekely & Rizzo 2014, Annals of Statistics 42)
unless asked otherwise. The plain ones of double-centred distances grow by chance alone, most where
a transform leaves few pairs apart from the rest: of unrelated data the same pair of transforms is
then always the largest, nothing is adapted, and power is lost (.1 instead of .6 for a linear
relation of r = .4 among 40 observations, .4 instead of .9 for a parabola).

On one grid of thresholds t_0 < ... < t_(T-1) every transform GT(t_a, t_b) is a weighted sum of the
T - 1 ramps between neighbouring thresholds, and centring is linear and commutes with the order of
the observations. So the T(T-1)/2 x T(T-1)/2 distance correlations of a permutation are a
gather and a matrix product of T - 1 rows each, and small products with the weights.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr

from isocortex import parallel, store
from isocortex.errors import InputError
from isocortex.rsa.rdms import (
    BrainRDMs,
    ModelRDMs,
    align_models,
    load_rdms,
    n_stimuli,
    pair_indices,
    to_matrices,
    to_vectors,
)
from isocortex.rsa.transforms import SCALES, on_scale, ramp, threshold_values
from isocortex.topology.study import usable_models, usable_or_refuse

logger = logging.getLogger(__name__)

LEVELS = 8
"""Thresholds of the paper: 28 pairs l < u of either set of distances."""

FEWEST_STIMULI = 7
"""Fewer have so few orders that random permutations repeat them: results are flagged."""

_BLOCK_ENTRIES = 1 << 22
_PERMUTATIONS_A_BLOCK = 50
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Dependence:
    """What `agtdm` finds.

    Attributes
    ----------
    value
        The largest distance correlation over all pairs of transforms, at most 1.
    p
        Share of permutations, the data among them, whose largest is at least as large.
    lower_x, upper_x, lower_y, upper_y
        The quantiles l and u at which it was found.
    distance_correlation
        That of the distances on their scale without thresholds (l = 0, u = 1).
    null
        The largest distance correlation in each permutation.
    """

    value: float
    p: float
    lower_x: float
    upper_x: float
    lower_y: float
    upper_y: float
    distance_correlation: float
    null: np.ndarray


@dataclass(frozen=True)
class DependenceOptions:
    """The section ``trsa.dependence`` of the config, and what it shares with ``trsa``.

    Parameters
    ----------
    levels
        Number of thresholds T from quantile 0 to 1; every pair l < u of them is tried.
    scale
        ``"rank"`` or ``"raw"``: the scale on which the transforms are linear between l and u.
    bias_corrected
        Whether distance correlations are bias-corrected, see `agtdm`.
    permutations
        Orders of the stimuli; the smallest possible p is 1 over one more.
    seed
        Of the permutations.

    Raises
    ------
    InputError
        For values that the analysis cannot use, with the key.
    """

    levels: int = LEVELS
    bias_corrected: bool = True
    scale: str = "rank"
    permutations: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.levels < 2:
            raise InputError(
                f"levels is {self.levels} in config section trsa.dependence: use at least 2"
            )
        if self.scale not in SCALES:
            raise InputError(
                f"scale is {self.scale!r} in config section trsa: use one of {', '.join(SCALES)}"
            )
        if self.permutations < 1:
            raise InputError(
                f"permutations is {self.permutations} in config section trsa: use at least 1"
            )


@dataclass(frozen=True)
class Ramps:
    """Sets of distances, ready for the distance correlations of all their transforms.

    Attributes
    ----------
    rows
        Centred ramps between neighbouring thresholds, shape (..., T - 1, pair + stimulus): the
        pairs times sqrt(2), then the diagonal, so that inner products are those of matrices.
    weights
        How many of each ramp make up the normalised transform of each threshold pair, shape
        (..., T(T-1)/2, T - 1); zeros where a transform is the same for all pairs.
    bias_corrected
        Whether rows are U-centred, otherwise double-centred.
    """

    rows: np.ndarray
    weights: np.ndarray
    bias_corrected: bool

    def __getitem__(self, index: object) -> Ramps:
        return Ramps(self.rows[index], self.weights[index], self.bias_corrected)


def threshold_pairs(levels: int) -> np.ndarray:
    """Return all pairs l < u of equally spaced quantiles from 0 to 1, shape (pair, 2)."""
    return np.array(list(itertools.combinations(np.linspace(0, 1, levels), 2)))


def centred_rows(vectors: np.ndarray, *, bias_corrected: bool) -> np.ndarray:
    """Return centred distances as rows whose inner products are those of the matrices.

    Parameters
    ----------
    vectors
        Distances, shape (..., pair).
    bias_corrected
        U-centre: every row of the matrix, without its diagonal, sums to 0, and the diagonal is 0;
        otherwise double-centre: every row sums to 0, the diagonal in it.

    Returns
    -------
    numpy.ndarray
        Shape (..., pair + stimulus): the pairs times sqrt(2), then the diagonal.
    """
    square = to_matrices(vectors)
    n = square.shape[-1]
    sums = square.sum(axis=-1)
    total = sums.sum(axis=-1)[..., None, None]
    one, all_ = (n - 2, (n - 1) * (n - 2)) if bias_corrected else (n, n**2)
    square += total / all_ - (sums[..., :, None] + sums[..., None, :]) / one
    diagonal = np.einsum("...ii->...i", square)
    if bias_corrected:
        diagonal = np.zeros_like(diagonal)
    return np.concatenate([np.sqrt(2) * to_vectors(square), diagonal], axis=-1)


def prepare_ramps(
    rdms: np.ndarray, *, levels: int, scale: str, bias_corrected: bool = True
) -> Ramps:
    """Return what the distance correlations of all transforms of a set of RDMs need.

    Thresholds are quantiles of each RDM by itself.

    Parameters
    ----------
    rdms
        Distances without gaps and with spread, shape (..., pair).
    levels
        Number of thresholds T.
    scale
        ``"rank"`` or ``"raw"``.
    bias_corrected
        See `agtdm`.
    """
    x = on_scale(rdms, scale)
    quantiles = np.linspace(0, 1, levels)
    thresholds = np.moveaxis(
        threshold_values(x, quantiles, threshold="quantile", pool="rdm")[..., 0], 0, -1
    )
    low, high = thresholds[..., :-1, None], thresholds[..., 1:, None]
    rows = centred_rows(ramp(x[..., None, :], low, high), bias_corrected=bias_corrected)
    width = np.diff(thresholds, axis=-1)
    first, last = np.array(list(itertools.combinations(range(levels), 2))).T
    inside = (np.arange(levels - 1) >= first[:, None]) & (np.arange(levels - 1) < last[:, None])
    total = thresholds[..., last] - thresholds[..., first]
    # Tied thresholds: all ramps between them are one step, and so is the transform.
    share = np.divide(
        width[..., None, :],
        total[..., :, None],
        out=np.broadcast_to(1.0 / (last - first)[:, None], (*total.shape, levels - 1)).copy(),
        where=total[..., :, None] > 0,
    )
    share = np.where(inside, share, 0.0)
    own = rows @ np.swapaxes(rows, -1, -2)
    squares = np.einsum("...pa,...ab,...pb->...p", share, own, share)
    largest = np.einsum("...aa->...a", own).max(axis=-1)[..., None]
    spread = squares > 1e-12 * largest
    norm = np.sqrt(np.where(spread, squares, 1.0))[..., None]
    return Ramps(rows, np.where(spread[..., None], share / norm, 0.0), bias_corrected)


def reordered_pairs(orders: np.ndarray) -> np.ndarray:
    """Return where each entry of a row (see `centred_rows`) is found after a permutation.

    Parameters
    ----------
    orders
        Permutations of the stimuli, shape (..., stimulus).

    Returns
    -------
    numpy.ndarray
        Positions, shape (..., pair + stimulus).
    """
    n = orders.shape[-1]
    i, j = pair_indices(n)
    place = to_matrices(np.arange(len(i)))
    place[np.arange(n), np.arange(n)] = len(i) + np.arange(n)
    return np.concatenate([place[orders[..., i], orders[..., j]], place[orders, orders]], axis=-1)


def dependence_maps(x: Ramps, y: Ramps, orders: np.ndarray) -> np.ndarray:
    """Return the distance correlations of all pairs of transforms, the stimuli of y permuted.

    Parameters
    ----------
    x, y
        Of a and of b sets of distances over the same stimuli.
    orders
        Shape (sample, stimulus).

    Returns
    -------
    numpy.ndarray
        Shape (a, sample, b, threshold pair of x, threshold pair of y). Bias-corrected distance
        correlations are correlations of U-centred distances, which estimate the square of the
        distance correlation and may be negative. Plain ones are roots of correlations of
        double-centred distances; the negative ones, of distances that are no metric, count as 0.
    """
    return _maps(x, y, reordered_rows(y, orders))


def reordered_rows(y: Ramps, orders: np.ndarray) -> np.ndarray:
    """Return the rows of y for permuted stimuli, shape (sample * b * ramp, pair + stimulus)."""
    moved = y.rows[:, :, reordered_pairs(orders)].transpose(2, 0, 1, 3)
    return moved.reshape(-1, moved.shape[-1])


def _maps(x: Ramps, y: Ramps, moved: np.ndarray) -> np.ndarray:
    """Return `dependence_maps` from the reordered rows of y."""
    n_x, bands = x.rows.shape[:2]
    n_y = len(y.rows)
    products = (x.rows.reshape(n_x * bands, -1) @ moved.T).reshape(n_x, bands, -1)
    maps = (x.weights @ products).reshape(n_x, x.weights.shape[1], -1, n_y, bands)
    maps = maps.transpose(0, 2, 3, 1, 4) @ np.swapaxes(y.weights, -1, -2)
    if y.bias_corrected:
        return maps
    np.maximum(maps, 0.0, out=maps)
    return np.sqrt(maps, out=maps)


def agtdm(
    x: np.ndarray,
    y: np.ndarray,
    *,
    levels: int = LEVELS,
    scale: str = "raw",
    bias_corrected: bool = True,
    permutations: int = 1000,
    seed: int = 0,
) -> Dependence:
    """Return the adaptive geo-topological dependence of two sets of distances, and its p-value.

    Parameters
    ----------
    x, y
        Distances between the same observations, shape (pair,).
    levels
        Number of thresholds, equally spaced quantiles of the distances; 8 in the paper.
    scale
        ``"raw"``: transforms are linear in the distances between l and u, as in the paper;
        ``"rank"``: in their ranks.
    bias_corrected
        Take the bias-corrected distance correlation, which estimates the square of the distance
        correlation and is 0 on average without dependence. Without, the plain one as in the paper.
    permutations
        Orders of the observations; in each the measure is maximised again.
    seed
        Of the permutations.

    Raises
    ------
    ValueError
        For distances of different numbers of observations, with NaN or all equal.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"x has shape {x.shape} and y {y.shape}: pass two vectors of one length")
    for distances in (x, y):
        if np.ptp(distances) == 0:
            raise ValueError("all distances of a set are equal: no dependence can show")
    a, b = (
        prepare_ramps(distances[None], levels=levels, scale=scale, bias_corrected=bias_corrected)
        for distances in (x, y)
    )
    orders = draw_orders(permutations, n_stimuli(len(x)), seed=seed)
    observed = dependence_maps(a, b, np.arange(orders.shape[1])[None])[0, 0, 0]
    pairs = threshold_pairs(levels)
    chosen_x, chosen_y = np.unravel_index(observed.argmax(), observed.shape)
    whole = levels - 2
    value = float(observed.max())
    size = max(1, _BLOCK_ENTRIES // max(observed.size, a.rows.size))
    null = np.concatenate(
        [
            dependence_maps(a, b, orders[start : start + size])[0, :, 0].max(axis=(-1, -2))
            for start in range(0, len(orders), size)
        ]
    )
    return Dependence(
        value=value,
        p=float(_permutation_p(value, null)),
        lower_x=float(pairs[chosen_x, 0]),
        upper_x=float(pairs[chosen_x, 1]),
        lower_y=float(pairs[chosen_y, 0]),
        upper_y=float(pairs[chosen_y, 1]),
        distance_correlation=float(observed[whole, whole]),
        null=null,
    )


def draw_orders(samples: int, n: int, *, seed: int) -> np.ndarray:
    """Draw permutations of n observations, shape (sample, n)."""
    rng = np.random.default_rng(seed)
    return rng.permuted(np.broadcast_to(np.arange(n), (samples, n)), axis=-1)


def _permutation_p(observed: np.ndarray | float, null: np.ndarray) -> np.ndarray:
    """Return the share of permutations (first axis), the data among them, not below the data."""
    return (1 + (null >= observed - _ROUNDING).sum(axis=0)) / (1 + len(null))


@dataclass(frozen=True)
class _Maxima:
    """Of samples: the largest mean over subjects, the mean without thresholds, each subject's."""

    group: np.ndarray
    plain: np.ndarray
    subject: np.ndarray


def _maxima(orders: np.ndarray, regions: Sequence[Ramps], models: Ramps) -> _Maxima:
    """Return maxima over threshold pairs, of the mean over subjects and of each subject.

    Parameters
    ----------
    orders
        Permutations of the models' stimuli, shape (sample, stimulus).
    regions
        The usable RDMs of each region, by subject; a region may have none.
    models
        Of all predictors.

    Returns
    -------
    _Maxima
        ``group`` and ``plain``, shape (sample, predictor, region), NaN where a region has no RDM;
        ``subject`` (sample, predictor, RDM), the RDMs of all regions in turn.
    """
    shape = (len(orders), len(models.rows))
    count = sum(len(region.rows) for region in regions)
    group = np.full((*shape, len(regions)), np.nan)
    plain = np.full_like(group, np.nan)
    subject = np.empty((*shape, count))
    cells = models.weights.shape[1] ** 2
    # Where (l, u) = (0, 1) stands among the threshold pairs.
    whole = models.weights.shape[2] - 1
    largest = max(len(region.rows) for region in regions)
    entries = max(largest * shape[1] * cells, models.rows.size)
    size = max(1, _BLOCK_ENTRIES // entries)
    for start in range(0, len(orders), size):
        part = slice(start, start + size)
        moved = reordered_rows(models, orders[part])
        first = 0
        for r, region in enumerate(regions):
            if not len(region.rows):
                continue
            maps = _maps(region, models, moved)
            last = first + len(region.rows)
            subject[part, :, first:last] = maps.max(axis=(-1, -2)).transpose(1, 2, 0)
            mean = maps.mean(axis=0)
            group[part, :, r] = mean.max(axis=(-1, -2))
            plain[part, :, r] = mean[..., whole, whole]
            first = last
    return _Maxima(group, plain, subject)


def measure_dependence(
    *,
    rdms: Sequence[str | Path],
    model_rdms: Sequence[str | Path],
    out: str | Path,
    code: str = "",
    threads: int = 1,
    seed: int = 0,
    **options: object,
) -> None:
    """Test each region's dependence on each model layer by AGTDM; write the `dependence` store.

    Parameters
    ----------
    rdms
        ``rdms`` stores, one a subject, of one task and measure.
    model_rdms
        ``model_rdms`` stores, one a model.
    out
        The ``dependence`` store.
    code
        The rule's code version.
    threads
        Cores to use.
    seed
        Of the permutations.
    **options
        See `DependenceOptions`.

    Raises
    ------
    InputError
        For stores that do not fit together, or options out of range.
    """
    chosen = DependenceOptions(seed=seed, **options)
    brain = load_rdms(rdms)
    models = align_models(model_rdms, brain.stimuli, groups=brain.groups or None)
    dataset = dependence_dataset(brain, models, chosen, threads=threads)
    store.write(dataset, out, spec="dependence", sources=[*rdms, *model_rdms], code=code)


def dependence_dataset(
    brain: BrainRDMs, models: ModelRDMs, options: DependenceOptions, *, threads: int = 1
) -> xr.Dataset:
    """Return the test of a set of subjects' RDMs against the models', see `measure_dependence`.

    The statistic of a layer and a region is the mean over subjects of the distance correlation at
    a pair of thresholds of the brain's and one of the model's RDM, which are the same for all
    subjects, maximised over these pairs. The stimuli of the model are permuted, alike for all
    subjects, regions and layers, and the statistic is maximised again; the result generalises to
    neither new subjects nor new stimuli. For the correction over layers and regions each statistic
    is taken in units of the spread of its own permutations, since distance correlations vary more
    by chance between RDMs with few dimensions, and compared with the largest in each permutation.

    Parameters
    ----------
    brain
        The subjects' RDMs; those with gaps or without spread are left out, and said.
    models
        Over the same stimuli.
    options
        See `DependenceOptions`.
    threads
        Cores to use.

    Raises
    ------
    InputError
        Where no subject has a usable RDM, or no model.
    """
    usable, reasons = usable_or_refuse(brain)
    values = models.dissimilarity
    fit, without = usable_models(values, models.predictors)
    flags = [
        f"region {region}: {reason}: tested without that subject"
        for (_, region), reason in reasons.items()
    ] + without
    if len(brain.stimuli) < FEWEST_STIMULI:
        flags.append(
            f"{len(brain.stimuli)} stimuli have few orders: p-values need at least {FEWEST_STIMULI}"
        )
    for line in flags:
        logger.warning("%s", line)
    found = _test_all(brain.dissimilarity, usable, values[fit], options, threads)
    pairs = threshold_pairs(options.levels)
    arrays = {}
    for name, (dims, array) in found.items():
        full = np.full((len(fit), *array.shape[1:]), np.nan)
        full[fit] = array
        arrays[name] = (dims, full)
    for name, key, end in (
        ("lower_brain", "chosen_brain", 0),
        ("upper_brain", "chosen_brain", 1),
        ("lower_model", "chosen_model", 0),
        ("upper_model", "chosen_model", 1),
    ):
        dims, index = arrays[key]
        known = np.isfinite(index)
        levels = pairs[np.where(known, index, 0).astype(int), end]
        arrays[name] = (dims, np.where(known, levels, np.nan))
    del arrays["chosen_brain"], arrays["chosen_model"]
    return xr.Dataset(
        arrays,
        coords={
            "region": np.array(brain.regions, dtype=object),
            "subject": np.array(brain.subjects, dtype=object),
            "predictor": np.array(models.predictors, dtype=object),
            "model": ("predictor", np.array(models.models, dtype=object)),
            "layer": ("predictor", np.array(models.layers, dtype=object)),
        },
        attrs={
            "measure": brain.measure,
            "task": brain.task,
            "scale": options.scale,
            "threshold": "quantile",
            "levels": options.levels,
            "bias_corrected": options.bias_corrected,
            "permutations": options.permutations,
            "seed": options.seed,
            "n_stimuli": len(brain.stimuli),
            "flags": flags,
            "left_out": {f"{region} of sub-{s}": why for (s, region), why in reasons.items()},
            "methods": _methods(options),
        },
    )


def _test_all(
    brain: np.ndarray,
    usable: np.ndarray,
    models: np.ndarray,
    options: DependenceOptions,
    threads: int,
) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    """Return the store's arrays by name, with dims; what was chosen as indices of pairs."""
    n_subjects, n_regions, n_pairs = brain.shape
    n_models = len(models)
    shape = (n_models, n_regions)
    dims = ("predictor", "region")
    if not n_models:
        empty = np.zeros(shape)
        names = ("mean", "p", "p_corrected", "null_mean", "distance_correlation")
        both = dict.fromkeys((*names, "p_distance_correlation"), (dims, empty))
        each = {
            name: ((*dims, "subject"), np.zeros((*shape, n_subjects)))
            for name in ("agtdm", "agtdm_subject", "p_subject")
        }
        return {**both, **each, "chosen_brain": (dims, empty), "chosen_model": (dims, empty)}
    kind = {
        "levels": options.levels,
        "scale": options.scale,
        "bias_corrected": options.bias_corrected,
    }
    regions = [prepare_ramps(brain[usable[:, r], r], **kind) for r in range(n_regions)]
    layers = prepare_ramps(models, **kind)
    n = n_stimuli(n_pairs)
    orders = draw_orders(options.permutations, n, seed=options.seed)
    same = np.arange(n)[None]
    data = _maxima(same, regions, layers)
    blocks = [
        orders[start : start + _PERMUTATIONS_A_BLOCK]
        for start in range(0, len(orders), _PERMUTATIONS_A_BLOCK)
    ]
    group, plain = [], []
    as_large = np.ones(data.subject.shape[1:])  # the data themselves
    for block in parallel.map_blocks(
        _maxima, blocks, regions, layers, threads=threads, label="permutations"
    ):
        group.append(block.group)
        plain.append(block.plain)
        as_large += (block.subject >= data.subject - _ROUNDING).sum(axis=0)
    null = np.concatenate(group)

    # Chosen once more for the data: where, and what each subject has there.
    at_maximum = np.full((*shape, n_subjects), np.nan)
    chosen = np.full((2, *shape), np.nan)
    own, own_p = np.full_like(at_maximum, np.nan), np.full_like(at_maximum, np.nan)
    p_own = as_large / (1 + len(orders))
    first = 0
    for r, region in enumerate(regions):
        who = np.flatnonzero(usable[:, r])
        if not len(who):
            continue
        last = first + len(who)
        own[:, r, who] = data.subject[0, :, first:last]
        own_p[:, r, who] = p_own[:, first:last]
        first = last
        for k in range(n_models):
            maps = dependence_maps(region, layers[k : k + 1], same)[:, 0, 0]
            mean = maps.mean(axis=0)
            place = np.unravel_index(mean.argmax(), mean.shape)
            chosen[:, k, r] = place
            at_maximum[k, r, who] = maps[:, place[0], place[1]]
    some = usable.any(axis=0)
    p = np.where(some, _permutation_p(data.group[0], null), np.nan)
    p_plain = np.where(some, _permutation_p(data.plain[0], np.concatenate(plain)), np.nan)
    return {
        "agtdm": ((*dims, "subject"), at_maximum),
        "agtdm_subject": ((*dims, "subject"), own),
        "p_subject": ((*dims, "subject"), own_p),
        "mean": (dims, data.group[0]),
        "p": (dims, p),
        "p_corrected": (dims, np.where(some, _corrected(data.group[0], null), np.nan)),
        "null_mean": (dims, null.mean(axis=0)),
        "distance_correlation": (dims, data.plain[0]),
        "p_distance_correlation": (dims, p_plain),
        "chosen_brain": (dims, chosen[0]),
        "chosen_model": (dims, chosen[1]),
    }


def _corrected(observed: np.ndarray, null: np.ndarray) -> np.ndarray:
    """Return p-values corrected over all tests by the largest standardised statistic.

    Mean and spread are those of the permutations and the data together, which keeps the two
    exchangeable.
    """
    every = np.concatenate([observed[None], null])
    tested = np.isfinite(observed)
    every = every[:, tested]
    spread = every.std(axis=0)
    every = (every - every.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    corrected = np.full(observed.shape, np.nan)
    corrected[tested] = _permutation_p(every[0], every[1:].max(axis=1)[:, None])
    return corrected


def _methods(options: DependenceOptions) -> str:
    scale = "ranks of the dissimilarities" if options.scale == "rank" else "dissimilarities"
    n_pairs = len(threshold_pairs(options.levels))
    kind = "bias-corrected " if options.bias_corrected else ""
    return (
        "Dependence of regions on model layers was measured by the adaptive geo-topological "
        "dependence measure (Lin & Kriegeskorte, arXiv 1810.02923): the largest, over "
        f"{n_pairs} x {n_pairs} pairs of thresholds on the {scale} of the brain's and the model's "
        f"RDMs, of the mean over subjects of the {kind}distance correlation of the transformed "
        "RDMs. "
        f"p-values come from {options.permutations} permutations of the model's stimuli, in each "
        "of which the measure was maximised again, corrected over layers and regions by the "
        "largest standardised measure in each permutation. They hold for these subjects and "
        "stimuli."
    )
