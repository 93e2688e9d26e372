"""RDMs of simulated subjects and models, as arrays and as stores."""

import math

import numpy as np
import xarray as xr

from isocortex import store
from isocortex.rsa import pair_labels


def rdm_of(patterns):
    """Return the squared Euclidean RDM of patterns, its pairs z-scored."""
    i, j = np.triu_indices(len(patterns), 1)
    d = ((patterns[i] - patterns[j]) ** 2).sum(axis=1)
    return (d - d.mean()) / d.std()


def random_rdms(rng, *shape, stimuli):
    """Return RDMs of independent patterns, shape (..., pair)."""
    flat = [rdm_of(rng.standard_normal((stimuli, 20))) for _ in range(math.prod(shape))]
    return np.array(flat).reshape(*shape, -1)


def write_rdms(folder, *, subjects=5, stimuli=20, seed=0, constant=False, noise=1.0):
    """Write stores of a model and of subjects: region early is like layer l0, late like l2."""
    rng = np.random.default_rng(seed)
    names = [f"s{k:02d}" for k in range(stimuli)]
    i, j = pair_labels(names)
    rows = random_rdms(rng, 3, stimuli=stimuli) + 4.0
    if constant:
        rows[1] = 1.0
    pairs = {"stimulus_i": ("pair", i), "stimulus_j": ("pair", j)}
    layers = np.array(["l0", "l1", "l2"], object)
    store.write(
        xr.Dataset(
            {"dissimilarity": (("layer", "pair"), rows)},
            coords={"layer": ("layer", layers), **pairs},
            attrs={"model": "net", "measure": "correlation"},
        ),
        folder / "model.zarr",
        spec="model_rdms",
    )
    paths = []
    for k in range(subjects):
        values = rows[[0, 2]] + noise * random_rdms(rng, 2, stimuli=stimuli)
        store.write(
            xr.Dataset(
                {"dissimilarity": (("region", "pair"), values)},
                coords={"region": ("region", np.array(["early", "late"], object)), **pairs},
                attrs={
                    "subject": f"{k:02d}",
                    "task": "all",
                    "measure": "given",
                    "noise_normalisation": "none",
                    "cross_validation": "none",
                },
            ),
            folder / f"sub-{k}.zarr",
            spec="rdms",
        )
        paths.append(folder / f"sub-{k}.zarr")
    return {"rdms": paths, "model_rdms": [folder / "model.zarr"], "out": folder / "scores.zarr"}
