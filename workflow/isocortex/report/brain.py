"""Maps of the brain: axial mosaics in the volume and views of the fsaverage5 surface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import nibabel as nib
import numpy as np
import xarray as xr
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.patches import Patch
from nilearn import datasets, plotting, surface

from isocortex.derivatives import on_mni152
from isocortex.errors import InputError
from isocortex.report.drawing import INK, new_figure, raster_uri

SURFACE_VIEWS = ("lateral", "medial", "ventral")
PACKAGED_MESH = "fsaverage5"
"""The mesh that nilearn brings along; others would have to be downloaded."""
FSAVERAGE5_VERTICES = 10242


@dataclass(frozen=True)
class Grid:
    """Where the voxels of a store lie.

    Parameters
    ----------
    affine
        Voxel to world, mm, shape (4, 4).
    shape
        Size of the volume.
    indices
        Voxel indices, shape (3, n_voxels).
    space
        Name of the space.
    """

    affine: np.ndarray
    shape: tuple[int, int, int]
    indices: np.ndarray
    space: str

    @classmethod
    def of(cls, dataset: xr.Dataset) -> Grid:
        """Read the grid of a store with voxels."""
        return cls(
            affine=np.asarray(dataset.attrs["affine"], dtype=float),
            shape=tuple(int(n) for n in dataset.attrs["shape"]),
            indices=np.stack([np.asarray(dataset[axis].values, dtype=int) for axis in "ijk"]),
            space=str(dataset.attrs["space"]),
        )

    @property
    def is_template(self) -> bool:
        """Whether the space is an MNI152 template's."""
        return on_mni152(self.space)

    def same_as(self, other: Grid) -> bool:
        """Whether two grids have one shape and affine, so that voxel indices agree."""
        return self.shape == other.shape and np.allclose(self.affine, other.affine, atol=1e-4)

    def volume(self, values: np.ndarray) -> np.ndarray:
        """Put one value per voxel into a volume, NaN elsewhere."""
        out = np.full(self.shape, np.nan, dtype=np.float32)
        out[tuple(self.indices)] = values
        return out


@dataclass(frozen=True)
class Vertices:
    """Where the vertices of a store lie.

    Parameters
    ----------
    mesh
        Name of the mesh, for example "fsaverage5".
    hemisphere
        "left" or "right" by vertex.
    index
        Number of the vertex in its hemisphere.
    """

    mesh: str
    hemisphere: np.ndarray
    index: np.ndarray

    @classmethod
    def of(cls, dataset: xr.Dataset) -> Vertices:
        """Read the vertices of a store on a surface."""
        return cls(
            str(dataset.attrs["mesh"]),
            np.asarray(dataset["hemisphere"].values).astype(str),
            np.asarray(dataset["index"].values, dtype=int),
        )

    def textures(self, values: np.ndarray) -> dict[str, np.ndarray]:
        """Put one value per vertex on fsaverage5, shape (10242,) a hemisphere, NaN elsewhere."""
        out = {}
        for side in ("left", "right"):
            here = self.hemisphere == side
            out[side] = np.full(FSAVERAGE5_VERTICES, np.nan, dtype=np.float32)
            out[side][self.index[here]] = values[here]
        return out


@dataclass(frozen=True)
class Backdrop:
    """The greyscale anatomy that maps are drawn on: values in 0..1, NaN outside the head."""

    data: np.ndarray
    affine: np.ndarray
    name: str


def backdrop(grid: Grid, anatomy: Mapping[str, Path | str] | None = None) -> Backdrop:
    """Choose the anatomy to draw on.

    Parameters
    ----------
    grid
        Grid of the map.
    anatomy
        NIfTI image by space name, for example the subject's T1w.

    Returns
    -------
    Backdrop
        The image given for the space, else nilearn's template for an MNI space, else the
        silhouette of the analysed voxels.
    """
    path = (anatomy or {}).get(grid.space)
    if path is not None:
        try:
            image = nib.as_closest_canonical(nib.load(path))
            data = np.asarray(image.dataobj, dtype=np.float32)
        except Exception as error:
            raise InputError(f"{path} cannot be read as NIfTI ({error}): make it again") from error
        return Backdrop(_to_grey(data), image.affine, "the subject's T1w image")
    if grid.is_template:
        image = datasets.load_mni152_template(resolution=2)
        return Backdrop(
            _to_grey(image.get_fdata(dtype=np.float32)), image.affine, "the MNI152 template"
        )
    inside = np.isfinite(grid.volume(np.ones(grid.indices.shape[1])))
    image = nib.as_closest_canonical(nib.Nifti1Image(inside.astype(np.float32), grid.affine))
    data = np.where(image.get_fdata(dtype=np.float32) > 0, np.float32(0.6), np.float32(np.nan))
    return Backdrop(data, image.affine, "the silhouette of the analysed voxels")


class Grounds:
    """Backdrops by space and grid, made once."""

    def __init__(self, anatomy: Mapping[str, Path | str] | None) -> None:
        self.anatomy = anatomy
        self.made: dict[tuple[Any, ...], Backdrop] = {}

    def of(self, grid: Grid) -> Backdrop:
        """Return the anatomy to draw on, see `backdrop`."""
        key = (grid.space, grid.shape, grid.affine.tobytes())
        if key not in self.made:
            self.made[key] = backdrop(grid, self.anatomy)
        return self.made[key]


def _to_grey(data: np.ndarray) -> np.ndarray:
    data = np.nan_to_num(data)
    inside = data > 0.1 * np.percentile(data[data > 0], 98)
    low, high = np.percentile(data[inside], [1, 99.5])
    # Keep the anatomy pale: it is the ground, the map is the figure.
    grey = 0.35 + 0.6 * np.clip((data - low) / (high - low), 0, 1)
    return np.where(inside, grey, np.nan).astype(np.float32)


def slice_positions(grid: Grid, values: np.ndarray, n: int) -> np.ndarray:
    """World z (mm) of `n` axial slices evenly through the voxels that carry a value.

    Fewer where the voxels lie in fewer slices, down to one.
    """
    shown = np.isfinite(values)
    if not shown.any():
        shown = np.ones_like(shown)
    indices = grid.indices[:, shown]
    z = (grid.affine[2, :3] @ indices) + grid.affine[2, 3]
    low, high = np.percentile(z, [1, 99])
    thickness = np.linalg.norm(grid.affine[:3, np.abs(grid.affine[2, :3]).argmax()])
    n = max(1, min(n, round((high - low) / thickness) + 1))
    return np.linspace(low, high, n + 2)[1:-1] if n > 1 else np.array([(low + high) / 2])


def _tile(ground: Backdrop, grid: Grid, volume: np.ndarray, z: float) -> tuple[np.ndarray, ...]:
    """Grey and map values of one axial slice, both (rows, columns) with anterior at the top."""
    inverse = np.linalg.inv(ground.affine)
    k = int(
        np.clip(np.rint(inverse[2, 2] * (z - ground.affine[2, 3])), 0, ground.data.shape[2] - 1)
    )
    nx, ny = ground.data.shape[:2]
    x, y = np.meshgrid(np.arange(nx), np.arange(ny), indexing="ij")
    ones = np.ones(x.size)
    world = ground.affine @ np.stack([x.ravel(), y.ravel(), np.full(x.size, k), ones])
    index = np.rint(np.linalg.inv(grid.affine) @ world)[:3].astype(int)
    inside = np.all((index >= 0) & (index < np.array(grid.shape)[:, None]), axis=0)
    values = np.full(x.size, np.nan, dtype=np.float32)
    values[inside] = volume[tuple(index[:, inside])]
    return ground.data[:, :, k].T[::-1], values.reshape(nx, ny).T[::-1]


def _assemble(tiles: Sequence[np.ndarray], columns: int) -> np.ndarray:
    rows = -(-len(tiles) // columns)
    height, width = tiles[0].shape
    out = np.full((rows * height, columns * width), np.nan, dtype=np.float32)
    for index, tile in enumerate(tiles):
        row, column = divmod(index, columns)
        out[row * height : (row + 1) * height, column * width : (column + 1) * width] = tile
    return out


def mosaic(
    grid: Grid,
    values: np.ndarray,
    *,
    ground: Backdrop,
    slices: int,
    label: str,
    cmap: str = "viridis",
    limits: tuple[float, float] | None = None,
    colours: Mapping[str, Any] | None = None,
) -> str:
    """Draw a map on axial slices.

    Parameters
    ----------
    grid
        Where the voxels are.
    values
        One value per voxel, NaN where nothing is to be drawn; with `colours`, the index of the
        category.
    ground
        Anatomy under the map.
    slices
        Number of slices.
    label
        Name and unit on the colour bar.
    cmap, limits
        Colours of a continuous map and its range (default: 2nd and 98th percentile).
    colours
        Colour of each category, in index order; makes it a categorical map with a legend.

    Returns
    -------
    str
        WebP data URI.
    """
    volume = grid.volume(values)
    positions = slice_positions(grid, values, slices)
    pairs = [_tile(ground, grid, volume, z) for z in positions]
    seen = np.any([np.isfinite(grey) | np.isfinite(value) for grey, value in pairs], axis=0)
    rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
    crop = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    # Room below each slice for its position.
    room = max(7, round(0.07 * (rows[-1] - rows[0])))
    pairs = [
        tuple(np.pad(tile[crop], ((1, room), (1, 1)), constant_values=np.nan) for tile in pair)
        for pair in pairs
    ]
    per_row = min(len(pairs), 7)
    grey = _assemble([g for g, _ in pairs], per_row)
    over = _assemble([v for _, v in pairs], per_row)
    height, width = pairs[0][0].shape
    # A few slices as large as many would be drawn coarse.
    total = 11.0 if per_row > 3 else 3.2 * per_row + 1.4
    picture_height = total * 0.9 * grey.shape[0] / grey.shape[1]
    extra = 0.0 if colours is None else 0.28 * -(-len(colours) // 8)
    figure = new_figure(total, picture_height + extra + 0.1)
    axes = figure.add_subplot()
    axes.imshow(grey, cmap="gray", vmin=0, vmax=1, interpolation="bilinear")
    if colours is None:
        finite = values[np.isfinite(values)]
        if limits is None:
            limits = tuple(np.percentile(finite, [2, 98])) if finite.size else (0.0, 1.0)
        if limits[0] == limits[1]:
            limits = (limits[0], limits[0] + 1e-6)
        drawn = axes.imshow(
            np.ma.masked_invalid(over), cmap=cmap, norm=Normalize(*limits), interpolation="nearest"
        )
        bar = figure.colorbar(drawn, ax=axes, fraction=0.018, pad=0.01, aspect=26, extend="both")
        bar.set_label(label)
        bar.outline.set_visible(False)
    else:
        axes.imshow(
            np.ma.masked_invalid(over),
            cmap=ListedColormap(list(colours.values())),
            vmin=-0.5,
            vmax=len(colours) - 0.5,
            interpolation="nearest",
        )
        _legend(figure, colours, label)
    for index, z in enumerate(positions):
        row, column = divmod(index, per_row)
        axes.text(
            column * width + width / 2,
            (row + 1) * height - 1,
            # without the sign of a rounded zero
            f"z {round(z):+d}".replace("-", "−"),
            ha="center",
            va="bottom",
            fontsize=7,
            color=INK,
        )
    axes.text(2, height - 1, "L", fontsize=7, va="bottom")
    axes.text(width - 3, height - 1, "R", fontsize=7, va="bottom", ha="right")
    axes.set_axis_off()
    return raster_uri(figure, dpi=115)


def _legend(figure: Any, colours: Mapping[str, Any], label: str) -> None:
    figure.legend(
        handles=[Patch(facecolor=colour, label=name) for name, colour in colours.items()],
        loc="outside lower center",
        ncols=min(len(colours), 8),
        title=label,
        title_fontsize=8.5,
        handlelength=1.2,
        handleheight=1.0,
        columnspacing=1.4,
    )


def project(grid: Grid, values: np.ndarray, *, categories: bool) -> dict[str, np.ndarray]:
    """Sample a volume map onto fsaverage5, halfway and on the way from white matter to pia.

    Parameters
    ----------
    grid, values
        The map, NaN where it is empty.
    categories
        Take the most frequent value along the way instead of the mean.

    Returns
    -------
    dict
        Vertex values of the "left" and "right" hemisphere, shape (10242,), NaN where empty.
    """
    mesh = datasets.fetch_surf_fsaverage(PACKAGED_MESH)
    inside = np.isfinite(values)
    if categories:
        image = nib.Nifti1Image(
            np.nan_to_num(grid.volume(np.where(inside, values + 1, 0))).astype(np.float32),
            grid.affine,
        )
        method = "nearest_most_frequent"
        out = {}
        for side in ("left", "right"):
            sampled = surface.vol_to_surf(
                image, mesh[f"pial_{side}"], inner_mesh=mesh[f"white_{side}"], interpolation=method
            )
            out[side] = np.where(sampled > 0.5, sampled - 1, np.nan)
        return out
    # The mean over the samples that hold a value: sum over count, each sampled linearly.
    filled = nib.Nifti1Image(
        np.nan_to_num(grid.volume(np.nan_to_num(values))).astype(np.float32), grid.affine
    )
    weight = nib.Nifti1Image(
        np.nan_to_num(grid.volume(inside.astype(np.float32))).astype(np.float32), grid.affine
    )
    out = {}
    for side in ("left", "right"):
        total, share = (
            np.nan_to_num(
                surface.vol_to_surf(
                    image,
                    mesh[f"pial_{side}"],
                    inner_mesh=mesh[f"white_{side}"],
                    interpolation="linear",
                )
            )
            for image in (filled, weight)
        )
        with np.errstate(invalid="ignore", divide="ignore"):
            out[side] = np.where(share > 0.25, total / share, np.nan)
    return out


def surface_views(
    textures: Mapping[str, np.ndarray],
    *,
    label: str,
    cmap: str = "viridis",
    limits: tuple[float, float] | None = None,
    colours: Mapping[str, Any] | None = None,
) -> str:
    """Draw a map on the inflated fsaverage5 surface, both hemispheres from three sides.

    Parameters
    ----------
    textures
        Values of the "left" and "right" hemisphere's vertices, NaN where empty.
    label, cmap, limits, colours
        As for `mosaic`.

    Returns
    -------
    str
        WebP data URI.
    """
    mesh = datasets.fetch_surf_fsaverage(PACKAGED_MESH)
    if colours is not None:
        limits = (-0.5, len(colours) - 0.5)
        palette: Any = ListedColormap(list(colours.values()))
    else:
        palette = matplotlib.colormaps[cmap]
        finite = np.concatenate([texture[np.isfinite(texture)] for texture in textures.values()])
        if limits is None:
            limits = tuple(np.percentile(finite, [2, 98])) if finite.size else (0.0, 1.0)
        if limits[0] == limits[1]:
            limits = (limits[0], limits[0] + 1e-6)
    # Without a legend below, the bar on the right needs no room at the foot.
    width, height = 0.305, 0.45 if colours is not None else 0.48
    figure = new_figure(11.0, 5.4 if colours is not None else 5.06, layout=None)
    for row, side in enumerate(("left", "right")):
        for column, view in enumerate(SURFACE_VIEWS):
            axes = figure.add_axes(
                (column * width, 0.98 - (row + 1) * height, width, height), projection="3d"
            )
            plotting.plot_surf(
                mesh[f"infl_{side}"],
                textures[side],
                bg_map=mesh[f"sulc_{side}"],
                hemi=side,
                view=view,
                engine="matplotlib",
                cmap=palette,
                vmin=limits[0],
                vmax=limits[1],
                avg_method="median" if colours is not None else "mean",
                colorbar=False,
                axes=axes,
                figure=figure,
            )
            axes.set_box_aspect(None, zoom=1.38)
            figure.text(
                (column + 0.5) * width,
                0.985 - row * height,
                f"{side}, {view}",
                ha="center",
                va="top",
                fontsize=7.5,
            )
    if colours is None:
        bar_axes = figure.add_axes((0.93, 0.28, 0.012, 0.46))
        mappable = matplotlib.cm.ScalarMappable(norm=Normalize(*limits), cmap=palette)
        bar = figure.colorbar(mappable, cax=bar_axes, extend="both")
        bar.set_label(label)
        bar.outline.set_visible(False)
    else:
        figure.legend(
            handles=[Patch(facecolor=colour, label=name) for name, colour in colours.items()],
            loc="lower center",
            ncols=min(len(colours), 8),
            title=label,
            title_fontsize=8.5,
            handlelength=1.2,
            bbox_to_anchor=(0.46, 0.0),
        )
    return raster_uri(figure, dpi=130)
