"""Zarr stores: the registry of what each holds, one writer, one reader.

No other module calls zarr. A store is written to a temporary sibling and renamed, so that it is
there whole or not at all; its manifest, ``<same name>.json``, holds the digest of its content.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from isocortex import provenance
from isocortex.errors import InputError

CHUNK_BYTES = 2 << 20
SHARD_BYTES = 32 << 20


@dataclass(frozen=True)
class Array:
    """What one array of a spec is.

    Parameters
    ----------
    dims
        Dimension names; ``...`` at the end stands for any further ones.
    kind
        ``"f4"``, ``"f8"``, ``"i2"``, ``"i4"``, ``"bool"`` or ``"str"``.
    doc
        What it holds, with units; written into the array's attributes.
    required
        Whether a store without it is refused.
    """

    dims: tuple
    kind: str
    doc: str
    required: bool = True


@dataclass(frozen=True)
class Spec:
    """What one kind of store holds."""

    doc: str
    arrays: Mapping[str, Array]
    attrs: tuple[str, ...] = ()
    groups: bool = False
    version: int = 1
    block: str | None = field(default=None)
    """The dimension along which arrays are cut into chunks; others stay whole."""
    compressed: bool = True
    """Whether chunks are compressed. Activations hardly shrink, and compressing them takes longer
    than computing them."""
    shard_bytes: int | None = None
    """About how large a shard is, `SHARD_BYTES` where not said. Writing one takes about six times
    as much memory."""


_GEOMETRY = {
    "i": Array(("voxel",), "i4", "first index of the voxel in the volume"),
    "j": Array(("voxel",), "i4", "second index of the voxel in the volume"),
    "k": Array(("voxel",), "i4", "third index of the voxel in the volume"),
}
_VERTEX = {
    "hemisphere": Array(("vertex",), "str", "left or right"),
    "index": Array(("vertex",), "i4", "number of the vertex in its hemisphere"),
}


def _group_maps(point: str) -> dict[str, Array]:
    """Return the arrays of searchlights over subjects, on voxels or on vertices."""
    dims = ("predictor", point)
    alone = f"by sign flips, one-sided; NaN below 5 subjects or where one lacks the {point}"
    return {
        "mean": Array(dims, "f4", "mean score over subjects (of Fisher z, transformed back)"),
        "t": Array(dims, "f4", "t over subjects of Fisher z"),
        "p": Array(dims, "f4", f"p-value of the {point} alone {alone}", required=False),
        "p_corrected": Array(dims, "f4", f"p-value corrected by the largest t {alone}"),
        "tfce": Array(dims, "f4", "TFCE (E .5, H 2) of t as a normal deviate", required=False),
        "p_tfce": Array(
            dims, "f4", f"p-value corrected by the largest TFCE {alone}", required=False
        ),
        "n_subjects": Array((point,), "i4", "subjects with a score at the centre"),
    }


_PREDICTOR = {
    "predictor": Array(("predictor",), "str", "model and layer, model/layer"),
    "model": Array(("predictor",), "str", "name of the model"),
    "layer": Array(("predictor",), "str", "name of the layer"),
}


def _optional(
    dims: tuple[str, ...], docs: Mapping[str, str], *, kind: str = "f8"
) -> dict[str, Array]:
    """Return float arrays of the same dimensions that a store may lack."""
    return {key: Array(dims, kind, doc, required=False) for key, doc in docs.items()}


def _chosen_in(ending: str, where: str) -> dict[str, Array]:
    """Return the arrays of what the optimised estimator chose for each voxel, all optional."""
    found = _optional(
        ("voxel",),
        {
            f"fraction{ending}": "length of the regularised responses over that without a penalty, "
            f"chosen{where}",
            f"r2_cross_validated{ending}": "share of held-out runs' variance that responses from "
            f"the other runs explain{where}",
        },
        kind="f4",
    )
    pool = Array(("voxel",), "bool", f"whether noise components were taken from it{where}", False)
    hrf = Array(("voxel",), "i2", f"haemodynamic response that was chosen{where}", False)
    return found | {f"noise_pool{ending}": pool} | ({f"hrf_index{ending}": hrf} if ending else {})


_STATISTIC = {
    "statistic": Array(("statistic",), "str", "summary statistic"),
    "family": Array(("statistic",), "str", "family of the threshold pair"),
    "lower": Array(("statistic",), "f8", "l"),
    "upper": Array(("statistic",), "f8", "u"),
}
_TOPOLOGICAL = ("scale", "threshold", "pool", "geodesic", "measure", "flags")


def _identified(who: str, what: str, *outer: str) -> dict[str, Array]:
    """Return the arrays of an identification of ``what`` in each ``who``, over outer dims."""
    dims = (*outer, "statistic")
    docs = {
        "accuracy": f"share of {what}s identified",
        "accuracy_low": "lower end of the interval",
        "accuracy_high": "upper end of the interval",
        "p": "p-value against chance, by permutation",
        "p_corrected": "p-value corrected for all statistics (largest accuracy)",
        "gain": "accuracy less that of the rank RDM",
        "gain_low": "lower end of the gain's interval",
        "gain_high": "upper end of the gain's interval",
        "ratio": f"within- over across-{what} distance",
    }
    return {
        **{key: Array(dims, "f8", doc) for key, doc in docs.items()},
        f"accuracy_{who}": Array((*dims, who), "f8", f"share in one {who}"),
        "sensitivity": Array((*dims, what), "f8", f"share of {who}s whose {what} was found"),
        "specificity": Array((*dims, what), "f8", f"share of other {what}s not taken for it"),
        "confusion": Array(
            (*dims, what, "predicted"), "i4", f"count of {what} taken for predicted"
        ),
        "n_pairs": Array(dims, "i4", "pairs of stimuli that were used"),
        "chosen": Array((*outer, who), "str", "threshold pair that the others chose (most often)"),
        **_STATISTIC,
        what: Array((what,), "str", f"true {what}"),
        "predicted": Array(("predicted",), "str", f"predicted {what}"),
        who: Array((who,), "str", f"held-out {who}"),
    }


SPECS: dict[str, Spec] = {
    "betas": Spec(
        doc="Single-trial responses of one subject and task",
        block="voxel",
        shard_bytes=4 << 20,
        arrays={
            "beta": Array(("trial", "voxel"), "f4", "response, percent signal change"),
            "beta_se": Array(
                ("trial",), "f8", "standard error of the beta in units of the residual SD"
            ),
            "r2": Array(
                ("voxel",),
                "f4",
                "share of the variance that drift and confounds leave which the trials explain",
            ),
            "z_stimulus": Array(
                ("voxel",), "f4", "z of the mean response to all trials, fixed effects over runs"
            ),
            "noise_ceiling": Array(
                ("voxel",),
                "f4",
                "explainable share of the variance of the mean over repeats, 0 to 1",
            ),
            "ncsnr": Array(("voxel",), "f4", "signal SD over noise SD of single trials"),
            **_optional(
                ("voxel",),
                {
                    **{
                        f"{name}_{end}": f"{side} end of the 95 % interval of {name}"
                        for name in ("ncsnr", "noise_ceiling")
                        for end, side in (("low", "lower"), ("high", "upper"))
                    },
                    "reliability": "correlation over stimuli of the mean responses to odd and even "
                    "repeats (of halves, with split_half); 2 r / (1 + r) is that of all repeats",
                },
                kind="f4",
            ),
            **_chosen_in("", " in all runs"),
            **_chosen_in("_1", " in the first half"),
            **_chosen_in("_2", " in the second half"),
            "tsnr": Array(
                ("voxel",), "f4", "mean over SD of the time series without drift, mean over runs"
            ),
            "hrf_index": Array(("voxel",), "i2", "haemodynamic response that was used, -1 unknown"),
            "residual": Array(("time", "voxel"), "f4", "GLM residual, percent signal change"),
            "design": Array(("volume", "regressor"), "f4", "design matrix of the first run"),
            "regressor": Array(("regressor",), "str", "name of the regressor"),
            "frame_time": Array(("volume",), "f8", "time of the volume in its run, s"),
            "stimulus": Array(("trial",), "str", "stimulus id"),
            "condition": Array(("trial",), "str", "condition of the trial"),
            "session": Array(("trial",), "str", "session, empty where there are none"),
            "run": Array(("trial",), "str", "run, unique over sessions"),
            "half": Array(("trial",), "i2", "half that shares nothing with the other", False),
            "n_repeats": Array(("trial",), "i4", "trials that the beta is the mean of", False),
            "onset": Array(("trial",), "f8", "onset from the start of the run, s"),
            "duration": Array(("trial",), "f8", "duration, s"),
            "time_run": Array(("time",), "str", "run that a residual's volume belongs to"),
            **_GEOMETRY,
        },
        attrs=("affine", "shape", "space", "TR", "estimator", "subject", "task"),
    ),
    "timeseries": Spec(
        doc="Cleaned time series of one subject and task, and what was shown when",
        block="voxel",
        shard_bytes=4 << 20,
        arrays={
            "signal": Array(
                ("volume", "voxel"), "f4", "percent signal change, drift and confounds taken out"
            ),
            "noise_ceiling": Array(
                ("voxel",),
                "f4",
                "explainable share of the variance of a volume, 0 to 1, from repeated stimuli",
                required=False,
            ),
            "tsnr": Array(
                ("voxel",),
                "f4",
                "mean over SD of the time series without drift, mean over runs",
                required=False,
            ),
            "run": Array(("volume",), "str", "run, unique over sessions"),
            "session": Array(("volume",), "str", "session, empty where there are none"),
            "time": Array(
                ("volume",), "f8", "middle of the volume's acquisition from the run's start, s"
            ),
            "event_run": Array(("event",), "str", "run in which a stimulus was shown"),
            "event_onset": Array(("event",), "f8", "onset from the start of the run, s"),
            "event_duration": Array(("event",), "f8", "duration, s"),
            "event_stimulus": Array(("event",), "str", "stimulus id"),
            **_GEOMETRY,
        },
        attrs=("affine", "shape", "space", "TR", "subject", "task"),
    ),
    "features": Spec(
        doc="Responses of a model's layers to the stimuli, one group a layer",
        groups=True,
        block="stimulus",
        compressed=False,
        arrays={
            "activation": Array(("stimulus", ...), "f4", "response of the layer's units"),
            "stimulus": Array(("stimulus",), "str", "stimulus id"),
            "source": Array(
                ("stimulus",), "str", "stimulus file that the sample is from", required=False
            ),
            "time": Array(
                ("stimulus",),
                "f8",
                "start of the sample's window from the stimulus' start, s",
                required=False,
            ),
            "duration": Array(("stimulus",), "f8", "length of the window, s", required=False),
        },
        attrs=("model", "layer", "weights", "preprocessing"),
    ),
    "rdms": Spec(
        doc="Representational dissimilarity matrices of one subject's regions",
        arrays={
            "dissimilarity": Array(("region", "pair"), "f8", "dissimilarity of two stimuli"),
            "region": Array(("region",), "str", "name of the region"),
            "stimulus_i": Array(("pair",), "str", "first stimulus of the pair"),
            "stimulus_j": Array(("pair",), "str", "second stimulus of the pair"),
            "n_voxels": Array(("region",), "i4", "voxels that were used", required=False),
        },
        attrs=("subject", "task", "measure", "noise_normalisation", "cross_validation"),
    ),
    "model_rdms": Spec(
        doc="Representational dissimilarity matrices of a model's layers",
        arrays={
            "dissimilarity": Array(("layer", "pair"), "f8", "dissimilarity of two stimuli"),
            "layer": Array(("layer",), "str", "name of the layer"),
            "stimulus_i": Array(("pair",), "str", "first stimulus of the pair"),
            "stimulus_j": Array(("pair",), "str", "second stimulus of the pair"),
        },
        attrs=("model", "measure"),
    ),
    "scores": Spec(
        doc="Agreement of brain and model RDMs, with noise ceilings and inference",
        arrays={
            "score": Array(
                ("comparison", "predictor", "region", "subject"), "f8", "score of each subject"
            ),
            "mean": Array(("comparison", "predictor", "region"), "f8", "mean over subjects"),
            "interval_low": Array(
                ("comparison", "predictor", "region"), "f8", "lower end of the interval"
            ),
            "interval_high": Array(
                ("comparison", "predictor", "region"), "f8", "upper end of the interval"
            ),
            "p": Array(("comparison", "predictor", "region"), "f8", "p-value against 0"),
            "p_corrected": Array(
                ("comparison", "predictor", "region"), "f8", "p-value corrected for all tests"
            ),
            "ceiling_low": Array(("comparison", "region"), "f8", "lower noise ceiling"),
            "ceiling_high": Array(("comparison", "region"), "f8", "upper noise ceiling"),
            "best_predictor": Array(("comparison", "region"), "str", "best model/layer"),
            **_optional(
                ("comparison", "predictor", "region"),
                {
                    "p_fdr": "p-value against 0, false discovery rate over all tests",
                    "p_fwe": "p-value against 0, family-wise over all tests (Holm)",
                    "p_permutation": "p-value of permuted stimulus labels, one-sided",
                    "p_permutation_fwe": "the same, family-wise (largest standardised mean)",
                    "p_ceiling": "p-value against the lower noise ceiling, two-sided; of fitted "
                    "predictors against the cross-validated one. A model that misses nothing "
                    "scores above it",
                },
            ),
            **_optional(
                ("comparison", "region"),
                {
                    "ceiling_low_low": "lower end of the lower noise ceiling's interval",
                    "ceiling_low_high": "upper end of the lower noise ceiling's interval",
                    "ceiling_high_low": "lower end of the upper noise ceiling's interval",
                    "ceiling_high_high": "upper end of the upper noise ceiling's interval",
                    "ceiling_cv_low": "lower noise ceiling of held-out stimuli and subjects",
                    "ceiling_cv_high": "upper noise ceiling of held-out stimuli",
                },
            ),
            **_optional(
                ("comparison", "predictor", "other", "region"),
                {
                    "difference": "mean score of predictor less that of other",
                    "difference_p": "p-value of the difference, two-sided",
                    "difference_p_fdr": "the same, false discovery rate over a region's pairs",
                    "difference_p_fwe": "the same, family-wise over a region's pairs (Holm)",
                },
            ),
            "kind": Array(
                ("predictor",), "str", "fixed, weighted, selected or interpolated", required=False
            ),
            "other": Array(("other",), "str", "second predictor of a pair", required=False),
            "weight": Array(
                ("comparison", "predictor", "region", "source"),
                "f8",
                "weight of a layer's RDM in a fitted predictor, fitted to all subjects and stimuli "
                "(the scores are of fits to others); NaN where it is no part of it",
                required=False,
            ),
            "source": Array(("source",), "str", "layer, model/layer", required=False),
            "comparison": Array(("comparison",), "str", "how RDMs were compared"),
            "region": Array(("region",), "str", "name of the region"),
            "subject": Array(("subject",), "str", "subject label"),
            **_PREDICTOR,
        },
        attrs=("measure", "task", "bootstrap", "n_bootstrap", "seed"),
    ),
    "partition": Spec(
        doc="Shares of the variance of brain RDMs that models explain alone and together",
        arrays={
            "variance": Array(
                ("part", "region", "subject"), "f8", "share of variance of exactly these models"
            ),
            "mean": Array(("part", "region"), "f8", "mean share over subjects"),
            "interval_low": Array(("part", "region"), "f8", "lower end of the interval"),
            "interval_high": Array(("part", "region"), "f8", "upper end of the interval"),
            "p": Array(
                ("part", "region"),
                "f8",
                "p-value: of one model's part one-sided, of the signed semi-partial correlation; "
                "of shared parts two-sided, against the share under permuted stimulus labels",
            ),
            "chance": Array(("part", "region"), "f8", "mean share under permuted stimulus labels"),
            "p_fdr": Array(("part", "region"), "f8", "false discovery rate over all parts"),
            "p_fwe": Array(("part", "region"), "f8", "family-wise over all parts (Holm)"),
            "p_permutation": Array(("part", "region"), "f8", "p-value of permuted stimulus labels"),
            "partial": Array(
                ("model", "region", "subject"),
                "f8",
                "correlation with the model, the other models taken out of both",
            ),
            "partial_mean": Array(("model", "region"), "f8", "mean partial correlation"),
            "partial_low": Array(("model", "region"), "f8", "lower end of the interval"),
            "partial_high": Array(("model", "region"), "f8", "upper end of the interval"),
            "partial_p": Array(("model", "region"), "f8", "p-value against 0, one-sided"),
            "partial_p_permutation": Array(
                ("model", "region"), "f8", "p-value of permuted stimulus labels of the model"
            ),
            "partial_p_fdr": Array(("model", "region"), "f8", "false discovery rate over all"),
            "partial_p_fwe": Array(("model", "region"), "f8", "family-wise over all (Holm)"),
            "total": Array(("region", "subject"), "f8", "share of variance of all models"),
            "total_mean": Array(("region",), "f8", "mean over subjects"),
            "part": Array(("part",), "str", "models that share it, joined by +"),
            "model": Array(("model",), "str", "predictor, or model whose layers go together"),
            "region": Array(("region",), "str", "name of the region"),
            "subject": Array(("subject",), "str", "subject label"),
        },
        attrs=("measure", "task", "comparison", "bootstrap", "n_bootstrap", "seed", "flags"),
    ),
    "searchlight": Spec(
        doc="Scores of models at every searchlight centre of one subject",
        block="voxel",
        arrays={
            "score": Array(("predictor", "voxel"), "f4", "agreement of RDMs at the centre"),
            "n_voxels": Array(("voxel",), "i4", "voxels in the neighbourhood"),
            **_PREDICTOR,
            **_GEOMETRY,
        },
        attrs=("affine", "shape", "space", "subject", "task", "comparison", "radius"),
    ),
    "searchlight_group": Spec(
        doc="Searchlight scores over subjects",
        block="voxel",
        arrays={**_group_maps("voxel"), **_PREDICTOR, **_GEOMETRY},
        attrs=("affine", "shape", "space", "task", "comparison", "radius"),
    ),
    "searchlight_surface": Spec(
        doc="Scores of models at every vertex of one subject's template surface",
        block="vertex",
        arrays={
            "score": Array(("predictor", "vertex"), "f4", "agreement of RDMs at the centre"),
            "n_voxels": Array(("vertex",), "i4", "vertices in the neighbourhood"),
            **_PREDICTOR,
            **_VERTEX,
        },
        attrs=("mesh", "n_vertices", "subject", "task", "comparison", "radius"),
    ),
    "searchlight_surface_group": Spec(
        doc="Surface searchlight scores over subjects",
        block="vertex",
        arrays={**_group_maps("vertex"), **_PREDICTOR, **_VERTEX},
        attrs=("mesh", "n_vertices", "task", "comparison", "radius"),
    ),
    "identification": Spec(
        doc="Identification of held-out subjects' regions by each summary statistic",
        arrays=_identified("subject", "region"),
        attrs=(*_TOPOLOGICAL, "chance", "task", "flag", "regions_left_out"),
    ),
    "layer_identification": Spec(
        doc="Identification of the layers of left-out seeds of a network, noise added to the RDMs",
        arrays={
            **_identified("seed", "layer", "noise"),
            "noise": Array(("noise",), "f8", "noise added, SD of an RDM's entries"),
            "draws": Array(("noise",), "i4", "draws of the noise"),
        },
        attrs=(*_TOPOLOGICAL, "network", "chance", "flag", "layers_left_out"),
    ),
    "topology": Spec(
        doc="Agreement of brain and model geo-topological statistics",
        arrays={
            "score": Array(("statistic", "predictor", "region"), "f8", "mean over subjects"),
            "score_subject": Array(
                ("statistic", "predictor", "region", "subject"), "f8", "score of each subject"
            ),
            "interval_low": Array(
                ("statistic", "predictor", "region"), "f8", "lower end of the interval"
            ),
            "interval_high": Array(
                ("statistic", "predictor", "region"), "f8", "upper end of the interval"
            ),
            "p": Array(("statistic", "predictor", "region"), "f8", "p-value against 0"),
            "p_corrected": Array(
                ("statistic", "predictor", "region"), "f8", "p-value corrected within a statistic"
            ),
            "n_pairs": Array(("statistic",), "i4", "pairs of stimuli that were used"),
            "best_predictor": Array(("statistic", "region"), "str", "best model/layer"),
            **_STATISTIC,
            "region": Array(("region",), "str", "name of the region"),
            "subject": Array(("subject",), "str", "subject label"),
            **_PREDICTOR,
        },
        attrs=(*_TOPOLOGICAL, "comparison", "task"),
    ),
    "dependence": Spec(
        doc="Adaptive geo-topological dependence of brain RDMs on model RDMs (AGTDM)",
        arrays={
            "agtdm": Array(
                ("predictor", "region", "subject"),
                "f8",
                "distance correlation at the thresholds chosen for the mean over subjects",
            ),
            "agtdm_subject": Array(
                ("predictor", "region", "subject"),
                "f8",
                "largest distance correlation of the subject, at thresholds of its own",
            ),
            "p_subject": Array(
                ("predictor", "region", "subject"), "f8", "p-value of agtdm_subject, by permutation"
            ),
            "mean": Array(
                ("predictor", "region"), "f8", "largest mean over subjects; compare with null_mean"
            ),
            "null_mean": Array(
                ("predictor", "region"), "f8", "mean over permutations of the largest mean"
            ),
            "p": Array(("predictor", "region"), "f8", "p-value of the mean, maximised anew"),
            "p_corrected": Array(
                ("predictor", "region"),
                "f8",
                "p-value corrected over predictors and regions (largest standardised mean)",
            ),
            "lower_brain": Array(("predictor", "region"), "f8", "quantile l of the brain's RDMs"),
            "upper_brain": Array(("predictor", "region"), "f8", "quantile u of the brain's RDMs"),
            "lower_model": Array(("predictor", "region"), "f8", "quantile l of the model's RDM"),
            "upper_model": Array(("predictor", "region"), "f8", "quantile u of the model's RDM"),
            "distance_correlation": Array(
                ("predictor", "region"), "f8", "mean over subjects without thresholds (0, 1)"
            ),
            "p_distance_correlation": Array(
                ("predictor", "region"), "f8", "p-value of distance_correlation, by permutation"
            ),
            "region": Array(("region",), "str", "name of the region"),
            "subject": Array(("subject",), "str", "subject label"),
            **_PREDICTOR,
        },
        attrs=(
            "scale",
            "threshold",
            "levels",
            "bias_corrected",
            "permutations",
            "measure",
            "task",
            "flags",
        ),
    ),
    "persistence": Spec(
        doc="Persistent homology of regions' RDMs (Vietoris-Rips), in dimensions 0 and 1",
        arrays={
            "betti": Array(
                ("dimension", "threshold", "region", "subject"), "f8", "bars at the threshold"
            ),
            "total_persistence": Array(
                ("dimension", "region", "subject"), "f8", "sum of the bars' lengths"
            ),
            "longest": Array(("dimension", "region", "subject"), "f8", "length of the longest bar"),
            "entropy": Array(
                ("dimension", "region", "subject"), "f8", "entropy of the bars' lengths, nats"
            ),
            "n_bars": Array(("dimension", "region", "subject"), "f8", "bars of any length"),
            "distance": Array(
                ("dimension", "region", "other"), "f8", "diagrams' distance, mean over subjects"
            ),
            "distance_low": Array(
                ("dimension", "region", "other"), "f8", "lower end of the interval over subjects"
            ),
            "distance_high": Array(
                ("dimension", "region", "other"), "f8", "upper end of the interval over subjects"
            ),
            "distance_subject": Array(
                ("dimension", "region", "other", "subject"),
                "f8",
                "distance of two regions' diagrams within a subject",
            ),
            "distance_across": Array(
                ("dimension", "region", "other"),
                "f8",
                "distance between different subjects, mean over pairs; the same region too",
            ),
            "ratio": Array(
                ("dimension",), "f8", "same over other regions' distance between subjects"
            ),
            "difference": Array(
                ("dimension", "region", "other"),
                "f8",
                "total persistence of region less that of other, mean over subjects",
            ),
            "difference_low": Array(
                ("dimension", "region", "other"), "f8", "lower end of the interval over subjects"
            ),
            "difference_high": Array(
                ("dimension", "region", "other"), "f8", "upper end of the interval over subjects"
            ),
            "accuracy": Array(("dimension",), "f8", "share of regions identified by diagrams"),
            "accuracy_low": Array(("dimension",), "f8", "lower end of the interval"),
            "accuracy_high": Array(("dimension",), "f8", "upper end of the interval"),
            "accuracy_subject": Array(("dimension", "subject"), "f8", "share in one subject"),
            "p": Array(("dimension",), "f8", "p-value against chance, by permutation"),
            "p_corrected": Array(
                ("dimension",), "f8", "p-value corrected for both dimensions (largest accuracy)"
            ),
            "confusion": Array(
                ("dimension", "region", "other"), "i4", "count of region taken for other"
            ),
            "dimension": Array(("dimension",), "str", "H0 (components) or H1 (loops)"),
            "threshold": Array(("threshold",), "f8", "value of the filtration, 0 to 1"),
            "region": Array(("region",), "str", "name of the region"),
            "other": Array(("other",), "str", "second region of a pair"),
            "subject": Array(("subject",), "str", "subject label"),
        },
        attrs=("filtration", "distance", "measure", "task", "chance", "flag"),
    ),
    "encoding": Spec(
        doc="Prediction of one subject's responses from the layers of one model",
        block="voxel",
        arrays={
            "score": Array(("layer", "voxel"), "f4", "held-out Pearson r, mean over folds"),
            "score_normalised": Array(
                ("layer", "voxel"), "f4", "score over the noise ceiling's correlation"
            ),
            **_optional(
                ("layer", "voxel"),
                {
                    "r2": "held-out coefficient of determination, mean over folds",
                    "r2_normalised": "r2 over the explainable share of variance",
                    "fraction": "norm of the weights over that without a penalty, mean over folds",
                    "p": "p-value of r, one-sided, of fits to permuted responses",
                    "p_fdr": "the same, false discovery rate over a layer's voxels",
                    "p_fwe": "the same, family-wise over voxels and layers (largest r)",
                },
                kind="f4",
            ),
            "agreement": Array(
                ("layer", "region", "stimulus"),
                "f4",
                "what a stimulus adds to the mean r of a region's voxels: sums to it over "
                "stimuli, and weighted by how often a bootstrap sample draws each stimulus sums "
                "to the sample's r to first order",
                required=False,
            ),
            "region": Array(("region",), "str", "name of the region", required=False),
            "stimulus": Array(("stimulus",), "str", "stimulus or volume id", required=False),
            "prediction": Array(
                ("layer", "sample", "voxel"),
                "f4",
                "response predicted by a model that was not trained on it; NaN where not tested",
                required=False,
            ),
            "sample": Array(("sample",), "str", "stimulus or volume id", required=False),
            "sample_run": Array(("sample",), "str", "run of the sample", required=False),
            "sample_index": Array(
                ("sample",), "i4", "number of the trial or volume in its store", required=False
            ),
            "alpha": Array(("layer", "voxel"), "f4", "penalty, geometric mean over folds"),
            "best_layer": Array(("voxel",), "i2", "index of the best layer, -1 where none"),
            "noise_ceiling": Array(("voxel",), "f4", "highest correlation to be expected"),
            "layer": Array(("layer",), "str", "name of the layer"),
            **_GEOMETRY,
        },
        attrs=("affine", "shape", "space", "subject", "task", "model", "folds", "device"),
    ),
    "encoding_weights": Spec(
        doc="Weights of ridge regression on all of one subject's samples, one group a layer",
        groups=True,
        block="voxel",
        arrays={
            "weight": Array(
                ("unit", "voxel"),
                "f4",
                "weight of (feature - centre) x scale; predicts the centred response",
                required=False,
            ),
            "dual": Array(
                ("stimulus", "voxel"),
                "f4",
                "weight of the inner product with a stimulus' (feature - centre) x scale: the "
                "units' weights are these stimuli's scaled features, transposed, times it",
                required=False,
            ),
            "centre": Array(("unit",), "f8", "mean of the unit over the samples"),
            "scale": Array(
                ("unit",), "f8", "1 / (SD x root of the number of units that vary), 0 for constant"
            ),
            "stimulus": Array(("stimulus",), "str", "stimulus or volume id", required=False),
            **_GEOMETRY,
        },
        attrs=("affine", "shape", "space", "subject", "task", "model", "layer"),
    ),
    "readout": Spec(
        doc="Prediction of one subject's responses from a model's feature maps by a readout",
        block="voxel",
        arrays={
            "score": Array(("voxel",), "f4", "held-out Pearson r, mean over folds"),
            "r2": Array(("voxel",), "f4", "held-out coefficient of determination, mean over folds"),
            "score_normalised": Array(
                ("voxel",), "f4", "score over the noise ceiling's correlation"
            ),
            "noise_ceiling": Array(("voxel",), "f4", "highest correlation to be expected"),
            "layer_weight": Array(
                ("layer", "voxel"),
                "f4",
                "share of a layer in the variance of the prediction, 0 to 1, mean over folds",
            ),
            "preferred_layer": Array(
                ("voxel",), "i2", "index of the layer with the largest share, -1 where none"
            ),
            **_optional(
                ("voxel",),
                {
                    "x": "centre of the receptive field to the right of the image's centre, in "
                    "field_units",
                    "y": "the same upwards",
                    "size": "size of the receptive field (standard deviation), in field_units",
                    "shift": "how far the content moves the receptive field, mean over tested "
                    "stimuli, in field_units",
                },
                kind="f4",
            ),
            **_optional(
                ("query", "row", "column"),
                {"attention": "mean attention over tested stimuli and folds, sum 1 over the image"},
                kind="f4",
            ),
            "query": Array(("query",), "str", "region or voxel that attends", required=False),
            "training_loss": Array(
                ("fold", "epoch"), "f8", "mean squared error of standardised responses in training"
            ),
            "validation_loss": Array(
                ("fold", "epoch"), "f8", "the same of the rows that training is stopped by"
            ),
            "n_epochs": Array(("fold",), "i4", "epochs that were trained"),
            "layer": Array(("layer",), "str", "name of the layer"),
            **_GEOMETRY,
        },
        attrs=(
            "affine",
            "shape",
            "space",
            "subject",
            "task",
            "model",
            "name",
            "kind",
            "folds",
            "device",
            "field_units",
        ),
    ),
    "universal": Spec(
        doc="Prediction of all subjects' responses by one network with an embedding a voxel",
        block="location",
        arrays={
            "score": Array(("location",), "f4", "held-out Pearson r, mean over folds"),
            "r2": Array(
                ("location",), "f4", "held-out coefficient of determination, mean over folds"
            ),
            "score_normalised": Array(
                ("location",), "f4", "score over the noise ceiling's correlation"
            ),
            "r2_normalised": Array(("location",), "f4", "r2 over the noise ceiling's share"),
            "noise_ceiling": Array(("location",), "f4", "highest correlation to be expected"),
            "embedding": Array(
                ("component", "location"), "f4", "of the network trained on all stimuli"
            ),
            "layer_weight": Array(
                ("layer", "location"),
                "f4",
                "share of a layer in the variance of that network's prediction, 0 to 1",
            ),
            "training_loss": Array(
                ("fold", "epoch"),
                "f8",
                "mean squared error of standardised responses in training; the last fold has all "
                "stimuli",
            ),
            "validation_loss": Array(
                ("fold", "epoch"), "f8", "the same of the stimuli that training is stopped by"
            ),
            "n_epochs": Array(("fold",), "i4", "epochs that were trained"),
            "layer": Array(("layer",), "str", "name of the layer"),
            "subject": Array(("location",), "str", "whose voxel the location is"),
            "i": Array(("location",), "i4", "first index of the voxel in the subject's volume"),
            "j": Array(("location",), "i4", "second index of the voxel in the subject's volume"),
            "k": Array(("location",), "i4", "third index of the voxel in the subject's volume"),
        },
        attrs=(
            "affine",
            "shape",
            "space",
            "task",
            "model",
            "name",
            "subjects",
            "new_subjects",
            "folds",
            "device",
        ),
    ),
    "encoding_joint": Spec(
        doc="Prediction of one subject's responses from several feature spaces together",
        block="voxel",
        arrays={
            "score": Array(("voxel",), "f4", "held-out Pearson r, mean over folds"),
            "r2": Array(("voxel",), "f4", "held-out coefficient of determination, mean over folds"),
            "score_normalised": Array(
                ("voxel",), "f4", "score over the noise ceiling's correlation"
            ),
            "r2_normalised": Array(("voxel",), "f4", "r2 over the explainable share of variance"),
            "product_measure": Array(
                ("space", "voxel"), "f4", "share of the space in r2; the shares sum to r2"
            ),
            "unique": Array(
                ("space", "voxel"), "f4", "r2 that is lost without the space", required=False
            ),
            "space_score": Array(
                ("space", "voxel"),
                "f4",
                "held-out r of the space's part of the prediction (stacking: of its own ridge)",
            ),
            "weight": Array(
                ("space", "voxel"),
                "f4",
                "banded: log of the space's share gamma of the kernel weights, mean over folds; "
                "stacking: weight of its prediction, 0 to 1",
            ),
            "alpha": Array(("voxel",), "f4", "penalty, geometric mean over folds", required=False),
            "space_alpha": Array(
                ("space", "voxel"),
                "f4",
                "stacking: penalty of the space's own ridge, geometric mean over folds",
                required=False,
            ),
            "noise_ceiling": Array(("voxel",), "f4", "highest correlation to be expected"),
            "space": Array(("space",), "str", "name of the feature space"),
            "source": Array(("space",), "str", "its model or model/layer"),
            **_GEOMETRY,
        },
        attrs=(
            "affine",
            "shape",
            "space",
            "subject",
            "task",
            "model",
            "joint",
            "method",
            "folds",
            "device",
        ),
    ),
    "encoding_summary": Spec(
        doc="Encoding scores by region and over subjects",
        arrays={
            "score": Array(
                ("predictor", "region", "subject"), "f8", "mean r over responsive voxels"
            ),
            "score_normalised": Array(
                ("predictor", "region", "subject"), "f8", "mean ceiling-normalised r"
            ),
            "mean": Array(("predictor", "region"), "f8", "mean r over subjects"),
            "interval_low": Array(("predictor", "region"), "f8", "lower end of the interval"),
            "interval_high": Array(("predictor", "region"), "f8", "upper end of the interval"),
            "p": Array(("predictor", "region"), "f8", "p-value against 0"),
            "p_corrected": Array(("predictor", "region"), "f8", "corrected p-value"),
            "n_subjects": Array(("predictor", "region"), "i4", "subjects with a score"),
            "best_predictor": Array(("region",), "str", "best model/layer"),
            "n_voxels": Array(("region", "subject"), "i4", "responsive voxels"),
            "region": Array(("region",), "str", "name of the region"),
            "subject": Array(("subject",), "str", "subject label"),
            **_optional(
                ("predictor", "region", "subject"),
                {
                    "r2": "mean held-out coefficient of determination",
                    "r2_normalised": "the same over the explainable share of variance",
                },
            ),
            "model_score": Array(
                ("candidate", "region", "subject"),
                "f8",
                "mean r at the layer that is best on average over the other subjects",
                required=False,
            ),
            **_optional(
                ("candidate", "region"),
                {"model_layer": "the candidate's best layer on average over all subjects"},
                kind="str",
            ),
            **_optional(
                ("candidate", "subject"),
                {"spatial_score": "correlation over regions of depth with place in the hierarchy"},
            ),
            **_optional(
                ("candidate",),
                {
                    "spatial_mean": "mean spatial score over subjects",
                    "spatial_low": "lower end of its interval",
                    "spatial_high": "upper end of its interval",
                    "spatial_p": "one-sided p-value of the spatial score",
                    "spatial_p_corrected": "the same corrected over candidates",
                },
            ),
            "region_place": Array(
                ("region",), "f8", "place in the hierarchy from 1 on, NaN: none", required=False
            ),
            **_optional(
                ("candidate", "other", "region"),
                {
                    "difference": "mean over subjects of model_score of candidate minus other",
                    "difference_low": "lower end of its interval over subjects",
                    "difference_high": "upper end of its interval over subjects",
                    "difference_p": "two-sided p-value over subjects",
                    "difference_p_fdr": "the same, false discovery rate over pairs and regions",
                    "difference_p_fwe": "the same, Holm over pairs and regions",
                    "stimulus_difference": "difference, of the subjects whose encoding stores "
                    "say what each stimulus adds",
                    "stimulus_difference_low": "lower end of its interval over stimuli",
                    "stimulus_difference_high": "upper end of its interval over stimuli",
                    "stimulus_difference_p": "two-sided p-value over stimuli",
                    "stimulus_difference_p_fdr": "the same, false discovery rate",
                    "stimulus_difference_p_fwe": "the same, Holm",
                },
            ),
            **_optional(
                ("factor", "region"),
                {
                    "family_slope": "change of model_score by a tenfold factor, mean over subjects",
                    "family_rho": "Spearman correlation of model_score with the factor over "
                    "candidates, mean over subjects",
                    "family_p": "two-sided p-value of the slope over subjects",
                    "family_p_models": "two-sided p-value of the correlation over candidates",
                },
            ),
            **_optional(
                ("factor",),
                {
                    "family_spatial_slope": "change of the spatial score by a tenfold factor",
                    "family_spatial_rho": "its Spearman correlation with the factor",
                    "family_spatial_p": "two-sided p-value of that slope over subjects",
                    "family_spatial_p_models": "two-sided p-value over candidates",
                },
            ),
            "family_value": Array(
                ("factor", "candidate"), "f8", "the factor, NaN where not given", required=False
            ),
            **{
                key: Array((key,), "str", doc, required=False)
                for key, doc in {
                    "candidate": "model, joint/name or readout/name",
                    "other": "the candidates again",
                    "factor": "name of the factor",
                }.items()
            },
            **_PREDICTOR,
        },
        attrs=("task",),
    ),
}


def _kind(array: xr.DataArray) -> str:
    dtype = array.dtype
    if dtype.kind in "OUT":
        return "str"
    if dtype.kind == "b":
        return "bool"
    return f"{dtype.kind}{dtype.itemsize}"


def check(dataset: xr.Dataset, spec: str, *, where: str = "") -> None:
    """Raise `ValueError` where a dataset is not what its spec says.

    Arrays that the spec does not name are refused too, so that nothing undocumented is stored.
    """
    wanted = SPECS[spec]
    name = where or f"a {spec} store"
    arrays = {**dataset.data_vars, **dataset.coords}
    for key, array in wanted.arrays.items():
        if key not in arrays:
            if array.required:
                raise ValueError(f"{name}: array {key!r} of spec {spec!r} is missing")
            continue
        have = arrays[key]
        if array.dims and array.dims[-1] is ...:
            fits = tuple(have.dims[: len(array.dims) - 1]) == array.dims[:-1]
        else:
            fits = tuple(have.dims) == array.dims
        if not fits:
            raise ValueError(f"{name}: {key!r} has dims {have.dims}, spec {spec!r} {array.dims}")
        if _kind(have) != array.kind:
            raise ValueError(
                f"{name}: {key!r} is of type {have.dtype}, spec {spec!r} says {array.kind}"
            )
    for key in arrays:
        if key not in wanted.arrays:
            raise ValueError(f"{name}: array {key!r} is not in spec {spec!r}")
    for key in wanted.attrs:
        if key not in dataset.attrs:
            raise ValueError(f"{name}: attribute {key!r} of spec {spec!r} is missing")


def _block_size(array: xr.DataArray | np.ndarray, axis: int, target: int) -> int:
    """Return how many entries along an axis make about ``target`` bytes."""
    one = array.dtype.itemsize * int(np.prod(array.shape)) // max(array.shape[axis], 1)
    return max(1, min(array.shape[axis], target // max(one, 1)))


def _cut(spec: Spec, array: xr.DataArray | np.ndarray, axis: int) -> tuple[int, int]:
    """Return how many entries along an axis make a chunk and a shard."""
    chunk = _block_size(array, axis, CHUNK_BYTES)
    most = (spec.shard_bytes or SHARD_BYTES) // CHUNK_BYTES
    return chunk, chunk * max(1, min(most, -(-array.shape[axis] // chunk)))


def shard_length(spec: str, shape: Sequence[int], dtype: str = "f4") -> int:
    """Return how many entries of an array's last dimension are written at once.

    Dask blocks of this length are written as they are; others are joined or cut first, which takes
    memory.
    """
    empty = np.broadcast_to(np.zeros((), dtype=dtype), tuple(shape))
    return _cut(SPECS[spec], empty, len(shape) - 1)[1]


def _prepare(dataset: xr.Dataset, spec: Spec) -> tuple[xr.Dataset, dict[str, dict[str, Any]]]:
    """Return the dataset as it is written, documented and cut, with its encodings."""
    out = dataset.copy(deep=False)
    encoding: dict[str, dict[str, Any]] = {}
    for key in list(out.variables):
        array = out[key].copy(deep=False)
        array.encoding = {}
        array.attrs = {**array.attrs, "doc": spec.arrays[key].doc}
        if _kind(array) == "str":
            # One kind of text: variable-length, which Zarr 3 reads everywhere.
            values = np.asarray(array.values, dtype=object)
            values = np.array([str(v) for v in values.ravel()], dtype=np.dtypes.StringDType())
            array = xr.DataArray(values.reshape(array.shape), dims=array.dims, attrs=array.attrs)
            if key in out.dims:
                array = array.assign_coords({key: (key, values, array.attrs)})
                out = out.assign_coords({key: (key, values, array.attrs)})
            elif key in out.coords:
                out = out.assign_coords({key: array})
            else:
                out[key] = array
            encoding[key] = {}
            continue
        if array.ndim and array.size:
            block = spec.block if spec.block in array.dims else array.dims[-1]
            axis = array.dims.index(block)
            chunk, shard = _cut(spec, array, axis)
            chunks = tuple(chunk if a == axis else n for a, n in enumerate(array.shape))
            shards = tuple(shard if a == axis else n for a, n in enumerate(array.shape))
            encoding[key] = {"chunks": chunks}
            if not spec.compressed:
                encoding[key]["compressors"] = None
            if shards != chunks:
                encoding[key]["shards"] = shards
            if array.chunks is not None:
                # Blocks that do not line up with shards write wrong cells without a word.
                array = array.chunk(dict(zip(array.dims, shards)))
        if key in out.coords:
            out = out.assign_coords({key: array.variable})
        else:
            out[key] = array.variable
    return out, encoding


def write(
    dataset: xr.Dataset | Mapping[str, xr.Dataset],
    path: str | Path,
    *,
    spec: str,
    sources: Sequence[str | Path] = (),
    code: str = "",
) -> Path:
    """Write a store and its manifest, whole or not at all.

    Parameters
    ----------
    dataset
        What the spec says; a mapping writes one group a key, in the mapping's order.
    path
        The store, ``….zarr``; the manifest is the same name with ``.json``.
    spec
        Name of an entry of `SPECS`.
    sources
        Files that it was made from, for its provenance.
    code
        The rule's code version, for its provenance.

    Returns
    -------
    pathlib.Path
        The manifest.

    Raises
    ------
    ValueError
        Where the dataset does not fit the spec.
    """

    path = Path(path)
    parts = _parts(dataset, path, spec)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = provenance.temporary_beside(path)
    path.with_suffix(".json").unlink(missing_ok=True)
    try:
        _write_parts(parts, temporary, spec)
        return _put_in_place(temporary, path, spec, sources=sources, code=code)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _parts(
    dataset: xr.Dataset | Mapping[str, xr.Dataset], path: Path, spec: str
) -> dict[str, xr.Dataset]:
    """Return a store's datasets by group (``""`` where there are none), checked."""
    wanted = SPECS[spec]
    parts = dict(dataset) if isinstance(dataset, Mapping) and wanted.groups else {"": dataset}
    if wanted.groups and "" in parts:
        raise ValueError(f"{path}: spec {spec!r} is written as a mapping of groups")
    for name, part in parts.items():
        check(part, spec, where=f"{path}{':' + name if name else ''}")
    return parts


def _write_parts(
    parts: Mapping[str, xr.Dataset], folder: Path, spec: str, *, compute: bool = True
) -> None:
    """Write datasets into a folder; not the values of dask arrays where ``compute`` is false."""
    import zarr

    wanted = SPECS[spec]
    root_attrs = {"spec": spec, "spec_version": wanted.version, "doc": wanted.doc}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if wanted.groups:
            root = zarr.open_group(folder, mode="w", zarr_format=3)
            root.attrs.update(root_attrs | {"groups": list(parts)})
        for name, part in parts.items():
            ready, encoding = _prepare(part, wanted)
            ready.attrs = _plain({**part.attrs, **({} if wanted.groups else root_attrs)})
            ready.to_zarr(
                folder,
                group=name or None,
                mode="a" if wanted.groups else "w",
                zarr_format=3,
                consolidated=False,
                encoding=encoding,
                compute=compute,
            )


def _put_in_place(
    temporary: Path,
    path: Path,
    spec: str,
    *,
    sources: Sequence[str | Path],
    code: str,
    known: Mapping[str, bytes] | None = None,
) -> Path:
    """Consolidate what was written, give it its name and write its manifest."""
    import zarr

    manifest = path.with_suffix(".json")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(temporary)
    digest = provenance.directory_digest(temporary, known=known)
    provenance.replace_with(temporary, path)
    provenance.write_provenance(manifest, sources=sources, code=code)
    provenance.write_json(
        manifest, {"spec": spec, "spec_version": SPECS[spec].version, "content": digest}
    )
    return manifest


class Stream:
    """A store of groups that is written a few rows at a time.

    The bytes are those that `write` gives, of finite values. They lie in a hidden folder beside
    the store until `finish`, with all rows that were appended: a stream of the same key goes on
    behind them, also after its process was killed. Rows that do not fill a shard wait in files of
    their own.

    Parameters
    ----------
    path
        The store.
    spec
        Name of a spec with groups; rows are along its block dimension.
    key
        A digest of all that the content follows from. What a stream of another key left is
        removed.

    Attributes
    ----------
    rows
        How many rows there are.
    notes
        What `begin` was given to keep; empty before.
    """

    def __init__(self, path: str | Path, *, spec: str, key: str) -> None:
        self.path, self.spec = Path(path), spec
        self.folder = self.path.with_name(f".{self.path.name}.unfinished")
        self._content = self.folder / "content"
        self._key = key
        self.rows = 0
        self.notes: dict[str, Any] = {}
        self._arrays: dict[str, Any] = {}
        self._digests: dict[str, bytes] = {}
        self._digests_of_waiting: dict[Path, Any] = {}
        self._waiting: set[Path] = set()
        state = self._state()
        if state is None:
            self.discard()
            return
        self.rows, self.notes = state["rows"], state["notes"]
        self._open(state["groups"])
        # What a write left that was cut short, and rows that no longer wait.
        for left in self._content.rglob("*.partial"):
            left.unlink()
        for file in self.folder.glob("*.rows"):
            start, stop = map(int, file.stem.split("-")[1:])
            if start <= self.rows < stop:
                self._waiting.add(file)
            else:
                file.unlink()

    def _state(self) -> dict[str, Any] | None:
        """Return how far a stream of the same key came, None where there is none."""
        try:
            state = json.loads((self.folder / "progress.json").read_text())
        except (OSError, ValueError):
            return None
        return state if state.get("key") == self._key else None

    @property
    def begun(self) -> bool:
        """Whether the arrays are there."""
        return bool(self._arrays)

    def begin(
        self, parts: Mapping[str, xr.Dataset], *, notes: Mapping[str, Any] | None = None
    ) -> None:
        """Make the arrays: dask arrays are made empty, others are written.

        Parameters
        ----------
        parts
            What the spec says, by group; each with one dask array, whose values are not used.
        notes
            What a stream that goes on has to know, JSON.
        """
        self.discard()
        self.folder.mkdir(parents=True)
        _write_parts(_parts(parts, self.path, self.spec), self._content, self.spec, compute=False)
        names = {
            group: next(key for key, array in part.variables.items() if array.chunks is not None)
            for group, part in parts.items()
        }
        self.notes = dict(notes or {})
        self._open(names)
        self._keep()

    def _open(self, names: Mapping[str, str]) -> None:
        import zarr

        self._names = dict(names)
        self._arrays = {
            group: zarr.open_array(self._content / group / name, mode="r+")
            for group, name in names.items()
        }

    def _keep(self) -> None:
        provenance.write_json(
            self.folder / "progress.json",
            {"key": self._key, "rows": self.rows, "notes": self.notes, "groups": self._names},
        )

    def append(self, values: Mapping[str, np.ndarray]) -> None:
        """Write the next rows of every group; they count once all of them are there."""
        (count,) = {len(rows) for rows in values.values()}
        if values.keys() != self._arrays.keys():
            raise ValueError(f"{self.path}: rows of {list(values)}, not of {list(self._arrays)}")
        over: set[Path] = set()
        for place, (group, rows) in enumerate(values.items()):
            over |= self._put(place, group, rows)
        self.rows += count
        self._keep()
        for file in over:
            file.unlink(missing_ok=True)
            self._waiting.discard(file)

    def _put(self, place: int, group: str, rows: np.ndarray) -> set[Path]:
        """Write rows of one group; return the files of waiting rows that are no longer needed."""
        array = self._arrays[group]
        total, shard = array.shape[0], (array.shards or array.chunks)[0]
        if rows.shape[1:] != array.shape[1:] or self.rows + len(rows) > total:
            raise ValueError(f"{self.path}: rows {rows.shape} of {group} for {array.shape}")
        rows = np.ascontiguousarray(rows, dtype=array.dtype)
        plain = not SPECS[self.spec].compressed and bool(np.isnan(array.fill_value))
        size = array.dtype.itemsize * int(np.prod(array.shape[1:]))
        over = set()
        at, last = self.rows, self.rows + len(rows)
        while at < last:
            start = at - at % shard
            end = min(start + shard, total)
            stop = min(end, last)
            part = rows[at - self.rows : stop - self.rows]
            if at == start and stop == end and not plain:
                array[start:end] = part
                at = stop
                continue
            file = self.folder / f"{place}-{start}-{end}.rows"
            whole = self._digests_of_waiting.get(file) if at > start else hashlib.sha256()
            parts = [part]
            if plain and stop == end:
                parts += self._shard_end(array, end - start)
            with file.open("r+b" if file in self._waiting else "wb", buffering=0) as stream:
                stream.seek((at - start) * size)
                for values in parts:
                    view = memoryview(values).cast("B")
                    if whole:
                        whole.update(view)
                    while len(view):
                        view = view[stream.write(view) :]
            self._waiting.add(file)
            if whole:
                self._digests_of_waiting[file] = whole
            if stop == end:
                over.add(file)
                if plain:
                    self._put_shard(file, group, start // shard)
                else:
                    waited = np.fromfile(file, dtype=array.dtype)
                    array[start:end] = waited.reshape(end - start, *array.shape[1:])
            at = stop
        return over

    @staticmethod
    def _shard_end(array: Any, rows: int) -> list[np.ndarray]:
        """Return what follows the rows in a shard's file: empty rows of its last chunk, its index.

        Rows that are not compressed have their own bytes in the file, so that they are written
        where they belong; zarr would copy them several times.
        """
        chunk = array.chunks[0]
        filled = -(-rows // chunk)
        empty = (filled * chunk - rows, *array.shape[1:])
        end = [np.full(empty, array.fill_value, dtype=array.dtype)] if empty[0] else []
        if array.shards is not None:
            size = array.dtype.itemsize * int(np.prod(array.chunks))
            end.append(_shard_index(filled, array.shards[0] // chunk, size))
        return end

    def _put_shard(self, file: Path, group: str, number: int) -> None:
        """Give a finished file its name in the store too: until its rows count, it waits on."""
        zeros = ["0"] * (self._arrays[group].ndim - 1)
        name = "/".join([group, self._names[group], "c", str(number), *zeros])
        target = self._content / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        try:
            os.link(file, target)
        except OSError:  # a file system without links
            shutil.copyfile(file, target)
        if whole := self._digests_of_waiting.pop(file, None):
            self._digests[name] = whole.digest()

    def finish(self, *, sources: Sequence[str | Path] = (), code: str = "") -> Path:
        """Put the store in its place, see `write`; the hidden folder is removed."""
        for group, array in self._arrays.items():
            if self.rows != array.shape[0]:
                raise ValueError(f"{self.path}: {self.rows} of {array.shape[0]} rows of {group}")
        manifest = self.path.with_suffix(".json")
        manifest.unlink(missing_ok=True)
        _put_in_place(
            self._content, self.path, self.spec, sources=sources, code=code, known=self._digests
        )
        self.discard()
        return manifest

    def discard(self) -> None:
        """Remove the hidden folder and all rows in it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.rows, self.notes = 0, {}
        self._arrays, self._waiting = {}, set()
        self._digests, self._digests_of_waiting = {}, {}


def _shard_index(filled: int, chunks: int, size: int) -> np.ndarray:
    """Return the bytes at a shard's end: place and size of each chunk, and their CRC-32C.

    As the specification of Zarr 3 (codec ``sharding_indexed``) says; chunks that are not there
    have all bits set.
    """
    index = np.full((chunks, 2), np.iinfo(np.uint64).max, dtype="<u8")
    index[:filled, 0] = np.arange(filled) * size
    index[:filled, 1] = size
    check = 0xFFFFFFFF
    for byte in index.tobytes():
        check ^= byte
        for _ in range(8):
            check = (check >> 1) ^ (0x82F63B78 if check & 1 else 0)
    end = (check ^ 0xFFFFFFFF).to_bytes(4, "little")
    return np.frombuffer(index.tobytes() + end, np.uint8)


def _plain(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Return attributes as JSON keeps them, in one order."""

    def default(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return value.tolist()
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, Path):
            return str(value)
        raise TypeError(f"attribute of type {type(value)} cannot be stored")

    return json.loads(json.dumps(dict(sorted(attrs.items())), default=default))


def open(path: str | Path, spec: str, *, group: str | None = None) -> xr.Dataset:
    """Open a store lazily (dask arrays whose blocks are the store's shards).

    Parameters
    ----------
    path
        The store.
    spec
        Name of the spec that it must have.
    group
        For stores with groups (features): the group's, that is the layer's, name.

    Returns
    -------
    xarray.Dataset
        Numbers as dask arrays, text as loaded object arrays of `str`.

    Raises
    ------
    InputError
        Where there is no such store, or it is of another spec or version.
    """
    path = Path(path)
    attrs = _root_attrs(path)
    wanted = SPECS[spec]
    if attrs.get("spec") != spec:
        raise InputError(f"{path} is a {attrs.get('spec')!r} store, not {spec!r}: pass another")
    if attrs.get("spec_version") != wanted.version:
        raise InputError(
            f"{path} has version {attrs.get('spec_version')} of spec {spec!r}, this program reads "
            f"{wanted.version}: delete it and run again"
        )
    if wanted.groups and group not in attrs["groups"]:
        raise InputError(f"{path} has no group {group!r}: it has {', '.join(attrs['groups'])}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = xr.open_zarr(path, group=group, consolidated=False, zarr_format=3)
    dataset = dataset.chunk(
        {name: size for name, size in dataset.sizes.items() if name != wanted.block}
    )
    for key, array in list(dataset.variables.items()):
        if array.dtype.kind in "OUT":
            text = np.array([str(v) for v in np.asarray(array.values).ravel()], dtype=object)
            fresh = (array.dims, text.reshape(array.shape), array.attrs)
            dataset = (
                dataset.assign_coords({key: fresh})
                if key in dataset.coords
                else dataset.assign({key: fresh})
            )
    return dataset


def spec_of(path: str | Path) -> str:
    """Return the name of a store's spec."""
    return str(_root_attrs(Path(path)).get("spec"))


def groups(path: str | Path) -> list[str]:
    """Return a store's group names in the order in which they were written."""
    return list(_root_attrs(Path(path)).get("groups", []))


def manifest(path: str | Path) -> dict[str, Any]:
    """Return a store's manifest, with the provenance beside it."""
    return provenance.read_manifest(Path(path).with_suffix(".json"))


def verify(path: str | Path) -> bool:
    """Return whether a store's content still is what its manifest says."""
    return manifest(path)["content"] == provenance.directory_digest(path)


def _root_attrs(path: Path) -> dict[str, Any]:
    file = path / "zarr.json"
    if not file.is_file():
        raise InputError(f"{path} is not a store: run the rule that makes it")
    return json.loads(file.read_text()).get("attributes", {})
