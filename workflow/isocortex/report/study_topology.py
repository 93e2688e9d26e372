"""Topological RSA in the study's report: region identification and model layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from isocortex.report.comparison import (
    identification_figure,
)
from isocortex.report.matrices import (
    confusion_figure,
    threshold_grid_figure,
)
from isocortex.report.page import (
    Heading,
    Picture,
    Table,
    count,
    interval,
    number,
    p_value,
    percent,
)
from isocortex.report.study_findings import headline_statistic
from isocortex.report.wording import (
    level,
    resampled,
)


def topology_section(
    identification: Sequence[xr.Dataset],
    topology: Sequence[xr.Dataset],
) -> list[Any]:
    """Region identification and model layers by the geo-topological statistics."""
    blocks: list[Any] = []
    # What was not identified, and why, is among the flags.
    identified = [ds for ds in identification if np.isfinite(ds["accuracy"].values).any()]
    for dataset in identified:
        if len(identified) > 1:
            blocks.append(
                Heading(f"Identification: {dataset.attrs['measure']}, task {dataset.attrs['task']}")
            )
        blocks += _identification(dataset)
    for dataset in topology:
        blocks += _topology_models(dataset, several=len(topology) > 1)
    return blocks


def split_statistics(dataset: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Tell the cells of the threshold grid from the statistics that are compared by name.

    Returns
    -------
    grid, named
        Indices. The grid is every RGTM with finite thresholds; it is drawn as a grid where there
        are at least 6 cells, else its members are listed by name. Of the adjacencies the one
        whose level is nearest to the middle is listed, which no result has chosen.
    """
    names = [str(name) for name in dataset["statistic"].values]
    lower, upper = (np.asarray(dataset[key].values, dtype=float) for key in ("lower", "upper"))
    grid = np.array(
        [
            name.startswith("rgtm(") and np.isfinite(lower[i]) and np.isfinite(upper[i])
            for i, name in enumerate(names)
        ],
        dtype=bool,
    )
    if grid.sum() < 6:
        grid[:] = False
    adjacencies = np.flatnonzero([name.startswith("adjacency(") for name in names])
    left_out = np.zeros(len(names), dtype=bool)
    if adjacencies.size:
        left_out[adjacencies] = True
        left_out[adjacencies[np.abs(lower[adjacencies] - 0.5).argmin()]] = False
    return np.flatnonzero(grid), np.flatnonzero(~grid & ~left_out)


def _identification(dataset: xr.Dataset) -> list[Any]:
    names = [str(name) for name in dataset["statistic"].values]
    accuracy, low, high, p, ratio = (
        np.asarray(dataset[key].values, dtype=float)
        for key in ("accuracy", "accuracy_low", "accuracy_high", "p", "ratio")
    )
    by_subject = np.asarray(dataset["accuracy_subject"].values, dtype=float)
    chance = float(dataset.attrs["chance"])
    n_subjects, n_regions = dataset.sizes["subject"], dataset.sizes["region"]
    grid, named = split_statistics(dataset)
    # Statistics without a value, such as a nested choice among two subjects, are no figure.
    grid, named = (rows[np.isfinite(accuracy[rows])] for rows in (grid, named))
    corrected = np.asarray(dataset["p_corrected"].values, dtype=float)
    setting = (
        f"scale {dataset.attrs['scale']}, thresholds by {dataset.attrs['threshold']}, pool "
        f"{dataset.attrs['pool']}"
    )
    blocks: list[Any] = []
    if named.size:
        chosen = named[:24]
        blocks.append(
            Picture(
                [
                    identification_figure(
                        [names[i] for i in chosen],
                        accuracy[chosen],
                        low[chosen],
                        high[chosen],
                        by_subject[chosen],
                        chance=chance,
                    )
                ],
                "Share of regions identified by each summary statistic: "
                + "; ".join(f"{names[i]} {percent(accuracy[i])}" for i in chosen)
                + f"; chance {percent(chance)}.",
                "Region identification by summary statistic",
                f"Share of the {n_regions} regions of a left-out subject whose nearest centroid "
                "over the other "
                f"subjects is the right one. Points: mean over {count(n_subjects, 'subject')}; "
                + (
                    f"lines: {level(dataset)} interval (bootstrap over {resampled(dataset)}); "
                    if np.isfinite(low[chosen]).any()
                    else f"no intervals, which {count(n_subjects, 'subject')} cannot give; "
                )
                + f"small dots: subjects; dashed: chance ({percent(chance)}).",
                narrow=True,
            )
        )
        blocks.append(
            Table(
                "Region identification",
                (
                    "Statistic",
                    "Accuracy, %",
                    f"{level(dataset)} interval, %",
                    "p against chance",
                    "p, corrected",
                    "Within / across distance",
                ),
                [
                    [
                        names[i],
                        number(100 * accuracy[i], 1),
                        interval(100 * low[i], 100 * high[i], 1),
                        p_value(p[i]),
                        p_value(corrected[i]),
                        number(ratio[i], 2),
                    ]
                    for i in named
                ],
                f"{setting}; geodesics: {dataset.attrs['geodesic']}.",
            )
        )
    blocks += _grid_picture(dataset, grid, setting)
    blocks += _confusions(dataset)
    return blocks


BASELINES = ("rdm", "rank_rdm", "unit_rdm", "rgtm(nested)")
"""Statistics that a grid of thresholds is judged against."""


def baseline_accuracies(names: Sequence[str], accuracy: np.ndarray) -> dict[str, np.ndarray]:
    """Pick the baselines that have an accuracy.

    Parameters
    ----------
    names
        Statistics.
    accuracy
        Shape (panel, statistic).

    Returns
    -------
    dict
        Accuracies by baseline, shape (panel,).
    """
    return {
        name: accuracy[:, names.index(name)]
        for name in BASELINES
        if name in names and np.isfinite(accuracy[:, names.index(name)]).all()
    }


def _grid_picture(dataset: xr.Dataset, grid: np.ndarray, setting: str) -> list[Any]:
    """Draw the accuracies over the thresholds, the baselines beside."""
    if not grid.size:
        return []
    names = [str(name) for name in dataset["statistic"].values]
    accuracy = np.asarray(dataset["accuracy"].values, dtype=float)
    chance = float(dataset.attrs["chance"])
    top = grid[int(np.nanargmax(accuracy[grid]))]
    lower, upper = (np.asarray(dataset[key].values, dtype=float) for key in ("lower", "upper"))
    baselines = baseline_accuracies(names, accuracy[None])
    return [
        Picture(
            [
                threshold_grid_figure(
                    lower[grid],
                    upper[grid],
                    [str(name) for name in dataset["family"].values[grid]],
                    {"": accuracy[grid]},
                    chance=chance,
                    baselines=baselines,
                )
            ],
            f"Heat map of identification accuracy over {grid.size} threshold pairs; from "
            f"{percent(float(np.nanmin(accuracy[grid])))} to "
            f"{percent(float(np.nanmax(accuracy[grid])))}.",
            "Identification accuracy over the geo-topological thresholds",
            f"RGTM(l, u) on {grid.size} threshold pairs ({setting}), lines between families of "
            f"pairs; colours start at chance ({percent(chance)}). n = "
            f"{dataset.sizes['subject']} subjects × {dataset.sizes['region']} regions. Squares in "
            "the empty half: the baselines on the same scale. The highest cell, "
            f"{names[top]} with {percent(accuracy[top])}, is chosen on these data and so biased "
            "upwards: rgtm(nested), chosen inside each left-out subject's fold, is the unbiased "
            "figure.",
            narrow=True,
        )
    ]


def shown_confusions(names: Sequence[str], accuracy: np.ndarray, headline: int) -> list[int]:
    """Statistics whose confusions are drawn: RDM, rank RDM and the one that speaks for the rest."""
    wanted = [names.index(name) for name in ("rdm", "rank_rdm") if name in names]
    wanted = [index for index in wanted if np.isfinite(accuracy[index])]
    return [*wanted, *([headline] if headline not in wanted else [])]


def _confusions(dataset: xr.Dataset) -> list[Any]:
    names = [str(name) for name in dataset["statistic"].values]
    confusion = np.asarray(dataset["confusion"].values)
    wanted = shown_confusions(
        names, np.asarray(dataset["accuracy"].values, dtype=float), headline_statistic(dataset)
    )
    regions = [str(name) for name in dataset["region"].values]
    return [
        Picture(
            [
                confusion_figure(
                    {names[i]: confusion[i] for i in wanted},
                    regions,
                    [str(name) for name in dataset["predicted"].values],
                )
            ],
            "Matrices of true against predicted region; "
            + "; ".join(
                f"{names[i]}: {int(np.trace(confusion[i]))} of {int(confusion[i].sum())} on the "
                "diagonal"
                for i in wanted
            )
            + ".",
            "Which regions are taken for which",
            f"Number of left-out subjects (of {dataset.sizes['subject']}) by true and predicted "
            "region; colour: percent of the true region's cases.",
        ),
        rates_table(
            "Sensitivity and specificity by region",
            "Region",
            regions,
            {
                names[i]: (
                    np.asarray(dataset["sensitivity"].values[i], dtype=float),
                    np.asarray(dataset["specificity"].values[i], dtype=float),
                )
                for i in wanted
            },
            f"Over {count(dataset.sizes['subject'], 'left-out subject')}.",
        ),
    ]


def rates_table(
    title: str,
    what: str,
    names: Sequence[str],
    rates: Mapping[str, tuple[np.ndarray, np.ndarray]],
    who: str,
) -> Table:
    """List sensitivity and specificity of regions or layers.

    Parameters
    ----------
    title
        Title of the table.
    what
        Head of the first column.
    names
        Regions or layers.
    rates
        Sensitivity and specificity by column, each of shape (name,), 0 to 1.
    who
        Over how many cases, for the caption.
    """
    rows = [
        [
            name,
            *(
                f"{number(100 * sensitivity[i], 0)} / {number(100 * specificity[i], 0)}"
                for sensitivity, specificity in rates.values()
            ),
        ]
        for i, name in enumerate(names)
    ]
    return Table(
        title,
        (what, *rates),
        rows,
        f"Sensitivity / specificity, %: share of the cases of a {what.lower()} that are found, and "
        f"share of the cases of others that are not taken for it. {who}",
        collapsed=len(rows) > 12,
    )


def _topology_models(dataset: xr.Dataset, *, several: bool) -> list[Any]:
    names = [str(name) for name in dataset["statistic"].values]
    regions = [str(name) for name in dataset["region"].values]
    predictors = [str(name) for name in dataset["predictor"].values]
    best = np.asarray(dataset["best_predictor"].values)
    mean, low, high = (
        np.asarray(dataset[key].values) for key in ("score", "interval_low", "interval_high")
    )
    rows = []
    for index, name in enumerate(names):
        cells: list[str] = [name]
        for column in range(len(regions)):
            predictor = str(best[index, column])
            if predictor not in predictors:
                cells.append("no score")
                continue
            row = predictors.index(predictor)
            cells.append(
                f"{predictor}, {number(mean[index, row, column])} "
                + interval(low[index, row, column], high[index, row, column]).replace(" ", "\u00a0")
            )
        rows.append(cells)
    where = f" ({dataset.attrs['measure']}, task {dataset.attrs['task']})" if several else ""
    # Regions in rows where they are many: a table must not run off the page.
    header: list[str] = ["Statistic", *regions]
    if len(rows) <= 8 or len(regions) > len(rows):
        header, *rows = [list(cells) for cells in zip(*([header, *rows]))]
        header[0] = "Region"
    shown = 7
    more = (
        f" The first {shown - 1} of {len(header) - 1} columns are shown."
        if len(header) > shown
        else ""
    )
    return [
        Table(
            f"Best model layer by geo-topological statistic{where}",
            header[:shown],
            [row[:shown] for row in rows],
            f"Score of the best layer, mean over {count(dataset.sizes['subject'], 'subject')} "
            f"[{level(dataset)} interval].{more}",
            collapsed=len(rows) > 24,
        )
    ]
