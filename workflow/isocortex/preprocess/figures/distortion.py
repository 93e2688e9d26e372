"""Pictures by which a field and what it corrects are judged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from isocortex.preprocess.figures.book import MUTED, RED, FigureBook, Slices
from isocortex.preprocess.masks import epi_mask
from isocortex.preprocess.registration import foreground

_FIELDS = {
    "phasediff": "a phase-difference map",
    "phases": "two phase maps",
    "fieldmap": "a measured field",
    "pepolar": "images of opposite phase encoding",
}


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
    slices = Slices.around(head, reference.affine)
    outline = slices.sample((head.astype(np.float32), reference.affine))
    top = max(abs(qc["field_low_hz"]), abs(qc["field_high_hz"]), 1.0)
    book.add(
        slices.draw(
            np.where(outline > 0.5, slices.sample(field), np.nan),
            [(outline, MUTED)],
            cmap="RdBu_r",
            limits=(-top, top),
            colorbar="field (Hz)",
        ),
        "fieldmap.png",
        "Fieldmap",
        f"Off-resonance inside the head, from {qc['field_low_hz']:.0f} to "
        f"{qc['field_high_hz']:.0f} Hz in 99 % of it.",
        coloured=True,
    )
    if before is not None and after is not None:
        for image, name, title, when in (
            (before, "opposite_before.png", "Opposite phase encoding as recorded", "before"),
            (after, "opposite_after.png", "Opposite phase encoding, undistorted", "after"),
        ):
            pair = np.asarray(image.dataobj, np.float32)
            first, second = (
                _outlined(slices, (pair[..., n], image.affine), outline) for n in range(2)
            )
            book.add(
                first,
                name,
                title,
                "Both directions in turn, with the outline of the brain of the undistorted mean; "
                f"their correlation inside the brain is {qc[f'correlation_{when}']:.3f}.",
                flicker=second,
                labels=("first direction", "opposite direction"),
            )
    book.close(qc)


def add_distortion_figure(
    book: FigureBook,
    *,
    recorded: nib.Nifti1Image,
    undistorted: nib.Nifti1Image,
    qc: Mapping[str, Any],
) -> None:
    """Add a run's reference before and after its correction to its pictures.

    Parameters
    ----------
    book
        Of the run.
    recorded, undistorted
        References on one grid.
    qc
        Numbers for the report.
    """
    head = epi_mask(np.asarray(undistorted.dataobj, np.float32))
    slices = Slices.around(head, undistorted.affine)
    outline = slices.sample((head.astype(np.float32), undistorted.affine))
    first, second = (_outlined(slices, image, outline) for image in (recorded, undistorted))
    book.add(
        first,
        "bold_distortion.png",
        "Susceptibility distortion",
        "BOLD reference as recorded and undistorted in turn (from "
        f"{_FIELDS[qc['distortion']]}), with the outline of the brain of the undistorted one; "
        f"signal moved by {qc['distortion_median_mm']:.1f} mm in the median and by "
        f"{qc['distortion_max_mm']:.1f} mm where most.",
        flicker=second,
        labels=("recorded", "undistorted"),
    )


def _outlined(
    slices: Slices, image: nib.Nifti1Image | tuple[np.ndarray, np.ndarray], outline: np.ndarray
):
    return slices.draw(np.maximum(slices.sample(image), 0), [(outline, RED)])
