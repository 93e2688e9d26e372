"""Runs that belong together: halves that share no information, scaling groups, repeats."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from isocortex.errors import InputError
from isocortex.glm.estimators import Estimates
from isocortex.glm.prepare import PreparedRun


def halves_of(runs: Sequence[PreparedRun], *, split: bool) -> list[list[int]]:
    """Return the numbers of the runs of each half: odd and even runs, or all in one.

    Raises
    ------
    InputError
        Where one run cannot be split.
    """
    if not split:
        return [list(range(len(runs)))]
    if len(runs) < 2:
        raise InputError(
            f"{runs[0].bold} is the only run, and glm.split_half needs two: set it to false, or "
            "exclude the subject"
        )
    return [list(range(0, len(runs), 2)), list(range(1, len(runs), 2))]


def scaling_groups(
    runs: Sequence[PreparedRun], halves: Sequence[Sequence[int]], *, scaling: str
) -> list[Hashable]:
    """Return for each run the label of the runs by whose common mean it is scaled.

    Runs of a session that lie in different halves are scaled apart, as a common mean would carry
    information from one half to the other.
    """
    if scaling not in ("run", "session"):
        raise ValueError(f"scaling is {scaling!r}: pass run or session")
    if scaling == "run":
        return list(range(len(runs)))
    half = {run: number for number, members in enumerate(halves) for run in members}
    return [(run.session, half[number]) for number, run in enumerate(runs)]


def combine_halves(
    parts: Sequence[Estimates], halves: Sequence[Sequence[int]], n_trials: Sequence[int]
) -> Estimates:
    """Return the estimates of all runs from those of each half.

    Sums are taken over both halves. What each half chose for a voxel is kept apart, as
    ``<name>_1`` and ``<name>_2``; ``hrf_index`` is -1 where the halves chose differently.

    Parameters
    ----------
    parts
        Of each half.
    halves
        Numbers of the runs of each half.
    n_trials
        Of each run.
    """
    if len(parts) == 1:
        return parts[0]
    n_runs = len(n_trials)
    per_run: dict[str, list[Any]] = {
        name: [0] * n_runs
        for name in ("degrees_of_freedom", "effect_degrees_of_freedom", "condition_number")
    }
    beta_se: list[np.ndarray] = [np.empty(0)] * n_runs
    for part, members in zip(parts, halves, strict=True):
        last = np.cumsum([n_trials[run] for run in members])[:-1]
        for number, (run, se) in enumerate(zip(members, np.split(part.beta_se, last), strict=True)):
            beta_se[run] = se
            for name, values in per_run.items():
                values[run] = getattr(part, name)[number]
    first, second = parts
    same = first.hrf_index == second.hrf_index
    chosen = {
        f"{name}_{number}": values
        for number, part in enumerate(parts, start=1)
        for name, values in (
            *part.voxel.items(),
            *([] if same.all() else [("hrf_index", part.hrf_index)]),
        )
    }
    return replace(
        first,
        **{
            name: getattr(first, name) + getattr(second, name)
            for name in ("residual_squares", "nuisance_squares", "effect", "variance")
        },
        tsnr=(first.tsnr * len(halves[0]) + second.tsnr * len(halves[1])) / n_runs,
        hrf_index=np.where(same, first.hrf_index, -1).astype(np.int16),
        beta_se=np.concatenate(beta_se),
        voxel=chosen,
        attrs={"halves": [dict(part.attrs) for part in parts]},
        methods=[*first.methods, *(s for s in second.methods if s not in first.methods)],
        **per_run,
    )


def average_repeats(
    table: Mapping[str, Sequence[Any]],
) -> tuple[dict[str, Any], Callable[[np.ndarray], np.ndarray]]:
    """Average the trials of one stimulus in a session, and in a half where there are any.

    Parameters
    ----------
    table
        Columns of the trials: ``stimulus``, ``condition``, ``session``, ``run``, ``onset``,
        ``duration``, ``half``, ``beta_se``.

    Returns
    -------
    table : dict
        The same columns, a row a stimulus, in the order in which they were first shown, and
        ``n_repeats``. Onset and duration are the first repeat's. ``run`` is the session's where it
        has one (of the half), else it stands for all of them: ``ses-<session>_run-all``, ``all``
        without sessions, the half, where there are two, behind it.
    mean : callable
        Takes responses (n_trials, n_voxels) and returns their means (n_stimuli, n_voxels).
    """
    groups: dict[tuple[Any, ...], list[int]] = {}
    keys = zip(table["session"], table["half"], table["stimulus"], table["condition"], strict=True)
    for row, key in enumerate(keys):
        groups.setdefault(key, []).append(row)
    rows = list(groups.values())
    several_halves = len(set(np.asarray(table["half"]).tolist())) > 1
    whole: dict[tuple[Any, Any], set[str]] = {}
    for session, half, run in zip(table["session"], table["half"], table["run"], strict=True):
        whole.setdefault((session, half), set()).add(run)

    def name(session: str, half: int) -> str:
        runs = whole[session, half]
        if len(runs) == 1:
            return next(iter(runs))
        text = f"ses-{session}_run-all" if session else "all"
        return f"{text}_half-{half}" if several_halves else text

    averaged: dict[str, Any] = {
        column: [table[column][members[0]] for members in rows]
        for column in ("stimulus", "condition", "session", "half", "onset", "duration")
    }
    pairs = zip(averaged["session"], averaged["half"], strict=True)
    averaged["run"] = [name(session, half) for session, half in pairs]
    se = np.asarray(table["beta_se"])
    averaged["beta_se"] = np.array([np.sqrt((se[m] ** 2).sum()) / len(m) for m in rows])
    averaged["n_repeats"] = np.array([len(members) for members in rows], dtype=np.int32)
    for column in ("onset", "duration"):
        averaged[column] = np.array(averaged[column], dtype=np.float64)
    averaged["half"] = np.array(averaged["half"], dtype=np.int16)

    def mean(responses: np.ndarray) -> np.ndarray:
        return np.stack([responses[members].mean(axis=0, dtype=np.float64) for members in rows])

    return averaged, mean
