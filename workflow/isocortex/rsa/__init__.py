"""Representational similarity analysis: RDMs, their comparison with models, searchlights."""

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

__all__ = [
    "BrainRDMs",
    "ModelRDMs",
    "align_models",
    "load_rdms",
    "n_stimuli",
    "pair_indices",
    "pair_labels",
    "select_pairs",
    "stimuli_of",
    "to_matrices",
    "to_vectors",
]
