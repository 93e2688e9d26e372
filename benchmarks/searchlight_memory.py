"""Searchlight of a whole brain and many stimuli: what it takes beyond the data."""

from __future__ import annotations

from typing import Any

from benchmarks.searchlights import searchlight_figure


def run(*, small: bool = False) -> dict[str, Any]:
    """100,000 centres x 200 stimuli, whose RDMs would take 16 GB in double precision."""
    size = {"shape": (8, 8, 8), "stimuli": 8, "every": 1}
    if not small:
        size = {"shape": (50, 50, 40), "stimuli": 200, "every": 1000}
    return searchlight_figure("pearson", tolerance=1e-5, whole=False, **size)
