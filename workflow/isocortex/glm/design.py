"""Design matrices of single runs, by nilearn's conventions."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import pandas as pd
import scipy.linalg
from nilearn.glm.first_level import make_first_level_design_matrix
from nilearn.glm.first_level.hemodynamic_models import (
    glover_dispersion_derivative,
    glover_time_derivative,
    spm_dispersion_derivative,
    spm_time_derivative,
)
from nilearn.signal import create_cosine_drift

from isocortex.bids import STIMULUS_COLUMNS
from isocortex.confound_strategy import OUTLIERS
from isocortex.errors import InputError

EARLIEST_ONSET = -24.0
"""Seconds before the first volume from which on nilearn models an event."""

_MISSING = {"", "n/a", "nan", "NaN", "NA"}
_RANK_TOLERANCE = 1e-7
_OWN_SHARE = 0.05
"""A cosine of the confounds of whose norm the drift leaves less than this is in the drift."""
_DERIVATIVES = {
    ("glover", "derivative"): glover_time_derivative,
    ("glover", "dispersion"): glover_dispersion_derivative,
    ("spm", "derivative"): spm_time_derivative,
    ("spm", "dispersion"): spm_dispersion_derivative,
}


@dataclass(frozen=True)
class Trial:
    """What one beta is the response to; times in seconds from the start of the run."""

    stimulus: str
    condition: str
    onset: float
    duration: float


@dataclass(frozen=True)
class Design:
    """The design of one run.

    Attributes
    ----------
    matrix
        Volumes x regressors, as nilearn makes it.
    names
        Names of the regressors.
    trials
        The trials in the order of their onsets.
    trial_columns
        For each trial the column of its canonical regressor.
    response_columns
        All columns that model trials: canonical regressors and their derivatives.
    drift_columns
        Drift and constant.
    frame_times
        Time of each volume, seconds.
    derivatives : numpy.ndarray, shape (n_volumes, n_trials, n_derivatives)
        Derivatives of each trial's regressor as they are; in ``matrix`` nilearn has them orthogonal
        to it. None where the response has none.
    """

    matrix: np.ndarray
    names: tuple[str, ...]
    trials: tuple[Trial, ...]
    trial_columns: np.ndarray
    response_columns: np.ndarray
    drift_columns: np.ndarray
    frame_times: np.ndarray
    derivatives: np.ndarray | None = None

    @property
    def nuisance_columns(self) -> np.ndarray:
        """All columns that do not model trials."""
        return np.setdiff1d(np.arange(len(self.names)), self.response_columns)


def find_stimulus_column(events: Sequence[Mapping[str, Any]], column: str = "auto") -> str:
    """Return which column of an events table holds the stimulus ids.

    Parameters
    ----------
    events
        Rows of the table.
    column
        A column's name, or ``"auto"`` for the first of
        `isocortex.bids.STIMULUS_COLUMNS` that is not empty.

    Raises
    ------
    InputError
        Where the table has no such column.
    """
    wanted = STIMULUS_COLUMNS if column == "auto" else (column,)
    for name in wanted:
        if any(str(row.get(name, "")).strip() not in _MISSING for row in events):
            return name
    raise InputError(
        f"no column {' or '.join(wanted)} with stimulus ids in the events: "
        f"name the column in glm.stimulus_column"
    )


def make_trials(
    events: Sequence[Mapping[str, Any]],
    *,
    trials: str = "single",
    stimulus_column: str = "auto",
    trial_types: Sequence[str] = ("*",),
    nuisance_types: Sequence[str] = (),
    block_gap: float = 4.0,
) -> tuple[list[Trial], pd.DataFrame]:
    """Group the events of a run into trials.

    Parameters
    ----------
    events
        Rows with ``onset`` and ``duration`` (s), and ``trial_type`` or a stimulus column.
    trials
        ``single``: each event is a trial. ``block``: successive events of one condition are one
        trial, its stimulus is the condition. ``condition``: all events of one condition are one
        trial, its stimulus is the condition.
    stimulus_column
        Column of the stimulus ids, see `find_stimulus_column`.
    trial_types
        Names or patterns of the conditions whose events are trials.
    nuisance_types
        Names or patterns of conditions that are modelled, by one regressor each, but get no beta;
        so are conditions that ``trial_types`` leaves out and, where each event would be a trial,
        events that have no stimulus.
    block_gap
        Longest pause between the end of one event and the onset of the next of one block, s.

    Returns
    -------
    trials : list of Trial
        In the order of their onsets.
    table : pandas.DataFrame
        All events with ``onset``, ``duration`` and ``trial_type``: ``trial_00001`` and so on for
        the trials, ``event_<condition>`` for the others. What nilearn takes.

    Raises
    ------
    InputError
        Where there are no events or trials, an event is listed twice, or an onset, duration or
        stimulus is missing.
    """
    if not events:
        raise InputError("no events: every run needs at least one trial")
    column = find_stimulus_column(events, stimulus_column)
    rows = []
    for number, row in enumerate(events, start=1):
        onset = _seconds(row, "onset", number)
        duration = _seconds(row, "duration", number)
        if duration < 0:
            raise InputError(f"event {number} has the negative duration {duration:g} s: correct it")
        stimulus = str(row.get(column, "")).strip()
        condition = str(
            row.get("trial_type", "event" if stimulus in _MISSING else stimulus)
        ).strip()
        if condition in _MISSING:
            raise InputError(f"event {number} has no trial_type: fill it in")
        is_trial = matches(condition, trial_types) and not matches(condition, nuisance_types)
        if trials == "single" and stimulus in _MISSING:
            # What showed no stimulus (a pause, a response) is modelled, but is no trial.
            is_trial = False
        rows.append((onset, duration, condition, stimulus, is_trial))
    rows.sort(key=lambda row: row[0])

    groups = _group(rows, trials=trials, gap=block_gap)
    if not groups:
        raise InputError("no events that are trials: check glm.trial_types and glm.nuisance_types")
    made, table = [], []
    for number, members in enumerate(groups, start=1):
        first, last = members[0], max(members, key=lambda row: row[0] + row[1])
        condition = first[2]
        whole = trials != "condition"
        made.append(
            Trial(
                stimulus=first[3] if trials == "single" else condition,
                condition=condition,
                onset=first[0],
                duration=last[0] + last[1] - first[0] if whole else sum(m[1] for m in members),
            )
        )
        table += [(onset, duration, f"trial_{number:05d}") for onset, duration, *_ in members]
    table += [
        (onset, duration, f"event_{condition}")
        for onset, duration, condition, _, is_trial in rows
        if not is_trial
    ]
    frame = pd.DataFrame(table, columns=["onset", "duration", "trial_type"])
    twice = frame[frame.duplicated()]
    if len(twice):
        # nilearn would add the two up to an event of double height.
        raise InputError(
            f"the event at {twice['onset'].iloc[0]:g} s is listed twice: leave one of the two out"
        )
    return made, frame


def _seconds(row: Mapping[str, Any], key: str, number: int) -> float:
    """Return a time of an event as a number."""
    value = row.get(key)
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = np.nan
    if not np.isfinite(seconds):
        raise InputError(f"event {number} has {key} {value!r}: give it in seconds")
    return seconds


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a condition fits one of some names or patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _group(rows: Sequence[tuple], *, trials: str, gap: float) -> list[list[tuple]]:
    """Return the events that are trials, one list a trial, ordered by first onset."""
    groups: list[list[tuple]] = []
    if trials == "single":
        return [[row] for row in rows if row[4]]
    if trials == "condition":
        by_condition: dict[str, list[tuple]] = {}
        for row in rows:
            if row[4]:
                by_condition.setdefault(row[2], []).append(row)
        return list(by_condition.values())
    if trials != "block":
        raise ValueError(f"trials is {trials!r}: pass single, block or condition")
    for row in rows:
        if not row[4]:
            continue
        if groups and groups[-1][-1][2] == row[2]:
            end = max(onset + duration for onset, duration, *_ in groups[-1])
            if row[0] - end <= gap:
                groups[-1].append(row)
                continue
        groups.append([row])
    return groups


def make_design(
    trials: Sequence[Trial],
    table: pd.DataFrame,
    *,
    n_volumes: int,
    tr: float,
    start_time: float = 0.0,
    hrf: str = "glover",
    drift: str = "cosine",
    high_pass: float = 0.01,
    drift_order: int = 1,
    confounds: pd.DataFrame | None = None,
) -> Design:
    """Make the design matrix of a run.

    Volume ``k`` stands for the time ``start_time + k * tr``, so that onsets, which count from the
    start of the run, need no shift when slice timing was corrected to some time within a volume.

    Parameters
    ----------
    trials, table
        From `make_trials`.
    n_volumes
        Number of volumes.
    tr
        Repetition time, s.
    start_time
        Time that the first volume stands for, s: BIDS ``StartTime``.
    hrf
        Haemodynamic response, a name that nilearn knows.
    drift
        ``cosine``, ``polynomial`` or ``none``.
    high_pass
        Cut-off of the cosine drift, Hz.
    drift_order
        Order of the polynomial drift.
    confounds
        Further regressors, ``n_volumes`` rows. Cosines (``cosine*``) that the cosine drift has,
        too, are taken once.

    Returns
    -------
    Design

    Raises
    ------
    InputError
        Where an event lies outside of the run, or the matrix is not of full rank.

    Notes
    -----
    The matrix is that of `nilearn.glm.first_level.make_first_level_design_matrix`.
    """
    if n_volumes < 3:
        raise InputError(f"{n_volumes} volumes: a time series needs at least 3")
    frame_times = start_time + tr * np.arange(n_volumes)
    late = table[table["onset"] >= frame_times[-1]]
    if len(late):
        raise InputError(
            f"{len(late)} events at or beyond the last volume ({frame_times[-1]:.1f} s), the first "
            f"at {late['onset'].min():.1f} s: cut the events or check that the run is complete"
        )
    early = table[table["onset"] < frame_times[0] + EARLIEST_ONSET]
    if len(early):
        raise InputError(
            f"{len(early)} events more than {-EARLIEST_ONSET:.0f} s before the first volume, the "
            f"first at {early['onset'].min():.1f} s: onsets count from the start of the run"
        )
    drift_model = None if drift == "none" else drift
    if drift == "cosine" and confounds is not None:
        confounds = _beyond_drift(confounds, frame_times, high_pass=high_pass)
    with warnings.catch_warnings():
        # nilearn regularises singular matrices with a warning; here they are an error, below.
        warnings.simplefilter("ignore")
        frame = make_first_level_design_matrix(
            frame_times,
            events=table if len(table) else None,
            hrf_model=hrf,
            drift_model=drift_model,
            high_pass=high_pass,
            drift_order=drift_order,
            add_regs=None if confounds is None or confounds.empty else confounds.to_numpy(float),
            add_reg_names=None
            if confounds is None or confounds.empty
            else [str(name) for name in confounds.columns],
            min_onset=EARLIEST_ONSET,
        )
    names = tuple(str(name) for name in frame.columns)
    labels = [f"trial_{number:05d}" for number in range(1, len(trials) + 1)]
    own = {name for label in labels for name in response_names(label)}
    drifts = {f"drift_{k}" for k in range(1, n_volumes + 1)} | {"constant"}
    design = Design(
        matrix=frame.to_numpy(float),
        names=names,
        trials=tuple(trials),
        trial_columns=np.array([names.index(label) for label in labels], dtype=int),
        response_columns=np.array([k for k, name in enumerate(names) if name in own], dtype=int),
        drift_columns=np.array([k for k, name in enumerate(names) if name in drifts], dtype=int),
        frame_times=frame_times,
        derivatives=_derivatives(table, labels, frame_times, hrf=hrf),
    )
    _check_rank(design)
    return design


def _beyond_drift(
    confounds: pd.DataFrame, frame_times: np.ndarray, *, high_pass: float
) -> pd.DataFrame:
    """Return confounds without those of their cosines that the drift has, too.

    A table's cosines begin after volumes that were not steady: they are then not quite the
    drift's, but so nearly spanned by them that in a long run no estimate would be left.
    """
    indicators = [name for name in confounds if str(name).startswith(OUTLIERS)]
    drift = create_cosine_drift(high_pass, frame_times)
    basis = np.linalg.qr(np.c_[drift, confounds[indicators].to_numpy(float)])[0]
    twice = []
    for name in (name for name in confounds if str(name).startswith("cosine")):
        column = confounds[name].to_numpy(float)
        rest = column - basis @ (basis.T @ column)
        if np.linalg.norm(rest) < _OWN_SHARE * np.linalg.norm(column):
            twice.append(name)
        else:
            basis = np.c_[basis, rest / np.linalg.norm(rest)]
    return confounds.drop(columns=twice)


def _derivatives(
    table: pd.DataFrame, labels: Sequence[str], frame_times: np.ndarray, *, hrf: str
) -> np.ndarray | None:
    """Return the derivatives of the trials' regressors, without nilearn's orthogonalisation."""
    kernels = [_DERIVATIVES[hrf.split(" ")[0], part] for part in hrf.split(" + ")[1:]]
    if not kernels or not labels:
        return None
    columns = [
        make_first_level_design_matrix(
            frame_times,
            events=table[table["trial_type"].isin(labels)],
            hrf_model=kernel,
            drift_model=None,
            min_onset=EARLIEST_ONSET,
        )[[f"{label}_{kernel.__name__}" for label in labels]].to_numpy(float)
        for kernel in kernels
    ]
    return np.stack(columns, axis=2)


def response_names(label: str) -> tuple[str, str, str]:
    """Return the names of a regressor and of its derivatives, where the design has them."""
    return label, f"{label}_derivative", f"{label}_dispersion"


def balanced(design: Design) -> tuple[np.ndarray, np.ndarray]:
    """Return the matrix with columns centred (but the constant) and of unit norm, and the norms.

    It spans the same space and leaves all coefficients but the constant's as they are, times the
    norms; raw confounds of very different sizes would spoil the numerical rank.
    """
    matrix = design.matrix.copy()
    others = np.array([name != "constant" for name in design.names])
    matrix[:, others] -= matrix[:, others].mean(axis=0)
    norms = np.linalg.norm(matrix, axis=0)
    return matrix / np.where(norms > 0, norms, 1.0), norms


def _check_rank(design: Design) -> None:
    """Raise where not every regressor has a coefficient of its own and something is left over."""
    matrix, norms = balanced(design)
    n_volumes, n_regressors = matrix.shape
    scale = np.linalg.norm(design.matrix, axis=0)
    flat = [design.names[k] for k in np.flatnonzero(norms <= 1e-10 * np.maximum(scale, 1e-300))]
    counts = (
        f"{len(design.trials)} trials and {len(design.nuisance_columns)} drift, confound and "
        f"other regressors ({n_regressors} in all) for {n_volumes} volumes"
    )
    remedy = (
        "set glm.trials to block or condition, use fewer glm.confound_columns, or lower "
        "glm.high_pass"
    )
    if n_regressors >= n_volumes:
        raise InputError(f"more regressors than the data can tell apart: {counts}: {remedy}")
    if flat:
        raise InputError(f"regressors {', '.join(flat[:5])} are constant: {counts}: {remedy}")
    values = np.linalg.svd(matrix, compute_uv=False)
    rank = int((values > _RANK_TOLERANCE * values[0]).sum())
    if rank < n_regressors:
        _, _, order = scipy.linalg.qr(matrix, mode="economic", pivoting=True)
        onsets = {
            int(column): trial.onset
            for column, trial in zip(design.trial_columns, design.trials, strict=True)
        }
        guilty = [
            f"the trial at {onsets[k]:g} s" if k in onsets else design.names[k]
            for k in sorted(int(column) for column in order[rank:])
        ]
        more = f" and {len(guilty) - 5} more" if len(guilty) > 5 else ""
        raise InputError(
            f"the design has rank {rank} only, {', '.join(guilty[:5])}{more} repeat others: "
            f"{counts}: {remedy}, or leave out events that are listed twice"
        )
