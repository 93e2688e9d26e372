"""Dual bootstrap of model scores by Spearman's correlation under random tie-breaking."""

from __future__ import annotations

from typing import Any

from benchmarks.dual_bootstrap import side_by_side_bootstrap


def run(*, small: bool = False) -> dict[str, Any]:
    """As `side_by_side_bootstrap`; the peer is given 12 samples."""
    return side_by_side_bootstrap("rho_a", method="rho-a", few=12, small=small)
