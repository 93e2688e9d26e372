"""Bootstrapped identification of regions over the whole (l, u) grid."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from scipy.spatial.distance import pdist, squareform
from scipy.stats import rankdata

from benchmarks.measure import CORES, largest_difference, side_by_side
from isocortex import parallel
from isocortex.topology import (
    Draws,
    Statistic,
    SummarySet,
    TopologyOptions,
    bootstrap_accuracy,
    draw_bootstrap,
    list_statistics,
)


def run(*, small: bool = False) -> dict[str, Any]:
    """24 subjects x 8 regions x 62 stimuli, 210 cells of 1,000 samples; of the peer a few."""
    subjects, regions, stimuli, samples, few = (4, 3, 8, 20, 2) if small else (24, 8, 62, 1000, 3)
    step, every = (0.5, 2) if small else (0.05, 50)
    rng = np.random.default_rng(0)
    points = rng.standard_normal((regions, stimuli, 8))
    rdms = np.array(
        [
            [pdist(region + 2 * rng.standard_normal(region.shape)) for region in points]
            for _ in range(subjects)
        ]
    )
    options = TopologyOptions(grid_step=step, statistics=("rgtm",), geodesic_graphs=())
    cells = [statistic for statistic in list_statistics(options) if statistic.chosen_from]
    draws = draw_bootstrap(samples, subjects=subjects, stimuli=stimuli, resample="both", seed=0)

    took = []

    def ours() -> np.ndarray:
        start = time.perf_counter()
        summaries = SummarySet(rdms.reshape(-1, rdms.shape[-1]), options).prepare()
        shape = (subjects, regions)
        found = parallel.map_blocks(accuracies, cells, summaries, shape, draws, threads=CORES)
        answer = np.array(list(found))
        took.append(time.perf_counter() - start)
        return answer

    def peer() -> np.ndarray:
        return np.array(
            [
                [
                    published(rdms, cell.lower, cell.upper, who, what)
                    for who, what in zip(draws.subjects[:few], draws.stimuli[:few])
                ]
                for cell in cells[::every]
            ]
        )

    return side_by_side(
        ours,
        peer,
        difference=lambda mine, theirs: largest_difference(mine[::every, :few], theirs),
        tolerance=1e-9,
        package="numpy",
        note=lambda *_: (
            f"seconds a sample of a cell, {subjects} subjects x {regions} regions x {stimuli} "
            f"stimuli: ours all {samples} samples of all {len(cells)} cells, statistics included, "
            f"in {np.median(took[1:]):.1f} s; the peer the published procedure written out, the "
            f"first {few} samples of {len(cells[::every])} cells"
        ),
        ours_units=len(cells) * samples,
        peer_units=len(cells[::every]) * few,
    )


def accuracies(
    cell: Statistic, summaries: SummarySet, shape: tuple[int, int], draws: Draws
) -> np.ndarray:
    """Return the accuracy of each bootstrap sample by one statistic."""
    values = summaries.compute(cell).reshape(*shape, -1)
    shares = bootstrap_accuracy(values, draws)
    return (shares * draws.subjects).sum(axis=1) / draws.subjects.sum(axis=1)


def published(
    rdms: np.ndarray, lower: float, upper: float, who: np.ndarray, what: np.ndarray
) -> float:
    """Return the accuracy of one bootstrap sample as the words of the source say it.

    Each drawn RDM is transformed, its rows and columns repeated as drawn, pairs of copies left
    out; each drawn subject is left out with its copies, and its regions are those of the nearest
    centroids.
    """
    drawn = np.repeat(np.arange(len(who)), who)
    rows = np.repeat(np.arange(len(what)), what)
    first, second = np.triu_indices(len(rows), 1)
    apart = rows[first] != rows[second]
    statistics = []
    for subject in drawn:
        of_subject = []
        for rdm in rdms[subject]:
            ranks = rankdata(rdm)
            x = (ranks - ranks.min()) / (ranks.max() - ranks.min())
            low, high = np.quantile(x, [lower, upper])
            square = squareform(np.clip((x - low) / (high - low), 0, 1))
            resampled = square[np.ix_(rows, rows)]
            of_subject.append(resampled[first, second][apart])
        statistics.append(of_subject)
    found = []
    for subject, of_subject in zip(drawn, statistics):
        others = [values for other, values in zip(drawn, statistics) if other != subject]
        centroids = [np.mean([other[r] for other in others], axis=0) for r in range(rdms.shape[1])]
        for r, values in enumerate(of_subject):
            distances = [np.linalg.norm(values - centroid) for centroid in centroids]
            found.append(np.argmin(distances) == r)
    return float(np.mean(found))
