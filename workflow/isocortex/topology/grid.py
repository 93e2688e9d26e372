"""The summary statistics of one analysis: which there are, and each of them for a set of RDMs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np

from isocortex.errors import InputError
from isocortex.rsa.geodesics import DISCONNECTED, GRAPHS, rgdm
from isocortex.rsa.transforms import (
    Estimator,
    Transform,
    family,
    level_text,
    on_scale,
    ramp,
    rank_rdm,
    sigmoid_gt,
    threshold_grid,
    threshold_values,
    unit_rdm,
)

RESAMPLES = ("both", "subjects", "stimuli")
BASELINES = ("rdm", "rank_rdm", "unit_rdm")
TRANSFORMED = ("rgtm", "adjacency", "sigmoid")
COMPARED_BY = ("pearson", "spearman", "corr_cov", "rho_a")
"""Comparisons of statistics whose score is 0 where brain and model have nothing in common."""
NESTED = "rgtm(nested)"


@dataclass(frozen=True)
class TopologyOptions:
    """The section ``trsa`` of the config, whose schema documents each key, and the study's seed.

    Raises
    ------
    InputError
        For values that the analysis cannot use, with the key.
    """

    grid_step: float = 0.1
    scale: str = "rank"
    threshold: str = "quantile"
    pool: str = "rdm"
    statistics: Sequence[str] = TRANSFORMED
    sigmoid_slope: float = 10.0
    sigmoid_centre: float = 0.5
    geodesic_graphs: Sequence[str] = ("twostep",)
    geodesic_lower: float = 0.0
    geodesic_upper: float = 0.8
    geodesic_fraction: float = 0.05
    geodesic_neighbours: int = 5
    disconnected: str = "one_step"
    comparison: str = "pearson"
    resample: str = "both"
    bootstrap_samples: int = 1000
    permutations: int = 1000
    interval: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        try:
            Estimator(self.scale, self.threshold, self.pool)
            threshold_grid(self.grid_step)
        except ValueError as error:
            raise InputError(f"{error} (config section trsa)") from error
        for name in self.statistics:
            _one_of("statistics", name, TRANSFORMED)
        for graph in self.geodesic_graphs:
            _one_of("geodesic_graphs", graph, GRAPHS)
        _one_of("comparison", self.comparison, COMPARED_BY)
        _one_of("disconnected", self.disconnected, DISCONNECTED)
        _one_of("resample", self.resample, RESAMPLES)
        if self.geodesic_lower > self.geodesic_upper:
            raise InputError(
                f"geodesic_lower {self.geodesic_lower} is above geodesic_upper "
                f"{self.geodesic_upper} in config section trsa: swap them"
            )
        if self.threshold == "quantile" and not (
            self.geodesic_lower >= 0 and self.geodesic_upper <= 1
        ):
            raise InputError(
                "geodesic_lower and geodesic_upper are quantiles in config section trsa: use 0 to 1"
            )
        if not self.sigmoid_slope > 0:
            raise InputError(
                f"sigmoid_slope is {self.sigmoid_slope} in config section trsa: use a value above 0"
            )
        if not 0 < self.geodesic_fraction <= 1:
            raise InputError(
                f"geodesic_fraction is {self.geodesic_fraction} in config section trsa: use a "
                "value above 0 and at most 1"
            )
        if not 0 < self.interval < 1:
            raise InputError(
                f"interval is {self.interval} in config section trsa: use a value between 0 and 1"
            )

    def check_stimuli(self, n_stimuli: int) -> None:
        """Raise `InputError` for options that do not fit the number of stimuli."""
        if "k_nearest" in self.geodesic_graphs and self.geodesic_neighbours >= n_stimuli:
            raise InputError(
                f"geodesic_neighbours is {self.geodesic_neighbours} in config section trsa, with "
                f"{n_stimuli} stimuli: use at most {n_stimuli - 1}"
            )

    @property
    def attrs(self) -> dict[str, object]:
        """What every store of these options says of them."""
        return {
            "scale": self.scale,
            "threshold": self.threshold,
            "pool": self.pool,
            "geodesic": self.geodesic,
            "interval_level": self.interval,
            "options": asdict(self),
        }

    @property
    def geodesic(self) -> str:
        """What the RGDMs are, in words."""
        apart = {
            "one_step": "pairs that no path joins: largest finite path length plus one step",
            "exclude": "pairs that no path joins in any RDM: left out",
        }[self.disconnected]
        return f"{', '.join(self.geodesic_graphs) or 'none'}; {apart}"


def _one_of(key: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise InputError(
            f"{key} is {value!r} in config section trsa: use one of {', '.join(known)}"
        )


@dataclass(frozen=True)
class Statistic:
    """One summary statistic.

    Attributes
    ----------
    name
        As ``rank_rdm``, ``rgtm(0.20,0.80)``, ``adjacency(0.50)``, ``rgdm(k_nearest,5)``.
    family
        ``baseline``, ``adjacency``, ``sigmoid``, ``geodesic``, or the family of the threshold pair
        of an RGTM.
    lower, upper
        l and u, which are one value for an adjacency; NaN where there are none.
    graph
        Of an RGDM, else empty.
    """

    name: str
    family: str
    lower: float = float("nan")
    upper: float = float("nan")
    graph: str = ""

    @property
    def chosen_from(self) -> bool:
        """Whether the nested choice of (l, u) may take this statistic."""
        return self.name.startswith("rgtm(")


def list_statistics(options: TopologyOptions) -> list[Statistic]:
    """Return all statistics in the order of results.

    The baselines, the RGTM(l, u) of the grid, adjacencies at its levels between 0 and 1, the
    sigmoid, and the RGDMs: of each kind what the options ask for.
    """
    found = [Statistic(name, "baseline") for name in BASELINES]
    grid = threshold_grid(options.grid_step)
    if "rgtm" in options.statistics:
        for lower, upper in grid:
            name = f"rgtm({level_text(lower)},{level_text(upper)})"
            found.append(Statistic(name, family(lower, upper), lower, upper))
    if "adjacency" in options.statistics:
        for level in sorted({lower for lower, _ in grid} - {0.0}):
            name = f"adjacency({level_text(level)})"
            found.append(Statistic(name, "adjacency", level, level))
    if "sigmoid" in options.statistics:
        transform = Transform("sigmoid", (options.sigmoid_slope, options.sigmoid_centre))
        found.append(Statistic(transform.name, "sigmoid"))
    for graph in options.geodesic_graphs:
        if graph == "twostep":
            low, high = options.geodesic_lower, options.geodesic_upper
            name = Transform("rgdm", (low, high), graph).name
            found.append(Statistic(name, "geodesic", low, high, graph))
        else:
            value = (
                options.geodesic_neighbours if graph == "k_nearest" else options.geodesic_fraction
            )
            name = Transform("rgdm", (float(value),), graph).name
            found.append(Statistic(name, "geodesic", graph=graph))
    return found


def statistic_coords(statistics: Sequence[Statistic]) -> dict[str, object]:
    """Return the coordinates along ``statistic`` of a store."""
    return {
        "statistic": np.array([s.name for s in statistics], dtype=object),
        "family": ("statistic", np.array([s.family for s in statistics], dtype=object)),
        "lower": ("statistic", np.array([s.lower for s in statistics])),
        "upper": ("statistic", np.array([s.upper for s in statistics])),
    }


class SummarySet:
    """All summary statistics of one set of RDMs; what they share is computed once.

    Parameters
    ----------
    rdms
        Dissimilarities without gaps and with spread, shape (rdm, pair). ``pool: all`` takes
        thresholds over all of them.
    options
        See `TopologyOptions`.
    """

    def __init__(self, rdms: np.ndarray, options: TopologyOptions) -> None:
        self._rdms = rdms
        self._options = options

    @cached_property
    def _scaled(self) -> np.ndarray:
        return on_scale(self._rdms, self._options.scale)

    @cached_property
    def _thresholds(self) -> dict[float, np.ndarray]:
        options = self._options
        levels = sorted({level for pair in threshold_grid(options.grid_step) for level in pair})
        values = threshold_values(
            self._scaled, levels, threshold=options.threshold, pool=options.pool
        )
        return dict(zip(levels, values))

    def prepare(self) -> SummarySet:
        """Compute what statistics share, before several workers ask for it."""
        _ = self._thresholds
        return self

    def compute(self, statistic: Statistic) -> np.ndarray:
        """Return one statistic of all RDMs, shape (rdm, pair); NaN for pairs left out."""
        options = self._options
        if statistic.graph:
            return rgdm(
                self._rdms,
                graph=statistic.graph,
                lower=options.geodesic_lower,
                upper=options.geodesic_upper,
                fraction=options.geodesic_fraction,
                neighbours=options.geodesic_neighbours,
                scale=options.scale,
                threshold=options.threshold,
                pool=options.pool,
                disconnected=options.disconnected,
            )
        if statistic.family == "baseline":
            return {"rdm": np.array, "rank_rdm": rank_rdm, "unit_rdm": unit_rdm}[statistic.name](
                self._rdms
            )
        if statistic.family == "sigmoid":
            return sigmoid_gt(
                self._rdms,
                scale=options.scale,
                slope=options.sigmoid_slope,
                centre=options.sigmoid_centre,
            )
        return ramp(
            self._scaled, self._thresholds[statistic.lower], self._thresholds[statistic.upper]
        )
