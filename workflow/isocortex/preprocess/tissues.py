"""Brain and tissues of a T1w, from the template's."""

from __future__ import annotations

from collections.abc import Sequence

import ants
import nibabel as nib
import numpy as np
from scipy import ndimage

from isocortex.preprocess.images import as_image
from isocortex.preprocess.registration import (
    clipped,
    downsample,
    largest_piece,
    load_template,
    make_deterministic,
    register,
    to_ants,
    warp,
)
from isocortex.preprocess.transforms import Transform


def brain_mask(
    head: nib.Nifti1Image, affine: np.ndarray, *, seed: int
) -> tuple[np.ndarray, list[Transform]]:
    """Brain mask of a T1w: the template's, warped to the head, then fitted to its tissue.

    Parameters
    ----------
    head
        Bias-corrected T1w, with its skull or already stripped.
    affine
        4 x 4, template mm to head mm (`align_head_to_template`).
    seed
        Of ANTs' sampling.

    Returns
    -------
    mask : numpy.ndarray
        Boolean, on the head's grid.
    chain : list
        Template points to head points.
    """
    template, brain = load_template(4.0), load_template(4.0, "mask")
    rim = ndimage.binary_dilation(np.asarray(brain.dataobj) > 0.5, iterations=1)
    small = clipped(downsample(head, 4.0))
    chain, back = register(
        template,
        small,
        "SyNOnly",
        seed=seed,
        fixed_mask=rim,
        initial=affine,
        reg_iterations=(40, 40, 20),
    )
    warped = warp(load_template(2.0, "mask"), back, head)
    size = np.linalg.norm(head.affine[:3, :3], axis=0)
    outer = ndimage.gaussian_filter(warped, 1.5 / size) > 0.5
    if outer.sum() < 1000:
        return outer, chain
    # everything below happens near the brain: a box around it is a third of the volume
    found = np.argwhere(outer)
    pad = np.ceil(12.0 / size).astype(int)
    low = np.maximum(found.min(axis=0) - pad, 0)
    high = np.minimum(found.max(axis=0) + pad + 1, outer.shape)
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    mask = np.zeros(outer.shape, bool)
    values = np.asarray(head.dataobj, np.float32)[box]
    mask[box] = _fit_to_tissue(outer[box], values, size)
    return mask, chain


def _fit_to_tissue(outer: np.ndarray, values: np.ndarray, size: np.ndarray) -> np.ndarray:
    """The template's mask on a head, moved by up to 2 mm to where the tissue ends."""

    def distance(mask: np.ndarray) -> np.ndarray:
        """mm from each voxel of a mask to the nearest outside of it."""
        return ndimage.distance_transform_edt(mask, sampling=size)

    step = float(size.max())
    depth, reach = distance(outer), distance(~outer)
    deep = depth > 8.0
    # tissue is what reaches two fifths of the median inside; at the rim dark CSF, dura and bone
    # fall away, and thin bridges to the scalp are cut by the opening
    tissue = (values > 0.4 * np.median(values[deep])) & (
        values < 1.8 * np.percentile(values[deep], 95)
    )
    near = (reach <= 2.0) & tissue
    eroded = distance(near) > max(2.0, step)
    opened = largest_piece((distance(~eroded) <= max(2.0, step)) & near | deep)
    # CSF between the gyri belongs to the mask: closing by 5 mm
    closed = distance(distance(~opened) <= 5.0) > 5.0
    filled = ndimage.binary_fill_holes(closed | opened)
    smooth = ndimage.gaussian_filter(filled.astype(np.float32), 1.0 / size) > 0.5
    mask = smooth & (reach <= 2.0) & (values > 0)
    return largest_piece(ndimage.binary_fill_holes(mask))


def tissue_classes(
    head: nib.Nifti1Image, mask: np.ndarray, back: Sequence[Transform], *, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Grey matter, white matter and CSF by Atropos with the template's priors.

    Parameters
    ----------
    head
        Bias-corrected T1w.
    mask
        Boolean brain mask.
    back
        Chain from head points to template points.
    seed
        Of ANTs. Atropos takes a constant one of its own.

    Returns
    -------
    labels : numpy.ndarray
        uint8: 0 outside, 1 GM, 2 WM, 3 CSF (the order of BIDS).
    probabilities : numpy.ndarray
        float32 (3, x, y, z), summing to 1 inside the mask.
    """
    make_deterministic(seed)
    box = tuple(
        slice(max(low - 2, 0), high + 3)
        for low, high in zip(np.argwhere(mask).min(0), np.argwhere(mask).max(0), strict=True)
    )
    affine = np.array(head.affine)
    affine[:3, 3] += affine[:3, :3] @ np.array([s.start for s in box])
    values = np.asarray(head.dataobj, np.float32)[box]
    inside = mask[box]
    crop = as_image(np.clip(values, 0, np.percentile(values[inside], 99.9)) * inside, affine)
    grey = np.clip(warp(load_template(2.0, "GM"), back, crop), 0, 1)
    white = np.clip(warp(load_template(2.0, "WM"), back, crop), 0, 1)
    fluid = np.clip(1 - grey - white, 0, 1)
    priors = np.stack([fluid, grey, white]) + 0.05
    priors = priors / priors.sum(axis=0)
    result = ants.atropos(
        a=to_ants(crop),
        x=to_ants(as_image(inside.astype(np.float32), affine)),
        i=[to_ants(as_image(p.astype(np.float32), affine)) for p in priors],
        m="[0.1,1x1x1]",
        c="[5,0]",
        priorweight=0.25,
        # the order in which the Markov field is updated is random, and from the clock otherwise
        r=0,
    )
    found = np.stack([p.numpy() for p in result["probabilityimages"]])[[1, 2, 0]]
    found = np.clip(found, 0, 1) * inside
    total = found.sum(axis=0)
    found = np.where(total > 0, found / np.where(total > 0, total, 1), 0)
    # a voxel for which Atropos found nothing keeps its prior
    lost = inside & (total <= 0)
    found[:, lost] = priors[[1, 2, 0]][:, lost]
    probabilities = np.zeros((3, *mask.shape), np.float32)
    probabilities[(slice(None), *box)] = found
    labels = np.where(mask, probabilities.argmax(axis=0) + 1, 0).astype(np.uint8)
    return labels, probabilities
