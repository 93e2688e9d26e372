"""Searchlights of one subject: every neighbourhood's RDM is scored as it is made, never stored."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from scipy.sparse import csr_array

from isocortex import parallel, store
from isocortex.derivatives import on_mni152
from isocortex.errors import InputError
from isocortex.rsa.compare import COMPARISONS
from isocortex.rsa.compute import condition_groups, row_labels
from isocortex.rsa.dissimilarity import WHITENED
from isocortex.rsa.rdms import ModelRDMs, align_models
from isocortex.rsa.transforms import parse_transform
from isocortex.searchlight.discs import discs
from isocortex.searchlight.maps import write_maps
from isocortex.searchlight.reading import inside_mask, noise_settings, read_patterns
from isocortex.searchlight.scoring import Models, Neighbourhoods, Patterns, score_block
from isocortex.searchlight.spheres import spheres
from isocortex.surface import MESH, sampling_weights, template_surface

logger = logging.getLogger(__name__)

_BLOCK = 2048
"""Centres a block: the same whatever runs them, so that no score depends on it."""


def map_searchlight(
    *,
    betas: str | Path,
    model_rdms: Sequence[str | Path],
    out: str | Path,
    maps: str | Path,
    radius: float = 9.0,
    min_voxels: int = 20,
    min_fraction: float = 0.0,
    mask: str | Path | None = None,
    step: int = 1,
    measure: str = "correlation",
    noise_normalisation: Mapping[str, str] | None = None,
    comparison: str = "pearson",
    transform: str | None = None,
    average_by: str = "stimulus",
    code: str = "",
    threads: int = 1,
) -> Path:
    """Score every sphere of one subject's brain and write the ``searchlight`` store and maps.

    Parameters
    ----------
    betas
        ``betas`` store.
    model_rdms
        ``model_rdms`` stores, one a model.
    out
        The store to write.
    maps
        Folder for one NIfTI map a predictor and the best of all.
    radius
        Of the spheres, mm.
    min_voxels, min_fraction
        A sphere with fewer usable voxels, or a smaller share of a whole sphere's, gets no score
        (NaN).
    mask
        Image in the space of the betas: centres and voxels outside it are left out.
    step
        Centres lie on every ``step``-th voxel of each axis; maps have that coarser grid.
    measure
        One of `isocortex.rsa.MEASURES`.
    noise_normalisation
        See `isocortex.searchlight.read_patterns`.
    comparison
        One of `isocortex.rsa.COMPARISONS`.
    transform
        What RDMs of the brain and of the models go through first, as in
        `isocortex.rsa.parse_transform`.
    average_by
        ``stimulus`` or ``condition``.

    Returns
    -------
    pathlib.Path
        The manifest.

    Raises
    ------
    InputError
        Where no sphere is large enough, models lack stimuli, the measure is not possible with
        these data, or an option is not known.
    """
    opened, labels, where = _opened(betas, comparison, average_by)
    chosen = inside_mask(opened, mask, where=where)
    patterns, usable = read_patterns(
        opened,
        labels,
        measure=measure,
        noise_normalisation=noise_normalisation,
        chosen=chosen,
        where=where,
    )
    models = align_models(
        model_rdms, patterns.stimuli, groups=condition_groups(opened, average_by) or None
    )
    voxels = np.stack([opened[axis].values for axis in "ijk"], axis=1).astype(np.int64)
    centres = voxels[chosen & (voxels % step == 0).all(axis=1)]
    shape = [int(n) for n in opened.attrs["shape"]]
    around = spheres(
        voxels[usable], shape, radius=radius, affine=opened.attrs["affine"], centres=centres
    )
    if around.full < min_voxels:
        raise InputError(
            f"a searchlight of {radius} mm holds {around.full} voxels of {where}, fewer than "
            f"searchlight.min_voxels = {min_voxels}: enlarge searchlight.radius"
        )
    scores, sizes = _scored(
        around,
        patterns,
        _models(models, comparison, transform),
        threads=threads,
        label=f"searchlights of sub-{opened.attrs['subject']}",
        minimum=(min_voxels, min_fraction),
        n_dropped=int((chosen & ~usable).sum()),
        where=where,
        keys=("searchlight.radius", "searchlight.min_voxels", "voxels"),
    )
    dataset = xr.Dataset(
        {
            "score": (("predictor", "voxel"), scores),
            "n_voxels": ("voxel", sizes),
        },
        coords={
            **_predictors(models),
            **{axis: ("voxel", centres[:, d].astype(np.int32)) for d, axis in enumerate("ijk")},
        },
        attrs={
            **_attributes(opened, patterns, comparison, transform, radius, noise_normalisation),
            "affine": opened.attrs["affine"],
            "shape": shape,
            "space": opened.attrs["space"],
            "min_voxels": min_voxels,
            "min_fraction": min_fraction,
            "step": step,
            "mask": "" if mask is None else Path(mask).name,
            "n_voxels_dropped": int((chosen & ~usable).sum()),
        },
    )
    return _written(dataset, out, maps, "searchlight", [betas, *model_rdms, mask], code)


def map_surface_searchlight(
    *,
    betas: str | Path,
    model_rdms: Sequence[str | Path],
    out: str | Path,
    maps: str | Path,
    radius: float = 12.0,
    min_vertices: int = 10,
    min_fraction: float = 0.5,
    mask: str | Path | None = None,
    measure: str = "correlation",
    noise_normalisation: Mapping[str, str] | None = None,
    comparison: str = "pearson",
    transform: str | None = None,
    average_by: str = "stimulus",
    code: str = "",
    threads: int = 1,
) -> Path:
    """Score every disc of the cortical surface and write the ``searchlight_surface`` store.

    Betas are sampled between the white and the pial surface of fsaverage5, whose coordinates are
    taken as those of the betas' template space; discs are geodesic, on the surface half way.

    Parameters
    ----------
    radius
        Of the discs, mm along the surface.
    min_vertices, min_fraction
        A disc with fewer usable vertices, or a smaller share of its vertices, gets no score (NaN).
    maps
        Folder for one GIFTI map a predictor and hemisphere, and the best of all.
    betas, model_rdms, out, mask, measure, noise_normalisation, comparison, transform, average_by
        As in `map_searchlight`.

    Returns
    -------
    pathlib.Path
        The manifest.

    Raises
    ------
    InputError
        As `map_searchlight`, and where the betas are not in a template space.
    """
    opened, labels, where = _opened(betas, comparison, average_by)
    space = str(opened.attrs["space"])
    if not on_mni152(space):
        raise InputError(
            f"{where} is in space {space}, the template surface in MNI152 space: set glm.space to "
            "one of its templates or searchlight.surface.run to false"
        )
    surface = template_surface()
    voxels = np.stack([opened[axis].values for axis in "ijk"], axis=1)
    weights = sampling_weights(surface, voxels, opened.attrs["shape"], opened.attrs["affine"])
    patterns, usable = read_patterns(
        opened,
        labels,
        measure=measure,
        noise_normalisation=noise_normalisation,
        chosen=inside_mask(opened, mask, where=where),
        # Where there is no cortex nothing is sampled.
        sampling=csr_array(weights.multiply(surface.cortex[:, None])),
        where=where,
    )
    models = align_models(
        model_rdms, patterns.stimuli, groups=condition_groups(opened, average_by) or None
    )
    around = discs(surface.midthickness, surface.faces, radius=radius, usable=usable)
    scores, sizes = _scored(
        around,
        patterns,
        _models(models, comparison, transform),
        threads=threads,
        label=f"surface searchlights of sub-{opened.attrs['subject']}",
        minimum=(min_vertices, min_fraction),
        n_dropped=int((~usable).sum()),
        where=where,
        keys=("searchlight.surface.radius", "searchlight.surface.min_vertices", "vertices"),
    )
    # A vertex without data of its own is no centre of a map.
    scores[:, ~usable] = np.nan
    dataset = xr.Dataset(
        {
            "score": (("predictor", "vertex"), scores),
            "n_voxels": ("vertex", sizes),
        },
        coords={
            **_predictors(models),
            "hemisphere": ("vertex", surface.hemisphere),
            "index": ("vertex", surface.index),
        },
        attrs={
            **_attributes(opened, patterns, comparison, transform, radius, noise_normalisation),
            "mesh": MESH,
            "n_vertices": int(surface.index.max()) + 1,
            "sampled_from": space,
            "min_vertices": min_vertices,
            "min_fraction": min_fraction,
            "mask": "" if mask is None else Path(mask).name,
            "n_vertices_without_data": int((~usable).sum()),
        },
    )
    return _written(dataset, out, maps, "searchlight_surface", [betas, *model_rdms, mask], code)


def _opened(
    betas: str | Path, comparison: str, average_by: str
) -> tuple[xr.Dataset, list[str], str]:
    """Return the betas, the label of each trial, and what errors call them."""
    if comparison not in COMPARISONS:
        raise InputError(
            f"searchlight.comparison: {comparison!r} is not one of {', '.join(COMPARISONS)}"
        )
    opened = store.open(betas, "betas")
    where = f"{betas} (sub-{opened.attrs['subject']})"
    return opened, row_labels(opened, average_by, where=where), where


def _models(models: ModelRDMs, comparison: str, transform: str | None) -> Models:
    parsed = parse_transform(transform) if transform else None
    if parsed:
        parsed.check_stimuli(len(models.stimuli), key="searchlight.transform")
    return Models(models.dissimilarity, comparison, parsed)


def _scored(
    around: Neighbourhoods,
    patterns: Patterns,
    models: Models,
    *,
    threads: int,
    label: str,
    minimum: tuple[int, float],
    n_dropped: int,
    where: str,
    keys: tuple[str, str, str],
) -> tuple[np.ndarray, np.ndarray]:
    """Return scores (n_models, n_centres) and sizes (n_centres,) of all neighbourhoods."""
    radius_key, size_key, unit = keys
    largest = int(np.max(around.full, initial=0))
    freedom = patterns.degrees_of_freedom
    local = patterns.residuals is not None or patterns.trials is not None
    if local and patterns.shrinkage == "full" and freedom < largest:
        raise InputError(
            f"searchlights of {where} hold up to {largest} {unit}, their noise has {freedom} "
            "degrees of freedom: set searchlight.noise_normalisation.shrinkage to shrinkage_diag"
        )
    n = around.n_centres
    scores = np.full((len(models.rdms), n), np.nan, dtype=np.float32)
    sizes = np.zeros(n, dtype=np.int32)
    blocks = [slice(start, min(start + _BLOCK, n)) for start in range(0, n, _BLOCK)]
    results = parallel.map_blocks(
        score_block, blocks, around, patterns, models, *minimum, threads=threads, label=label
    )
    for block, (found, held) in zip(blocks, results):
        scores[:, block], sizes[block] = found, held
    scored = np.isfinite(scores).any(axis=0)
    if not scored.any():
        raise InputError(
            f"no searchlight in {where} has a score: the fullest has {int(sizes.max(initial=0))} "
            f"usable {unit}, {size_key} is {minimum[0]}: enlarge {radius_key}, lower {size_key} or "
            "min_fraction, or check that patterns are not constant"
        )
    small = sizes < minimum[0]
    logger.info(
        "%s: %d centres, %d with fewer than %d %s, %d larger ones without a score, %d %s NaN, "
        "constant or without data",
        where,
        n,
        int(small.sum()),
        minimum[0],
        unit,
        int((~small & ~scored).sum()),
        n_dropped,
        unit,
    )
    return scores, sizes


def _predictors(models: ModelRDMs) -> dict[str, tuple[str, np.ndarray]]:
    text = {"predictor": models.predictors, "model": models.models, "layer": models.layers}
    return {key: ("predictor", np.array(list(value), dtype=object)) for key, value in text.items()}


def _attributes(
    betas: xr.Dataset,
    patterns: Patterns,
    comparison: str,
    transform: str | None,
    radius: float,
    noise_normalisation: Mapping[str, str] | None,
) -> dict[str, Any]:
    """Return what stores of volume and surface searchlights say of how they were made."""
    noise = noise_settings(noise_normalisation)
    white = patterns.measure in WHITENED and noise["source"] != "none"
    return {
        "subject": str(betas.attrs["subject"]),
        "task": str(betas.attrs["task"]),
        "comparison": comparison,
        "transform": parse_transform(transform).name if transform else "",
        "measure": patterns.measure,
        "noise_normalisation": f"{noise['source']}, {noise['shrinkage']}" if white else "none",
        "radius": radius,
        "cross_validation": "leave one run out" if patterns.design is not None else "none",
    }


def _written(
    dataset: xr.Dataset,
    out: str | Path,
    maps: str | Path,
    spec: str,
    sources: Sequence[str | Path | None],
    code: str,
) -> Path:
    """Write the maps and the store of one subject; return the manifest."""
    write_maps(
        maps,
        dict(zip((str(p) for p in dataset["predictor"].values), dataset["score"].values)),
        {name: dataset[name].values for name in dataset.coords},
        dataset.attrs,
        prefix=f"sub-{dataset.attrs['subject']}_task-{dataset.attrs['task']}",
        statistic="r",
        best=True,
    )
    return store.write(
        dataset, out, spec=spec, sources=[path for path in sources if path], code=code
    )
