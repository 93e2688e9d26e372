"""Pictures over time: head motion, and the carpet with what happened at the same moments."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from isocortex.preprocess.figures.book import COURSES, INK, MUTED

OUTLIER = "#d55e00"
_MOST_VOXELS = 24_000
# rows of a carpet: label, name, rows, colour of its band (Okabe and Ito 2008)
TISSUES = (
    (1, "grey matter", 150, "#0072b2"),
    (2, "white matter", 80, "#e69f00"),
    (3, "CSF", 40, "#56b4e9"),
    (4, "crown", 60, "#cc79a7"),
)


def marked(confounds: pd.DataFrame, name: str) -> np.ndarray:
    """Volumes that indicator columns name."""
    columns = confounds.filter(regex=rf"^{name}\d+$")
    return np.flatnonzero(columns.to_numpy().any(axis=1)) if columns.shape[1] else np.array([], int)


def _plain(axes: Axes, label: str) -> None:
    axes.set_ylabel(label, fontsize=10, color=INK)
    axes.tick_params(labelsize=9, colors=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.margins(x=0)


def _moments(axes: Axes, confounds: pd.DataFrame, repetition_time: float) -> None:
    """Bands behind a course at motion outliers and before the steady state."""
    for name, color in (("motion_outlier", OUTLIER), ("non_steady_state_outlier", MUTED)):
        for row in marked(confounds, name):
            axes.axvspan(
                *(row * repetition_time, (row + 1) * repetition_time),
                color=color,
                alpha=0.25,
                lw=0,
            )


def _course(
    axes: Axes,
    confounds: pd.DataFrame,
    column: str,
    label: str,
    repetition_time: float,
    threshold: float | None = None,
) -> None:
    time = (np.arange(len(confounds)) + 0.5) * repetition_time
    _moments(axes, confounds, repetition_time)
    values = confounds[column].to_numpy(float)
    if column == "global_signal":
        values = 100 * (values / values.mean() - 1)
    axes.plot(time, values, color=INK, lw=1)
    if threshold is not None:
        axes.axhline(threshold, color=OUTLIER, lw=0.9, ls=(0, (4, 3)))
        axes.set_ylim(0, 1.08 * max(threshold, float(np.nanmax(values, initial=0))))
    _plain(axes, label)
    axes.set_xlim(0, len(confounds) * repetition_time)


def motion_figure(
    confounds: pd.DataFrame,
    *,
    repetition_time: float,
    fd_threshold: float,
    dvars_threshold: float,
) -> Figure:
    """Pose of the head, framewise displacement and DVARS over time.

    Parameters
    ----------
    confounds
        The run's table.
    repetition_time
        Seconds.
    fd_threshold, dvars_threshold
        Drawn as lines; mm and standardised DVARS.
    """
    figure = Figure(figsize=(12, 6.6), dpi=95, layout="constrained")
    figure.get_layout_engine().set(h_pad=0.1)
    axes = figure.subplots(4, 1, sharex=True)
    time = (np.arange(len(confounds)) + 0.5) * repetition_time
    for name, color in zip("xyz", COURSES, strict=True):
        axes[0].plot(time, confounds[f"trans_{name}"], color=color, label=name, lw=1.3)
        axes[1].plot(time, np.degrees(confounds[f"rot_{name}"]), color=color, label=name, lw=1.3)
    _plain(axes[0], "translation (mm)")
    _plain(axes[1], "rotation (°)")
    for panel in axes[:2]:
        _moments(panel, confounds, repetition_time)
        panel.legend(
            loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=9, handlelength=1.2
        )
    _course(axes[2], confounds, "framewise_displacement", "FD (mm)", repetition_time, fd_threshold)
    _course(axes[3], confounds, "std_dvars", "DVARS (std.)", repetition_time, dvars_threshold)
    axes[3].set_xlabel("time (s)", fontsize=10, color=INK)
    figure.align_ylabels(axes)
    return figure


def carpet_rows(series: np.ndarray, n_rows: int) -> np.ndarray:
    """Courses of neighbouring voxels, detrended, standardised, averaged and standardised again.

    Parameters
    ----------
    series
        (voxel, time), neighbours one after the other.
    n_rows
        Rows wanted.

    Returns
    -------
    numpy.ndarray
        (at most n_rows, time).
    """
    time = np.linspace(-1, 1, series.shape[1])
    basis = np.linalg.qr(np.column_stack([np.ones_like(time), time, time**2]))[0]
    values = series - (series @ basis) @ basis.T
    values = values[values.std(axis=1) > 1e-6]
    if not len(values):
        return values
    values /= values.std(axis=1, keepdims=True)
    starts = np.unique(np.linspace(0, len(values), n_rows, endpoint=False).astype(int))
    rows = np.add.reduceat(values, starts, axis=0)
    return rows / np.maximum(rows.std(axis=1, keepdims=True), 1e-12)


def carpet_figure(
    series: Mapping[int, np.ndarray],
    confounds: pd.DataFrame,
    *,
    repetition_time: float,
    fd_threshold: float,
    dvars_threshold: float,
) -> Figure:
    """Voxels by tissue over time, under the displacement, DVARS and global signal.

    Parameters
    ----------
    series
        Label of a tissue in `TISSUES` to its courses (voxel, time).
    confounds
        The run's table.
    repetition_time
        Seconds.
    fd_threshold, dvars_threshold
        Drawn as lines.
    """
    figure = Figure(figsize=(12, 7.6), dpi=95)
    grid = figure.add_gridspec(
        4, 2, height_ratios=(1, 1, 1, 5), width_ratios=(0.012, 1), hspace=0.12, wspace=0.012,
        left=0.135, right=0.985, top=0.985, bottom=0.07,
    )  # fmt: skip
    for row, (column, label, threshold) in enumerate(
        (
            ("framewise_displacement", "FD (mm)", fd_threshold),
            ("std_dvars", "DVARS (std.)", dvars_threshold),
            ("global_signal", "global (%)", None),
        )
    ):
        axes = figure.add_subplot(grid[row, 1])
        if column in confounds:
            _course(axes, confounds, column, label, repetition_time, threshold)
        axes.set_ylabel("")
        axes.tick_params(labelbottom=False)
        # beside the names of the tissues, not beside the numbers
        style = {"fontsize": 10, "ha": "right", "va": "center", "color": INK}
        axes.text(-0.05, 0.5, label, transform=axes.transAxes, **style)
    blocks = []
    for label, name, n_rows, color in TISSUES:
        values = series.get(label)
        if values is None or not len(values):
            continue
        step = -(-len(values) * len(TISSUES) // _MOST_VOXELS)
        rows = carpet_rows(np.asarray(values[::step], np.float32), n_rows)
        if len(rows):
            blocks.append((name, color, rows))
    if not blocks:
        return figure
    axes, band = figure.add_subplot(grid[3, 1]), figure.add_subplot(grid[3, 0])
    picture = np.concatenate([rows for _, _, rows in blocks])
    duration = len(confounds) * repetition_time
    axes.imshow(
        picture,
        aspect="auto",
        cmap="gray",
        vmin=-2,
        vmax=2,
        interpolation="nearest",
        extent=(0, duration, len(picture), 0),
    )
    edges = np.cumsum([0, *(len(rows) for _, _, rows in blocks)])
    for edge in edges[1:-1]:
        axes.axhline(edge, color="white", lw=2)
    for row in marked(confounds, "motion_outlier"):
        axes.plot(
            (row + 0.5) * repetition_time,
            1.01,
            marker="v",
            ms=5,
            color=OUTLIER,
            transform=axes.get_xaxis_transform(),
            clip_on=False,
        )
    _plain(axes, "")
    axes.set_yticks([])
    axes.set_xlabel("time (s)", fontsize=10, color=INK)
    for (name, color, _), low, high in zip(blocks, edges[:-1], edges[1:], strict=True):
        band.axhspan(low, high, color=color, lw=0)
        band.text(-0.8, (low + high) / 2, name, ha="right", va="center", fontsize=10, color=INK)
    band.set(xlim=(0, 1), ylim=(len(picture), 0))
    band.axis("off")
    return figure
