"""Ridge regression with a penalty a target by cross-validation, many more features than rows."""

from __future__ import annotations

from typing import Any

import torch
from himalaya.kernel_ridge import KernelRidgeCV

from benchmarks.ridge_cv import ridge_figure


def run(*, small: bool = False, device: str = "cpu") -> dict[str, Any]:
    """2,000 rows, 20,000 features, 20,000 targets, 13 penalties, 5 folds, float32."""
    size = {"rows": 2000, "features": 20_000, "targets": 20_000, "tests": 200}
    if small:
        size = {"rows": 60, "features": 200, "targets": 30, "tests": 20}

    def peer(x, y, alphas, folds, test) -> tuple[torch.Tensor, torch.Tensor]:
        model = KernelRidgeCV(alphas=alphas, kernel="linear", cv=folds)  # no intercept in folds
        return model.fit(x, y).predict(test), model.best_alphas_

    return ridge_figure(
        peer, peer_name="KernelRidgeCV", solver="dual", device=device, intercept=False, **size
    )
