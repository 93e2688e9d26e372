"""The runs of a subject and task, checked and with their designs, before an image is read."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from isocortex import bids
from isocortex.confound_strategy import parse_strategy
from isocortex.errors import InputError
from isocortex.glm.confounds import read_confounds
from isocortex.glm.design import Design, find_stimulus_column, make_design, make_trials

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreparedRun:
    """One run, checked, with its design; its images are not read yet.

    ``events`` is the table that the design was made from (`isocortex.glm.design.make_trials`).
    """

    name: str
    session: str
    bold: Path
    design: Design
    events: pd.DataFrame
    tr: float
    start_time: float
    stimulus_column: str
    confounds: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    n_other_events: int = 0


def check_lists(
    bold: Sequence[str | Path],
    *,
    mask: Sequence[str | Path],
    sidecar: Sequence[str | Path],
    events: Sequence[str | Path],
    runs: Sequence[Mapping[str, str | None]],
    confounds: Sequence[str | Path],
    confound_columns: str | Sequence[str],
) -> None:
    """Raise `InputError` where there is not one file of each kind a run."""
    lengths = {
        "masks": len(mask),
        "sidecars": len(sidecar),
        "events tables": len(events),
        "run labels": len(runs),
    }
    if not bold:
        raise InputError("no runs: check input.tasks and that the subject has recordings")
    for name, length in lengths.items():
        if length != len(bold):
            raise InputError(
                f"{length} {name} for {len(bold)} runs, the first of them {bold[0]}: give one a run"
            )
    if confounds and len(confounds) != len(bold):
        raise InputError(
            f"{len(confounds)} confounds tables for {len(bold)} runs, the first run is {bold[0]}: "
            f"give one a run"
        )
    if not confounds and not parse_strategy(confound_columns).is_empty:
        raise InputError(
            f"glm.confound_columns asks for {confound_columns} but there is no confounds "
            f"table beside {bold[0]}: add the tables or set it to none"
        )


@dataclass(frozen=True)
class Recording:
    """What header, sidecar and confounds table of a run say."""

    name: str
    session: str
    n_volumes: int
    tr: float
    start_time: float
    timed: bool
    confounds: pd.DataFrame
    dropped: list[str]


def read_recordings(
    bold: Sequence[str | Path],
    *,
    sidecar: Sequence[str | Path],
    runs: Sequence[Mapping[str, str | None]],
    confounds: Sequence[str | Path],
    confound_columns: str | Sequence[str],
) -> list[Recording]:
    """Read headers, sidecars and confounds of runs that are analysed together.

    Parameters
    ----------
    bold, sidecar, runs, confounds, confound_columns
        As for `isocortex.glm.fit.fit_glm`.

    Returns
    -------
    list
        One a run: name, session, n_volumes, TR and start time (s), whether its slices were
        brought to one time (``timed``), the chosen confounds and those left out.

    Raises
    ------
    InputError
        Where a run is there twice, is no series, or has another TR than the first.
    """
    found: list[Recording] = []
    for index, path in enumerate(map(Path, bold)):
        name, session = str(runs[index]["run"]), str(runs[index]["session"] or "")
        if name in {run.name for run in found}:
            raise InputError(f"run {name} is there twice, the second time as {path}: remove one")
        info = bids.read_json(sidecar[index])
        header = bids.read_header(path)
        if len(header.shape) != 4:
            raise InputError(f"{path} has {len(header.shape)} dimensions, not 4: pass a series")
        tr = bids.repetition_time(path, info, header)
        if found and abs(tr - found[0].tr) > 1e-3:
            raise InputError(
                f"{path} has TR {tr:g} s, {bold[0]} {found[0].tr:g} s: give the runs "
                f"different task names"
            )
        table, dropped = read_confounds(
            confounds[index] if confounds else None, confound_columns, n_volumes=header.shape[3]
        )
        if dropped:
            log.info("%s: confounds without change left out: %s", path.name, ", ".join(dropped))
        start = _start_time(info, sidecar[index])
        timed = bool(info.get("SliceTimingCorrected"))
        found.append(Recording(name, session, header.shape[3], tr, start, timed, table, dropped))
    return found


def prepare_runs(
    *,
    bold: Sequence[str | Path],
    mask: Sequence[str | Path],
    sidecar: Sequence[str | Path],
    events: Sequence[str | Path],
    runs: Sequence[Mapping[str, str | None]],
    confounds: Sequence[str | Path],
    confound_columns: str | Sequence[str],
    trial_options: Mapping[str, Any],
    design_options: Mapping[str, Any],
) -> list[PreparedRun]:
    """Check all that can be checked without the images' data, and make the designs.

    Parameters
    ----------
    bold, mask, sidecar, events, runs, confounds, confound_columns
        As for `isocortex.glm.fit.fit_glm`.
    trial_options
        Keywords of `isocortex.glm.design.make_trials`.
    design_options
        Keywords of `isocortex.glm.design.make_design`.

    Raises
    ------
    InputError
        Where runs, events, confounds and headers do not fit together, see the messages.
    """
    check_lists(
        bold,
        mask=mask,
        sidecar=sidecar,
        events=events,
        runs=runs,
        confounds=confounds,
        confound_columns=confound_columns,
    )
    recordings = read_recordings(
        bold, sidecar=sidecar, runs=runs, confounds=confounds, confound_columns=confound_columns
    )
    prepared: list[PreparedRun] = []
    conditions: set[str] = set()
    for index, (path, recording) in enumerate(zip(map(Path, bold), recordings, strict=True)):
        rows = bids.read_events(events[index])
        conditions |= {str(row.get("trial_type", "")).strip() for row in rows}
        try:
            made, frame = make_trials(rows, **trial_options)
            column = find_stimulus_column(rows, trial_options["stimulus_column"])
            design = make_design(
                made,
                frame,
                n_volumes=recording.n_volumes,
                tr=recording.tr,
                start_time=recording.start_time,
                confounds=recording.confounds,
                **design_options,
            )
        except InputError as error:
            raise InputError(f"{events[index]} with {path.name}: {error}") from None
        if prepared and column != prepared[0].stimulus_column:
            raise InputError(
                f"{events[index]} has its stimuli in column {column}, the first run in "
                f"{prepared[0].stimulus_column}: name one in glm.stimulus_column"
            )
        other = int(frame["trial_type"].str.startswith("event_").sum())
        if other:
            log.info("%s: %d events are no trials", Path(events[index]).name, other)
        prepared.append(
            PreparedRun(
                name=recording.name,
                session=recording.session,
                bold=path,
                design=design,
                events=frame,
                tr=recording.tr,
                start_time=recording.start_time,
                stimulus_column=column,
                confounds=[str(c) for c in recording.confounds.columns],
                dropped=recording.dropped,
                n_other_events=other,
            )
        )
    for key in ("trial_types", "nuisance_types"):
        for pattern in trial_options[key]:
            if not any(fnmatchcase(condition, pattern) for condition in conditions):
                raise InputError(
                    f"glm.{key} names {pattern!r}, which no event of {Path(events[0]).name} and "
                    f"its fellow runs has: there are {', '.join(sorted(conditions))}"
                )
    return prepared


def _start_time(info: Mapping[str, Any], path: str | Path) -> float:
    """Return the time that a series' first volume stands for, s."""
    start = info.get("StartTime")
    if start is None:
        if info.get("SliceTimingCorrected"):
            raise InputError(
                f"{path} says SliceTimingCorrected but has no StartTime, so onsets cannot be "
                f"placed: add the time within the TR that slices were shifted to"
            )
        return 0.0
    if isinstance(start, bool) or not isinstance(start, int | float) or not np.isfinite(start):
        raise InputError(f"{path} has StartTime {start!r}: give it in seconds")
    return float(start)
