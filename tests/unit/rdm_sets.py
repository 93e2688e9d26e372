"""Sets of RDMs as stages take them, and their stores, for the tests of several stages."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr

from isocortex import store
from isocortex.rsa.rdms import BrainRDMs, ModelRDMs, n_stimuli, pair_labels


def stimuli_of(rdms: np.ndarray) -> tuple[str, ...]:
    """Ids of as many stimuli as the RDMs (..., pair) have."""
    return tuple(f"s{k:03d}" for k in range(n_stimuli(rdms.shape[-1])))


def brain_of(dissimilarity: np.ndarray, **changes) -> BrainRDMs:
    """RDMs (subject, region, pair) with labels."""
    n_subjects, n_regions = dissimilarity.shape[:2]
    fields = {
        "dissimilarity": dissimilarity,
        "n_voxels": np.full((n_subjects, n_regions), 50, dtype=np.int32),
        "subjects": tuple(f"{s + 1:02d}" for s in range(n_subjects)),
        "regions": tuple(f"region{r}" for r in range(n_regions)),
        "stimuli": stimuli_of(dissimilarity),
        "task": "objects",
        "measure": "correlation",
        "groups": {},
        "n_stimuli_dropped": 0,
    }
    return BrainRDMs(**{**fields, **changes})


def models_of(dissimilarity: np.ndarray) -> ModelRDMs:
    """RDMs (layer, pair) of one model with labels."""
    layers = tuple(f"layer{k}" for k in range(len(dissimilarity)))
    return ModelRDMs(
        dissimilarity=dissimilarity,
        predictors=tuple(f"net/{layer}" for layer in layers),
        models=("net",) * len(layers),
        layers=layers,
        stimuli=stimuli_of(dissimilarity),
    )


def _write(
    path: Path,
    rdms: np.ndarray,
    stimuli: Sequence[str],
    *,
    axis: str,
    labels: Sequence[str],
    attrs: dict[str, str],
) -> Path:
    first, second = pair_labels(stimuli)
    pairs = {"stimulus_i": ("pair", first), "stimulus_j": ("pair", second)}
    dataset = xr.Dataset(
        {"dissimilarity": ((axis, "pair"), rdms)},
        coords={axis: np.array(labels, dtype=object), **pairs},
        attrs=attrs,
    )
    store.write(dataset, path, spec="rdms" if axis == "region" else "model_rdms")
    return path


def write_rdms(folder: Path, dissimilarity: np.ndarray) -> list[Path]:
    """Write the `rdms` stores of RDMs (subject, region, pair), one a subject."""
    brain = brain_of(dissimilarity)
    return [
        _write(
            folder / f"sub-{subject}_rdms.zarr",
            rdms,
            brain.stimuli,
            axis="region",
            labels=brain.regions,
            attrs={
                "subject": subject,
                "task": brain.task,
                "measure": brain.measure,
                "noise_normalisation": "none",
                "cross_validation": "none",
            },
        )
        for subject, rdms in zip(brain.subjects, dissimilarity)
    ]


def write_model_rdms(
    folder: Path, dissimilarity: np.ndarray, *, stimuli: Sequence[str] = ()
) -> Path:
    """Write the `model_rdms` store of RDMs (layer, pair), the stimuli in any order."""
    models = models_of(dissimilarity)
    return _write(
        folder / "model-net_rdms.zarr",
        dissimilarity,
        stimuli or models.stimuli,
        axis="layer",
        labels=models.layers,
        attrs={"model": "net", "measure": "correlation"},
    )
