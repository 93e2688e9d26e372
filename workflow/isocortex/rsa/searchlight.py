"""Searchlights: every sphere's RDM is scored against all models as it is made, never stored."""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr
from scipy.stats import rankdata

from isocortex import parallel, store
from isocortex.errors import InputError
from isocortex.provenance import write_json
from isocortex.rsa.compare import embed
from isocortex.rsa.compute import condition_groups, row_labels, usable_voxels
from isocortex.rsa.dissimilarity import mean_patterns
from isocortex.rsa.rdms import align_models, pair_indices, to_matrices

logger = logging.getLogger(__name__)

SEARCHLIGHT_COMPARISONS = ("pearson", "spearman")
MINIMUM_SUBJECTS = 5
"""With fewer subjects the smallest p-value that sign flips can give, 1 / 2^n, is over .05."""
_BLOCK_BYTES = 16 << 20


def sphere_offsets(radius: float, affine: np.ndarray) -> np.ndarray:
    """Return the voxel offsets whose centres lie within a radius.

    Parameters
    ----------
    radius
        mm; voxels at exactly the radius belong to the sphere.
    affine
        Of the volume, shape (4, 4).

    Returns
    -------
    numpy.ndarray
        int64, shape (n_offsets, 3), the centre among them.
    """
    step = np.asarray(affine, dtype=np.float64)[:3, :3]
    inverse = np.linalg.inv(step)
    reach = np.floor(radius * np.linalg.norm(inverse, axis=1) + 1e-6).astype(int)
    axes = [np.arange(-r, r + 1) for r in reach]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    distance = np.linalg.norm(grid @ step.T, axis=1)
    return grid[distance <= radius * (1 + 1e-6)]


def neighbourhoods(
    voxels: np.ndarray, shape: Sequence[int], offsets: np.ndarray, centres: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return which voxels each sphere holds.

    Parameters
    ----------
    voxels
        Index triples of the usable voxels, shape (n_voxels, 3).
    shape
        Of the volume.
    offsets
        From `sphere_offsets`.
    centres
        Index triples, shape (n_centres, 3).

    Returns
    -------
    members : numpy.ndarray
        int32, shape (n_centres, n_offsets): rows of ``voxels``; n_voxels where there is none.
    sizes : numpy.ndarray
        int32, voxels in each sphere.
    """
    lookup = np.full(tuple(shape), len(voxels), dtype=np.int32)
    lookup[tuple(np.asarray(voxels).T)] = np.arange(len(voxels), dtype=np.int32)
    where = np.asarray(centres)[:, None, :] + offsets[None]
    inside = ((where >= 0) & (where < np.asarray(shape))).all(axis=-1)
    where = np.where(inside[..., None], where, 0)
    members = np.where(inside, lookup[where[..., 0], where[..., 1], where[..., 2]], len(voxels))
    return members, (members < len(voxels)).sum(axis=1).astype(np.int32)


def searchlight_scores(
    means: np.ndarray,
    members: np.ndarray,
    models: np.ndarray,
    *,
    comparison: str = "pearson",
) -> np.ndarray:
    """Score the correlation-distance RDM of every neighbourhood against every model RDM.

    Parameters
    ----------
    means
        Mean patterns, shape (n_stimuli, n_voxels).
    members
        Rows of voxel indices, n_voxels where there is none: shape (n_centres, n_offsets).
    models
        RDMs, shape (n_models, n_pairs).
    comparison
        ``pearson`` or ``spearman``.

    Returns
    -------
    numpy.ndarray
        float32, shape (n_models, n_centres); NaN where a pattern is constant over its
        neighbourhood.

    Notes
    -----
    Patterns are gathered, centred and scaled in float32, so a block of RDMs is one batched matrix
    product; Pearson scores come from the square matrices without picking out pairs.
    """
    table = _pattern_table(means)
    weights = _model_weights(models, comparison)
    return _score_block(table, members, weights, comparison)


def _pattern_table(means: np.ndarray) -> np.ndarray:
    """Return patterns as float32 rows of voxels, a row of zeros at the end for missing ones.

    A first centring of each pattern over all voxels keeps float32 exact; no score changes by it.
    """
    centred = np.asarray(means, dtype=np.float64)
    centred = centred - centred.mean(axis=1, keepdims=True)
    table = np.zeros((centred.shape[1] + 1, len(centred)), dtype=np.float32)
    table[:-1] = (centred / (np.abs(centred).max() or 1.0)).T
    return table


def _model_weights(models: np.ndarray, comparison: str) -> np.ndarray:
    """Return what RDMs are multiplied by: of ranked pairs, or of whole square matrices."""
    vectors = embed(models, comparison=comparison)
    if comparison == "pearson":
        vectors = to_matrices(vectors).reshape(len(vectors), -1)
    return vectors.astype(np.float32).T


def _score_block(
    table: np.ndarray, members: np.ndarray, weights: np.ndarray, comparison: str
) -> np.ndarray:
    """Return scores, (n_models, n_centres), of one block of neighbourhoods."""
    missing = len(table) - 1
    n = table.shape[1]
    there = members < missing
    held = there.sum(axis=1)
    gathered = table.take(members, axis=0)
    size = np.einsum("ckn,ckn->cn", gathered, gathered)
    gathered -= (gathered.sum(axis=1) / np.maximum(held, 1)[:, None].astype(np.float32))[:, None]
    if not there.all():
        gathered[~there] = 0.0
    norm = np.sqrt(np.einsum("ckn,ckn->cn", gathered, gathered))
    constant = (norm <= 1e-5 * np.sqrt(size)).any(axis=1)
    kernel = gathered.transpose(0, 2, 1) @ gathered
    scale = 1.0 / np.where(norm > 0, norm, 1.0)
    kernel *= scale[:, :, None]
    kernel *= scale[:, None, :]
    if comparison == "spearman":
        i, j = pair_indices(n)
        ranks = rankdata(-kernel[:, i, j], axis=1).astype(np.float32)
        ranks -= ranks.mean(axis=1, keepdims=True)
        spread = np.sqrt(np.einsum("cp,cp->c", ranks, ranks))
        scores = ranks @ weights
    else:
        flat = kernel.reshape(len(kernel), n * n)
        flat[:, :: n + 1] = 0.0
        mean = flat.sum(axis=1, dtype=np.float64) / (n * (n - 1))
        # Deviations of similarities from their mean: dissimilarities with the sign turned.
        flat -= mean.astype(np.float32)[:, None]
        flat[:, :: n + 1] = 0.0
        spread = np.sqrt(0.5 * np.einsum("cp,cp->c", flat, flat))
        scores = -0.5 * (flat @ weights)
    with np.errstate(invalid="ignore", divide="ignore"):
        scores = scores / np.where(spread > 0, spread, np.nan)[:, None]
    scores[constant] = np.nan
    return scores.T.astype(np.float32)


def map_searchlight(
    *,
    betas: str | Path,
    model_rdms: Sequence[str | Path],
    out: str | Path,
    maps: str | Path,
    radius: float = 9.0,
    min_voxels: int = 20,
    step: int = 1,
    comparison: str = "pearson",
    average_by: str = "stimulus",
    code: str = "",
    threads: int = 1,
) -> Path:
    """Score every sphere of one subject's brain and write the ``searchlight`` store and maps.

    Parameters
    ----------
    betas
        ``betas`` store.
    model_rdms
        ``model_rdms`` stores, one a model.
    out
        The store to write.
    maps
        Folder for one NIfTI map a predictor and the best of all.
    radius
        Of the spheres, mm.
    min_voxels
        A smaller neighbourhood gets no score (NaN).
    step
        Centres lie on every ``step``-th voxel of each axis; maps have that coarser grid.
    comparison
        ``pearson`` or ``spearman``.
    average_by
        ``stimulus`` or ``condition``.

    Returns
    -------
    pathlib.Path
        The manifest.

    Raises
    ------
    InputError
        Where no neighbourhood is large enough, models lack stimuli, or an option is not known.
    """
    if comparison not in SEARCHLIGHT_COMPARISONS:
        raise InputError(
            f"searchlight.comparison: {comparison!r} is not one of "
            f"{', '.join(SEARCHLIGHT_COMPARISONS)}"
        )
    opened = store.open(betas, "betas")
    subject, task = str(opened.attrs["subject"]), str(opened.attrs["task"])
    where = f"{betas} (sub-{subject})"
    labels = row_labels(opened, average_by, where=where)
    groups = condition_groups(opened, average_by)
    means, stimuli, usable = _mean_patterns_by_block(opened, labels)
    models = align_models(model_rdms, stimuli, groups=groups or None)
    voxels = np.stack([opened[axis].values for axis in "ijk"], axis=1).astype(np.int64)
    centres = voxels[(voxels % step == 0).all(axis=1)]
    shape = [int(n) for n in opened.attrs["shape"]]
    offsets = sphere_offsets(radius, np.asarray(opened.attrs["affine"]))
    if len(offsets) < min_voxels:
        raise InputError(
            f"a searchlight of {radius} mm holds {len(offsets)} voxels of {where}, fewer than "
            f"searchlight.min_voxels = {min_voxels}: enlarge searchlight.radius"
        )
    table, weights = _pattern_table(means), _model_weights(models.dissimilarity, comparison)
    # Three float32 arrays of a block are alive at once; the block is what bounds the memory.
    n = len(stimuli)
    each = 4 * (3 * n * len(offsets) + 3 * n * n) + 48 * len(offsets)
    size = max(1, _BLOCK_BYTES // each)

    def score(block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        members, sizes = neighbourhoods(voxels[usable], shape, offsets, block)
        full = np.full((len(models.predictors), len(block)), np.nan, dtype=np.float32)
        enough = sizes >= min_voxels
        if enough.any():
            full[:, enough] = _score_block(table, members[enough], weights, comparison)
        return full, sizes

    import dask

    with parallel.dask_workers(threads):
        parts = dask.compute(
            *(dask.delayed(score)(centres[s : s + size]) for s in range(0, len(centres), size))
        )
    scores = np.concatenate([part[0] for part in parts], axis=1)
    sizes = np.concatenate([part[1] for part in parts])
    if not np.isfinite(scores).any():
        raise InputError(
            f"no searchlight of {radius} mm in {where} holds {min_voxels} usable voxels: enlarge "
            "searchlight.radius or lower searchlight.min_voxels"
        )
    logger.info(
        "%s: %d centres, %d with fewer than %d voxels, %d voxels NaN or constant",
        where,
        len(centres),
        int((sizes < min_voxels).sum()),
        min_voxels,
        int((~usable).sum()),
    )
    dataset = xr.Dataset(
        {
            "score": (("predictor", "voxel"), scores),
            "n_voxels": ("voxel", sizes.astype(np.int32)),
        },
        coords=_coordinates(models.predictors, models.models, models.layers, centres),
        attrs={
            "affine": opened.attrs["affine"],
            "shape": shape,
            "space": opened.attrs["space"],
            "subject": subject,
            "task": task,
            "comparison": comparison,
            "measure": "correlation",
            "radius": radius,
            "min_voxels": min_voxels,
            "step": step,
            "n_voxels_dropped": int((~usable).sum()),
        },
    )
    _write_maps(
        maps,
        dict(zip(models.predictors, scores)),
        centres,
        dataset.attrs,
        prefix=f"sub-{subject}_task-{task}",
        statistic="r",
        best=True,
    )
    return store.write(dataset, out, spec="searchlight", sources=[betas, *model_rdms], code=code)


def _mean_patterns_by_block(
    betas: xr.Dataset, labels: Sequence[str]
) -> tuple[np.ndarray, tuple[str, ...], np.ndarray]:
    """Return mean patterns of the usable voxels (float32), the stimuli, and which are usable."""
    data = betas["beta"].data
    edges = np.cumsum([0, *data.chunks[1]])
    parts, usable = [], []
    for start, stop in itertools.pairwise(edges):
        block = np.asarray(data[:, start:stop])
        good = usable_voxels(block)
        means, stimuli, _ = mean_patterns(block[:, good], labels)
        varying = means.std(axis=0) > 0
        good[np.flatnonzero(good)[~varying]] = False
        parts.append(means[:, varying].astype(np.float32))
        usable.append(good)
    return np.concatenate(parts, axis=1), stimuli, np.concatenate(usable)


def combine_searchlights(
    *,
    searchlights: Sequence[str | Path],
    out: str | Path,
    maps: str | Path,
    permutations: int = 1000,
    seed: int = 0,
    code: str = "",
    threads: int = 1,
) -> Path:
    """Test the searchlight scores over subjects and write the group's store and maps.

    Parameters
    ----------
    searchlights
        ``searchlight`` stores, one a subject, on one grid.
    out
        The store to write.
    maps
        Folder for NIfTI maps of the mean, t and corrected p of each predictor.
    permutations
        Sign flips for the corrected p-value; all 2^n of them where these are fewer.
    seed
        Of the sign flips.

    Returns
    -------
    pathlib.Path
        The manifest.

    Raises
    ------
    InputError
        Where subjects are on different grids, or their searchlights differ in kind.

    Notes
    -----
    t is of Fisher z over the subjects with a score; the p-value corrected over all centres of a
    predictor is that of the largest t under flipped signs (one-sided, centres that all subjects
    have). With fewer than 5 subjects it is NaN.
    """
    opened = [store.open(path, "searchlight") for path in searchlights]
    _check_same_grid(opened, searchlights)
    opened = sorted(opened, key=lambda s: str(s.attrs["subject"]))
    first = opened[0]
    shape = [int(n) for n in first.attrs["shape"]]
    flat = [np.ravel_multi_index([s[a].values for a in "ijk"], shape) for s in opened]
    everywhere = np.unique(np.concatenate(flat))
    predictors = [str(p) for p in first["predictor"].values]
    n = len(opened)
    z = np.full((len(predictors), n, len(everywhere)), np.nan)
    for k, (part, where) in enumerate(zip(opened, flat)):
        score = part["score"].values.astype(np.float64)
        z[:, k, np.searchsorted(everywhere, where)] = np.arctanh(
            np.clip(score, -1 + 1e-7, 1 - 1e-7)
        )
    found = np.isfinite(z)
    counts = found.sum(axis=1)
    safe = np.where(found, z, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_z = safe.sum(axis=1) / np.where(counts > 0, counts, np.nan)
        t = _one_sample_t(safe.sum(axis=1), (safe**2).sum(axis=1), counts)
    t[counts < 2] = np.nan
    flags = []
    p = np.full(t.shape, np.nan, dtype=np.float32)
    if n < MINIMUM_SUBJECTS:
        flags.append(
            f"{n} subjects: no corrected p-values; sign flips need at least {MINIMUM_SUBJECTS}"
        )
        logger.warning("%s", flags[0])
    else:
        signs = sign_flips(n, permutations, seed=seed)
        with parallel.dask_workers(threads):
            import dask

            done = dask.compute(
                *(
                    dask.delayed(_max_statistic_p)(z[m][:, counts[m] == n], signs)
                    for m in range(len(predictors))
                )
            )
        for m, values in enumerate(done):
            p[m, counts[m] == n] = values
    centres = np.stack(np.unravel_index(everywhere, shape), axis=1)
    dataset = xr.Dataset(
        {
            "mean": (("predictor", "voxel"), np.tanh(mean_z).astype(np.float32)),
            "t": (("predictor", "voxel"), t.astype(np.float32)),
            "p_corrected": (("predictor", "voxel"), p),
            "n_subjects": ("voxel", counts.min(axis=0).astype(np.int32)),
        },
        coords=_coordinates(
            predictors,
            [str(m) for m in first["model"].values],
            [str(m) for m in first["layer"].values],
            centres,
        ),
        attrs={
            **{
                key: first.attrs[key]
                for key in ("affine", "shape", "space", "task", "comparison", "radius", "step")
            },
            "subjects": [str(s.attrs["subject"]) for s in opened],
            "permutations": permutations,
            "seed": seed,
            "flags": flags,
        },
    )
    for statistic, key in (("r", "mean"), ("t", "t"), ("p", "p_corrected")):
        if key == "p_corrected" and n < MINIMUM_SUBJECTS:
            continue
        _write_maps(
            maps,
            dict(zip(predictors, dataset[key].values)),
            centres,
            dataset.attrs,
            prefix=f"task-{first.attrs['task']}",
            statistic=statistic,
            best=statistic == "r",
        )
    return store.write(
        dataset, out, spec="searchlight_group", sources=list(searchlights), code=code
    )


def sign_flips(n: int, permutations: int, *, seed: int) -> np.ndarray:
    """Return rows of signs of n subjects, the first of them all +1.

    All 2^n of them where these are no more than ``permutations``, else as many random rows.
    """
    if n < 60 and 2**n <= permutations:
        bits = (np.arange(2**n)[:, None] >> np.arange(n)[None, :]) & 1
        return 1.0 - 2.0 * bits
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(permutations, n))
    signs[0] = 1.0
    return signs


def _one_sample_t(total: np.ndarray, squares: np.ndarray, n: np.ndarray | int) -> np.ndarray:
    """Return t of sums and sums of squares of n values."""
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = total / n
        variance = np.maximum(squares - n * mean**2, 0.0) / (n - 1.0)
        return mean / np.sqrt(np.where(variance > 0, variance, np.nan) / n)


def _max_statistic_p(z: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """Return p-values corrected over columns from the largest t of every sign flip.

    Flipping leaves sums of squares alone, so that all flips are one matrix product.
    """
    n, columns = z.shape
    if not columns:
        return np.empty(0, dtype=np.float32)
    squares = (z**2).sum(axis=0)
    observed = _one_sample_t(z.sum(axis=0), squares, n)
    size = max(1, _BLOCK_BYTES // (8 * columns))
    largest = np.concatenate(
        [
            np.nanmax(_one_sample_t(signs[s : s + size] @ z, squares[None], n), axis=1)
            for s in range(0, len(signs), size)
        ]
    )
    largest.sort()
    # Rounding must not put the observed sign pattern below itself.
    at_least = len(largest) - np.searchsorted(largest, observed * (1 - 1e-9 * np.sign(observed)))
    return np.where(np.isfinite(observed), at_least / len(largest), np.nan).astype(np.float32)


def _check_same_grid(opened: Sequence[xr.Dataset], paths: Sequence[str | Path]) -> None:
    """Raise `InputError` where searchlights of subjects cannot be put together."""
    if not opened:
        raise InputError("no searchlights were given: name at least one subject")
    first = opened[0]
    for file, part in zip(paths[1:], opened[1:]):
        if list(part.attrs["shape"]) != list(first.attrs["shape"]) or not np.allclose(
            part.attrs["affine"], first.attrs["affine"], atol=1e-3
        ):
            raise InputError(
                f"{file} is on another grid than {paths[0]}: map searchlights in a template space "
                "(preprocess.spaces)"
            )
        for key in ("comparison", "radius", "step", "task"):
            if part.attrs[key] != first.attrs[key]:
                raise InputError(
                    f"{file} has {key} {part.attrs[key]}, {paths[0]} {first.attrs[key]}: map again"
                )
        if list(part["predictor"].values) != list(first["predictor"].values):
            raise InputError(f"{file} has other models than {paths[0]}: map searchlights again")


def _coordinates(
    predictors: Sequence[str], models: Sequence[str], layers: Sequence[str], centres: np.ndarray
) -> dict[str, tuple[str, np.ndarray]]:
    text = {"predictor": predictors, "model": models, "layer": layers}
    return {
        **{key: ("predictor", np.array(list(value), dtype=object)) for key, value in text.items()},
        **{axis: ("voxel", centres[:, d].astype(np.int32)) for d, axis in enumerate("ijk")},
    }


def _write_maps(
    folder: str | Path,
    rows: dict[str, np.ndarray],
    centres: np.ndarray,
    attrs: dict,
    *,
    prefix: str,
    statistic: str,
    best: bool,
) -> None:
    """Write one NIfTI map a predictor, on the grid of the centres, and the best of all."""
    import nibabel as nib

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    step = int(attrs["step"])
    shape = [-(-int(n) // step) for n in attrs["shape"]]
    affine = np.asarray(attrs["affine"], dtype=np.float64).copy()
    affine[:3, :3] *= step
    where = tuple((centres // step).T)
    space = attrs["space"]

    def save(values: np.ndarray, name: str, dtype: type, outside: float) -> None:
        volume = np.full(shape, outside, dtype=dtype)
        volume[where] = values
        image = nib.Nifti1Image(volume, affine)
        image.set_data_dtype(dtype)
        nib.save(image, folder / f"{prefix}_space-{space}_desc-{name}.nii.gz")

    for name, row in rows.items():
        plain = re.sub(r"[^A-Za-z0-9]", "", name)
        save(row, f"{plain}_stat-{statistic}_statmap", np.float32, np.nan)
    if best:
        table = np.array(list(rows.values()))
        some = np.isfinite(table).any(axis=0)
        filled = np.where(np.isfinite(table), table, -np.inf)
        top = np.where(some, filled.max(axis=0), np.nan)
        save(top, f"best_stat-{statistic}_statmap", np.float32, np.nan)
        save(np.where(some, filled.argmax(axis=0) + 1, 0), "best_dseg", np.int16, 0)
        write_json(
            folder / f"{prefix}_space-{space}_desc-best_dseg.json",
            {"LabelMap": {str(k): name for k, name in enumerate(rows, start=1)}},
        )
