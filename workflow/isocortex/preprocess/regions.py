"""Regions of an atlas on the grid of a subject's BOLD: behind the rule transform_regions."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from isocortex import bids
from isocortex.errors import InputError
from isocortex.preprocess.images import clean_affine, open_image, read_values, save_image
from isocortex.preprocess.outputs import put_all
from isocortex.preprocess.resampling import resample_labels, voxel_offsets
from isocortex.preprocess.transforms import apply_chain, grid_points, read_transforms

logger = logging.getLogger(__name__)


def transform_regions(
    atlas: str | Path,
    *,
    labels: str | Path,
    grid: str | Path,
    subject: str,
    outputs: Mapping[str, str | Path],
    transforms: Sequence[str | Path] = (),
    code: str = "",
) -> None:
    """Resample an atlas to the BOLD grid: each voxel gets the region that holds most of it.

    Parameters
    ----------
    atlas
        Integer NIfTI (3D), 0 outside of the regions.
    labels
        TSV with the columns index and name: the regions wanted. Further columns are kept.
    grid
        An image on the BOLD's grid: the brain mask of the first run, or a series (given betas),
        whose voxels that are not 0 throughout are the brain.
    subject
        Label, for messages.
    outputs
        Name to file: regions (NIfTI), labels (TSV), manifest.
    transforms
        Composites that resample the atlas's space on the BOLD's space, the first one the first
        that points of the grid go through (for an atlas in the template and BOLD in T1w:
        from-MNI152NLin2009aSym_to-T1w alone); none: the same space.
    code
        Digest of the code, for the manifest.

    Raises
    ------
    InputError
        The atlas is not 3D or not of integers, the table and the atlas do not agree, or a
        region has no voxel on the grid or none inside the brain mask.
    """
    names = bids.read_labels(labels)
    image = open_image(atlas)
    values = read_values(image, atlas)
    if values.ndim == 4 and values.shape[3] == 1:
        values = values[..., 0]
    if values.ndim != 3:
        raise InputError(f"atlas {atlas} has {values.ndim} dimensions: give a 3D label image")
    rounded = np.rint(np.nan_to_num(values)).astype(np.int32)
    if not np.array_equal(rounded, values):
        raise InputError(f"atlas {atlas} has values that are not integers: give a label image")
    present = set(np.unique(rounded[rounded != 0]).tolist())
    absent = [name for index, name in names.items() if index not in present]
    if absent:
        raise InputError(
            f"regions {', '.join(absent)} of {labels} have no voxel in {atlas}: "
            "correct the index column"
        )
    if present - set(names):
        logger.info(
            "%d labels of the atlas are not in %s: left out", len(present - set(names)), labels
        )
        rounded = np.where(np.isin(rounded, list(names)), rounded, 0)
    target = open_image(grid)
    mask = read_values(target, grid)
    if mask.ndim == 4:
        mask = ((mask != 0) & np.isfinite(mask)).any(axis=3)
    if mask.ndim != 3:
        raise InputError(f"{grid} has {mask.ndim} dimensions: give a brain mask or a series")
    grid_affine = clean_affine(target, grid)
    points = grid_points(mask.shape, grid_affine)
    chain = [step for path in transforms for step in read_transforms(path)]
    if chain:
        # the warp stretches a voxel little: its own offsets stand for the warped ones
        logger.info("atlas through %s", ", ".join(map(str, transforms)))
    found = resample_labels(
        rounded,
        clean_affine(image, atlas),
        apply_chain(chain, points),
        mask.shape,
        supersampling=voxel_offsets(grid_affine),
    )
    inside = mask > 0
    counts = {}
    for index, name in names.items():
        n_grid, n_brain = int((found == index).sum()), int(((found == index) & inside).sum())
        counts[name] = n_brain
        logger.info("%s: %d voxels, %d of them in the brain mask", name, n_grid, n_brain)
        if not n_brain:
            raise InputError(
                f"region {name} of {atlas} is empty on the grid of subject {subject}: "
                "check the atlas's space, or leave the region out of its label table"
            )
    with tempfile.TemporaryDirectory(prefix="isocortex-regions-") as folder:
        path = Path(folder) / "regions.nii.gz"
        save_image(path, found.astype(np.int16 if found.max() < 2**15 else np.int32), grid_affine)
        table = Path(folder) / "regions.tsv"
        table.write_text(Path(labels).read_text())
        put_all(
            {"regions": path, "labels": table},
            outputs,
            sources=[atlas, labels, grid, *transforms],
            code=code,
            subject=subject,
            n_voxels=counts,
        )
