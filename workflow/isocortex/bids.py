"""BIDS: the index of a study's files, their metadata, and the checks before any job starts.

Only the standard library is imported at module level, because the Snakefile imports this module.
"""

from __future__ import annotations

import ast
import csv
import difflib
import gzip
import itertools
import json
import math
import os
import re
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from isocortex.errors import InputError

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
MOVIES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".gif")
FRAME_ARRAYS = (".npy", ".npz")
RDM_FILES = (".npy", ".mat", ".csv", ".tsv", ".txt", ".h5", ".hdf5")
STIMULUS_COLUMNS = ("stim_file", "stimulus", "image", "trial_type")
"""Where an events table's stimulus ids are looked for, in this order."""

TIME_COLUMNS = ("time", "volume", "onset", "")
"""Names of a first column that is no location of a time series."""

SURFACES = ("fsaverage5",)
"""Output spaces of preprocessing that are surfaces; the others are volumes."""

_NIFTI = (".nii.gz", ".nii")
SERIES_FILES = (*_NIFTI, ".npy", ".tsv", ".tsv.gz", ".csv", ".gii")
_ITEM_BYTES = {2: 1, 4: 2, 8: 4, 16: 4, 64: 8, 256: 1, 512: 2, 768: 4, 1024: 8, 1280: 8}


@dataclass(frozen=True)
class Run:
    """One functional run.

    Parameters
    ----------
    subject, session, task, label
        BIDS labels; ``session`` and ``label`` (the run's) are empty where there are none.
    stem
        Path inside the subject's folder without suffix: the ``run`` wildcard of the workflow.
    bold
        The recording: raw, or preprocessed where the study enters as derivatives.
    sidecars
        Its JSON files, from the dataset's root down (the inheritance principle).
    events
        Its events table, or None; where RDMs are given, the list of their stimuli.
    mask, confounds
        For derivatives: brain mask and confounds table; for given betas, their mask.
    rdm
        Where RDMs are given: which one of a file of several.
    tr
        Where time series are given: their repetition time, s.
    fieldmap
        Id of the subject's fieldmap that the run is corrected with; empty where there is none.
    no_fieldmap
        Why there is none.
    """

    subject: str
    session: str
    task: str
    label: str
    stem: str
    bold: Path
    sidecars: tuple[Path, ...] = ()
    events: Path | None = None
    mask: Path | None = None
    confounds: Path | None = None
    rdm: str = ""
    tr: float = 0.0
    fieldmap: str = ""
    no_fieldmap: str = ""

    @property
    def name(self) -> str:
        """The run's id, unique in its subject and task: ``01``, or ``ses-a_dir-AP_run-1``."""
        keys = entities(self.stem.rsplit("/", 1)[-1] + "_bold")[0]
        own = [f"{k}-{v}" for k, v in keys.items() if k not in ("sub", "task", "part") and v]
        return "_".join(own) if own and own != [f"run-{self.label}"] else self.label or "1"


@dataclass(frozen=True)
class Fieldmap:
    """The images that one field is estimated from.

    Parameters
    ----------
    id
        Letters and digits, unique in the subject.
    stem
        Path inside the subject's folder without suffix: the workflow's ``fieldmap`` wildcard.
    kind
        ``phasediff``, ``phases``, ``fieldmap`` (measured as such), or ``pepolar``: echo-planar
        images of opposite phase encoding.
    files
        The images; the first one of ``pepolar`` may be a run.
    sidecars
        JSON files of each, from the dataset's root down.
    magnitudes
        Magnitude images, the first one always there but for ``pepolar``.
    """

    id: str
    stem: str
    kind: str
    files: tuple[Path, ...]
    sidecars: tuple[tuple[Path, ...], ...]
    magnitudes: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Subject:
    """What there is of one subject."""

    label: str
    t1w: tuple[Path, ...] = ()
    runs: tuple[Run, ...] = ()
    transforms: Mapping[str, Path] = field(default_factory=dict)
    fieldmaps: Mapping[str, Fieldmap] = field(default_factory=dict)

    def tasks(self) -> list[str]:
        """Return the subject's tasks, sorted."""
        return sorted({run.task for run in self.runs})

    def of(self, task: str) -> list[Run]:
        """Return the subject's runs of one task, by session and run."""
        return [run for run in self.runs if run.task == task]


def entities(name: str) -> tuple[dict[str, str], str]:
    """Return a BIDS file name's entities and its suffix.

    >>> entities("sub-01_task-rest_run-2_bold.nii.gz")
    ({'sub': '01', 'task': 'rest', 'run': '2'}, 'bold')
    """
    *pairs, suffix = name.split(".", 1)[0].split("_")
    found = {}
    for pair in pairs:
        key, _, value = pair.partition("-")
        found[key] = value
    return found, suffix


def _natural(text: str) -> list[Any]:
    return [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", text)]


def list_names(folder: str | Path) -> list[str]:
    """Return the names in a folder, sorted; none where there is no such folder."""
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _applies(file: str, run: Mapping[str, str]) -> bool:
    """Whether a file's entities are all found in the run's."""
    return all(run.get(key) == value for key, value in entities(file)[0].items())


def inherited(
    levels: Sequence[tuple[Path, list[str]]], run: Mapping[str, str], ending: str
) -> list[Path]:
    """Return the files that apply to a run, from the dataset's root down."""
    found = []
    for folder, names in levels:
        fits = [n for n in names if n.endswith(ending) and _applies(n, run)]
        # Where several apply at one level, the more specific one comes later and wins.
        found += [folder / n for n in sorted(fits, key=lambda n: (len(entities(n)[0]), n))]
    return found


def find_subjects(root: Path, wanted: str | Sequence[str], exclude: Iterable[str]) -> list[str]:
    """Return the labels of the chosen subjects of a dataset, sorted, without the excluded ones.

    Raises
    ------
    InputError
        Where the folder is no dataset, or a chosen or excluded subject is not in it.
    """
    if not root.is_dir():
        raise InputError(f"{root} is not a folder: correct input in the config")
    there = [n[4:] for n in list_names(root) if n.startswith("sub-") and (root / n).is_dir()]
    if not there:
        raise InputError(f"{root} holds no sub-* folder: point input at the root of a dataset")
    out = {plain_label(label) for label in exclude}
    chosen = there if wanted == "all" else [plain_label(label) for label in wanted]
    for label in [*chosen, *sorted(out)]:
        if label not in there:
            near = difflib.get_close_matches(label, there, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(there[:8])}"
            raise InputError(f"subject {label!r} is not in {root}: {hint}")
    kept = sorted(set(chosen) - out)
    if not kept:
        raise InputError("no subject is left: change subjects or exclude in the config")
    return kept


def plain_label(label: str | int) -> str:
    """Return a subject's label without ``sub-``.

    Raises
    ------
    InputError
        For a number: YAML reads ``01`` as 1, so labels must be quoted.
    """
    if not isinstance(label, str):
        raise InputError(f"config: subject {label} is a number: write it in quotes, '{label}'")
    return label.removeprefix("sub-")


def index_raw(
    root: str | Path,
    *,
    subjects: str | Sequence[str] = "all",
    tasks: str | Sequence[str] = "all",
    exclude: Iterable[str] = (),
) -> dict[str, Subject]:
    """Index a raw BIDS dataset: three folder listings a subject (a session), no file is opened.

    Parameters
    ----------
    root
        The dataset.
    subjects
        ``"all"`` or labels, with or without ``sub-``.
    tasks
        ``"all"`` or task labels.
    exclude
        Labels of subjects to leave out.

    Returns
    -------
    dict
        Subject by label, sorted.

    Raises
    ------
    InputError
        For a subject, a task or a T1w that is not there, a run that is there twice, and
        recordings of kinds that are not handled (multi-echo).
    """
    root = Path(root)
    top = list_names(root)
    found = {}
    for label in find_subjects(root, subjects, exclude):
        folder = root / f"sub-{label}"
        inside = list_names(folder)
        sessions = [n[4:] for n in inside if n.startswith("ses-")] or [""]
        t1w: list[Path] = []
        runs: list[Run] = []
        for session in sessions:
            base = folder / f"ses-{session}" if session else folder
            anat, func = base / "anat", base / "func"
            t1w += [
                anat / n
                for n in list_names(anat)
                if re.search(r"_T1w\.nii(\.gz)?$", n) and entities(n)[0].get("part", "mag") == "mag"
            ]
            names = list_names(func)
            levels = [(root, top), (folder, inside)]
            if session:
                levels.append((base, list_names(base)))
            levels.append((func, names))
            for name in names:
                if not re.search(r"_bold\.nii(\.gz)?$", name):
                    continue
                keys = entities(name)[0]
                if keys.get("part", "mag") != "mag":
                    continue
                if "echo" in keys:
                    raise InputError(
                        f"{func / name} is multi-echo, which is not handled: combine the echoes "
                        "first, or exclude the subject"
                    )
                task = keys.get("task", "")
                if not task:
                    raise InputError(f"{func / name} has no task- in its name: rename it")
                if tasks != "all" and task not in tasks:
                    continue
                events = inherited(levels, keys, "_events.tsv")
                stem = name.split("_bold.", 1)[0]
                runs.append(
                    Run(
                        subject=label,
                        session=session,
                        task=task,
                        label=keys.get("run", ""),
                        stem=(f"ses-{session}/" if session else "") + f"func/{stem}",
                        bold=func / name,
                        sidecars=tuple(inherited(levels, keys, "_bold.json")),
                        events=events[-1] if events else None,
                    )
                )
        found[label] = Subject(label, tuple(t1w), in_order(label, runs, root, tasks))
    return found


def in_order(
    label: str, runs: list[Run], root: Path, tasks: str | Sequence[str]
) -> tuple[Run, ...]:
    """Return a subject's runs in order, having made sure that there are some and none twice."""
    if not runs:
        what = "" if tasks == "all" else f" of task {', '.join(tasks)}"
        raise InputError(
            f"sub-{label} has no BOLD run{what} in {root}: add it, or name the subject under "
            "exclude in the config"
        )
    seen: dict[tuple[str, ...], Path] = {}
    for run in runs:
        number = str(int(run.label)) if run.label.isdigit() else run.label
        rest = re.sub(r"_run-[A-Za-z0-9]+", "", run.stem)
        key = (rest, number)
        if key in seen:
            raise InputError(
                f"sub-{label}: {seen[key].name} and {run.bold.name} are the same run twice: "
                "remove one of them"
            )
        seen[key] = run.bold
    return tuple(
        sorted(runs, key=lambda r: (_natural(r.session), r.task, _natural(r.label), r.stem))
    )


def read_json(path: str | Path) -> dict[str, Any]:
    """Return a JSON object.

    Raises
    ------
    InputError
        Where the file cannot be read as one.
    """
    try:
        content = json.loads(Path(path).read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error}): mend the file") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a JSON object: mend the file")
    return content


def metadata(sidecars: Sequence[str | Path]) -> dict[str, Any]:
    """Return the metadata of a recording from its sidecars, later ones winning."""
    merged: dict[str, Any] = {}
    for file in sidecars:
        merged |= read_json(file)
    return merged


def read_table(path: str | Path) -> list[dict[str, str]]:
    """Return the rows of a tab-separated table (comma-separated where it ends in .csv).

    Raises
    ------
    InputError
        Where the file is missing, is not text, or a row has not as many cells as the header.
    """
    path = Path(path)
    mark = "," if path.suffix == ".csv" else "\t"
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.DictReader(stream, delimiter=mark, restkey="", restval=None))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as a table ({error}): mend the file") from error
    for number, row in enumerate(rows, start=2):
        if "" in row or None in row.values():
            raise InputError(f"{path}, line {number}: not as many cells as the header has: mend it")
    return rows


def read_events(path: str | Path) -> list[dict[str, Any]]:
    """Return the rows of an events table, ``onset`` and ``duration`` as numbers (s).

    A duration of ``n/a`` counts as 0: an impulse.

    Raises
    ------
    InputError
        Where there are no events, a column is missing, or a number is none.
    """
    rows: list[dict[str, Any]] = list(read_table(path))
    if not rows:
        raise InputError(f"{path} holds no events: add them, or exclude the subject")
    for column in ("onset", "duration"):
        if column not in rows[0]:
            raise InputError(f"{path} has no column {column!r}: add it, in seconds")
    for number, row in enumerate(rows, start=2):
        for column in ("onset", "duration"):
            text = row[column]
            if column == "duration" and text.strip().lower() in ("n/a", ""):
                row[column] = 0.0
                continue
            try:
                row[column] = float(text)
            except ValueError:
                row[column] = math.nan
            if not math.isfinite(row[column]) or (column == "duration" and row[column] < 0):
                raise InputError(
                    f"{path}, line {number}: {column} is {text!r}: write seconds as a number"
                )
    return rows


@dataclass(frozen=True)
class Header:
    """What a NIfTI header says that checks need."""

    shape: tuple[int, ...]
    zooms: tuple[float, ...]
    affine: tuple[float, ...]
    repetition_time: float


def read_header(path: str | Path) -> Header:
    """Return a NIfTI-1 file's header, having made sure that the file is as long as it says.

    The length that a ``.gz`` file ends with is compared, so nothing is unpacked.

    Raises
    ------
    InputError
        Where the file is missing, no NIfTI-1, or shorter than its header says.
    """
    path = Path(path)
    packed = path.suffix == ".gz"
    try:
        with (gzip.open if packed else open)(path, "rb") as stream:
            head = stream.read(348)
        size = path.stat().st_size
        if packed:
            with path.open("rb") as stream:
                stream.seek(-4, os.SEEK_END)
                length = struct.unpack("<I", stream.read(4))[0]
        else:
            length = size
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read as NIfTI ({error}): restore the file") from error
    if len(head) < 348:
        raise InputError(f"{path} is truncated or empty: restore the file")
    order = "<" if struct.unpack("<i", head[:4])[0] == 348 else ">"
    if struct.unpack(order + "i", head[:4])[0] != 348 or head[344:346] not in (b"n+", b"ni"):
        raise InputError(f"{path} is not a NIfTI-1 file: convert it")
    dim = struct.unpack(order + "8h", head[40:56])
    pixdim = struct.unpack(order + "8f", head[76:108])
    kind = struct.unpack(order + "h", head[70:72])[0]
    start = struct.unpack(order + "f", head[108:112])[0]
    affine = struct.unpack(order + "12f", head[280:328])
    shape = tuple(max(1, n) for n in dim[1 : dim[0] + 1])
    if dim[0] > 3:
        while len(shape) > 3 and shape[-1] == 1 and len(shape) > 4:
            shape = shape[:-1]
    if kind in _ITEM_BYTES:
        expected = int(start) + math.prod(shape) * _ITEM_BYTES[kind]
        short = length != expected % (1 << 32) if packed else length < expected
        if short and not (packed and _unpacked_length(path) >= expected):
            raise InputError(f"{path} is truncated: it is shorter than its header says; restore it")
    seconds = header_seconds(pixdim[4], head[123])
    return Header(shape, tuple(pixdim[1 : len(shape) + 1]), affine, seconds)


def header_seconds(step: float, units: int) -> float:
    """Return the repetition time of a NIfTI header in seconds, 0 where it has none.

    Parameters
    ----------
    step
        ``pixdim[4]``.
    units
        ``xyzt_units``. Without a unit of time a step of 1 is what converters leave that know
        no repetition time; any other is taken as seconds.
    """
    unit = units & 0x38
    if not step > 0 or (unit == 0 and step == 1):
        return 0.0
    return step * {16: 1e-3, 24: 1e-6}.get(unit, 1.0)


def _unpacked_length(path: Path) -> int:
    """Return the length of what a ``.gz`` file holds, -1 where it is damaged (slow)."""
    total = 0
    try:
        with gzip.open(path, "rb") as stream:
            while block := stream.read(1 << 22):
                total += len(block)
    except (OSError, EOFError, zlib.error):
        return -1
    return total


def repetition_time(path: str | Path, sidecar: Mapping[str, Any], header: Header) -> float:
    """Return a run's TR in seconds, from its sidecar or its header.

    Raises
    ------
    InputError
        Where it is in neither, or they contradict one another by more than a millisecond; where
        ``VolumeTiming`` says that volumes are not evenly spaced.
    """
    told = sidecar.get("RepetitionTime")
    if told is None and sidecar.get("VolumeTiming") is not None:
        told = _volume_spacing(path, sidecar["VolumeTiming"])
    read = header.repetition_time
    if told is not None and (not isinstance(told, int | float) or not 0 < told < 100):
        raise InputError(f"{path}: RepetitionTime is {told!r} in its JSON: write it in seconds")
    if told is None and not 0 < read < 100:
        raise InputError(
            f"{path}: no RepetitionTime in its JSON and none in its header: add it, in seconds"
        )
    if told is not None and 0 < read < 100 and abs(read - told) > 1e-3:
        # A header whose TR was never set says 1.
        if abs(read - 1) < 1e-6:
            return float(told)
        raise InputError(
            f"{path}: RepetitionTime is {told} s in its JSON and {read:g} s in its header: correct "
            "the wrong one"
        )
    return float(told if told is not None else read)


def _volume_spacing(path: str | Path, times: Any) -> float:
    """Return the seconds from volume to volume of a run timed by ``VolumeTiming``."""
    numbers = isinstance(times, list) and all(isinstance(t, int | float) for t in times)
    if not numbers or len(times) < 2:
        raise InputError(f"VolumeTiming is no list of seconds for {path}: correct its sidecar")
    steps = [after - before for before, after in itertools.pairwise(times)]
    if max(steps) - min(steps) > 1e-3:
        raise InputError(
            f"volumes of {path} are {min(steps):g} to {max(steps):g} s apart (VolumeTiming), which "
            "is not handled: leave the run out"
        )
    return (times[-1] - times[0]) / len(steps)


def slice_times(
    path: str | Path, sidecar: Mapping[str, Any], shape: Sequence[int], tr: float
) -> tuple[tuple[float, ...] | None, int]:
    """Return when the slices of a run were recorded, and along which axis they lie.

    Parameters
    ----------
    path
        The run, for messages.
    sidecar
        Its metadata.
    shape
        Of its array.
    tr
        Repetition time, s.

    Returns
    -------
    times : tuple of float or None
        Seconds after the volume's start in the order of the array's axis; None where the
        sidecar has none.
    axis : int
        The array's axis.

    Raises
    ------
    InputError
        Where ``SliceEncodingDirection`` is no axis, or ``SliceTiming`` no list of numbers, of
        another length than there are slices, or beyond the volume.
    """
    direction = str(sidecar.get("SliceEncodingDirection", "k"))
    if direction not in ("i", "j", "k", "i-", "j-", "k-"):
        raise InputError(
            f"SliceEncodingDirection is {direction!r} for {path}: give i, j, k, i-, j- or k-"
        )
    axis = "ijk".index(direction[0])
    times = sidecar.get("SliceTiming")
    if times is None:
        return None, axis
    numbers = isinstance(times, list) and all(
        isinstance(t, int | float) and math.isfinite(t) for t in times
    )
    if not numbers:
        raise InputError(f"SliceTiming is not a list of numbers for {path}: correct its sidecar")
    if len(times) != shape[axis]:
        raise InputError(
            f"SliceTiming has {len(times)} values for the {shape[axis]} slices of {path}: "
            "correct its sidecar"
        )
    # a little beyond the end: times are often rounded
    if min(times) < 0 or max(times) >= tr * 1.0005:
        raise InputError(
            f"SliceTiming runs from {min(times):g} to {max(times):g} s with a RepetitionTime of "
            f"{tr:g} s for {path}: give seconds after the volume's start"
        )
    if direction.endswith("-"):
        times = times[::-1]
    return tuple(float(t) for t in times), axis


def check_run(run: Run, *, stimulus_column: str, stimuli: Mapping[str, Any] | None) -> Header:
    """Check one run's recording, sidecars and events against one another.

    Parameters
    ----------
    run
        The run.
    stimulus_column
        Column of the events table that holds stimulus ids, or ``"auto"``.
    stimuli
        The known stimuli by id; None where no stimulus files are needed.

    Raises
    ------
    InputError
        For the first thing that is wrong.
    """
    header = read_header(run.bold)
    if len(header.shape) != 4 or header.shape[3] < 2:
        raise InputError(
            f"{run.bold} is no time series (shape {header.shape}): replace it, or exclude the "
            "subject"
        )
    sidecar = metadata(run.sidecars)
    tr = repetition_time(run.bold, sidecar, header)
    if run.mask is None:
        slice_times(run.bold, sidecar, header.shape, tr)
    if run.confounds is not None:
        with run.confounds.open(encoding="utf-8") as stream:
            rows = sum(1 for line in stream if line.strip()) - 1
        if rows != header.shape[3]:
            raise InputError(
                f"{run.confounds} has {rows} rows for {header.shape[3]} volumes of "
                f"{run.bold.name}: make them anew"
            )
    if run.events is None:
        raise InputError(
            f"{run.bold} has no events table (…_events.tsv): add it, or limit tasks in the config"
        )
    check_events(run, end=header.shape[3] * tr, stimulus_column=stimulus_column, stimuli=stimuli)
    return header


def check_events(
    run: Run, *, end: float, stimulus_column: str, stimuli: Mapping[str, Any] | None
) -> None:
    """Check a run's events against its end (s) and the known stimuli.

    Raises
    ------
    InputError
        For the first thing that is wrong.
    """
    rows = read_events(run.events)
    late = [row["onset"] for row in rows if row["onset"] >= end]
    if late:
        raise InputError(
            f"{run.events}: {len(late)} events start after the last volume's end ({end:g} s), "
            f"the first at {min(late):g} s: correct the onsets, or the recording is incomplete"
        )
    if stimulus_column != "auto" and stimulus_column not in rows[0]:
        raise InputError(
            f"{run.events} has no column {stimulus_column!r}: it has {', '.join(rows[0])}; set "
            "glm.stimulus_column in the config"
        )
    if stimuli is not None:
        column = stimulus_column
        if column == "auto":
            filled = (
                name
                for name in STIMULUS_COLUMNS[:-1]
                if any(str(row.get(name, "n/a")) not in ("n/a", "") for row in rows)
            )
            column = next(filled, "stim_file")
        for row in rows:
            name = str(row.get(column, "n/a"))
            if name not in ("n/a", "") and name not in stimuli:
                raise InputError(
                    f"{run.events} names stimulus {name!r}, which is not among the stimuli: add "
                    "the file, or correct input.stimuli in the config"
                )


def series_separator(path: str | Path) -> str:
    """Return what separates the columns of a table of time series."""
    return "," if Path(path).name.lower().endswith((".csv", ".csv.gz")) else "\t"


def _open_text(path: Path):
    return gzip.open(path, "rt") if path.suffix == ".gz" else path.open(encoding="utf-8-sig")


def series_header(path: str | Path) -> list[str]:
    """Return the header of a table of time series, empty where it has none.

    The first line is a header where a cell is no number, or where the cells count from 0 on.

    Raises
    ------
    InputError
        Where the file cannot be read.
    """
    path = Path(path)
    try:
        with _open_text(path) as stream:
            cells = stream.readline().rstrip("\r\n").split(series_separator(path))
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise InputError(f"{path} cannot be read as a table ({error}): restore it") from error
    try:
        counted = [float(cell) for cell in cells] == list(range(len(cells)))
    except ValueError:
        return cells
    return cells if counted and len(cells) > 1 else []


def count_volumes(path: str | Path) -> int:
    """Return the number of volumes of a time series from its header, or from its lines.

    Parameters
    ----------
    path
        4D NIfTI, ``.npy`` (time x location), ``.tsv``, ``.tsv.gz``, ``.csv`` or ``.gii``.

    Raises
    ------
    InputError
        Where the file is missing, damaged or of another kind.
    """
    path = Path(path)
    name = path.name.lower()
    if name.endswith(_NIFTI):
        shape = read_header(path).shape
        if len(shape) != 4:
            raise InputError(f"{path} has {len(shape)} dimensions, not 4: pass a series")
        return shape[3]
    try:
        if name.endswith(".npy"):
            with path.open("rb") as stream:
                head = stream.read(12)
                wide = head[6:7] != b"\x01"
                stream.seek(12 if wide else 10)
                length = struct.unpack("<I", head[8:12])[0] if wide else head[8] + 256 * head[9]
                shape = ast.literal_eval(stream.read(length).decode("latin1"))["shape"]
            if head[:6] != b"\x93NUMPY" or len(shape) != 2:
                raise InputError(f"{path} is no array of time x location: save one of 2 dimensions")
            return int(shape[0])
        if name.endswith(".gii"):
            with path.open(encoding="utf-8", errors="replace") as stream:
                found = re.search(r'NumberOfDataArrays="(\d+)"', stream.read(1 << 16))
            if not found:
                raise InputError(f"{path} is no GIFTI file: restore it")
            return int(found[1])
        header = series_header(path)
        with _open_text(path) as stream:
            return sum(1 for line in stream if line.strip()) - bool(header)
    except InputError:
        raise
    except (OSError, EOFError, ValueError, SyntaxError, KeyError, IndexError, zlib.error) as error:
        raise InputError(f"{path} cannot be read as a time series ({error}): restore it") from error


def check_series(run: Run, *, stimulus_column: str, stimuli: Mapping[str, Any] | None) -> None:
    """Check one run of a given time series against its events.

    Raises
    ------
    InputError
        For the first thing that is wrong.
    """
    volumes = count_volumes(run.bold)
    if volumes < 3:
        raise InputError(
            f"{run.bold} has {volumes} volumes: a time series needs at least 3; time is the first "
            "dimension of arrays and the lines of tables"
        )
    check_events(run, end=volumes * run.tr, stimulus_column=stimulus_column, stimuli=stimuli)


def check_t1w(path: Path) -> None:
    """Check one anatomical image.

    Raises
    ------
    InputError
        Where it is damaged or not a volume.
    """
    header = read_header(path)
    if len([n for n in header.shape if n > 1]) != 3:
        raise InputError(f"{path} is not a volume (shape {header.shape}): replace it")


def check_atlas(path: Path) -> None:
    """Check the header of one atlas, which may be a single slice, as recordings may.

    Raises
    ------
    InputError
        Where it is damaged or has more than three dimensions.
    """
    shape = read_header(path).shape
    if len(shape) < 3 or any(n > 1 for n in shape[3:]):
        raise InputError(f"{path} is not a volume (shape {shape}): replace it")


def check_grids(runs: Sequence[tuple[Run, Header]]) -> None:
    """Check that runs that will be fitted together lie on one grid.

    Raises
    ------
    InputError
        Naming the two files that do not.
    """
    for run, header in runs[1:]:
        first, reference = runs[0]
        near = all(abs(a - b) < 1e-3 for a, b in zip(header.affine, reference.affine))
        if header.shape[:3] != reference.shape[:3] or not near:
            raise InputError(
                f"{run.bold} and {first.bold} lie on different grids ({header.shape[:3]} and "
                f"{reference.shape[:3]}): resample one, or exclude the subject"
            )


def check_rdm_file(path: str | Path, where: str) -> None:
    """Raise `InputError` for a file of a kind that no RDM is read from, or that is missing."""
    path = Path(path)
    kind = path.suffix.lower()
    if kind in (".pkl", ".pickle", ".p", ".joblib"):
        raise InputError(
            f"{where} is a pickle, which can run code when it is read: in Python save it with "
            f"rdms.save({path.stem + '.h5'!r}, file_type='hdf5') or numpy.save"
            f"({path.stem + '.npy'!r}, matrix)"
        )
    if kind not in RDM_FILES:
        raise InputError(
            f"{where}: files ending in {kind!r} are not read: save .npy, .mat, .csv or "
            "rsatoolbox's .h5"
        )
    if not path.is_file():
        raise InputError(f"{where} is missing: correct the path")


def stimuli_beside(path: str | Path) -> Path:
    """Return where the stimulus ids of a file with an RDM lie if no table names a list."""
    path = Path(path)
    return path.with_name(f"{path.stem}_stimuli.txt")


def stimulus_kind(path: str | Path) -> str:
    """Return what a stimulus file is: ``image``, ``movie``, ``caption`` or ``words``.

    Empty for a file that is no stimulus: of another kind, a text that describes the folder
    (README, LICENSE, CHANGES), or a table without a column ``word``.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind in IMAGES:
        return "image"
    if kind in (*MOVIES, *FRAME_ARRAYS):
        return "movie"
    if kind == ".txt":
        return "" if path.stem.upper() in ("README", "LICENSE", "CHANGES") else "caption"
    if kind == ".tsv":
        try:
            with path.open(encoding="utf-8-sig") as stream:
                header = stream.readline()
        except (OSError, UnicodeDecodeError):
            return ""
        return "words" if "word" in header.rstrip("\r\n").split("\t") else ""
    return ""


def stimulus_sidecar(path: str | Path) -> Path | None:
    """Return the JSON file that describes an array of frames; None for other stimuli."""
    path = Path(path)
    return path.with_suffix(".json") if path.suffix.lower() in FRAME_ARRAYS else None


def read_frame_values(
    path: str | Path, frame_rate: float | None = None
) -> tuple[float, float | None, float | None]:
    """Return an array's frame rate (Hz), and its values of black and white where they are told.

    Parameters
    ----------
    path
        The array, whose JSON file may give ``FrameRate``, ``Black`` and ``White``.
    frame_rate
        The rate where it does not.

    Raises
    ------
    InputError
        Where no rate is told, or what is told is no number, or black is not below white.
    """
    path = Path(path)
    beside = path.with_suffix(".json")
    told = read_json(beside) if beside.is_file() else {}

    def number(key: str, default: float | None) -> float | None:
        value = told.get(key, default)
        plain = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (plain and math.isfinite(value)):
            raise InputError(f"{beside}: {key} is {value!r}: write a number")
        return None if value is None else float(value)

    rate, black, white = (
        number("FrameRate", frame_rate),
        number("Black", None),
        number("White", None),
    )
    if rate is None or not 0 < rate < 1e6:
        raise InputError(
            f'{path} has no frame rate: write {{"FrameRate": <Hz>}} into {beside.name} beside it, '
            "or set sampling.frame_rate of the model"
        )
    if white is not None and white <= (black or 0.0):
        raise InputError(f"{beside}: White is {white:g}, not above Black: correct them")
    return rate, black, white


def check_stimulus(path: str | Path, *, frame_rate: float | None = None) -> None:
    """Check what is cheap to check of one stimulus file: words, a text, an array's frame rate.

    Raises
    ------
    InputError
        Where it is wrong.
    """
    kind = stimulus_kind(path)
    if kind == "words":
        read_words(path)
    elif kind == "caption":
        read_caption(path)
    elif stimulus_sidecar(path):
        read_frame_values(path, frame_rate)


def read_caption(path: str | Path) -> str:
    """Read one text, without white space around it.

    Raises
    ------
    InputError
        Where the file is missing, empty or not UTF-8.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as text ({error}): save it as UTF-8") from error
    if not text:
        raise InputError(f"{path} is empty: write one text into it, or remove it")
    return text


def find_stimuli(folder: str | Path) -> dict[str, Path]:
    """Return the stimulus files below a folder by id: their path from it, as in ``stim_file``.

    Images, movies, arrays of frames, texts and tables of words, see `stimulus_kind`; hidden
    files are passed over.

    Raises
    ------
    InputError
        Where the folder is missing or holds no stimulus.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: correct input.stimuli in the config")
    found = {
        file.relative_to(folder).as_posix(): file
        for file in sorted(folder.rglob("*"))
        if not file.name.startswith(".") and stimulus_kind(file) and file.is_file()
    }
    if not found:
        raise InputError(
            f"{folder} holds no image, movie or text: correct input.stimuli in the config"
        )
    return found


@dataclass(frozen=True)
class Word:
    """One word: when it began, and how long it lasted or, untold, until the next one, s."""

    onset: float
    word: str
    duration: float


def read_words(path: str | Path) -> list[Word]:
    """Return the words of a table with columns ``onset``, ``word`` and optionally ``duration``.

    A duration that is not told (no column, or ``n/a``) lasts until the next onset; the last
    word's is then the median of the others, or 0 where it is alone.

    Raises
    ------
    InputError
        Where there is no word, a column is missing, an onset is none, negative, not after the
        one before, or a duration is negative.
    """
    rows = read_table(path)
    if not rows:
        raise InputError(f"{path} holds no words: add them, or remove the file")
    for column in ("onset", "word"):
        if column not in rows[0]:
            raise InputError(f"{path} has no column {column!r}: add it (onset in s, word)")
    onsets = [_seconds(path, n, "onset", row["onset"]) for n, row in enumerate(rows, start=2)]
    for number, (before, onset) in enumerate(itertools.pairwise(onsets), start=3):
        if onset <= before:
            raise InputError(
                f"{path}, line {number}: onset {onset:g} s is not after the one before "
                f"({before:g} s): sort the words, one an onset"
            )
    gaps = [after - onset for onset, after in itertools.pairwise(onsets)]
    last = sorted(gaps)[len(gaps) // 2] if gaps else 0.0
    words = []
    for number, (row, onset, gap) in enumerate(zip(rows, onsets, [*gaps, last]), start=2):
        text = row["word"].strip()
        if not text:
            raise InputError(f"{path}, line {number}: the word is empty: fill it in")
        told = row.get("duration", "n/a").strip()
        duration = gap if told in ("n/a", "") else _seconds(path, number, "duration", told)
        words.append(Word(onset, text, duration))
    return words


def _seconds(path: str | Path, number: int, column: str, text: str) -> float:
    """Return a time of a table that must not be negative."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0:
        raise InputError(
            f"{path}, line {number}: {column} {text!r} is no number of seconds from 0 on: "
            "correct it"
        )
    return value


def read_labels(path: str | Path) -> dict[int, str]:
    """Return an atlas' region names by label from a table with columns ``index`` and ``name``.

    A row of index 0, the background, is passed over.

    Raises
    ------
    InputError
        Where a column is missing, an index is no positive integer, or one is there twice.
    """
    labels: dict[int, str] = {}
    rows = read_table(path)
    if not rows or not {"index", "name"} <= set(rows[0]):
        raise InputError(f"{path} needs columns index and name and at least one region: add them")
    for number, row in enumerate(rows, start=2):
        text = row["index"].strip()
        if not text.isdigit():
            raise InputError(
                f"{path}, line {number}: index {text!r} is no positive integer: correct it"
            )
        if int(text) == 0:
            # the background, which many atlases' tables name
            continue
        if int(text) in labels or row["name"] in labels.values():
            raise InputError(f"{path}, line {number}: {row['name']!r} is there twice: remove one")
        labels[int(text)] = row["name"]
    if not labels:
        raise InputError(f"{path} names no region but the background: add one")
    return labels
