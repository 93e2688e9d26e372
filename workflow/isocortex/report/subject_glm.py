"""The responses of one subject: how strong and how reliable they are, on the brain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from isocortex.report.brain import Grid, Grounds, mosaic
from isocortex.report.options import ReportOptions
from isocortex.report.page import Heading, Note, Picture, Table, join, number
from isocortex.report.wording import voxel_reason


def trial_z(dataset: xr.Dataset) -> np.ndarray:
    """Stimulus against rest: one-sample t of the single-trial betas, as z.

    Parameters
    ----------
    dataset
        Betas store.

    Returns
    -------
    numpy.ndarray
        Shape (voxel,). Trials are taken as independent, so z describes and does not test.
    """
    from scipy.stats import norm, t

    beta = dataset["beta"]
    n = beta.sizes["trial"]
    if n < 2:
        return np.full(beta.sizes["voxel"], np.nan)
    mean = beta.mean("trial").values.astype(float)
    spread = beta.std("trial", ddof=1).values.astype(float)
    with np.errstate(divide="ignore", invalid="ignore"):
        statistic = mean / (spread / np.sqrt(n))
    # Log tails keep z finite where the p-value underflows.
    tail = t.logsf(np.abs(statistic), n - 1)
    z = -norm.ppf(np.exp(np.clip(tail, -700, 0)))
    return np.where(np.isfinite(statistic), np.sign(statistic) * z, np.nan)


def response_blocks(
    opened: Sequence[xr.Dataset], grounds: Grounds, choices: ReportOptions
) -> list[Any]:
    blocks: list[Any] = []
    for dataset in opened:
        if len(opened) > 1:
            blocks.append(Heading(f"Task {dataset.attrs['task']}"))
        grid = Grid.of(dataset)
        ground = grounds.of(grid)
        z = np.asarray(dataset["z_stimulus"].values, dtype=float)
        fitted = bool(np.isfinite(z).any())
        if not fitted:
            z = trial_z(dataset)
        n_trials = dataset.sizes["trial"]
        measures: list[tuple[str, np.ndarray, str, str, tuple[float, float] | None, str]] = [
            (
                "Temporal signal-to-noise ratio",
                dataset["tsnr"].values,
                "tSNR",
                "magma",
                None,
                "Mean over standard deviation of each voxel's time series without drift.",
            ),
            (
                "Response to stimuli against rest",
                np.where(np.abs(z) >= 3.1, z, np.nan),
                "z, stimulus against rest",
                "RdBu_r",
                None,
                (
                    f"Mean response to {n_trials} trials, fixed effects over runs, as z"
                    if fitted
                    else f"One-sample t over {n_trials} single-trial responses, as z (trials taken "
                    "as independent: the map describes and does not test)"
                )
                + f", shown where |z| ≥ 3.1 ({int((np.abs(z) >= 3.1).sum()):,} voxels).",
            ),
            (
                "Variance explained by the design",
                dataset["r2"].values,
                "R²",
                "viridis",
                None,
                "Share of the variance left by drift and confounds that the trials explain, within "
                "the runs that the design was fitted to.",
            ),
            (
                "Noise-ceiling signal-to-noise ratio",
                dataset["ncsnr"].values,
                "ncsnr",
                "viridis",
                None,
                "Standard deviation of the signal over that of the noise of a single trial, from "
                "repeats of a stimulus (Allen et al. 2022).",
            ),
            (
                "Noise ceiling",
                100 * dataset["noise_ceiling"].values,
                "% of variance",
                "viridis",
                None,
                "Share of the variance of the mean over repeats that any model could explain.",
            ),
        ]
        rows = []
        pictures: list[Any] = []
        for title, values, label, cmap, limits, caption in measures:
            values = np.asarray(values, dtype=float)
            finite = values[np.isfinite(values)]
            whole = z[np.isfinite(z)] if label.startswith("z") else finite
            if whole.size:
                rows.append(
                    [
                        title,
                        label,
                        *(number(v, 2) for v in np.percentile(whole, [5, 50, 95])),
                        number(float(whole.max()), 2),
                        f"{whole.size:,}",
                    ]
                )
            if not finite.size:
                reason = (
                    "no voxel passes the threshold"
                    if label.startswith("z") and whole.size
                    else "no stimulus repeats"
                    if label in ("ncsnr", "% of variance")
                    else "the store holds no value"
                )
                pictures.append(Note(f"{title}: no map, because {reason}."))
                continue
            if label.startswith("z"):
                reach = max(float(np.percentile(np.abs(finite), 98)), 3.2)
                limits = (-reach, reach)
            pictures.append(
                Picture(
                    [
                        mosaic(
                            grid,
                            values,
                            ground=ground,
                            slices=choices.slices,
                            label=label,
                            cmap=cmap,
                            limits=limits,
                        )
                    ],
                    f"Axial slices of {label}: median {number(float(np.median(finite)))}, highest "
                    f"{number(float(finite.max()))} in {finite.size:,} voxels.",
                    title,
                    f"{caption} {finite.size:,} voxels, axial slices in {grid.space} space on "
                    f"{ground.name}, z in mm, left is left; colours span the 2nd to 98th "
                    "percentile.",
                )
            )
        left_out = {
            key: int(value)
            for key, value in dataset.attrs.items()
            if key.startswith("n_voxels_") and key != "n_voxels_mask"
        }
        words = [f"{value:,} {voxel_reason(key)}" for key, value in left_out.items()]
        blocks.append(
            Table(
                f"Responses of task {dataset.attrs['task']}",
                ("Measure", "Unit", "5%", "Median", "95%", "Highest", "Voxels"),
                rows,
                f"Over {dataset.sizes['voxel']:,} voxels. Voxels left out: "
                + (join(words) if words else "none recorded")
                + ".",
            )
        )
        blocks += pictures
    return blocks
