"""Regions, dissimilarity matrices and searchlights of one subject."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import xarray as xr

from isocortex import bids
from isocortex.errors import InputError
from isocortex.report.brain import PACKAGED_MESH, Grid, Grounds, Vertices, mosaic
from isocortex.report.comparison import comparison_name
from isocortex.report.drawing import (
    QUALITATIVE,
    read_thumbnails,
)
from isocortex.report.maps import LayerMaps, layer_pictures
from isocortex.report.matrices import order_stimuli, rdm_figure, square
from isocortex.report.options import ReportOptions
from isocortex.report.page import Note, Paragraph, Picture, Table, count, join, number
from isocortex.report.sources import own_store
from isocortex.report.wording import radius_text


def region_blocks(
    opened: Sequence[xr.Dataset],
    regions: Sequence[Path | str],
    region_labels: Sequence[Path | str],
    rdms: Sequence[Path | str],
    subject: str,
    grounds: Grounds,
    choices: ReportOptions,
) -> list[Any]:
    if not regions:
        return []
    if len(regions) != len(region_labels):
        raise InputError(
            f"{len(regions)} region images and {len(region_labels)} label tables of subject "
            f"{subject}: give one table an image"
        )
    used: dict[str, dict[str, int]] = {}
    for path in rdms:
        dataset = own_store(path, "rdms", subject)
        if "n_voxels" in dataset:
            counts = {
                str(r): int(n) for r, n in zip(dataset["region"].values, dataset["n_voxels"].values)
            }
            used.setdefault(str(dataset.attrs["task"]), counts)
    blocks: list[Any] = []
    spaces = {Grid.of(ds).shape: Grid.of(ds).space for ds in opened}
    for path, table in zip(regions, region_labels):
        try:
            image = nib.load(path)
            data = np.rint(np.asarray(image.dataobj)).astype(int)
        except Exception as error:
            raise InputError(f"{path} cannot be read as NIfTI ({error}): make it again") from error
        labels = {
            int(key): str(name) for key, name in bids.read_labels(table).items() if int(key) != 0
        }
        task = bids.entities(Path(path).name)[0].get("task", "")
        space = spaces.get(data.shape, "")
        voxels = np.stack(np.nonzero(np.isin(data, list(labels))))
        volume_ml = abs(np.linalg.det(image.affine[:3, :3])) / 1000
        rows = []
        for key, name in labels.items():
            size = int((data == key).sum())
            rows.append(
                [
                    name,
                    f"{size:,}",
                    number(size * volume_ml, 2),
                    used.get(task, {}).get(name, "n/a"),
                ]
            )
        blocks.append(
            Table(
                "Region sizes" + (f", task {task}" if task and len(regions) > 1 else ""),
                ("Region", "Voxels on the grid", "Volume, ml", "Voxels analysed"),
                rows,
                "Analysed: voxels inside the brain mask of all runs with a usable response.",
            )
        )
        if not voxels.size:
            blocks.append(Note("No voxel of the grid belongs to a region, so there is no figure."))
            continue
        grid = Grid(np.asarray(image.affine), data.shape, voxels, space)
        names = list(labels.values())
        keys = list(labels)
        values = np.array([keys.index(value) for value in data[tuple(voxels)]], dtype=float)
        palette = {name: QUALITATIVE[i % len(QUALITATIVE)] for i, name in enumerate(names)}
        ground = grounds.of(grid)
        blocks.append(
            Picture(
                [
                    mosaic(
                        grid,
                        values,
                        ground=ground,
                        slices=choices.slices,
                        label="region",
                        colours=palette,
                    )
                ],
                f"Axial slices with {len(names)} regions in colour on {ground.name}.",
                "Regions on the anatomy",
                f"{count(len(names), 'region')} on the grid of the responses, "
                f"{voxels.shape[1]:,} voxels, drawn on "
                f"{ground.name}, z in mm, left is left.",
            )
        )
    return blocks


def rdm_blocks(
    rdms: Sequence[Path | str],
    opened: Sequence[xr.Dataset],
    subject: str,
    stimuli: Mapping[str, Path | str],
    choices: ReportOptions,
) -> list[Any]:
    conditions: dict[str, str] = {}
    for dataset in opened:
        conditions.update(zip(dataset["stimulus"].values, dataset["condition"].values))
    blocks: list[Any] = []
    # Images with the first measure of a task suffice: the order is the same in all.
    with_images: set[str] = set()
    for path in rdms:
        dataset = own_store(path, "rdms", subject)
        first, second = dataset["stimulus_i"].values, dataset["stimulus_j"].values
        order = order_stimuli([*first, *second], conditions)
        names = [str(name) for name in dataset["region"].values]
        shown = names[: choices.max_regions_shown]
        values = np.asarray(dataset["dissimilarity"].values)
        matrices = {
            name: square(values[index], first, second, order.names)
            for index, name in enumerate(shown)
        }
        matrices = {
            name: matrix
            for name, matrix in matrices.items()
            if np.isfinite(matrix).sum() > len(matrix)
        }
        measure = str(dataset.attrs["measure"])
        if not matrices:
            blocks.append(Note(f"RDMs by {measure}: no region has a finite dissimilarity."))
            continue
        task = str(dataset.attrs["task"])
        thumbnails = {}
        if (
            choices.thumbnails
            and task not in with_images
            and len(order.names) <= choices.max_thumbnails
        ):
            thumbnails = read_thumbnails(stimuli, order.names)
            with_images.add(task)
        notes = {}
        if "n_voxels" in dataset:
            notes = {
                name: f"({int(n):,} voxels)" for name, n in zip(names, dataset["n_voxels"].values)
            }
        more = (
            f" The first {len(shown)} of {len(names)} regions are shown."
            if len(names) > len(shown)
            else ""
        )
        blocks.append(
            Picture(
                [rdm_figure(matrices, order, thumbnails=thumbnails, notes=notes)],
                f"Dissimilarity matrices of {join(list(matrices))} over {len(order.names)} "
                "stimuli.",
                f"RDMs of task {dataset.attrs['task']} by {measure}",
                f"Dissimilarity of {len(order.names)} stimuli ({measure}; noise normalisation: "
                f"{dataset.attrs['noise_normalisation'] or 'none'}; cross-validation: "
                f"{dataset.attrs['cross_validation'] or 'none'}) in percentiles within each region"
                + (f", ordered by category ({order.source})" if order.categories else "")
                + f". One subject.{more}",
            )
        )
    return blocks


def searchlight_blocks(
    volume: Sequence[Path | str],
    surface: Sequence[Path | str],
    subject: str,
    anatomy: Mapping[str, Path | str] | None,
    choices: ReportOptions,
) -> list[Any]:
    blocks: list[Any] = []
    stores = [(path, "searchlight") for path in volume]
    stores += [(path, "searchlight_surface") for path in surface]
    for path, spec in stores:
        dataset = own_store(path, spec, subject)
        on_surface = spec == "searchlight_surface"
        sizes = np.asarray(dataset["n_voxels"].values)
        radius = radius_text(dataset.attrs["radius"])
        place = f"on the {dataset.attrs['mesh']} surface" if on_surface else "in the volume"
        blocks.append(
            Paragraph(
                f"Task {dataset.attrs['task']}, {place}: {sizes.size:,} centres, radius {radius}, "
                f"{int(np.median(sizes))} {'vertices' if on_surface else 'voxels'} in the median "
                "neighbourhood; RDMs compared with the models' by "
                f"{comparison_name(str(dataset.attrs['comparison']))}."
            )
        )
        if on_surface and str(dataset.attrs["mesh"]) != PACKAGED_MESH:
            blocks.append(Note(f"Maps on {dataset.attrs['mesh']} are beside the store as GIFTI."))
            continue
        grid = Vertices.of(dataset) if on_surface else Grid.of(dataset)
        predictors = [str(name) for name in dataset["predictor"].values]
        blocks += layer_pictures(
            LayerMaps(grid, predictors, np.asarray(dataset["score"].values), 1),
            what="Surface searchlight RSA" if on_surface else "Searchlight RSA",
            score=comparison_name(str(dataset.attrs["comparison"])),
            threshold=choices.searchlight_threshold,
            slices=choices.slices,
            anatomy=anatomy,
            who=f"subject {subject}",
        )
    return blocks
