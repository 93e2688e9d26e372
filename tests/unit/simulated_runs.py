"""Time series with known responses, for tests of estimators."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from isocortex.glm.design import make_design, make_trials
from isocortex.glm.estimators import Estimates
from isocortex.glm.prepare import PreparedRun
from isocortex.glm.scratch import RunBlocks
from isocortex.hrf_library import hrf_library

TR = 2.0
N_HRFS = 20


class ArraySeries:
    """A `isocortex.glm.series.Series` of arrays in memory."""

    def __init__(self, data, *, level=500.0, block_voxels=128):
        self.data = [np.asarray(values, dtype=np.float64) for values in data]
        self.n_voxels = self.data[0].shape[1]
        self.n_volumes = [len(values) for values in self.data]
        starts = range(0, self.n_voxels, block_voxels)
        self.blocks = [slice(k, min(k + block_voxels, self.n_voxels)) for k in starts]
        self.usable = np.isfinite(np.vstack(self.data)).all(axis=0)
        self.level = np.broadcast_to(level, self.n_voxels)

    def read(self, run, part):
        return self.data[run][:, part].copy()

    def mean(self, run, part):
        return self.level[part]

    def select(self, runs):
        return ArraySeries([self.data[run] for run in runs], level=self.level)


@dataclass
class Simulation:
    """Runs, their time series, and what was planted."""

    runs: list[PreparedRun]
    data: list[np.ndarray]
    truth: np.ndarray  # (n_trials of all runs, n_voxels)
    hrf: np.ndarray  # (n_voxels,)

    def part(self, runs):
        return [self.runs[run] for run in runs], [self.data[run] for run in runs]


def autocorrelated(rng, shape, rho):
    """Normal noise of variance 1 whose neighbours in time correlate."""
    noise = rng.standard_normal(shape)
    for row in range(1, len(noise)):
        noise[row] = rho * noise[row - 1] + np.sqrt(1 - rho**2) * noise[row]
    return noise


def simulate(
    *,
    n_runs=4,
    n_volumes=150,
    n_trials=50,
    n_stimuli=50,
    spacing=5.0,
    noise=0.3,
    mean=1.0,
    spread=1.0,
    shared=0.0,
    n_voxels=120,
    n_responsive=None,
    hrf=None,
    rho=0.3,
    unique=False,
    seed=0,
):
    """Simulate a rapid event-related study, each stimulus once a run in a new order.

    Responses are normal with a mean and a spread over stimuli; noise is autocorrelated, and
    ``shared`` is the size of three components that all voxels have in common.
    """
    rng = np.random.default_rng(seed)
    library = hrf_library(N_HRFS)
    if hrf is None:
        hrf = rng.integers(0, N_HRFS, n_voxels)
    hrf = np.broadcast_to(hrf, n_voxels)
    n_responsive = n_voxels if n_responsive is None else n_responsive
    loadings = rng.standard_normal((3, n_voxels))
    n_all = n_stimuli * (n_runs if unique else 1)
    response = np.zeros((n_all, n_voxels))
    response[:, :n_responsive] = mean + spread * rng.standard_normal((n_all, n_responsive))
    runs, data, truth = [], [], []
    for run in range(n_runs):
        shown = rng.permutation(n_stimuli)[:n_trials] + (run * n_stimuli if unique else 0)
        onset = 4 + spacing * np.arange(len(shown)) + rng.uniform(0, 1, len(shown))
        rows = [
            {"onset": o, "duration": 2.0, "trial_type": "image", "stim_file": f"{s:04d}.png"}
            for o, s in zip(onset, shown, strict=True)
        ]
        trials, table = make_trials(rows)
        design = make_design(trials, table, n_volumes=n_volumes, tr=TR, start_time=TR / 2)
        regressors = library.regressors(
            design.frame_times, onset, [2.0] * len(shown), range(len(shown)), n_trials=len(shown)
        )
        series = noise * autocorrelated(rng, (n_volumes, n_voxels), rho)
        series += shared * autocorrelated(rng, (n_volumes, 3), 0.7) @ loadings
        series += np.einsum("vtk,kv->tv", regressors[hrf], response[shown])
        runs.append(
            PreparedRun(
                name=f"{run + 1:02d}",
                session="",
                bold=Path(f"run-{run + 1}"),
                design=design,
                events=table,
                tr=TR,
                start_time=TR / 2,
                stimulus_column="stim_file",
            )
        )
        data.append(series)
        truth.append(response[shown])
    return Simulation(runs, data, np.concatenate(truth), np.array(hrf))


def estimate(estimator, folder, runs, data, *, threads=1, level=500.0, block_voxels=256, **options):
    """Return an estimator's `Estimates`, betas (n_trials, n_voxels) and residuals."""
    series = ArraySeries(data, level=level, block_voxels=block_voxels)
    rows = [len(run.design.trials) for run in runs]
    beta, residual = (
        RunBlocks(folder / name, n, series.n_voxels, block_voxels=block_voxels)
        for name, n in (("beta", rows), ("residual", series.n_volumes))
    )
    found: Estimates = estimator(
        series, runs, beta=beta, residual=residual, threads=threads, **options
    )
    everything = slice(0, series.n_voxels)
    return found, beta.read_all(everything), residual.read_all(everything)


def correlate(first, second):
    """Pearson correlation of columns."""
    first, second = first - first.mean(axis=0), second - second.mean(axis=0)
    return np.sum(first * second, axis=0) / np.sqrt(
        np.sum(first**2, axis=0) * np.sum(second**2, axis=0)
    )


def stimulus_means(runs, beta):
    """Mean response to each stimulus, in the order of their names."""
    names = [trial.stimulus for run in runs for trial in run.design.trials]
    labels, number = np.unique(names, return_inverse=True)
    return np.array([beta[number == k].mean(axis=0) for k in range(len(labels))])
