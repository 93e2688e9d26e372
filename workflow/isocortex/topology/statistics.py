"""Summary statistics of representational dissimilarity matrices between geometry and topology.

Every function takes vectorised RDMs, an array whose last axis runs over the P = N(N - 1) / 2 pairs
of N stimuli (the upper triangle, row by row), with any leading axes, and returns a new array.

Source of the definitions: Lin & Kriegeskorte, "The Topology and Geometry of Neural
Representations", PNAS 2024 (arXiv 2309.11028). Three different estimators go by the name RGTM
there and in the code around it, so that ``scale``, ``threshold`` and ``pool`` are always said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

SCALES = ("rank", "raw")
THRESHOLDS = ("quantile", "absolute")
POOLS = ("rdm", "all")


@dataclass(frozen=True)
class Estimator:
    """Which of the estimators that go by the name RGTM is meant.

    Parameters
    ----------
    scale
        ``"rank"``: x = minmax(rank(d)), as in the paper's code; ``"raw"``: x = d, as in
        rsatoolbox.
    threshold
        ``"quantile"``: l and u are quantiles of x; ``"absolute"``: values of x.
    pool
        Where quantiles are taken: ``"rdm"``: in each RDM (the paper's code); ``"all"``: in all
        RDMs of the array together (rsatoolbox), which makes every RDM's result depend on the
        others'. Without effect on absolute thresholds.
    """

    scale: str = "rank"
    threshold: str = "quantile"
    pool: str = "rdm"

    def __post_init__(self) -> None:
        for name, value, known in (
            ("scale", self.scale, SCALES),
            ("threshold", self.threshold, THRESHOLDS),
            ("pool", self.pool, POOLS),
        ):
            if value not in known:
                raise ValueError(f"{name} is {value!r}: pass one of {', '.join(known)}")


def _checked(rdms: np.ndarray) -> np.ndarray:
    rdms = np.asarray(rdms, dtype=np.float64)
    if not np.isfinite(rdms).all():
        raise ValueError("an RDM holds NaN or infinite dissimilarities: leave it out first")
    return rdms


def _checked_spread(rdms: np.ndarray) -> np.ndarray:
    rdms = _checked(rdms)
    if (np.ptp(rdms, axis=-1) == 0).any():
        raise ValueError("all dissimilarities of an RDM are equal: leave it out first")
    return rdms


def unit_rdm(rdms: np.ndarray) -> np.ndarray:
    """Return RDMs scaled to unit Euclidean norm, which takes a subject's gain out.

    Parameters
    ----------
    rdms
        Dissimilarities, shape (..., pair).

    Returns
    -------
    numpy.ndarray
        Shape (..., pair), float64.

    Raises
    ------
    ValueError
        For RDMs with NaN, or of zeros only.
    """
    rdms = _checked(rdms)
    norm = np.linalg.norm(rdms, axis=-1, keepdims=True)
    if (norm == 0).any():
        raise ValueError("all dissimilarities of an RDM are zero: leave it out first")
    return rdms / norm


def minmax(rdms: np.ndarray) -> np.ndarray:
    """Return each RDM shifted and scaled to the range 0 to 1.

    Parameters
    ----------
    rdms
        Dissimilarities, shape (..., pair).

    Returns
    -------
    numpy.ndarray
        Shape (..., pair), float64.

    Raises
    ------
    ValueError
        For RDMs with NaN or without spread.
    """
    rdms = _checked_spread(rdms)
    low = rdms.min(axis=-1, keepdims=True)
    return (rdms - low) / (rdms.max(axis=-1, keepdims=True) - low)


def rank_rdm(rdms: np.ndarray) -> np.ndarray:
    """Return each RDM's ranks (ties get their mean rank), scaled to the range 0 to 1.

    Parameters
    ----------
    rdms
        Dissimilarities, shape (..., pair).

    Returns
    -------
    numpy.ndarray
        Shape (..., pair), float64. Equal to RGTM(0, 1) on the rank scale.

    Raises
    ------
    ValueError
        For RDMs with NaN or without spread.
    """
    return minmax(rankdata(_checked_spread(rdms), axis=-1))


def on_scale(rdms: np.ndarray, scale: str) -> np.ndarray:
    """Return x, the dissimilarities on the scale where thresholds apply (see `Estimator`)."""
    return rank_rdm(rdms) if scale == "rank" else _checked(rdms)


def threshold_values(
    x: np.ndarray, levels: Sequence[float], *, threshold: str, pool: str
) -> np.ndarray:
    """Return the values of x that the threshold levels l or u stand for.

    Parameters
    ----------
    x
        Dissimilarities on their scale, shape (..., pair).
    levels
        Quantiles in 0 to 1, or values of x where ``threshold`` is ``"absolute"``.
    threshold, pool
        See `Estimator`.

    Returns
    -------
    numpy.ndarray
        Shape (level, ..., 1): ready to be compared with x.
    """
    levels = np.asarray(levels, dtype=np.float64)
    shape = (len(levels), *x.shape[:-1], 1)
    if threshold == "absolute":
        return np.broadcast_to(levels.reshape(-1, *(1,) * x.ndim), shape)
    if pool == "all":
        return np.broadcast_to(np.quantile(x, levels).reshape(-1, *(1,) * x.ndim), shape)
    return np.quantile(x, levels, axis=-1)[..., None]


def ramp(x: np.ndarray, low: np.ndarray | float, high: np.ndarray | float) -> np.ndarray:
    """Return 0 below ``low``, (x - low) / (high - low) between, 1 above ``high``.

    Where both thresholds are one value this is the limit, 0 up to it and 1 above it, so that
    nothing is divided by zero (equal levels, or many tied dissimilarities between two levels).

    Parameters
    ----------
    x
        Dissimilarities on their scale, shape (..., pair).
    low, high
        Threshold values that broadcast to x.

    Returns
    -------
    numpy.ndarray
        Same shape as x, in 0 to 1.
    """
    width = np.asarray(high - low, dtype=np.float64)
    if (width < 0).any():
        raise ValueError("the lower threshold is above the upper one: swap them")
    sharp = width == 0
    between = np.clip((x - low) / np.where(sharp, 1.0, width), 0.0, 1.0)
    return np.where(sharp, (x > low).astype(np.float64), between)


def rgtm(
    rdms: np.ndarray, lower: float, upper: float, *, scale: str, threshold: str, pool: str
) -> np.ndarray:
    """Return representational geo-topological matrices.

    Small distances, which noise makes unreliable, become 0 and large ones, which matter little
    for topology, become 1; what is between keeps its geometry.

    Parameters
    ----------
    rdms
        Dissimilarities, shape (..., pair).
    lower, upper
        l and u; equal values give the `adjacency`.
    scale, threshold, pool
        The estimator, see `Estimator`. No defaults: they are different statistics.

    Returns
    -------
    numpy.ndarray
        Shape (..., pair), in 0 to 1.

    Raises
    ------
    ValueError
        For l > u, quantiles outside 0 to 1, RDMs with NaN or (on the rank scale) without spread.
    """
    estimator = Estimator(scale, threshold, pool)
    if lower > upper:
        raise ValueError(f"lower {lower} is above upper {upper}: swap them")
    x = on_scale(rdms, estimator.scale)
    low, high = threshold_values(x, (lower, upper), threshold=threshold, pool=pool)
    return ramp(x, low, high)


def adjacency(
    rdms: np.ndarray, level: float, *, scale: str, threshold: str, pool: str
) -> np.ndarray:
    """Return the limit of the RGTM where u goes to l: pure topology, a binary neighbour graph.

    Parameters
    ----------
    rdms
        Dissimilarities, shape (..., pair).
    level
        l = u.
    scale, threshold, pool
        The estimator, see `Estimator`.

    Returns
    -------
    numpy.ndarray
        Shape (..., pair): 0 for neighbours (x up to the threshold), 1 for all other pairs.
    """
    return rgtm(rdms, level, level, scale=scale, threshold=threshold, pool=pool)


def sigmoid_gt(rdms: np.ndarray, *, slope: float = 10.0, centre: float = 0.5) -> np.ndarray:
    """Return the smooth geo-topological transform 1 / (1 + exp(-a (x - b))).

    Parameters
    ----------
    rdms
        Dissimilarities, shape (..., pair); taken to the range 0 to 1 per RDM first.
    slope, centre
        a and b.

    Returns
    -------
    numpy.ndarray
        Shape (..., pair), in 0 to 1.
    """
    return 1.0 / (1.0 + np.exp(-slope * (minmax(rdms) - centre)))


def threshold_grid(step: float) -> list[tuple[float, float]]:
    """Return all pairs l < u on a grid from 0 to 1; a step of .05 gives the paper's 210 pairs.

    Raises
    ------
    ValueError
        Where the step does not divide 1.
    """
    count = round(1 / step)
    if count < 1 or abs(count * step - 1) > 1e-9:
        raise ValueError(f"the grid step {step} does not divide 1: use for example 0.05 or 0.1")
    levels = [round(index / count, 10) for index in range(count + 1)]
    return [(low, high) for a, low in enumerate(levels) for high in levels[a + 1 :]]


def family(lower: float, upper: float) -> str:
    """Return which family a threshold pair belongs to, as Lin & Kriegeskorte group them.

    Tested in this order: ``"local"`` for a mean of l and u up to .2, ``"global"`` from .8,
    ``"geometry"`` where u - l is at least .8, ``"topology"`` where both are within .4 to .6, else
    ``"intermediate"``.
    """
    centre, width = round((lower + upper) / 2, 9), round(upper - lower, 9)
    if centre <= 0.2:
        return "local"
    if centre >= 0.8:
        return "global"
    if width >= 0.8:
        return "geometry"
    if lower >= 0.4 and upper <= 0.6:
        return "topology"
    return "intermediate"
