"""Pictures of a subject's anatomy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from isocortex.preprocess.figures.book import CYAN, RED, YELLOW, FigureBook, Slices
from isocortex.preprocess.registration import load_template


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
    slices = Slices.around(np.asarray(mask.dataobj) > 0, mask.affine)
    outlines = [
        (slices.sample(mask), RED),
        (slices.sample(((labels == 1) | (labels == 2), dseg.affine)), YELLOW),
        (slices.sample((labels == 2, dseg.affine)), CYAN),
    ]
    book.add(
        slices.draw(slices.sample(t1w), outlines),
        "anat_tissues.png",
        "Brain mask and tissue classes",
        "Bias-corrected T1w with the outlines of the brain mask (red), of the grey matter "
        "(yellow) and of the white matter (cyan).",
    )
    resolution = float(np.linalg.norm(t1w_template.affine[:3, 0]))
    template = load_template(resolution)
    brain = np.asarray(load_template(resolution, "mask").dataobj)
    slices = Slices.around(brain > 0, template.affine)
    outlines = [
        (slices.sample((brain, template.affine)), RED),
        (slices.sample(load_template(resolution, "WM")), CYAN),
    ]
    ours, theirs = (slices.sample(image, order=3) for image in (t1w_template, template))
    book.add(
        slices.draw(np.maximum(ours, 0), outlines),
        "anat_template.png",
        "Registration to the template",
        "T1w in MNI152NLin2009aSym and the template in turn, both with the template's outlines: "
        "brain (red) and white matter (cyan). " + normalisation_words(qc),
        flicker=slices.draw(np.maximum(theirs, 0), outlines),
        labels=("T1w of the subject", "template"),
    )
    book.close(qc)


def normalisation_words(qc: Mapping[str, Any]) -> str:
    """What the numbers of `isocortex.preprocess.normalisation` say, in a sentence or two.

    Parameters
    ----------
    qc
        Numbers for the report.
    """
    said = [f"correlation with the template {qc['template_correlation']:.2f}"]
    for key, name in (("mask", "brain masks"), ("grey", "grey matter")):
        if (found := qc.get(f"dice_template_{key}")) is not None:
            said.append(f"Dice of the {name} {found:.2f}")
    if qc.get("jacobian_min") is not None:
        said.append(
            f"Jacobian determinant from {qc['jacobian_min']:.2f} to {qc['jacobian_max']:.2f}"
        )
    text = ", ".join(said)
    odd = str(qc.get("normalisation", "good"))
    return f"{text[0].upper()}{text[1:]}." + ("" if odd == "good" else f" To be looked at: {odd}.")
