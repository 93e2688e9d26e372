"""The designs of one subject's runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from isocortex.report.drawing import (
    category_colours,
    new_figure,
    raster_uri,
)
from isocortex.report.matrices import order_stimuli
from isocortex.report.page import Heading, Note, Paragraph, Picture, Table, capital, count, number
from isocortex.report.subject_estimator import read_choices


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
    averaged = "n_repeats" in dataset
    half = {}
    if "half" in dataset and not averaged:
        half = {run: str(int(n)) for run, n in zip(runs, dataset["half"].values)}
    rows = []
    # Averaged betas belong to sessions: the runs are those that were fitted.
    for name in list(told) if averaged and told else _run_names(dataset):
        inside = runs == name
        gaps = np.diff(np.sort(onsets[inside]))
        gap = float(np.median(gaps)) if gaps.size else np.nan
        info = told.get(name, {})
        rows.append(
            [
                name,
                *([half[name]] if half else []),
                info.get("n_volumes", int((volumes == name).sum()) or "n/a"),
                info.get("n_trials", "n/a") if averaged else int(inside.sum()),
                *([] if averaged else [len(set(stimuli[inside])), number(gap, 2)]),
                info.get("n_regressors", "n/a"),
                len(info["confounds"]) if "confounds" in info else "n/a",
                info.get("degrees_of_freedom", "n/a"),
                number(info.get("condition_number", np.nan), 1),
            ]
        )
    count_of: dict[str, int] = {}
    each = dataset["n_repeats"].values if averaged else np.ones(len(stimuli), int)
    for name, n in zip(stimuli, each):
        count_of[name] = count_of.get(name, 0) + int(n)
    repeats = np.array(list(count_of.values()))
    shown = count(int(repeats.min()), "time")
    if repeats.min() != repeats.max():
        shown = f"{repeats.min()} to {repeats.max()} times"
    estimator = str(dataset.attrs.get("estimator") or "")
    more = f" Estimator: {estimator}." if estimator and told else ""
    if averaged:
        more += (
            f" Betas are means over the repeats of a stimulus: {len(stimuli)} betas of "
            f"{repeats.sum()} trials."
        )
    if half:
        more += " Halves: odd and even runs, which share no information."
    return Table(
        f"Design of task {dataset.attrs['task']}",
        (
            "Run",
            *(["Half"] if half else []),
            "Volumes",
            "Trials",
            *([] if averaged else ["Stimuli", "Median onset gap, s"]),
            "Regressors",
            "Confounds",
            "Residual d.f.",
            "Condition number",
        ),
        rows,
        f"{len(repeats)} stimuli, each shown {shown} over all runs; "
        f"{float(dataset.attrs['TR']):g} s a volume.{more}",
    )


def _design_figure(dataset: xr.Dataset) -> Picture | Note:
    """Draw when the trials of each run were, and the design matrix of the first run."""
    # Means over repeats have no time in a run, responses made elsewhere no design matrix.
    with_trials = "n_repeats" not in dataset and np.isfinite(dataset["onset"].values).any()
    with_design = bool(dataset["design"].size)
    if not with_trials and not with_design:
        return Note("The responses came without onsets, so the trials are not drawn.")
    runs = _run_names(dataset)
    height = max(3.6, 1.2 + 0.3 * min(len(runs), 24)) if with_trials else 3.6
    figure = new_figure(11.0 if with_trials else 5.6, height)
    if with_trials and with_design:
        left, right = figure.subplots(1, 2, width_ratios=(1.45, 1))
    else:
        left = right = figure.subplots()
    alt, caption = [], []
    if with_trials:
        caption.append(_draw_trials(dataset, runs, figure, left))
        alt.append(f"bars mark {dataset.sizes['trial']} trials in {len(runs)} runs.")
    if with_design:
        caption.append(_draw_design(dataset, figure, right))
        n_volumes, n_regressors = dataset["design"].shape
        alt.append(f"design matrix of {n_volumes} volumes and {n_regressors} regressors.")
    if len(caption) == 2:
        alt, caption = (
            [f"{side}: {text}" for side, text in zip(("Left", "Right"), texts)]
            for texts in (alt, caption)
        )
    titles = [
        title for title, there in (("Trials", with_trials), ("design matrix", with_design)) if there
    ]
    return Picture(
        [raster_uri(figure)],
        capital(" ".join(alt)),
        capital(" and ".join(titles)),
        capital(" ".join(caption)),
        narrow=not with_trials,
    )


def _draw_trials(dataset: xr.Dataset, runs: Sequence[str], figure: Figure, axes: Axes) -> str:
    """Draw the trials of each run as bars, and say so."""
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
    shown = runs[:24]
    for row, name in enumerate(shown):
        for category, colour in colours.items():
            inside = (run == name) & np.array([group[stimulus] == category for stimulus in names])
            width = np.maximum(duration[inside], 0.4)
            axes.broken_barh(
                list(zip(onset[inside], width)), (row - 0.36, 0.72), facecolors=colour, linewidth=0
            )
    axes.set_yticks(range(len(shown)), [f"run {name}" for name in shown])
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("time in the run, s")
    axes.set_title("Trials")
    if len(colours) <= 12 and len(colours) > 1:
        handles = [
            axes.scatter([], [], marker="s", color=colour, label=name)
            for name, colour in colours.items()
        ]
        figure.legend(
            handles=handles, loc="outside lower left", ncols=min(len(colours), 8), handlelength=1
        )
    more = f" The first 24 of {len(runs)} runs are shown." if len(runs) > 24 else ""
    return (
        f"onset and duration of {len(onset)} trials in {count(len(runs), 'run')}"
        + (f", coloured by category ({order.source})" if order.categories else "")
        + f".{more}"
    )


def _draw_design(dataset: xr.Dataset, figure: Figure, axes: Axes) -> str:
    """Draw the design matrix of the first run, and say so."""
    told = dataset.attrs.get("design") or []
    run = np.asarray(dataset["run"].values).astype(str)
    first, n_trials = run[0], int((run == run[0]).sum())
    if "n_repeats" in dataset and told:
        first, n_trials = str(told[0]["run"]), int(told[0]["n_trials"])
    matrix = np.asarray(dataset["design"].values, dtype=float)
    times = np.asarray(dataset["frame_time"].values, dtype=float)
    peak = np.abs(matrix).max(axis=0)
    drawn = axes.imshow(
        matrix / np.where(peak > 0, peak, 1),
        aspect="auto",
        cmap="RdBu_r",
        vmin=-1,
        vmax=1,
        interpolation="nearest",
        extent=(0.5, matrix.shape[1] + 0.5, times[-1], times[0]),
    )
    axes.set_xlabel("regressor")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylabel("time, s")
    axes.set_title(f"Design matrix, run {first}")
    bar = figure.colorbar(drawn, ax=axes, fraction=0.04, pad=0.02)
    bar.set_label("share of the regressor's peak")
    bar.outline.set_visible(False)
    chosen = (
        " The estimator puts each voxel's own response in its place."
        if read_choices(dataset)
        else ""
    )
    return (
        f"the design matrix of run {first}, {matrix.shape[0]} volumes by {matrix.shape[1]} "
        f"regressors (the {n_trials} trials, then confounds, drift and constant), each scaled to "
        + (
            f"its peak; trials with the {dataset.attrs['hrf']} response.{chosen}"
            if chosen
            else "its peak."
        )
    )
