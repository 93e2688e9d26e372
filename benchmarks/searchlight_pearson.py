"""Searchlight: correlation RDM of every sphere, scored against three models by Pearson."""

from __future__ import annotations

from typing import Any

from benchmarks.searchlights import searchlight_figure


def run(*, small: bool = False) -> dict[str, Any]:
    """33,696 spheres of 93 voxels, 32 conditions; the peer every 48th of them."""
    size = {"shape": (8, 8, 8), "stimuli": 8, "every": 1}
    if not small:
        size = {"shape": (40, 40, 30), "stimuli": 32, "every": 48}
    return searchlight_figure("pearson", tolerance=1e-5, **size)
