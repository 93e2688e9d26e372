"""Summary statistics of representational dissimilarity matrices between geometry and topology.

Every function takes vectorised RDMs, an array whose last axis runs over the P = N(N - 1) / 2 pairs
of N stimuli (the upper triangle, row by row), with any leading axes, and returns a new array.

Source of the definitions: Lin & Kriegeskorte, "The Topology and Geometry of Neural
Representations", PNAS 2024 (arXiv 2309.11028). Three different estimators go by the name RGTM
there and in the code around it, so that ``scale``, ``threshold`` and ``pool`` are always said.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from isocortex.errors import InputError

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
    return minmax(ranks(_checked_spread(rdms)))


def ranks(values: np.ndarray) -> np.ndarray:
    """Return ranks from 1 along the last axis; ties get their mean rank.

    What `scipy.stats.rankdata` returns, for many short rows in a quarter of its time: rows without
    ties, which are all but a few, need the sort alone.

    Parameters
    ----------
    values
        Finite values, shape (..., pair).

    Returns
    -------
    numpy.ndarray
        Same shape, float64.
    """
    values = np.asarray(values, dtype=np.float64)
    rows = values.reshape(-1, values.shape[-1])
    order = np.argsort(rows, axis=-1)
    found = np.empty(rows.shape)
    np.put_along_axis(found, order, np.arange(1.0, rows.shape[-1] + 1)[None], axis=-1)
    ordered = np.take_along_axis(rows, order, axis=-1)
    tied = (ordered[:, 1:] == ordered[:, :-1]).any(axis=-1)
    if tied.any():
        found[tied] = rankdata(rows[tied], axis=-1)
    return found.reshape(values.shape)


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
        return np.broadcast_to(_quantiles(x.ravel(), levels).reshape(-1, *(1,) * x.ndim), shape)
    return _quantiles(x, levels)[..., None]


def _quantiles(x: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Return quantiles along the last axis, shape (level, ...), linear between values.

    As `numpy.quantile`, whose partition is slower than one sort of short rows, but for levels that
    hit a value: rounding does not put those a hair below it, where `adjacency` would lose a pair.
    """
    if ((levels < 0) | (levels > 1)).any():
        raise ValueError("quantiles must be in the range 0 to 1")
    ordered = np.sort(x, axis=-1)
    position = levels * (x.shape[-1] - 1)
    nearest = np.rint(position)
    position = np.where(np.abs(position - nearest) < 1e-9, nearest, position)
    below = np.floor(position).astype(np.intp)
    above = np.minimum(below + 1, x.shape[-1] - 1)
    low, high = ordered[..., below], ordered[..., above]
    return np.moveaxis(low + (high - low) * (position - below), -1, 0)


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


def sigmoid_gt(
    rdms: np.ndarray, *, scale: str, slope: float = 10.0, centre: float = 0.5
) -> np.ndarray:
    """Return the smooth geo-topological transform 1 / (1 + exp(-a (x - b))).

    Parameters
    ----------
    rdms
        Dissimilarities, shape (..., pair).
    scale
        What x is, in 0 to 1 per RDM: ``"rank"``: minmax(rank(d)); ``"raw"``: minmax(d).
    slope, centre
        a and b.

    Returns
    -------
    numpy.ndarray
        Shape (..., pair), in 0 to 1.
    """
    scale = Estimator(scale=scale).scale
    x = rank_rdm(rdms) if scale == "rank" else minmax(rdms)
    return 1.0 / (1.0 + np.exp(-slope * (x - centre)))


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


TRANSFORMS = (
    "rank",
    "unit",
    "rgtm(l,u)",
    "adjacency(t)",
    "sigmoid",
    "sigmoid(a,b)",
    "rgdm(l,u)",
    "rgdm(p_shortest,p)",
    "rgdm(p_nearest,p)",
    "rgdm(k_nearest,k)",
)
"""Forms of the texts that `parse_transform` reads."""

_NUMBERS = {"rank": (0,), "unit": (0,), "rgtm": (2,), "adjacency": (1,), "sigmoid": (0, 2)}
_GRAPH_VALUES = {"twostep": 2, "p_shortest": 1, "p_nearest": 1, "k_nearest": 1}
_SIGMOID = (10.0, 0.5)


@dataclass(frozen=True)
class Transform:
    """A summary statistic of RDMs by its text, see `parse_transform`.

    Estimator: rank scale, quantile thresholds, each RDM by itself. Pairs that no path joins in an
    RGDM get the largest finite path length plus one step.

    Parameters
    ----------
    kind
        ``rank``, ``unit``, ``rgtm``, ``adjacency``, ``sigmoid`` or ``rgdm``.
    values
        Its numbers, in the order of the text.
    graph
        Of an RGDM, else empty.
    """

    kind: str
    values: tuple[float, ...] = ()
    graph: str = ""

    @property
    def name(self) -> str:
        """The text in its one form: ``rgtm(0.20,0.80)``, ``rgdm(k_nearest,5)``, ``sigmoid``."""
        if not self.values or (self.kind == "sigmoid" and self.values == _SIGMOID):
            return self.kind
        if self.kind == "sigmoid" or self.graph == "k_nearest":
            texts = [f"{value:g}" for value in self.values]
        else:
            texts = [level_text(value) for value in self.values]
        graph = [self.graph] if self.graph not in ("", "twostep") else []
        return f"{self.kind}({','.join(graph + texts)})"

    def check_stimuli(self, n_stimuli: int, *, key: str) -> None:
        """Raise `InputError` where there are too few stimuli for the statistic.

        Parameters
        ----------
        n_stimuli
            Of the RDMs.
        key
            Of the config that the statistic is from, for the error.
        """
        if self.graph == "k_nearest" and self.values[0] > n_stimuli - 1:
            raise InputError(
                f"{key} has {self.name}, and the RDMs have {n_stimuli} stimuli: use at most "
                f"{n_stimuli - 1} neighbours"
            )

    def apply(self, rdms: np.ndarray) -> np.ndarray:
        """Return the statistic of each RDM.

        Parameters
        ----------
        rdms
            Dissimilarities, shape (..., pair). NaN pairs stay NaN, and ranks and quantiles are
            those of the others; an RGDM needs all pairs.

        Returns
        -------
        numpy.ndarray
            Shape (..., pair), float64. All NaN for an RDM that has no such statistic: without
            spread (of zeros only, for ``unit``) or, for an RGDM, with gaps.

        Raises
        ------
        ValueError
            For more neighbours than there are other stimuli.
        """
        rdms = np.asarray(rdms, dtype=np.float64)
        rows = rdms.reshape(-1, rdms.shape[-1])
        known = np.isfinite(rows)
        whole = known.all(axis=1)
        able = whole.copy()
        able[whole] = self._able(rows[whole])
        if able.all():
            return self._of_whole(rows).reshape(rdms.shape)
        out = np.full(rows.shape, np.nan)
        if able.any():
            out[able] = self._of_whole(rows[able])
        if not self.graph:
            for row in np.flatnonzero(~whole & known.any(axis=1)):
                values = rows[row, known[row]][None]
                if self._able(values).all():
                    out[row, known[row]] = self._of_whole(values)[0]
        return out.reshape(rdms.shape)

    def _able(self, rows: np.ndarray) -> np.ndarray:
        if self.kind == "unit":
            return (rows != 0).any(axis=-1)
        return np.ptp(rows, axis=-1) > 0

    def _of_whole(self, rows: np.ndarray) -> np.ndarray:
        if self.kind == "rank":
            return rank_rdm(rows)
        if self.kind == "unit":
            return unit_rdm(rows)
        if self.kind == "sigmoid":
            return sigmoid_gt(rows, scale="rank", slope=self.values[0], centre=self.values[1])
        estimator = {"scale": "rank", "threshold": "quantile", "pool": "rdm"}
        if self.kind == "rgtm":
            return rgtm(rows, *self.values, **estimator)
        if self.kind == "adjacency":
            return adjacency(rows, *self.values, **estimator)
        # Geodesics are built on the statistics above: the import would be a circle at the top.
        from isocortex.rsa.geodesics import rgdm

        lower, upper = self.values if self.graph == "twostep" else (0.0, 1.0)
        last = self.values[-1]
        return rgdm(
            rows,
            graph=self.graph,
            lower=lower,
            upper=upper,
            fraction=last if self.graph in ("p_shortest", "p_nearest") else 0.05,
            neighbours=int(last) if self.graph == "k_nearest" else 5,
            **estimator,
        )


def level_text(value: float) -> str:
    """Return a threshold as text, with two decimals or, where those do not do, all it has."""
    return f"{value:.2f}" if abs(value - round(value, 2)) < 1e-9 else f"{value:g}"


def parse_transform(text: str) -> Transform:
    """Return the summary statistic that a text names, for `Transform.apply`.

    Parameters
    ----------
    text
        ``rank`` or ``unit`` (RDM of ranks, of unit norm), ``rgtm(0.2,0.8)``, ``adjacency(0.5)``,
        ``sigmoid`` (a = 10, b = .5) or ``sigmoid(a,b)``, ``rgdm(0,0.8)`` (two-step graph),
        ``rgdm(p_shortest,0.05)``, ``rgdm(p_nearest,0.05)``, ``rgdm(k_nearest,5)``.

    Raises
    ------
    InputError
        For a text of another form, or values out of range.
    """
    match = re.fullmatch(r"([a-z]+)(?:\((.*)\))?", re.sub(r"\s", "", text))
    kind, inside = match.groups() if match else ("", None)
    parts = inside.split(",") if inside else []
    graph = ""
    if kind == "rgdm":
        graph = parts.pop(0) if parts and parts[0] in _GRAPH_VALUES else "twostep"
    counts = (_GRAPH_VALUES[graph],) if graph else _NUMBERS.get(kind, ())
    try:
        values = tuple(float(part) for part in parts)
    except ValueError:
        counts = ()
    if len(parts) not in counts or not np.isfinite(values).all():
        raise InputError(f"{text!r} is no transform of RDMs: use {', '.join(TRANSFORMS)}")
    if kind == "sigmoid":
        values = values or _SIGMOID
        if values[0] <= 0:
            raise InputError(f"the slope of {text!r} is {values[0]:g}: use one above 0")
    elif graph == "k_nearest":
        if values[0] < 1 or values[0] != int(values[0]):
            raise InputError(f"{text!r} has {values[0]:g} neighbours: use a whole number from 1")
    elif any(not 0 <= value <= 1 for value in values) or list(values) != sorted(values):
        raise InputError(f"{text!r} needs quantiles in 0 to 1, the lower one first")
    elif graph in ("p_shortest", "p_nearest") and values[0] == 0:
        raise InputError(f"{text!r} keeps no edge: use a share above 0")
    return Transform(kind, values, graph)
