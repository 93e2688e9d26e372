"""Weights of ridge regression on all samples, written in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import dask
import dask.array
import numpy as np
import torch
import xarray as xr

from isocortex import store
from isocortex.device import deterministic
from isocortex.encoding.design import Design, Responses, centre, design_of, open_responses
from isocortex.encoding.ridge import gram, standardisation


def ridge_weights(
    features: np.ndarray,
    counts: np.ndarray,
    *,
    pca: int | None = None,
) -> tuple[Callable[[np.ndarray, np.ndarray], np.ndarray], np.ndarray, np.ndarray, bool]:
    """Decompose features once, for the weights of any targets and penalties.

    Parameters
    ----------
    features
        Shape (rows, units).
    counts
        Samples that each row stands for, shape (rows,).
    pca
        Principal components to keep; None: all.

    Returns
    -------
    solve
        Takes targets (means over each row's samples, centred: their mean weighted with the counts
        is taken out) of shape (rows, voxels) and a penalty of each voxel; gives weights.
    centre, scale
        Of the units.
    dual
        Whether weights are of inner products with the rows, shape (rows, voxels): where there are
        no fewer units than rows. Else of the scaled units, shape (units, voxels).
    """
    values = torch.from_numpy(np.ascontiguousarray(features))
    shares = torch.from_numpy(np.asarray(counts, float))
    middle, scale = standardisation(values, shares)
    root = shares.sqrt()
    dual = values.shape[1] >= len(values)
    if dual:
        products = gram(values, middle, scale)
        power, vectors = torch.linalg.eigh(root[:, None] * products * root[None, :])
        into, out = vectors.T * root, root[:, None] * vectors
    else:
        rows = (values.double() - middle) * scale * root[:, None]
        power, vectors = torch.linalg.eigh(rows.T @ rows)
        into, out = vectors.T @ rows.T * root, vectors
    threshold = power.max().clamp(min=0) * max(values.shape) * torch.finfo(torch.float64).eps
    kept = torch.arange(len(power) - 1, -1, -1)[: int((power > threshold).sum())][:pca]
    power, into, out = power[kept], into[kept], out[:, kept]

    def solve(targets: np.ndarray, alphas: np.ndarray) -> np.ndarray:
        given = torch.from_numpy(np.asarray(targets, float))
        given = given - shares @ given / shares.sum()
        penalty = torch.from_numpy(np.asarray(alphas, float))
        return (out @ ((into @ given) / (power[:, None] + penalty))).float().numpy()

    return solve, middle.numpy(), scale.numpy(), dual


def weight_datasets(
    responses: Responses,
    design: Design,
    alpha: np.ndarray,
    *,
    pca: int | None = None,
    voxel_batch: int = 1024,
) -> dict[str, xr.Dataset]:
    """Weights of every layer from all samples, as lazy datasets of spec ``encoding_weights``.

    Parameters
    ----------
    responses, design
        What is predicted, and from what.
    alpha
        Penalties, shape (layers, voxels): those that the folds chose; NaN gives NaN.
    pca
        Principal components of all rows to keep.
    voxel_batch
        Voxels of a lazy block. Compute one at a time: blocks of responses are read in turn.
    """
    cv = design.cv
    counts = np.bincount(cv.stimulus, minlength=len(cv.stimuli)).astype(float)
    order = np.argsort(cv.stimulus, kind="stable")
    starts = np.searchsorted(cv.stimulus[order], np.arange(len(cv.stimuli)))

    def one(solve, penalties: np.ndarray, first: int, last: int) -> np.ndarray:
        values, usable = centre(responses.read(first, last), cv)
        means = np.add.reduceat(values[order], starts, axis=0) / counts[:, None]
        usable &= np.isfinite(penalties)
        weights = solve(means, np.where(usable, penalties, 1.0))
        return np.where(usable, weights, np.float32(np.nan))

    out = {}
    for row, layer in enumerate(design.layers):
        solve, middle, scale, dual = ridge_weights(design.load(layer), counts, pca=pca)
        size = len(cv.stimuli) if dual else len(middle)
        blocks = []
        for first in range(0, responses.n_voxels, voxel_batch):
            last = min(first + voxel_batch, responses.n_voxels)
            made = dask.delayed(one, pure=False)(solve, alpha[row, first:last], first, last)
            shape = (size, last - first)
            blocks.append(dask.array.from_delayed(made, shape, dtype=np.float32))
        values = dask.array.concatenate(blocks, axis=1)
        coords: dict = {axis: ("voxel", responses.coords[axis]) for axis in "ijk"}
        if dual:
            coords["stimulus"] = np.array(cv.stimuli, dtype=object)
        out[layer] = xr.Dataset(
            {
                "dual" if dual else "weight": (("stimulus" if dual else "unit", "voxel"), values),
                "centre": ("unit", middle),
                "scale": ("unit", scale),
            },
            coords=coords,
            attrs={
                **{key: responses.attrs[key] for key in ("affine", "shape", "space")},
                "subject": responses.subject,
                "task": responses.task,
                "model": design.model,
                "layer": layer,
                "pca": pca,
            },
        )
    return out


def fit_weights(
    *,
    responses: Path,
    features: Path,
    encoding: Path,
    out: Path,
    cross_validation: Mapping[str, Any],
    delays: Sequence[float] | None = None,
    resampling: str = "average",
    gap: float = 8.0,
    voxel_batch: int = 1024,
    seed: int = 0,
    threads: int = 1,
    code: str = "",
) -> Path:
    """Write the weights of a fit to all samples, at the penalties that the folds chose.

    Parameters
    ----------
    responses, features
        Stores that `fit_encoding` was given.
    encoding
        The store that it made: penalties, and whether features are reduced.
    out
        The store of weights, one group a layer.
    cross_validation, delays, resampling, gap, seed
        As of `fit_encoding`.
    voxel_batch
        Voxels that are worked on together.
    threads
        Cores.
    code
        Code version, for the manifest.

    Returns
    -------
    Path
        The manifest of the store.
    """
    opened = open_responses(responses)
    in_time = {"delays": delays, "resampling": resampling, "gap": gap}
    design = design_of(
        opened,
        features,
        cross_validation=cross_validation,
        seed=seed,
        **(in_time if opened.kind == "volumes" else {}),
    )
    chosen = store.open(encoding, "encoding")
    alpha = chosen["alpha"].sel(layer=list(design.layers)).values
    pca = chosen.attrs["pca"]
    with deterministic(threads), dask.config.set(scheduler="synchronous"):
        made = weight_datasets(opened, design, alpha, pca=pca, voxel_batch=voxel_batch)
        sources = [responses, features, encoding]
        return store.write(made, out, spec="encoding_weights", sources=sources, code=code)
