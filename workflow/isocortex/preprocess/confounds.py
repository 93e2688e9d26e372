"""The confounds table: fMRIPrep's columns, names and sidecar."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from isocortex.preprocess.noise_components import Decomposition
from isocortex.preprocess.transforms import rigid_matrix

MOTION = ("trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z")
_TEXT = {
    "global_signal": "Mean signal within the brain mask.",
    "csf": "Mean signal within eroded CSF.",
    "white_matter": "Mean signal within eroded white matter.",
    "csf_wm": "Mean signal within eroded CSF and white matter together.",
    "tcompcor": "Mean signal within the voxels of tCompCor.",
    "framewise_displacement": "Framewise displacement (Power et al. 2012), head radius 50 mm.",
    "rmsd": "Root mean square displacement from the volume before within a sphere of 80 mm "
    "(Jenkinson 1999).",
    "dvars": "RMS of the temporal difference over the brain (Power et al. 2012), median 1000.",
    "std_dvars": "DVARS over its expectation from each voxel's variance (Nichols 2013).",
}
_EXPANDED = ("global_signal", "csf", "white_matter", "csf_wm")
_UNITS = {"framewise_displacement": "mm", "rmsd": "mm"}
# column, method and mask by decomposition, named as fMRIPrep names them
DECOMPOSITIONS = {
    "t_comp_cor": ("tCompCor", "brain", "2 % of the brain's voxels that vary most"),
    "c_comp_cor": ("aCompCor", "CSF", "eroded CSF"),
    "w_comp_cor": ("aCompCor", "WM", "eroded white matter"),
    "a_comp_cor": ("aCompCor", "combined", "eroded white matter and CSF together"),
    "edge_comp": ("EdgeRegressor", "Edge", "band of voxels around the brain (Patriat et al. 2017)"),
}
_VOXELS_AT_A_TIME = 1024


def temporal_difference_variance(
    series: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """DVARS, plain, standardised and standardised voxel by voxel.

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
    voxelwise_dvars : numpy.ndarray
        (time - 1,): RMS of the differences, each over its own voxel's expectation.

    Notes
    -----
    The numbers are those of nipype's ``ComputeDVARS``, which needs a package that this project
    does without for one autocorrelation, and takes it in a loop over voxels.
    """
    scale = 1000 / np.median(series)
    squares, relative = np.zeros((2, series.shape[1] - 1))
    expected, n_voxels = 0.0, 0
    for start in range(0, len(series), _VOXELS_AT_A_TIME):
        values = series[start : start + _VOXELS_AT_A_TIME].astype(np.float64) * scale
        lower, upper = np.percentile(values, [25, 75], axis=1, method="lower")
        spread = (upper - lower) / 1.349
        values, spread = values[spread > 1e-7], spread[spread > 1e-7]
        centred = values - values.mean(axis=1, keepdims=True)
        power = (centred**2).sum(axis=1)
        autocorrelation = (centred[:, 1:] * centred[:, :-1]).sum(axis=1) / power
        scatter = np.sqrt(2 * (1 - autocorrelation)) * spread
        expected += float(scatter.sum())
        differences = np.diff(values, axis=1) ** 2
        squares += differences.sum(axis=0)
        relative += (1 / scatter**2) @ differences
        n_voxels += len(values)
    dvars = np.sqrt(squares / max(n_voxels, 1))
    if not expected > 0:
        # a brain of which nothing changes has no expectation
        return dvars, np.full(len(dvars), np.nan), np.full(len(dvars), np.nan)
    return dvars, dvars * n_voxels / expected, np.sqrt(relative / n_voxels)


def root_mean_square_displacement(motion: np.ndarray, *, radius: float = 80.0) -> np.ndarray:
    """Displacement from the volume before, RMS over a sphere (Jenkinson 1999, FSL TR99MJ1).

    Parameters
    ----------
    motion
        (time, 6): translations in mm and rotations in radians about the middle of the grid, which
        is the middle of the sphere.
    radius
        mm; FSL's rmsdiff and fMRIPrep take 80.

    Returns
    -------
    numpy.ndarray
        (time,) mm, NaN first.
    """
    poses = [rigid_matrix(row, np.zeros(3)) for row in motion]
    found = np.full(len(motion), np.nan)
    for number, (before, after) in enumerate(itertools.pairwise(poses), start=1):
        change = after @ np.linalg.inv(before) - np.eye(4)
        turned = (change[:3, :3] ** 2).sum()
        found[number] = np.sqrt(radius**2 / 5 * turned + (change[:3, 3] ** 2).sum())
    return found


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
        Volumes before the steady state have indicators of their own; DVARS of the volume after
        them is a change of their brightness, and is not looked at.

    Returns
    -------
    numpy.ndarray
        Row numbers.
    """
    over = np.nan_to_num(framewise_displacement) > fd_threshold
    bright = np.nan_to_num(std_dvars) > dvars_threshold
    bright[: n_dummy + 1] = False  # the first volume has no DVARS
    over |= bright
    over[:n_dummy] = False
    return np.flatnonzero(over)


def confounds_table(
    *,
    motion: np.ndarray,
    signals: Mapping[str, np.ndarray],
    framewise_displacement: np.ndarray,
    dvars: np.ndarray,
    std_dvars: np.ndarray,
    decompositions: Mapping[str, Decomposition],
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
        ``global_signal``, ``csf``, ``white_matter``, ``csf_wm``, ``tcompcor``: (time,) each; a
        tissue without a voxel in the field of view is left out.
    framewise_displacement, dvars, std_dvars
        (time,), NaN in the first row.
    decompositions
        By prefix of the columns: a key of `DECOMPOSITIONS`.
    cosines
        (time, n): the discrete cosines that were taken out before CompCor.
    n_dummy
        Volumes before the steady state.
    fd_threshold, dvars_threshold
        mm and standardised DVARS of a motion outlier.

    Returns
    -------
    table : pandas.DataFrame
        A row a volume.
    sidecar : dict
        A description a column; components that are no column are ``dropped_0`` and so on.
    """
    columns: dict[str, np.ndarray] = {}
    sidecar: dict[str, dict[str, Any]] = {}
    for name in (n for n in _TEXT if n in signals):
        values = np.asarray(signals[name], float)
        columns |= expansions(values, name) if name in _EXPANDED else {name: values}
        sidecar[name] = {"Description": _TEXT[name], "Method": "Mean"}
    for name, values in (
        ("std_dvars", std_dvars),
        ("dvars", dvars),
        ("framewise_displacement", framewise_displacement),
        ("rmsd", root_mean_square_displacement(motion)),
    ):
        columns[name] = np.asarray(values, float)
        sidecar[name] = {"Description": _TEXT[name]}
        if name in _UNITS:
            sidecar[name]["Units"] = _UNITS[name]
    components = _components(decompositions, sidecar)
    columns |= {name: c for name, c in components.items() if "_comp_cor" in name}
    for number in range(cosines.shape[1]):
        name = f"cosine{number:02d}"
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
    columns |= {name: c for name, c in components.items() if name.startswith("edge_comp")}
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


def _components(
    decompositions: Mapping[str, Decomposition], sidecar: dict[str, dict[str, Any]]
) -> dict[str, np.ndarray]:
    """Columns of the decompositions; the sidecar gets what was kept and what was dropped."""
    columns = {}
    dropped = 0
    for prefix, (method, mask, where) in DECOMPOSITIONS.items():
        found = decompositions.get(prefix)
        if found is None:
            continue
        cumulative = np.cumsum(found.variance_explained)
        for number, value in enumerate(found.singular_values):
            kept = number < found.n_kept
            name = f"{prefix}_{number:02d}" if kept else f"dropped_{dropped}"
            dropped += not kept
            if kept:
                columns[name] = found.components[:, number]
            sidecar[name] = {
                "Description": f"Principal component of the {where}, after the high-pass filter."
                + ("" if kept else " Not a column."),
                "Method": method,
                "Mask": mask,
                "Retained": kept,
                "SingularValue": float(value),
                "VarianceExplained": float(found.variance_explained[number]),
                "CumulativeVarianceExplained": float(cumulative[number]),
            }
    return columns


def write_table(path: str, table: pd.DataFrame) -> None:
    """Write a table as BIDS wants it: tabs, and n/a where there is no number."""
    table.to_csv(path, sep="\t", index=False, na_rep="n/a", float_format="%.10g")
