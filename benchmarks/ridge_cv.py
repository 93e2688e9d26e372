"""What the figures of ridge regression by cross-validation share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from himalaya.backend import set_backend

from benchmarks.measure import CORES, Disagreement, largest_difference, side_by_side
from isocortex.encoding.ridge import ridge_cv
from isocortex.encoding.scores import pearson

ALPHAS = np.logspace(-2, 4, 13)


def ridge_figure(
    peer_fit: Callable[..., tuple[torch.Tensor, Any]],
    *,
    peer_name: str,
    solver: str,
    rows: int,
    features: int,
    targets: int,
    tests: int,
    device: str,
    intercept: bool = True,
    alphas: np.ndarray = ALPHAS,
) -> dict[str, Any]:
    """Choice of the penalty by 5 folds, fit of all rows and prediction of others, float32.

    Parameters
    ----------
    peer_fit
        Of features, targets, penalties, folds and test features: predictions, penalties.
    peer_name
        Which of himalaya's it is.
    solver
        That is expected to be chosen: ``primal`` or ``dual``.
    rows, features, targets, tests
        Sizes; `tests` rows are predicted.
    device
        ``cpu`` or ``cuda``.
    intercept
        Whether every fold has one; features and targets are centred over all rows anyway.
    alphas
        Penalties.
    """
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows + tests, features), dtype=np.float32)
    weights = rng.standard_normal((features, targets), dtype=np.float32)
    y = x @ weights
    y *= np.float32(0.5)
    y += rng.standard_normal(y.shape, dtype=np.float32) * np.float32(np.sqrt(features))
    del weights
    y -= y[:rows].mean(axis=0)
    x -= x[:rows].mean(axis=0)
    parts = np.array_split(rng.permutation(rows), 5)
    folds = [(np.setdiff1d(np.arange(rows), part), np.sort(part)) for part in parts]
    torch.set_num_threads(CORES)
    set_backend("torch" if device == "cpu" else "torch_cuda")
    x_torch, y_torch = (torch.from_numpy(part).to(device) for part in (x, y))
    held_out = y_torch[rows:]
    plans = []

    def ours() -> tuple[np.ndarray, np.ndarray]:
        found = ridge_cv(
            x_torch[:rows],
            y_torch[:rows],
            folds,
            alphas,
            test_features=x_torch[rows:],
            intercept=intercept,
            device=device,
        )
        plans.append(found.plan)
        score = pearson(torch.from_numpy(found.prediction).to(device), held_out)
        return score.cpu().numpy(), found.alpha

    def peer() -> tuple[np.ndarray, np.ndarray]:
        grid = torch.from_numpy(alphas).to(x_torch)
        made, best = peer_fit(x_torch[:rows], y_torch[:rows], grid, folds, x_torch[rows:])
        return pearson(made, held_out).cpu().numpy(), best.cpu().numpy()

    def difference(mine: tuple, theirs: tuple) -> float:
        if plans[0].form != solver:
            raise Disagreement(f"the {plans[0].form} form was chosen, not the {solver}")
        same = np.isclose(mine[1], theirs[1], rtol=1e-4)
        if same.mean() < 0.999:
            raise Disagreement(f"only {same.mean():.2%} of the targets have the peer's penalty")
        return largest_difference(mine[0][same], theirs[0][same])

    # Plain: in each fold a rotation of the targets and a projection for each penalty; then the
    # rotation of all rows and the projection of the test rows
    rank, train, test = min(rows, features), rows - rows // 5, rows // 5
    fold_rank = min(train, features)
    plain = 5 * fold_rank * (train + len(alphas) * test) + rank * (rows + tests)
    nominal = 2.0 * plain * targets
    if solver == "dual":
        nominal += 2.0 * rows * rows * features

    def note(mine: tuple, theirs: tuple) -> str:
        done = plans[0].flop(targets) + (rows * rows * features if solver == "dual" else 0)
        same = np.isclose(mine[1], theirs[1], rtol=1e-4).mean()
        gram = " + 2 x rows^2 x features" if solver == "dual" else ""
        return (
            f"{rows} rows x {features} features x {targets} targets, {len(alphas)} penalties, "
            f"{len(folds)} folds, fit and prediction of {tests} rows, float32, torch on "
            f"{device}, the peer {peer_name}; difference of r where penalties are the same "
            f"({same:.2%}); nominal {nominal / 1e12:.3g} Tflop = 2 x targets x (folds x rank x "
            f"(train + penalties x test) + rank x (rows + predicted)){gram}, of which "
            f"{done / 1e12:.3g} are done, decompositions apart; predictions made at "
            f"{', '.join(map(str, plans[0].n_nodes))} penalties of the folds, the others "
            f"interpolated; at {', '.join(map(str, plans[0].n_few))} for targets that these decide"
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
