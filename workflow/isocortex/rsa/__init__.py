"""Representational similarity analysis: RDMs, their comparison with models, searchlights."""

from isocortex.rsa.compare import COMPARISONS, correlate, embed, noise_ceiling, pool
from isocortex.rsa.compute import compute_model_rdms, compute_rdms
from isocortex.rsa.dissimilarity import (
    MEASURES,
    correlation_distance,
    crossnobis_distance,
    euclidean_distance,
    mean_patterns,
)
from isocortex.rsa.imports import import_rdms, read_rdm
from isocortex.rsa.inference import (
    bootstrap_counts,
    bootstrap_scores,
    dual_bootstrap_variance,
    pair_weights,
)
from isocortex.rsa.noise import covariance, whiten
from isocortex.rsa.rdms import (
    BrainRDMs,
    ModelRDMs,
    align_models,
    load_rdms,
    n_stimuli,
    pair_indices,
    pair_labels,
    select_pairs,
    stimuli_of,
    to_matrices,
    to_vectors,
)
from isocortex.rsa.scores import compare_rdms, resolve_bootstrap, score_statistics
from isocortex.rsa.searchlight import (
    combine_searchlights,
    map_searchlight,
    neighbourhoods,
    searchlight_scores,
    sign_flips,
    sphere_offsets,
)

__all__ = [
    "COMPARISONS",
    "MEASURES",
    "BrainRDMs",
    "ModelRDMs",
    "align_models",
    "bootstrap_counts",
    "bootstrap_scores",
    "combine_searchlights",
    "compare_rdms",
    "compute_model_rdms",
    "compute_rdms",
    "correlate",
    "correlation_distance",
    "covariance",
    "crossnobis_distance",
    "dual_bootstrap_variance",
    "embed",
    "euclidean_distance",
    "import_rdms",
    "load_rdms",
    "map_searchlight",
    "mean_patterns",
    "n_stimuli",
    "neighbourhoods",
    "noise_ceiling",
    "pair_indices",
    "pair_labels",
    "pair_weights",
    "pool",
    "read_rdm",
    "resolve_bootstrap",
    "score_statistics",
    "searchlight_scores",
    "select_pairs",
    "sign_flips",
    "sphere_offsets",
    "stimuli_of",
    "to_matrices",
    "to_vectors",
    "whiten",
]
