"""Preprocessed derivatives in fMRIPrep's naming: their index, their spaces, who made them.

Only the standard library is imported at module level, because the Snakefile imports this module.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from isocortex import bids
from isocortex.errors import InputError

_OUTPUT_SPACE = re.compile(r"[A-Za-z0-9]+(:(cohort|res)-[A-Za-z0-9]+)*")
_SURFACES = (".dtseries.nii", ".ptseries.nii", ".func.gii")
_NIFTI = (".nii.gz", ".nii")
_OF_IMAGE = ("space", "cohort", "res", "den", "hemi", "desc")
"""Entities that tell images of one run apart, and are no part of the run's name."""

_CONFOUNDS = re.compile(r"_desc-confounds_(timeseries|regressors)\.tsv$")
"""``regressors`` until fMRIPrep 20.1."""


@dataclass(frozen=True)
class Space:
    """A space in the syntax of fMRIPrep's ``--output-spaces``: ``NAME[:cohort-X][:res-Y]``.

    Parameters
    ----------
    name
        For example ``T1w`` or ``MNI152NLin2009cAsym``.
    cohort
        Of a template that has some; empty where there is none.
    resolution
        ``res`` of the file names; ``native`` for none; empty where any will do that is alone.
    """

    name: str
    cohort: str = ""
    resolution: str = ""

    @property
    def label(self) -> str:
        """The space without its resolution, as in file names: ``MNIInfant_cohort-1``."""
        return f"{self.name}_cohort-{self.cohort}" if self.cohort else self.name

    def __str__(self) -> str:
        modifiers = (("cohort", self.cohort), ("res", self.resolution))
        return ":".join([self.name, *(f"{key}-{value}" for key, value in modifiers if value)])

    def holds(self, other: Space) -> bool:
        """Whether another space, of a file, is this one where this one is explicit."""
        return (
            self.name == other.name
            and self.cohort in ("", other.cohort)
            and self.resolution in ("", other.resolution)
        )


def parse_space(text: str, *, key: str = "glm.space") -> Space:
    """Return a space from fMRIPrep's syntax of output spaces.

    >>> parse_space("MNIInfant:cohort-1:res-2")
    Space(name='MNIInfant', cohort='1', resolution='2')

    Raises
    ------
    InputError
        Where it is in another form; ``key`` of the config is named.
    """
    name, *modifiers = text.split(":")
    found = dict(modifier.split("-", 1) for modifier in modifiers if "-" in modifier)
    if not _OUTPUT_SPACE.fullmatch(text) or len(found) < len(modifiers):
        raise InputError(
            f"config: {key} is {text!r}: write a space as fMRIPrep's --output-spaces does, "
            "for example MNI152NLin2009cAsym:res-2"
        )
    return Space(name, found.get("cohort", ""), found.get("res", ""))


def on_mni152(space: str) -> bool:
    """Whether a space is one of the MNI152 templates, which fsaverage's surfaces lie in.

    Other templates, of infants or of MNI305, have heads of another size.
    """
    return space.startswith("MNI152")


@dataclass(frozen=True)
class _Series:
    """A preprocessed series of a run in one space."""

    folder: Path
    name: str
    session: str
    keys: Mapping[str, str]

    @property
    def space(self) -> Space:
        return Space(
            self.keys["space"], self.keys.get("cohort", ""), self.keys.get("res", "native")
        )

    @property
    def own(self) -> dict[str, str]:
        """The entities of the run."""
        return {key: value for key, value in self.keys.items() if key not in _OF_IMAGE}

    @property
    def bare(self) -> str:
        """The run's name without what tells its images apart."""
        return "_".join(f"{key}-{value}" for key, value in self.own.items())


def index_derivatives(
    root: str | Path,
    *,
    space: str,
    events: str | Path | None = None,
    subjects: str | Sequence[str] = "all",
    tasks: str | Sequence[str] = "all",
    exclude: Iterable[str] = (),
) -> dict[str, bids.Subject]:
    """Index preprocessed derivatives in fMRIPrep's naming.

    Parameters
    ----------
    root
        The derivatives.
    space
        The output space to read in fMRIPrep's syntax: ``T1w``, ``MNI152NLin2009cAsym:res-2``,
        ``MNIInfant:cohort-1``. Cohort and resolution may be left out where there is one.
    events
        The raw dataset, where the events tables are.
    subjects, tasks, exclude
        As for `isocortex.bids.index_raw`.

    Raises
    ------
    InputError
        Where the space is not there (told which are) or is there in several resolutions or
        cohorts; where there are only surface or CIFTI series, or single echoes; where mask,
        confounds or sidecar of a run are missing; where T1w is asked for and each session has
        an anatomical reference of its own.
    """
    root, wanted = Path(root), parse_space(space)
    raw_root = Path(events) if events else None
    found = {}
    for label in bids.find_subjects(root, subjects, exclude):
        folder = root / f"sub-{label}"
        sessions = [n[4:] for n in bids.list_names(folder) if n.startswith("ses-")] or [""]
        anat = {s: folder / (f"ses-{s}/anat" if s else "anat") for s in ["", *sessions]}
        transforms, references = _anatomies(anat)
        listed = {
            func: bids.list_names(func)
            for func in (folder / (f"ses-{s}/func" if s else "func") for s in sessions)
        }
        series, others = _find_series(listed, tasks)
        chosen = _choose(series, others, wanted, where=f"sub-{label} in {root}")
        if wanted.name == "T1w" and len(references - {""}) > 1:
            used = sorted({one.session for one in chosen})
            if len(used) > 1:
                raise InputError(
                    f"sub-{label} has an anatomical reference for each of its sessions "
                    f"({', '.join(f'ses-{s}' for s in used)}) in {root}, so that T1w is another "
                    "space in each: choose a template's space as glm.space"
                )
        runs = [_run(one, listed[one.folder], label, raw_root) for one in chosen]
        found[label] = bids.Subject(label, (), bids.in_order(label, runs, root, tasks), transforms)
    return found


def _find_series(
    listed: Mapping[Path, Sequence[str]], tasks: str | Sequence[str]
) -> tuple[list[_Series], set[str]]:
    """Return the volume series of the wanted tasks, and what else there is, in words."""
    series: list[_Series] = []
    others: set[str] = set()
    for folder, names in listed.items():
        for name in names:
            keys, suffix = bids.entities(name)
            if suffix != "bold" or (tasks != "all" and keys.get("task", "") not in tasks):
                continue
            if name.endswith(_SURFACES):
                kind = "CIFTI" if name.endswith("series.nii") else "surface"
                density = f":den-{keys['den']}" if "den" in keys else ""
                others.add(f"{keys.get('space', '?')}{density} ({kind})")
            elif name.endswith(_NIFTI) and keys.get("desc") == "preproc":
                if "space" not in keys:
                    others.add("each run's own space (func)")
                elif "echo" in keys:
                    others.add(f"{keys['space']} (single echoes)")
                else:
                    series.append(_Series(folder, name, keys.get("ses", ""), keys))
    return series, others


def _choose(
    series: Sequence[_Series], others: set[str], wanted: Space, *, where: str
) -> list[_Series]:
    """Return the series in the wanted space, having made sure that it is one and every run's."""
    fits = [one for one in series if wanted.holds(one.space)]
    spaces = sorted({one.space for one in series}, key=str)
    if not fits and (series or others):
        listed = [*(_told(one, spaces) for one in spaces), *sorted(others)]
        volumes = (
            "set glm.space in the config"
            if series
            else "series on surfaces and in CIFTI are not read: run fMRIPrep with a volume space, "
            "too (--output-spaces MNI152NLin2009cAsym:res-2)"
        )
        raise InputError(
            f"{where} has no volume series in space {str(wanted)!r}: it has {', '.join(listed)}; "
            f"{volumes}"
        )
    choices = sorted({one.space for one in fits}, key=str)
    if len(choices) > 1:
        raise InputError(
            f"{where} has space {str(wanted)!r} in several cohorts or resolutions: set glm.space "
            f"to one of {', '.join(map(str, choices))}"
        )
    there = {(one.folder, one.bare) for one in fits}
    for one in series:
        if (one.folder, one.bare) not in there:
            raise InputError(
                f"{where}: {one.bare} is there in {_told(one.space, spaces)} but not in "
                f"{wanted}, as other runs are: complete the derivatives, or name the subject "
                "under exclude in the config"
            )
    return fits


def _told(space: Space, among: Sequence[Space]) -> str:
    """Return how to ask for a space: its resolution only where there are several."""
    alone = sum(other.label == space.label for other in among) == 1
    return str(Space(space.name, space.cohort) if alone and space.resolution == "native" else space)


def _run(one: _Series, names: Sequence[str], label: str, raw_root: Path | None) -> bids.Run:
    """Return a run with the files that belong to its series."""
    stem = one.name.split("_desc-preproc_bold", 1)[0]
    masks = [f"{stem}_desc-brain_mask{ending}" for ending in _NIFTI]
    mask = next((one.folder / name for name in masks if name in names), None)
    table = _confounds_table(one.own, names)
    sidecar = f"{stem}_desc-preproc_bold.json"
    for what, there in (
        ("brain mask", mask),
        ("confounds table", table),
        ("JSON sidecar", sidecar in names),
    ):
        if not there:
            raise InputError(
                f"{one.folder / one.name} has no {what} beside it: complete the derivatives, or "
                "name the subject under exclude in the config"
            )
    part = f"ses-{one.session}/" if one.session else ""
    events = []
    if raw_root:
        subject = raw_root / f"sub-{label}"
        levels = [raw_root, subject, *([subject / part] if part else []), subject / part / "func"]
        events = bids.inherited(
            [(level, bids.list_names(level)) for level in levels], one.own, "_events.tsv"
        )
    return bids.Run(
        subject=label,
        session=one.session,
        task=one.keys.get("task", ""),
        label=one.keys.get("run", ""),
        stem=f"{part}func/{one.bare}",
        bold=one.folder / one.name,
        sidecars=(one.folder / sidecar,),
        events=events[-1] if events else None,
        mask=mask,
        confounds=one.folder / str(table),
    )


def _confounds_table(own: Mapping[str, str], names: Sequence[str]) -> str | None:
    """Return the name of a run's confounds table; it may leave out ``part`` and the like."""
    needed = {"task", "ses", "run"} & set(own)
    fits = []
    for name in names:
        if kind := _CONFOUNDS.search(name):
            keys = {k: v for k, v in bids.entities(name)[0].items() if k != "desc"}
            if needed <= set(keys) and all(own.get(key) == value for key, value in keys.items()):
                fits.append((len(keys), kind[1] == "timeseries", name))
    return max(fits)[2] if fits else None


def _anatomies(folders: Mapping[str, Path]) -> tuple[dict[str, Path], set[str]]:
    """Return a subject's transforms by ``from-to``, and the sessions with a reference each.

    fMRIPrep writes one reference to the subject's folder, or to the session's where there is
    one; with ``--subject-anatomical-reference sessionwise`` one to each session's.
    """
    transforms: dict[str, Path] = {}
    references: set[str] = set()
    for session, folder in folders.items():
        names = bids.list_names(folder)
        if any(name.endswith(("_to-T1w_mode-image_xfm.h5", "_T1w.nii.gz")) for name in names):
            references.add(session)
        for name in names:
            keys = bids.entities(name)[0]
            if name.endswith("_mode-image_xfm.h5") and {"from", "to"} <= set(keys):
                # A cohort is written Template+1 in transforms.
                start, end = (keys[k].replace("+", "_cohort-") for k in ("from", "to"))
                transforms.setdefault(f"{start}-{end}", folder / name)
    return transforms, references


def made_by(root: str | Path) -> str:
    """Return what made a derivatives dataset, ``fMRIPrep 24.1.1``, by its description.

    Empty where ``dataset_description.json`` is missing or says nothing.

    Raises
    ------
    InputError
        Where the file is there and is no JSON object.
    """
    path = Path(root) / "dataset_description.json"
    if not path.is_file():
        return ""
    described = bids.read_json(path)
    makers = described.get("GeneratedBy") or described.get("PipelineDescription") or []
    makers = [makers] if isinstance(makers, dict) else makers
    named = [
        " ".join(str(maker[key]) for key in ("Name", "Version") if maker.get(key))
        for maker in makers
        if isinstance(maker, dict)
    ]
    return ", ".join(filter(None, named))
