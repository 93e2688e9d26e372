"""Searchlights over subjects: sign-flip permutation of t maps and of their TFCE."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from isocortex import parallel, store
from isocortex.errors import InputError
from isocortex.rsa.compare import KERNELS
from isocortex.rsa.dissimilarity import CROSS_VALIDATED
from isocortex.searchlight.discs import mesh_edges
from isocortex.searchlight.maps import write_maps
from isocortex.searchlight.tfce import CONNECTIVITIES, grid_edges, neighbour_table, tfce
from isocortex.surface import template_surface

logger = logging.getLogger(__name__)

MINIMUM_SUBJECTS = 5
"""With fewer subjects the smallest p-value that sign flips can give, 1 / 2^n, is over .05."""
_SMALLEST_STEP = 0.01
"""Between thresholds of TFCE: flips of a map that hardly reaches above 0 reach far higher."""
_POINTS = 1 << 19


@dataclass(frozen=True, eq=False)
class GroupTest:
    """One-sample test of maps over subjects, one-sided for values above 0.

    Attributes
    ----------
    t
        float64, shape (n_maps, n_points); NaN with fewer than 2 subjects.
    tfce
        That map as normal deviates, enhanced; 0 where not all subjects have a value.
    p, p_corrected, p_tfce
        Of each point alone; of the largest t, and of the largest TFCE, over all points of a map.
        NaN where not all subjects have a value, and throughout without flips or below 5 subjects.
    """

    t: np.ndarray
    tfce: np.ndarray
    p: np.ndarray
    p_corrected: np.ndarray
    p_tfce: np.ndarray


def sign_flips(n: int, permutations: int, *, seed: int) -> np.ndarray:
    """Return rows of signs of n subjects, the first of them all +1.

    All 2^n of them where these are no more than ``permutations``, else as many random rows.
    """
    if n < 60 and 2**n <= permutations:
        bits = (np.arange(2**n)[:, None] >> np.arange(n)[None, :]) & 1
        return 1.0 - 2.0 * bits
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(permutations, n))
    signs[0] = 1.0
    return signs


def group_test(
    z: np.ndarray, neighbours: np.ndarray, signs: np.ndarray | None, *, threads: int = 1
) -> GroupTest:
    """Test maps of subjects against 0 by flipping the signs of whole subjects.

    Parameters
    ----------
    z
        Floating, shape (n_maps, n_subjects, n_points), NaN where a subject has no value.
    neighbours
        Of each point, from `isocortex.searchlight.neighbour_table`.
    signs
        From `sign_flips`; ignored below 5 subjects. None where 0 is no value to test against.

    Returns
    -------
    GroupTest
        Each map by itself.

    Notes
    -----
    Flipping leaves the sums of squares alone, so that the t maps of many flips are one matrix
    product. Points that a subject lacks are in no cluster and have t alone. What is enhanced is
    `normal_deviate` of t: with few subjects single points of noise reach a t that no cluster could
    outweigh. The step between thresholds is a 100th of a map's largest observed one, at least .01,
    in all flips.
    """
    z = np.asarray(z)
    n_maps, n, n_points = z.shape
    t = np.full((n_maps, n_points), np.nan)
    for m in range(n_maps):
        found = np.isfinite(z[m])
        safe = np.where(found, z[m], 0.0).astype(np.float64)
        counts = found.sum(axis=0)
        t[m] = _one_sample_t(safe.sum(axis=0), (safe**2).sum(axis=0), counts)
        t[m, counts < 2] = np.nan
    complete = np.isfinite(z).all(axis=1) & np.isfinite(t)
    supported = np.where(complete, t, np.nan)
    deviate = normal_deviate(supported, n - 1)
    steps = np.where(complete, deviate, 0.0).max(axis=1, initial=0.0) / 100
    steps = np.maximum(steps, _SMALLEST_STEP)
    enhanced = np.concatenate(
        [tfce(row[None], neighbours, step=step) for row, step in zip(deviate, steps)]
    )
    nothing = np.full((n_maps, n_points), np.nan)
    if n < MINIMUM_SUBJECTS or signs is None:
        return GroupTest(t, enhanced, nothing, nothing.copy(), nothing.copy())

    blocks = _blocks(n_maps, len(signs), n_points)
    results = parallel.map_blocks(
        _flipped,
        blocks,
        z,
        supported,
        neighbours,
        signs,
        steps,
        threads=threads,
        label="sign flips",
    )
    as_large = np.zeros((n_maps, n_points), dtype=np.int64)
    largest_t = np.empty((n_maps, len(signs)))
    largest_tfce = np.empty((n_maps, len(signs)))
    for (which, flips), (count, by_t, by_tfce) in zip(blocks, results):
        as_large[which] += count
        largest_t[which, flips], largest_tfce[which, flips] = by_t, by_tfce
    p_t, p_enhanced = nothing.copy(), nothing.copy()
    for m in range(n_maps):
        p_t[m] = _corrected(t[m], largest_t[m])
        p_enhanced[m] = _corrected(enhanced[m], largest_tfce[m])
    p = as_large / len(signs)
    return GroupTest(
        t,
        enhanced,
        *(np.where(complete, values, np.nan) for values in (p, p_t, p_enhanced)),
    )


def _blocks(n_maps: int, n_flips: int, n_points: int) -> list[tuple[slice, slice]]:
    """Return maps and flips that are worked on together: more of them where points are few."""
    length = max(1, _POINTS // max(n_points, 1))
    flips, maps = min(length, n_flips), max(1, length // n_flips)
    return [
        (slice(m, min(m + maps, n_maps)), slice(k, min(k + flips, n_flips)))
        for m in range(0, n_maps, maps)
        for k in range(0, n_flips, flips)
    ]


def _flipped(
    block: tuple[slice, slice],
    z: np.ndarray,
    observed: np.ndarray,
    neighbours: np.ndarray,
    signs: np.ndarray,
    steps: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return of some maps and flips: at each point how many flips have a t as large as the
    observed one; and the largest t and the largest TFCE of each flip."""
    maps, flipped = np.arange(len(z))[block[0]], signs[block[1]]
    t = np.full((len(maps), len(flipped), z.shape[2]), np.nan)
    count = np.zeros((len(maps), z.shape[2]), dtype=np.int64)
    for row, found, m in zip(t, count, maps):
        points = np.flatnonzero(np.isfinite(observed[m]))
        values = z[m][:, points].astype(np.float64)
        one = _one_sample_t(flipped @ values, (values**2).sum(axis=0)[None], len(values))
        row[:, points] = one
        found[points] = (one >= _just_below(observed[m, points])).sum(axis=0)
    largest = np.where(np.isnan(t), -np.inf, t).max(axis=2, initial=-np.inf)
    deviate = normal_deviate(t, z.shape[1] - 1).reshape(-1, z.shape[2])
    enhanced = tfce(deviate, neighbours, step=np.repeat(steps[maps], len(flipped)))
    return count, largest, enhanced.max(axis=1, initial=0.0).reshape(largest.shape)


def normal_deviate(t: np.ndarray, degrees_of_freedom: int) -> np.ndarray:
    """Return t as the normal deviate with about the same p-value.

    Parameters
    ----------
    t
        Any shape; NaN stays NaN.
    degrees_of_freedom
        At least 1.

    Returns
    -------
    numpy.ndarray
        Rises with t; within 2 % of the exact deviate from 4 degrees of freedom on, up to 4
        (Wallace 1959, Annals of Mathematical Statistics 30).
    """
    df = max(degrees_of_freedom, 1)
    size = np.sqrt(df * np.log1p(np.square(t) / df))
    return np.sign(t) * size * (8 * df + 1) / (8 * df + 3)


def _one_sample_t(total: np.ndarray, squares: np.ndarray, n: np.ndarray | int) -> np.ndarray:
    """Return t of sums and sums of squares of n values."""
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = total / n
        variance = np.maximum(squares - n * mean**2, 0.0) / (n - 1.0)
        return mean / np.sqrt(np.where(variance > 0, variance, np.nan) / n)


def _just_below(values: np.ndarray) -> np.ndarray:
    """Return what rounding cannot take the same value, computed anew, below."""
    return values - 1e-9 * np.abs(values)


def _corrected(observed: np.ndarray, largest: np.ndarray) -> np.ndarray:
    """Return the share of flips whose largest value is at least the observed one."""
    largest = np.sort(largest)
    below = np.searchsorted(largest, _just_below(np.where(np.isfinite(observed), observed, 0.0)))
    return (len(largest) - below) / len(largest)


def combine_searchlights(
    *,
    searchlights: Sequence[str | Path],
    out: str | Path,
    maps: str | Path,
    permutations: int = 1000,
    connectivity: int = 6,
    seed: int = 0,
    code: str = "",
    threads: int = 1,
) -> Path:
    """Test the searchlight scores over subjects and write the group's store and maps.

    Parameters
    ----------
    searchlights
        ``searchlight`` stores, one a subject, on one grid.
    out
        The store to write, ``searchlight_group``.
    maps
        Folder for NIfTI maps of the mean, t, TFCE and p-values of each predictor.
    permutations
        Sign flips for the p-values; all 2^n of them where these are fewer.
    connectivity
        Neighbours of a voxel for TFCE: 6, 18 or 26.
    seed
        Of the sign flips.

    Returns
    -------
    pathlib.Path
        The manifest.

    Raises
    ------
    InputError
        Where subjects are on different grids, or their searchlights differ in kind.

    Notes
    -----
    t is of Fisher z over the subjects with a score (of scores as they are for comparisons of
    kernels, which are no correlations). Each predictor is tested by itself; p-values
    are of the voxel alone, and corrected over all voxels by the largest t and by the largest TFCE
    under flipped signs (one-sided, voxels that all subjects have). With fewer than 5 subjects they
    are NaN, and where unrelated RDMs do not score 0: kernels, cosines of RDMs not cross-validated.
    """
    if connectivity not in CONNECTIVITIES:
        raise InputError(
            f"searchlight.connectivity: {connectivity} is not one of "
            f"{', '.join(map(str, CONNECTIVITIES))}"
        )
    opened = _subjects(searchlights, "searchlight", ("space",))
    first = opened[0]
    shape = [int(n) for n in first.attrs["shape"]]
    flat = [np.ravel_multi_index([s[a].values for a in "ijk"], shape) for s in opened]
    everywhere = np.unique(np.concatenate(flat))
    z = _fisher_z(opened, [np.searchsorted(everywhere, where) for where in flat], len(everywhere))
    centres = np.stack(np.unravel_index(everywhere, shape), axis=1)
    edges = grid_edges(centres // int(first.attrs["step"]), connectivity=connectivity)
    return _tested(
        opened,
        z,
        edges,
        dim="voxel",
        points={axis: ("voxel", centres[:, d].astype(np.int32)) for d, axis in enumerate("ijk")},
        attrs={"connectivity": connectivity},
        kept=("affine", "shape", "space", "step"),
        spec="searchlight_group",
        inputs=searchlights,
        out=out,
        maps=maps,
        permutations=permutations,
        seed=seed,
        code=code,
        threads=threads,
    )


def combine_surface_searchlights(
    *,
    searchlights: Sequence[str | Path],
    out: str | Path,
    maps: str | Path,
    permutations: int = 1000,
    seed: int = 0,
    code: str = "",
    threads: int = 1,
) -> Path:
    """Test surface searchlights over subjects, both hemispheres together.

    Parameters
    ----------
    searchlights
        ``searchlight_surface`` stores, one a subject.
    out
        The store to write, ``searchlight_surface_group``.
    maps
        Folder for GIFTI maps.
    permutations, seed
        As in `combine_searchlights`; vertices that share an edge are neighbours.

    Returns
    -------
    pathlib.Path
        The manifest.

    Raises
    ------
    InputError
        Where subjects' searchlights differ in kind.
    """
    opened = _subjects(searchlights, "searchlight_surface", ("mesh",))
    first = opened[0]
    n = first.sizes["vertex"]
    z = _fisher_z(opened, [np.arange(n)] * len(opened), n)
    return _tested(
        opened,
        z,
        mesh_edges(template_surface().faces),
        dim="vertex",
        points={name: ("vertex", first[name].values) for name in ("hemisphere", "index")},
        attrs={},
        kept=("mesh", "n_vertices", "sampled_from"),
        spec="searchlight_surface_group",
        inputs=searchlights,
        out=out,
        maps=maps,
        permutations=permutations,
        seed=seed,
        code=code,
        threads=threads,
    )


def _tested(
    opened: Sequence[xr.Dataset],
    z: np.ndarray,
    edges: np.ndarray,
    *,
    dim: str,
    points: dict[str, tuple[str, np.ndarray]],
    attrs: dict,
    kept: Sequence[str],
    spec: str,
    inputs: Sequence[str | Path],
    out: str | Path,
    maps: str | Path,
    permutations: int,
    seed: int,
    code: str,
    threads: int,
) -> Path:
    """Test Fisher z (predictor, subject, point), write maps and store, return the manifest."""
    first, n = opened[0], len(opened)
    flags = []
    if n < MINIMUM_SUBJECTS:
        flags.append(f"{n} subjects: no p-values; sign flips need at least {MINIMUM_SUBJECTS}")
        logger.warning("%s", flags[0])
    tested = _unrelated_scores_zero(first.attrs)
    if not tested:
        flags.append(
            f"{first.attrs['comparison']} of unrelated RDMs is not 0: no p-values of searchlights"
        )
        logger.warning("%s", flags[-1])
    signs = sign_flips(n, permutations, seed=seed) if tested else None
    test = group_test(z, neighbour_table(edges, z.shape[2]), signs, threads=threads)
    counts = np.isfinite(z).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.nansum(z, axis=1, dtype=np.float64) / np.where(counts > 0, counts, np.nan)
    if first.attrs["comparison"] not in KERNELS:
        mean = np.tanh(mean)
    arrays = {
        "mean": mean,
        "t": test.t,
        "p": test.p,
        "p_corrected": test.p_corrected,
        "tfce": test.tfce,
        "p_tfce": test.p_tfce,
    }
    coords = {name: ("predictor", first[name].values) for name in ("predictor", "model", "layer")}
    dataset = xr.Dataset(
        {
            **{
                name: (("predictor", dim), values.astype(np.float32))
                for name, values in arrays.items()
            },
            "n_subjects": (dim, counts.min(axis=0).astype(np.int32)),
        },
        coords={**coords, **points},
        attrs={
            **{key: first.attrs[key] for key in (*_KIND, *kept) if key in first.attrs},
            **attrs,
            "subjects": [str(s.attrs["subject"]) for s in opened],
            "permutations": 0 if signs is None else len(signs),
            "seed": seed,
            "flags": flags,
        },
    )
    where = {name: values for name, (_, values) in points.items()}
    statistics = {"r": "mean", "t": "t", "tfce": "tfce"}
    if n >= MINIMUM_SUBJECTS and tested:
        statistics |= {"p": "p", "pfwe": "p_corrected", "ptfce": "p_tfce"}
    for statistic, key in statistics.items():
        write_maps(
            maps,
            dict(zip((str(p) for p in first["predictor"].values), dataset[key].values)),
            where,
            dataset.attrs,
            prefix=f"task-{first.attrs['task']}",
            statistic=statistic,
            best=statistic == "r",
        )
    return store.write(dataset, out, spec=spec, sources=list(inputs), code=code)


def _unrelated_scores_zero(attrs: Mapping[str, Any]) -> bool:
    """Return whether unrelated RDMs score 0 on average in searchlights, to be tested against.

    Not by kernels, whose similarities are all of one sign, and not by cosines unless the RDMs have
    negative values where there is nothing, as cross-validated ones have that are not transformed.

    Parameters
    ----------
    attrs
        ``comparison``, ``measure`` and ``transform`` of a searchlight store.
    """
    if attrs["comparison"] in ("cosine", "cosine_cov"):
        plain = attrs.get("transform", "") in ("", "unit")
        return plain and attrs.get("measure", "") in CROSS_VALIDATED
    return attrs["comparison"] not in KERNELS


_KIND = ("task", "comparison", "transform", "measure", "noise_normalisation", "radius")
"""Attributes that searchlights put together must share."""


def _subjects(paths: Sequence[str | Path], spec: str, where: Sequence[str]) -> list[xr.Dataset]:
    """Open the stores of all subjects, in the order of their labels, checked to be of one kind."""
    if not paths:
        raise InputError("no searchlights were given: name at least one subject")
    opened = [store.open(path, spec) for path in paths]
    first = opened[0]
    for file, part in zip(paths[1:], opened[1:]):
        if "affine" in first.attrs and (
            list(part.attrs["shape"]) != list(first.attrs["shape"])
            or not np.allclose(part.attrs["affine"], first.attrs["affine"], atol=1e-3)
        ):
            raise InputError(
                f"{file} is on another grid than {paths[0]}: map searchlights in a template space "
                "(preprocess.spaces)"
            )
        for key in (*_KIND, *where, "step"):
            if part.attrs.get(key) != first.attrs.get(key):
                raise InputError(
                    f"{file} has {key} {part.attrs.get(key)}, {paths[0]} {first.attrs.get(key)}: "
                    "map again"
                )
        if list(part["predictor"].values) != list(first["predictor"].values):
            raise InputError(f"{file} has other models than {paths[0]}: map searchlights again")
    return sorted(opened, key=lambda s: str(s.attrs["subject"]))


def _fisher_z(
    opened: Sequence[xr.Dataset], places: Sequence[np.ndarray], n_points: int
) -> np.ndarray:
    """Return scores put at their places, (predictor, subject, point), as float32 Fisher z.

    Those of kernels, which are no correlations, stay as they are.
    """
    plain = opened[0].attrs["comparison"] in KERNELS
    z = np.full((opened[0].sizes["predictor"], len(opened), n_points), np.nan, dtype=np.float32)
    for k, (part, where) in enumerate(zip(opened, places)):
        score = part["score"].values.astype(np.float64)
        z[:, k, where] = score if plain else np.arctanh(np.clip(score, -1 + 1e-7, 1 - 1e-7))
    return z
