"""RDMs made elsewhere: one file a region becomes a subject's ``rdms`` store."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr

from isocortex import store
from isocortex.errors import InputError
from isocortex.rsa.rdms import MINIMUM_STIMULI, n_stimuli, pair_labels, to_matrices, to_vectors

_TEXT = {".csv": ",", ".tsv": "\t", ".txt": None}


def import_rdms(
    *,
    files: Sequence[str | Path],
    regions: Sequence[str],
    subject: str,
    out: str | Path,
    stimuli: Sequence[str | Path] = (),
    task: str = "all",
    measure: str = "given",
    code: str = "",
) -> Path:
    """Write the ``rdms`` store of one subject from files, one a region.

    Parameters
    ----------
    files
        ``.npy``, ``.mat``, ``.csv``, ``.tsv`` or ``.txt``: a square symmetric matrix, or the
        vector of its upper triangle row by row (a ``.csv`` or ``.tsv`` square may carry the
        stimulus ids in its first row, and again in its first column).
    regions
        Name of the region of each file.
    subject
        Label without ``sub-``.
    out
        The store to write.
    stimuli
        For each file the text file of its stimulus ids, one a line, in the order of its rows; an
        empty text where the file carries them itself or a file of the same name ending in
        ``_stimuli.txt`` lies beside it.
    task, measure
        Kept with the RDMs.

    Returns
    -------
    pathlib.Path
        The manifest.

    Raises
    ------
    InputError
        Where a file is not square, not symmetric, of a length that no number of stimuli gives,
        holds NaN, or its ids are missing, too few or not unique.
    """
    if len(files) != len(regions):
        raise InputError(f"sub-{subject}: {len(files)} files for {len(regions)} regions: name both")
    lists = list(stimuli) or [""] * len(files)
    if len(lists) != len(files):
        raise InputError(
            f"sub-{subject}: {len(lists)} stimulus lists for {len(files)} files: name one a file"
        )
    rows: list[np.ndarray] = []
    names: list[str] = []
    for file, region, listed in zip(files, regions, lists):
        where = f"{file} (sub-{subject}, region {region})"
        square, found = read_rdm(file, stimuli=listed, where=where)
        order = np.argsort(np.array(found), kind="stable")
        ordered = [found[k] for k in order]
        if names and ordered != names:
            raise InputError(
                f"{where} has other stimuli than {files[0]}: give all regions of a subject the same"
            )
        names = ordered
        rows.append(to_vectors(square[order[:, None], order[None, :]]))
    first, second = pair_labels(names)
    dataset = xr.Dataset(
        {"dissimilarity": (("region", "pair"), np.array(rows, dtype=np.float64))},
        coords={
            "region": ("region", np.array([str(r) for r in regions], dtype=object)),
            "stimulus_i": ("pair", first),
            "stimulus_j": ("pair", second),
        },
        attrs={
            "subject": subject,
            "task": task,
            "measure": measure,
            "noise_normalisation": "unknown",
            "cross_validation": "unknown",
        },
    )
    sources = [*files, *(listed for listed in lists if str(listed))]
    return store.write(dataset, out, spec="rdms", sources=sources, code=code)


def read_rdm(
    file: str | Path, *, stimuli: str | Path = "", where: str = ""
) -> tuple[np.ndarray, list[str]]:
    """Read one RDM and the ids of its stimuli.

    Returns
    -------
    square : numpy.ndarray
        float64, (n_stimuli, n_stimuli), symmetric, zero diagonal.
    names : list of str
        Ids in the order of its rows.

    Raises
    ------
    InputError
        As `import_rdms`.
    """
    file = Path(file)
    where = where or str(file)
    values, names = _read_values(file, where)
    values = np.squeeze(values)
    if values.ndim == 1:
        try:
            n_stimuli(values.size)
        except ValueError as error:
            raise InputError(
                f"{where} holds {values.size} numbers, which is n(n-1)/2 for no n: give the upper "
                "triangle without its diagonal, or the square matrix"
            ) from error
        square = to_matrices(values)
    elif values.ndim == 2 and values.shape[0] == values.shape[1]:
        square = values.copy()
    else:
        shape = " x ".join(str(n) for n in values.shape)
        raise InputError(f"{where} is {shape}: give a square matrix or a vector of its pairs")
    np.fill_diagonal(square, 0.0)
    if not np.isfinite(square).all():
        raise InputError(
            f"{where} holds {int((~np.isfinite(square)).sum())} entries that are NaN or infinite: "
            "leave those stimuli out of all RDMs"
        )
    scale = np.abs(square).max() or 1.0
    gap = np.abs(square - square.T).max()
    if gap > 1e-6 * scale:
        raise InputError(
            f"{where} is not symmetric (entries differ by up to {gap:.3g}): average it with its "
            "transpose if that is meant"
        )
    names = _names(file, stimuli, names, where)
    if len(names) != len(square):
        raise InputError(
            f"{where} has {len(square)} stimuli but {len(names)} ids: give one id a row of the RDM"
        )
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{where}: stimulus id {twice} comes twice: give each stimulus its own")
    if len(names) < MINIMUM_STIMULI:
        raise InputError(f"{where} has {len(names)} stimuli: at least {MINIMUM_STIMULI} are needed")
    return 0.5 * (square + square.T), names


def _names(file: Path, stimuli: str | Path, inside: list[str], where: str) -> list[str]:
    """Return the stimulus ids from the list that was named, the file itself or the one beside."""
    beside = file.with_name(f"{file.stem}_stimuli.txt")
    listed = Path(stimuli) if str(stimuli) else beside
    if str(stimuli) and not listed.is_file():
        raise InputError(f"{where}: its stimulus list {listed} is missing: correct the path")
    if not str(stimuli) and inside:
        return inside
    if not listed.is_file():
        raise InputError(
            f"{where} comes without stimulus ids: name a list (one id a line) in the column "
            f"stimuli of the table, or put it beside the file as {beside.name}"
        )
    return [line.strip() for line in listed.read_text().splitlines() if line.strip()]


def _read_values(file: Path, where: str) -> tuple[np.ndarray, list[str]]:
    """Return a file's numbers, and the stimulus ids where it carries them."""
    kind = file.suffix.lower()
    try:
        if kind == ".npy":
            values = np.load(file, allow_pickle=False)
            names: list[str] = []
        elif kind == ".mat":
            values, names = _read_mat(file, where), []
        elif kind in _TEXT:
            return _read_text(file, where)
        else:
            raise InputError(f"{where}: files ending in {kind!r} are not read: save .npy or .csv")
        return np.asarray(values, dtype=np.float64), names
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{where} is missing: correct the path") from error
    except (OSError, ValueError, TypeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{where} cannot be read ({reason}): save it as .npy or .csv (numbers only)"
        ) from error


def _read_mat(file: Path, where: str) -> np.ndarray:
    """Return the one array of numbers in a MATLAB file (up to version 7)."""
    from scipy.io import loadmat

    arrays = {
        name: value
        for name, value in loadmat(file).items()
        if not name.startswith("__") and value.dtype.kind in "fiu" and value.size > 1
    }
    if len(arrays) != 1:
        raise InputError(
            f"{where} holds {len(arrays)} arrays of numbers ({', '.join(sorted(arrays))}): save "
            "the RDM alone"
        )
    return next(iter(arrays.values()))


def _number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _read_text(file: Path, where: str) -> tuple[np.ndarray, list[str]]:
    """Return the numbers of a text table, and the ids in its first row where there are any."""
    mark = _TEXT[file.suffix.lower()]
    with file.open(newline="", encoding="utf-8-sig") as stream:
        if mark is None:
            rows = [line.split() for line in stream if line.strip()]
        else:
            rows = [
                row for row in csv.reader(stream, delimiter=mark) if any(c.strip() for c in row)
            ]
    rows = [[cell.strip() for cell in row] for row in rows]
    names: list[str] = []
    # A header is a row of ids; "nan" and "n/a" among numbers are missing entries, not ids.
    if len(rows) > 1 and not any(_number(cell) for cell in rows[0] if cell):
        names, rows = rows[0], rows[1:]
        if len(rows[0]) == len(names) and not _number(rows[0][0]):
            names = names[1:]
        if not _number(rows[0][0]):
            labels, rows = [row[0] for row in rows], [row[1:] for row in rows]
            if labels != names:
                raise InputError(
                    f"{where}: ids of its rows and columns differ: put them in one order"
                )
    width = len(rows[0]) if rows else 0
    for number, row in enumerate(rows, start=1):
        if len(row) != width:
            raise InputError(f"{where}: row {number} has {len(row)} cells, not {width}: mend it")
    values = [
        [float("nan") if cell in ("", "n/a", "NA") else float(cell) for cell in row] for row in rows
    ]
    return np.array(values, dtype=np.float64), names
