"""Haxby et al. (2001), one slice, through the derivatives: responses to blocks of eight kinds."""

import numpy as np
import pytest

from isocortex import store
from isocortex.glm import estimate_noise_ceiling, fit_glm

KINDS = {"bottle", "cat", "chair", "face", "house", "scissors", "scrambledpix", "shoe"}
ENDING = "_space-T1w_desc-preproc_bold.nii.gz"


def fit(data, out, **options):
    root = data / "haxby2001-slice"
    func = root / "derivatives" / "preproc" / "sub-01" / "func"
    bold = sorted(func.glob(f"*{ENDING}"))
    assert len(bold) == 12
    stems = [path.name.removesuffix(ENDING) for path in bold]
    fit_glm(
        bold=bold,
        mask=[func / f"{stem}_space-T1w_desc-brain_mask.nii.gz" for stem in stems],
        confounds=[func / f"{stem}_desc-confounds_timeseries.tsv" for stem in stems],
        sidecar=[func / f"{stem}_space-T1w_desc-preproc_bold.json" for stem in stems],
        events=[root / "sub-01" / "func" / f"{stem}_events.tsv" for stem in stems],
        runs=[{"session": None, "run": stem[-2:]} for stem in stems],
        out=out,
        subject="01",
        task="objectviewing",
        space="T1w",
        trials="condition",
        **options,
    )
    return store.open(out, "betas").load()


@pytest.fixture(scope="module")
def betas(data, tmp_path_factory):
    return fit(data, tmp_path_factory.mktemp("haxby") / "betas.zarr")


@pytest.fixture(scope="module")
def halves(data, tmp_path_factory):
    """Odd and even runs, which share nothing, by each estimator."""
    folder = tmp_path_factory.mktemp("haxby")
    return {
        name: fit(data, folder / f"{name}.zarr", estimator=name, split_half=True)
        for name in ("lsa", "lss", "optimised")
    }


def test_one_beta_for_each_kind_and_run(betas):
    assert betas.sizes["trial"] == 8 * 12
    assert betas.sizes["voxel"] == 511
    assert betas.sizes["time"] == 12 * 121
    pairs = set(zip(betas.condition.values, betas.run.values, strict=True))
    assert len(pairs) == 96
    assert list(betas.stimulus.values) == list(betas.condition.values)
    assert betas.attrs["stimulus_column"] == "trial_type"


def test_odd_and_even_runs_identify_the_kinds(betas):
    # Responsive voxels are chosen by the mean response to all kinds, which favours none of them.
    patterns = betas.beta.values[:, (betas.z_stimulus > 3.1).values].astype(float)
    condition = betas.condition.values
    odd = betas.run.values.astype(int) % 2 == 1
    kinds = sorted(set(condition))
    halves = []
    for half in (odd, ~odd):
        means = np.array([patterns[half & (condition == kind)].mean(axis=0) for kind in kinds])
        halves.append(means - means.mean(axis=0))
    agreement = np.corrcoef(*halves)[:8, 8:]
    same = np.diag(agreement)
    assert (agreement.argmax(axis=0) == np.arange(8)).sum() >= 6
    assert (agreement.argmax(axis=1) == np.arange(8)).sum() >= 6
    assert same.mean() > 0.25
    assert agreement[~np.eye(8, dtype=bool)].mean() < 0


def test_noise_ceiling_is_above_that_of_shuffled_labels(betas):
    ceiling = betas.noise_ceiling.values
    assert ((ceiling >= 0) & (ceiling <= 1)).all()
    rng = np.random.default_rng(0)
    runs, stimulus = betas.run.values, betas.stimulus.values
    null = []
    for _ in range(40):
        shuffled = stimulus.copy()
        for run in np.unique(runs):
            shuffled[runs == run] = rng.permutation(shuffled[runs == run])
        null.append(estimate_noise_ceiling(betas.beta.values, shuffled, [""] * 96)[0].mean())
    assert ceiling.mean() > max(null)


def test_estimators_side_by_side(halves):
    """Odd and even runs agree at least as well by the other estimators as by least squares."""
    responsive = halves["lsa"].z_stimulus.values > 3.1
    found = {
        name: np.median(betas.reliability.values[responsive]) for name, betas in halves.items()
    }
    print("median reliability over runs:", {k: round(float(v), 3) for k, v in found.items()})
    assert found["lsa"] > 0.3
    assert found["lss"] > found["lsa"] - 0.05
    assert found["optimised"] > found["lsa"] + 0.02
    # What holds for halves is the correlation with which the halves themselves are told.
    betas = halves["lsa"]
    means = []
    for half in (1, 2):
        part = betas.isel(trial=betas.half.values == half)
        values = part.beta.values.astype(float)
        means.append([values[part.condition.values == k].mean(axis=0) for k in sorted(KINDS)])
    first, second = (np.array(m) - np.mean(m, axis=0) for m in means)
    expected = (first * second).sum(0) / np.sqrt((first**2).sum(0) * (second**2).sum(0))
    np.testing.assert_allclose(betas.reliability.values, expected, atol=1e-4)


def test_intervals_of_the_noise_ceiling_hold_it(betas):
    low, high = betas.noise_ceiling_low.values, betas.noise_ceiling_high.values
    assert ((low <= betas.noise_ceiling.values + 1e-6) & (betas.noise_ceiling.values <= high)).all()
    # Eight stimuli say little about a single voxel.
    assert np.median(high - low) > 0.3
