"""The responses of one subject: how strong and how reliable they are, on the brain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from isocortex.report.brain import Grid, Grounds, mosaic
from isocortex.report.drawing import ACCENT, MUTED, WARM, new_figure, raster_uri
from isocortex.report.options import ReportOptions
from isocortex.report.page import Heading, Note, Picture, Table, capital, interval, join, number
from isocortex.report.subject_estimator import read_choices
from isocortex.report.wording import voxel_reason

_RANKS = 50
"""Groups of voxels that confidence is drawn for."""


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
        if "n_repeats" in dataset:
            n_trials = int(np.asarray(dataset["n_repeats"].values).sum())
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
                + ", shown where |z| ≥ 3.1.",
            ),
            (
                "Variance explained by the design",
                dataset["r2"].values,
                "R²",
                "viridis",
                None,
                "Share of the variance left by drift and confounds"
                + (" (and noise components)" if read_choices(dataset) else "")
                + " that the trials explain, within the runs that the design was fitted to.",
            ),
            (
                "Noise-ceiling signal-to-noise ratio",
                dataset["ncsnr"].values,
                "ncsnr",
                "viridis",
                None,
                "Standard deviation of the signal over that of the noise of a single trial, from "
                "repeats of a stimulus (Allen et al. 2022)." + _surely(dataset, "ncsnr"),
            ),
            (
                "Noise ceiling",
                100 * dataset["noise_ceiling"].values,
                "% of variance",
                "viridis",
                None,
                "Share of the variance of the mean over repeats that any model could explain."
                + _surely(dataset, "noise_ceiling"),
            ),
        ]
        if "reliability" in dataset:
            halves = "half" in dataset
            measures.append(
                (
                    "Split-half reliability",
                    dataset["reliability"].values,
                    "split-half r",
                    "RdBu_r",
                    (-1.0, 1.0),
                    "Correlation over stimuli of the mean responses "
                    + (
                        "in the two halves, which were estimated without each other."
                        if halves
                        else "to their odd and to their even repeats."
                    )
                    + " It is that of half of the repeats; the mean over all has 2 r / (1 + r).",
                )
            )
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
                    else "fewer than two stimuli repeat"
                    if label in ("ncsnr", "% of variance")
                    else "fewer than three stimuli repeat"
                    if label == "split-half r"
                    else "the store holds no value"
                )
                pictures.append(Note(f"{title}: no map, because {reason}."))
                continue
            fixed = limits is not None
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
                    f"{ground.name}, z in mm, left is left"
                    + (
                        "."
                        if fixed
                        else "; colours reach to the 98th percentile of |z|."
                        if label.startswith("z")
                        else "; colours span the 2nd to 98th percentile."
                    ),
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
        blocks += confidence_blocks(dataset)
    return blocks


def _surely(dataset: xr.Dataset, name: str) -> str:
    """How many voxels' interval excludes 0, and the median with its interval's median ends."""
    if f"{name}_low" not in dataset:
        return ""
    low, high = (np.asarray(dataset[f"{name}_{end}"].values, float) for end in ("low", "high"))
    known = np.isfinite(low) & np.isfinite(high)
    if not known.any():
        return ""
    scale, unit = (100, "%") if name == "noise_ceiling" else (1, "")
    ends = interval(*(scale * float(np.median(v[known])) for v in (low, high)))
    middle = number(scale * float(np.median(np.asarray(dataset[name].values, float)[known])))
    over = int((low[known] > 0).sum())
    return (
        f" Its 95% interval lies above 0 in {over:,} of {int(known.sum()):,} voxels "
        f"({100 * over / known.sum():.1f}%; without any signal 2.5% would by chance); median "
        f"{middle}{unit}, of the intervals' ends {ends}{unit}."
    )


def confidence_blocks(dataset: xr.Dataset) -> list[Any]:
    """Draw how surely signal-to-noise ratio, noise ceiling and reliability are known.

    Parameters
    ----------
    dataset
        Betas store.

    Returns
    -------
    list
        A figure with a panel for each that the store has; empty where it has none.
    """
    ranked = [
        (name, scale, label)
        for name, scale, label in (
            ("ncsnr", 1, "ncsnr"),
            ("noise_ceiling", 100, "noise ceiling, % of variance"),
        )
        if f"{name}_low" in dataset and np.isfinite(dataset[f"{name}_low"].values).any()
    ]
    reliability = np.array([])
    if "reliability" in dataset:
        reliability = np.asarray(dataset["reliability"].values, float)
        reliability = reliability[np.isfinite(reliability)]
    n_panels = len(ranked) + bool(reliability.size)
    if not n_panels:
        return []
    figure = new_figure(11.0 * n_panels / 3, 2.9)
    panels = list(np.atleast_1d(figure.subplots(1, n_panels)))
    said = []
    for (name, scale, label), axis in zip(ranked, panels):
        estimate, low, high = (
            scale * np.asarray(dataset[f"{name}{end}"].values, float)
            for end in ("", "_low", "_high")
        )
        known = np.flatnonzero(np.isfinite(estimate) & np.isfinite(low) & np.isfinite(high))
        order = known[np.argsort(estimate[known], kind="stable")]
        groups = np.array_split(order, min(len(order), _RANKS))
        rank = [100 * (n + 0.5) / len(groups) for n in range(len(groups))]
        middle = [[float(np.median(v[g])) for g in groups] for v in (estimate, low, high)]
        axis.fill_between(rank, middle[1], middle[2], color=ACCENT, alpha=0.22, linewidth=0)
        axis.plot(rank, middle[0], color=ACCENT, linewidth=1.4)
        axis.set(xlabel="voxels, % from lowest to highest", ylabel=label)
        axis.set_xlim(0, 100)
        axis.set_ylim(bottom=0)
    if ranked:
        said.append(
            f"{_RANKS} groups of equally many voxels in ascending order of "
            f"{join([label.partition(',')[0] for _, _, label in ranked])}: median (line) and "
            "median ends of the 95% interval (band)"
        )
    if reliability.size:
        axis = panels[-1]
        bins = np.linspace(-1, 1, 41)
        axis.hist(reliability, bins=bins, color=ACCENT)
        axis.axvline(0, color=MUTED, linewidth=0.7)
        middle = float(np.median(reliability))
        axis.axvline(middle, color=WARM, linewidth=1.4)
        axis.set(xlabel="split-half reliability, r", ylabel="voxels")
        axis.set_xlim(-1, 1)
        axis.set_xticks([-1, -0.5, 0, 0.5, 1])
        said.append(
            f"split-half reliability of {reliability.size:,} voxels, line at the median "
            f"({number(middle)})"
        )
    text = "; ".join(said)
    intervals = (
        " Intervals are those of a random-effects analysis of variance over repeats (normal noise, "
        "independent between trials)."
        if ranked
        else ""
    )
    return [
        Picture(
            [raster_uri(figure)],
            f"Panels of {text}.",
            "How surely signal and noise are told apart",
            f"{capital(text)}.{intervals}",
        )
    ]
