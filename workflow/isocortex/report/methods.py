"""The methods text, written from what the stores and the configuration say was done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from isocortex.report.comparison import comparison_name
from isocortex.report.methods_encoding import encoding_sentences, features_sentences
from isocortex.report.methods_glm import response_sentences
from isocortex.report.methods_preprocess import preprocessing_sentences
from isocortex.report.model_tests import model_tests, strongest_test
from isocortex.report.page import Heading, Paragraph, join
from isocortex.report.references import Citations, References
from isocortex.report.wording import (
    correction,
    given_models,
    given_text,
    level,
    radius_text,
    resampled,
)


def methods_blocks(
    *,
    entry: str,
    made_by: str = "",
    config: Mapping[str, Any],
    versions: Mapping[str, str],
    opened: Mapping[str, Sequence[xr.Dataset]],
    surface: bool,
    preprocessed: Sequence[Mapping[str, Any]] = (),
) -> tuple[list[Any], References]:
    """Write the methods text.

    Parameters
    ----------
    entry
        Where the study enters the chain.
    made_by
        What made the derivatives, with its version; empty where they do not say.
    config
        The whole configuration.
    versions
        Package versions.
    opened
        Stores by the argument of `report_study`; only their attributes and names are read, and
        whether identification has a result. What did not run has no paragraph.
    surface
        Whether maps were drawn on fsaverage5.
    preprocessed
        Manifests of preprocessing, whose measures say what was done to each run.

    Returns
    -------
    blocks, references
        Paragraphs under headings, and the references cited.
    """
    cite = Citations()
    blocks: list[Any] = []

    def version(package: str) -> str:
        return f"{package} {versions[package]}" if package in versions else package

    def add(heading: str, *sentences: str) -> None:
        blocks.append(Heading(heading))
        blocks.append(Paragraph(" ".join(sentence for sentence in sentences if sentence)))

    if entry == "bids":
        section = config.get("preprocess", {})
        add("Preprocessing", *preprocessing_sentences(section, preprocessed, cite, version))
    elif entry == "derivatives":
        add(
            "Preprocessing",
            f"The study started from preprocessed BIDS derivatives {cite('bids')}"
            + (f" made by {made_by}" if made_by else "")
            + f", with confounds named as by fMRIPrep {cite('fmriprep')}; see their own methods "
            "text.",
        )
    if opened["betas"]:
        add("Single-trial responses", *response_sentences(opened["betas"], cite, version))
    if features := features_sentences(config, cite):
        add("Model features", *features)
    if opened["rdms"]:
        add("Dissimilarity matrices", *_rdms(opened["rdms"], cite, version))
    if opened["scores"]:
        add(
            "Comparison with models",
            *_scores(opened["scores"], cite),
            given_text(given_models(opened["model_rdms"])),
        )
    if opened["partition"]:
        add("Variance partitioning", *_partition(opened["partition"][0], cite))
    if opened["searchlight"] or opened["searchlight_surface"]:
        add("Searchlight", *_searchlight(opened, cite))
    identified = [ds for ds in opened["identification"] if _has_value(ds, "accuracy")]
    if identified or opened["topology"]:
        add("Topological RSA", *_topology(identified, opened["topology"], cite))
    if opened["dependence"]:
        add("Geo-topological dependence", *_dependence(opened["dependence"][0], cite))
    if opened["persistence"]:
        add("Persistent homology", *_persistence(opened["persistence"][0], cite, version))
    layers = [ds for ds in opened["layers"] if _has_value(ds, "accuracy")]
    if layers:
        add("Identification of network layers", *_layers(layers[0], cite))
    if any(
        opened.get(key)
        for key in ("encoding_summary", "encoding", "joint", "readouts", "universal")
    ):
        add("Encoding models", *encoding_sentences(opened, cite, version))
    if surface or opened["searchlight_surface"]:
        add(
            "Surface display",
            f"Maps are drawn on the inflated fsaverage5 surface {cite('fsaverage')}; those of the "
            "volume were sampled between the white and the pial surface for display.",
        )
    add(
        "Software",
        f"The analysis ran as a Snakemake workflow ({version('snakemake')}) {cite('snakemake')} "
        "with "
        f"{version('dask')} {cite('dask')} and {version('xarray')} {cite('xarray')}; results are "
        f"stored in Zarr format 3 ({version('zarr')}) {cite('zarr')} and described in the manner "
        "of "
        f"BIDS {cite('bids')}. All package versions and every configuration value are listed under "
        "Provenance.",
    )
    return blocks, References(cite.used)


def _has_value(dataset: xr.Dataset, name: str) -> bool:
    return bool(np.isfinite(dataset[name].values).any())


def _told(dataset: xr.Dataset) -> str:
    """What a stage itself says of its methods."""
    return str(dataset.attrs.get("methods", "")).strip()


def _rdms(rdms: Sequence[xr.Dataset], cite: Any, version: Any) -> list[str]:
    sentences = []
    seen = set()
    for dataset in rdms:
        measure = str(dataset.attrs["measure"])
        if measure in seen:
            continue
        seen.add(measure)
        normalisation = dataset.attrs["noise_normalisation"] or "none"
        validation = dataset.attrs["cross_validation"] or "none"
        citation = cite("crossnobis") if measure in ("crossnobis", "mahalanobis") else cite("rsa")
        sentences.append(
            f"Dissimilarity of every pair of stimuli by {measure} {citation} (noise normalisation: "
            f"{normalisation}; cross-validation: {validation})."
        )
        sentences.append(_told(dataset))
    sentences.append(
        f"For display the stimuli of each region's mean RDM were placed in the plane by metric "
        f"multidimensional scaling (SMACOF {cite('smacof')}, {version('scikit-learn')}), and the "
        f"regions' configurations aligned by generalised Procrustes analysis {cite('procrustes')}."
    )
    return sentences


_COMPARISON_SOURCES = {
    "corr_cov": "whitened",
    "cosine_cov": "whitened",
    "rho_a": "inference",
    "tau_a": "ceiling",
    "bures": "bures",
    "riemann": "riemann",
}


_VARIANCES = {
    "plain": "variance",
    "dual": "variance, corrected for resampling both,",
    "debiased": "variance, each source counted once (Satterthwaite's degrees of freedom),",
}


def _comparison(name: str, cite: Any) -> str:
    source = _COMPARISON_SOURCES.get(name.partition(":")[0])
    words = comparison_name(name).removesuffix(" of RDMs")
    return f"{words} {cite(source)}" if source else words


def _scores(scores: Sequence[xr.Dataset], cite: Any) -> list[str]:
    dataset = scores[0]
    attrs, tests = dataset.attrs, model_tests(dataset)
    words = [_comparison(str(name), cite) for name in dataset["comparison"].values]
    fitted = [kind for kind in ("weighted", "selected", "interpolated") if kind in tests.kind]
    sentences = [
        _told(dataset),
        f"RDMs of {dataset.sizes['region']} regions and {dataset.sizes['predictor']} predictors "
        f"were compared by {join(words)} {cite('rsa')}, with lower and upper noise ceiling "
        f"{cite('ceiling')}.",
    ]
    if fitted:
        sentences.append(
            f"Layers of a model were also combined ({join(fitted)}), fitted to other subjects and "
            f"other stimuli than those scored {cite('cv_models', 'inference')}."
        )
    if attrs["bootstrap"] == "none":
        return [*sentences, "There are too few stimuli and subjects for intervals or p-values."]
    sentences.append(
        f"Intervals are {level(dataset)} intervals of a t distribution with the "
        f"{_VARIANCES[str(attrs.get('bootstrap_variance', 'plain'))]} of {attrs['n_bootstrap']} "
        f"bootstrap samples of {resampled(dataset)} (seed {attrs['seed']}) "
        f"{cite('inference')}; p-values are against 0, {correction(dataset)}"
        + (
            f"; family-wise (Holm {cite('holm')}) and false discovery rates {cite('fdr')} are "
            "listed beside."
            if np.isfinite(tests.p_fwe).any()
            else "."
        )
    )
    if np.isfinite(tests.p_permutation).any():
        sentences.append(
            "As a test that assumes nothing about distributions the stimulus labels of the models' "
            f"RDMs were permuted {cite('ceiling')}."
        )
    if np.isfinite(tests.p_ceiling).any():
        sentences.append("Scores were tested against the lower noise ceiling, two-sided.")
    if np.isfinite(tests.difference_p).any():
        sentences.append(
            "Predictors were tested against each other, two-sided, with the bootstrap's variance "
            f"of their difference, {correction(dataset)} over the pairs of a region; they are "
            f"drawn as wings {cite('wings')}."
        )
    return sentences


def _partition(dataset: xr.Dataset, cite: Any) -> list[str]:
    models = [str(name) for name in dataset["model"].values]
    return [
        _told(dataset),
        f"The variance of each region's RDM was partitioned between {join(models)} by regressions "
        f"on every set of them {cite('partition')}, and partial correlations with each model were "
        "computed with the others taken out of both.",
        ""
        if dataset.attrs["bootstrap"] == "none"
        else f"Intervals are {level(dataset)} intervals of a bootstrap over {resampled(dataset)} "
        f"({dataset.attrs['n_bootstrap']} samples) {cite('inference')}; p-values are corrected by "
        f"Holm's method {cite('holm')} and for false discoveries {cite('fdr')}.",
    ]


def _searchlight(opened: Mapping[str, Sequence[xr.Dataset]], cite: Any) -> list[str]:
    volume, surface = opened["searchlight"], opened["searchlight_surface"]
    sentences = []
    if volume:
        attrs = volume[0].attrs
        sentences += [
            _told(volume[0]),
            f"Around every voxel an RDM was computed (spheres of {radius_text(attrs['radius'])} "
            "radius) and compared with the models' by the "
            f"{comparison_name(str(attrs['comparison']))} {cite('searchlight')}.",
        ]
    if surface:
        attrs = surface[0].attrs
        sentences += [
            _told(surface[0]),
            f"On the {attrs['mesh']} surface the same was done in discs of "
            f"{radius_text(attrs['radius'])} geodesic radius {cite('surface')}.",
        ]
    sentences.append(
        "Subjects were combined by the mean and by t of the Fisher-z transformed scores."
    )
    groups = [*volume, *surface]
    if any(strongest_test(ds) for ds in groups):
        sentences.append(
            "Scores were tested against 0 by flipping the subjects' signs, with the largest "
            f"statistic over centres {cite('signflip')}"
            + (
                f" and by threshold-free cluster enhancement {cite('tfce')}."
                if any(strongest_test(ds) == "p_tfce" for ds in groups)
                else "."
            )
        )
    return sentences


def _estimator(dataset: xr.Dataset, cite: Any) -> str:
    attrs = dataset.attrs
    return (
        f"Geo-topological summary statistics of the RDMs follow {cite('trsa')}, with the "
        f"estimator's choices made explicit: scale {attrs['scale']}, thresholds "
        f"{attrs['threshold']}, pool {attrs['pool']}, geodesics {attrs['geodesic']}."
    )


def _topology(
    identification: Sequence[xr.Dataset], topology: Sequence[xr.Dataset], cite: Any
) -> list[str]:
    first = (identification or topology)[0]
    sentences = [_told(first), _estimator(first, cite)]
    if identification and topology:
        sentences.append(_told(topology[0]))
    return sentences


def _layers(dataset: xr.Dataset, cite: Any) -> list[str]:
    return [
        _told(dataset),
        _estimator(dataset, cite),
        f"The network is {dataset.attrs['network']}, with {dataset.sizes['seed']} seeds.",
    ]


def _dependence(dataset: xr.Dataset, cite: Any) -> list[str]:
    return [
        _told(dataset),
        f"The measure is that of {cite('agtic')} on distance correlation {cite('dcor')}, with "
        f"{dataset.attrs['levels']} levels of each threshold.",
    ]


def _persistence(dataset: xr.Dataset, cite: Any, version: Any) -> list[str]:
    return [
        _told(dataset),
        f"Bars of persistent homology {cite('persistence')} say from which to which value of the "
        f"filtration a cluster or loop of stimuli lasts; software: {version('gudhi')} "
        f"{cite('gudhi')}.",
    ]
