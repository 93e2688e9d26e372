"""Dual bootstrap of model scores by whitened Pearson correlation."""

from __future__ import annotations

from typing import Any

from benchmarks.dual_bootstrap import side_by_side_bootstrap


def run(*, small: bool = False) -> dict[str, Any]:
    """As `side_by_side_bootstrap`; the peer is given 12 samples."""
    return side_by_side_bootstrap("corr_cov", method="corr_cov", few=12, small=small)
