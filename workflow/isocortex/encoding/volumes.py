"""Designs of continuous stimuli: delayed features of volumes, folds that do not leak in time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import xarray as xr

from isocortex import store
from isocortex.encoding.delays import (
    NO_STIMULUS,
    Events,
    Samples,
    delayed,
    place_samples,
    resampling_weights,
    whole_volumes,
)
from isocortex.encoding.design import Design, Responses
from isocortex.encoding.folds import CrossValidation, Fold, Split
from isocortex.errors import InputError

DELAYS = (2.0, 4.0, 6.0, 8.0)
"""Delays in seconds that span a haemodynamic response (Huth et al. 2016)."""
GAP = 8.0
MIN_TEST_VOLUMES = 5
_ENOUGH = 0.5
"""Least share of the other volumes that must be left to train on for runs to be left out whole."""


@dataclass(frozen=True)
class Timeline:
    """The volumes of all runs on their scanner's grids, from each run's start without holes.

    Volumes that the store lacks (non-steady state) are on the grid: features of their time are
    delayed into later volumes.

    Attributes
    ----------
    runs
        Run names, in the order of the store.
    first
        Middle of the first volume of each run's grid, s.
    n_volumes
        Volumes of each run's grid.
    start
        Position of each run's first volume among all runs' grids.
    rows
        Position of each sample of the store among all runs' grids.
    run
        Index into `runs` of each sample.
    tr
        Repetition time, s.
    """

    runs: tuple[str, ...]
    first: np.ndarray
    n_volumes: np.ndarray
    start: np.ndarray
    rows: np.ndarray
    run: np.ndarray
    tr: float

    @property
    def grid_run(self) -> np.ndarray:
        """Index into `runs` of each position of the grids."""
        return np.repeat(np.arange(len(self.runs)), self.n_volumes)


def timeline(runs: Sequence[str], times: Sequence[float], tr: float, *, where: str) -> Timeline:
    """Lay the volumes of a store out on the grids of their runs.

    Parameters
    ----------
    runs, times
        Run of each volume, and the middle of its acquisition from the run's start, s.
    tr
        Repetition time, s.
    where
        For messages.

    Raises
    ------
    InputError
        Where times are not those of volumes one TR apart.
    """
    labels, times = np.asarray(runs), np.asarray(times, float)
    if not tr > 0:
        raise InputError(f"the TR of {where} is {tr:g} s: give it above 0")
    names = tuple(dict.fromkeys(labels.tolist()))
    rows = np.empty(len(labels), int)
    run = np.empty(len(labels), int)
    first, count = np.empty(len(names)), np.empty(len(names), int)
    for number, name in enumerate(names):
        members = np.flatnonzero(labels == name)
        own = times[members]
        # a run's first volume stands within its first TR, wherever slices were brought to
        before = max(0, int(np.floor(own[0] / tr + 1e-6)))
        first[number] = own[0] - before * tr
        steps = (own - first[number]) / tr
        position = np.rint(steps).astype(int)
        if (np.abs(steps - position) > 0.05).any() or (np.diff(position) < 1).any():
            raise InputError(
                f"times of run {name} of {where} are not one TR ({tr:g} s) apart: correct the TR"
            )
        count[number] = position[-1] + 1
        rows[members], run[members] = position, number
    start = np.concatenate([[0], np.cumsum(count)[:-1]]).astype(int)
    return Timeline(names, first, count, start, rows + start[run], run, tr)


def features_in_volumes(
    line: Timeline, events: Events, samples: Samples, *, method: str, where: str
) -> scipy.sparse.csr_array:
    """Return the weights that take a features store's rows to all positions of the grids.

    Returns
    -------
    scipy.sparse.csr_array, shape (positions, rows of the features)

    Raises
    ------
    InputError
        Where a stimulus has no features, or no stimulus was shown in any run.
    """
    blocks = []
    n_shown = 0
    for number, name in enumerate(line.runs):
        row, start, duration = place_samples(events, name, samples, where=where)
        n_shown += row.size
        weights = resampling_weights(
            start,
            duration,
            first=line.first[number],
            tr=line.tr,
            n_volumes=int(line.n_volumes[number]),
            method=method,
        )
        to_rows = scipy.sparse.csr_array(
            (np.ones(row.size), (np.arange(row.size), row)), shape=(row.size, len(samples.ids))
        )
        blocks.append(weights @ to_rows)
    if not n_shown:
        raise InputError(f"no event of {where} names a stimulus: check the events tables")
    return scipy.sparse.csr_array(scipy.sparse.vstack(blocks, format="csr", dtype=np.float32))


def content_of(line: Timeline, events: Events, longest: int) -> scipy.sparse.csr_array:
    """Return which moments of which stimuli reach each sample of the store.

    Parameters
    ----------
    line, events
        Volumes and what was shown.
    longest
        Longest delay, volumes.

    Returns
    -------
    scipy.sparse.csr_array, shape (samples, moments)
        Not 0 where it does. A moment is one TR of a stimulus; those on either side count too,
        because stimuli need not start with a volume.
    """
    shown = [i for i, name in enumerate(events.stimulus) if name not in NO_STIMULUS]
    names = sorted({events.stimulus[i] for i in shown})
    last = dict.fromkeys(names, 0)
    parts: list[tuple[np.ndarray, np.ndarray, str]] = []
    for index in shown:
        if events.run[index] not in line.runs:
            continue
        number = line.runs.index(events.run[index])
        since = (line.first[number] - events.onset[index]) / line.tr
        since = since + np.arange(line.n_volumes[number])
        length = events.duration[index] / line.tr
        on = np.flatnonzero((since > -0.5) & (since < length + 0.5))
        moment = np.floor(since[on] + 0.5).astype(int)
        last[events.stimulus[index]] = max(last[events.stimulus[index]], int(moment.max(initial=0)))
        parts.append((on + line.start[number], moment, events.stimulus[index]))
    offset, total = {}, 0
    for name in names:
        offset[name], total = total, total + last[name] + 3
    row, column = [np.empty(0, int)], [np.empty(0, int)]
    ends = (line.start + line.n_volumes)[line.grid_run]
    for on, moment, name in parts:
        for delay in range(longest + 1):
            kept = on + delay < ends[on]
            for neighbour in (0, 1, 2):
                row.append(on[kept] + delay)
                column.append(offset[name] + moment[kept] + neighbour)
    rows, columns = np.concatenate(row), np.concatenate(column)
    table = scipy.sparse.csr_array(
        (np.ones(rows.size, np.float32), (rows, columns)), shape=(int(line.n_volumes.sum()), total)
    )
    return table[line.rows]


@dataclass(frozen=True)
class _Rules:
    """What may train where something is tested."""

    line: Timeline
    content: scipy.sparse.csr_array | None
    gap: int

    def train(self, candidates: np.ndarray, test: np.ndarray) -> np.ndarray:
        """Candidates that share neither time (within the gap) nor content with the test."""
        rows, runs = self.line.rows, self.line.run
        near = np.zeros(len(rows), bool)
        for run in np.unique(runs[test]):
            members = np.flatnonzero(runs == run)
            held = np.sort(rows[test[runs[test] == run]])
            after = np.searchsorted(held, rows[members])
            left = rows[members] - held[np.maximum(after - 1, 0)]
            right = held[np.minimum(after, len(held) - 1)] - rows[members]
            near[members] = np.minimum(np.abs(left), np.abs(right)) <= self.gap
        if self.content is not None:
            moments = np.asarray(self.content[test].sum(0)).ravel() > 0
            near |= self.content @ moments.astype(np.float32) > 0
        return candidates[~near[candidates]]

    def parts(self, rows: np.ndarray, n: int) -> list[np.ndarray]:
        """Contiguous parts of the runs: the first of every run, the second of every run, ..."""
        runs = self.line.run[rows]
        cut = [np.array_split(rows[runs == run], n) for run in np.unique(runs)]
        return [np.concatenate(part) for part in zip(*cut, strict=True)]

    def left(self, candidates: np.ndarray, tests: Sequence[np.ndarray]) -> float:
        """Least share of what is not tested that is left to train on, over splits."""
        shares = []
        for test in tests:
            rest = np.setdiff1d(candidates, test)
            shares.append(len(self.train(rest, test)) / max(len(rest), 1))
        return min(shares, default=0.0)


def volume_folds(
    line: Timeline,
    *,
    groups: Sequence[str],
    content: scipy.sparse.csr_array | None = None,
    gap: int = 0,
    blocks: int = 5,
    run_folds: int = 8,
    where: str = "the volumes",
) -> CrossValidation:
    """Make folds over volumes that share no time and, where asked for, no stimulus.

    Parameters
    ----------
    line
        The volumes.
    groups
        Of each volume: the run or session that is left out whole.
    content
        From `content_of`: volumes that a tested stimulus reaches do not train. None: they may.
    gap
        Volumes next to those tested, in the same run, that do not train.
    blocks
        Contiguous blocks that a run is cut into where it cannot be left out whole: because there
        is no other, or because the others show the same stimuli.
    run_folds
        Most groups of runs; more are left out in groups of neighbours.
    where
        For messages.

    Returns
    -------
    CrossValidation
        Every volume is a row of its own, ``<run>#<volume>``. Inner splits follow the same rules
        within what trains.

    Raises
    ------
    InputError
        Where there are too few volumes.

    Notes
    -----
    Neighbouring volumes share noise, and their delayed features share stimuli: random folds over
    volumes would predict the test from itself.
    """
    n = len(line.rows)
    numbers = line.rows - line.start[line.run]
    names = tuple(
        f"{line.runs[run]}#{number:06d}" for run, number in zip(line.run, numbers, strict=True)
    )
    labels = list(dict.fromkeys(groups))
    dealt = np.array_split(np.arange(len(labels)), min(run_folds, len(labels)))
    part_of = {labels[i]: part for part, members in enumerate(dealt) for i in members}
    group = np.array([part_of[name] for name in groups])
    rules = _Rules(line, content, gap)
    everything = np.arange(n)
    whole = [np.flatnonzero(group == number) for number in range(len(dealt))]
    by_block = len(whole) == 1 or rules.left(everything, whole) < _ENOUGH
    folds, skipped = [], 0
    for number, members in enumerate(whole):
        others = tuple(g for g in range(len(whole)) if g != number) or (0,)
        candidates = np.flatnonzero(np.isin(group, others))
        for test in rules.parts(members, blocks) if by_block else [members]:
            train = rules.train(np.setdiff1d(candidates, test), test)
            inner = _inner_splits(rules, train, group, others, blocks=blocks, by_block=by_block)
            if len(test) < MIN_TEST_VOLUMES or len(train) < 2 * MIN_TEST_VOLUMES or not inner:
                skipped += 1
                continue
            folds.append(Fold(others, train, test, inner))
    if not folds:
        raise InputError(
            f"{n} volumes of {where} are too few to hold any out"
            + (f" with {gap} on either side of them" if gap and by_block else "")
            + ": lower encoding.gap, encoding.delays or encoding.cross_validation.stimulus_folds"
            + (
                ", or set encoding.cross_validation.new_stimuli off (all runs show the same)"
                if content is not None and len(whole) > 1
                else ""
            )
        )
    used = float(np.mean([len(fold.train_stimuli) for fold in folds]))
    purged = [f"{gap} volumes on either side"] if by_block else []
    purged += ["volumes that tested stimuli reach"] if content is not None else []
    text = (
        f"{len(folds)} outer folds: "
        + (f"{len(whole)} groups of runs left out in turn" if len(whole) > 1 else "one run")
        + (f", in {blocks} contiguous blocks of volumes" if by_block else "")
        + (f"; not trained on: {' and '.join(purged)}" if purged else "")
        + f"; {used:.0f} volumes train on average"
        + (f"; {skipped} folds with too few volumes skipped" if skipped else "")
        + f"; penalty by nested cross-validation over {len(folds[0].inner)} inner folds"
    )
    return CrossValidation(
        names,
        everything,
        tuple("+".join(labels[i] for i in members) for members in dealt),
        group,
        tuple(folds),
        text,
    )


def _inner_splits(
    rules: _Rules,
    training: np.ndarray,
    group: np.ndarray,
    groups: tuple[int, ...],
    *,
    blocks: int,
    by_block: bool,
) -> tuple[Split, ...]:
    """Splits of what trains: groups left out where that leaves enough, contiguous blocks else."""
    whole = [training[group[training] == number] for number in groups]
    tests = [test for test in whole if len(test) >= MIN_TEST_VOLUMES]
    if by_block or len(tests) < 2 or rules.left(training, tests) < _ENOUGH:
        parts = rules.parts(training, max(2, blocks - 1)) if len(training) else []
        tests = [test for test in parts if len(test) >= MIN_TEST_VOLUMES]
    splits = []
    for test in tests:
        train = rules.train(np.setdiff1d(training, test), test)
        if len(train) >= MIN_TEST_VOLUMES:
            splits.append(Split(groups, train, groups, test))
    return tuple(splits)


def volume_design(
    responses: Responses,
    features: str | Path,
    *,
    cross_validation: Mapping[str, Any] | None = None,
    seed: int = 0,
    delays: Sequence[float] | None = None,
    resampling: str = "average",
    gap: float = GAP,
    layers: Sequence[str] | None = None,
) -> Design:
    """Fold a subject's volumes and join them to a model's features by what was shown when.

    Parameters
    ----------
    responses
        Of a timeseries store.
    features
        Features store. Its rows are placed in time by ``source``, ``time`` and ``duration``; a
        row without source (an image) lasts as long as the event that shows it.
    cross_validation
        ``over`` (run or session), ``new_stimuli``, ``stimulus_folds`` (blocks of a run) and
        ``run_folds``, see `volume_folds`.
    seed
        Not used: folds in time have nothing random. Taken so that designs are made alike.
    delays
        Seconds, rounded to volumes; `DELAYS` where None.
    resampling
        ``average`` or ``lanczos``, see `isocortex.encoding.delays.resampling_weights`.
    gap
        Seconds next to tested volumes of the same run that do not train; the longest delay where
        that is more.
    layers
        Only these, in this order; all of the store where None.

    Returns
    -------
    Design
        ``load`` gives (volumes, delays x units), a delay after the other. ``load_maps`` keeps the
        layer's own dims, with delays x channels for channels, delays x units for units.

    Raises
    ------
    InputError
        Where a stimulus has no features, a layer is not there, or there are too few volumes.
    """
    options = dict(cross_validation or {})
    over = options.get("over", "run")
    if over not in ("run", "session"):
        raise InputError(
            f"encoding.cross_validation.over is {over!r}, which volumes do not have: choose run "
            "or session"
        )
    features = Path(features)
    tr = float(responses.attrs["TR"])
    where = responses.name
    line = timeline(responses.samples["run"], responses.samples["time"], tr, where=where)
    steps = whole_volumes(DELAYS if delays is None else delays, tr)
    events = events_of(responses.path)
    names = tuple(layers) if layers else tuple(store.groups(features))
    opened = {layer: store.open(features, "features", group=layer) for layer in names}
    weights: dict[str, scipy.sparse.csr_array] = {}
    known: list[tuple[Samples, scipy.sparse.csr_array]] = []
    for layer, data in opened.items():
        samples = samples_of(data)
        alike = (made for other, made in known if _same(other, samples))
        found = next(alike, None)
        if found is None:
            found = features_in_volumes(
                line, events, samples, method=resampling, where=f"{where} ({features})"
            )
            known.append((samples, found))
        weights[layer] = found
    content = None
    if options.get("new_stimuli", True):
        content = content_of(line, _lasting(events, known[0][0]), max(steps))
    apart = max(int(np.ceil(gap / tr - 1e-6)), max(steps))
    cv = volume_folds(
        line,
        groups=responses.samples[over] if over == "session" else responses.samples["run"],
        content=content,
        gap=apart,
        blocks=int(options.get("stimulus_folds", 5)),
        run_folds=int(options.get("run_folds", 8)),
        where=where,
    )

    def load(layer: str) -> np.ndarray:
        values = np.asarray(opened[layer]["activation"].values, np.float32)
        values = weights[layer] @ values.reshape(len(values), -1)
        return delayed(values, steps, runs=line.grid_run)[line.rows]

    def load_maps(layer: str) -> np.ndarray:
        shape = opened[layer]["activation"].shape[1:]
        values = load(layer).reshape(-1, len(steps), *shape)
        # delays go with what a readout weights: channels of maps, units of tokens
        if len(shape) == 2:
            return np.moveaxis(values, 1, 2).reshape(len(values), shape[0], -1)
        return values.reshape(len(values), -1, *shape[1:])

    attrs = dict(opened[names[0]].attrs) | {
        "delays_volumes": list(steps),
        "delays": [round(step * tr, 6) for step in steps],
        "resampling": resampling,
        "gap_volumes": apart,
    }
    return Design(cv, names, load, load_maps, str(attrs["model"]), attrs)


def events_of(path: str | Path) -> Events:
    """Return what was shown when from a timeseries store."""
    data = store.open(path, "timeseries")
    return Events(
        run=data["event_run"].values.astype(str),
        onset=data["event_onset"].values.astype(float),
        duration=np.nan_to_num(data["event_duration"].values.astype(float)),
        stimulus=data["event_stimulus"].values.astype(str),
    )


def samples_of(data: xr.Dataset) -> Samples:
    """Return the rows of a layer of a features store in time."""
    ids = data["stimulus"].values.astype(str)
    timed = "source" in data
    return Samples(
        ids=ids,
        source=data["source"].values.astype(str) if timed else np.full(len(ids), ""),
        time=data["time"].values.astype(float) if timed else np.full(len(ids), np.nan),
        duration=data["duration"].values.astype(float) if timed else np.full(len(ids), np.nan),
    )


def _same(one: Samples, other: Samples) -> bool:
    """Whether two layers have the same rows in time."""
    texts = all(np.array_equal(getattr(one, k), getattr(other, k)) for k in ("ids", "source"))
    return texts and all(
        np.array_equal(getattr(one, k), getattr(other, k), equal_nan=True)
        for k in ("time", "duration")
    )


def _lasting(events: Events, samples: Samples) -> Events:
    """Events whose unknown durations are those of their stimuli's samples."""
    duration = events.duration.copy()
    for index in np.flatnonzero(duration <= 0):
        own = (samples.source == events.stimulus[index]) & (samples.source != "")
        if own.any():
            duration[index] = (samples.time[own] + samples.duration[own]).max()
    return Events(events.run, events.onset, duration, events.stimulus)
