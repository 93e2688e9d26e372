"""Maps out of the stores of searchlights and encoding models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr

from isocortex import store
from isocortex.report.brain import Grid, backdrop, mosaic, surface_views
from isocortex.report.drawing import predictor_colours
from isocortex.report.page import Note, Picture, number


@dataclass(frozen=True)
class LayerMaps:
    """Scores of layers at voxels, of one subject or averaged over several.

    Parameters
    ----------
    grid
        Where the voxels are.
    predictors
        "model/layer" of the rows.
    scores
        Shape (predictor, voxel); NaN where there is none.
    n
        Number of subjects.
    """

    grid: Grid
    predictors: list[str]
    scores: np.ndarray
    n: int

    def highest(self, threshold: float) -> tuple[np.ndarray, np.ndarray]:
        """Highest score and the index of its predictor by voxel, NaN under the threshold."""
        scores = np.where(np.isfinite(self.scores), self.scores, -np.inf)
        best = scores.argmax(axis=0)
        top = scores.max(axis=0)
        shown = np.isfinite(top) & (top >= threshold)
        return np.where(shown, top, np.nan), np.where(shown, best, np.nan)


def subject_maps(dataset: xr.Dataset, *, predictors: Sequence[str]) -> LayerMaps:
    """Read the scores of one store whose first dimension is given by `predictors`."""
    return LayerMaps(Grid.of(dataset), list(predictors), np.asarray(dataset["score"].values), 1)


def average_encoding(paths: Sequence[Path | str]) -> LayerMaps | str:
    """Average the encoding scores of several subjects and one model, voxel by voxel.

    Parameters
    ----------
    paths
        Encoding stores of one model and task.

    Returns
    -------
    LayerMaps or str
        Means over subjects at voxels that all subjects have, or why there is none.
    """
    first = store.open(paths[0], "encoding")
    grid = Grid.of(first)
    layers = [str(name) for name in first["layer"].values]
    if not grid.is_template and len(paths) > 1:
        return (
            f"Subjects are in their own {grid.space} space, where voxels do not correspond: there "
            "is "
            "no group map. The subject reports show each subject's."
        )
    total = np.zeros((len(layers), *grid.shape), dtype=np.float64)
    for path in paths:
        dataset = store.open(path, "encoding")
        own = Grid.of(dataset)
        if not own.same_as(grid):
            name = dataset.attrs["subject"]
            return f"The grid of subject {name} differs from the first: there is no group map."
        if [str(name) for name in dataset["layer"].values] != layers:
            name = dataset.attrs["subject"]
            return f"The layers of subject {name} differ from the first: there is no group map."
        volume = np.full_like(total, np.nan)
        volume[(slice(None), *own.indices)] = dataset["score"].values
        total += volume
    # A sum is NaN where one subject has no score.
    indices = np.stack(np.nonzero(np.isfinite(total).any(axis=0)))
    model = str(first.attrs["model"])
    return LayerMaps(
        Grid(grid.affine, grid.shape, indices, grid.space),
        [f"{model}/{layer}" for layer in layers],
        total[(slice(None), *indices)] / len(paths),
        len(paths),
    )


def layer_pictures(
    maps: LayerMaps,
    *,
    what: str,
    score: str,
    threshold: float,
    slices: int,
    anatomy: Mapping[str, Path | str] | None = None,
    surface: bool = False,
    who: str,
) -> list[Picture | Note]:
    """Draw the best layer and its score on the volume and, if asked for, on the surface.

    Parameters
    ----------
    maps
        Scores by predictor and voxel.
    what
        Start of the figures' titles, for example "Encoding by convnet".
    score
        Name and unit of the score.
    threshold
        Voxels with a lower score stay empty.
    slices
        Slices of the mosaic.
    anatomy
        Images to draw on, by space.
    surface
        Draw fsaverage5 views (MNI space only).
    who
        Whose map it is, for the captions, for example "mean over 3 subjects".
    """
    top, best = maps.highest(threshold)
    n = int(np.isfinite(top).sum())
    total = top.size
    limit = number(threshold)
    if n == 0:
        highest = float(np.nanmax(maps.scores)) if np.isfinite(maps.scores).any() else np.nan
        return [
            Note(
                f"{what}: no voxel of {total:,} reaches the display threshold of {limit} "
                f"(highest {number(highest, 3)}), so there is no map."
            )
        ]
    ground = backdrop(maps.grid, anatomy)
    every = predictor_colours(maps.predictors)
    several = len(maps.predictors) > 1
    single_model = len({name.split("/", 1)[0] for name in maps.predictors}) == 1
    names = [name.split("/", 1)[1] if single_model else name for name in maps.predictors]
    colours = {name: every[predictor] for name, predictor in zip(names, maps.predictors)}
    limits = (threshold, max(float(np.nanpercentile(top, 99)), threshold + 1e-3))
    first = f"{who[0].upper()}{who[1:]}"
    where = (
        f"{first}; {n:,} of {total:,} voxels reach the display threshold of {limit}. Axial slices "
        "in "
        f"{maps.grid.space} space on {ground.name}, z in mm, left is left."
    )
    blocks: list[Picture | Note] = []
    if several:
        counts = np.bincount(best[np.isfinite(best)].astype(int), minlength=len(names))
        most = names[int(counts.argmax())]
        blocks.append(
            Picture(
                [
                    mosaic(
                        maps.grid, best, ground=ground, slices=slices, label="best", colours=colours
                    )
                ],
                f"Axial slices coloured by the best predictor of each voxel; {most} is the most "
                f"frequent with {counts.max():,} of {n:,} voxels.",
                f"{what}: best {'layer' if single_model else 'predictor'} at each voxel",
                where,
            )
        )
    blocks.append(
        Picture(
            [mosaic(maps.grid, top, ground=ground, slices=slices, label=score, limits=limits)],
            f"Axial slices coloured by {score}; the 99th percentile is {number(limits[1])}.",
            f"{what}: {'score of the best predictor' if several else 'score'} at each voxel",
            f"{score[0].upper()}{score[1:]}. {where}",
        )
    )
    if surface and not maps.grid.is_template:
        blocks.append(
            Note(f"Results are in {maps.grid.space} space, so they are not drawn on fsaverage5.")
        )
    elif surface:
        sampled = (
            f"{first}; sampled between white and pial surface of fsaverage5, drawn on the inflated "
            f"surface, voxels under {limit} left out. Dark grey: sulci."
        )
        if several:
            blocks.append(
                Picture(
                    [surface_views(maps.grid, best, label="best", colours=colours)],
                    "Inflated left and right hemispheres from three sides, coloured by best "
                    "predictor.",
                    f"{what}: best {'layer' if single_model else 'predictor'} on the surface",
                    sampled,
                )
            )
        blocks.append(
            Picture(
                [surface_views(maps.grid, top, label=score, limits=limits)],
                f"Inflated left and right hemispheres from three sides, coloured by {score}.",
                f"{what}: score on the surface",
                sampled,
            )
        )
    return blocks
