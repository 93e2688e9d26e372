"""Banded ridge: weights of three feature spaces and penalty by random search, per target."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from himalaya.backend import set_backend
from himalaya.kernel_ridge import (
    predict_weighted_kernel_ridge,
    solve_multiple_kernel_ridge_random_search,
)

from benchmarks.measure import CORES, Disagreement, largest_difference, side_by_side
from isocortex.encoding.banded import (
    dirichlet_candidates,
    held_out_targets,
    joint_from_kernels,
    points_of,
    predict_spaces,
    search_weights,
)

_ALPHAS = np.logspace(-1, 4, 10)
_FOLDS = 5


def run(*, small: bool = False, device: str = "cpu") -> dict[str, Any]:
    """1,000 rows, 500 + 1,000 + 2,000 features, 3,000 targets, 100 candidates, 10 penalties."""
    rows, tests, targets, candidates = (60, 12, 40, 20) if small else (1000, 200, 3000, 100)
    sizes = (20, 40, 80) if small else (500, 1000, 2000)
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((rows + tests, 60))
    kernels, y = [], rng.standard_normal((rows + tests, targets), dtype=np.float32)
    mix = rng.dirichlet([0.5] * 3, targets).astype(np.float32)
    for index, size in enumerate(sizes):
        # Spaces overlap, as layers and models do
        space = rng.standard_normal((rows + tests, size))
        space += shared @ rng.standard_normal((60, size)) / 8
        space -= space[:rows].mean(0)
        space /= space[:rows].std(0) * size**0.5
        space = space.astype(np.float32)
        weights = rng.standard_normal((size, targets), dtype=np.float32)
        y += space @ weights * np.sqrt(mix[:, index])
        kernels.append(space @ space[:rows].T)
    y -= y[:rows].mean(0)
    every, y_torch = torch.from_numpy(np.stack(kernels)).to(device), torch.from_numpy(y).to(device)
    known, apart, y_known = every[:, :rows], every[:, rows:], y_torch[:rows]
    gammas = dirichlet_candidates(candidates, 3, seed=0)
    points = points_of(gammas, _ALPHAS)
    parts = np.array_split(rng.permutation(rows), _FOLDS)
    folds = [(np.setdiff1d(np.arange(rows), part), np.sort(part)) for part in parts]
    torch.set_num_threads(CORES)
    set_backend("torch" if device == "cpu" else "torch_cuda")
    evaluated = []

    def ours() -> tuple[np.ndarray, ...]:
        exact, across = known.double(), apart.double()
        splits, held_out = [], []
        for train, test in folds:
            inside, beside = exact[:, train][:, :, train], exact[:, test][:, :, train]
            split = joint_from_kernels(inside, beside, torch.ones(len(train)), intercept=False)
            splits.append(split)
            held_out.append(held_out_targets(split, y_known[train], y_known[test]))
        choice = search_weights(splits, held_out, points)
        evaluated.append(choice.evaluated)
        log_weights = points.to(device)[choice.point].T.log()
        whole = joint_from_kernels(exact, across, torch.ones(rows), intercept=False)
        made = predict_spaces(whole, y_known, log_weights).sum(0)
        return tuple(part.cpu().numpy() for part in (-choice.loss, log_weights.exp(), made))

    def peer() -> tuple[np.ndarray, ...]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            deltas, dual, scores = solve_multiple_kernel_ridge_random_search(
                known,
                y_known,
                n_iter=gammas.astype(np.float32),
                alphas=torch.from_numpy(_ALPHAS).to(known),
                cv=folds,
                return_weights="dual",
                progress_bar=False,
            )
        made = predict_weighted_kernel_ridge(apart, dual.to(apart), deltas.to(apart))
        best = scores.max(0).values
        return tuple(part.cpu().numpy() for part in (best, deltas.exp(), made))

    def same_choices(mine: tuple, theirs: tuple) -> np.ndarray:
        scale = np.abs(theirs[1]).max(0)
        return (np.abs(mine[1] - theirs[1]) <= 1e-5 * scale).all(0)  # candidates lie close, too

    def difference(mine: tuple, theirs: tuple) -> float:
        same = same_choices(mine, theirs)
        # Where choices differ the two are equally good: scores agree for all targets
        if same.mean() < 0.95:
            raise Disagreement(f"only {same.mean():.2%} of the targets have the peer's weights")
        return max(
            largest_difference(mine[0], theirs[0]),
            largest_difference(mine[2][:, same], theirs[2][:, same]),
        )

    train, test = rows - rows // _FOLDS, rows // _FOLDS
    nominal = 2.0 * len(points) * _FOLDS * test * train * targets

    def note(mine: tuple, theirs: tuple) -> str:
        return (
            f"{rows} rows x {'+'.join(map(str, sizes))} features x {targets} targets, "
            f"{candidates} candidates x {len(_ALPHAS)} penalties, {_FOLDS} folds, choice and "
            f"prediction of {tests} rows, float32, torch on {device}; difference of "
            "cross-validated scores, and of predictions where choices are the same "
            f"({same_choices(mine, theirs).mean():.2%}, the others tie); {evaluated[0]} of "
            f"{len(points)} pairs computed for all targets, the others interpolated or ruled out; "
            f"nominal {nominal / 1e12:.3g} Tflop = 2 x pairs x folds x test x train x targets"
        )

    return side_by_side(
        ours,
        peer,
        difference=difference,
        tolerance=1e-4,
        package="himalaya",
        note=note,
        flop=nominal,
        device=device,
    )
