"""Pictures of one run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd

from isocortex.preprocess.figures.anatomy import normalisation_words
from isocortex.preprocess.figures.book import CYAN, RED, YELLOW, FigureBook, Slices
from isocortex.preprocess.figures.courses import carpet_figure, marked, motion_figure
from isocortex.preprocess.figures.distortion import add_distortion_figure
from isocortex.preprocess.transforms import AffineTransform


def bold_figures(
    folder: Path,
    *,
    reference: nib.Nifti1Image,
    mean: nib.Nifti1Image,
    series: nib.Nifti1Image,
    mask: np.ndarray,
    tissues: np.ndarray,
    crown: np.ndarray,
    tsnr: nib.Nifti1Image,
    to_t1w: np.ndarray,
    t1w: nib.Nifti1Image,
    dseg: nib.Nifti1Image,
    confounds: pd.DataFrame,
    repetition_time: float,
    fd_threshold: float,
    dvars_threshold: float,
    qc: Mapping[str, Any],
    recorded: nib.Nifti1Image | None = None,
) -> None:
    """Coregistration, coverage, motion, carpet plot, tSNR and ghosts of one run.

    Parameters
    ----------
    folder
        Existing folder for the PNG files, figures.json and qc.json.
    reference, series, mask, tissues, crown, tsnr
        In the space of the BOLD reference.
    mean
        Mean of the aligned volumes over the whole field of view, with its bias field.
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
    recorded
        Reference before its correction for susceptibility distortion, where `mean` is corrected.
    """
    book = FigureBook(folder)
    labels = np.asarray(dseg.dataobj)
    there = [AffineTransform(to_t1w)]
    slices = Slices.around(labels > 0, dseg.affine)
    brain = slices.sample((labels > 0, dseg.affine))
    anatomy = np.maximum(slices.sample(t1w), 0)
    outlines = [(brain, RED), (slices.sample((labels == 2, dseg.affine)), CYAN)]
    # without a T1w the template, carried to the reference, stands in for it
    alone = qc.get("anatomy") == "template"
    if alone:
        title, other = "Registration to the template", "template"
        text = "BOLD reference and the template, carried to it for want of a T1w, in turn"
    else:
        title, other = "Coregistration to the T1w", "T1w"
        text = "BOLD reference in the T1w's space and the T1w in turn"
    book.add(
        slices.draw(np.maximum(slices.sample(reference, there, order=3), 0), outlines),
        "bold_coregistration.png",
        title,
        f"{text}, both with the {other}'s outlines: brain mask (red) and white matter (cyan). "
        + (normalisation_words(qc) if alone else _registration(qc)),
        flicker=slices.draw(anatomy, outlines),
        labels=("BOLD reference", other),
    )
    if recorded is not None:
        add_distortion_figure(book, recorded=recorded, undistorted=mean, qc=qc)
    # a field of view ends above and below: axial slices would not show it
    upright = Slices.around(labels > 0, dseg.affine, rows=(1, 0))
    limits = [
        (upright.sample((labels > 0, dseg.affine)), RED),
        (upright.sample((mask.astype(np.float32), reference.affine), there), YELLOW),
    ]
    book.add(
        upright.draw(np.maximum(upright.sample(t1w), 0), limits),
        "bold_coverage.png",
        "Coverage of the run",
        f"{other[0].upper()}{other[1:]} with the outlines of its brain (red) and of the run's "
        "brain mask (yellow). " + _coverage(qc),
    )
    thresholds = {
        "repetition_time": repetition_time,
        "fd_threshold": fd_threshold,
        "dvars_threshold": dvars_threshold,
    }
    n_outliers = len(marked(confounds, "motion_outlier"))
    book.add(
        motion_figure(confounds, **thresholds),
        "bold_motion.png",
        "Head motion",
        f"Translations, rotations, framewise displacement (FD; dashed: {fd_threshold:g} mm) and "
        f"standardised DVARS (dashed: {dvars_threshold:g}). Bands: {n_outliers} of "
        f"{len(confounds)} volumes are motion outliers (orange); grey before the steady state.",
        coloured=True,
    )
    values = np.asarray(series.dataobj)
    regions = {label: mask & (tissues == label) for label in (1, 2, 3)} | {4: crown}
    book.add(
        carpet_figure({k: values[where] for k, where in regions.items()}, confounds, **thresholds),
        "bold_carpet.png",
        "Carpet plot",
        "Framewise displacement, DVARS and global signal (percent change) over voxels by tissue; "
        "the crown is the band of two voxels around the brain, where motion shows first. A row is "
        "the mean of "
        "neighbouring voxels, without its quadratic trend, from -2 (black) to 2 standard "
        "deviations. Orange: motion outliers.",
        coloured=True,
    )
    ratio = np.asarray(tsnr.dataobj)
    top = float(np.percentile(ratio[mask], 98))
    shown = slices.sample((ratio, tsnr.affine), there)
    book.add(
        slices.draw(
            np.where((brain > 0.5) & (shown > 0), shown, np.nan),
            [(brain, RED)],
            cmap="viridis",
            limits=(0.0, max(top, 1e-6)),
            colorbar="tSNR",
        ),
        "bold_tsnr.png",
        "Temporal signal-to-noise ratio",
        f"Mean over standard deviation in time, drift included; median {qc['median_tsnr']:.0f} "
        "inside the brain mask.",
        coloured=True,
    )
    _ghosts(book, mean, mask, qc)
    book.close(qc)


def _registration(qc: Mapping[str, Any]) -> str:
    before, after = (qc.get(f"coregistration_cost_{when}") for when in ("before", "after"))
    if before is None or after is None:
        return ""
    taken = (
        "was taken" if qc.get("coregistration_accepted") == "bbr" else "was no better and not taken"
    )
    return (
        f"Cost at the white matter's boundary: {before:.3f} after mutual information, "
        f"{after:.3f} after the boundary-based registration, which {taken}."
    )


def _coverage(qc: Mapping[str, Any]) -> str:
    said = [
        f"{qc[key]:.1f} % of the {name}"
        for key, name in (("coverage_brain", "brain"), ("coverage_template", "template's brain"))
        if qc.get(key) is not None
    ]
    return f"The field of view holds {' and '.join(said)}." if said else ""


def _ghosts(
    book: FigureBook, mean: nib.Nifti1Image, mask: np.ndarray, qc: Mapping[str, Any]
) -> None:
    """The background of the mean image, where Nyquist ghosts lie at half of the field of view."""
    # upright, the whole field of view: ghosts wrap around its edge
    upright = nib.as_closest_canonical(nib.Nifti1Image(np.asarray(mean.dataobj), mean.affine))
    brain = np.asarray(
        nib.as_closest_canonical(nib.Nifti1Image(mask.astype(np.uint8), mean.affine)).dataobj
    )
    image = np.asarray(upright.dataobj, np.float32)
    slices = Slices(image.shape, upright.affine, rows=(2,))
    inside = brain > 0
    outlines = [(slices.take(brain), RED)]
    for axis, color in ((1, YELLOW), (0, CYAN)):
        ghost = np.roll(inside, inside.shape[axis] // 2, axis=axis) & ~inside
        outlines.append((slices.take(ghost), color))
    signal = float(np.median(image[inside])) if inside.any() else 1.0
    found = ", ".join(
        f"{100 * qc[key]:.1f} % {name}"
        for key, name in (("gsr_y", "back to front"), ("gsr_x", "left to right"))
        if qc.get(key) is not None
    )
    book.add(
        slices.draw(slices.take(image), outlines, limits=(0.0, 0.2 * max(signal, 1e-6))),
        "bold_ghosts.png",
        "Ghosts in the background",
        "Mean of the aligned volumes, white from a fifth of the brain's median intensity, with the "
        "outlines of the brain (red) and of where its Nyquist ghost would lie for phase encoding "
        "back to front (yellow) and left to right (cyan)."
        + (f" Ghost to signal: {found}." if found else ""),
    )
