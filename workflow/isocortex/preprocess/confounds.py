"""The confounds table: fMRIPrep's columns, names and sidecar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

MOTION = ("trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z")
_SIGNALS = ("csf", "white_matter", "global_signal")
_TEXT = {
    "csf": "Mean signal within eroded CSF.",
    "white_matter": "Mean signal within eroded white matter.",
    "global_signal": "Mean signal within the brain mask.",
    "framewise_displacement": "Framewise displacement (Power et al. 2012), head radius 50 mm.",
    "dvars": "RMS of the temporal difference over the brain (Power et al. 2012), median 1000.",
    "std_dvars": "DVARS over its expectation from each voxel's variance (Nichols 2013).",
}
_UNITS = {"framewise_displacement": "mm"}
_VOXELS_AT_A_TIME = 1024


def temporal_difference_variance(series: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """DVARS, plain and standardised.

    Parameters
    ----------
    series
        Shape (voxel, time): the voxels of the brain after motion correction.

    Returns
    -------
    dvars : numpy.ndarray
        (time - 1,): RMS over voxels of the difference to the volume before, on a scale on which
        the median of the whole is 1000 (Power et al. 2012).
    std_dvars : numpy.ndarray
        (time - 1,): the same over its expectation from each voxel's robust standard deviation
        and first-order autocorrelation (Nichols 2013).

    Notes
    -----
    The numbers are those of nipype's ``ComputeDVARS``, which needs a package that this project
    does without for one autocorrelation, and takes it in a loop over voxels.
    """
    scale = 1000 / np.median(series)
    squares, expected, n_voxels = np.zeros(series.shape[1] - 1), 0.0, 0
    for start in range(0, len(series), _VOXELS_AT_A_TIME):
        values = series[start : start + _VOXELS_AT_A_TIME].astype(np.float64) * scale
        lower, upper = np.percentile(values, [25, 75], axis=1, method="lower")
        spread = (upper - lower) / 1.349
        values, spread = values[spread > 1e-7], spread[spread > 1e-7]
        centred = values - values.mean(axis=1, keepdims=True)
        power = (centred**2).sum(axis=1)
        autocorrelation = (centred[:, 1:] * centred[:, :-1]).sum(axis=1) / power
        expected += float((np.sqrt(2 * (1 - autocorrelation)) * spread).sum())
        squares += (np.diff(values, axis=1) ** 2).sum(axis=0)
        n_voxels += len(values)
    dvars = np.sqrt(squares / max(n_voxels, 1))
    # a brain of which nothing changes has no expectation
    return dvars, dvars * n_voxels / expected if expected > 0 else np.full(len(dvars), np.nan)


def expansions(values: np.ndarray, name: str) -> dict[str, np.ndarray]:
    """A regressor with its derivative and both squares (Satterthwaite et al. 2013).

    Parameters
    ----------
    values
        Shape (time,).
    name
        Of the column.

    Returns
    -------
    dict
        ``name``, ``name_derivative1`` (NaN first), ``name_power2``, ``name_derivative1_power2``.
    """
    derivative = np.r_[np.nan, np.diff(values)]
    return {
        name: values,
        f"{name}_derivative1": derivative,
        f"{name}_power2": values**2,
        f"{name}_derivative1_power2": derivative**2,
    }


def indicator_columns(rows: Sequence[int], n_volumes: int, name: str) -> dict[str, np.ndarray]:
    """One column a volume, 1 in its row: ``name00``, ``name01``, ..."""
    width = max(2, len(str(max(len(rows) - 1, 0))))
    columns = {}
    for number, row in enumerate(rows):
        column = np.zeros(n_volumes)
        column[row] = 1
        columns[f"{name}{number:0{width}d}"] = column
    return columns


def motion_outliers(
    framewise_displacement: np.ndarray,
    std_dvars: np.ndarray,
    *,
    fd_threshold: float,
    dvars_threshold: float,
    n_dummy: int = 0,
) -> np.ndarray:
    """Volumes over either threshold, without those before the steady state.

    Parameters
    ----------
    framewise_displacement, std_dvars
        (time,), NaN in the first row.
    fd_threshold
        mm.
    dvars_threshold
        Standardised DVARS.
    n_dummy
        Volumes before the steady state have indicators of their own.

    Returns
    -------
    numpy.ndarray
        Row numbers.
    """
    over = np.nan_to_num(framewise_displacement) > fd_threshold
    over |= np.nan_to_num(std_dvars) > dvars_threshold
    over[:n_dummy] = False
    return np.flatnonzero(over)


def confounds_table(
    *,
    motion: np.ndarray,
    signals: Mapping[str, np.ndarray],
    framewise_displacement: np.ndarray,
    dvars: np.ndarray,
    std_dvars: np.ndarray,
    components: np.ndarray,
    components_explained: Sequence[Mapping[str, float]],
    cosines: np.ndarray,
    n_dummy: int,
    fd_threshold: float,
    dvars_threshold: float,
) -> tuple[pd.DataFrame, dict[str, dict[str, Any]]]:
    """Assemble the table and its sidecar.

    Parameters
    ----------
    motion
        (time, 6): mm and radians.
    signals
        ``csf``, ``white_matter``, ``global_signal``: (time,) each; a tissue without a voxel in
        the field of view is left out.
    framewise_displacement, dvars, std_dvars
        (time,), NaN in the first row.
    components
        aCompCor (time, n).
    components_explained
        One mapping a component: SingularValue, VarianceExplained, CumulativeVarianceExplained.
    cosines
        (time, n): the discrete cosines that were taken out before aCompCor.
    n_dummy
        Volumes before the steady state.

    Returns
    -------
    table : pandas.DataFrame
        A row a volume.
    sidecar : dict
        A description a column.
    """
    columns: dict[str, np.ndarray] = {}
    sidecar: dict[str, dict[str, Any]] = {}
    for name in _SIGNALS:
        if name in signals:
            columns |= expansions(np.asarray(signals[name], float), name)
            sidecar[name] = {"Description": _TEXT[name], "Method": "Mean"}
    for name, values in (
        ("framewise_displacement", framewise_displacement),
        ("dvars", dvars),
        ("std_dvars", std_dvars),
    ):
        columns[name] = np.asarray(values, float)
        sidecar[name] = {"Description": _TEXT[name]}
        if name in _UNITS:
            sidecar[name]["Units"] = _UNITS[name]
    for number in range(components.shape[1]):
        name = f"a_comp_cor_{number:02d}"
        columns[name] = components[:, number]
        sidecar[name] = {
            "Description": "Component of the eroded white matter and CSF (Behzadi et al. 2007).",
            "Method": "aCompCor",
            "Mask": "combined",
            "Retained": True,
            **{key: float(value) for key, value in components_explained[number].items()},
        }
    for number in range(cosines.shape[1]):
        name = f"cosine_{number:02d}"
        columns[name] = cosines[:, number]
        sidecar[name] = {"Description": "Discrete cosine of the high-pass filter."}
    columns |= indicator_columns(range(n_dummy), len(motion), "non_steady_state_outlier")
    for number, name in enumerate(MOTION):
        columns |= expansions(motion[:, number], name)
        sidecar[name] = {
            "Description": "Pose of the head relative to the reference image; rotations R = "
            "Rx Ry Rz about the middle of the grid, positive translations to the right, "
            "anterior, superior.",
            "Units": "mm" if name.startswith("trans") else "rad",
        }
    rows = motion_outliers(
        framewise_displacement,
        std_dvars,
        fd_threshold=fd_threshold,
        dvars_threshold=dvars_threshold,
        n_dummy=n_dummy,
    )
    columns |= indicator_columns(rows, len(motion), "motion_outlier")
    for name in columns:
        if name.startswith("motion_outlier"):
            sidecar[name] = {
                "Description": f"Framewise displacement over {fd_threshold:g} mm or standardised "
                f"DVARS over {dvars_threshold:g}."
            }
        if name.startswith("non_steady_state"):
            sidecar[name] = {"Description": "Volume before the steady state."}
        for suffix, text in (
            ("_derivative1_power2", "Square of the temporal difference of"),
            ("_derivative1", "Temporal difference of"),
            ("_power2", "Square of"),
        ):
            if name.endswith(suffix):
                sidecar[name] = {"Description": f"{text} {name.removesuffix(suffix)}."}
                break
    return pd.DataFrame(columns), sidecar


def write_table(path: str, table: pd.DataFrame) -> None:
    """Write a table as BIDS wants it: tabs, and n/a where there is no number."""
    table.to_csv(path, sep="\t", index=False, na_rep="n/a", float_format="%.10g")
