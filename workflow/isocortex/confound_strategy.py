"""Confounds by the names of strategies: which columns of a confounds table they mean.

Only the standard library is imported at module level, because the Snakefile imports this module.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from isocortex.errors import InputError

_MOTION = tuple(f"{kind}_{axis}" for kind in ("trans", "rot") for axis in "xyz")
_DERIVATIVES = ("", "_derivative1")
_FULL = ("", "_derivative1", "_power2", "_derivative1_power2")

_COLUMNS: Mapping[str, tuple[str, ...]] = {
    name: tuple(base + ending for ending in endings for base in bases)
    for name, bases, endings in (
        ("motion6", _MOTION, ("",)),
        ("motion12", _MOTION, _DERIVATIVES),
        ("motion24", _MOTION, _FULL),
        ("wm_csf", ("csf", "white_matter"), ("",)),
        ("wm_csf2", ("csf", "white_matter"), ("",)),
        ("wm_csf4", ("csf", "white_matter"), _DERIVATIVES),
        ("wm_csf8", ("csf", "white_matter"), _FULL),
        ("global_signal", ("global_signal",), ("",)),
        ("global_signal2", ("global_signal",), _DERIVATIVES),
        ("global_signal4", ("global_signal",), _FULL),
    )
}
_PRESETS: Mapping[str, tuple[str, ...]] = {
    "simple": ("motion24", "wm_csf", "high_pass"),
    "scrubbing": ("motion24", "wm_csf8", "high_pass", "scrub"),
    "compcor": ("motion24", "high_pass", "acompcor"),
}
"""Strategies of `nilearn.interfaces.fmriprep.load_confounds_strategy`, by their parts."""

_COMPCOR = re.compile(r"(compcor|acompcor|temporal_compcor)(?:(\d+)(%)?)?")
_SCRUB = re.compile(r"scrub\((.*)\)")
NAMES = ("none", *_COLUMNS, "high_pass", "scrub", *_PRESETS, "acompcor", "temporal_compcor")
"""All names; those of CompCor may end in a number of components, or a share of variance in %."""

OUTLIERS = ("non_steady_state_outlier", "motion_outlier")
"""Columns of single volumes; a run without such volumes rightly has none of them."""


@dataclass(frozen=True)
class Scrub:
    """Which volumes are scrubbed.

    Parameters
    ----------
    fd, dvars
        Framewise displacement (mm) and standardised DVARS above which a volume is.
    segment
        Between such volumes, stretches of fewer volumes than this are, too (Power et al. 2014).
    """

    fd: float = 0.5
    dvars: float = 1.5
    segment: int = 5


@dataclass(frozen=True)
class Strategy:
    """A choice of confounds.

    Parameters
    ----------
    parts
        Names without presets, one of a kind.
    patterns
        Columns by name or pattern.
    scrub
        Which volumes get an indicator column of their own; None for none.
    """

    parts: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()
    scrub: Scrub | None = None

    @property
    def is_empty(self) -> bool:
        """Whether no confounds are wanted at all."""
        return not (self.parts or self.patterns or self.scrub)

    def columns(
        self, header: Sequence[str], metadata: Mapping[str, Any] | None, *, where: str
    ) -> list[str]:
        """Return the wanted columns of a table, without those that scrubbing makes.

        Parameters
        ----------
        header
            The table's columns.
        metadata
            Its JSON; None where there is none.
        where
            The table, for messages.

        Raises
        ------
        InputError
            Where a column, or the JSON of CompCor's components, is missing.
        """
        if self.is_empty:
            return []
        found: dict[str, None] = {}
        for part in self.parts:
            if part == "high_pass":
                names = [name for name in header if name.startswith("cosine")]
            elif compcor := _COMPCOR.fullmatch(part):
                names = _components(compcor, metadata, where=where)
            else:
                names = list(_COLUMNS[part])
            _check_there(names, header, f"which {part} takes", where)
            found.update(dict.fromkeys(names))
        for pattern in self.patterns:
            names = [name for name in header if fnmatchcase(name, pattern)]
            if not names and not pattern.startswith(OUTLIERS):
                raise InputError(
                    f"{where} has no column {pattern}: correct glm.confound_columns or add the "
                    "column"
                )
            found.update(dict.fromkeys(names))
        if self.scrub:
            _check_there(("framewise_displacement", "std_dvars"), header, "for scrub", where)
        found.update(dict.fromkeys(name for name in header if name.startswith(OUTLIERS[0])))
        return list(found)


def _check_there(names: Iterable[str], header: Sequence[str], why: str, where: str) -> None:
    """Raise `InputError` for the first column that is missing."""
    for name in names:
        if name not in header:
            raise InputError(
                f"{where} has no column {name}, {why}: correct glm.confound_columns or add the "
                "column"
            )


def _components(wanted: re.Match, metadata: Mapping[str, Any] | None, *, where: str) -> list[str]:
    """Return the names of the components of CompCor that a part stands for."""
    kind, amount, percent = wanted.groups()
    letter = "t" if kind == "temporal_compcor" else "a"
    names = [
        name
        for name, described in (metadata or {}).items()
        if re.fullmatch(rf"{letter}_comp_cor_\d+", name)
        and described.get("Retained", True)
        # in older tables a_comp_cor counts through those of white matter and of CSF, too
        and (letter == "t" or described.get("Mask") == "combined")
    ]
    names.sort(key=lambda name: int(name.rsplit("_", 1)[1]))
    if not names:
        raise InputError(
            f"the JSON beside {where} tells no retained components of {kind}"
            + (" from white matter and CSF combined" if letter == "a" else "")
            + ": restore it, or choose columns by name in glm.confound_columns"
        )
    if percent:
        shares = [float(metadata[name].get("CumulativeVarianceExplained", 1)) for name in names]
        enough = (n for n, share in enumerate(shares, 1) if share >= int(amount) / 100)
        return names[: next(enough, len(names))]
    return names[: int(amount)] if amount else names


def parse_strategy(wanted: str | Sequence[str], *, key: str = "glm.confound_columns") -> Strategy:
    """Return a choice of confounds from how the config writes it.

    Parameters
    ----------
    wanted
        Names joined by ``+``: ``none``, or some of

        - ``motion6``, ``motion12`` (with derivatives), ``motion24`` (and the squares of both)
        - ``wm_csf``, ``wm_csf4``, ``wm_csf8``; ``global_signal``, ``global_signal2``,
          ``global_signal4``: means of tissues, by the number of columns
        - ``high_pass``: the table's cosines
        - ``acompcor`` (white matter and CSF combined), ``temporal_compcor``: the retained
          components; ``acompcor6`` the first six, ``acompcor30%`` as many as explain 30 %. The
          cosines, without which their components are not what was found, come with them
        - ``scrub``: an indicator for each volume over a threshold, ``scrub(fd=0.2, dvars=3,
          segment=0)``
        - ``simple``, ``scrubbing``, ``compcor`` (also ``compcor6``): the strategies of
          `nilearn.interfaces.fmriprep.load_confounds_strategy`. They have motion24; what else is
          named takes the place of their part of the same kind.

        Or a list of such names, and names and patterns of columns.
    key
        Of the config, for messages.

    Raises
    ------
    InputError
        For an unknown name, or two of a kind.
    """
    listed = not isinstance(wanted, str)
    items = list(wanted) if listed else [item.strip() for item in wanted.split("+")]
    if items in ([], ["none"]):
        return Strategy()
    given: list[str] = []
    patterns: list[str] = []
    for item in items:
        if _is_name(item):
            given.append(item)
        elif listed and item != "ica_aroma":
            patterns.append(item)
        else:
            _refuse(item, wanted, key)
    presets = [item for item in given if item in _PRESETS or item.startswith("compcor")]
    if len(presets) > 1:
        raise InputError(f"config: {key} has {' and '.join(presets)}: keep one of them")
    named = [item for item in given if item not in presets]
    kinds = {_kind(name): name for name in named}
    for name in named:
        if kinds[_kind(name)] != name:
            raise InputError(f"config: {key} has {name} and {kinds[_kind(name)]}: keep one of them")
    parts = dict(kinds)
    for preset in presets:
        # compcor6 is the preset compcor with so many components
        for part in _PRESETS.get(preset, _PRESETS["compcor"]):
            exact = f"a{preset}" if part == "acompcor" else part
            parts.setdefault(_kind(exact), exact)
    if {"compcor", "temporal_compcor"} & set(parts):
        parts.setdefault("high_pass", "high_pass")
    scrub = parts.pop("scrub", None)
    return Strategy(
        tuple(parts.values()), tuple(patterns), _read_scrub(scrub, key) if scrub else None
    )


def _is_name(item: str) -> bool:
    return item in NAMES[1:] or bool(_COMPCOR.fullmatch(item) or _SCRUB.fullmatch(item))


def _kind(name: str) -> str:
    """Return of what kind a part is; a strategy has one of a kind."""
    if components := _COMPCOR.fullmatch(name):
        return "temporal_compcor" if components[1] == "temporal_compcor" else "compcor"
    return re.sub(r"\d+$|\(.*", "", name)


def _refuse(item: str, wanted: str | Sequence[str], key: str) -> None:
    """Raise `InputError` for what is no name of a strategy."""
    told = wanted if isinstance(wanted, str) else ", ".join(wanted)
    if "aroma" in item:
        raise InputError(
            f"config: {key} is {told!r}: ICA-AROMA is no part of fMRIPrep since 23.1; where the "
            "confounds table has its components, list the columns: [aroma_motion_*, wm_csf]"
        )
    if item == "none":
        raise InputError(f"config: {key} is {told!r}: none stands alone: remove it")
    near = difflib.get_close_matches(item, NAMES, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(NAMES)}"
    raise InputError(
        f"config: {key} is {told!r}, and {item!r} is no strategy: {hint} (columns go into a list)"
    )


def _read_scrub(text: str, key: str) -> Scrub:
    """Return the thresholds that ``scrub(fd=…, dvars=…, segment=…)`` gives."""
    given = _SCRUB.fullmatch(text)
    options: dict[str, float] = {}
    for pair in given[1].split(",") if given and given[1].strip() else ():
        name, _, value = (part.strip() for part in pair.partition("="))
        try:
            options[name] = int(value) if name == "segment" else float(value)
        except ValueError:
            name = ""
        if name not in ("fd", "dvars", "segment") or options[name] < 0:
            raise InputError(
                f"config: {key} has {text!r}: write for example scrub(fd=0.2, dvars=3, segment=5)"
            )
    return Scrub(**options)
