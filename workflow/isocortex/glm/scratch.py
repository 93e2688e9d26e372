"""Arrays that lie in temporary files, so that memory need not hold all runs."""

from __future__ import annotations

from pathlib import Path

import dask
import dask.array as da
import numpy as np

BLOCK_VOXELS = 4096


def scratch_array(folder: str | Path, name: str, shape: tuple[int, int]) -> np.memmap:
    """Return a new float32 array of the given shape that lies in a file of a folder."""
    return np.lib.format.open_memmap(
        Path(folder) / f"{name}.npy", mode="w+", dtype=np.float32, shape=shape
    )


def lazy_columns(array: np.memmap, columns: np.ndarray) -> da.Array:
    """Return some columns of a scratch array as dask blocks that are read when they are used.

    Parameters
    ----------
    array : numpy.memmap, shape (n_rows, n_columns)
        From `scratch_array`.
    columns
        Indices of the columns to keep, ascending.

    Returns
    -------
    dask.array.Array, shape (n_rows, len(columns))
        `dask.array.from_array` would copy all of the file into memory.
    """
    starts = range(0, len(columns), BLOCK_VOXELS)
    return da.concatenate(
        [
            da.from_delayed(
                dask.delayed(_read)(str(array.filename), columns[start : start + BLOCK_VOXELS]),
                shape=(array.shape[0], len(columns[start : start + BLOCK_VOXELS])),
                dtype=array.dtype,
            )
            for start in starts
        ],
        axis=1,
    )


def _read(path: str, columns: np.ndarray) -> np.ndarray:
    first, last = columns[0], columns[-1]
    block = np.array(np.load(path, mmap_mode="r")[:, first : last + 1])
    return block if block.shape[1] == len(columns) else block[:, columns - first]
