"""Pictures by which a lab judges the preprocessing of a subject and of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from isocortex.preprocess.registration import load_template, warp
from isocortex.preprocess.resampling import grid_around, resample_volume
from isocortex.preprocess.transforms import AffineTransform, grid_points
from isocortex.provenance import write_json

_RED, _CYAN, _YELLOW = "#e4572e", "#2ec4b6", "#f3c969"
_SLICES = 7


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
        picture.save(self.folder / name, optimize=True)

    def close(self, qc: Mapping[str, Any]) -> None:
        write_json(self.folder / "figures.json", self.entries)
        write_json(self.folder / "qc.json", dict(qc))


def _upright(
    images: Mapping[str, tuple[nib.Nifti1Image, int]], brain: nib.Nifti1Image, resolution: float
) -> dict[str, np.ndarray]:
    """Images on one right-anterior-superior grid around the brain, for slicing."""
    mask = np.asarray(brain.dataobj) > 0
    shape, affine = grid_around(mask, brain.affine, resolution=resolution, margin=12.0)
    points = grid_points(shape, affine)
    return {
        name: resample_volume(
            np.asarray(image.dataobj, np.float32), image.affine, points, shape, order=order
        )
        for name, (image, order) in images.items()
    }


def mosaic(
    background: np.ndarray,
    contours: Sequence[tuple[np.ndarray, str]],
    *,
    resolution: float,
    cmap: str = "gray",
    limits: tuple[float, float] | None = None,
    colorbar: str = "",
) -> Figure:
    """Rows of axial, coronal and sagittal slices with contours at one half."""
    if limits is None:
        positive = background[background > 0]
        limits = (0.0, float(np.percentile(positive, 99.5))) if positive.size else (0.0, 1.0)
    figure = Figure(figsize=(12, 5.6), facecolor="black")
    width = (0.94 if colorbar else 1.0) / _SLICES
    extent = np.array(background.shape)
    picture = None
    for row, axis in enumerate((2, 1, 0)):
        for column in range(_SLICES):
            place = round(extent[axis] * (0.16 + 0.68 * column / (_SLICES - 1)))
            axes = figure.add_axes([column * width, (2 - row) / 3, width, 1 / 3], facecolor="black")
            axes.axis("off")
            cut = np.take(background, place, axis=axis).T
            picture = axes.imshow(
                cut,
                origin="lower",
                cmap=cmap,
                vmin=limits[0],
                vmax=limits[1],
                interpolation="bilinear",
            )
            for values, color in contours:
                level = np.take(values, place, axis=axis).T
                if level.max() > 0.5 > level.min():
                    axes.contour(level, levels=[0.5], colors=[color], linewidths=0.9)
            if row == 0 and column == 0:
                axes.text(0.03, 0.94, "L", color="white", fontsize=9, transform=axes.transAxes)
                axes.text(0.90, 0.94, "R", color="white", fontsize=9, transform=axes.transAxes)
    if colorbar and picture is not None:
        axes = figure.add_axes([0.945, 0.36, 0.008, 0.28])
        bar = figure.colorbar(picture, cax=axes)
        bar.set_label(colorbar, color="white", fontsize=9)
        bar.ax.tick_params(colors="white", labelsize=8)
    figure.set_dpi(100)
    return figure


def anatomy_figures(
    folder: Path,
    *,
    t1w: nib.Nifti1Image,
    mask: nib.Nifti1Image,
    dseg: nib.Nifti1Image,
    t1w_template: nib.Nifti1Image,
    qc: Mapping[str, Any],
) -> None:
    """Mask and tissues on the T1w, and the T1w on the template.

    Parameters
    ----------
    folder
        Existing folder for the PNG files, figures.json and qc.json.
    t1w, mask, dseg
        In the T1w's space.
    t1w_template
        T1w on the template's grid.
    qc
        Numbers for the report.
    """
    book = FigureBook(folder)
    labels = np.asarray(dseg.dataobj)
    white = nib.Nifti1Image((labels == 2).astype(np.float32), dseg.affine)
    cortex = nib.Nifti1Image(((labels == 1) | (labels == 2)).astype(np.float32), dseg.affine)
    shown = _upright(
        {"t1w": (t1w, 1), "mask": (mask, 1), "white": (white, 1), "cortex": (cortex, 1)}, mask, 1.5
    )
    figure = mosaic(
        shown["t1w"],
        [(shown["mask"], _RED), (shown["cortex"], _YELLOW), (shown["white"], _CYAN)],
        resolution=1.5,
    )
    book.add(
        figure,
        "anat_tissues.png",
        "Brain mask and tissue classes",
        "Bias-corrected T1w with the outlines of the brain mask (red), of the grey matter "
        "(yellow) and of the white matter (cyan).",
    )
    resolution = float(np.linalg.norm(t1w_template.affine[:3, 0]))
    outlines = {}
    for name in ("GM", "WM"):
        tissue = load_template(resolution, name)
        outlines[name] = np.asarray(tissue.dataobj)
    brain = np.asarray(load_template(resolution, "mask").dataobj)
    figure = mosaic(
        np.asarray(t1w_template.dataobj),
        [(brain, _RED), (outlines["WM"], _CYAN)],
        resolution=resolution,
    )
    book.add(
        figure,
        "anat_template.png",
        "Registration to the template",
        "T1w in MNI152NLin2009aSym with the template's own outlines: brain (red) and white "
        f"matter (cyan). Correlation with the template: {qc['template_correlation']:.2f}.",
    )
    book.close(qc)


def bold_figures(
    folder: Path,
    *,
    reference: nib.Nifti1Image,
    series: nib.Nifti1Image,
    mask: np.ndarray,
    tissues: np.ndarray,
    tsnr: nib.Nifti1Image,
    to_t1w: np.ndarray,
    t1w: nib.Nifti1Image,
    dseg: nib.Nifti1Image,
    confounds: pd.DataFrame,
    repetition_time: float,
    fd_threshold: float,
    dvars_threshold: float,
    qc: Mapping[str, Any],
) -> None:
    """Coregistration, motion, carpet plot and tSNR of one run.

    Parameters
    ----------
    folder
        Existing folder for the PNG files, figures.json and qc.json.
    reference, series, mask, tissues, tsnr
        In the space of the BOLD reference.
    to_t1w
        4 x 4: T1w mm to reference mm.
    t1w, dseg
        Anatomy.
    confounds
        The table.
    repetition_time
        Seconds.
    fd_threshold, dvars_threshold
        Drawn as lines.
    qc
        Numbers for the report.
    """
    book = FigureBook(folder)
    labels = np.asarray(dseg.dataobj)
    brain = nib.Nifti1Image((labels > 0).astype(np.float32), dseg.affine)
    box, affine = grid_around(labels > 0, dseg.affine, resolution=1.5, margin=12.0)
    grid = nib.Nifti1Image(np.zeros(box, np.uint8), affine)
    there = [AffineTransform(to_t1w)]
    moved = np.maximum(warp(reference, there, grid, order=1), 0)
    shown = {}
    for name, values in (("white", labels == 2), ("cortex", (labels == 1) | (labels == 2))):
        image = nib.Nifti1Image(values.astype(np.float32), dseg.affine)
        shown[name] = warp(image, [], grid)
    shown["brain"] = warp(brain, [], grid)
    figure = mosaic(moved, [(shown["brain"], _RED), (shown["white"], _CYAN)], resolution=1.5)
    book.add(
        figure,
        "bold_coregistration.png",
        "Coregistration to the T1w",
        "BOLD reference in the T1w's space with the outlines of the T1w's brain mask (red) and "
        "white matter (cyan).",
    )
    figure = mosaic(
        np.maximum(warp(t1w, [], grid), 0),
        [(warp(_epi_outline(reference, mask), there, grid), _YELLOW), (shown["white"], _CYAN)],
        resolution=1.5,
    )
    book.add(
        figure,
        "bold_coverage.png",
        "Coverage of the run",
        "T1w with the outline of the run's brain mask (yellow) and of the white matter (cyan).",
    )
    book.add(
        _motion_figure(confounds, repetition_time, fd_threshold, dvars_threshold),
        "bold_motion.png",
        "Head motion",
        f"Translations, rotations, framewise displacement (line at {fd_threshold:g} mm) and "
        f"standardised DVARS (line at {dvars_threshold:g}).",
    )
    book.add(
        _carpet(series, mask, tissues, repetition_time),
        "bold_carpet.png",
        "Carpet plot",
        "Voxels of grey matter, white matter and CSF over time, each detrended and standardised.",
    )
    values = warp(tsnr, there, grid)
    top = float(np.percentile(np.asarray(tsnr.dataobj)[mask], 98))
    figure = mosaic(
        np.where(shown["brain"] > 0.5, values, np.nan),
        [(shown["brain"], _RED)],
        resolution=1.5,
        cmap="viridis",
        limits=(0.0, max(top, 1e-6)),
        colorbar="tSNR",
    )
    book.add(
        figure,
        "bold_tsnr.png",
        "Temporal signal-to-noise ratio",
        f"Mean over standard deviation in time, in T1w space; median {qc['median_tsnr']:.0f} "
        "inside the brain mask.",
        coloured=True,
    )
    book.close(qc)


def _epi_outline(reference: nib.Nifti1Image, mask: np.ndarray) -> nib.Nifti1Image:
    return nib.Nifti1Image(mask.astype(np.float32), reference.affine)


def _motion_figure(
    confounds: pd.DataFrame, repetition_time: float, fd_threshold: float, dvars_threshold: float
) -> Figure:
    figure = Figure(figsize=(12, 6.4), layout="constrained")
    axes = figure.subplots(4, 1, sharex=True)
    time = np.arange(len(confounds)) * repetition_time
    for name, color in zip("xyz", (_RED, "#4c956c", "#3d5a80"), strict=True):
        axes[0].plot(time, confounds[f"trans_{name}"], color=color, label=name, lw=1.2)
        degrees = np.degrees(confounds[f"rot_{name}"])
        axes[1].plot(time, degrees, color=color, label=name, lw=1.2)
    axes[2].plot(time, confounds["framewise_displacement"], color="black", lw=1)
    axes[2].axhline(fd_threshold, color=_RED, lw=0.8, ls="--")
    axes[3].plot(time, confounds["std_dvars"], color="black", lw=1)
    axes[3].axhline(dvars_threshold, color=_RED, lw=0.8, ls="--")
    for panel, label in zip(
        axes, ("translation (mm)", "rotation (degrees)", "FD (mm)", "std. DVARS"), strict=True
    ):
        panel.set_ylabel(label)
        panel.spines[["top", "right"]].set_visible(False)
    place = {"loc": "lower right", "bbox_to_anchor": (1.0, 0.98)}
    axes[0].legend(ncols=3, frameon=False, fontsize=9, **place)
    axes[3].set_xlabel("time (s)")
    axes[3].set_xlim(0, time[-1])
    figure.set_dpi(90)
    return figure


def _carpet(
    series: nib.Nifti1Image, mask: np.ndarray, tissues: np.ndarray, repetition_time: float
) -> Figure:
    figure = Figure(figsize=(12, 5.2))
    n_volumes = series.shape[3]
    time = np.linspace(-1, 1, n_volumes)
    basis = np.linalg.qr(np.column_stack([np.ones(n_volumes), time, time**2]))[0]
    data = series.dataobj
    blocks, names = [], []
    for label, name, most in ((1, "GM", 900), (2, "WM", 450), (3, "CSF", 250)):
        where = np.argwhere(mask & (tissues == label))
        if not len(where):
            continue
        chosen = where[np.unique(np.linspace(0, len(where) - 1, most).round().astype(int))]
        values = np.asarray(data)[tuple(chosen.T)].astype(float)
        values = values - (values @ basis) @ basis.T
        spread = values.std(axis=1, keepdims=True)
        blocks.append(values / np.where(spread > 0, spread, 1))
        names.append(name)
    if blocks:
        picture = np.concatenate(blocks)
        axes = figure.add_axes([0.06, 0.12, 0.91, 0.84])
        axes.imshow(
            picture,
            aspect="auto",
            cmap="gray",
            vmin=-2.5,
            vmax=2.5,
            interpolation="nearest",
            extent=(0, n_volumes * repetition_time, len(picture), 0),
        )
        edges = np.cumsum([0] + [len(b) for b in blocks])
        for edge in edges[1:-1]:
            axes.axhline(edge, color=_RED, lw=1.5)
        axes.set_yticks((edges[:-1] + edges[1:]) / 2, names)
        axes.set_xlabel("time (s)")
    figure.set_dpi(90)
    return figure
