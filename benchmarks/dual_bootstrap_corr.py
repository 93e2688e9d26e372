"""Dual bootstrap of model scores by Pearson correlation."""

from __future__ import annotations

from typing import Any

from benchmarks.dual_bootstrap import side_by_side_bootstrap


def run(*, small: bool = False) -> dict[str, Any]:
    """As `side_by_side_bootstrap`; the peer is given 60 samples."""
    return side_by_side_bootstrap("pearson", method="corr", few=60, small=small)
