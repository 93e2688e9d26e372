"""Models given as RDMs made elsewhere: their files become a model's ``model_rdms`` store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr

from isocortex import store
from isocortex.errors import InputError
from isocortex.rsa.imports import matching_rdms, rdm_descriptors, read_rdm, sorted_vector
from isocortex.rsa.rdms import pair_labels

MODEL_DESCRIPTORS = ("model", "name")
LAYER_DESCRIPTORS = ("layer", "name")
"""RDM descriptors of an rsatoolbox file that say whose an RDM is, and what a layer is called."""


def import_model_rdms(
    *,
    files: Sequence[str | Path],
    model: str,
    out: str | Path,
    layers: Sequence[str] = (),
    stimuli: Sequence[str | Path] = (),
    rdms: Sequence[str] = (),
    code: str = "",
) -> Path:
    """Write the ``model_rdms`` store of one model from files, one or more layers a file.

    Parameters
    ----------
    files
        Of the formats of `isocortex.rsa.import_rdms`.
    model
        The model's name.
    out
        The store to write.
    layers
        For each file the name of the layer. Where it is empty the file's own descriptor ``layer``
        (or ``name``) names it, or else the model. An ``.h5`` of several RDMs gives all of them
        whose descriptor ``model`` is this model, where it has that descriptor.
    stimuli, rdms
        For each file the list of its stimulus ids and which of its RDMs is meant, as in
        `isocortex.rsa.import_rdms`.

    Returns
    -------
    pathlib.Path
        The manifest; the store's measure is ``given``.

    Raises
    ------
    InputError
        As `isocortex.rsa.import_rdms`, and where a pair is NaN, a layer comes twice, or layers
        have different stimuli.
    """
    given = [list(column) or [""] * len(files) for column in (layers, stimuli, rdms)]
    if not files or any(len(column) != len(files) for column in given):
        raise InputError(
            f"model {model}: {len(files)} files, {len(given[0])} layers, {len(given[1])} stimulus "
            f"lists and {len(given[2])} choices of an RDM: name one of each a file"
        )
    rows: dict[str, np.ndarray] = {}
    names: list[str] = []
    for file, layer, listed, choice in zip(files, *given):
        where = f"{file} (model {model}{f', layer {layer}' if layer else ''})"
        for rdm, label in _layers_in(Path(file), model, layer, choice.strip(), where):
            square, found = read_rdm(file, stimuli=listed, rdm=rdm, where=where)
            vector, ordered = sorted_vector(square, found)
            lacking = int(np.isnan(vector).sum())
            if lacking:
                raise InputError(
                    f"{where}: {lacking} of {vector.size} pairs of {label} are NaN, and a model "
                    "needs all: fill them, or leave their stimuli out of models and brain"
                )
            if label in rows:
                raise InputError(
                    f"{where}: layer {label} comes twice: name each in the column layer"
                )
            if names and ordered != names:
                raise InputError(
                    f"{where} has other stimuli than {files[0]}: give all layers of a model the "
                    "same"
                )
            names = ordered
            rows[label] = vector
    first, second = pair_labels(names)
    dataset = xr.Dataset(
        {"dissimilarity": (("layer", "pair"), np.array(list(rows.values()), dtype=np.float64))},
        coords={
            "layer": ("layer", np.array(list(rows), dtype=object)),
            "stimulus_i": ("pair", first),
            "stimulus_j": ("pair", second),
        },
        attrs={"model": model, "measure": "given"},
    )
    sources = [*files, *(listed for listed in given[1] if str(listed))]
    return store.write(dataset, out, spec="model_rdms", sources=sources, code=code)


def _layers_in(file: Path, model: str, layer: str, rdm: str, where: str) -> list[tuple[str, str]]:
    """Return which RDMs of a file are meant, for the column rdm, and what each is called."""
    if file.suffix.lower() not in (".h5", ".hdf5"):
        return [(rdm, layer or model)]
    n, descriptors = rdm_descriptors(file, where)
    searched = []
    if not rdm and n > 1:
        of_model = next((key for key in MODEL_DESCRIPTORS if key in descriptors), "")
        # RDMs called by their layers have a name, too.
        if of_model == "model" or model in descriptors.get(of_model, ()):
            searched.append(((of_model,), model))
        if layer:
            searched.append((LAYER_DESCRIPTORS, layer))
    rows, words = matching_rdms(descriptors, n, rdm, searched, where)
    called = next((descriptors[key] for key in LAYER_DESCRIPTORS if key in descriptors), None)
    one_only = bool(layer or rdm or called is None)
    if not rows or (len(rows) > 1 and one_only):
        raise InputError(
            f"{where} holds {n} RDMs, {len(rows)} of them {words}: name one in the column rdm of "
            f"the table, by position (0 to {n - 1}) or as descriptor=value"
        )
    return [(str(row), layer or (called[row] if called else model)) for row in rows]
