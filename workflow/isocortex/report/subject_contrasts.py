"""Contrast maps of one subject, by which the data are judged."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy.stats import norm

from isocortex import bids, provenance
from isocortex.errors import InputError
from isocortex.report.brain import Grid, Grounds, mosaic
from isocortex.report.options import ReportOptions
from isocortex.report.page import Note, Paragraph, Picture, Table, count, number
from isocortex.report.sources import manifest_of

Z_SHOWN = 3.1
"""Absolute z from which on a voxel is drawn, one-sided p < .001 of the voxel alone."""


def contrast_blocks(
    folders: Sequence[Path | str], grounds: Grounds, choices: ReportOptions
) -> list[Any]:
    """Draw the z maps of contrasts.

    Parameters
    ----------
    folders
        Of contrast maps, one a task, each with its manifest beside it.
    grounds
        What the maps are drawn on.
    choices
        Options of the report.

    Returns
    -------
    list
        Paragraph, table and figures of each task.

    Raises
    ------
    InputError
        Where a folder lacks a map that its manifest names.
    """
    blocks: list[Any] = []
    for folder in map(Path, folders):
        manifest = provenance.read_manifest(manifest_of(folder))
        if manifest.get("methods"):
            blocks.append(Paragraph(str(manifest["methods"])))
        task = bids.entities(folder.name)[0].get("task", "")
        rows: list[list[Any]] = []
        pictures: list[Any] = []
        for name, expression in manifest["contrasts"].items():
            found = sorted(folder.glob(f"*_contrast-{name}_stat-z_statmap.nii.gz"))
            if len(found) != 1:
                raise InputError(
                    f"{folder} holds no z map of contrast {name}: run map_contrasts again"
                )
            grid, z = _read(found[0])
            over, under = int((z >= Z_SHOWN).sum()), int((z <= -Z_SHOWN).sum())
            runs = manifest["runs"][name]
            said = "mean of all conditions − baseline" if name == "all" else str(expression)
            rows.append(
                [
                    name,
                    said,
                    len(runs),
                    f"{int(manifest['degrees_of_freedom'][name]):,}",
                    number(float(z.max()), 1),
                    number(float(z.min()), 1),
                    f"{over:,}",
                    f"{under:,}",
                ]
            )
            pictures.append(_picture(name, said, grid, z, len(runs), grounds, choices))
        chance = z.size * float(norm.sf(Z_SHOWN))
        by_chance = number(chance, 0 if chance >= 1 else 1)
        blocks.append(
            Table(
                f"Contrasts of task {task}",
                (
                    "Contrast",
                    "Effect",
                    "Runs",
                    "d.f.",
                    "Highest z",
                    "Lowest z",
                    f"Voxels z ≥ {Z_SHOWN:g}",
                    f"Voxels z ≤ −{Z_SHOWN:g}",
                ),
                rows,
                f"Over {z.size:,} voxels, fixed effects over runs. z is not corrected for the "
                f"number of voxels: without any effect about {by_chance} voxels would pass "
                f"|z| ≥ {Z_SHOWN:g} on each side.",
                wrap=True,
            )
        )
        blocks += pictures
    return blocks


def _read(path: Path) -> tuple[Grid, np.ndarray]:
    """A z map: where it was fitted, and its values there."""
    try:
        image = nib.load(path)
        values = np.asarray(image.dataobj, dtype=float)
    except Exception as error:
        raise InputError(f"{path} cannot be read as NIfTI ({error}): make it again") from error
    # map_contrasts leaves 0 where nothing was fitted
    voxels = np.stack(np.nonzero(values))
    space = re.search(r"_space-([A-Za-z0-9]+)_", path.name)
    grid = Grid(np.asarray(image.affine), values.shape, voxels, space.group(1) if space else "")
    return grid, values[tuple(voxels)]


def _picture(
    name: str,
    effect: str,
    grid: Grid,
    z: np.ndarray,
    n_runs: int,
    grounds: Grounds,
    choices: ReportOptions,
) -> Picture | Note:
    shown = np.where(np.abs(z) >= Z_SHOWN, z, np.nan)
    finite = shown[np.isfinite(shown)]
    if not finite.size:
        return Note(
            f"Contrast {name}: no map, because no voxel passes |z| ≥ {Z_SHOWN:g} (highest "
            f"{number(float(np.abs(z).max()), 1)})."
        )
    reach = max(float(np.percentile(np.abs(finite), 98)), Z_SHOWN + 0.1)
    ground = grounds.of(grid)
    return Picture(
        [
            mosaic(
                grid,
                shown,
                ground=ground,
                slices=choices.slices,
                label=f"z, {name}",
                cmap="RdBu_r",
                limits=(-reach, reach),
            )
        ],
        f"Axial slices of z of contrast {name}: {finite.size:,} of {z.size:,} voxels pass "
        f"|z| ≥ {Z_SHOWN:g}, highest {number(float(z.max()))}, lowest {number(float(z.min()))}.",
        f"Contrast {name}",
        f"z of {effect}, fixed effects over {count(n_runs, 'run')}, shown where "
        f"|z| ≥ {Z_SHOWN:g} ({finite.size:,} of {z.size:,} voxels; p < .001 of the voxel alone, "
        f"one-sided, not corrected). Axial slices in {grid.space} space on {ground.name}, z in mm, "
        "left is left.",
    )
