"""The time series of all runs of a subject and task, on scratch disk in blocks of voxels."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Sequence
from pathlib import Path

import dask
import numpy as np

from isocortex import parallel
from isocortex.errors import InputError
from isocortex.glm.images import open_image, read_volume_groups
from isocortex.glm.scratch import RunBlocks, give_back_freed_memory

log = logging.getLogger(__name__)

REASONS = ("nan", "constant", "negative")
"""Why a voxel of a run cannot be fitted; the first counts."""


class Series:
    """Time series of runs inside a mask, read once and then block by block.

    Volumes are read a few at a time into a scratch file in which a block of voxels lies together
    (`isocortex.glm.scratch.RunBlocks`); memory holds neither a run nor the brain.

    Parameters
    ----------
    folder
        Where the scratch file is made.
    bold
        4D images on one grid, one a run.
    mask : numpy.ndarray of bool, shape (x, y, z)
        Voxels to read, in the order of ``numpy.nonzero(mask)``.
    groups
        A label for each run; runs of one label are scaled by their common mean. Without it each
        run is scaled by its own.
    threads
        Blocks that are checked at a time.
    block_voxels
        Voxels in a block; without it `isocortex.glm.scratch.block_size`.

    Attributes
    ----------
    n_voxels
        Voxels in the mask.
    blocks
        The slice of voxels of each block.
    n_volumes
        Of each run.

    Raises
    ------
    InputError
        Where an image is damaged, or a volume has no number in the mask.
    """

    def __init__(
        self,
        folder: str | Path,
        bold: Sequence[str | Path],
        mask: np.ndarray,
        *,
        groups: Sequence[Hashable] | None = None,
        threads: int = 1,
        block_voxels: int | None = None,
    ) -> None:
        give_back_freed_memory()
        lengths = [open_image(path, n_dims=4).shape[3] for path in bold]
        n_voxels = int(mask.sum())
        self._values = RunBlocks(
            Path(folder) / "series.bin", lengths, n_voxels, block_voxels=block_voxels
        )
        self._means = RunBlocks(
            Path(folder) / "means.bin",
            [1] * len(bold),
            n_voxels,
            dtype=np.float64,
            block_voxels=block_voxels or self._values.blocks[0].stop,
        )
        self._groups = list(range(len(bold))) if groups is None else list(groups)
        self._reason = np.zeros((len(bold), n_voxels), dtype=np.uint8)
        self._runs = list(range(len(bold)))
        for run, path in enumerate(bold):
            self._copy(run, Path(path), mask)
            log.info("run %d of %d read: %d volumes", run + 1, len(bold), lengths[run])
        with parallel.dask_workers(threads):
            dask.compute([dask.delayed(self._check)(part) for part in self.blocks])

    @property
    def n_voxels(self) -> int:
        """Voxels in the mask."""
        return self._values.n_voxels

    @property
    def blocks(self) -> list[slice]:
        """The slice of voxels of each block."""
        return self._values.blocks

    @property
    def n_volumes(self) -> list[int]:
        """Volumes of each run."""
        lengths = self._values.n_rows
        return [lengths[run] for run in self._runs]

    @property
    def usable(self) -> np.ndarray:
        """Voxels with a positive mean and some variance in every run; shape (n_voxels,)."""
        return ~self._reason[self._runs].any(axis=0)

    def mean(self, run: int, part: slice) -> np.ndarray:
        """Return the mean that a run of some voxels is scaled by, in the image's unit."""
        return self._mean(self._runs[run], part)

    def select(self, runs: Sequence[int]) -> Series:
        """Return a view of some runs; which voxels are usable is decided by these alone."""
        view = object.__new__(Series)
        view.__dict__.update(self.__dict__)
        view._runs = [self._runs[run] for run in runs]
        return view

    def read(self, run: int, part: slice, *, volumes: np.ndarray | None = None) -> np.ndarray:
        """Return a run of some voxels.

        Parameters
        ----------
        run
            Number of the run.
        part
            Voxels, best one of `blocks`.
        volumes : numpy.ndarray of bool, shape (n_volumes,)
            Volumes to return and to take the mean over, in place of the group's.

        Returns
        -------
        numpy.ndarray of float64, shape (n_volumes, voxels)
            Percent signal change from the mean of the run, or of the runs of its group; NaN where
            a voxel is not usable.
        """
        number = self._runs[run]
        raw = self._values.read(number, part)
        raw = (raw if volumes is None else raw[volumes]).astype(np.float64)
        mean = self._mean(number, part) if volumes is None else raw.mean(axis=0)
        usable = ~self._reason[self._runs, part].any(axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            return 100 * (raw / np.where(usable & (mean > 0), mean, np.nan) - 1)

    def count_bad(self) -> dict[str, int]:
        """Return how many voxels are not usable, each counted under its first reason."""
        found = {
            name: (self._reason[self._runs] == code).any(axis=0)
            for code, name in enumerate(REASONS, start=1)
        }
        return {
            "n_voxels_nan": int(found["nan"].sum()),
            "n_voxels_constant": int((found["constant"] & ~found["nan"]).sum()),
            "n_voxels_nonpositive_mean": int(
                (found["negative"] & ~found["nan"] & ~found["constant"]).sum()
            ),
        }

    def _mean(self, number: int, part: slice) -> np.ndarray:
        """Mean that a run is scaled by: over the volumes of all runs of its group."""
        lengths = self._values.n_rows
        group = [k for k, label in enumerate(self._groups) if label == self._groups[number]]
        if group == [number]:
            return self._means.read(number, part)[0]
        total = sum(lengths[k] * self._means.read(k, part)[0] for k in group)
        return total / sum(lengths[k] for k in group)

    def _copy(self, run: int, path: Path, mask: np.ndarray) -> None:
        """Copy a run into the scratch file, a few volumes at a time."""
        everything, empty = slice(0, self.n_voxels), []
        for first, values in read_volume_groups(path, mask):
            empty += (first + np.flatnonzero(~np.isfinite(values).any(axis=1))).tolist()
            self._values.write(run, everything, values, first_row=first)
        if empty:
            raise InputError(
                f"{path} has no number in the mask at {len(empty)} volumes, the first {empty[0]} "
                f"(counted from 0): make the preprocessed image again"
            )

    def _check(self, part: slice) -> None:
        """Keep means of a block, and mark voxels that cannot be fitted."""
        for run in range(len(self._reason)):
            block = self._values.read(run, part)
            finite = np.isfinite(block).all(axis=0)
            with np.errstate(invalid="ignore"):
                mean = block.astype(np.float64).mean(axis=0)
                constant = finite & (np.ptp(block, axis=0) == 0)
                negative = finite & ~constant & (mean <= 0)
            self._reason[run, part] = np.select([~finite, constant, negative], [1, 2, 3])
            self._means.write(run, part, mean[None])
