"""Choice of confound regressors from a BIDS-derivatives confounds table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import numpy as np
import pandas as pd

from isocortex.errors import InputError

_MOTION = tuple(f"{kind}_{axis}" for kind in ("trans", "rot") for axis in "xyz")

STRATEGIES: Mapping[str, tuple[str, ...]] = {
    "none": (),
    "motion6": _MOTION,
    "motion24": tuple(
        name + ending
        for ending in ("", "_derivative1", "_power2", "_derivative1_power2")
        for name in _MOTION
    ),
}
"""Named sets of columns; the 24 motion parameters are those of Friston et al. (1996)."""

OUTLIERS = ("non_steady_state_outlier", "motion_outlier")
"""Columns of single volumes; a run without such volumes rightly has none of them."""


def choose_confounds(
    rows: Sequence[Mapping[str, str]],
    wanted: str | Sequence[str],
    *,
    n_volumes: int,
    where: str = "the confounds table",
) -> tuple[pd.DataFrame, list[str]]:
    """Return the confound regressors of a run.

    Parameters
    ----------
    rows
        The table, a row a volume.
    wanted
        A name of `STRATEGIES`, or column names and patterns such as ``a_comp_cor_0?``. Columns
        that mark non-steady-state volumes come with any choice but ``none``.
    n_volumes
        Number of volumes of the run.
    where
        The table's file, for error messages.

    Returns
    -------
    confounds : pandas.DataFrame, shape (n_volumes, n_chosen)
        A first row without a value, as derivatives have it, is 0.
    dropped : list of str
        Chosen columns that never change in this run; they carry nothing and are left out.

    Raises
    ------
    InputError
        Where rows and volumes differ in number, a column is missing or has gaps.
    """
    patterns = STRATEGIES[wanted] if isinstance(wanted, str) else tuple(wanted)
    if not patterns:
        return pd.DataFrame(index=range(n_volumes)), []
    if len(rows) != n_volumes:
        raise InputError(
            f"{where} has {len(rows)} rows for {n_volumes} volumes: make the confounds again from "
            f"this run"
        )
    columns = list(rows[0])
    chosen: dict[str, None] = {}
    for pattern in (*patterns, "non_steady_state_outlier*"):
        found = [name for name in columns if fnmatchcase(name, pattern)]
        if not found and not pattern.startswith(OUTLIERS):
            raise InputError(
                f"{where} has no column {pattern}: correct glm.confound_columns or add the column"
            )
        chosen.update(dict.fromkeys(found))
    values = {}
    for name in chosen:
        series = np.array([_number(row[name], name=name, where=where) for row in rows])
        if np.isnan(series[0]):
            series[0] = 0.0
        gaps = np.flatnonzero(~np.isfinite(series))
        if gaps.size:
            raise InputError(
                f"{where} has no number in column {name}, row {gaps[0] + 1}: only the first row "
                f"may be n/a; leave the column out of glm.confound_columns"
            )
        values[name] = series
    dropped = [name for name, series in values.items() if np.ptp(series) == 0]
    kept = {name: series for name, series in values.items() if name not in dropped}
    return pd.DataFrame(kept, index=range(n_volumes)), dropped


def _number(text: str | float | None, *, name: str, where: str) -> float:
    """Return a cell as a number, NaN for n/a."""
    if text is None or str(text).strip() in {"", "n/a", "nan", "NaN"}:
        return np.nan
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{where} has {text!r} in column {name}: give numbers or n/a") from None
