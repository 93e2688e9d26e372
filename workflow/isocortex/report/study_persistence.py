"""Persistent homology of the regions' RDMs in the study's report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from isocortex.report.drawing import QUALITATIVE, new_figure, svg_uri
from isocortex.report.matrices import cells_figure
from isocortex.report.options import ReportOptions
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
from isocortex.report.wording import level

_WORDS = {"H0": "components", "H1": "loops"}
_FILTRATIONS = {
    "rank": "the ranks of its dissimilarities, 0 to 1",
    "maximum": "its dissimilarities, over the largest",
}
_DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)))


def persistence_section(opened: Sequence[xr.Dataset], choices: ReportOptions) -> list[Any]:
    """Betti curves, persistence and distances of the diagrams, for each task and measure."""
    blocks: list[Any] = []
    for dataset in opened:
        measure = str(dataset.attrs["measure"])
        if len(opened) > 1:
            blocks.append(Heading(f"{measure}, task {dataset.attrs['task']}"))
        if not np.isfinite(dataset["betti"].values).any():
            blocks.append(Note("No region has a persistence diagram, so there is no figure."))
            continue
        blocks.append(_betti_picture(dataset, choices.max_regions_shown))
        blocks.append(_summary_table(dataset))
        blocks += _distance_picture(dataset, choices.max_regions_shown)
        blocks += _identification_table(dataset)
    return blocks


def _who(dataset: xr.Dataset) -> str:
    return count(dataset.sizes["subject"], "subject")


def _dimensions(dataset: xr.Dataset) -> list[str]:
    return [str(name) for name in dataset["dimension"].values]


def _betti_picture(dataset: xr.Dataset, most: int) -> Picture:
    betti = np.asarray(dataset["betti"].values, dtype=float)
    threshold = np.asarray(dataset["threshold"].values, dtype=float)
    regions = [str(name) for name in dataset["region"].values][:most]
    n = betti.shape[-1]
    figure = new_figure(11.0, 3.6)
    axes_list = figure.subplots(1, len(betti), squeeze=False)[0]
    for axes, name, curves in zip(axes_list, _dimensions(dataset), betti):
        for index, region in enumerate(regions):
            values = curves[:, index]
            known = np.isfinite(values).sum(axis=1)
            if not known.any():
                continue
            mean = np.nanmean(values, axis=1)
            colour = QUALITATIVE[index % len(QUALITATIVE)]
            dashes = _DASHES[index // len(QUALITATIVE) % len(_DASHES)]
            axes.plot(threshold, mean, color=colour, linestyle=dashes, linewidth=1.5, label=region)
            if n > 1:
                error = np.nanstd(values, axis=1, ddof=1) / np.sqrt(known)
                axes.fill_between(
                    threshold, mean - error, mean + error, color=colour, alpha=0.18, linewidth=0
                )
        axes.set_xlim(threshold[0], _last_change(threshold, curves[:, : len(regions)]))
        axes.set_title(f"{name}: {_WORDS.get(name, 'holes')}")
        axes.set_xlabel("value of the filtration")
        axes.set_ylabel(f"number of {_WORDS.get(name, 'holes')}")
        axes.set_ylim(bottom=0)
    handles, labels = axes_list[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper")
    return Picture(
        [svg_uri(figure)],
        "Betti curves of " + ", ".join(regions) + ": number of components and loops against the "
        "value of the filtration.",
        f"Betti curves ({dataset.attrs['measure']})",
        "Number of connected components and of loops of the Vietoris-Rips complex of a region's "
        f"RDM while the filtration grows over {_FILTRATIONS[str(dataset.attrs['filtration'])]}. "
        f"Lines: mean over {_who(dataset)}"
        + ("; bands: standard error of the mean." if n > 1 else "."),
    )


def _last_change(threshold: np.ndarray, curves: np.ndarray) -> float:
    """Value of the filtration from which on no curve changes, with some room after it."""
    flat = np.nan_to_num(curves.reshape(len(threshold), -1))
    changes = np.flatnonzero((flat[1:] != flat[:-1]).any(axis=1))
    last = threshold[changes[-1] + 1] if changes.size else threshold[-1]
    return float(min(last + 0.08 * (threshold[-1] - threshold[0]), threshold[-1]))


def _summary_table(dataset: xr.Dataset) -> Table:
    rows = []
    for k, dimension in enumerate(_dimensions(dataset)):
        for r, region in enumerate(dataset["region"].values):
            cells = [dimension, str(region)]
            for key in ("n_bars", "total_persistence", "longest", "entropy"):
                values = np.asarray(dataset[key].values[k, r], dtype=float)
                values = values[np.isfinite(values)]
                digits = 1 if key == "n_bars" else 3
                spread = f" ± {number(values.std(ddof=1), digits)}" if values.size > 1 else ""
                cells.append(f"{number(values.mean(), digits)}{spread}" if values.size else "n/a")
            rows.append(cells)
    return Table(
        f"Persistence of components and loops ({dataset.attrs['measure']})",
        ("Dimension", "Region", "Bars", "Total persistence", "Longest bar", "Entropy, nats"),
        rows,
        f"Mean ± standard deviation over {_who(dataset)}; lengths in units of the filtration.",
        collapsed=len(rows) > 14,
    )


def _distance_picture(dataset: xr.Dataset, most: int) -> list[Picture]:
    regions = [str(name) for name in dataset["region"].values][:most]
    distance = np.array(dataset["distance"].values, dtype=float)[:, : len(regions), : len(regions)]
    for matrix in distance:
        # A diagram is at distance 0 from itself by definition: not a finding.
        np.fill_diagonal(matrix, np.nan)
    if len(regions) < 2 or not np.isfinite(distance).any():
        return []
    names = _dimensions(dataset)
    return [
        Picture(
            [
                cells_figure(
                    {
                        f"{name}: {_WORDS.get(name, 'holes')}": matrix
                        for name, matrix in zip(names, distance)
                        if np.isfinite(matrix).any()
                    },
                    regions,
                    regions,
                    label=f"{dataset.attrs['distance']} distance",
                    shared=False,
                )
            ],
            f"Matrices of the distances between the persistence diagrams of {len(regions)} "
            "regions.",
            f"Distances between the regions' persistence diagrams ({dataset.attrs['measure']})",
            f"{str(dataset.attrs['distance']).capitalize()} distance of two regions' diagrams "
            f"within a subject, mean over {_who(dataset)}, in units of the filtration.",
        )
    ]


def _identification_table(dataset: xr.Dataset) -> list[Table]:
    accuracy = np.asarray(dataset["accuracy"].values, dtype=float)
    if not np.isfinite(accuracy).any():
        return []
    low, high, p, corrected, ratio = (
        np.asarray(dataset[key].values, dtype=float)
        for key in ("accuracy_low", "accuracy_high", "p", "p_corrected", "ratio")
    )
    return [
        Table(
            f"Region identification by persistence diagrams ({dataset.attrs['measure']})",
            (
                *("Dimension", "Accuracy, %", f"{level(dataset)} interval, %"),
                *("p against chance", "p, corrected", "Same / other region's distance"),
            ),
            [
                [
                    name,
                    number(100 * accuracy[k], 1),
                    interval(100 * low[k], 100 * high[k], 1),
                    p_value(p[k]),
                    p_value(corrected[k]),
                    number(ratio[k], 2),
                ]
                for k, name in enumerate(_dimensions(dataset))
            ],
            "Share of a left-out subject's regions that are nearest to the right one of the other "
            "subjects' regions (centroids of their diagrams); "
            f"chance {percent(float(dataset.attrs['chance']))}, "
            f"n = {_who(dataset)}.",
        )
    ]
