"""Matrices that lie in scratch files, so that memory holds a few blocks of voxels only."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import weakref
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import dask
import dask.array as da
import numpy as np

from isocortex import store
from isocortex.errors import InputError

BLOCK_VOXELS = 4096
_BLOCK_VALUES = 1 << 23
_MMAP_THRESHOLD = -3
"""Of glibc's ``mallopt``: arrays from this size on are mapped one by one."""


class RunBlocks:
    """Matrices of several runs, rows x voxels, in one scratch file cut into blocks of voxels.

    What belongs to a block, all rows of all runs, lies together in the file, so that a block is
    read at once however many voxels there are. Reads and writes are explicit: nothing of the file
    is mapped into memory. They may come from several threads at a time.

    Parameters
    ----------
    path
        The file to make.
    n_rows
        Rows of each run: volumes or trials.
    n_voxels
        Columns of all runs.
    dtype
        Of the values.
    block_voxels
        Voxels in a block; without it what `block_size` says of these rows.

    Attributes
    ----------
    n_rows, n_voxels, block_voxels, blocks
        Rows of each run, voxels, how many of them are in a block, and the slice of each block.
    """

    def __init__(
        self,
        path: str | Path,
        n_rows: Sequence[int],
        n_voxels: int,
        *,
        dtype: type = np.float32,
        block_voxels: int | None = None,
    ) -> None:
        width = block_voxels or block_size(n_rows)
        self.n_voxels = int(n_voxels)
        self.dtype = np.dtype(dtype)
        self.blocks = [
            slice(start, min(start + width, self.n_voxels))
            for start in range(0, self.n_voxels, width)
        ]
        self.block_voxels = width
        self._first = np.concatenate([[0], np.cumsum(n_rows)]).astype(int)
        self._runs = list(range(len(n_rows)))
        self._path = Path(path)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        os.ftruncate(self._file, int(self._first[-1]) * self.n_voxels * self.dtype.itemsize)
        self._close = weakref.finalize(self, os.close, self._file)

    @property
    def n_rows(self) -> list[int]:
        """Rows of each run."""
        return [int(self._first[run + 1] - self._first[run]) for run in self._runs]

    def select(self, runs: Sequence[int]) -> RunBlocks:
        """Return a view of some runs, in the order given."""
        view = object.__new__(RunBlocks)
        view.__dict__.update(self.__dict__)
        view._runs = [self._runs[run] for run in runs]
        view._whole = self  # keeps the file open
        return view

    def write(self, run: int, part: slice, values: np.ndarray, *, first_row: int = 0) -> None:
        """Write rows of a run.

        Parameters
        ----------
        run
            Number of the run.
        part
            Voxels: one or more whole blocks.
        values : numpy.ndarray, shape (n_rows or fewer, voxels of the part)
            The rows.
        first_row
            Row of the run that the first of them is.
        """
        row = int(self._first[self._runs[run]]) + first_row
        for block in self._inside(part):
            if block.start < part.start or block.stop > part.stop:
                raise ValueError(f"voxels {part} cut block {block}: write whole blocks")
            columns = values[:, block.start - part.start : block.stop - part.start]
            self._put(np.ascontiguousarray(columns, dtype=self.dtype), self._position(block, row))

    def write_columns(self, run: int, part: slice, values: np.ndarray) -> None:
        """Write all rows of a run, of voxels that are only part of one block."""
        (block,) = self._inside(part)
        first = int(self._first[self._runs[run]])
        for row, line in enumerate(np.ascontiguousarray(values, dtype=self.dtype)):
            start = (part.start - block.start) * self.dtype.itemsize
            self._put(line, self._position(block, first + row) + start)

    def read(self, run: int, part: slice) -> np.ndarray:
        """Return all rows of a run, of any slice of voxels; shape (n_rows, voxels)."""
        return self._read([run], part)

    def read_row(self, run: int, row: int) -> np.ndarray:
        """Return one row of a run; shape (n_voxels,)."""
        out = np.empty((1, self.n_voxels), dtype=self.dtype)
        self._fill(out, int(self._first[self._runs[run]]) + row, slice(0, self.n_voxels))
        return out[0]

    def read_all(self, part: slice) -> np.ndarray:
        """Return the rows of all runs, one run after the other; shape (sum of n_rows, voxels)."""
        return self._read(range(len(self._runs)), part)

    def _inside(self, part: slice) -> list[slice]:
        """Blocks that a slice of voxels has a share in."""
        return self.blocks[part.start // self.block_voxels : -(-part.stop // self.block_voxels)]

    def _position(self, block: slice, row: int) -> int:
        width = block.stop - block.start
        return (int(self._first[-1]) * block.start + int(row) * width) * self.dtype.itemsize

    def _put(self, values: np.ndarray, position: int) -> None:
        data = memoryview(values).cast("B") if values.size else b""
        while data:
            try:
                done = os.pwrite(self._file, data, position)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                size = int(self._first[-1]) * self.n_voxels * self.dtype.itemsize >> 20
                raise InputError(
                    f"{self._path.parent} has no space left for a scratch file of {size} MiB: free "
                    "some, or name another folder in TMPDIR (or the rule's resource tmpdir)"
                ) from None
            data, position = data[done:], position + done

    def _read(self, runs: Iterable[int], part: slice) -> np.ndarray:
        numbers = [self._runs[run] for run in runs]
        lengths = [int(self._first[n + 1] - self._first[n]) for n in numbers]
        out = np.empty((sum(lengths), part.stop - part.start), dtype=self.dtype)
        row = 0
        for number, length in zip(numbers, lengths, strict=True):
            self._fill(out[row : row + length], int(self._first[number]), part)
            row += length
        return out

    def _fill(self, out: np.ndarray, first: int, part: slice) -> None:
        """Read rows from the first on, of some voxels, into an array."""
        for block in self._inside(part):
            values = np.empty((len(out), block.stop - block.start), dtype=self.dtype)
            rest = memoryview(values).cast("B") if values.size else b""
            position = self._position(block, first)
            while rest:
                done = os.preadv(self._file, [rest], position)
                if not done:
                    raise OSError("the scratch file is shorter than it was made")
                rest, position = rest[done:], position + done
            low, high = max(part.start, block.start), min(part.stop, block.stop)
            out[:, low - part.start : high - part.start] = values[
                :, low - block.start : high - block.start
            ]


def give_back_freed_memory() -> None:
    """Have glibc give each larger array back to the system when it is freed.

    Else it comes to keep arrays of up to 32 MiB for each thread, in pieces that new ones do not
    fit: a process then grows with the number of blocks. Nothing happens with another C library.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 1 << 20)


def block_size(n_rows: Sequence[int]) -> int:
    """Return how many voxels are worked on at once: a power of two, fewer where runs are long."""
    width = BLOCK_VOXELS
    while width > 128 and width * sum(n_rows) > _BLOCK_VALUES:
        width //= 2
    return width


def lazy_columns(
    values: RunBlocks,
    columns: np.ndarray,
    *,
    spec: str | None = None,
    transform: Callable[[np.ndarray], np.ndarray] | None = None,
    n_rows: int | None = None,
) -> da.Array:
    """Return some voxels of all runs as dask blocks that are read when they are used.

    Parameters
    ----------
    values
        Matrices of runs.
    columns
        Indices of the voxels to keep, ascending.
    spec
        Of the store that they are for: blocks are as large as its shards; without it as large as
        the blocks that are worked on.
    transform
        Applied to each block, such as a mean over rows.
    n_rows
        Rows that the transform leaves.

    Returns
    -------
    dask.array.Array, shape (sum of rows, len(columns))
    """
    columns = np.asarray(columns)
    rows = sum(values.n_rows) if n_rows is None else n_rows
    width = values.block_voxels
    if spec is not None:
        width = store.shard_length(spec, (rows, len(columns)), str(values.dtype))
    pieces = [columns[start : start + width] for start in range(0, len(columns), width)]
    blocks = [
        da.from_delayed(
            dask.delayed(_read)(values, piece, transform),
            shape=(rows, len(piece)),
            dtype=values.dtype,
        )
        for piece in pieces
    ]
    return da.concatenate(blocks, axis=1)


def _read(
    values: RunBlocks,
    columns: np.ndarray,
    transform: Callable[[np.ndarray], np.ndarray] | None,
) -> np.ndarray:
    part = slice(int(columns[0]), int(columns[-1]) + 1)
    found = values.read_all(part)
    if len(columns) < found.shape[1]:
        found = found[:, columns - part.start]
    return found if transform is None else transform(found).astype(values.dtype)
