"""The index of ``fmap/``: which field belongs to which run, told by the dataset's own metadata.

Only the standard library is imported at module level, because the Snakefile imports this module.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from isocortex import bids
from isocortex.bids import Fieldmap, Run, Subject
from isocortex.errors import InputError
from isocortex.fieldmaps_metadata import (
    echo_times,
    opposite_groups,
    phase_encoding,
    units_of,
)

logger = logging.getLogger(__name__)

OFF = "preprocess.distortion.correct is false"
NO_FIELDMAP = "the dataset has no fieldmap for it"
_IMAGE = re.compile(r"\.nii(\.gz)?$")
_KINDS = {
    "phasediff": "phasediff",
    "phase1": "phases",
    "phase2": "phases",
    "fieldmap": "fieldmap",
    "epi": "pepolar",
}


@dataclass(frozen=True)
class _File:
    """One image of ``fmap/`` with what its sidecars say."""

    path: Path
    keys: Mapping[str, str]
    suffix: str
    sidecars: tuple[Path, ...]
    meta: Mapping[str, Any]
    session: str


def add_fieldmaps(root: str | Path, subjects: Mapping[str, Subject]) -> dict[str, Subject]:
    """Return the index with each run's fieldmap, or why it has none.

    A run's ``B0FieldSource`` decides, which names the ``B0FieldIdentifier`` of images; without
    it, the images whose ``IntendedFor`` names the run. Images of opposite phase encoding are
    taken together; if those of a run all have the opposite of its own direction, the run itself
    is the other half.

    Parameters
    ----------
    root
        The raw dataset.
    subjects
        Its index.

    Raises
    ------
    InputError
        Where a run's sources are not there, incomplete or several, and for sidecars that cannot
        be read.
    """
    root = Path(root)
    top = bids.list_names(root)
    return {label: _of_subject(root, top, subject) for label, subject in subjects.items()}


def without_fieldmaps(subjects: Mapping[str, Subject], reason: str = OFF) -> dict[str, Subject]:
    """Return the index with a reason why no run is corrected."""
    return {
        label: replace(
            subject,
            runs=tuple(replace(run, fieldmap="", no_fieldmap=reason) for run in subject.runs),
            fieldmaps={},
        )
        for label, subject in subjects.items()
    }


def check_fieldmaps(subject: Subject) -> None:
    """Check the fieldmaps of a subject and what its runs must say for them to be of use.

    Raises
    ------
    InputError
        For the first thing that is wrong.
    """
    for fieldmap in subject.fieldmaps.values():
        shapes = {path: bids.read_header(path).shape for path in fieldmap.files}
        for path in fieldmap.magnitudes:
            shape = bids.read_header(path).shape
            if shape[:3] != shapes[fieldmap.files[0]][:3]:
                raise InputError(
                    f"{path} and {fieldmap.files[0].name} have different grids ({shape[:3]} and "
                    f"{shapes[fieldmap.files[0]][:3]}): restore the one that belongs to it"
                )
        if fieldmap.kind in ("phasediff", "phases"):
            echo_times(fieldmap)
        elif fieldmap.kind == "fieldmap":
            units_of(fieldmap)
        else:
            opposite_groups(fieldmap)
    for run in subject.runs:
        if run.fieldmap:
            phase_encoding(run.bold, bids.metadata(run.sidecars), bids.read_header(run.bold).shape)
        elif run.no_fieldmap == NO_FIELDMAP:
            source = bids.metadata(run.sidecars).get("B0FieldSource")
            if source:
                raise InputError(
                    f"B0FieldSource of {run.bold} is {source!r}, but there is no image in fmap/: "
                    "restore it, or set preprocess.distortion.correct to false"
                )


def warn_of_unused(subjects: Mapping[str, Subject]) -> None:
    """Say in one line how many runs have fieldmaps beside them that are not used, and why."""
    unused = [
        run
        for subject in subjects.values()
        for run in subject.runs
        if run.no_fieldmap not in ("", OFF, NO_FIELDMAP)
    ]
    if unused:
        first = unused[0]
        logger.warning(
            "isocortex: %d run%s not corrected for distortion although there are fieldmaps; %s: "
            "%s. If it should be, correct the sidecars' IntendedFor (docs/preprocessing.md)",
            len(unused),
            " is" if len(unused) == 1 else "s are",
            first.bold,
            first.no_fieldmap,
        )


def _listed(value: Any, key: str, path: Path) -> list[str]:
    """Return a string, a list of strings or nothing as a list."""
    values = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
        raise InputError(f"{key} is {value!r} for {path}: write a string, or a list of strings")
    return values


def _of_subject(root: Path, top: list[str], subject: Subject) -> Subject:
    folder = root / f"sub-{subject.label}"
    inside = bids.list_names(folder)
    sessions = [name[4:] for name in inside if name.startswith("ses-")] or [""]
    files: list[_File] = []
    for session in sessions:
        base = folder / f"ses-{session}" if session else folder
        names = bids.list_names(base / "fmap")
        if not any(_IMAGE.search(name) for name in names):
            continue
        levels = [(root, top), (folder, inside)]
        if session:
            levels.append((base, bids.list_names(base)))
        levels.append((base / "fmap", names))
        for name in names:
            keys, suffix = bids.entities(name)
            if not _IMAGE.search(name) or suffix not in (
                *_KINDS,
                *("magnitude", "magnitude1", "magnitude2"),
            ):
                continue
            # at the dataset's root a sidecar may be named by its suffix alone
            sidecars = tuple(
                path
                for path in bids.inherited(levels, keys, f"{suffix}.json")
                if bids.entities(path.name)[1] == suffix
            )
            meta = bids.metadata(sidecars)
            files.append(_File(base / "fmap" / name, keys, suffix, sidecars, meta, session))
    if not any(file.suffix in _KINDS for file in files):
        return without_fieldmaps({subject.label: subject}, NO_FIELDMAP)[subject.label]
    identified: dict[str, list[_File]] = {}
    for file in files:
        for name in _listed(file.meta.get("B0FieldIdentifier"), "B0FieldIdentifier", file.path):
            identified.setdefault(name, []).append(file)
    metas = {run.stem: bids.metadata(run.sidecars) for run in subject.runs}
    found: dict[str, Fieldmap] = {}
    runs = []
    for run in subject.runs:
        made = _of_run(root, subject, run, files, identified, metas)
        if isinstance(made, str):
            runs.append(replace(run, fieldmap="", no_fieldmap=made))
            continue
        known = found.setdefault(made.id, made)
        if known.files != made.files:
            other = known.files[0].name
            raise InputError(
                f"fieldmaps of {other} and {made.files[0].name} in {made.files[0].parent} would "
                f"both be called {made.id}: give them B0FieldIdentifier of their own"
            )
        runs.append(replace(run, fieldmap=made.id, no_fieldmap=""))
    return replace(subject, runs=tuple(runs), fieldmaps=found)


def _of_run(
    root: Path,
    subject: Subject,
    run: Run,
    files: Sequence[_File],
    identified: Mapping[str, Sequence[_File]],
    metas: Mapping[str, Mapping[str, Any]],
) -> Fieldmap | str:
    """Return the fieldmap of one run, or why it has none."""
    sources = _listed(metas[run.stem].get("B0FieldSource"), "B0FieldSource", run.bold)
    if len(sources) > 1:
        raise InputError(
            f"B0FieldSource of {run.bold} names {', '.join(sources)}: name the one that it is to "
            "be corrected with"
        )
    if sources:
        if sources[0] not in identified:
            known = ", ".join(identified) or "none"
            raise InputError(
                f"B0FieldSource of {run.bold} is {sources[0]!r}, but the B0FieldIdentifier in "
                f"fmap/ of sub-{subject.label} are: {known}; correct one of them"
            )
        name, members = sources[0], list(identified[sources[0]])
        sessions = {file.session for file in members}
        if len(sessions) > 1 and run.session in sessions:
            # the same identifier in each session stands for a field of each
            name = f"ses{run.session}{name}"
            members = [file for file in members if file.session == run.session]
        partners = [
            other
            for other in subject.runs
            if (name == sources[0] or other.session == run.session)
            and sources[0]
            in _listed(metas[other.stem].get("B0FieldIdentifier"), "B0FieldIdentifier", other.bold)
        ]
        return _made(name, members, files, run, partners or [run], metas)
    members = [
        file
        for file in files
        if file.suffix in _KINDS and _is_meant(root, subject.label, run, file)
    ]
    if not members:
        near = [file for file in files if file.session == run.session and file.suffix in _KINDS]
        if not near:
            return NO_FIELDMAP
        meant = _listed(near[0].meta.get("IntendedFor"), "IntendedFor", near[0].path)
        told = f"its IntendedFor names {meant[0]}" if meant else "it has no IntendedFor"
        told += f" and {len(meant) - 1} more" if len(meant) > 1 else ""
        return (
            f"fmap/ holds {near[0].path.name}, but no IntendedFor names the run ({told}) and the "
            "run's sidecar has no B0FieldSource"
        )
    same_targets = [
        other
        for other in subject.runs
        if not metas[other.stem].get("B0FieldSource")
        and all(_is_meant(root, subject.label, other, file) for file in members)
    ]
    return _made("", members, files, run, same_targets, metas)


def _made(
    name: str,
    members: Sequence[_File],
    files: Sequence[_File],
    run: Run,
    partners: Sequence[Run],
    metas: Mapping[str, Mapping[str, Any]],
) -> Fieldmap | str:
    """Return the fieldmap that some images make, complete, or why they make none."""
    where = members[0].path.parent
    images = [file for file in members if file.suffix in _KINDS]
    kinds = sorted({_KINDS[file.suffix] for file in images})
    if not images:
        raise InputError(
            f"B0FieldIdentifier {name!r} in {where} marks magnitudes alone: mark the image of the "
            "field, too"
        )
    several = len(kinds) > 1 or any(
        sum(file.suffix == suffix for file in images) > 1
        for suffix in ("phasediff", "phase1", "phase2", "fieldmap")
    )
    if several:
        raise InputError(
            f"{run.bold} has several fieldmaps ({', '.join(file.path.name for file in images)} in "
            f"{where}): name one by B0FieldSource in its sidecar and B0FieldIdentifier in theirs"
        )
    kind = kinds[0]
    if kind == "pepolar":
        return _opposite(name, images, run, partners, metas)
    if kind == "phases":
        images += [
            file
            for file in files
            if file.suffix in ("phase1", "phase2")
            and _same(file, images[0])
            and file.suffix not in {image.suffix for image in images}
        ]
        images.sort(key=lambda file: file.suffix)
        if len(images) != 2:
            raise InputError(f"{images[0].path} has no other phase beside it: restore it")
    wanted = ("magnitude",) if kind == "fieldmap" else ("magnitude1", "magnitude2")
    magnitudes = [
        next((file for file in files if file.suffix == suffix and _same(file, images[0])), None)
        for suffix in wanted
    ]
    if magnitudes[0] is None:
        raise InputError(
            f"{images[0].path} has no {wanted[0]} beside it, which is needed to place it: restore "
            "it, or set preprocess.distortion.correct to false"
        )
    return _fieldmap(name, kind, images, [file for file in magnitudes if file])


def _opposite(
    name: str,
    images: Sequence[_File],
    run: Run,
    partners: Sequence[Run],
    metas: Mapping[str, Mapping[str, Any]],
) -> Fieldmap | str:
    """Return the fieldmap of images of opposite phase encoding, with a run where it takes one."""
    directions = {file.path: file.meta.get("PhaseEncodingDirection") for file in images}
    for path, direction in directions.items():
        if not direction:
            raise InputError(
                f"PhaseEncodingDirection is missing for {path}: write it into its sidecar"
            )
    if len(set(directions.values())) > 1:
        return _fieldmap(name, "pepolar", images, [])
    only = next(iter(directions.values()))
    own = metas[run.stem].get("PhaseEncodingDirection")
    if own is None:
        raise InputError(
            f"PhaseEncodingDirection is missing for {run.bold}, for which "
            f"{images[0].path.name} is meant: write it into its sidecar, or set "
            "preprocess.distortion.correct to false"
        )
    opposed = [
        other
        for other in partners
        if metas[other.stem].get("PhaseEncodingDirection") == _turned(only)
    ]
    if not opposed:
        return (
            f"{images[0].path.name} is encoded along {only} and the run along {own}, which are "
            "not opposite"
        )
    # the first run stands for all that share the image: one head position is enough
    half = opposed[0]
    made = _fieldmap(name, "pepolar", images, [])
    return replace(made, files=(half.bold, *made.files), sidecars=(half.sidecars, *made.sidecars))


def _turned(direction: str) -> str:
    return direction[:-1] if direction.endswith("-") else f"{direction}-"


def _same(file: _File, other: _File) -> bool:
    """Whether two images of fmap/ are of one recording: the same entities."""
    return file.keys == other.keys and file.session == other.session


def _fieldmap(
    name: str, kind: str, images: Sequence[_File], magnitudes: Sequence[_File]
) -> Fieldmap:
    session = images[0].session
    if not name:
        shared = {
            key: value
            for key, value in images[0].keys.items()
            if key not in ("sub", "dir") and all(file.keys.get(key) == value for file in images)
        }
        name = "".join(f"{key}{value}" for key, value in shared.items()) + kind
    label = re.sub(r"[^A-Za-z0-9]", "", name)
    if not label:
        raise InputError(f"B0FieldIdentifier {name!r} of {images[0].path}: use letters and digits")
    subject = images[0].keys["sub"]
    part = f"ses-{session}/" if session else ""
    middle = f"_ses-{session}" if session else ""
    return Fieldmap(
        id=label,
        stem=f"{part}fmap/sub-{subject}{middle}_fmapid-{label}",
        kind=kind,
        files=tuple(file.path for file in images),
        sidecars=tuple(file.sidecars for file in images),
        magnitudes=tuple(file.path for file in magnitudes),
    )


def _is_meant(root: Path, label: str, run: Run, file: _File) -> bool:
    """Whether an image's IntendedFor names a run: by a URI, or a path from the subject's folder.

    Paths from the session's folder, which older datasets have, are understood, too.
    """
    subject = root / f"sub-{label}"
    places: list[Path] = []
    for text in _listed(file.meta.get("IntendedFor"), "IntendedFor", file.path):
        if uri := re.match(r"bids:[^:]*:(.*)", text):
            places.append(root / uri[1])
        else:
            places += [root / text, subject / text]
            if run.session:
                places.append(subject / f"ses-{run.session}" / text)
    bold = _bare(run.bold)
    return any(_bare(place) == bold for place in places)


def _bare(path: Path) -> str:
    return _IMAGE.sub("", os.path.normpath(path))
