"""The designs of one subject's runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from isocortex.report.drawing import (
    category_colours,
    new_figure,
    raster_uri,
)
from isocortex.report.matrices import order_stimuli
from isocortex.report.page import Heading, Note, Paragraph, Picture, Table, count, number


def design_blocks(opened: Sequence[xr.Dataset]) -> list[Any]:
    blocks: list[Any] = []
    for dataset in opened:
        task = str(dataset.attrs["task"])
        if len(opened) > 1:
            blocks.append(Heading(f"Task {task}"))
        if dataset.attrs.get("methods"):
            blocks.append(Paragraph(str(dataset.attrs["methods"])))
        blocks.append(_design_table(dataset))
        blocks.append(_design_figure(dataset))
    return blocks


def _run_names(dataset: xr.Dataset) -> list[str]:
    return list(dict.fromkeys(str(name) for name in dataset["run"].values))


def _design_table(dataset: xr.Dataset) -> Table:
    told = dataset.attrs.get("design") or []
    told = {str(run["run"]): run for run in told if isinstance(run, Mapping) and "run" in run}
    stimuli = np.asarray(dataset["stimulus"].values).astype(str)
    runs = np.asarray(dataset["run"].values).astype(str)
    onsets = np.asarray(dataset["onset"].values, dtype=float)
    volumes = np.asarray(dataset["time_run"].values).astype(str)
    rows = []
    for name in _run_names(dataset):
        inside = runs == name
        gaps = np.diff(np.sort(onsets[inside]))
        info = told.get(name, {})
        rows.append(
            [
                name,
                info.get("n_volumes", int((volumes == name).sum()) or "n/a"),
                int(inside.sum()),
                len(set(stimuli[inside])),
                number(float(np.median(gaps)) if gaps.size else np.nan, 2),
                info.get("n_regressors", "n/a"),
                len(info["confounds"]) if "confounds" in info else "n/a",
                info.get("degrees_of_freedom", "n/a"),
                number(info.get("condition_number", np.nan), 1),
            ]
        )
    repeats = np.unique(stimuli, return_counts=True)[1]
    shown = count(int(repeats.min()), "time")
    if repeats.min() != repeats.max():
        shown = f"{repeats.min()} to {repeats.max()} times"
    return Table(
        f"Design of task {dataset.attrs['task']}",
        (
            "Run",
            "Volumes",
            "Trials",
            "Stimuli",
            "Median onset gap, s",
            "Regressors",
            "Confounds",
            "Residual d.f.",
            "Condition number",
        ),
        rows,
        f"{len(repeats)} stimuli, each shown {shown} over all runs; "
        f"{float(dataset.attrs['TR']):g} s a volume.",
    )


def _design_figure(dataset: xr.Dataset) -> Picture | Note:
    """Draw when the trials of each run were, and the design matrix of the first run."""
    if not np.isfinite(dataset["onset"].values).any():
        return Note("The responses came without onsets, so the trials are not drawn.")
    runs = _run_names(dataset)
    run = np.asarray(dataset["run"].values).astype(str)
    onset = np.asarray(dataset["onset"].values, dtype=float)
    duration = np.asarray(dataset["duration"].values, dtype=float)
    names = np.asarray(dataset["stimulus"].values).astype(str)
    condition = dict(zip(names, np.asarray(dataset["condition"].values).astype(str)))
    order = order_stimuli(names, condition)
    group = (
        dict(zip(order.names, order.categories))
        if order.categories
        else dict.fromkeys(names, "trial")
    )
    colours = category_colours([group[name] for name in order.names])
    figure = new_figure(11.0, max(3.6, 1.2 + 0.3 * min(len(runs), 24)))
    # Responses made elsewhere come without a design matrix.
    if dataset["design"].size:
        left, right = figure.subplots(1, 2, width_ratios=(1.45, 1))
    else:
        left, right = figure.subplots(), None
    shown = runs[:24]
    for row, name in enumerate(shown):
        for category, colour in colours.items():
            inside = (run == name) & np.array([group[stimulus] == category for stimulus in names])
            width = np.maximum(duration[inside], 0.4)
            left.broken_barh(
                list(zip(onset[inside], width)), (row - 0.36, 0.72), facecolors=colour, linewidth=0
            )
    left.set_yticks(range(len(shown)), [f"run {name}" for name in shown])
    left.set_ylim(len(shown) - 0.4, -0.6)
    left.tick_params(axis="y", length=0)
    left.set_xlabel("time in the run, s")
    left.set_title("Trials")
    if len(colours) <= 12 and len(colours) > 1:
        handles = [
            left.scatter([], [], marker="s", color=colour, label=name)
            for name, colour in colours.items()
        ]
        figure.legend(
            handles=handles, loc="outside lower left", ncols=min(len(colours), 8), handlelength=1
        )
    matrix = np.asarray(dataset["design"].values, dtype=float)
    more = f" The first 24 of {len(runs)} runs are shown." if len(runs) > 24 else ""
    trials = (
        f"onset and duration of {len(onset)} trials in {count(len(runs), 'run')}"
        + (f", coloured by category ({order.source})" if order.categories else "")
        + f".{more}"
    )
    if right is None:
        return Picture(
            [raster_uri(figure)],
            f"Bars mark {len(onset)} trials in {len(runs)} runs.",
            "Trials",
            f"{trials[0].upper()}{trials[1:]}",
        )
    times = np.asarray(dataset["frame_time"].values, dtype=float)
    peak = np.abs(matrix).max(axis=0)
    drawn = right.imshow(
        matrix / np.where(peak > 0, peak, 1),
        aspect="auto",
        cmap="RdBu_r",
        vmin=-1,
        vmax=1,
        interpolation="nearest",
        extent=(0.5, matrix.shape[1] + 0.5, times[-1], times[0]),
    )
    right.set_xlabel("regressor")
    right.set_ylabel("time, s")
    right.set_title(f"Design matrix, run {runs[0]}")
    bar = figure.colorbar(drawn, ax=right, fraction=0.04, pad=0.02)
    bar.set_label("share of the regressor's peak")
    bar.outline.set_visible(False)
    n_trials = int((run == runs[0]).sum())
    return Picture(
        [raster_uri(figure)],
        f"Left: bars mark {len(onset)} trials in {len(runs)} runs. Right: design matrix of "
        f"{matrix.shape[0]} volumes and {matrix.shape[1]} regressors.",
        "Trials and design matrix",
        f"Left: {trials} Right: the design matrix of run {runs[0]}, {matrix.shape[0]} volumes by "
        f"{matrix.shape[1]} regressors (the {n_trials} trials, then confounds, drift and "
        "constant), each scaled to its peak.",
    )
