"""The summary statistics of one analysis: which there are, and each of them for a set of RDMs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from isocortex.errors import InputError
from isocortex.rsa.geodesics import DISCONNECTED, GRAPHS, rgdm
from isocortex.rsa.transforms import (
    Estimator,
    family,
    on_scale,
    ramp,
    rank_rdm,
    threshold_grid,
    threshold_values,
    unit_rdm,
)

RESAMPLES = ("both", "subjects", "stimuli")
BASELINES = ("rdm", "rank_rdm", "unit_rdm")
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
    geodesic_graphs: Sequence[str] = ("twostep",)
    geodesic_lower: float = 0.0
    geodesic_upper: float = 0.8
    geodesic_fraction: float = 0.05
    geodesic_neighbours: int = 5
    disconnected: str = "one_step"
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
        for graph in self.geodesic_graphs:
            _one_of("geodesic_graphs", graph, GRAPHS)
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
        if not 0 < self.geodesic_fraction <= 1:
            raise InputError(
                f"geodesic_fraction is {self.geodesic_fraction} in config section trsa: use a "
                "value above 0 and at most 1"
            )
        if not 0 < self.interval < 1:
            raise InputError(
                f"interval is {self.interval} in config section trsa: use a value between 0 and 1"
            )

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
        As ``rank_rdm``, ``rgtm(0.20,0.80)``, ``rgdm(k_nearest,5)``.
    family
        ``baseline``, ``geodesic``, or the family of the threshold pair.
    lower, upper
        l and u, NaN where there are none.
    graph
        Of an RGDM, else empty.
    """

    name: str
    family: str
    lower: float = float("nan")
    upper: float = float("nan")
    graph: str = ""


def list_statistics(options: TopologyOptions) -> list[Statistic]:
    """Return the baselines, all RGTM(l, u) of the grid and the RGDMs, in the order of results."""
    found = [Statistic(name, "baseline") for name in BASELINES]
    for lower, upper in threshold_grid(options.grid_step):
        name = f"rgtm({lower:.2f},{upper:.2f})"
        found.append(Statistic(name, family(lower, upper), lower, upper))
    for graph in options.geodesic_graphs:
        if graph == "twostep":
            low, high = options.geodesic_lower, options.geodesic_upper
            found.append(Statistic(f"rgdm({low:.2f},{high:.2f})", "geodesic", low, high, graph))
        else:
            value = (
                f"{options.geodesic_neighbours}"
                if graph == "k_nearest"
                else f"{options.geodesic_fraction:.2f}"
            )
            found.append(Statistic(f"rgdm({graph},{value})", "geodesic", graph=graph))
    return found


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
        """Compute what statistics share, before several threads ask for it."""
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
        return ramp(
            self._scaled, self._thresholds[statistic.lower], self._thresholds[statistic.upper]
        )
