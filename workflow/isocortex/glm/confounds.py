"""Choice of confound regressors from a BIDS-derivatives confounds table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from isocortex import bids
from isocortex.confound_strategy import OUTLIERS, Scrub, parse_strategy
from isocortex.errors import InputError

__all__ = ["OUTLIERS", "choose_confounds", "read_confounds", "scrubbed_volumes"]


def read_confounds(
    path: str | Path | None, wanted: str | Sequence[str], *, n_volumes: int
) -> tuple[pd.DataFrame, list[str]]:
    """Return the confound regressors of a run from its table and the JSON beside it.

    Parameters
    ----------
    path
        The table; None where no confounds are used.
    wanted, n_volumes
        As for `choose_confounds`.

    Raises
    ------
    InputError
        As `choose_confounds`, and where a file cannot be read.
    """
    if path is None or parse_strategy(wanted).is_empty:
        return pd.DataFrame(index=range(n_volumes)), []
    beside = Path(path).with_suffix(".json")
    return choose_confounds(
        bids.read_table(path),
        wanted,
        n_volumes=n_volumes,
        metadata=bids.read_json(beside) if beside.is_file() else None,
        where=str(path),
    )


def choose_confounds(
    rows: Sequence[Mapping[str, str]],
    wanted: str | Sequence[str],
    *,
    n_volumes: int,
    metadata: Mapping[str, Any] | None = None,
    where: str = "the confounds table",
) -> tuple[pd.DataFrame, list[str]]:
    """Return the confound regressors of a run.

    Parameters
    ----------
    rows
        The table, a row a volume.
    wanted
        Names of strategies, or column names and patterns such as ``a_comp_cor_0?``, see
        `isocortex.confound_strategy.parse_strategy`. Columns that mark non-steady-state volumes
        come with any choice but ``none``.
    n_volumes
        Number of volumes of the run.
    metadata
        The table's JSON; CompCor's components are chosen by it.
    where
        The table's file, for error messages.

    Returns
    -------
    confounds : pandas.DataFrame, shape (n_volumes, n_chosen)
        A first row without a value, as derivatives have it, has that of the second.
    dropped : list of str
        Chosen columns that never change in this run; they carry nothing and are left out.

    Raises
    ------
    InputError
        Where rows and volumes differ in number, a column is missing or has gaps, or scrubbing
        leaves nothing.

    Notes
    -----
    The numbers are those of `nilearn.interfaces.fmriprep.load_confounds`, without its demeaning;
    volumes that it leaves out by ``sample_mask`` have an indicator column each, which gives the
    same estimates and keeps the time of the others.
    """
    strategy = parse_strategy(wanted)
    if strategy.is_empty:
        return pd.DataFrame(index=range(n_volumes)), []
    if len(rows) != n_volumes:
        raise InputError(
            f"{where} has {len(rows)} rows for {n_volumes} volumes: make the confounds again from "
            f"this run"
        )

    def read(name: str) -> np.ndarray:
        return np.array([_number(row[name], name=name, where=where) for row in rows])

    values = {}
    for name in strategy.columns(list(rows[0]), metadata, where=where):
        series = read(name)
        if np.isnan(series[0]) and n_volumes > 1:
            series[0] = series[1]
        gaps = np.flatnonzero(~np.isfinite(series))
        if gaps.size:
            raise InputError(
                f"{where} has no number in column {name}, row {gaps[0] + 1}: only the first row "
                f"may be n/a; leave the column out of glm.confound_columns"
            )
        values[name] = series
    dropped = [name for name, series in values.items() if np.ptp(series) == 0]
    kept = {name: series for name, series in values.items() if name not in dropped}
    if strategy.scrub:
        out = scrubbed_volumes(
            read("framewise_displacement"), read("std_dvars"), scrub=strategy.scrub
        )
        marked = [series for name, series in kept.items() if name.startswith(OUTLIERS)]
        fresh = np.setdiff1d(out, [volume for one in marked for volume in np.flatnonzero(one)])
        if fresh.size + len(marked) >= n_volumes:
            raise InputError(
                f"{where}: scrubbing leaves no volume of {n_volumes}: exclude the subject, or use "
                "higher thresholds in glm.confound_columns"
            )
        kept |= {
            f"motion_outlier_{k:02d}": (np.arange(n_volumes) == volume).astype(float)
            for k, volume in enumerate(fresh)
        }
    return pd.DataFrame(kept, index=range(n_volumes)), dropped


def scrubbed_volumes(
    framewise_displacement: np.ndarray, std_dvars: np.ndarray, *, scrub: Scrub
) -> np.ndarray:
    """Return the volumes over either threshold and the short stretches that they leave.

    Parameters
    ----------
    framewise_displacement, std_dvars
        One value a volume, mm and standardised; NaN where there is none.
    scrub
        Thresholds and the shortest stretch that is kept.

    Returns
    -------
    numpy.ndarray
        Indices of volumes, ascending; none where no volume is over a threshold.

    Notes
    -----
    Full scrubbing of Power et al. (2014), as nilearn has it.
    """
    over = np.nan_to_num(framewise_displacement) > scrub.fd
    over |= np.nan_to_num(std_dvars) > scrub.dvars
    if not over.any():
        return np.array([], dtype=int)
    edges = np.flatnonzero(np.diff(np.r_[True, over, True].astype(int)))
    for start, stop in edges.reshape(-1, 2):
        over[start:stop] |= stop - start < scrub.segment
    return np.flatnonzero(over)


def _number(text: str | float | None, *, name: str, where: str) -> float:
    """Return a cell as a number, NaN for n/a."""
    if text is None or str(text).strip() in {"", "n/a", "nan", "NaN"}:
        return np.nan
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{where} has {text!r} in column {name}: give numbers or n/a") from None
