"""Responses that were estimated elsewhere, taken into a betas store."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import xarray as xr

from isocortex import bids, parallel, store
from isocortex.errors import InputError
from isocortex.glm.images import check_grid, open_image, read_volume_groups, read_volumes
from isocortex.glm.noise_ceiling import describe_repeats_blocks
from isocortex.glm.scratch import RunBlocks, lazy_columns
from isocortex.jobs import working_folder

log = logging.getLogger(__name__)

_MISSING = {"", "n/a"}


def import_betas(
    *,
    image: str | Path,
    events: str | Path,
    out: str | Path,
    subject: str,
    task: str,
    space: str,
    mask: str | Path | None = None,
    code: str = "",
    threads: int = 1,
) -> Path:
    """Take single-trial responses from an image into a betas store.

    Parameters
    ----------
    image
        4D NIfTI, one volume a trial, percent signal change (its scale factors are applied).
    events
        Table with a row a volume: ``stimulus`` and ``run``, and where known ``condition``,
        ``session``, ``onset`` and ``duration`` (s).
    out
        The betas store to write.
    subject, task, space
        Labels.
    mask
        Voxels to take; without it all that are neither 0 nor NaN throughout.
    code
        Code version, for the provenance.
    threads
        Cores to use.

    Returns
    -------
    pathlib.Path
        The store's manifest.

    Raises
    ------
    InputError
        Where rows and volumes differ in number, the table lacks a column or a value, grids
        differ, or no voxel is left.

    Notes
    -----
    What only a fit can give is not known: ``r2``, ``tsnr``, ``z_stimulus`` and ``beta_se`` are
    NaN, ``hrf_index`` is -1, and there are no residuals (``time`` has length 0) and no design.
    Crossnobis without residuals needs another noise normalisation.
    """
    series = open_image(image, n_dims=4)
    n_trials = series.shape[3]
    table = _read_trials(events, image, n_trials)
    if mask is None:
        chosen = np.ones(series.shape[:3], dtype=bool)
    else:
        mask_image = open_image(mask, n_dims=3)
        check_grid(mask_image, mask, series, image)
        chosen = read_volumes(mask_image, mask) > 0
        if not chosen.any():
            raise InputError(f"{mask} is empty: give a mask with voxels")

    with working_folder("betas", out) as scratch:
        beta = RunBlocks(Path(scratch) / "beta", [n_trials], int(chosen.sum()))
        for first, values in read_volume_groups(image, chosen):
            beta.write(0, slice(0, beta.n_voxels), values, first_row=first)
        nan, constant, outside = (np.zeros(beta.n_voxels, dtype=bool) for _ in range(3))
        for part in beta.blocks:
            block = beta.read(0, part)
            finite = np.isfinite(block)
            flat = finite.all(axis=0) & (np.ptp(block, axis=0) == 0)
            if mask is None:
                empty = ~np.any(finite & (block != 0), axis=0)
                outside[part] = empty
                flat &= ~empty
                nan[part] = ~finite.all(axis=0) & ~empty
            else:
                nan[part] = ~finite.all(axis=0)
            # One trial does not vary; that is no sign of a dead voxel.
            constant[part] = flat if n_trials > 1 else False
        keep = np.flatnonzero(~(nan | constant | outside))
        if not keep.size:
            raise InputError(
                f"{image} has no usable voxel ({nan.sum()} with NaN, {constant.sum()} constant, "
                f"{outside.sum()} empty): check the image and its mask"
            )
        blocks = lazy_columns(beta, keep)
        described = describe_repeats_blocks(
            blocks, list(table["stimulus"]), list(table["session"]), threads=threads
        )
        unknown = np.full(keep.size, np.nan, dtype=np.float32)
        i, j, k = (axis[keep].astype(np.int32) for axis in np.nonzero(chosen))
        dataset = xr.Dataset(
            {
                "beta": (("trial", "voxel"), lazy_columns(beta, keep, spec="betas")),
                "beta_se": ("trial", np.full(n_trials, np.nan)),
                "residual": (("time", "voxel"), np.empty((0, keep.size), dtype=np.float32)),
                "hrf_index": ("voxel", np.full(keep.size, -1, dtype=np.int16)),
                "design": (("volume", "regressor"), np.empty((0, 0), dtype=np.float32)),
                **{name: ("voxel", values) for name, values in described.items()},
                **{name: ("voxel", unknown.copy()) for name in ("r2", "tsnr", "z_stimulus")},
            },
            coords={
                **{name: ("trial", values) for name, values in table.items()},
                "time_run": ("time", np.array([], dtype=object)),
                "regressor": ("regressor", np.array([], dtype=object)),
                "frame_time": ("volume", np.array([], dtype=np.float64)),
                "i": ("voxel", i),
                "j": ("voxel", j),
                "k": ("voxel", k),
            },
            attrs={
                "affine": np.asarray(series.affine, dtype=float).tolist(),
                "shape": [int(n) for n in series.shape[:3]],
                "space": space,
                "TR": 0.0,
                "estimator": "imported",
                "subject": subject,
                "task": task,
                "hrf": "unknown",
                "drift": "unknown",
                "trials": "single",
                "stimulus_column": "stimulus",
                "n_voxels_mask": int(chosen.sum() - outside.sum()),
                "n_voxels_nan": int(nan.sum()),
                "n_voxels_constant": int(constant.sum()),
                "n_voxels_nonpositive_mean": 0,
                "degrees_of_freedom": 0,
                "design": [],
                "methods": f"Responses to {n_trials} trials were estimated elsewhere and imported.",
            },
        )
        log.info("%d trials, %d voxels imported", n_trials, keep.size)
        sources = [image, events] if mask is None else [image, events, mask]
        with parallel.dask_workers(threads):
            return store.write(dataset, out, spec="betas", sources=sources, code=code)


def _read_trials(events: str | Path, image: str | Path, n_trials: int) -> dict[str, np.ndarray]:
    """Return the columns of the table of trials as a betas store holds them."""
    rows = bids.read_table(events)
    if len(rows) != n_trials:
        raise InputError(
            f"{events} has {len(rows)} rows for {n_trials} volumes of {image}: give a row a volume"
        )
    for name in ("stimulus", "run"):
        if name not in rows[0]:
            raise InputError(f"{events} has no column {name}: add it")
        for number, row in enumerate(rows, start=2):
            if row[name].strip() in _MISSING:
                raise InputError(f"{events}, line {number}: {name} is empty: fill it in")

    def texts(name: str, default: str | None = None) -> list[str]:
        found = [row.get(name, "").strip() for row in rows]
        found = ["" if text in _MISSING else text for text in found]
        if default is not None:
            found = [text or row[default].strip() for text, row in zip(found, rows, strict=True)]
        return found

    def seconds(name: str) -> np.ndarray:
        try:
            return np.array([float(text or "nan") for text in texts(name)])
        except ValueError as error:
            raise InputError(f"{events}, column {name}: {error}: give seconds or n/a") from None

    session = texts("session")
    run = [f"ses-{s}_run-{r}" if s else r for s, r in zip(session, texts("run"), strict=True)]
    return {
        "stimulus": np.array(texts("stimulus"), dtype=object),
        "condition": np.array(texts("condition", "stimulus"), dtype=object),
        "session": np.array(session, dtype=object),
        "run": np.array(run, dtype=object),
        "onset": seconds("onset"),
        "duration": seconds("duration"),
    }
