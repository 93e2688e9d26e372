"""Ridge regression with a penalty a target by cross-validation, fewer features than rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from himalaya.backend import set_backend
from himalaya.ridge import RidgeCV

from benchmarks.measure import CORES, Disagreement, largest_difference, side_by_side
from isocortex.encoding import held_out_loss, inner_ridge, pearson, predict, ridge_from_features

_TARGETS_AT_ONCE = 1024  # encoding.voxel_batch


def run(*, small: bool = False) -> dict[str, Any]:
    """2,000 rows, 1,000 features, 5,000 targets, 13 penalties, 5 folds, float32, on the CPU."""
    rows, features, targets, tests = (60, 10, 30, 20) if small else (2000, 1000, 5000, 200)
    alphas = np.logspace(-2, 4, 13)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows + tests, features)).astype(np.float32)
    weights = rng.standard_normal((features, targets)).astype(np.float32)
    noise = rng.standard_normal((rows + tests, targets)).astype(np.float32)
    y = x @ weights * np.float32(0.5) + noise * np.float32(np.sqrt(features))
    y -= y[:rows].mean(axis=0)
    parts = np.array_split(rng.permutation(rows), 5)
    folds = [(np.setdiff1d(np.arange(rows), part), np.sort(part)) for part in parts]
    torch.set_num_threads(CORES)
    backend = set_backend("torch")
    x_torch, y_torch = torch.from_numpy(x), torch.from_numpy(y)

    def ours() -> tuple[np.ndarray, np.ndarray]:
        grid = torch.from_numpy(alphas)
        cpu, single = torch.device("cpu"), torch.float32
        exact = x_torch.double()
        inner = []
        for train, test in folds:
            # Repeats of a stimulus are one row with a count; here each row is its own.
            fold = ridge_from_features(exact[train], exact[test], torch.ones(len(train)))
            ones = torch.ones(len(test))
            inner.append(inner_ridge(fold, ones, grid, device=cpu, dtype=single))
        full = ridge_from_features(exact[:rows], exact[rows:], torch.ones(rows)).to(cpu, single)
        scores, chosen = [], []
        for start in range(0, targets, _TARGETS_AT_ONCE):
            block = y_torch[:, start : start + _TARGETS_AT_ONCE].contiguous()
            loss = 0
            for (train, test), split in zip(folds, inner):
                known = block[train]
                offset = (block[test] - split.weights @ known) * split.root_share[:, None]
                loss = loss + held_out_loss(split, known, offset)
            choice = loss.min(0).indices
            made = predict(full, block[:rows], grid.to(single), choice)
            scores.append(pearson(made, block[rows:]))
            chosen.append(choice)
        return torch.cat(scores).numpy(), alphas[torch.cat(chosen).numpy()]

    def peer() -> tuple[np.ndarray, np.ndarray]:
        model = RidgeCV(alphas=alphas.astype(np.float32), cv=folds, fit_intercept=True)
        model.fit(x_torch[:rows], y_torch[:rows])
        made = model.predict(x_torch[rows:])
        return pearson(made, y_torch[rows:]).numpy(), backend.to_numpy(model.best_alphas_)

    def difference(mine: tuple, theirs: tuple) -> float:
        same = np.isclose(mine[1], theirs[1], rtol=1e-4)
        if same.mean() < 0.999:
            raise Disagreement(f"only {same.mean():.2%} of the targets have the peer's penalty")
        return largest_difference(mine[0][same], theirs[0][same])

    return side_by_side(
        ours,
        peer,
        difference=difference,
        tolerance=1e-4,
        package="himalaya",
        note=f"{rows} rows x {features} features x {targets} targets, {len(alphas)} penalties, "
        f"{len(folds)} folds, fit and prediction of {tests} rows, float32, torch on the CPU; "
        "difference of r where penalties are the same (99.9 % or more)",
    )
