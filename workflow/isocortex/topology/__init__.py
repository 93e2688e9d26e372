"""Topological RSA: statistics between geometry and topology, region identification, models."""

from isocortex.rsa.geodesics import rgdm, shortest_paths
from isocortex.rsa.transforms import (
    Estimator,
    adjacency,
    family,
    minmax,
    rank_rdm,
    rgtm,
    sigmoid_gt,
    threshold_grid,
    unit_rdm,
)
from isocortex.topology.grid import (
    NESTED,
    Statistic,
    SummarySet,
    TopologyOptions,
    list_statistics,
)
from isocortex.topology.identification import (
    Draws,
    bootstrap_accuracy,
    bootstrap_interval,
    distance_ratio,
    draw_bootstrap,
    draw_permutations,
    gram,
    leave_one_out_distances,
    nested_scores,
    permutation_accuracy,
    permutation_p,
)
from isocortex.topology.model_comparison import bootstrap_means, correlations, infer
from isocortex.topology.study import (
    compare_topology,
    identification_dataset,
    identify_regions,
    topology_dataset,
)

__all__ = [
    "NESTED",
    "Draws",
    "Estimator",
    "Statistic",
    "SummarySet",
    "TopologyOptions",
    "adjacency",
    "bootstrap_accuracy",
    "bootstrap_interval",
    "bootstrap_means",
    "compare_topology",
    "correlations",
    "distance_ratio",
    "draw_bootstrap",
    "draw_permutations",
    "family",
    "gram",
    "identification_dataset",
    "identify_regions",
    "infer",
    "leave_one_out_distances",
    "list_statistics",
    "minmax",
    "nested_scores",
    "permutation_accuracy",
    "permutation_p",
    "rank_rdm",
    "rgdm",
    "rgtm",
    "shortest_paths",
    "sigmoid_gt",
    "threshold_grid",
    "topology_dataset",
    "unit_rdm",
]
