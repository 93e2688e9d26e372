"""What a scores store says of its tests: against 0, against the ceiling, between predictors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

ALPHA = 0.05
"""Level at which figures mark a test."""

_DIFFERENCE = {"holm": "difference_p_fwe", "fdr": "difference_p_fdr", "none": "difference_p"}


@dataclass(frozen=True)
class ModelTests:
    """Tests of one comparison; NaN where the store holds none.

    Parameters
    ----------
    kind
        "fixed", "weighted", "selected" or "interpolated" by predictor.
    p, p_fdr, p_fwe, p_permutation, p_ceiling
        Against 0 (uncorrected, false discovery rate, family-wise, by permuted stimulus labels) and
        against the lower noise ceiling, shape (predictor, region).
    p_chosen
        Against 0 with the correction that the configuration asks for, same shape.
    ceiling
        Lower and upper noise ceiling, shape (2, region).
    ceiling_interval
        Ends of their intervals, shape (2, 2, region): lower or upper ceiling, low or high end.
    ceiling_cv
        Cross-validated ceilings, shape (2, region).
    difference, difference_p
        Mean of predictor less other, and its p-value with the correction that the configuration
        asks for, shape (predictor, other, region).
    """

    kind: list[str]
    p: np.ndarray
    p_fdr: np.ndarray
    p_fwe: np.ndarray
    p_permutation: np.ndarray
    p_chosen: np.ndarray
    p_ceiling: np.ndarray
    ceiling: np.ndarray
    ceiling_interval: np.ndarray
    ceiling_cv: np.ndarray
    difference: np.ndarray
    difference_p: np.ndarray

    def rivals(self, predictor: int) -> list[int]:
        """Predictors to hold one against: a layer against layers, a fitted model against all.

        A weighted model holds its best layer, so a test of the one against the other says little.
        """
        fixed = self.kind[predictor] == "fixed"
        return [row for row, kind in enumerate(self.kind) if kind == "fixed" or not fixed]

    def wins(self, region: int) -> np.ndarray:
        """Whether the row's predictor is significantly better than the column's, in a region."""
        with np.errstate(invalid="ignore"):
            return (self.difference_p[..., region] < ALPHA) & (self.difference[..., region] > 0)


def model_tests(dataset: xr.Dataset, comparison: int = 0) -> ModelTests:
    """Read the tests of one comparison out of a scores store.

    Parameters
    ----------
    dataset
        A ``scores`` store; arrays that its spec calls optional may be absent.
    comparison
        Index of the comparison.
    """
    part = dataset.isel(comparison=comparison)
    n, regions = dataset.sizes["predictor"], dataset.sizes["region"]

    def read(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name not in part:
            return np.full(shape, np.nan)
        return np.asarray(part[name].values, dtype=float)

    each, pair = (n, regions), (n, n, regions)
    correction = str(dataset.attrs.get("correction", "holm")).split()[0]
    return ModelTests(
        kind=[str(k) for k in dataset["kind"].values] if "kind" in dataset else ["fixed"] * n,
        p=read("p", each),
        p_fdr=read("p_fdr", each),
        p_fwe=read("p_fwe", each),
        p_permutation=read("p_permutation", each),
        p_chosen=read("p_corrected", each),
        p_ceiling=read("p_ceiling", each),
        ceiling=np.stack([read(f"ceiling_{end}", (regions,)) for end in ("low", "high")]),
        ceiling_interval=np.stack(
            [
                [read(f"ceiling_{end}_{side}", (regions,)) for side in ("low", "high")]
                for end in ("low", "high")
            ]
        ),
        ceiling_cv=np.stack([read(f"ceiling_cv_{end}", (regions,)) for end in ("low", "high")]),
        difference=read("difference", pair),
        difference_p=read(_DIFFERENCE[correction], pair),
    )


def strongest_test(dataset: xr.Dataset) -> str | None:
    """Name of the p-values that thresholded maps use: TFCE, else the largest statistic.

    None where the store holds no p-value, as with few subjects.
    """
    for name in ("p_tfce", "p_corrected"):
        if name in dataset and np.isfinite(dataset[name].values).any():
            return name
    return None


def choose_predictors(
    mean: np.ndarray, models: Sequence[str], kind: Sequence[str], *, most: int
) -> list[int]:
    """Choose the predictors that a bar chart of one region can hold.

    Parameters
    ----------
    mean
        Mean scores, shape (predictor,).
    models, kind
        Model and kind of each predictor.
    most
        How many bars there is room for.

    Returns
    -------
    list of int
        All predictors where there is room for them; else each model's best fixed layer and what is
        not fixed, the highest `most` of these, in the order of the store.
    """
    known = [index for index in range(len(mean)) if np.isfinite(mean[index])]
    if len(known) <= most:
        return known
    best: dict[tuple[str, str], int] = {}
    for index in known:
        key = (models[index], kind[index])
        if key not in best or mean[index] > mean[best[key]]:
            best[key] = index
    return sorted(sorted(best.values(), key=lambda index: -mean[index])[:most])
