"""Searchlights in the volume and on the surface: RDMs are scored as they are made, never stored."""

from isocortex.searchlight.discs import Discs, discs, mesh_edges, path_graph
from isocortex.searchlight.group import (
    MINIMUM_SUBJECTS,
    GroupTest,
    combine_searchlights,
    combine_surface_searchlights,
    group_test,
    normal_deviate,
    sign_flips,
)
from isocortex.searchlight.reading import inside_mask, read_patterns
from isocortex.searchlight.scoring import Models, Patterns, score_block
from isocortex.searchlight.spheres import Spheres, sphere_offsets, spheres
from isocortex.searchlight.subject import map_searchlight, map_surface_searchlight
from isocortex.searchlight.tfce import grid_edges, neighbour_table, tfce
from isocortex.surface import (
    MESH,
    Surface,
    sampling_weights,
    template_surface,
)

__all__ = [
    "MESH",
    "MINIMUM_SUBJECTS",
    "Discs",
    "GroupTest",
    "Models",
    "Patterns",
    "Spheres",
    "Surface",
    "combine_searchlights",
    "combine_surface_searchlights",
    "discs",
    "grid_edges",
    "group_test",
    "inside_mask",
    "map_searchlight",
    "map_surface_searchlight",
    "mesh_edges",
    "neighbour_table",
    "normal_deviate",
    "path_graph",
    "read_patterns",
    "sampling_weights",
    "score_block",
    "sign_flips",
    "sphere_offsets",
    "spheres",
    "template_surface",
    "tfce",
]
