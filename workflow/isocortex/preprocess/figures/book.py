"""What all figures share: the folder's listing, slices in rows, colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from isocortex.preprocess.resampling import grid_around, resample_volume
from isocortex.preprocess.transforms import Transform, apply_chain
from isocortex.provenance import write_json

# told apart by colour-blind readers, on grey as on white
RED, CYAN, YELLOW = "#e4572e", "#2ec4b6", "#f3c969"
INK, MUTED = "#1d2430", "#6b7480"
COURSES = ("#0072b2", "#d55e00", "#009e73")
_SLICES = 7
_GAP = 3  # voxels between slices
_PIXELS = 1400
_DPI = 100


class FigureBook:
    """Collects figures in order and lists them in figures.json."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries: list[dict[str, Any]] = []

    def add(
        self,
        figure: Figure,
        name: str,
        title: str,
        caption: str,
        *,
        coloured: bool = False,
        flicker: Figure | None = None,
        labels: tuple[str, str] = ("before", "after"),
    ) -> None:
        """Save a figure, or two that the report shows in turn, and list it."""
        self._save(figure, name, coloured)
        entry: dict[str, Any] = {"file": name, "title": title, "caption": caption}
        if flicker is not None:
            other = name.replace(".png", "_flicker.png")
            self._save(flicker, other, coloured)
            entry |= {"files": [name, other], "labels": list(labels)}
        self.entries.append(entry)

    def _save(self, figure: Figure, name: str, coloured: bool) -> None:
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
        if not coloured:
            # Of grey slices a palette is a third of the size, and reports carry many pictures.
            picture = picture.quantize(256, dither=Image.Dither.NONE)
        picture.save(self.folder / name, compress_level=7)

    def close(self, qc: Mapping[str, Any]) -> None:
        """Write the listing and the numbers."""
        write_json(self.folder / "figures.json", self.entries)
        write_json(self.folder / "qc.json", dict(qc))


class Slices:
    """Axial, coronal and sagittal slices in rows, as one picture.

    Only the points of the slices are sampled, and each image once: a volume would be ten times as
    many points.

    Parameters
    ----------
    shape, affine
        Upright grid (right, anterior, superior) that is cut.
    rows
        Axes that are cut, one a row: 2 axial, 1 coronal, 0 sagittal.
    """

    def __init__(
        self, shape: Sequence[int], affine: np.ndarray, rows: Sequence[int] = (2, 1, 0)
    ) -> None:
        self.affine = affine
        extent = np.array(shape[:3])
        across = [[axis for axis in range(3) if axis != cut] for cut in rows]
        width = max(extent[a] for a, _ in across) + _GAP
        heights = [int(extent[b]) for _, b in across]
        index = np.full((sum(heights), int(width) * _SLICES, 3), np.nan)
        top = sum(heights)
        for cut, (a, b), height in zip(rows, across, heights, strict=True):
            top -= height
            aside = (width - extent[a]) // 2
            grid = np.stack(np.meshgrid(np.arange(height), np.arange(extent[a]), indexing="ij"))
            for column in range(_SLICES):
                place = round(extent[cut] * (0.16 + 0.68 * column / (_SLICES - 1)))
                place = min(place, extent[cut] - 1)
                left = column * width + aside
                cell = index[top : top + height, left : left + extent[a]]
                cell[..., a], cell[..., b], cell[..., cut] = grid[1], grid[0], place
        self.inside = np.isfinite(index[..., 0])
        self.index = index[self.inside]
        self.points = self.index @ affine[:3, :3].T + affine[:3, 3]

    @classmethod
    def around(
        cls,
        mask: np.ndarray,
        affine: np.ndarray,
        *,
        resolution: float = 1.5,
        rows: Sequence[int] = (2, 1, 0),
    ) -> Slices:
        """Slices through a mask, with a margin."""
        return cls(*grid_around(mask, affine, resolution=resolution, margin=12.0), rows=rows)

    def sample(
        self,
        image: nib.Nifti1Image | tuple[np.ndarray, np.ndarray],
        chain: Sequence[Transform] = (),
        *,
        order: int = 1,
    ) -> np.ndarray:
        """An image, or array and affine, on the slices: (height, width), 0 between them.

        `chain` takes points of the slices to points of the image.
        """
        values, affine = (
            image if isinstance(image, tuple) else (np.asarray(image.dataobj), image.affine)
        )
        points = apply_chain(chain, self.points) if chain else self.points
        picture = np.zeros(self.inside.shape, np.float32)
        picture[self.inside] = resample_volume(
            np.asarray(values, np.float32), affine, points, (len(points),), order=order
        )
        return picture

    def take(self, volume: np.ndarray) -> np.ndarray:
        """A volume of the grid on the slices."""
        picture = np.zeros(self.inside.shape, np.float32)
        picture[self.inside] = volume[tuple(self.index.T.astype(int))]
        return picture

    def draw(
        self,
        picture: np.ndarray,
        contours: Sequence[tuple[np.ndarray, str]] = (),
        *,
        cmap: str = "gray",
        limits: tuple[float, float] | None = None,
        colorbar: str = "",
        marks: tuple[str, str] = ("L", "R"),
    ) -> Figure:
        """A picture of the slices with contours at one half of others.

        Parameters
        ----------
        picture
            Of `sample` or `take`; NaN is left black.
        contours
            Pictures and their colours.
        cmap, limits
            Colours; by default black to the brightest 0.5 %.
        colorbar
            Label of the scale; none without.
        marks
            Sides of the first slice.
        """
        if limits is None:
            positive = picture[picture > 0]
            limits = (0.0, float(np.percentile(positive, 99.5))) if positive.size else (0.0, 1.0)
        height, width = picture.shape
        share = 0.93 if colorbar else 1.0
        size = _PIXELS / _DPI
        figure = Figure(figsize=(size, size * share * height / width), dpi=_DPI, facecolor="black")
        axes = figure.add_axes([0, 0, share, 1], facecolor="black")
        axes.axis("off")
        drawn = axes.imshow(
            picture,
            origin="lower",
            aspect="auto",
            cmap=cmap,
            vmin=limits[0],
            vmax=limits[1],
            interpolation="bilinear",
        )
        for level, color in contours:
            if level.max() > 0.5 > level.min():
                axes.contour(level, levels=[0.5], colors=[color], linewidths=0.9)
        axes.set(xlim=(-0.5, width - 0.5), ylim=(-0.5, height - 0.5))
        cell = 1 / _SLICES
        style = {"color": "white", "fontsize": 10, "va": "top", "transform": axes.transAxes}
        axes.text(0.06 * cell, 0.985, marks[0], ha="left", **style)
        axes.text(0.94 * cell, 0.985, marks[1], ha="right", **style)
        if colorbar:
            scale = figure.colorbar(drawn, cax=figure.add_axes([0.942, 0.3, 0.009, 0.4]))
            scale.set_label(colorbar, color="white", fontsize=11)
            scale.ax.tick_params(colors="white", labelsize=10)
        return figure


def mosaic(
    background: np.ndarray,
    contours: Sequence[tuple[np.ndarray, str]],
    *,
    resolution: float,
    cmap: str = "gray",
    limits: tuple[float, float] | None = None,
    colorbar: str = "",
) -> Figure:
    """Rows of axial, coronal and sagittal slices of volumes, with contours at one half.

    Parameters
    ----------
    background
        On an upright grid.
    contours
        Volumes of the same grid and their colours.
    resolution
        Of the grid, mm.
    cmap, limits, colorbar
        As `Slices.draw` takes them.
    """
    slices = Slices(background.shape, np.diag([resolution, resolution, resolution, 1.0]))
    return slices.draw(
        slices.take(background),
        [(slices.take(values), color) for values, color in contours],
        cmap=cmap,
        limits=limits,
        colorbar=colorbar,
    )
