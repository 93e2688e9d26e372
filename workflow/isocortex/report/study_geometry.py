"""The regions' RDMs in the study's report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from isocortex.report.drawing import read_thumbnails
from isocortex.report.matrices import (
    StimulusOrder,
    align,
    mds_figure,
    metric_mds,
    order_by_similarity,
    order_stimuli,
    rdm_figure,
    square,
)
from isocortex.report.model_tests import model_tests
from isocortex.report.options import ReportOptions
from isocortex.report.page import (
    Heading,
    Note,
    Picture,
    count,
    join,
)


def _by_task_and_measure(opened: Sequence[xr.Dataset]) -> dict[tuple[str, str], list[xr.Dataset]]:
    groups: dict[tuple[str, str], list[xr.Dataset]] = {}
    for dataset in opened:
        key = (str(dataset.attrs["task"]), str(dataset.attrs["measure"]))
        groups.setdefault(key, []).append(dataset)
    return groups


def mean_rdms(
    stores: Sequence[xr.Dataset], order: StimulusOrder
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Average RDMs over subjects after scaling each to unit root-mean-square.

    Parameters
    ----------
    stores
        RDM stores of the subjects, one measure and task.
    order
        Stimuli of rows and columns.

    Returns
    -------
    matrices, n
        Mean by region, shape (n, n), NaN for pairs that no subject has, and subjects by region.
    """
    total: dict[str, np.ndarray] = {}
    weight: dict[str, np.ndarray] = {}
    n: dict[str, int] = {}
    for dataset in stores:
        values = np.asarray(dataset["dissimilarity"].values)
        for index, region in enumerate(str(name) for name in dataset["region"].values):
            row = values[index]
            finite = np.isfinite(row)
            scale = np.sqrt(np.mean(row[finite] ** 2)) if finite.any() else 0.0
            if scale == 0:
                continue
            matrix = square(
                row / scale, dataset["stimulus_i"].values, dataset["stimulus_j"].values, order.names
            )
            known = np.isfinite(matrix)
            total.setdefault(region, np.zeros_like(matrix))
            weight.setdefault(region, np.zeros_like(matrix))
            total[region] += np.where(known, matrix, 0)
            weight[region] += known
            n[region] = n.get(region, 0) + 1
    with np.errstate(invalid="ignore"):
        return {region: total[region] / weight[region] for region in total}, n


_SQUARED_EUCLIDEAN = ("crossnobis", "euclidean", "mahalanobis", "poisson")

MOST_IN_PLANE = 400
"""More stimuli would be a cloud of points, and their scaling slow."""


def geometry_section(
    opened: Sequence[xr.Dataset],
    scores: Sequence[xr.Dataset],
    model_rdms: Sequence[xr.Dataset],
    given: Mapping[str, str],
    stimuli: Mapping[str, Path | str],
    choices: ReportOptions,
) -> list[Any]:
    """Mean RDMs of the regions, those of their best model layers, and the regions' planes.

    Parameters
    ----------
    opened
        RDM stores of all subjects, tasks and measures.
    scores, model_rdms
        Stores of scores and of models' RDMs, which tell the best layers.
    given
        Category by stimulus id.
    stimuli
        Image file by stimulus id.
    choices
        Options of the report.
    """
    blocks: list[Any] = []
    groups = _by_task_and_measure(opened)
    for position, ((task, measure), stores) in enumerate(groups.items()):
        names = [
            name for ds in stores for key in ("stimulus_i", "stimulus_j") for name in ds[key].values
        ]
        order = order_stimuli(names, given)
        matrices, n = mean_rdms(stores, order)
        if len(groups) > 1:
            blocks.append(Heading(f"{measure}, task {task}"))
        if not matrices:
            blocks.append(Note("No region has a finite dissimilarity that is not 0 everywhere."))
            continue
        similar = order_by_similarity(order, _mean(list(matrices.values())))
        matrices = {region: reorder(m, order, similar) for region, m in matrices.items()}
        order = similar
        shown = {region: matrices[region] for region in list(matrices)[: choices.max_regions_shown]}
        # Images with the first measure of a task suffice: the order is the same in all.
        repeated = any(other == task for other, _ in list(groups)[:position])
        thumbnails = {}
        if choices.thumbnails and not repeated and len(order.names) <= choices.max_thumbnails:
            thumbnails = read_thumbnails(stimuli, order.names)
        blocks.append(
            _rdm_picture(shown, len(matrices), [n[region] for region in shown], order, thumbnails)
        )
        blocks[-1].title += f" ({measure})"
        best = best_layers(scores, task, measure, list(shown))
        blocks += _model_picture(best, model_rdms, measure, order, thumbnails)
        if repeated or not 4 <= len(order.names) <= MOST_IN_PLANE:
            continue
        places = {region: metric_mds(matrix) for region, matrix in shown.items()}
        aligned = align([points for points, _ in places.values()])
        blocks.append(
            Picture(
                [
                    mds_figure(
                        dict(zip(places, aligned)),
                        {region: stress for region, (_, stress) in places.items()},
                        order,
                        thumbnails=thumbnails,
                    )
                ],
                f"Plane of {len(order.names)} stimuli for each of {len(shown)} regions; close "
                "stimuli are represented alike.",
                f"Multidimensional scaling of the regions' RDMs ({measure})",
                f"Metric scaling (SMACOF) of the mean RDMs over {_people([n[r] for r in shown])}, "
                f"n = {len(order.names)} stimuli, configurations aligned across regions to their "
                "consensus by generalised Procrustes (shift, scale, rotation, reflection). In "
                "brackets: Kruskal's stress-1, 0 where the plane holds all of the dissimilarities"
                + ("; frames: category." if order.categories else "."),
            )
        )
    return blocks


def _mean(matrices: Sequence[np.ndarray]) -> np.ndarray:
    known = np.isfinite(matrices)
    with np.errstate(invalid="ignore"):
        return np.where(known, matrices, 0).sum(axis=0) / known.sum(axis=0)


def reorder(matrix: np.ndarray, order: StimulusOrder, wanted: StimulusOrder) -> np.ndarray:
    """Put rows and columns in `order` into the order `wanted` of the same stimuli."""
    place = {name: position for position, name in enumerate(order.names)}
    rows = [place[name] for name in wanted.names]
    return matrix[np.ix_(rows, rows)]


def _people(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return count(low, "subject") if low == high else f"{low} to {high} subjects"


def _ordered(order: StimulusOrder) -> str:
    if order.categories:
        return f" ordered by category ({order.source})"
    return f" ordered by {order.source}" if order.source else " ordered by name"


def _rdm_picture(
    matrices: Mapping[str, np.ndarray],
    n_regions: int,
    counts: Sequence[int],
    order: StimulusOrder,
    thumbnails: Mapping[str, np.ndarray],
) -> Picture:
    more = (
        f" The first {len(matrices)} of {n_regions} regions are shown."
        if len(matrices) < n_regions
        else ""
    )
    whose = "RDMs of the one subject" if set(counts) == {1} else f"Mean over {_people(counts)}"
    images = f" Images along the axes are the {len(thumbnails)} stimuli." if thumbnails else ""
    return Picture(
        [rdm_figure(matrices, order, thumbnails=thumbnails)],
        f"Mean dissimilarity matrices of {join(list(matrices))} over {len(order.names)} stimuli.",
        "Representational dissimilarity by region",
        f"{whose}{' of RDMs' if whose.startswith('Mean') else ''} scaled to unit "
        f"root-mean-square, {len(order.names)} stimuli{_ordered(order)}, in percentiles within "
        f"each region.{images}{more}",
    )


def best_layers(
    scores: Sequence[xr.Dataset], task: str, measure: str, regions: Sequence[str]
) -> dict[str, list[str]]:
    """Regions by the fixed model layer that fits them best, by the first comparison.

    Fitted models (weighted, selected, interpolated) have no RDM of their own and are passed over.
    """
    found: dict[str, list[str]] = {}
    for dataset in scores:
        if (str(dataset.attrs["task"]), str(dataset.attrs["measure"])) != (task, measure):
            continue
        mean = np.array(dataset["mean"].values[0], dtype=float)
        mean[np.array(model_tests(dataset).kind) != "fixed"] = np.nan
        for column, region in enumerate(str(name) for name in dataset["region"].values):
            if region in regions and np.isfinite(mean[:, column]).any():
                best = str(dataset["predictor"].values[int(np.nanargmax(mean[:, column]))])
                found.setdefault(best, []).append(region)
    return found


def _model_picture(
    best: Mapping[str, Sequence[str]],
    model_rdms: Sequence[xr.Dataset],
    measure: str,
    order: StimulusOrder,
    thumbnails: Mapping[str, np.ndarray],
) -> list[Picture]:
    """Draw the RDMs of the layers that fit the regions best."""
    matrices = {}
    for name in best:
        model, layer = name.split("/", 1)
        stores = [ds for ds in model_rdms if str(ds.attrs["model"]) == model]
        # The measure of features that goes with the brain's: see rsa.model_measure.
        matched = "euclidean" if measure in _SQUARED_EUCLIDEAN else "correlation"
        stores.sort(key=lambda ds: (ds.attrs["measure"] != measure, ds.attrs["measure"] != matched))
        for dataset in stores[:1]:
            layers = [str(other) for other in dataset["layer"].values]
            if layer not in layers:
                continue
            matrix = square(
                np.asarray(dataset["dissimilarity"].values[layers.index(layer)]),
                dataset["stimulus_i"].values,
                dataset["stimulus_j"].values,
                order.names,
            )
            if np.isfinite(matrix).sum() > len(matrix):
                matrices[name] = matrix
    if not matrices:
        return []
    return [
        Picture(
            [
                rdm_figure(
                    matrices,
                    order,
                    thumbnails=thumbnails,
                    notes={name: f"best for {join(best[name])}" for name in matrices},
                )
            ],
            "Dissimilarity matrices of the model layers "
            + "; ".join(f"{name}, best for {join(best[name])}" for name in matrices)
            + ".",
            f"Representational dissimilarity of the best model layers ({measure})",
            f"RDMs of the {count(len(matrices), 'model layer')} with the highest mean score in a "
            f"region shown above, {len(order.names)} stimuli{_ordered(order)}, in percentiles "
            "within each layer.",
        )
    ]
