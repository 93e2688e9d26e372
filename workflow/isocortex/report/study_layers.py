"""Identification of network layers across seeds in the study's report: accuracy against noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from isocortex.report.drawing import MUTED, QUALITATIVE, new_figure, svg_uri
from isocortex.report.matrices import confusion_figure, threshold_grid_figure
from isocortex.report.page import (
    Heading,
    Note,
    Picture,
    Table,
    count,
    interval,
    number,
    p_value,
    percent,
)
from isocortex.report.study_findings import headline_statistic
from isocortex.report.study_topology import (
    baseline_accuracies,
    rates_table,
    shown_confusions,
    split_statistics,
)
from isocortex.report.wording import level

MOST_LINES = 10
_MARKERS = "osD^vPX<>*"


def layers_section(opened: Sequence[xr.Dataset]) -> list[Any]:
    """Layer identification of each family of networks: accuracy, thresholds, confusions."""
    blocks: list[Any] = []
    for dataset in opened:
        if len(opened) > 1:
            blocks.append(Heading(f"{dataset.attrs['network']} ({dataset.attrs['measure']})"))
        accuracy = np.asarray(dataset["accuracy"].values, dtype=float)
        if not np.isfinite(accuracy).any():
            why = dataset.attrs.get("flag") or "no accuracy is finite"
            blocks.append(Note(f"Layers were not identified: {why}."))
            continue
        grid, named = split_statistics(dataset)
        named = named[np.isfinite(accuracy[:, named]).any(axis=0)][:MOST_LINES]
        blocks.append(_noise_picture(dataset, accuracy, named))
        blocks.append(_accuracy_table(dataset, accuracy, named))
        if grid.size and np.isfinite(accuracy[:, grid]).any(axis=1).all():
            blocks.append(_grid_picture(dataset, accuracy, grid))
        blocks += _confusions(dataset, accuracy)
    return blocks


def _who(dataset: xr.Dataset) -> str:
    return (
        f"{count(dataset.sizes['seed'], 'seed')} × {count(dataset.sizes['layer'], 'layer')} of "
        f"{dataset.attrs['network']}"
    )


def _draws(dataset: xr.Dataset) -> str:
    draws = np.asarray(dataset["draws"].values)
    return f"{draws.max()} draws of the noise" if draws.max() > 1 else "one draw of the noise"


def _names(dataset: xr.Dataset) -> list[str]:
    return [str(name) for name in dataset["statistic"].values]


def _noise_picture(dataset: xr.Dataset, accuracy: np.ndarray, named: np.ndarray) -> Picture:
    names, noise = _names(dataset), np.asarray(dataset["noise"].values, dtype=float)
    low, high = (
        np.asarray(dataset[key].values, dtype=float) for key in ("accuracy_low", "accuracy_high")
    )
    chance = float(dataset.attrs["chance"])
    figure = new_figure(8.4, 4.2)
    axes = figure.add_subplot()
    # Side by side around the noise level, so that intervals do not hide each other.
    step = np.diff(noise).min() if len(noise) > 1 else 1.0
    shift = np.linspace(-0.16, 0.16, len(named)) * step if len(named) > 1 else np.zeros(1)
    for position, index in enumerate(named):
        colour = QUALITATIVE[position % len(QUALITATIVE)]
        x = noise + shift[position]
        known = np.isfinite(low[:, index]) & np.isfinite(high[:, index])
        axes.vlines(
            *(x[known], 100 * low[known, index], 100 * high[known, index]),
            color=colour,
            linewidth=1.2,
        )
        axes.plot(
            *(x, 100 * accuracy[:, index]),
            marker=_MARKERS[position % len(_MARKERS)],
            color=colour,
            linewidth=1.3,
            markersize=5.5,
            markeredgecolor="white",
            markeredgewidth=0.6,
            label=names[index],
        )
    axes.axhline(100 * chance, color=MUTED, linestyle=(0, (4, 3)), linewidth=0.9)
    axes.text(
        *(1.0, 100 * chance + 1.2),
        "chance",
        transform=axes.get_yaxis_transform(),
        ha="right",
        fontsize=7.5,
        color=MUTED,
    )
    axes.set_ylim(0, 103)
    axes.set_xticks(noise, [f"{value:g}" for value in noise])
    axes.set_xlabel("noise added to the RDM's entries, SD")
    axes.set_ylabel("layers identified, %")
    figure.legend(loc="outside right upper")
    intervals = np.isfinite(low[:, named]).any()
    return Picture(
        [svg_uri(figure)],
        "Share of layers identified against the noise added, by statistic: "
        + "; ".join(
            f"{names[i]} from {percent(accuracy[0, i])} to {percent(accuracy[-1, i])}"
            for i in named
        )
        + f"; chance {percent(chance)}.",
        "Layer identification against noise",
        "Share of the layers of a left-out seed whose nearest centroid over the other seeds is the "
        f"right one ({dataset.attrs['measure']}). Points: mean over {_who(dataset)} and "
        f"{_draws(dataset)}"
        + (f"; lines: {level(dataset)} interval" if intervals else "; no intervals")
        + f"; dashed: chance ({percent(chance)}). Points of one noise level stand side by side.",
    )


def _accuracy_table(dataset: xr.Dataset, accuracy: np.ndarray, named: np.ndarray) -> Table:
    names = _names(dataset)
    low, high, p, gain, ratio = (
        np.asarray(dataset[key].values, dtype=float)
        for key in ("accuracy_low", "accuracy_high", "p_corrected", "gain", "ratio")
    )
    rows = [
        [
            f"{noise:g}",
            names[i],
            number(100 * accuracy[k, i], 1),
            interval(100 * low[k, i], 100 * high[k, i], 1),
            p_value(p[k, i]),
            number(100 * gain[k, i], 1),
            number(ratio[k, i], 2),
        ]
        for k, noise in enumerate(dataset["noise"].values)
        for i in named
    ]
    return Table(
        "Layer identification",
        (
            *("Noise, SD", "Statistic", "Accuracy, %", f"{level(dataset)} interval, %"),
            *("p, corrected", "Gain over rank RDM, %", "Within / across distance"),
        ),
        rows,
        "p: against chance, by permutation, corrected over the statistics of a noise level "
        "(largest accuracy). Gain: accuracy less that of the rank RDM.",
        collapsed=len(rows) > 12,
    )


def _grid_picture(dataset: xr.Dataset, accuracy: np.ndarray, grid: np.ndarray) -> Picture:
    lower, upper = (np.asarray(dataset[key].values, dtype=float) for key in ("lower", "upper"))
    chance = float(dataset.attrs["chance"])
    titles = [f"noise {value:g} SD" for value in dataset["noise"].values]
    best = [f"{_names(dataset)[grid[int(np.nanargmax(row))]]}" for row in accuracy[:, grid]]
    return Picture(
        [
            threshold_grid_figure(
                lower[grid],
                upper[grid],
                [str(name) for name in dataset["family"].values[grid]],
                dict(zip(titles, accuracy[:, grid])),
                chance=chance,
                baselines=baseline_accuracies(_names(dataset), accuracy),
            )
        ],
        "Heat maps of layer identification over the thresholds, one a noise level; highest: "
        + "; ".join(f"{title}: {name}" for title, name in zip(titles, best))
        + ".",
        "Layer identification over the geo-topological thresholds",
        f"RGTM(l, u) on {grid.size} threshold pairs at each noise level, lines between families of "
        f"pairs; colours start at chance ({percent(chance)}). n = {_who(dataset)}. Squares in the "
        "empty half: the baselines on the same scale. The highest cells are chosen on these data "
        "and so biased upwards; rgtm(nested) is the unbiased figure.",
    )


def _confusions(dataset: xr.Dataset, accuracy: np.ndarray) -> list[Any]:
    """Draw the confusions of each noise level: RDM, rank RDM and the headline statistic."""
    names = _names(dataset)
    headline = headline_statistic(dataset)
    wanted = shown_confusions(names, accuracy[0], headline)
    confusion = np.asarray(dataset["confusion"].values)
    noise = [f"{value:g}" for value in dataset["noise"].values]
    layers = [str(name) for name in dataset["layer"].values]
    panels = {
        f"{names[i]}, {value} SD": confusion[k, i] for i in wanted for k, value in enumerate(noise)
    }
    sensitivity, specificity = (
        np.asarray(dataset[key].values, dtype=float)[:, headline]
        for key in ("sensitivity", "specificity")
    )
    return [
        Picture(
            [
                confusion_figure(
                    panels,
                    layers,
                    [str(name) for name in dataset["predicted"].values],
                    columns=min(len(noise), 5),
                    what="layer",
                )
            ],
            "Matrices of true against predicted layer, one a statistic and noise level.",
            "Which layers are taken for which",
            f"Percent of a true layer's cases by predicted layer; a row a statistic, a column a "
            f"noise level. n = {_who(dataset)}, {_draws(dataset)}.",
        ),
        rates_table(
            f"Sensitivity and specificity by layer ({names[headline]})",
            "Layer",
            layers,
            {f"{value} SD": (sensitivity[k], specificity[k]) for k, value in enumerate(noise)},
            f"A column a noise level; over {_who(dataset)}.",
        ),
    ]
