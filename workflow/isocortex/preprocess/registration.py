"""Registration and bias field by ANTs, reproducible to the byte."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

# ITK counts its threads once, at its first use in the process: with more than one of them, sums
# differ in their last bits from run to run
os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = "1"

import ants
import nibabel as nib
import numpy as np
from scipy import ndimage

from isocortex.preprocess.images import as_image
from isocortex.preprocess.resampling import resample_volume
from isocortex.preprocess.transforms import (
    AffineTransform,
    Transform,
    apply_chain,
    grid_points,
    read_transforms,
    rigid_matrix,
    write_itk_affine,
)

logger = logging.getLogger(__name__)

TEMPLATE = "MNI152NLin2009aSym"
_BIAS_GRID = 8.0  # mm
_SEED_FOR_ZERO = 2**31 - 1
_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def make_deterministic(seed: int) -> None:
    """Let ANTs give the same bytes each time in this process; costs it its threads."""
    # ANTs takes a seed of 0 for the clock
    ants.config.set_ants_deterministic(on=True, seed_value=int(seed) or _SEED_FOR_ZERO)
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = "1"


def to_ants(image: nib.Nifti1Image) -> ants.ANTsImage:
    """A nibabel image as an ANTs image (float32, LPS+)."""
    affine = _LPS @ image.affine
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    return ants.from_numpy(
        np.asarray(image.dataobj, dtype=np.float32),
        origin=affine[:3, 3].tolist(),
        spacing=spacing.tolist(),
        direction=affine[:3, :3] / spacing,
    )


def load_template(resolution: float, kind: str = "T1w") -> nib.Nifti1Image:
    """The MNI152NLin2009aSym template (skull-stripped) that nilearn's package carries.

    Parameters
    ----------
    resolution
        Voxel size, mm.
    kind
        "T1w", "mask", "GM" or "WM" (the last two are probabilities).
    """
    from nilearn import datasets

    load = {
        "T1w": datasets.load_mni152_template,
        "mask": datasets.load_mni152_brain_mask,
        "GM": datasets.load_mni152_gm_template,
        "WM": datasets.load_mni152_wm_template,
    }[kind]
    if float(resolution).is_integer():
        image = load(resolution=int(resolution))
    else:
        from nilearn.image import resample_img

        kind_order = "nearest" if kind == "mask" else "continuous"
        image = resample_img(
            load(resolution=1),
            np.eye(3) * resolution,
            interpolation=kind_order,
            force_resample=True,
            copy_header=True,
        )
    return as_image(np.asarray(image.get_fdata(), dtype=np.float32), image.affine)


def downsample(image: nib.Nifti1Image, resolution: float) -> nib.Nifti1Image:
    """An image smoothed and resampled to isotropic voxels along its own axes.

    An image that is at most that fine already is returned as it is.
    """
    size = np.linalg.norm(image.affine[:3, :3], axis=0)
    factor = resolution / size
    if (factor <= 1.05).all():
        return image
    values = np.asarray(image.dataobj, np.float32)
    # sigma of the Gaussian that takes the old voxel's width to the new one's
    sigma = np.sqrt(np.maximum(factor**2 - 1, 0)) / 2.355
    smooth = ndimage.gaussian_filter(values, sigma, mode="nearest")
    factor = np.maximum(factor, 1.0)
    shape = np.maximum(np.floor((np.array(values.shape) - 1) / factor).astype(int) + 1, 1)
    affine = np.array(image.affine)
    affine[:3, :3] = image.affine[:3, :3] * factor
    points = grid_points(shape, affine)
    return as_image(resample_volume(smooth, image.affine, points, shape, order=1), affine)


def correct_bias(image: nib.Nifti1Image, *, mask: np.ndarray | None = None) -> np.ndarray:
    """Divide out the bias field (N4, on a grid of 8 mm).

    Parameters
    ----------
    image
        A T1w volume or BOLD reference.
    mask
        Where the field is fitted; Otsu's foreground by default.

    Returns
    -------
    numpy.ndarray
        float32, never negative, with the foreground's median unchanged.
    """
    values = np.maximum(np.asarray(image.dataobj, np.float32), 0)
    if mask is None:
        mask = foreground(values)
    # the field is smooth: fitted at 8 mm, its logarithm is interpolated to the full grid
    top = np.percentile(values[mask], 99.8)
    small = downsample(as_image(np.minimum(values, top), image.affine), _BIAS_GRID)
    soft = downsample(as_image(mask.astype(np.float32), image.affine), _BIAS_GRID)
    inside = as_image((np.asarray(soft.dataobj) > 0.5).astype(np.float32), soft.affine)
    field = ants.n4_bias_field_correction(
        to_ants(small),
        mask=to_ants(inside),
        shrink_factor=1,
        convergence={"iters": [30, 20], "tol": 1e-4},
        spline_param=160,
        return_bias_field=True,
    ).numpy()
    log_field = np.log(np.where(np.isfinite(field) & (field > 1e-3), field, 1.0))
    if small.shape != image.shape:
        points = grid_points(image.shape, image.affine)
        log_field = _inside_grid(log_field, small.affine, points).reshape(image.shape)
    log_field = log_field - np.median(log_field[mask])
    return (values / np.exp(log_field)).astype(np.float32)


def _inside_grid(values: np.ndarray, affine: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Linear interpolation that holds the edge's value beyond the edge."""
    to_index = np.linalg.inv(affine)
    index = (points @ to_index[:3, :3].T + to_index[:3, 3]).T
    return ndimage.map_coordinates(values, index, order=1, mode="nearest", output=np.float32)


def foreground(values: np.ndarray) -> np.ndarray:
    """Boolean mask of the head: above Otsu's threshold, largest piece, holes filled."""
    from skimage.filters import threshold_otsu

    positive = values[values > 0]
    if positive.size < 10:
        return values > 0
    # on the log scale the bright scalp does not push the threshold into the brain
    threshold = np.exp(threshold_otsu(np.log(positive + 1e-3 * positive.max())))
    mask = values > threshold * 0.8
    return ndimage.binary_fill_holes(largest_piece(mask))


def largest_piece(mask: np.ndarray) -> np.ndarray:
    """The largest connected piece of a mask."""
    labels, n = ndimage.label(mask)
    if n < 2:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return labels == sizes.argmax()


def register(
    fixed: nib.Nifti1Image,
    moving: nib.Nifti1Image,
    kind: str,
    *,
    seed: int,
    fixed_mask: np.ndarray | None = None,
    moving_mask: np.ndarray | None = None,
    initial: np.ndarray | None = None,
    **options: object,
) -> tuple[list[Transform], list[Transform]]:
    """Register with ANTs.

    Parameters
    ----------
    fixed, moving
        3D images.
    kind
        ANTs' name: "Rigid", "Affine", "SyN", "SyNOnly".
    seed
        Of ANTs' sampling.
    fixed_mask, moving_mask
        Boolean, where the metric is evaluated.
    initial
        4 x 4 RAS matrix, fixed mm to moving mm, to start from; centres of mass by default.
    **options
        Passed to ``ants.registration``.

    Returns
    -------
    forward, inverse : list
        Chains of transforms: fixed points to moving points, and back.
    """
    make_deterministic(seed)
    with tempfile.TemporaryDirectory() as folder:
        if initial is not None:
            options["initial_transform"] = str(
                write_itk_affine(Path(folder) / "initial.txt", initial)
            )
        masks = {}
        if fixed_mask is not None:
            masks["mask"] = to_ants(as_image(fixed_mask.astype(np.float32), fixed.affine))
        if moving_mask is not None:
            mask_image = as_image(moving_mask.astype(np.float32), moving.affine)
            masks["moving_mask"] = to_ants(mask_image)
        result = ants.registration(
            to_ants(fixed),
            to_ants(moving),
            kind,
            outprefix=f"{folder}/out_",
            mask_all_stages=bool(masks),
            write_composite_transform=True,
            **masks,
            **options,
        )
        forward = read_transforms(_only(result["fwdtransforms"]))
        inverse = read_transforms(_only(result["invtransforms"]))
    return forward, inverse


def _only(paths: str | Sequence[str]) -> str:
    return paths if isinstance(paths, str) else paths[0]


def linear_part(chain: Sequence[Transform]) -> np.ndarray:
    """The 4 x 4 matrix of a chain that holds only affines."""
    matrix = np.eye(4)
    for transform in chain:
        if not isinstance(transform, AffineTransform):
            raise TypeError("the chain holds a displacement field")
        matrix = transform.matrix @ matrix
    return matrix


def warp(
    image: nib.Nifti1Image,
    chain: Sequence[Transform],
    target: nib.Nifti1Image,
    *,
    order: int = 1,
) -> np.ndarray:
    """Resample an image on a target's grid through a chain (target points to image points)."""
    points = apply_chain(chain, grid_points(target.shape, target.affine))
    values = np.asarray(image.dataobj, np.float32)
    return resample_volume(values, image.affine, points, target.shape, order=order)


def align_head_to_template(head: nib.Nifti1Image, *, seed: int) -> np.ndarray:
    """Affine from the template to a head with its skull and neck on.

    The template has no skull, so that the metric is taken within the template's brain and a rim
    of 4 mm; the start puts the centre of the head's upper 15 cm on the template's centre. Three
    pitches of the head are tried, and the one with the most mutual information goes on.

    Parameters
    ----------
    head
        Bias-corrected T1w.
    seed
        Of ANTs' sampling.

    Returns
    -------
    numpy.ndarray
        4 x 4, template mm to head mm.
    """
    template, brain = load_template(4.0), load_template(4.0, "mask")
    rim = ndimage.binary_dilation(np.asarray(brain.dataobj) > 0.5, iterations=1)
    small = clipped(downsample(head, 4.0))
    start = _centre_start(small, template, rim)
    centre = grid_points(template.shape, template.affine)[rim.ravel()].mean(axis=0)
    best: tuple[float, np.ndarray] | None = None
    for pitch in (0.0, -15.0, 15.0):
        tilt = rigid_matrix(np.array([0, 0, 0, np.radians(pitch), 0, 0]), centre)
        chain, _ = register(
            template,
            small,
            "Affine",
            seed=seed,
            fixed_mask=rim,
            initial=start @ tilt,
            aff_iterations=(100, 50, 50),
            aff_shrink_factors=(3, 2, 1),
            aff_smoothing_sigmas=(2, 1, 0),
            aff_random_sampling_rate=0.5,
        )
        score = _mutual_information(
            np.asarray(template.dataobj)[rim], warp(small, chain, template)[rim]
        )
        logger.info("head to template from a pitch of %+.0f degrees: MI %.4f", pitch, score)
        if best is None or score > best[0]:
            best = (score, linear_part(chain))
    return best[1]


def clipped(image: nib.Nifti1Image) -> nib.Nifti1Image:
    """An image without negative values and without the brightest hundredth of its positive ones."""
    values = np.asarray(image.dataobj, np.float32)
    positive = values[values > 0]
    return as_image(np.clip(values, 0, np.percentile(positive, 99)), image.affine)


def _centre_start(
    head: nib.Nifti1Image, template: nib.Nifti1Image, brain: np.ndarray
) -> np.ndarray:
    """Translation that puts the template's brain at the upper middle of the head."""
    points = grid_points(head.shape, head.affine)
    inside = points[foreground(np.asarray(head.dataobj, np.float32)).ravel()]
    target = grid_points(template.shape, template.affine)[brain.ravel()]
    top = np.percentile(inside[:, 2], 99.8)
    upper = inside[inside[:, 2] > top - 150]
    matrix = np.eye(4)
    matrix[:3, 3] = (upper.min(axis=0) + upper.max(axis=0)) / 2 - (
        target.min(axis=0) + target.max(axis=0)
    ) / 2
    # scalp and skull lie some 12 mm above the brain
    above = 0.0 if _is_stripped(head) else 12.0
    matrix[2, 3] = (top - above) - target[:, 2].max()
    return matrix


def _is_stripped(head: nib.Nifti1Image) -> bool:
    """Whether more than half of the volume is exactly zero: a skull-stripped T1w."""
    return bool((np.asarray(head.dataobj) <= 0).mean() > 0.5)


def _mutual_information(x: np.ndarray, y: np.ndarray, bins: int = 32) -> float:
    counts, _, _ = np.histogram2d(x, y, bins)
    p = counts / counts.sum()
    outer = p.sum(axis=1, keepdims=True) * p.sum(axis=0, keepdims=True)
    used = p > 0
    return float((p[used] * np.log(p[used] / outer[used])).sum())


def normalise(
    brain: nib.Nifti1Image, affine: np.ndarray, *, seed: int, resolution: float = 2.0
) -> tuple[list[Transform], list[Transform]]:
    """Deformable registration of a stripped T1w to the template (SyN, after the affine).

    Parameters
    ----------
    brain
        Bias-corrected T1w, zero outside the brain.
    affine
        4 x 4, template mm to T1w mm, to start from.
    seed
        Of ANTs' sampling.
    resolution
        Of the registration, mm.

    Returns
    -------
    forward, inverse : list
        Template points to T1w points, and back; one affine and one displacement field each.
    """
    template = load_template(resolution)
    small = clipped(downsample(brain, resolution))
    return register(
        template,
        small,
        "SyN",
        seed=seed,
        initial=affine,
        aff_iterations=(100, 50, 20),
        aff_shrink_factors=(4, 3, 2),
        aff_smoothing_sigmas=(3, 2, 1),
        reg_iterations=(60, 40, 0),
    )


def coregister(
    reference: nib.Nifti1Image,
    mask: np.ndarray,
    t1w: nib.Nifti1Image,
    t1w_mask: np.ndarray,
    *,
    seed: int,
) -> np.ndarray:
    """Rigid registration of a BOLD reference to a T1w by mutual information.

    The reference is the fixed image (its grid is the coarser, and may be a slab), the T1w's
    brain the moving one. It starts from the scanner's coordinates and from the centres of mass
    of both brains; the one with the most mutual information at the end is kept.

    Parameters
    ----------
    reference
        Bias-corrected BOLD reference.
    mask
        Boolean, its brain, roughly.
    t1w
        Bias-corrected T1w.
    t1w_mask
        Boolean, its brain.
    seed
        Of ANTs' sampling.

    Returns
    -------
    numpy.ndarray
        4 x 4, T1w mm to reference mm.
    """
    brain = as_image(np.asarray(t1w.dataobj, np.float32) * t1w_mask, t1w.affine)
    small = clipped(downsample(brain, 2.0))
    fixed = clipped(reference)
    rim = ndimage.binary_dilation(mask, iterations=1)
    shift = np.eye(4)
    moving_points = grid_points(t1w.shape, t1w.affine)[t1w_mask.ravel()]
    fixed_points = grid_points(fixed.shape, fixed.affine)[mask.ravel()]
    shift[:3, 3] = moving_points.mean(axis=0) - fixed_points.mean(axis=0)
    starts = {"scanner": np.eye(4), "centres": shift}
    if np.linalg.norm(shift[:3, 3]) < 8:
        del starts["centres"]
    best: tuple[float, np.ndarray] | None = None
    if len(starts) > 1:
        # a few coarse steps from each tell the better one
        coarse = downsample(fixed, 6.0) if min(fixed.shape) >= 24 else fixed
        near = warp(as_image(rim.astype(np.float32), fixed.affine), [], coarse) > 0.5
        for name, start in starts.items():
            chain, _ = register(
                coarse,
                small,
                "Rigid",
                seed=seed,
                fixed_mask=near,
                initial=start,
                aff_iterations=(60,),
                aff_shrink_factors=(1,),
                aff_smoothing_sigmas=(1,),
                aff_random_sampling_rate=1.0,
            )
            moved = warp(small, chain, coarse)
            score = _mutual_information(np.asarray(coarse.dataobj)[near], moved[near])
            logger.info("BOLD to T1w from the %s: MI %.4f", name, score)
            if best is None or score > best[0]:
                best = (score, linear_part(chain))
    chain, _ = register(
        fixed,
        small,
        "Rigid",
        seed=seed,
        fixed_mask=rim,
        initial=best[1] if best else starts["scanner"],
        aff_iterations=(60, 30),
        aff_shrink_factors=(2, 1) if min(fixed.shape) >= 12 else (1, 1),
        aff_smoothing_sigmas=(1, 0),
        aff_random_sampling_rate=0.25,
    )
    return np.linalg.inv(linear_part(chain))
