"""A run without a T1w: its reference straight to the template, whose tissues stand in for it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import nibabel as nib
import numpy as np
from scipy import ndimage

from isocortex.preprocess.images import as_image
from isocortex.preprocess.registration import (
    align_head_to_template,
    downsample,
    load_template,
    register,
    warp,
)
from isocortex.preprocess.transforms import AffineTransform, Transform

logger = logging.getLogger(__name__)

# Of T2*-weighted images with grey matter 1; mutual information asks for the order alone.
_CONTRAST = {"GM": 1.0, "WM": 0.75, "CSF": 1.4}
TISSUES = ("gm", "wm", "csf")


def template_tissues(resolution: float) -> dict[str, np.ndarray]:
    """Shares of the template's tissues, by gm, wm and csf: what neither of the first two is.

    Parameters
    ----------
    resolution
        mm.
    """
    brain = np.asarray(load_template(resolution, "mask").dataobj) > 0.5
    grey, white = (
        np.clip(np.asarray(load_template(resolution, name).dataobj, np.float32), 0, 1) * brain
        for name in ("GM", "WM")
    )
    return {"gm": grey, "wm": white, "csf": np.clip(brain - grey - white, 0, 1)}


def template_as_bold(resolution: float) -> nib.Nifti1Image:
    """The template with the contrast of a BOLD reference: CSF brightest, white matter darkest.

    Parameters
    ----------
    resolution
        mm.
    """
    tissues = template_tissues(resolution)
    values = sum(_CONTRAST[name.upper()] * tissues[name] for name in TISSUES)
    return as_image(values.astype(np.float32), load_template(resolution).affine)


def normalise_reference(
    reference: nib.Nifti1Image, mask: np.ndarray, *, seed: int, resolution: float = 2.0
) -> tuple[list[Transform], list[Transform]]:
    """Affine and deformable (SyN) registration of a BOLD reference to the template.

    Parameters
    ----------
    reference
        Bias-corrected.
    mask
        Boolean, its brain, from itself alone.
    seed
        Of ANTs' sampling.
    resolution
        Of the registration, mm.

    Returns
    -------
    forward, inverse : list
        Template points to reference points, and back; one affine and one displacement field
        each.
    """
    values = np.where(mask, np.asarray(reference.dataobj, np.float32), 0)
    values = np.minimum(values, np.percentile(values[mask], 99))
    brain = as_image(values, reference.affine)
    start = align_head_to_template(brain, seed=seed)
    target = template_as_bold(resolution)
    # what lies beyond the field of view, often the cerebellum's lower half, must not pull
    view = as_image(np.ones(mask.shape, np.float32), reference.affine)
    seen = warp(view, [AffineTransform(start)], target) > 0.5
    near = ndimage.binary_dilation(np.asarray(target.dataobj) > 0, iterations=2)
    return register(
        target,
        downsample(brain, resolution),
        "SyN",
        seed=seed,
        fixed_mask=near & seen,
        initial=start,
        aff_iterations=(100, 50, 20),
        aff_shrink_factors=(4, 3, 2),
        aff_smoothing_sigmas=(3, 2, 1),
        reg_iterations=(60, 40, 0),
    )


def carry_tissues(
    inverse: Sequence[Transform], mask: nib.Nifti1Image, *, resolution: float = 2.0
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The template's brain and tissues on a reference's grid.

    Parameters
    ----------
    inverse
        Reference points to template points.
    mask
        The reference's brain, from itself alone.
    resolution
        Of the template, mm.

    Returns
    -------
    brain : numpy.ndarray
        Boolean: the template's brain, but no more than a voxel beyond the reference's own, so
        that a warp that went astray adds no air.
    tissues : dict
        gm, wm and csf: shares, float32, summing to one inside the brain.
    """
    template = load_template(resolution)
    found = {
        name: warp(as_image(values, template.affine), inverse, mask)
        for name, values in template_tissues(resolution).items()
    }
    total = sum(found.values())
    own = ndimage.binary_dilation(np.asarray(mask.dataobj) > 0)
    brain = (total > 0.5) & own
    share = np.where(brain, 1.0 / np.where(total > 0, total, 1), 0).astype(np.float32)
    return brain, {name: values * share for name, values in found.items()}
