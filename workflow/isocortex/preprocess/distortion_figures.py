"""Pictures by which a field and what it corrects are judged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from isocortex.preprocess.figures.book import FigureBook, mosaic
from isocortex.preprocess.masks import epi_mask
from isocortex.preprocess.registration import foreground
from isocortex.preprocess.resampling import grid_around, resample_volume
from isocortex.preprocess.transforms import grid_points

_RESOLUTION = 2.0


def _shown(
    values: np.ndarray, affine: np.ndarray, shape: tuple[int, ...], grid: np.ndarray
) -> np.ndarray:
    """An image on an upright grid, for slicing."""
    return resample_volume(values, affine, grid_points(shape, grid), shape, order=1)


def fieldmap_figures(
    folder: Path,
    *,
    field: nib.Nifti1Image,
    reference: nib.Nifti1Image,
    before: nib.Nifti1Image | None,
    after: nib.Nifti1Image | None,
    qc: Mapping[str, Any],
) -> None:
    """The field on its reference, and images of opposite phase encoding in turn.

    Parameters
    ----------
    folder
        Existing folder for the PNG files, figures.json and qc.json.
    field
        Hz.
    reference
        Undistorted, on the field's grid.
    before, after
        Two images (x, y, z, 2) as recorded and undistorted; None where the field was measured.
    qc
        Numbers for the report.
    """
    book = FigureBook(folder)
    values = np.asarray(reference.dataobj, np.float32)
    head = foreground(values) if before is None else epi_mask(values)
    shape, grid = grid_around(head, reference.affine, resolution=_RESOLUTION, margin=8.0)
    outline = _shown(head.astype(np.float32), reference.affine, shape, grid)
    hertz = _shown(np.asarray(field.dataobj, np.float32), field.affine, shape, grid)
    top = max(abs(qc["field_low_hz"]), abs(qc["field_high_hz"]), 1.0)
    book.add(
        mosaic(
            np.where(outline > 0.5, hertz, np.nan),
            [(outline, "#888888")],
            resolution=_RESOLUTION,
            cmap="RdBu_r",
            limits=(-top, top),
            colorbar="field (Hz)",
        ),
        "fieldmap.png",
        "Fieldmap",
        f"Off-resonance in Hz inside the head, from {qc['field_low_hz']:.0f} to "
        f"{qc['field_high_hz']:.0f} Hz in 99 % of it.",
        coloured=True,
    )
    if before is not None and after is not None:
        for image, name, title, text in (
            (before, "opposite_before.png", "Opposite phase encoding as recorded", "before"),
            (after, "opposite_after.png", "Opposite phase encoding, undistorted", "after"),
        ):
            pair = np.asarray(image.dataobj, np.float32)
            first, second = (
                mosaic(
                    np.maximum(_shown(pair[..., n], image.affine, shape, grid), 0),
                    [(outline, "#e4572e")],
                    resolution=_RESOLUTION,
                )
                for n in range(2)
            )
            book.add(
                first,
                name,
                title,
                f"Both directions in turn; their correlation inside the brain is "
                f"{qc[f'correlation_{text}']:.3f}. Outline: brain of the undistorted mean.",
                flicker=second,
                labels=("first direction", "opposite direction"),
            )
    book.close(qc)


def add_distortion_figure(
    folder: Path,
    *,
    recorded: nib.Nifti1Image,
    corrected: nib.Nifti1Image,
    qc: Mapping[str, Any],
) -> None:
    """Add a run's reference before and after its correction to its pictures.

    Parameters
    ----------
    folder
        Of the run's figures, with figures.json.
    recorded, corrected
        References on one grid.
    qc
        Numbers for the report.
    """
    book = FigureBook(folder)
    after = np.asarray(corrected.dataobj, np.float32)
    head = epi_mask(after)
    shape, grid = grid_around(head, corrected.affine, resolution=_RESOLUTION, margin=8.0)
    outline = _shown(head.astype(np.float32), corrected.affine, shape, grid)
    pictures = [
        mosaic(
            np.maximum(_shown(values, corrected.affine, shape, grid), 0),
            [(outline, "#e4572e")],
            resolution=_RESOLUTION,
        )
        for values in (np.asarray(recorded.dataobj, np.float32), after)
    ]
    book.add(
        pictures[0],
        "bold_distortion.png",
        "Susceptibility distortion",
        f"BOLD reference as recorded and undistorted ({qc['distortion']}), in turn, with the "
        f"outline of the brain of the undistorted one; signal moved by "
        f"{qc['distortion_median_mm']:.1f} mm in the median and {qc['distortion_max_mm']:.1f} mm "
        "at most.",
        flicker=pictures[1],
        labels=("recorded", "undistorted"),
    )
    book.close(qc)
