"""Models with parameters: the layers of a model weighted, selected or interpolated.

Every fit looks for the non-negative weights of a model's layers whose sum agrees best, on average,
with a set of RDMs. Agreement is linear in the RDMs once those have unit norm in the metric of the
comparison, so that a fit needs the layers' inner products and their mean agreement only, and many
fits are solved together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from isocortex.rsa.compare import _whitened, correlate
from isocortex.rsa.rdms import ModelRDMs

KINDS = ("fixed", "weighted", "selected", "interpolated")
"""``fixed``: each layer as it is; ``weighted``: the best non-negative sum of a model's layers;
``selected``: the best layer; ``interpolated``: between two neighbouring layers."""
LEAST_SQUARES = ("pearson", "cosine", "corr_cov", "cosine_cov")
"""Comparisons that weights are fitted to as they are; for all others, which have no least squares,
weights are fitted to ``pearson``. Layers are selected by the comparison itself, whichever it is."""
_TOLERANCE = 1e-10


@dataclass(frozen=True)
class Predictors:
    """What is compared with the brain: layers as they are, then models that are fitted.

    Attributes
    ----------
    labels, models, layers, kinds
        One text each per predictor. The layer of a fitted predictor is its kind.
    rows
        Of each predictor the rows of the model RDMs that it is made of.
    """

    labels: tuple[str, ...]
    models: tuple[str, ...]
    layers: tuple[str, ...]
    kinds: tuple[str, ...]
    rows: tuple[tuple[int, ...], ...]

    @property
    def fitted(self) -> list[int]:
        """Positions of the predictors that are fitted; they come last."""
        return [k for k, kind in enumerate(self.kinds) if kind != "fixed"]


def list_predictors(models: ModelRDMs, kinds: Sequence[str] = ("fixed",)) -> Predictors:
    """Return the predictors that models make.

    Parameters
    ----------
    models
        RDMs of their layers.
    kinds
        Some of `KINDS`. A model of one layer is fixed, whatever the kinds are.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(f"kind is {kind!r}: choose one of {', '.join(KINDS)}")
    names = list(dict.fromkeys(models.models))
    rows = {name: [k for k, m in enumerate(models.models) if m == name] for name in names}
    found = [
        (models.predictors[k], name, models.layers[k], "fixed", (k,))
        for name in names
        for k in rows[name]
        if "fixed" in kinds or len(rows[name]) == 1
    ]
    found += [
        (f"{name}/{kind}", name, kind, kind, tuple(rows[name]))
        for kind in KINDS[1:]
        if kind in kinds
        for name in names
        if len(rows[name]) > 1
    ]
    labels, owners, layers, of_kind, of_rows = zip(*found)
    return Predictors(labels, owners, layers, of_kind, of_rows)


def fit_layers(
    models: np.ndarray, brain: np.ndarray, *, kind: str, comparison: str = "pearson"
) -> np.ndarray:
    """Return the weights of a model's layers that agree best with a set of RDMs on average.

    Parameters
    ----------
    models
        RDMs of the layers, shape (n_layers, n_pairs).
    brain
        RDMs, shape (n_rdms, n_pairs). Pairs that are NaN in any RDM are left out of all.
    kind
        ``weighted``, ``selected`` or ``interpolated``.
    comparison
        One of `isocortex.rsa.compare.COMPARISONS`; see `LEAST_SQUARES`.

    Returns
    -------
    numpy.ndarray
        Shape (n_layers,), not negative: of norm 1 if weighted (as rsatoolbox 0.3.2
        ``fit_regress_nn`` and ``fit_optimize_positive``), of sum 1 otherwise.
    """
    valid = np.isfinite(models).all(axis=0) & np.isfinite(brain).all(axis=0)
    if kind == "selected":
        agreement = correlate(models, brain, comparison=comparison)
        gram = np.diag(can_select(models[:, valid], agreement).astype(np.float64))
        agreement = np.nan_to_num(agreement)
    else:
        metric = fit_metric(comparison)
        layers = metric_vectors(models, comparison=metric, valid=valid)
        gram = layers @ layers.T
        agreement = layers @ unit_rows(metric_vectors(brain, comparison=metric, valid=valid)).T
    return solve(gram[None], agreement.mean(axis=1)[None], kind=kind)[0]


def can_select(models: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return which layers can be selected: those with spread and a score.

    Parameters
    ----------
    models
        Shape (n_layers, n_pairs), finite.
    scores
        Shape (n_layers, n_rdms).
    """
    return np.isfinite(scores).any(axis=1) & (np.ptp(models, axis=1) > 0)


def fit_metric(comparison: str) -> str:
    """Return the comparison that weights are fitted to, see `LEAST_SQUARES`."""
    return comparison if comparison in LEAST_SQUARES else "pearson"


def metric_vectors(vectors: np.ndarray, *, comparison: str, valid: np.ndarray) -> np.ndarray:
    """Return RDMs as vectors whose angles are a comparison's scores, not scaled.

    Parameters
    ----------
    vectors
        RDMs, shape (n_rdms, n_pairs).
    comparison
        One of `LEAST_SQUARES`; of all of them these vectors are linear in the RDM.
    valid
        Pairs to use, bool (n_pairs,); they must be finite.

    Returns
    -------
    numpy.ndarray
        Shape (n_rdms, n_features).
    """
    used = vectors[:, valid]
    if comparison in ("pearson", "corr_cov"):
        used = used - used.mean(axis=1, keepdims=True)
    return _whitened(used, valid) if comparison in ("corr_cov", "cosine_cov") else used


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Return vectors of norm 1, NaN where there is none."""
    norm = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))[:, None]
    return vectors / np.where(norm > 0, norm, np.nan)


def solve(gram: np.ndarray, agreement: np.ndarray, *, kind: str) -> np.ndarray:
    """Solve many fits of one model's layers.

    Each maximises w'a / sqrt(w'Gw), the mean score of the layers' sum, over weights w >= 0.

    Parameters
    ----------
    gram
        G, inner products of the layers in the metric, shape (n_fits, n_layers, n_layers).
    agreement
        a, mean inner product of each layer with RDMs of norm 1, shape (n_fits, n_layers).
    kind
        ``weighted``, ``selected`` or ``interpolated``.

    Returns
    -------
    numpy.ndarray
        Shape (n_fits, n_layers), see `fit_layers`; NaN where anything is not finite.
    """
    layers = agreement.shape[1]
    norm = np.sqrt(np.einsum("nii->ni", gram))
    known = np.isfinite(agreement).all(axis=1) & np.isfinite(gram).all(axis=(1, 2))
    flat = norm <= 1e-12 * norm.max(axis=1, keepdims=True)
    # A layer without spread has no direction: its weight stays 0.
    scale = np.where(known[:, None] & ~flat, norm, 1.0)
    unit = np.where(known[:, None, None], gram, np.eye(layers)) / scale[:, :, None]
    unit = unit / scale[:, None, :]
    score = np.where(known[:, None] & ~flat, agreement, 0.0) / scale
    alone = np.where(flat, -np.inf, score)
    if kind == "weighted":
        weights = _nonnegative(unit, score)
        # All layers disagree with the RDMs: then the best sum is the layer that does so least.
        none = ~(weights > 0).any(axis=1)
        weights[none] = np.eye(layers)[np.argmax(alone[none], axis=1)]
    elif kind == "selected":
        weights = np.eye(layers)[np.argmax(alone, axis=1)]
    elif kind == "interpolated":
        weights = _between_neighbours(unit, score, alone)
    else:
        raise ValueError(f"kind is {kind!r}: choose one of {', '.join(KINDS[1:])}")
    weights = weights / scale
    if kind == "weighted":
        weights = weights / np.linalg.norm(weights, axis=1, keepdims=True)
    else:
        weights = weights / weights.sum(axis=1, keepdims=True)
    weights[~known] = np.nan
    return weights


def _nonnegative(gram: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Solve many non-negative least squares problems by active sets (Bro & de Jong 1997).

    Parameters
    ----------
    gram
        A'A with ones on the diagonal, shape (n, k, k).
    target
        A'y, shape (n, k).
    """
    n, k = target.shape
    ridge = 1e-13 * np.eye(k)
    found, active = np.zeros((n, k)), np.zeros((n, k), dtype=bool)
    todo = np.arange(n)
    gradient = target.copy()
    adding = np.ones(n, dtype=bool)
    for _ in range(30 * k):
        # Let the inactive variable that helps most in, or end where none does.
        candidate = np.where(active[todo], -np.inf, gradient[todo])
        best = np.argmax(candidate, axis=1)
        helps = candidate[np.arange(len(todo)), best] > _TOLERANCE
        todo, best = todo[helps | ~adding[todo]], best[helps | ~adding[todo]]
        if not len(todo):
            break
        entering = adding[todo]
        active[todo[entering], best[entering]] = True
        on = active[todo]
        system = np.where(on[:, :, None] & on[:, None, :], gram[todo], 0.0) + ridge
        system[:, np.arange(k), np.arange(k)] += ~on
        wanted = np.linalg.solve(system, np.where(on, target[todo], 0.0)[:, :, None])[:, :, 0]
        negative = on & (wanted <= 0)
        back = negative.any(axis=1)
        # Where a weight would turn negative, go as far as the first comes to 0 and leave it out.
        with np.errstate(divide="ignore", invalid="ignore"):
            step = np.where(negative, found[todo] / (found[todo] - wanted), np.inf)
        reach = np.where(back, np.nan_to_num(step, nan=0.0, posinf=np.inf).min(axis=1), 1.0)
        moved = found[todo] + reach[:, None] * (wanted - found[todo])
        leaving = negative & (step <= reach[:, None])
        active[todo] = on & ~(back[:, None] & leaving)
        found[todo] = np.where(active[todo], np.maximum(moved, 0.0), 0.0)
        adding[todo] = ~back
        gradient[todo] = target[todo] - np.einsum("nij,nj->ni", gram[todo], found[todo])
    return found


def _between_neighbours(gram: np.ndarray, score: np.ndarray, alone: np.ndarray) -> np.ndarray:
    """Return the best weights of two neighbouring layers, in closed form for each pair."""
    n, k = score.shape
    left, right = np.arange(k - 1), np.arange(1, k)
    inner = gram[:, left, right]
    first = score[:, left] - inner * score[:, right]
    second = score[:, right] - inner * score[:, left]
    ends = alone[:, left] >= alone[:, right]
    inside = (first > 0) & (second > 0) & np.isfinite(alone[:, left] + alone[:, right])
    first = np.where(inside, first, ends.astype(np.float64))
    second = np.where(inside, second, (~ends).astype(np.float64))
    length = np.sqrt(first**2 + second**2 + 2 * inner * first * second)
    reached = (first * score[:, left] + second * score[:, right]) / length
    reached = np.where(np.isfinite(np.maximum(alone[:, left], alone[:, right])), reached, -np.inf)
    pair = np.argmax(reached, axis=1)
    rows = np.arange(n)
    weights = np.zeros((n, k))
    weights[rows, pair] = first[rows, pair]
    weights[rows, pair + 1] = second[rows, pair]
    return weights
