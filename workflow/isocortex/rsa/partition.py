"""How much of a brain RDM's variance each model explains alone, and how much models share.

Commonality analysis of regressions of RDMs on the RDMs of up to four models, with partial
correlations. Everything follows from correlations between RDMs, which bootstrap samples give by
matrix products (`isocortex.rsa.inference.bootstrap_scores`).
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import xarray as xr
from scipy.stats import rankdata

from isocortex import parallel, store
from isocortex.errors import InputError
from isocortex.multiple_tests import correct_p
from isocortex.rsa.compare import embed
from isocortex.rsa.crossvalidation import mean_over_samples, mean_over_subjects
from isocortex.rsa.hypotheses import (
    combine_variances,
    contrast_variances,
    p_above,
    p_different,
)
from isocortex.rsa.hypotheses import (
    interval as t_interval,
)
from isocortex.rsa.inference import bootstrap_counts, bootstrap_scores
from isocortex.rsa.permutation import (
    draw_orders,
    order_flags,
    permutation_p,
    region_groups,
)
from isocortex.rsa.rdms import ModelRDMs, align_models, load_rdms, pair_indices, to_matrices
from isocortex.rsa.rdms import n_stimuli as pairs_to_stimuli
from isocortex.rsa.scores import resolve_bootstrap

logger = logging.getLogger(__name__)

_RIDGE = 1e-12
"""On correlations, so that two equal layers share what one of them explains."""
_SAMPLES_A_BLOCK = 50
_BLOCK_BYTES = 16 << 20


def subsets(n: int) -> list[tuple[int, ...]]:
    """Return the parts of n models: every non-empty set of them, small ones first."""
    return [s for size in range(1, n + 1) for s in itertools.combinations(range(n), size)]


def commonality(r2: Mapping[tuple[int, ...], np.ndarray], n: int) -> np.ndarray:
    """Return the variance that exactly the models of each part explain.

    Parameters
    ----------
    r2
        By sets of models, the variance that they explain together; arrays of one shape.
    n
        Number of models.

    Returns
    -------
    numpy.ndarray
        Shape (n_parts, ...), in the order of `subsets`; they add up to the variance of all models.
        Shared parts may be negative (suppression).

    Notes
    -----
    Part T is the sum over U in T of (-1)^(|U|+1) R2(U and all models outside T)
    (Nimon et al. 2008, Behavior Research Methods 40).
    """
    parts = []
    for part in subsets(n):
        outside = [k for k in range(n) if k not in part]
        total = 0.0
        for size in range(len(part) + 1):
            for inner in itertools.combinations(part, size):
                chosen = tuple(sorted([*outside, *inner]))
                if chosen:
                    total = total + (-1.0) ** (size + 1) * r2[chosen]
        parts.append(total)
    return np.array(parts)


def partition_correlations(
    layers: np.ndarray, brain: np.ndarray, members: Sequence[Sequence[int]]
) -> dict[str, np.ndarray]:
    """Return all shares of variance and partial correlations from correlations.

    Parameters
    ----------
    layers
        Correlations among the RDMs of all layers, shape (..., n_layers, n_layers).
    brain
        Correlations of layers with brain RDMs, shape (..., n_layers, n_rdms).
    members
        Layers of each model.

    Returns
    -------
    dict
        ``variance`` (..., part, rdm), see `commonality`; ``total`` (..., rdm); ``partial`` and
        ``semipartial`` (..., model, rdm): correlation with the model, the other models taken out
        of both or of the model only. Of a model of several layers they have no sign: they are
        the roots of the shares of the variance left, and of all, that the model adds.
    """
    n = len(members)
    known = np.isfinite(layers).all(axis=(-2, -1))[..., None] & np.isfinite(brain).all(axis=-2)
    layers, brain = np.nan_to_num(layers), np.nan_to_num(brain)
    r2, slopes = {}, {}
    for chosen in subsets(n):
        rows = [row for k in chosen for row in members[k]]
        inner = layers[..., rows, :][..., :, rows] + _RIDGE * np.eye(len(rows))
        # A layer without spread has no correlation with itself either.
        inner = inner + np.eye(len(rows)) * (np.einsum("...ii->...i", inner)[..., None] < 0.5)
        found = np.linalg.solve(inner, brain[..., rows, :])
        r2[chosen] = np.einsum("...ij,...ij->...j", found, brain[..., rows, :])
        slopes[chosen] = found
    every = tuple(range(n))
    variance = np.moveaxis(commonality(r2, n), 0, -2)
    partial, semipartial = [], []
    for k in range(n):
        others = tuple(m for m in every if m != k)
        added = np.maximum(r2[every] - r2[others], 0.0)
        sign = 1.0
        if len(members[k]) == 1:
            place = sum(len(members[m]) for m in range(k))
            sign = np.sign(slopes[every][..., place, :])
        left = np.maximum(1.0 - r2[others], np.finfo(np.float64).tiny)
        partial.append(sign * np.sqrt(np.minimum(added / left, 1.0)))
        semipartial.append(sign * np.sqrt(added))
    found = {
        "variance": variance,
        "total": r2[every][..., None, :],
        "partial": np.stack(partial, axis=-2),
        "semipartial": np.stack(semipartial, axis=-2),
    }
    found = {key: np.where(known[..., None, :], value, np.nan) for key, value in found.items()}
    found["total"] = found["total"][..., 0, :]
    return found


def partition_statistics(
    brain: np.ndarray,
    models: np.ndarray,
    members: Sequence[Sequence[int]],
    *,
    comparison: str,
    over: str,
    samples: int,
    permutations: int,
    seed: int,
    level: float = 0.95,
    threads: int = 1,
) -> dict[str, np.ndarray]:
    """Return shares of variance and partial correlations of all subjects, with inference.

    Parameters
    ----------
    brain
        RDMs, shape (n_subjects, n_regions, n_pairs); all NaN where a subject lacks a region,
        otherwise pairs that are NaN in one subject are left out for all of that region.
    models
        RDMs of all layers, shape (n_layers, n_pairs), finite.
    members
        Layers of each of 2 to 4 models.
    comparison
        ``pearson``: dissimilarities are regressed; ``spearman``: their ranks.
    over, samples
        What the bootstrap resamples, see `isocortex.rsa.scores.resolve_bootstrap`, and how often.
    permutations
        Orders of stimuli, at least 1.
    seed
        Of the bootstrap and the permutations.
    level
        Coverage of the intervals.

    Returns
    -------
    dict
        The arrays of the ``partition`` store, without corrected p-values.

    Notes
    -----
    A share of variance is above 0 by chance, so that no test takes it against 0. The part of one
    model is tested by its signed semi-partial correlation; a shared part by what it has over its
    mean under permuted labels. Permutations of one model's part re-order what the other models
    leave of its RDM (Dekker et al. 2007, Psychometrika 72), those of shared parts re-order all
    models' stimuli together. A model of several layers is tested by permutation only.
    """
    n_subjects, n_regions, n_pairs = brain.shape
    n_stimuli, n = pairs_to_stimuli(n_pairs), len(members)
    parts = subsets(n)
    counted = np.isfinite(brain).any(axis=-1).sum(axis=0)
    rng = np.random.default_rng(seed)
    by_subject = bootstrap_counts(n_subjects, samples, rng=rng)
    by_stimulus = bootstrap_counts(n_stimuli, samples, rng=rng)
    orders = draw_orders(n_stimuli, permutations, seed=seed)
    # Values in one array: shares, then partial and semi-partial correlations, then their sum.
    size = len(parts) + 2 * n + 1
    score = np.full((size, n_regions, n_subjects), np.nan)
    drawn: dict[str, np.ndarray] = {}
    order_means = np.full((len(orders), size, n_regions), np.nan)
    for valid, regions in region_groups(brain):
        rows = np.where(valid, brain[:, regions], np.nan)
        who = np.isfinite(rows).any(axis=-1)
        score[:, regions] = _all_values(
            *_correlations(models, rows[who], valid, comparison), members, who
        ).swapaxes(-2, -1)
        blocks = [
            slice(start, min(start + _SAMPLES_A_BLOCK, samples))
            for start in range(0, samples if over in ("stimuli", "both") else 0, _SAMPLES_A_BLOCK)
        ]
        found = parallel.map_blocks(
            _bootstrap_block,
            blocks,
            models,
            rows,
            members,
            by_subject,
            by_stimulus,
            comparison,
            threads=threads,
            label="bootstrap of partitions",
        )
        for block, means in zip(blocks, found):
            for key, value in means.items():
                drawn.setdefault(key, np.full((samples, size, n_regions), np.nan))
                drawn[key][block, :, regions] = value
        length = max(1, _BLOCK_BYTES // (8 * models.size))
        chunks = [orders[start : start + length] for start in range(0, len(orders), length)]
        found = parallel.map_blocks(
            _permuted_block,
            chunks,
            models,
            rows,
            members,
            valid,
            comparison,
            threads=threads,
            label="permutations of partitions",
        )
        order_means[:, :, regions] = np.concatenate(list(found))
    if over in ("subjects", "both"):
        drawn["subjects"] = mean_over_samples(score, by_subject)
    if over == "stimuli":
        drawn.pop("both", None)
    mean = mean_over_subjects(score, np.ones(n_subjects))
    variance, freedom = combine_variances(
        {key: contrast_variances(value[:, None])[0] for key, value in drawn.items()},
        over=over,
        n_subjects=counted,
        n_stimuli=n_stimuli,
    )
    variance = np.broadcast_to(variance, mean.shape)
    low, high = t_interval(mean, variance, freedom, level=level)

    share, partial = slice(0, len(parts)), slice(len(parts), len(parts) + n)
    chance = order_means[:, share].mean(axis=0)
    p = p_different(mean[share] - chance, variance[share], freedom)
    for k, part in enumerate(parts):
        if len(part) == 1:
            row = len(parts) + n + part[0]
            p[k] = p_above(mean[row], variance[row], freedom)
    partial_p = p_above(mean[partial], variance[partial], freedom)
    for k in range(n):
        if len(members[k]) > 1:
            p[parts.index((k,))] = partial_p[k] = np.nan
    for tests in (p, partial_p):
        tests[:, counted < 2] = np.nan
    by_order, _ = permutation_p(order_means)
    permuted = by_order[share]
    for k in range(n):
        permuted[parts.index((k,))] = by_order[partial][k]
    return {
        "variance": score[share],
        "mean": mean[share],
        "interval_low": low[share],
        "interval_high": high[share],
        "chance": chance,
        "p": p,
        "p_permutation": permuted,
        "partial": score[partial],
        "partial_mean": mean[partial],
        "partial_low": low[partial],
        "partial_high": high[partial],
        "partial_p": partial_p,
        "partial_p_permutation": by_order[partial],
        "total": score[-1],
        "total_mean": mean[-1],
    }


def _correlations(
    models: np.ndarray, rows: np.ndarray, valid: np.ndarray, comparison: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return correlations among layers and of layers with brain RDMs."""
    layers = embed(models, comparison=comparison, valid=valid)
    return layers @ layers.T, layers @ embed(rows, comparison=comparison, valid=valid).T


def _all_values(
    layers: np.ndarray, brain: np.ndarray, members: Sequence[Sequence[int]], who: np.ndarray
) -> np.ndarray:
    """Return all values of each subject and region, (..., value, subject, region)."""
    found = partition_correlations(layers, brain, members)
    values = np.concatenate(
        [found["variance"], found["partial"], found["semipartial"], found["total"][..., None, :]],
        axis=-2,
    )
    out = np.full((*values.shape[:-1], *who.shape), np.nan)
    out[..., who] = values
    return out


def _bootstrap_block(
    block: slice,
    models: np.ndarray,
    rows: np.ndarray,
    members: Sequence[Sequence[int]],
    by_subject: np.ndarray,
    by_stimulus: np.ndarray,
    comparison: str,
) -> dict[str, np.ndarray]:
    who = np.isfinite(rows).any(axis=-1)
    together = np.concatenate([models, rows[who]])
    found: dict[str, list[np.ndarray]] = {"stimuli": [], "both": []}
    scores = bootstrap_scores(models, together, by_stimulus[block], comparison=comparison)
    for part, r in scores:
        values = _all_values(r[..., : len(models)], r[..., len(models) :], members, who)
        values = values.swapaxes(-2, -1)
        counts = by_subject[block][part]
        found["stimuli"].append(mean_over_subjects(values, np.ones(len(who))))
        found["both"].append(mean_over_subjects(values, counts[:, None, None]))
    return {key: np.concatenate(value) for key, value in found.items()}


def _permuted_block(
    orders: np.ndarray,
    models: np.ndarray,
    rows: np.ndarray,
    members: Sequence[Sequence[int]],
    valid: np.ndarray,
    comparison: str,
) -> np.ndarray:
    """Return mean values over subjects for orders of the stimuli, (order, value, region).

    Shares come from re-ordering all models, partial correlations from re-ordering what the other
    models leave of one.
    """
    who = np.isfinite(rows).any(axis=-1)
    i, j = pair_indices(orders.shape[1])
    n_layers, ones = len(models), np.ones(len(who))
    seen = embed(rows[who], comparison=comparison, valid=valid)
    squares = to_matrices(models)
    permuted = squares[:, orders[:, i], orders[:, j]].swapaxes(0, 1)
    layers = embed(
        permuted.reshape(-1, models.shape[1]), comparison=comparison, valid=valid
    ).reshape(len(orders), n_layers, -1)
    values = _all_values(layers @ layers.swapaxes(1, 2), layers @ seen.T, members, who)
    means = mean_over_subjects(values.swapaxes(-2, -1), ones)
    n_parts = len(subsets(len(members)))
    # Ranks of all pairs, so that what is left of a model can be re-ordered as a whole.
    scale = rankdata(models, axis=1) if comparison == "spearman" else models
    scale = scale - scale.mean(axis=1, keepdims=True)
    for k, own in enumerate(members):
        others = [row for m, rows_of in enumerate(members) if m != k for row in rows_of]
        basis = np.linalg.qr(scale[others].T)[0]
        left = scale[list(own)] - (scale[list(own)] @ basis) @ basis.T
        moved = to_matrices(left)[:, orders[:, i], orders[:, j]].swapaxes(0, 1)[..., valid]
        fixed = scale[others][:, valid]
        fixed = fixed - fixed.mean(axis=1, keepdims=True)
        basis = np.linalg.qr(fixed.T)[0]
        moved = moved - moved.mean(axis=-1, keepdims=True)
        moved = moved - (moved @ basis) @ basis.T
        target = seen - (seen @ basis) @ basis.T
        norm = np.sqrt(np.einsum("ij,ij->i", target, target))[:, None]
        target = target / np.where(norm > 0, norm, np.nan)
        inner = moved @ moved.swapaxes(1, 2)
        scales = np.einsum("oii->oi", inner)
        inner = inner / np.sqrt(scales[:, :, None] * scales[:, None, :])
        cross = moved @ target.T / np.sqrt(scales)[:, :, None]
        out = np.full((len(orders), *who.shape), np.nan)
        if len(own) == 1:
            out[:, who] = cross[:, 0]
        else:
            weights = np.linalg.solve(inner + _RIDGE * np.eye(len(own)), cross)
            out[:, who] = np.sqrt(np.maximum(np.einsum("oij,oij->oj", weights, cross), 0.0))
        means[:, n_parts + k] = mean_over_subjects(out.swapaxes(-2, -1), ones)
    return means


def choose_models(models: ModelRDMs, chosen: Sequence[str]) -> list[list[int]]:
    """Return the rows of each chosen predictor, or of all layers of each chosen model.

    Raises
    ------
    InputError
        Where there are not 2 to 4, one comes twice, or there is no such model or layer.
    """
    if not 2 <= len(chosen) <= 4:
        raise InputError(f"rsa.partition.models names {len(chosen)}: name 2 to 4")
    members = []
    for name in chosen:
        rows = [
            k
            for k, (predictor, model) in enumerate(zip(models.predictors, models.models))
            if name in (predictor, model)
        ]
        if not rows:
            raise InputError(
                f"rsa.partition.models: there is no {name!r}: use a model or one of "
                f"{', '.join(models.predictors)}"
            )
        members.append(rows)
    used = [row for rows in members for row in rows]
    for row in used:
        if used.count(row) > 1:
            raise InputError(
                f"rsa.partition.models: {models.predictors[row]} is in two of "
                f"{', '.join(chosen)}: name it once"
            )
    return members


def partition_models(
    *,
    rdms: Sequence[str | Path],
    model_rdms: Sequence[str | Path],
    out: str | Path,
    models: Sequence[str],
    comparison: str = "spearman",
    bootstrap: Mapping[str, str | int] | None = None,
    permutations: int = 1000,
    interval: float = 0.95,
    seed: int = 0,
    code: str = "",
    threads: int = 1,
) -> Path:
    """Partition the variance of all subjects' RDMs among models and write the ``partition`` store.

    Parameters
    ----------
    rdms, model_rdms
        Stores, one a subject and one a model.
    out
        The store to write.
    models
        2 to 4 predictors (``model/layer``), or models, whose layers then go together.
    comparison
        ``pearson`` or ``spearman``, see `partition_statistics`.
    bootstrap
        ``over`` and ``samples`` as in `isocortex.rsa.scores.compare_rdms`; with both factors the
        variance is the dual bootstrap's.
    permutations
        Orders of stimuli; with 0 the chance level and its tests are of 100.
    interval
        Coverage of the intervals.
    seed
        Of the bootstrap and the permutations.

    Returns
    -------
    pathlib.Path
        The manifest.

    Raises
    ------
    InputError
        Where stimuli do not match, an RDM is constant, or there is no such model.
    """
    options = {"over": "auto", "samples": 1000, **(bootstrap or {})}
    if comparison not in ("pearson", "spearman"):
        raise InputError(f"rsa.partition.comparison: {comparison!r} is not pearson or spearman")
    brain = load_rdms(rdms)
    aligned = align_models(model_rdms, brain.stimuli, groups=brain.groups or None)
    members = choose_models(aligned, models)
    used = [row for rows in members for row in rows]
    for row in used:
        values = aligned.dissimilarity[row]
        if not np.isfinite(values).all() or np.ptp(values) == 0:
            raise InputError(
                f"the RDM of {aligned.predictors[row]} is constant or not finite: take it out of "
                "rsa.partition.models"
            )
    places = iter(range(len(used)))
    members = [[next(places) for _ in rows] for rows in members]
    n_stimuli = len(brain.stimuli)
    over = resolve_bootstrap(
        str(options["over"]), n_subjects=len(brain.subjects), n_stimuli=n_stimuli
    )
    flags = order_flags(n_stimuli)
    n_pairs = n_stimuli * (n_stimuli - 1) // 2
    if n_pairs < 10 * len(used):
        flags.append(
            f"{n_pairs} pairs of stimuli for {len(used)} layers: shares of variance are high by "
            f"chance; at least {10 * len(used)} pairs are needed"
        )
    if len(brain.subjects) < 2:
        flags.append("one subject: no p-value over subjects; at least 2 are needed")
    if over == "none":
        flags.append(f"{n_stimuli} stimuli: no intervals; at least 10 are needed")
    flags += [
        f"{name} has {len(rows)} layers: its own part is tested by permutation only"
        for name, rows in zip(models, members)
        if len(rows) > 1
    ]
    for flag in flags:
        logger.warning("%s", flag)
    found = partition_statistics(
        brain.dissimilarity,
        aligned.dissimilarity[used],
        members,
        comparison=comparison,
        over=over,
        samples=int(options["samples"]),
        permutations=permutations or 100,
        seed=seed,
        level=interval,
        threads=threads,
    )
    for prefix in ("", "partial_"):
        for name, correction in (("fdr", "fdr"), ("fwe", "holm")):
            found[f"{prefix}p_{name}"] = correct_p(found[f"{prefix}p"], correction=correction)
    parts = ["+".join(models[k] for k in part) for part in subsets(len(models))]
    dims = dict.fromkeys(found, ("part", "region"))
    dims |= {key: ("model", "region") for key in found if key.startswith("partial")}
    dims |= {
        "variance": ("part", "region", "subject"),
        "partial": ("model", "region", "subject"),
        "total": ("region", "subject"),
        "total_mean": ("region",),
    }
    dataset = xr.Dataset(
        {key: (dims[key], value) for key, value in found.items()},
        coords={
            name: (name, np.array([str(v) for v in values], dtype=object))
            for name, values in {
                "part": parts,
                "model": models,
                "region": brain.regions,
                "subject": brain.subjects,
            }.items()
        },
        attrs={
            "measure": brain.measure,
            "task": brain.task,
            "comparison": comparison,
            "bootstrap": over,
            "n_bootstrap": int(options["samples"]),
            "n_permutations": permutations or 100,
            "interval_level": interval,
            "seed": seed,
            "n_stimuli": n_stimuli,
            "flags": flags,
        },
    )
    return store.write(dataset, out, spec="partition", sources=[*rdms, *model_rdms], code=code)
