"""What the stores say about their inference and their settings, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import xarray as xr

from isocortex.report.page import join

_CORRECTIONS = {
    "holm": "corrected by Holm's method",
    "fdr": "corrected for false discoveries",
    "none": "not corrected",
}


def level(dataset: xr.Dataset) -> str:
    """Coverage of the intervals of a store, as "95%"."""
    return f"{100 * float(dataset.attrs['interval_level']):g}%"


def resampled(dataset: xr.Dataset) -> str:
    """What the bootstrap of a store drew: "subjects", "stimuli", or both."""
    options = dataset.attrs.get("options")
    drawn = dataset.attrs.get("bootstrap") or (
        options.get("resample") if isinstance(options, Mapping) else None
    )
    return {"both": "subjects and stimuli", None: "the sample"}.get(drawn, str(drawn))


def correction(dataset: xr.Dataset) -> str:
    """How the p-values of a store were corrected for their number, or that they were not."""
    return _CORRECTIONS[str(dataset.attrs["correction"]).split()[0]]


def corrected_header(dataset: xr.Dataset) -> str:
    """Head of a column of p-values."""
    return "p, not corrected" if correction(dataset) == _CORRECTIONS["none"] else "p, corrected"


def given_models(model_rdms: Sequence[xr.Dataset]) -> list[str]:
    """Names of the models, of those of some stores of RDMs, that were given as RDMs."""
    return [str(ds.attrs["model"]) for ds in model_rdms if str(ds.attrs["measure"]) == "given"]


def given_text(models: Sequence[str]) -> str:
    """Say which models were given as RDMs; nothing where none was."""
    if not models:
        return ""
    return f"Given as RDMs (made elsewhere, without features): {join(list(models))}."


def radius_text(radius: Any) -> str:
    """Radius of a searchlight with its unit."""
    return f"{radius:g} mm" if isinstance(radius, (int, float)) else str(radius)


def voxel_reason(key: str) -> str:
    """Say in words why voxels were left out, from the name of their count."""
    words = key.removeprefix("n_voxels_").replace("_", " ")
    return {"nan": "with NaN", "nonpositive mean": "without a positive mean"}.get(words, words)
