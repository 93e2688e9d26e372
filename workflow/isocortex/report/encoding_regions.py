"""Encoding results by region: which voxels count, and their means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import xarray as xr

from isocortex import bids
from isocortex.errors import InputError
from isocortex.report.brain import Grid
from isocortex.report.page import number

EVERYWHERE = "all voxels"


@dataclass(frozen=True)
class RegionImage:
    """A label image and the names of its labels."""

    data: np.ndarray
    labels: Mapping[int, str]
    path: Path

    def masks(self, dataset: xr.Dataset) -> dict[str, np.ndarray]:
        """Voxels of a store in each region, shape (voxel,), by the region's name.

        Raises
        ------
        InputError
            If the image lies on another grid.
        """
        grid = Grid.of(dataset)
        if self.data.shape != grid.shape:
            raise InputError(
                f"{self.path} has the shape {self.data.shape}, the responses of subject "
                f"{dataset.attrs['subject']} have {grid.shape}: give regions on their grid"
            )
        label = self.data[tuple(grid.indices)]
        return {name: label == key for key, name in self.labels.items()}


def read_regions(
    images: Sequence[Path | str], tables: Sequence[Path | str]
) -> dict[tuple[str, str], RegionImage]:
    """Read label images with their tables, by subject and task of the file name.

    Raises
    ------
    InputError
        If an image cannot be read.
    """
    out = {}
    for image, table in zip(images, tables, strict=True):
        try:
            data = np.rint(np.asarray(nib.load(image).dataobj)).astype(int)
        except Exception as error:
            raise InputError(f"{image} cannot be read as NIfTI ({error}): make it again") from error
        names = {int(k): str(name) for k, name in bids.read_labels(table).items() if int(k) != 0}
        entities = bids.entities(Path(image).name)[0]
        out[entities.get("sub", ""), entities.get("task", "")] = RegionImage(
            data, names, Path(image)
        )
    return out


def masks_of(
    dataset: xr.Dataset, images: Mapping[tuple[str, str], RegionImage]
) -> dict[str, np.ndarray]:
    """Voxels of each region of a store; where there are no regions, all voxels as one."""
    image = images.get((str(dataset.attrs["subject"]), str(dataset.attrs["task"])))
    return image.masks(dataset) if image else {EVERYWHERE: np.ones(dataset.sizes["voxel"], bool)}


def counted(dataset: xr.Dataset, least: float | None = None) -> np.ndarray:
    """Voxels that means are taken over, shape (voxel,).

    Those with a score and, where noise ceilings are known, with an explainable share of variance
    of at least `least` (default: from which the store normalises scores).
    """
    scores = np.asarray(dataset["score"].values)
    known = np.isfinite(scores).reshape(-1, scores.shape[-1]).any(axis=0)
    ceiling = np.asarray(dataset["noise_ceiling"].values, dtype=float)
    if not np.isfinite(ceiling).any():
        return known
    share = float(dataset.attrs.get("min_ceiling") or 0.0) if least is None else least
    # Squared in the stores' precision a ceiling on the edge would fall to either side.
    return known & (np.nan_to_num(ceiling) ** 2 >= share - 1e-7)


def mean_over(values: np.ndarray, voxels: np.ndarray) -> np.ndarray:
    """Mean of finite values over some voxels, the last axis; NaN where there is none."""
    chosen = np.asarray(values, dtype=float)[..., voxels]
    finite = np.isfinite(chosen)
    n = finite.sum(axis=-1)
    return np.where(n > 0, np.where(finite, chosen, 0).sum(axis=-1) / np.maximum(n, 1), np.nan)


def best_layer(
    datasets: Sequence[xr.Dataset], like: xr.Dataset, voxels: np.ndarray
) -> tuple[str, float]:
    """The layer of some encoding stores with the highest mean r over voxels of another store.

    Parameters
    ----------
    datasets
        Encoding stores of the same subject and task.
    like, voxels
        A store of them and which of its voxels count.

    Returns
    -------
    name, r
        "model/layer" and its mean r; "" and NaN where there is no score. It is chosen by the same
        scores, so r is a little too high.
    """
    grid = Grid.of(like)
    found, highest = "", np.nan
    for dataset in datasets:
        own = Grid.of(dataset)
        same = np.array_equal(own.indices, grid.indices)
        for layer, scores in zip(dataset["layer"].values, dataset["score"].values, strict=True):
            values = scores if same else own.volume(scores)[tuple(grid.indices)]
            r = float(mean_over(values, voxels))
            if np.isfinite(r) and not r <= highest:
                found, highest = f"{dataset.attrs['model']}/{layer}", r
    return found, highest


def largest_share(spaces: Sequence[str], shares: np.ndarray) -> str:
    """Name the feature space with the largest share in r2, if any is above 0: "edges 0.041"."""
    row = int(np.nanargmax(shares))
    if not shares[row] > 0:
        return "none above 0"
    return f"{spaces[row]} {number(float(shares[row]), 3)}"


def samples_of(attrs: Mapping[str, Any]) -> str:
    """What an encoding store predicts: "volumes" of a continuous task, else "trials"."""
    return "volumes" if "volumes" in (attrs.get("samples"), attrs.get("kind")) else "trials"


def which_voxels(dataset: xr.Dataset) -> str:
    """Say which voxels `counted` takes, for captions."""
    if not np.isfinite(dataset["noise_ceiling"].values).any():
        return "all voxels with a score"
    least = 100 * float(dataset.attrs.get("min_ceiling") or 0.0)
    return f"voxels of which at least {least:g}% of the variance can be explained"
