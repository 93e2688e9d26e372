"""RDMs made elsewhere: one file a region becomes a subject's ``rdms`` store."""

from __future__ import annotations

import csv
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from isocortex import store
from isocortex.bids import check_rdm_file, plain_label, stimuli_beside
from isocortex.errors import InputError
from isocortex.rsa.rdms import MINIMUM_STIMULI, n_stimuli, pair_labels, to_matrices, to_vectors

logger = logging.getLogger(__name__)

STIMULUS_DESCRIPTORS = (
    "stimulus",
    "stimuli",
    "stim",
    "image",
    "images",
    "condition",
    "conditions",
    "conds",
)
"""Pattern descriptors of an rsatoolbox file that hold the stimulus ids, in this order."""
REGION_DESCRIPTORS = ("region", "roi")
SUBJECT_DESCRIPTORS = ("subject", "sub", "participant")
"""RDM descriptors of an rsatoolbox file of several RDMs that say which one is a row's."""

_TEXT = {".csv": ",", ".tsv": "\t", ".txt": None}


def import_rdms(
    *,
    files: Sequence[str | Path],
    regions: Sequence[str],
    subject: str,
    out: str | Path,
    stimuli: Sequence[str | Path] = (),
    rdms: Sequence[str] = (),
    task: str = "all",
    measure: str = "given",
    code: str = "",
) -> Path:
    """Write the ``rdms`` store of one subject from files, one a region.

    Parameters
    ----------
    files
        ``.npy``, ``.mat`` (any version), ``.csv``, ``.tsv`` or ``.txt``: a square symmetric
        matrix, or the vector of its upper triangle row by row (a ``.csv`` or ``.tsv`` square may
        carry the stimulus ids in its first row, and again in its first column). Or rsatoolbox's
        ``.h5``, which carries ids and may hold the RDMs of several regions and subjects; a file
        may then be named for several regions. NaN is a pair that was not measured.
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
    rdms
        For each file which of its RDMs is meant: the name of an array in a ``.mat``; in an
        ``.h5`` a position from 0, or descriptors as in ``roi=V1;session=2``. Where it is empty
        it is the file's only one, or, in an ``.h5``, the one whose descriptors `region` (or
        `roi`) and `subject` are these.
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
        a pickle or of another kind, holds several RDMs and none is chosen, only NaN or an
        infinite value, or its ids are missing, too few or not unique.
    """
    if len(files) != len(regions):
        raise InputError(f"sub-{subject}: {len(files)} files for {len(regions)} regions: name both")
    lists = list(stimuli) or [""] * len(files)
    if len(lists) != len(files):
        raise InputError(
            f"sub-{subject}: {len(lists)} stimulus lists for {len(files)} files: name one a file"
        )
    chosen = list(rdms) or [""] * len(files)
    if len(chosen) != len(files):
        raise InputError(
            f"sub-{subject}: {len(chosen)} choices of an RDM for {len(files)} files: name one a "
            "file, which may be empty"
        )
    rows: list[np.ndarray] = []
    names: list[str] = []
    for file, region, listed, choice in zip(files, regions, lists, chosen):
        where = f"{file} (sub-{subject}, region {region})"
        square, found = read_rdm(
            file, stimuli=listed, rdm=choice, region=str(region), subject=subject, where=where
        )
        vector, ordered = sorted_vector(square, found)
        if names and ordered != names:
            raise InputError(
                f"{where} has other stimuli than {files[0]}: give all regions of a subject the same"
            )
        names = ordered
        rows.append(vector)
    missing = {str(r): int(np.isnan(row).sum()) for r, row in zip(regions, rows)}
    if any(missing.values()):
        logger.warning("sub-%s: pairs that are NaN, by region: %s", subject, missing)
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
            "n_pairs_missing": sum(missing.values()),
        },
    )
    sources = [*files, *(listed for listed in lists if str(listed))]
    return store.write(dataset, out, spec="rdms", sources=sources, code=code)


def sorted_vector(square: np.ndarray, names: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Return the pairs of an RDM, its stimuli in the order of their ids, and these."""
    order = np.argsort(np.array(names), kind="stable")
    return to_vectors(square[order[:, None], order[None, :]]), [names[k] for k in order]


def read_rdm(
    file: str | Path,
    *,
    stimuli: str | Path = "",
    rdm: str = "",
    region: str = "",
    subject: str = "",
    where: str = "",
) -> tuple[np.ndarray, list[str]]:
    """Read one RDM and the ids of its stimuli.

    Parameters
    ----------
    file, stimuli, rdm
        As in `import_rdms`.
    region, subject
        What an ``.h5`` of several RDMs is searched for where ``rdm`` is empty.
    where
        What an error calls the file.

    Returns
    -------
    square : numpy.ndarray
        float64, (n_stimuli, n_stimuli), symmetric, zero diagonal, NaN for missing pairs.
    names : list of str
        Ids in the order of its rows.

    Raises
    ------
    InputError
        As `import_rdms`.
    """
    file = Path(file)
    where = where or str(file)
    check_rdm_file(file, where)
    meant = _Meant(rdm.strip(), region, subject, bool(str(stimuli)))
    values, names = _read_values(file, meant, where)
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
    if np.isinf(square).any():
        raise InputError(
            f"{where} holds {int(np.isinf(square).sum())} infinite entries: correct them, or make "
            "them NaN for missing"
        )
    lacking = np.isnan(square)
    if lacking.sum() == square.size - len(square):
        raise InputError(f"{where} is NaN throughout: take its row out of the table")
    scale = np.nanmax(np.abs(square)) or 1.0
    gap = np.nanmax(np.abs(square - square.T))
    if gap > 1e-6 * scale or (lacking != lacking.T).any():
        how = f"entries differ by up to {gap:.3g}" if gap > 1e-6 * scale else "NaN on one side only"
        raise InputError(
            f"{where} is not symmetric ({how}): average it with its transpose if that is meant"
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
    beside = stimuli_beside(file)
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


class _Meant(NamedTuple):
    """What a row of the table says about its RDM."""

    rdm: str
    region: str
    subject: str
    has_list: bool


def _read_values(file: Path, meant: _Meant, where: str) -> tuple[np.ndarray, list[str]]:
    """Return a file's numbers, and the stimulus ids where it carries them."""
    kind = file.suffix.lower()
    if meant.rdm and kind not in (".mat", ".h5", ".hdf5"):
        raise InputError(
            f"{where} holds one RDM: empty the column rdm of the table, which says {meant.rdm!r}"
        )
    try:
        if kind == ".npy":
            values = _read_npy(file, where)
            names: list[str] = []
        elif kind == ".mat":
            values, names = _read_mat(file, meant.rdm, where), []
        elif kind in _TEXT:
            values, names = _read_text(file, where)
        else:
            values, names = _read_rsatoolbox(file, meant, where)
        return np.asarray(values, dtype=np.float64), names
    except InputError:
        raise
    except (OSError, ValueError, TypeError, KeyError, NotImplementedError) as error:
        raise _unreadable(error, where) from error


def _read_npy(file: Path, where: str) -> np.ndarray:
    """Return an array of numbers; an array of Python objects is a pickle."""
    try:
        return np.load(file, allow_pickle=False)
    except ValueError as error:
        if "pickle" not in str(error):
            raise
        raise InputError(
            f"{where} holds a pickle (Python objects), which can run code when it is read: in "
            f"Python save its matrix alone with numpy.save({file.name!r}, matrix)"
        ) from error


def _read_mat(file: Path, rdm: str, where: str) -> np.ndarray:
    """Return one array of numbers of a MATLAB file: version 7.3 is HDF5, older ones are not."""
    import h5py

    if h5py.is_hdf5(file):
        with h5py.File(file) as opened:
            # MATLAB keeps text as numbers, too, and other classes in groups and references.
            arrays = {
                name: item[()].T
                for name, item in opened.items()
                if isinstance(item, h5py.Dataset)
                and item.dtype.kind in "fiu"
                and _text_of(item.attrs.get("MATLAB_class", "")) != "char"
            }
    else:
        from scipy.io import loadmat

        arrays = {
            name: value
            for name, value in loadmat(file).items()
            if not name.startswith("__") and value.dtype.kind in "fiu"
        }
    arrays = {name: value for name, value in arrays.items() if value.size > 1}
    held = ", ".join(sorted(arrays))
    if rdm:
        if rdm not in arrays:
            raise InputError(
                f"{where} has no array {rdm} of numbers, which the column rdm of the table names: "
                f"it has {held or 'none'}"
            )
        return arrays[rdm]
    if len(arrays) != 1:
        raise InputError(
            f"{where} holds {len(arrays)} arrays of numbers ({held}): name one in the column rdm "
            "of the table, or save the RDM alone"
        )
    return next(iter(arrays.values()))


def _read_rsatoolbox(file: Path, meant: _Meant, where: str) -> tuple[np.ndarray, list[str]]:
    """Return the pairs of one RDM that rsatoolbox saved as HDF5, and its stimulus ids."""
    import h5py

    with h5py.File(file) as opened:
        pairs = _pairs_of(opened, file, where)
        row = _chosen_rdm(_descriptors(opened, "rdm_descriptors"), len(pairs), meant, where)
        values = pairs[row]
        of_patterns = _descriptors(opened, "pattern_descriptors")
    return values, [] if meant.has_list else _pattern_ids(of_patterns, where)


def _pairs_of(opened: Any, file: Path, where: str) -> Any:
    """Return the array of pairs of an opened rsatoolbox file, (n_rdms, n_pairs), not yet read."""
    import h5py

    pairs = opened.get("dissimilarities")
    if not isinstance(pairs, h5py.Dataset) or pairs.ndim != 2:
        raise InputError(
            f"{where} holds no RDMs of rsatoolbox: save them with "
            f"rdms.save({file.name!r}, file_type='hdf5'), or the matrix as .npy"
        )
    return pairs


def rdm_descriptors(file: Path, where: str) -> tuple[int, dict[str, list[str]]]:
    """Return how many RDMs a file of rsatoolbox holds, and their descriptors as text."""
    import h5py

    try:
        with h5py.File(file) as opened:
            pairs = _pairs_of(opened, file, where)
            return len(pairs), _descriptors(opened, "rdm_descriptors")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise _unreadable(error, where) from error


def _unreadable(error: Exception, where: str) -> InputError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return InputError(f"{where} cannot be read ({reason}): save it as .npy or .csv (numbers only)")


def _descriptors(opened: Any, name: str) -> dict[str, list[str]]:
    """Return the descriptors of an rsatoolbox file as text."""
    import h5py

    if name not in opened:
        return {}
    group = opened[name]
    found = {
        key: item[()]
        for key, item in group.items()
        if isinstance(item, h5py.Dataset) and item.shape
    }
    found |= {key: np.asarray(value) for key, value in group.attrs.items()}
    return {key: [_text_of(v) for v in np.ravel(values)] for key, values in found.items()}


def _text_of(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _chosen_rdm(descriptors: Mapping[str, Sequence[str]], n: int, meant: _Meant, where: str) -> int:
    """Return the position of the RDM that a row of the table means."""
    if not meant.rdm and n == 1:
        return 0
    searched = ()
    if not meant.rdm:
        searched = ((REGION_DESCRIPTORS, meant.region), (SUBJECT_DESCRIPTORS, meant.subject))
    rows, words = matching_rdms(descriptors, n, meant.rdm, searched, where)
    if len(rows) != 1:
        raise InputError(
            f"{where} holds {n} RDMs, {len(rows)} of them {words}: name one in the column rdm of "
            f"the table, by position (0 to {n - 1}) or as descriptor=value"
        )
    return rows[0]


def matching_rdms(
    descriptors: Mapping[str, Sequence[str]],
    n: int,
    rdm: str,
    searched: Sequence[tuple[Sequence[str], str]],
    where: str,
) -> tuple[list[int], str]:
    """Return which RDMs of a file of rsatoolbox a row of a table may mean.

    Parameters
    ----------
    descriptors
        Values of the RDMs by descriptor.
    n
        How many RDMs there are.
    rdm
        What the column rdm says.
    searched
        Names of descriptors, of which the first that there is counts, and the value to look for.

    Returns
    -------
    rows : list of int
        Positions.
    words : str
        What was searched for, for an error.
    """
    if rdm.isdecimal():
        if int(rdm) >= n:
            raise InputError(
                f"{where} holds {n} RDMs: {rdm} in the column rdm of the table should be 0 to "
                f"{n - 1}"
            )
        return [int(rdm)], f"at {rdm}"
    wanted: dict[str, str] = {}
    for part in filter(None, rdm.split(";")):
        key, mark, value = (text.strip() for text in part.partition("="))
        if not mark or key not in descriptors:
            held = ", ".join(sorted(descriptors)) or "none"
            raise InputError(
                f"{where}: {part.strip()!r} in the column rdm of the table is no position and no "
                f"descriptor=value: its RDM descriptors are {held}"
            )
        wanted[key] = value
    for keys, value in searched:
        key = next((key for key in keys if key in descriptors), "")
        if key:
            wanted[key] = value
    rows = [
        k
        for k in range(n)
        if all(_same_label(descriptors[key][k], value) for key, value in wanted.items())
    ]
    words = " and ".join(f"{key} {value}" for key, value in wanted.items())
    return rows, f"with {words}" if words else "possible"


def _same_label(one: str, other: str) -> bool:
    """Whether two texts are one label: ``sub-01``, ``01`` and ``1`` are one subject."""
    one, other = plain_label(one), plain_label(other)
    return one == other or (one.isdecimal() and other.isdecimal() and int(one) == int(other))


def _pattern_ids(descriptors: Mapping[str, Sequence[str]], where: str) -> list[str]:
    """Return the stimulus ids among pattern descriptors; a position is no id."""
    named = {key: values for key, values in descriptors.items() if key != "index"}
    key = next((key for key in STIMULUS_DESCRIPTORS if key in named), "")
    if not key and len(named) == 1:
        key = next(iter(named))
    if not key and named:
        raise InputError(
            f"{where} has the pattern descriptors {', '.join(sorted(named))}: call the one with "
            "the stimulus ids stimulus"
        )
    return list(named[key]) if key else []


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
