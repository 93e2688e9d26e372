"""Ridge against its peers, nothing leaks between folds, scores of noise average 0."""

import json
from pathlib import Path

import jsonschema
import nibabel
import numpy as np
import pytest
import torch
import xarray as xr
from himalaya.kernel_ridge import KernelRidgeCV
from himalaya.ridge import RidgeCV
from sklearn.linear_model import Ridge as SklearnRidge

from isocortex import encoding, store
from isocortex.encoding.fit import make_plan
from isocortex.encoding.ridge import Samples, Targets
from isocortex.errors import InputError

SCHEMA = Path(__file__).parents[2] / "workflow/schemas/config/encoding.json"
CPU = torch.device("cpu")
ALPHAS = [0.01, 0.1, 1.0, 10.0, 100.0]
CV = {"over": "run", "new_stimuli": True, "stimulus_folds": 5, "run_folds": 8}


def cross_validation(stimuli, runs, **options):
    return encoding.cross_validation_folds(stimuli, runs, **options)


def design(n_stimuli, n_runs, seed=0):
    """Every stimulus once a run, in another order each time."""
    rng = np.random.default_rng(seed)
    names = [f"s{index:03d}" for index in range(n_stimuli)]
    stimuli = [names[i] for _ in range(n_runs) for i in rng.permutation(n_stimuli)]
    return names, stimuli, [str(run) for run in range(n_runs) for _ in range(n_stimuli)]


def scores(features, responses, cv, *, alphas=ALPHAS, **options):
    return encoding.cross_validated_scores(
        [lambda: features],
        lambda first, last: responses[:, first:last],
        responses.shape[1],
        cv,
        alphas,
        **options,
    )


# --- ridge against peers ---------------------------------------------------------------------


@pytest.mark.parametrize(("n", "p"), [(40, 12), (30, 200)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-8)])
def test_same_numbers_as_himalaya(n, p, dtype, tolerance):
    rng = np.random.default_rng(1)
    features = rng.standard_normal((n + 10, p)) + 3
    targets = features @ rng.standard_normal((p, 9)) * 0.3 + rng.standard_normal((n + 10, 9)) * 3
    trained = np.arange(n)
    parts = np.array_split(rng.permutation(n), 4)
    peer_folds = [(np.setdiff1d(trained, part), np.sort(part)) for part in parts]
    kind, options = RidgeCV, {"fit_intercept": True}
    if p > n:  # the peer's dual form has no intercept: centre all by hand
        kind, options = KernelRidgeCV, {}
        features = features - features[:n].mean(0)
        targets = targets - targets[:n].mean(0)
    peer = kind(alphas=np.array(ALPHAS), cv=peer_folds, **options)
    peer.fit(features[:n], targets[:n])

    found = encoding.ridge_cv(
        features[:n],
        targets[:n],
        peer_folds,
        ALPHAS,
        test_features=features[n:],
        intercept=kind is RidgeCV,  # the peer's dual form has none in its folds
        dtype=dtype,
    )
    np.testing.assert_allclose(found.alpha, peer.best_alphas_, rtol=1e-6)
    expected = peer.predict(features[n:])
    np.testing.assert_allclose(found.prediction, expected, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("p", [6, 60])
def test_collapsed_repeats_equal_sklearn_on_all_trials(p):
    rng = np.random.default_rng(2)
    rows = rng.integers(0, 20, 50)  # uneven repeats of up to 20 stimuli
    features = rng.standard_normal((20, p))
    targets = rng.standard_normal((50, 4))
    new = rng.standard_normal((7, p))
    for solver in ("primal", "dual"):
        for alpha in ALPHAS:
            got = encoding.ridge_cv(
                features,
                targets,
                [],
                [alpha],
                test_features=new,
                row=rows,
                solver=solver,
                dtype=torch.float64,
            ).prediction
            peer = SklearnRidge(alpha=alpha).fit(features[rows], targets)
            np.testing.assert_allclose(got, peer.predict(new), atol=1e-8, err_msg=str(alpha))


def test_scores_equal_a_plain_loop_with_sklearn():
    """The whole nested procedure, trial by trial, with nothing collapsed or shared."""
    rng = np.random.default_rng(3)
    names, stimuli, runs = design(20, 3)
    index = np.array([names.index(s) for s in stimuli])
    for p in (5, 80):
        features = rng.standard_normal((20, p)).astype(np.float32) * 4 + 2
        signal = features[index] @ rng.standard_normal((p, 6)) / p
        responses = signal + rng.standard_normal((60, 6))
        cv = cross_validation(stimuli, runs, stimulus_folds=4)
        got, alpha = scores(features, responses, cv, dtype=torch.float64)
        run = np.array(runs)
        centred = responses.copy()
        for label in set(runs):
            centred[run == label] -= responses[run == label].mean(0)
        r, logs = [], []
        for fold in cv.folds:
            train = np.flatnonzero(
                np.isin(cv.group, fold.train_groups) & np.isin(cv.stimulus, fold.train_stimuli)
            )
            x = features[index].astype(float)
            x = (x - x[train].mean(0)) / x[train].std(0) / np.sqrt(p)
            loss = np.zeros((len(ALPHAS), 6))
            for split in fold.inner:
                a = [t for t in train if cv.stimulus[t] in split.train_stimuli]
                b = [t for t in train if cv.stimulus[t] in split.test_stimuli]
                for row, value in enumerate(ALPHAS):
                    model = SklearnRidge(alpha=value).fit(x[a], centred[a])
                    loss[row] += ((model.predict(x[b]) - centred[b]) ** 2).mean(0)
            best = loss.argmin(0)
            for voxel in range(6):
                model = SklearnRidge(alpha=ALPHAS[best[voxel]]).fit(x[train], centred[train, voxel])
                tested = fold.test_trials
                r.append(np.corrcoef(model.predict(x[tested]), centred[tested, voxel])[0, 1])
            logs.append(np.log(np.array(ALPHAS)[best]))
        np.testing.assert_allclose(got[0], np.reshape(r, (-1, 6)).mean(0), atol=1e-8)
        np.testing.assert_allclose(alpha[0], np.exp(np.mean(logs, 0)), rtol=1e-10)
        single, _ = scores(features, responses, cv, dtype=torch.float32)
        np.testing.assert_allclose(single, got, atol=1e-4)


# --- folds ------------------------------------------------------------------------------------


@pytest.mark.parametrize("new_stimuli", [True, False])
@pytest.mark.parametrize("n_runs", [1, 2, 3, 5])
def test_test_trials_share_nothing_with_what_trains(n_runs, new_stimuli):
    _, stimuli, runs = design(23, n_runs)
    cv = cross_validation(stimuli, runs, new_stimuli=new_stimuli)
    tested = np.concatenate([fold.test_trials for fold in cv.folds])
    assert sorted(tested) == list(range(23 * n_runs))  # every trial is tested once
    for fold in cv.folds:
        trains = np.isin(cv.group, fold.train_groups) & np.isin(cv.stimulus, fold.train_stimuli)
        assert trains.any()
        assert not trains[fold.test_trials].any()
        if n_runs > 1:
            assert not set(cv.group[trains]) & set(cv.group[fold.test_trials])
        if new_stimuli or n_runs == 1:
            assert not set(cv.stimulus[trains]) & set(cv.stimulus[fold.test_trials])
        assert len(fold.inner) > 1
        for split in fold.inner:
            assert set(split.train_groups) <= set(fold.train_groups)
            assert set(split.test_groups) <= set(fold.train_groups)
            assert set(split.train_stimuli) | set(split.test_stimuli) <= set(fold.train_stimuli)
            assert not (
                set(split.train_stimuli) & set(split.test_stimuli)
                and set(split.train_groups) & set(split.test_groups)
            )


def test_folds_follow_ids_not_trial_order():
    _, stimuli, runs = design(20, 2)
    order = np.random.default_rng(5).permutation(40)
    first = cross_validation(stimuli, runs)
    other = cross_validation(
        [stimuli[i] for i in np.sort(order)[::-1]], [runs[i] for i in np.sort(order)[::-1]]
    )
    sets = lambda cv: {tuple(sorted(set(cv.stimulus[f.test_trials]))) for f in cv.folds}  # noqa: E731
    assert sets(first) == sets(other)


def test_runs_with_stimuli_of_their_own_are_new_already():
    stimuli = [f"s{index}" for index in range(30)]
    cv = cross_validation(stimuli, [str(index // 10) for index in range(30)])
    assert len(cv.folds) == 3
    assert all(len(fold.train_stimuli) == 20 for fold in cv.folds)


def test_many_runs_are_held_out_in_groups():
    _, stimuli, runs = design(12, 20)
    cv = cross_validation(stimuli, runs, new_stimuli=False, run_folds=6)
    assert len(cv.folds) == 6
    assert cv.groups[0] == "0+1+2+3"


def test_too_few_stimuli_is_one_clear_line():
    with pytest.raises(InputError, match=r"5 different stimuli in subject 01.*at least 6"):
        cross_validation(["a", "b", "c", "d", "e"] * 2, ["1"] * 5 + ["2"] * 5, where="subject 01")
    assert len(cross_validation(list("abcdef") * 2, ["1"] * 6 + ["2"] * 6).folds) == 4


# --- what scores mean -------------------------------------------------------------------------


@pytest.mark.parametrize("n_runs", [1, 3])
@pytest.mark.parametrize("new_stimuli", [True, False])
def test_scores_of_noise_average_zero(n_runs, new_stimuli):
    rng = np.random.default_rng(6)
    _, stimuli, runs = design(30, n_runs)
    cv = cross_validation(stimuli, runs, new_stimuli=new_stimuli)
    means = []
    for _ in range(40):  # features are drawn anew: voxels share them, so are not independent
        features = rng.standard_normal((30, 20)).astype(np.float32)
        responses = rng.standard_normal((30 * n_runs, 50)).astype(np.float32) + 5
        means.append(scores(features, responses, cv)[0].mean())
    error = np.std(means, ddof=1) / np.sqrt(len(means))
    assert abs(np.mean(means)) < 2.58 * error  # 99 % of a true mean of 0
    assert abs(np.mean(means)) < 0.01


def test_repeated_noise_is_no_signal_on_new_stimuli():
    """A response that is specific to each stimulus but not in the features scores 0."""
    rng = np.random.default_rng(7)
    names, stimuli, runs = design(40, 3)
    index = np.array([names.index(s) for s in stimuli])
    means = {True: [], False: []}
    for _ in range(20):
        features = rng.standard_normal((40, 60)).astype(np.float32)
        responses = rng.standard_normal((40, 40))[index] + 0.5 * rng.standard_normal((120, 40))
        for new in means:
            cv = cross_validation(stimuli, runs, new_stimuli=new)
            means[new].append(scores(features, responses, cv)[0].mean())
    error = np.std(means[True], ddof=1) / np.sqrt(20)
    assert abs(np.mean(means[True])) < 2.86 * error  # t(19), 99 %
    assert np.mean(means[False]) > 0.5  # with known stimuli ridge merely remembers them


def test_signal_reaches_its_ceiling():
    rng = np.random.default_rng(8)
    names, stimuli, runs = design(200, 3)
    index = np.array([names.index(s) for s in stimuli])
    features = rng.standard_normal((200, 4)).astype(np.float32)
    signal = features @ rng.standard_normal((4, 100))
    signal /= signal.std(0)
    responses = signal[index] + rng.standard_normal((600, 100))
    cv = cross_validation(stimuli, runs)
    score, _ = scores(features, responses, cv)
    # ncsnr 1: the ceiling of single trials is a half of the variance, r = .707; four weights
    # from 320 trials cost less than .02 of it
    assert 0.68 < score.mean() < 0.72


def test_constant_collinear_and_missing():
    rng = np.random.default_rng(9)
    _, stimuli, runs = design(24, 2)
    good = rng.standard_normal((24, 3)).astype(np.float32)
    padded = np.concatenate([good, np.full((24, 2), 1e4, np.float32)], 1)
    responses = rng.standard_normal((48, 6)).astype(np.float32)
    cv = cross_validation(stimuli, runs)
    plain, _ = scores(good, responses, cv, dtype=torch.float64)
    with_constants, _ = scores(padded, responses, cv, dtype=torch.float64)
    np.testing.assert_allclose(with_constants, plain, atol=1e-8)
    doubled, _ = scores(np.tile(good, 20), responses, cv, dtype=torch.float64)
    np.testing.assert_allclose(doubled, plain, atol=1e-6)  # rank 3 of 60, dual form
    nothing, _ = scores(np.ones((24, 5), np.float32), responses, cv)
    np.testing.assert_array_equal(nothing, 0)
    responses[3, 1], responses[:, 2], responses[5, 4] = np.nan, 7.3, np.inf
    score, alpha = scores(good, responses, cv)
    assert np.isnan(score[0, [1, 2, 4]]).all()
    assert np.isnan(alpha[0, [1, 2, 4]]).all()
    np.testing.assert_allclose(score[0, [0, 3, 5]], plain[0, [0, 3, 5]], atol=1e-4)


def test_blocks_of_voxels_and_units_of_responses_change_nothing():
    rng = np.random.default_rng(10)
    _, stimuli, runs = design(24, 2)
    features = rng.standard_normal((24, 40)).astype(np.float32)
    responses = rng.standard_normal((48, 37))
    cv = cross_validation(stimuli, runs)
    whole, _ = scores(features, responses, cv)
    parts, _ = scores(features, responses, cv, voxel_batch=5)
    np.testing.assert_allclose(parts, whole, atol=1e-5)
    scaled, _ = scores(features * 100 + 3, responses * 40 - 9, cv)
    np.testing.assert_allclose(scaled, whole, atol=1e-3)


def test_few_decompositions_at_a_time_change_nothing(monkeypatch):
    rng = np.random.default_rng(10)
    _, stimuli, runs = design(24, 2)
    features = rng.standard_normal((24, 40)).astype(np.float32)
    responses = rng.standard_normal((48, 7))
    cv = cross_validation(stimuli, runs)
    whole, _ = scores(features, responses, cv)
    monkeypatch.setattr(encoding.fit, "PLAN_BYTES", 1)
    np.testing.assert_array_equal(scores(features, responses, cv)[0], whole)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_cuda_equals_cpu():
    rng = np.random.default_rng(11)
    _, stimuli, runs = design(60, 3)
    features = rng.standard_normal((60, 500)).astype(np.float32)
    responses = rng.standard_normal((180, 300))
    cv = cross_validation(stimuli, runs)
    np.testing.assert_allclose(
        scores(features, responses, cv, device="cuda")[0],
        scores(features, responses, cv)[0],
        atol=1e-3,
    )


def test_choice_of_penalty_never_sees_the_test_trials():
    rng = np.random.default_rng(12)
    _, stimuli, runs = design(24, 2)
    features = torch.from_numpy(rng.standard_normal((24, 40)).astype(np.float32))
    cv = cross_validation(stimuli, runs)
    fold = cv.folds[0]
    changed = features.clone()
    changed[np.unique(cv.stimulus[fold.test_trials])] += 50
    samples = Samples.of_fold(cv, fold)
    targets = Targets(samples, torch.from_numpy(rng.standard_normal((48, 9))))
    for pca in (None, 4):
        losses = [
            make_plan(f, samples, ALPHAS, pca=pca, dtype=torch.float64).losses(targets)
            for f in (features, changed)
        ]
        torch.testing.assert_close(*losses)


# --- the stage --------------------------------------------------------------------------------


def write_betas(
    path, responses, stimuli, runs, *, subject="01", ncsnr=None, space="MNI", conditions=None
):
    """A betas store; whatever the spec wants beyond these is filled with zeros."""
    n_trials, n_voxels = responses.shape
    shape = [min(n_voxels, 1000), 2, max(2, -(-n_voxels // 1000))]
    given = {
        "beta": np.asarray(responses, np.float32),
        "ncsnr": np.full(n_voxels, 1, np.float32) if ncsnr is None else ncsnr.astype(np.float32),
        "stimulus": np.array(stimuli, dtype=object),
        "run": np.array(runs, dtype=object),
        "condition": np.array(conditions or ["x"] * n_trials, dtype=object),
        "i": np.arange(n_voxels, dtype=np.int32) % 1000,
        "j": np.ones(n_voxels, np.int32),
        "k": np.arange(n_voxels, dtype=np.int32) // 1000,
    }
    sizes = {"trial": n_trials, "voxel": n_voxels}
    arrays = {}
    for key, array in store.SPECS["betas"].arrays.items():
        if key not in given:
            size = tuple(sizes.get(dim, 2) for dim in array.dims)
            text = array.kind == "str"
            given[key] = np.full(size, "x", object) if text else np.zeros(size, array.kind)
        arrays[key] = (array.dims, given[key])
    attrs = dict.fromkeys(store.SPECS["betas"].attrs, "")
    attrs |= {"affine": np.diag([3.0, 3, 3, 1]).tolist(), "shape": shape, "space": space}
    dataset = xr.Dataset(arrays, attrs=attrs | {"subject": subject, "task": "objects"})
    store.write(dataset, path, spec="betas")
    return path


DIMS = {2: ("unit",), 3: ("token", "unit"), 4: ("channel", "row", "column")}


def write_features(path, layers, names, *, model="net"):
    groups = {
        layer: xr.Dataset(
            {"activation": (("stimulus", *DIMS[values.ndim]), values.astype(np.float32))},
            coords={"stimulus": np.array(names, dtype=object)},
            attrs={"model": model, "layer": layer, "weights": "", "preprocessing": ""},
        )
        for layer, values in layers.items()
    }
    store.write(groups, path, spec="features")
    return path


def fit(tmp_path, betas, features, *, name="encoding", **options):
    encoding.fit_encoding(
        responses=betas,
        features=features,
        out=tmp_path / f"{name}.zarr",
        maps=tmp_path / f"{name}_maps",
        **{"alphas": ALPHAS, "cross_validation": CV, **options},
    )
    return store.open(tmp_path / f"{name}.zarr", "encoding")


@pytest.fixture
def planted(tmp_path):
    """Two layers, 10 voxels each from one of them, 5 of noise; ncsnr 1, noise 0."""
    rng = np.random.default_rng(13)
    names, stimuli, runs = design(30, 3)
    layers = {f"layer{n}": rng.standard_normal((30, 8)) for n in (1, 2)}
    signal = [values @ rng.standard_normal((8, 10)) for values in layers.values()]
    signal = np.concatenate([*signal, np.zeros((30, 5))], 1)
    signal /= np.maximum(signal.std(0), 1e-9)
    index = np.array([names.index(s) for s in stimuli])
    responses = signal[index] + rng.standard_normal((90, 25)) * 0.7
    ncsnr = np.array([1.0] * 20 + [0.0] * 5)
    betas = write_betas(tmp_path / "betas.zarr", responses, stimuli, runs, ncsnr=ncsnr)
    return betas, layers, names, responses, stimuli, runs


def test_best_layer_ceilings_and_maps(tmp_path, planted):
    betas, layers, names, *_ = planted
    result = fit(tmp_path, betas, write_features(tmp_path / "f.zarr", layers, names))
    assert (result["best_layer"].values[:20] == [0] * 10 + [1] * 10).all()
    score = result["score"].values
    # Closed form: ncsnr 1 means half the variance, the highest correlation is its root
    np.testing.assert_allclose(result["noise_ceiling"].values[:20], np.sqrt(0.5), rtol=1e-6)
    np.testing.assert_allclose(
        result["score_normalised"].values[:, :20], score[:, :20] / np.sqrt(0.5), rtol=1e-6
    )
    assert np.isnan(result["score_normalised"].values[:, 20:]).all()
    assert result.attrs["n_voxels_ceiling_too_low"] == 5
    image = nibabel.load(
        tmp_path / "encoding_maps/sub-01_task-objects_model-net_space-MNI_stat-r_statmap.nii.gz"
    )
    assert image.shape == (25, 2, 2)
    np.testing.assert_allclose(image.get_fdata()[:, 1, 0], score.max(0), rtol=1e-6)
    best = nibabel.load(
        tmp_path / "encoding_maps/"
        "sub-01_task-objects_model-net_space-MNI_desc-bestlayer_dseg.nii.gz"
    )
    np.testing.assert_array_equal(best.get_fdata()[:20, 1, 0], [1] * 10 + [2] * 10)
    assert best.get_data_dtype() == np.int16


def test_scores_over_the_ceiling_are_kept_counted_and_warned_of(tmp_path, planted, caplog):
    _, layers, names, responses, stimuli, runs = planted
    low = write_betas(tmp_path / "low.zarr", responses, stimuli, runs, ncsnr=np.full(25, 0.3))
    result = fit(tmp_path, low, write_features(tmp_path / "f.zarr", layers, names))
    over = (result["score_normalised"].values > 1).sum()
    assert over > 0
    assert result.attrs["n_scores_above_ceiling"] == over
    assert "over 1" in result.attrs["warning"]
    assert "over 1" in caplog.text


def test_features_are_joined_by_id_not_by_order(tmp_path, planted):
    betas, layers, names, *_ = planted
    first = fit(tmp_path, betas, write_features(tmp_path / "a.zarr", layers, names), name="a")
    more = np.random.default_rng(0).permutation(30)
    shuffled = {
        key: np.concatenate([values[more], np.zeros((1, 8))]) for key, values in layers.items()
    }
    names = [*(names[index] for index in more), "not-shown"]
    other = fit(tmp_path, betas, write_features(tmp_path / "b.zarr", shuffled, names), name="b")
    assert (
        store.manifest(tmp_path / "a.zarr")["content"]
        == (store.manifest(tmp_path / "b.zarr")["content"])
    )
    np.testing.assert_array_equal(first["score"].values, other["score"].values)


def test_betas_that_are_read_in_blocks_give_the_same(tmp_path, planted, monkeypatch):
    betas, layers, names, *_ = planted
    features = write_features(tmp_path / "f.zarr", layers, names)
    whole = fit(tmp_path, betas, features, name="whole", voxel_batch=7)
    monkeypatch.setattr(encoding.design, "RESIDENT_BYTES", 1)
    parts = fit(tmp_path, betas, features, name="parts", voxel_batch=7)
    np.testing.assert_array_equal(whole["score"].values, parts["score"].values)


def test_without_repeats_there_is_no_ceiling_but_a_score(tmp_path, planted):
    _, layers, names, responses, stimuli, runs = planted
    betas = write_betas(tmp_path / "b.zarr", responses, stimuli, runs, ncsnr=np.full(25, np.nan))
    result = fit(tmp_path, betas, write_features(tmp_path / "f.zarr", layers, names))
    assert np.isfinite(result["score"].values).all()
    assert np.isnan(result["score_normalised"].values).all()
    assert result.attrs["n_voxels_ceiling_too_low"] == 25


def test_trials_without_a_stimulus_are_counted(tmp_path, planted):
    _, layers, names, responses, stimuli, runs = planted
    betas = write_betas(
        tmp_path / "more.zarr",
        np.concatenate([responses, np.full((2, 25), 99.0)]),
        [*stimuli, "n/a", ""],
        [*runs, "0", "1"],
    )
    features = write_features(tmp_path / "f.zarr", layers, names)
    result = fit(tmp_path, betas, features)
    assert result.attrs["n_trials_without_stimulus"] == 2
    plain = fit(tmp_path, planted[0], features, name="plain")
    np.testing.assert_array_equal(result["score"].values, plain["score"].values)


def test_the_seed_deals_the_stimuli_to_folds(tmp_path, planted):
    betas, layers, names, *_ = planted
    features = write_features(tmp_path / "f.zarr", layers, names)
    first, again, other = (
        fit(tmp_path, betas, features, name=f"e{k}", seed=seed) for k, seed in enumerate((3, 3, 4))
    )
    np.testing.assert_array_equal(first["score"].values, again["score"].values)
    assert (first["score"].values != other["score"].values).any()
    assert (first.attrs["seed"], other.attrs["seed"]) == (3, 4)


def test_one_run_and_plain_leave_one_run_out(tmp_path, planted):
    _, layers, names, responses, stimuli, _ = planted
    features = write_features(tmp_path / "f.zarr", layers, names)
    one = write_betas(tmp_path / "one.zarr", responses, stimuli, ["1"] * 90)
    result = fit(tmp_path, one, features)
    assert "one run x 5 folds of stimuli" in result.attrs["folds"]
    assert (result["best_layer"].values[:20] == [0] * 10 + [1] * 10).all()
    plain = fit(
        tmp_path, planted[0], features, cross_validation=CV | {"new_stimuli": False}, name="plain"
    )
    assert plain.attrs["folds"].startswith("3 outer folds: 3 groups of runs left out in turn;")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": "cuda"}, "cuda in encoding.device"),
        ({"alphas": []}, "encoding.alphas"),
        ({"alphas": {"minimum": 5, "maximum": 1, "number": 3}}, "encoding.alphas"),
    ],
)
def test_bad_options_in_one_line(tmp_path, planted, options, words):
    if options.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    betas, layers, names, *_ = planted
    with pytest.raises(InputError, match=words):
        fit(tmp_path, betas, write_features(tmp_path / "f.zarr", layers, names), **options)


def test_missing_stimulus_is_named(tmp_path, planted):
    betas, layers, names, *_ = planted
    cut = {key: values[:-2] for key, values in layers.items()}
    features = write_features(tmp_path / "f.zarr", cut, names[:-2])
    with pytest.raises(InputError, match=r"'s028' and 1 more of subject 01"):
        fit(tmp_path, betas, features)
    assert not (tmp_path / "encoding.zarr").exists()


def test_schema_is_closed_and_its_defaults_run(tmp_path, planted):
    schema = json.loads(SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    for good in ({"alphas": [1, 2]}, {"alphas": {"minimum": 1, "maximum": 2, "number": 3}}):
        jsonschema.validate(good, schema)
    for wrong in (
        {"alpha": [1]},
        {"alphas": [0]},
        {"alphas": []},
        {"alphas": {"minimum": 1}},
        {"cross_validation": {"over": "subject"}},
        {"cross_validation": {"seed": 0}},  # the study's seed serves all stages
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)
    options = {key: part["default"] for key, part in schema["properties"].items()}
    options["cross_validation"] = {
        key: part["default"]
        for key, part in schema["properties"]["cross_validation"]["properties"].items()
    }
    # Of other rules; outputs
    for key in ("summary", "readouts", "joint", "universal", "weights"):
        options.pop(key, None)
    betas, layers, names, *_ = planted
    result = fit(tmp_path, betas, write_features(tmp_path / "f.zarr", layers, names), **options)
    assert result.attrs["folds"].startswith("15 outer folds: 3 groups of runs")
