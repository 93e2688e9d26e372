"""Adaptive geo-topological dependence (AGTDM) of brain and model RDMs in the study's report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from isocortex.report.matrices import cells_figure
from isocortex.report.model_tests import ALPHA
from isocortex.report.options import ReportOptions
from isocortex.report.page import Heading, Note, Picture, Table, count, number, p_value


def dependence_section(opened: Sequence[xr.Dataset], choices: ReportOptions) -> list[Any]:
    """Heat map and table of the dependence, for each task and measure."""
    blocks: list[Any] = []
    for dataset in opened:
        measure = str(dataset.attrs["measure"])
        if len(opened) > 1:
            blocks.append(Heading(f"{measure}, task {dataset.attrs['task']}"))
        if not np.isfinite(dataset["mean"].values).any():
            blocks.append(Note("No region has a dependence on a model, so there is no figure."))
            continue
        blocks.append(_picture(dataset, choices.max_regions_shown))
        blocks.append(_table(dataset))
    return blocks


def _who(dataset: xr.Dataset) -> str:
    return count(dataset.sizes["subject"], "subject")


def _tested(dataset: xr.Dataset) -> str:
    permutations = int(dataset.attrs["permutations"])
    if not np.isfinite(dataset["p_corrected"].values).any():
        return f"No test with {_who(dataset)}."
    return (
        "p < 0.05, by permutation of the stimuli, maximised over the thresholds anew in each of "
        f"{permutations:,} permutations and corrected over predictors and regions"
    )


def _picture(dataset: xr.Dataset, most: int) -> Picture:
    regions = [str(name) for name in dataset["region"].values][:most]
    predictors = [str(name) for name in dataset["predictor"].values]
    mean, p = (
        np.asarray(dataset[key].values, dtype=float)[:, : len(regions)]
        for key in ("mean", "p_corrected")
    )
    tested = _tested(dataset)
    top = np.unravel_index(np.nanargmax(mean), mean.shape)
    return Picture(
        [
            cells_figure(
                {"": mean},
                predictors,
                regions,
                label="distance correlation",
                marks={"": p < ALPHA},
            )
        ],
        f"Heat map of the dependence of {len(regions)} regions on {len(predictors)} predictors; "
        f"the highest is {predictors[top[0]]} in {regions[top[1]]} with {number(mean[top])}.",
        f"Adaptive geo-topological dependence ({dataset.attrs['measure']})",
        f"Highest {'bias-corrected ' if dataset.attrs.get('bias_corrected') else ''}distance "
        f"correlation over the thresholds of brain and model ({dataset.attrs['levels']} levels "
        f"each), mean over {_who(dataset)}. As a maximum it is above 0 without any dependence: "
        "compare it with its mean under permutation in the table. "
        + (f"*: {tested}." if not tested.startswith("No test") else tested),
    )


def _table(dataset: xr.Dataset) -> Table:
    values = {
        key: np.asarray(dataset[key].values, dtype=float)
        for key in (
            *("mean", "null_mean", "p", "p_corrected", "lower_brain", "upper_brain"),
            *("lower_model", "upper_model", "distance_correlation", "p_distance_correlation"),
        )
    }
    rows = [
        [
            str(region),
            str(predictor),
            *(number(values[key][k, r], 3) for key in ("mean", "null_mean")),
            *(p_value(values[key][k, r]) for key in ("p", "p_corrected")),
            *(
                f"{number(values[f'lower_{side}'][k, r])} – {number(values[f'upper_{side}'][k, r])}"
                for side in ("brain", "model")
            ),
            number(values["distance_correlation"][k, r], 3),
            p_value(values["p_distance_correlation"][k, r]),
        ]
        for r, region in enumerate(dataset["region"].values)
        for k, predictor in enumerate(dataset["predictor"].values)
        if np.isfinite(values["mean"][k, r])
    ]
    return Table(
        f"Adaptive geo-topological dependence and its thresholds ({dataset.attrs['measure']})",
        (
            *("Region", "Predictor", "AGTDM", "Under permutation", "p", "p, corrected"),
            *("l – u, brain", "l – u, model", "Without thresholds", "p of that"),
        ),
        rows,
        "Thresholds are those of the highest mean; without thresholds: distance correlation of the "
        "RDMs themselves.",
        collapsed=len(rows) > 12,
    )
