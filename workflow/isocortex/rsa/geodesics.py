"""Representational geodesic distance matrices: shortest paths on the graph of stimuli."""

from __future__ import annotations

from math import ceil

import numpy as np

from isocortex.rsa.rdms import n_stimuli, to_matrices, to_vectors
from isocortex.rsa.transforms import Estimator, on_scale, ramp, threshold_values

GRAPHS = ("twostep", "p_shortest", "p_nearest", "k_nearest")
DISCONNECTED = ("one_step", "exclude")
CACHED_ENTRIES = 1 << 15
"""Edge weights that shortest paths are taken through at a time."""


def shortest_paths(weights: np.ndarray) -> np.ndarray:
    """Return all shortest path lengths (Floyd-Warshall), for many graphs at once.

    An edge of weight zero is an edge: only infinity says that there is none. Sparse graph
    libraries, and the peers built on them, drop such edges, which puts the closest stimuli far
    apart. `scipy.sparse.csgraph` gives the same where zeros are kept explicitly; run over a batch
    this takes half its time at 62 stimuli.

    Parameters
    ----------
    weights
        Symmetric edge weights of at least 0, shape (..., N, N); infinity where there is no edge.

    Returns
    -------
    numpy.ndarray
        Path lengths, shape (..., N, N); infinity between parts that no path joins.

    Raises
    ------
    ValueError
        For negative weights or NaN.
    """
    weights = np.asarray(weights, dtype=np.float64)
    if not (weights >= 0).all():
        raise ValueError("edge weights must be 0 or more, and not NaN")
    count = weights.shape[-1]
    lengths = weights.reshape(-1, count, count).copy()
    lengths[:, np.arange(count), np.arange(count)] = 0.0
    # As many graphs at a time as stay in cache; each step is one array operation.
    block = max(1, CACHED_ENTRIES // (count * count))
    for start in range(0, len(lengths), block):
        graphs = lengths[start : start + block]
        for node in range(count):
            np.minimum(graphs, graphs[:, :, node, None] + graphs[:, node, None], out=graphs)
    return lengths.reshape(weights.shape)


def _nearest(x: np.ndarray, neighbours: int) -> np.ndarray:
    """Return which pairs join a stimulus to one of its nearest, from either side.

    Pairs tied with the last neighbour are kept too, so that the order of the stimuli is without
    effect.
    """
    squares = to_matrices(x, diagonal=np.inf)
    reach = np.partition(squares, neighbours - 1, axis=-1)[..., neighbours - 1, None]
    near = squares <= reach
    return to_vectors(near | np.swapaxes(near, -1, -2))


def rgdm(
    rdms: np.ndarray,
    *,
    graph: str = "twostep",
    lower: float = 0.0,
    upper: float = 0.8,
    fraction: float = 0.05,
    neighbours: int = 5,
    scale: str,
    threshold: str,
    pool: str,
    disconnected: str = "one_step",
) -> np.ndarray:
    """Return representational geodesic distance matrices.

    Parameters
    ----------
    rdms
        Dissimilarities, shape (..., pair).
    graph
        ``"twostep"``: edge weights are the RGTM(l, u), pairs at 1 are no edge. ``"p_shortest"``:
        edges not longer than the RDM's ``fraction`` quantile. ``"p_nearest"`` and
        ``"k_nearest"``: from each stimulus to its nearest ``fraction`` of the others (rounded
        up) or its nearest ``neighbours``; an edge from either side is an edge for both. Weights
        of the last three are the dissimilarities on their scale, those below 0 (cross-validated
        ones) as 0, since no step makes a path shorter.
    lower, upper
        l and u of ``"twostep"``. Pairs up to l are at distance 0, and so is every chain of them:
        with N stimuli and quantiles, from about l = log(N) / N on hardly any pair is not at 0.
    fraction
        Of ``"p_shortest"`` and ``"p_nearest"``, above 0 and at most 1.
    neighbours
        Of ``"k_nearest"``, from 1 to N - 1.
    scale, threshold, pool
        The estimator, see `Estimator`; thresholds are those of ``"twostep"``.
    disconnected
        What pairs get that no path joins. ``"one_step"``: the largest finite path length of their
        RDM, plus one step: 1 for ``"twostep"`` (the RGTM's value of a missing edge), else the
        longest edge of their graph. ``"exclude"``: NaN, for the caller to leave out.

    Returns
    -------
    numpy.ndarray
        Path lengths, shape (..., pair).

    Raises
    ------
    ValueError
        For options out of range, RDMs with NaN or (on the rank scale) without spread.
    """
    estimator = Estimator(scale, threshold, pool)
    if graph not in GRAPHS:
        raise ValueError(f"graph is {graph!r}: pass one of {', '.join(GRAPHS)}")
    if disconnected not in DISCONNECTED:
        raise ValueError(f"disconnected is {disconnected!r}: pass one of {', '.join(DISCONNECTED)}")
    x = on_scale(rdms, estimator.scale)
    count = n_stimuli(x.shape[-1])
    if graph == "twostep":
        low, high = threshold_values(x, (lower, upper), threshold=threshold, pool=pool)
        weights = ramp(x, low, high)
        edge = weights < 1
    else:
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction is {fraction}: pass a value above 0 and at most 1")
        if graph == "p_shortest":
            edge = x <= threshold_values(x, (fraction,), threshold="quantile", pool="rdm")[0]
        else:
            near = neighbours if graph == "k_nearest" else ceil(round(fraction * (count - 1), 9))
            if not 1 <= near <= count - 1:
                raise ValueError(f"neighbours is {near}: pass 1 to {count - 1} ({count} stimuli)")
            edge = _nearest(x, near)
        weights = np.maximum(x, 0.0)
    lengths = to_vectors(shortest_paths(to_matrices(np.where(edge, weights, np.inf))))
    apart = np.isinf(lengths)
    if disconnected == "exclude":
        return np.where(apart, np.nan, lengths)
    longest = np.where(apart, 0.0, lengths).max(axis=-1, keepdims=True)
    step = np.where(edge, weights, 0.0).max(axis=-1, keepdims=True)
    if graph == "twostep":
        step = np.ones_like(step)
    # A graph whose edges are all of weight 0 has no step of its own; 1 keeps its parts apart.
    return np.where(apart, longest + np.where(step > 0, step, 1.0), lengths)
