"""The methods text of model features and of encoding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from isocortex.report.encoding_regions import samples_of
from isocortex.report.page import capital, join

_BUILTINS = {
    "gabor": "gabor_energy",
    "contrast-energy": "gabor_energy",
    "motion-energy": "motion_energy",
    "gist": "gist",
    "resnet20-cifar": "resnet",
    "all-cnn-c": "allconv",
}
_NETWORKS = ("convnet", "resnet20-cifar", "all-cnn-c")
_READOUTS = {
    "factorised": ("a mask over places times weights of channels for each layer", "factorised"),
    "gaussian": ("a Gaussian receptive field with weights of channels", "fwrf", "gaussian"),
    "semantic": (
        "a receptive field and weights of channels that the image's content moves and scales",
        "semantic",
    ),
    "routing": ("queries of regions or voxels that attend to patch tokens", "routing"),
}


def features_sentences(config: Mapping[str, Any], cite: Any) -> list[str]:
    """Say where the features of each model come from.

    Parameters
    ----------
    config
        The whole configuration.
    cite
        Numbers references.

    Returns
    -------
    list of str
        None where the configuration names no models.
    """
    section = config.get("features")
    models = section.get("models") if isinstance(section, Mapping) else None
    if not models:
        return []
    told = []
    for name, entry in models.items():
        source = str(entry.get("source", "builtin"))
        architecture = str(entry.get("architecture", ""))
        if source == "arrays":
            told.append(f"{name} (computed elsewhere)")
            continue
        words = f"{'built-in' if source == 'builtin' else source} {architecture}"
        weights = str(entry.get("weights", "none"))
        # Filters have no weights.
        if source != "builtin" or architecture in _NETWORKS:
            words += {"none": ", untrained", "hub": ", pretrained"}.get(
                weights, ", with weights of a local checkpoint"
            )
        if source == "builtin" and (reference := _BUILTINS.get(architecture)):
            words += f" {cite(reference)}"
        if seeds := entry.get("seeds"):
            words += f", {seeds if isinstance(seeds, int) else len(seeds)} seeds"
        told.append(f"{name} ({words})")
    return [f"Features were taken from {join(told)}."]


def encoding_sentences(
    opened: Mapping[str, Sequence[xr.Dataset]], cite: Any, version: Any
) -> list[str]:
    """Say how responses were predicted and tested.

    Parameters
    ----------
    opened
        Stores by the argument of `report_study`; only their attributes and names are read.
    cite, version
        Number references, and name a package with its version.
    """
    encoding, summary = opened["encoding"], opened["encoding_summary"]
    joint, readouts, universal = (opened.get(key, ()) for key in ("joint", "readouts", "universal"))
    sentences: list[str] = []
    if encoding or summary:
        sentences += _linear(encoding, cite, version)
    sentences += _in_time([*encoding, *joint, *readouts], cite)
    for dataset in _distinct(joint, "joint"):
        sentences.append(_joint(dataset, cite))
    if readouts:
        sentences += _readouts(readouts, cite, version)
    for dataset in _distinct(universal, "name"):
        sentences.append(_universal(dataset, cite))
    if tested := [ds for ds in encoding if ds.attrs.get("permutations")]:
        sentences.append(_permutations(tested[0], cite))
    if summary:
        sentences += _summary(summary[0], cite)
    return sentences


def _distinct(stores: Sequence[xr.Dataset], key: str) -> list[xr.Dataset]:
    """One store of each name."""
    first: dict[str, xr.Dataset] = {}
    for dataset in stores:
        first.setdefault(str(dataset.attrs[key]), dataset)
    return list(first.values())


def _linear(encoding: Sequence[xr.Dataset], cite: Any, version: Any) -> list[str]:
    told, folds, attrs = "", "", {}
    if encoding:
        attrs = encoding[0].attrs
        told = str(attrs.get("methods", ""))
        folds = f" (folds: {attrs['folds']})"
    first = f"{cite('encoding')} in {version('torch')} {cite('pytorch')}"
    by = "region" if attrs.get("alpha_per") == "region" else "voxel"
    penalty = f"with the penalty chosen per {by} by nested cross-validation {cite('himalaya')}"
    if attrs.get("method") == "fractional":
        penalty = (
            f"fractional, with the length of the weights as a share of that without a penalty "
            f"{cite('fractional')}, chosen per {by} by nested cross-validation"
        )
    samples = join(list(dict.fromkeys(samples_of(ds.attrs) for ds in encoding)) or ["trials"])
    sentences = [
        told,
        "Each voxel's responses were predicted from each layer by ridge regression "
        f"{first}, {penalty}; scores are "
        f"Pearson correlations on held-out {samples}{folds}, "
        "normalised by the square root of the explainable share of variance where that is large "
        "enough.",
    ]
    if attrs.get("pca"):
        sentences.append(
            f"Features were reduced to {attrs['pca']} principal components, fitted to the training "
            "samples of each fold."
        )
    return sentences


def _in_time(stores: Sequence[xr.Dataset], cite: Any) -> list[str]:
    """How features became predictors of volumes, where a task is continuous."""
    continuous = [ds for ds in stores if samples_of(ds.attrs) == "volumes"]
    if not continuous:
        return []
    attrs = next((ds.attrs for ds in continuous if ds.attrs.get("delays")), {})
    text = (
        "Of continuous tasks the volumes were predicted: features were resampled to volumes and "
        "delayed copies of them made a finite impulse response for each feature "
        f"{cite('motion_energy')}"
    )
    if attrs:
        text += f", at {join([f'{delay:g}' for delay in attrs['delays']])} s"
    tasks = list(dict.fromkeys(str(ds.attrs["task"]) for ds in continuous))
    return [f"{text} (task{'s' * (len(tasks) > 1)} {join(tasks)})."]


def _joint(dataset: xr.Dataset, cite: Any) -> str:
    attrs = dataset.attrs
    spaces = join([str(space) for space in dataset["space"].values])
    if attrs["method"] == "stacking":
        how = (
            "by stacking: a ridge of its own for each, whose held-out predictions were mixed with "
            f"weights that are 0 or more and sum to 1 {cite('stacking')}"
        )
    else:
        how = (
            f"by banded ridge regression {cite('banded', 'himalaya')}, with the spaces' weights "
            f"chosen per voxel out of {attrs.get('candidates') or 'several'} drawn at random"
        )
        if steps := attrs.get("gradient_steps"):
            how += f" and refined by {steps} steps of gradient descent"
    unique = ""
    if "unique" in dataset:
        unique = "; the unique part of a space is the r² that is lost without it"
    return (
        f"Joint model {attrs['joint']} predicted from {spaces} together {how}. Held-out r² was "
        f"split over the spaces by the product measure {cite('product', 'himalaya')}{unique}."
    )


def _readouts(readouts: Sequence[xr.Dataset], cite: Any, version: Any) -> list[str]:
    kinds: dict[str, list[str]] = {}
    for dataset in _distinct(readouts, "name"):
        kinds.setdefault(str(dataset.attrs["kind"]), []).append(str(dataset.attrs["name"]))
    told = []
    for kind, names in kinds.items():
        words, *keys = _READOUTS.get(kind, (f"the kind {kind}",))
        told.append(f"{join(names)}: {words}" + (f" {cite(*keys)}" if keys else ""))
    return [
        f"Readouts were trained on feature maps in {version('torch')} {cite('pytorch')} by AdamW "
        f"{cite('adamw')} in each fold, stopped early by a part of its training stimuli that was "
        f"kept for that ({'; '.join(told)})."
    ]


def _universal(dataset: xr.Dataset, cite: Any) -> str:
    attrs = dataset.attrs
    new = [str(subject) for subject in attrs["new_subjects"]]
    n = len(attrs["subjects"]) - len(new)
    text = (
        f"Universal encoder {attrs['name']} is one network over the layers of {attrs['model']} for "
        f"{n} subject{'s' * (n != 1)}, in which an embedding of each voxel attends to the features "
        f"{cite('universal')} ({attrs['folds']})"
    )
    if new:
        text += f"; of {join(new)} the embeddings alone were fitted, with the network as it was"
    return f"{text}."


def _permutations(dataset: xr.Dataset, cite: Any) -> str:
    attrs = dataset.attrs
    what = (
        "in blocks within runs"
        if samples_of(attrs) == "volumes"
        else "between stimuli or in blocks"
    )
    return (
        f"Voxels were tested by permuting responses {what} and fitting again "
        f"({attrs['permutations']} permutations, penalties as chosen for the real responses) "
        f"{cite('blocks')}; p-values are corrected for false discoveries over a layer's voxels "
        f"{cite('fdr')} and family-wise by the largest r over voxels and layers {cite('signflip')}."
    )


def _summary(summary: xr.Dataset, cite: Any) -> list[str]:
    parts = [
        template.format(summary.attrs[key])
        for key, template in (
            ("test", "Regions were tested by a {}"),
            ("interval", "intervals are the {}"),
            ("correction", "p-values are corrected ({})"),
        )
        if str(summary.attrs.get(key, ""))
    ]
    sentences = [f"{'; '.join(parts)}."] if parts else []

    def holds(name: str) -> bool:
        return name in summary and bool(np.isfinite(summary[name].values).any())

    if holds("spatial_score"):
        sentences.append(
            "The spatial score is the correlation over regions of the depth of a model's best "
            f"layer with the region's place in the hierarchy {cite('factors')}."
        )
    if holds("difference"):
        over = "subjects and over stimuli" if holds("stimulus_difference") else "subjects"
        sentences.append(
            "Models were compared at the layer that is best for the other subjects, tested over "
            f"{over}; p-values of differences are corrected by Holm's method {cite('holm')} and "
            f"for false discoveries {cite('fdr')}."
        )
    if holds("family_slope"):
        factors = join([str(name) for name in summary["factor"].values])
        sentences.append(
            f"{capital(factors)} of the models of a family went into regressions of the models' "
            f"scores on its logarithm, subject by subject {cite('factors')}."
        )
    return sentences
