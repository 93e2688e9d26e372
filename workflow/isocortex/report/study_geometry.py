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
    classical_mds,
    mds_figure,
    order_stimuli,
    rdm_figure,
    square,
)
from isocortex.report.options import ReportOptions
from isocortex.report.page import (
    Heading,
    Note,
    Picture,
    count,
    join,
)
from isocortex.report.subject import absence


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


def geometry_section(
    opened: Sequence[xr.Dataset],
    given: Mapping[str, str],
    stimuli: Mapping[str, Path | str],
    choices: ReportOptions,
    entry: str,
) -> list[Any]:
    """Mean RDMs of the regions and their planes, for each task and measure."""
    if not opened:
        return [absence("rdms", entry)]
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
        shown = list(matrices)[: choices.max_regions_shown]
        # Images with the first measure of a task suffice: the order is the same in all.
        repeated = any(other == task for other, _ in list(groups)[:position])
        thumbnails = {}
        if choices.thumbnails and not repeated and len(order.names) <= choices.max_thumbnails:
            thumbnails = read_thumbnails(stimuli, order.names)
        more = (
            f" The first {len(shown)} of {len(matrices)} regions are shown."
            if len(shown) < len(matrices)
            else ""
        )
        counts = sorted({n[region] for region in shown})
        people = (
            count(counts[0], "subject")
            if len(counts) == 1
            else f"{counts[0]} to {counts[-1]} subjects"
        )
        whose = "RDMs of the one subject" if counts == [1] else f"Mean over {people} of RDMs"
        images = f" Images along the axes are the {len(thumbnails)} stimuli." if thumbnails else ""
        blocks.append(
            Picture(
                [
                    rdm_figure(
                        {region: matrices[region] for region in shown}, order, thumbnails=thumbnails
                    )
                ],
                f"Mean dissimilarity matrices of {join(shown)} over {len(order.names)} stimuli.",
                f"Representational dissimilarity by region ({measure})",
                f"{whose} scaled to unit root-mean-square, {len(order.names)} "
                "stimuli"
                + (
                    f" ordered by category ({order.source})"
                    if order.categories
                    else " ordered by name"
                )
                + f", in percentiles within each region.{images}{more}",
            )
        )
        if repeated or len(order.names) < 4:
            continue
        places = {region: classical_mds(matrices[region]) for region in shown}
        aligned = align([points for points, _ in places.values()])
        blocks.append(
            Picture(
                [
                    mds_figure(
                        dict(zip(places, aligned)),
                        {region: share for region, (_, share) in places.items()},
                        order,
                        thumbnails=thumbnails,
                    )
                ],
                f"Plane of {len(order.names)} stimuli for each of {len(shown)} regions; close "
                "stimuli are "
                "represented alike.",
                f"Multidimensional scaling of the regions' RDMs ({measure})",
                "Classical scaling of the mean RDMs, dissimilarities taken as squared distances, "
                "configurations aligned across regions by generalised Procrustes (shift, scale, "
                "rotation, "
                "reflection). In brackets: share of the positive variance that the plane carries"
                + ("; frames: category." if order.categories else "."),
            )
        )
    return blocks
