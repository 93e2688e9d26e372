"""Cross-validation over runs and stimuli, nested for the choice of the penalty."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from isocortex.errors import InputError

MIN_TEST_STIMULI = 3  # a correlation over fewer says nothing


@dataclass(frozen=True)
class Split:
    """One inner split. Groups index `CrossValidation.groups`, stimuli its `stimuli`."""

    train_groups: tuple[int, ...]
    train_stimuli: np.ndarray
    test_groups: tuple[int, ...]
    test_stimuli: np.ndarray


@dataclass(frozen=True)
class Fold:
    """One outer fold: what trains, which trials test, and the inner splits of what trains."""

    train_groups: tuple[int, ...]
    train_stimuli: np.ndarray
    test_trials: np.ndarray
    inner: tuple[Split, ...]


@dataclass(frozen=True)
class CrossValidation:
    """All folds over a set of trials.

    Parameters
    ----------
    stimuli
        Sorted unique stimulus ids.
    stimulus
        Index into `stimuli`, shape (trials,).
    groups
        Names of the groups of runs that are held out together.
    group
        Index into `groups`, shape (trials,).
    folds
        The outer folds.
    text
        What was done, in words.
    """

    stimuli: tuple[str, ...]
    stimulus: np.ndarray
    groups: tuple[str, ...]
    group: np.ndarray
    folds: tuple[Fold, ...]
    text: str


def cross_validation_folds(
    stimuli: Sequence[str],
    runs: Sequence[str],
    *,
    new_stimuli: bool = True,
    stimulus_folds: int = 5,
    run_folds: int = 8,
    seed: int = 0,
    where: str = "the trials",
) -> CrossValidation:
    """Make the folds.

    Parameters
    ----------
    stimuli, runs
        Stimulus id and run of each trial.
    new_stimuli
        Test trials are those of the held-out runs whose stimulus is in the held-out fold of
        stimuli; training trials are those of other runs with other stimuli. Where no stimulus
        is shown in two groups of runs, every held-out run is new already and stimuli are not
        folded. False: leave runs out, whatever their stimuli.
    stimulus_folds
        Number of folds of stimuli; fewer where a fold would have less than three.
    run_folds
        Most groups of runs; more runs than that are held out in groups of neighbours.
    seed
        Of the order in which stimuli are dealt to folds; the ids and it alone decide.
    where
        For messages: whose trials these are.

    Raises
    ------
    InputError
        Where there are too few stimuli to hold any out.

    Notes
    -----
    The inner splits, for the choice of the penalty, see the training trials alone. They hold
    out stimuli over all training runs where stimuli are held out outside, otherwise runs.
    One run only: folds over stimuli.
    """
    names, stimulus = np.unique(np.asarray(stimuli, dtype=str), return_inverse=True)
    run_names = list(dict.fromkeys(runs))
    parts = np.array_split(np.arange(len(run_names)), min(run_folds, len(run_names)))
    part_of_run = {run_names[run]: part for part, members in enumerate(parts) for run in members}
    group = np.array([part_of_run[run] for run in runs])
    groups = tuple("+".join(run_names[run] for run in members) for members in parts)

    shown = np.zeros((len(names), len(groups)), int)
    np.add.at(shown, (stimulus, group), 1)
    shared = bool(((shown > 0).sum(1) > 1).any())
    by_stimulus = len(groups) == 1 or (new_stimuli and shared)
    order = np.random.default_rng(seed).permutation(len(names))
    n_folds = 1
    if by_stimulus:
        n_folds = min(stimulus_folds, len(names) // MIN_TEST_STIMULI)
        if n_folds < 2:
            raise InputError(
                f"{len(names)} different stimuli in {where}: encoding needs at least "
                f"{2 * MIN_TEST_STIMULI} to predict stimuli that it was not trained on"
                + ("" if len(groups) == 1 else ", or set encoding.cross_validation.new_stimuli off")
            )
    fold_of = np.empty(len(names), int)
    fold_of[order] = np.arange(len(names)) % n_folds

    def present(groups_: tuple[int, ...], among: np.ndarray) -> np.ndarray:
        return among[shown[np.ix_(among, groups_)].sum(1) > 0]

    folds, skipped = [], 0
    for held_out in range(len(groups)):
        train_groups = tuple(g for g in range(len(groups)) if g != held_out) or (0,)
        for part in range(n_folds):
            test = np.flatnonzero((group == held_out) & (fold_of[stimulus] == part))
            training = present(
                train_groups,
                np.flatnonzero(fold_of != part) if by_stimulus else np.arange(len(names)),
            )
            if len(np.unique(stimulus[test])) < MIN_TEST_STIMULI or len(training) < 2:
                skipped += 1
                continue
            inner = _inner(
                train_groups,
                training,
                present,
                order,
                by_stimulus=by_stimulus,
                n_folds=n_folds - 1 if by_stimulus else stimulus_folds,
            )
            folds.append(Fold(train_groups, training, test, inner))
    if not folds:
        raise InputError(
            f"no fold of {where} has {MIN_TEST_STIMULI} different stimuli to test on: set "
            "encoding.cross_validation.stimulus_folds lower or over to session"
        )
    text = (
        f"{len(folds)} outer folds: "
        + (f"{len(groups)} groups of runs left out in turn" if len(groups) > 1 else "one run")
        + (f" x {n_folds} folds of stimuli left out" if by_stimulus else "")
        + (f", {skipped} with fewer than {MIN_TEST_STIMULI} stimuli skipped" if skipped else "")
        + f"; penalty by nested cross-validation over {len(folds[0].inner)} inner folds"
    )
    return CrossValidation(tuple(map(str, names)), stimulus, groups, group, tuple(folds), text)


def _inner(train_groups, training, present, order, *, by_stimulus, n_folds) -> tuple[Split, ...]:
    """Inner splits: over stimuli, or over runs where those are what is held out outside."""
    splits = []
    if not by_stimulus and len(train_groups) > 1:
        for held_out in train_groups:
            rest = tuple(g for g in train_groups if g != held_out)
            splits.append(
                Split(rest, present(rest, training), (held_out,), present((held_out,), training))
            )
        return tuple(splits)
    ranked = order[np.isin(order, training)]
    count = min(max(2, n_folds), len(ranked))
    for part in range(count):
        test = np.sort(ranked[part::count])
        train = np.setdiff1d(training, test)
        splits.append(Split(train_groups, train, train_groups, test))
    return tuple(splits)
