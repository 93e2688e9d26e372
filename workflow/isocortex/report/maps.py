"""Maps out of the stores of searchlights and encoding models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from isocortex.report.brain import Grid, Vertices, backdrop, mosaic, project, surface_views
from isocortex.report.drawing import predictor_colours
from isocortex.report.page import Note, Picture, number


@dataclass(frozen=True)
class LayerMaps:
    """Scores of layers at voxels or vertices, of one subject or averaged over several.

    Parameters
    ----------
    grid
        Where the voxels, or the vertices, are.
    predictors
        "model/layer" of the rows.
    scores
        Shape (predictor, voxel); NaN where there is none.
    n
        Number of subjects.
    significant
        Where the score is significant, same shape; thresholded maps then show these only.
    test
        The test behind `significant`, for captions.
    """

    grid: Grid | Vertices
    predictors: list[str]
    scores: np.ndarray
    n: int
    significant: np.ndarray | None = None
    test: str = ""

    def highest(self, threshold: float) -> tuple[np.ndarray, np.ndarray]:
        """Highest score and the index of its predictor by voxel, NaN where none is shown.

        Shown are significant scores, or, without a test, those from `threshold` on.
        """
        shown = np.isfinite(self.scores)
        shown &= self.scores >= threshold if self.significant is None else self.significant
        scores = np.where(shown, self.scores, -np.inf)
        any_shown = shown.any(axis=0)
        return (
            np.where(any_shown, scores.max(axis=0), np.nan),
            np.where(any_shown, scores.argmax(axis=0), np.nan),
        )


def average_encoding(opened: Sequence[xr.Dataset]) -> LayerMaps | str:
    """Average the encoding scores of several subjects and one model, voxel by voxel.

    Parameters
    ----------
    opened
        Encoding stores of one model and task.

    Returns
    -------
    LayerMaps or str
        Means over subjects at voxels that all subjects have, or why there is none.
    """
    first = opened[0]
    grid = Grid.of(first)
    layers = [str(name) for name in first["layer"].values]
    if grid.space == "T1w" and len(opened) > 1:
        return (
            f"Subjects are in their own {grid.space} space, where voxels do not correspond: there "
            "is "
            "no group map. The subject reports show each subject's."
        )
    total = np.zeros((len(layers), *grid.shape), dtype=np.float64)
    for dataset in opened:
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
        total[(slice(None), *indices)] / len(opened),
        len(opened),
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
    unthresholded: bool = False,
    who: str,
) -> list[Picture | Note]:
    """Draw the best layer and its score on the volume and, if asked for, on the surface.

    Parameters
    ----------
    maps
        Scores by predictor and voxel or vertex.
    what
        Start of the figures' titles, for example "Encoding by convnet".
    score
        Name and unit of the score.
    threshold
        Voxels with a lower score stay empty, where the maps have no test.
    slices
        Slices of the mosaic.
    anatomy
        Images to draw on, by space.
    surface
        Draw fsaverage5 views of voxels, too (MNI space only).
    unthresholded
        Draw the score of the best predictor at every voxel, too.
    who
        Whose map it is, for the captions, for example "mean over 3 subjects".
    """
    top, best = maps.highest(threshold)
    n, total = int(np.isfinite(top).sum()), top.size
    limit = number(threshold)
    noun = "vertices" if isinstance(maps.grid, Vertices) else "voxels"
    tested = maps.significant is not None
    passed = (
        f"{n:,} of {total:,} {noun} are above 0 ({maps.test})"
        if tested
        else f"{n:,} of {total:,} {noun} reach the display threshold of {limit}"
    )
    if isinstance(maps.grid, Grid) and maps.grid.space == "none":
        return [Note(f"{what}, {who}: {passed}. There is no map, because they lie on no grid.")]
    views = _views(maps, slices=slices, anatomy=anatomy, surface=surface)
    several = len(maps.predictors) > 1
    every = predictor_colours(maps.predictors)
    single_model = len({name.split("/", 1)[0] for name in maps.predictors}) == 1
    names = [name.split("/", 1)[1] if single_model else name for name in maps.predictors]
    colours = {name: every[predictor] for name, predictor in zip(names, maps.predictors)}
    first = f"{who[0].upper()}{who[1:]}"
    of_best = f"score of the best {'layer' if single_model else 'predictor'}"
    blocks: list[Picture | Note] = []
    if n == 0:
        highest = float(np.nanmax(maps.scores)) if np.isfinite(maps.scores).any() else np.nan
        blocks.append(
            Note(
                f"{what}: no {'vertex' if noun == 'vertices' else 'voxel'} of {total:,} "
                + (
                    f"is above 0 ({maps.test}; "
                    if tested
                    else f"reaches the display threshold of {limit} ("
                )
                + f"highest score {number(highest, 3)}), so there is no "
                + ("thresholded map." if unthresholded else "map.")
            )
        )
        views_of_threshold = []
    else:
        views_of_threshold = views
    for view in views_of_threshold:
        where = f"{first}; {passed}. {view.caption}"
        if several:
            counts = np.bincount(best[np.isfinite(best)].astype(int), minlength=len(names))
            most = names[int(counts.argmax())]
            blocks.append(
                Picture(
                    [view.draw(best, label="best", colours=colours)],
                    f"{view.alt} coloured by the best predictor; {most} is the most "
                    f"frequent with {counts.max():,} of {n:,} {noun}.",
                    f"{what}: best {'layer' if single_model else 'predictor'} {view.place}",
                    where,
                )
            )
        lowest = float(np.nanmin(top)) if tested else threshold
        limits = (lowest, max(float(np.nanpercentile(top, 99)), lowest + 1e-3))
        blocks.append(
            Picture(
                [view.draw(top, label=score, limits=limits)],
                f"{view.alt} coloured by {score}; the 99th percentile is {number(limits[1])}.",
                f"{what}: {of_best if several else 'score'} {view.place}",
                f"{score[0].upper()}{score[1:]}. {where}",
            )
        )
    if unthresholded and np.isfinite(maps.scores).any():
        whole = replace(maps, significant=np.isfinite(maps.scores)).highest(-np.inf)[0]
        blocks += [
            Picture(
                [view.draw(whole, label=score)],
                f"{view.alt} coloured by {score} without a threshold.",
                f"{what}: {of_best if several else 'score'} {view.place}, no threshold",
                f"{score[0].upper()}{score[1:]}. {first}; all {np.isfinite(whole).sum():,} {noun} "
                f"with a score, colours from the 2nd to the 98th percentile. {view.caption}",
            )
            # Slices suffice: of voxels the surface is a second view.
            for view in views[:1]
        ]
    if surface and isinstance(maps.grid, Grid) and not maps.grid.is_template and n:
        blocks.append(
            Note(f"Results are in {maps.grid.space} space, so they are not drawn on fsaverage5.")
        )
    return blocks


@dataclass(frozen=True)
class _View:
    """One way to draw a map: the function and what captions say of it."""

    draw: Callable[..., str]
    place: str
    alt: str
    caption: str


def _views(
    maps: LayerMaps, *, slices: int, anatomy: Mapping[str, Path | str] | None, surface: bool
) -> list[_View]:
    if isinstance(maps.grid, Vertices):
        vertices = maps.grid

        def draw_vertices(values: np.ndarray, **options: Any) -> str:
            return surface_views(vertices.textures(values), **options)

        return [
            _View(
                draw_vertices,
                "on the surface",
                "Inflated left and right hemispheres from three sides",
                "Drawn on the inflated fsaverage5 surface; dark grey: sulci.",
            )
        ]
    grid = maps.grid
    ground = backdrop(grid, anatomy)

    def draw_slices(values: np.ndarray, **options: Any) -> str:
        return mosaic(grid, values, ground=ground, slices=slices, **options)

    def draw_projected(values: np.ndarray, **options: Any) -> str:
        textures = project(grid, values, categories=options.get("colours") is not None)
        return surface_views(textures, **options)

    views = [
        _View(
            draw_slices,
            "at each voxel",
            "Axial slices",
            f"Axial slices in {grid.space} space on {ground.name}, z in mm, left is left.",
        )
    ]
    if surface and grid.is_template:
        views.append(
            _View(
                draw_projected,
                "on the surface",
                "Inflated left and right hemispheres from three sides",
                "The voxels' map, sampled between white and pial surface of fsaverage5, drawn on "
                "the inflated surface. Dark grey: sulci.",
            )
        )
    return views
