"""Searchlights in the study's report: the group's maps in the volume and on the surface."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from isocortex.report.brain import PACKAGED_MESH, Grid, Vertices
from isocortex.report.comparison import comparison_name
from isocortex.report.maps import LayerMaps, layer_pictures
from isocortex.report.model_tests import ALPHA, strongest_test
from isocortex.report.options import ReportOptions
from isocortex.report.page import Heading, Note, Table, count, number
from isocortex.report.wording import radius_text

_TESTS = {
    "p_tfce": f"p < {ALPHA:g} by threshold-free cluster enhancement",
    "p_corrected": f"p < {ALPHA:g} by the largest statistic",
}


def searchlight_section(
    volume: Sequence[xr.Dataset], surface: Sequence[xr.Dataset], choices: ReportOptions
) -> list[Any]:
    """Maps of the group's searchlights: thresholded by their test and without a threshold.

    Parameters
    ----------
    volume, surface
        Group stores of spheres in the volume and of discs on the surface, one a task.
    choices
        Options of the report.
    """
    blocks: list[Any] = []
    several = len(volume) + len(surface) > 1
    for dataset in volume:
        if several:
            blocks.append(Heading(f"Spheres in the volume, task {dataset.attrs['task']}"))
        blocks += _group(dataset, Grid.of(dataset), "Searchlight RSA", choices)
    for dataset in surface:
        if several:
            blocks.append(Heading(f"Discs on the surface, task {dataset.attrs['task']}"))
        if str(dataset.attrs["mesh"]) != PACKAGED_MESH:
            blocks.append(
                Note(
                    f"Maps on {dataset.attrs['mesh']} are not drawn here: this report draws "
                    f"{PACKAGED_MESH}; they are beside the store as GIFTI."
                )
            )
            blocks.append(_table(dataset))
            continue
        blocks += _group(dataset, Vertices.of(dataset), "Surface searchlight RSA", choices)
    return blocks


def _group(
    dataset: xr.Dataset, grid: Grid | Vertices, what: str, choices: ReportOptions
) -> list[Any]:
    n = np.asarray(dataset["n_subjects"].values)
    if not n.size or n.max() < 1:
        return [Note(f"Task {dataset.attrs['task']}: no centre has a score.")]
    n = n[n > 0]  # centres without a score, as on the medial wall, are not drawn
    people = (
        count(int(n.max()), "subject") if n.min() == n.max() else f"{n.min()} to {n.max()} subjects"
    )
    name = strongest_test(dataset)
    significant, test = None, ""
    blocks: list[Any] = []
    if name is None:
        blocks.append(Note(f"No p-values with {people}: the maps describe and do not test."))
    else:
        with np.errstate(invalid="ignore"):
            significant = np.asarray(dataset[name].values) < ALPHA
        test = (
            f"{_TESTS[name]}, one-sided, sign flips of the subjects, family-wise over centres but "
            f"not over the {count(dataset.sizes['predictor'], 'predictor')}"
        )
        blocks.append(_table(dataset))
    maps = LayerMaps(
        grid,
        [str(predictor) for predictor in dataset["predictor"].values],
        np.asarray(dataset["mean"].values),
        int(n.max()),
        significant,
        test,
    )
    return blocks + layer_pictures(
        maps,
        what=what,
        score=comparison_name(str(dataset.attrs["comparison"])),
        threshold=choices.searchlight_threshold,
        slices=choices.slices,
        surface=choices.surface,
        unthresholded=True,
        who=f"mean over {people}, task {dataset.attrs['task']}, radius "
        f"{radius_text(dataset.attrs['radius'])}",
    )


def _table(dataset: xr.Dataset) -> Table:
    """Count the significant centres of each predictor by each test."""
    mean = np.asarray(dataset["mean"].values, dtype=float)
    heads = {"p_corrected": "Centres, largest statistic", "p_tfce": "Centres, TFCE"}
    kinds = [name for name in heads if name in dataset and np.isfinite(dataset[name].values).any()]
    below = {name: (np.nan_to_num(dataset[name].values, nan=1.0) < ALPHA) for name in kinds}
    rows = []
    for row, predictor in enumerate(dataset["predictor"].values):
        finite = mean[row][np.isfinite(mean[row])]
        rows.append(
            [
                str(predictor),
                f"{finite.size:,}",
                number(float(np.median(finite)) if finite.size else np.nan, 3),
                number(float(finite.max()) if finite.size else np.nan, 3),
                *(f"{int(below[name][row].sum()):,}" for name in kinds),
            ]
        )
    return Table(
        f"Searchlight centres above 0, task {dataset.attrs['task']}",
        (
            *("Predictor", "Centres", "Score, median", "Score, highest"),
            *(heads[name] for name in kinds),
        ),
        rows,
        f"Mean scores over subjects; centres with p < {ALPHA:g}, one-sided, family-wise over "
        "centres by sign flips of the subjects, not corrected over predictors.",
    )
