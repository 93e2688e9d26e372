"""What a run's preprocessing and GLM would refuse, told before any job.

Only the standard library is imported at module level, because the Snakefile imports this module.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from isocortex import bids
from isocortex.confound_strategy import NAMES, OUTLIERS, parse_strategy
from isocortex.errors import InputError

STEADY_VOLUMES = 5
"""Volumes that preprocessing needs beside dummy scans."""
_EXPANDED = ("global_signal", "csf", "white_matter", "csf_wm")
_ENDINGS = ("", "_derivative1", "_power2", "_derivative1_power2")
_MOTION = tuple(f"{kind}_{axis}" for kind in ("trans", "rot") for axis in "xyz")
OWN_COLUMNS = (
    *(name + ending for name in (*_MOTION, *_EXPANDED) for ending in _ENDINGS),
    *("tcompcor", "framewise_displacement", "rmsd", "dvars", "std_dvars"),
    *(
        f"{kind}_{number:02d}"
        for kind in ("a_comp_cor", "c_comp_cor", "w_comp_cor", "t_comp_cor", "edge_comp", "cosine")
        for number in range(100)
    ),
)
"""Columns that the confounds tables made here may have; single volumes' are `OUTLIERS`."""


def check_recording(run: bids.Run, shape: Sequence[int], options: Mapping[str, Any]) -> None:
    """Refuse a recording that preprocessing could not do as the config says.

    Parameters
    ----------
    run
        The run.
    shape
        Of its image: x, y, z, volumes.
    options
        The config's section preprocess.

    Raises
    ------
    InputError
        Too few volumes, or too few voxels for ANTs' head motion.
    """
    volumes, dummies = shape[3], options["dummy_scans"]
    if dummies != "auto" and volumes - dummies < STEADY_VOLUMES:
        raise InputError(
            f"config: preprocess.dummy_scans is {dummies}, and {run.bold} has {volumes} volumes: "
            f"{STEADY_VOLUMES} have to be left: set it lower, or exclude the subject"
        )
    if volumes < STEADY_VOLUMES:
        raise InputError(
            f"{run.bold} has {volumes} volumes, and preprocessing needs {STEADY_VOLUMES}: "
            "replace it, limit tasks, or exclude the subject"
        )
    if options["motion"] == "ants" and min(shape[:3]) < 5:
        raise InputError(
            f"config: preprocess.motion is ants, which needs 5 voxels along each axis, and "
            f"{run.bold} has {'x'.join(map(str, shape[:3]))}: set it to gauss_newton"
        )


def check_same_tr(checked: Sequence[tuple[bids.Run, bids.Header]]) -> None:
    """Refuse runs of one task that were recorded at different rates.

    Parameters
    ----------
    checked
        Runs of one subject and task, each with the header of its image.

    Raises
    ------
    InputError
        Naming the first two that differ.
    """
    found = [
        bids.repetition_time(run.bold, bids.metadata(run.sidecars), header)
        for run, header in checked
    ]
    for (run, _), tr in zip(checked, found, strict=True):
        if abs(tr - found[0]) > 1e-3:
            raise InputError(
                f"{run.bold} has TR {tr:g} s, {checked[0][0].bold.name} {found[0]:g} s: give the "
                "runs different task names, or correct the sidecars"
            )


def check_own_confounds(wanted: str | Sequence[str], *, key: str = "glm.confound_columns") -> None:
    """Refuse columns that no confounds table made here has.

    Parameters
    ----------
    wanted
        ``glm.confound_columns``.
    key
        Of the config, for messages.

    Raises
    ------
    InputError
        Naming the column, and the nearest one.
    """
    for pattern in parse_strategy(wanted).patterns:
        if pattern.startswith(OUTLIERS) or any(fnmatchcase(own, pattern) for own in OWN_COLUMNS):
            continue
        near = difflib.get_close_matches(pattern, [*NAMES, *OWN_COLUMNS], n=1)
        hint = f"did you mean {near[0]!r}?" if near else "docs/preprocessing.md lists the columns"
        raise InputError(
            f"config: {key} has {pattern!r}, which is no strategy and no column of the confounds: "
            + hint
        )


def check_trials(runs: Sequence[bids.Run], glm: Mapping[str, Any]) -> None:
    """Refuse a choice of trials that the events of a subject and task do not have.

    Nothing is read where the config leaves the choice as it is.

    Parameters
    ----------
    runs
        Of one subject and task.
    glm
        The config's section glm.

    Raises
    ------
    InputError
        A pattern that fits no condition, or a run without trials.
    """
    if glm["trial_types"] == ["*"] and not glm["nuisance_types"]:
        return
    design = importlib.import_module("isocortex.glm.design")
    tables = {run.events: bids.read_events(run.events) for run in runs}
    every = (row for rows in tables.values() for row in rows)
    conditions = {str(row.get("trial_type", "")).strip() for row in every} - {""}
    told = f"there are {', '.join(sorted(conditions))}" if conditions else "add column trial_type"
    for key in ("trial_types", "nuisance_types"):
        for pattern in glm[key]:
            if not any(fnmatchcase(condition, pattern) for condition in conditions):
                near = difflib.get_close_matches(pattern, conditions, n=1)
                raise InputError(
                    f"config: glm.{key} names {pattern!r}, which no event of {runs[0].events} and "
                    f"its fellow runs has: " + (f"did you mean {near[0]!r}?" if near else told)
                )
    for path, rows in tables.items():
        try:
            design.make_trials(
                rows,
                trials=glm["trials"],
                stimulus_column=glm["stimulus_column"],
                trial_types=glm["trial_types"],
                nuisance_types=glm["nuisance_types"],
            )
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
