"""Options of the linear fit against scikit-learn, nothing leaks, sizes at the edges."""

import nibabel
import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from isocortex import encoding, store
from isocortex.encoding.components import principal_components
from isocortex.encoding.fit import fit_layers
from isocortex.encoding.permutation import permute_stimuli
from isocortex.encoding.ridge import RidgePlan
from isocortex.errors import InputError

from .test_encoding import ALPHAS, CV, design, fit, write_betas, write_features

OPTIONS = {
    "z-scoring": {},
    "penalties of regions": {"regions": np.repeat([0, 1, 2], 20)},
    "components": {"pca": 4},
    "fractions": {"method": "fractional"},
}
FRACTIONS = [0.2, 0.5, 0.8]


def fitted(features, responses, cv, **options):
    grid = FRACTIONS if options.get("method") == "fractional" else ALPHAS
    return fit_layers(
        [lambda: features],
        lambda first, last: responses[:, first:last],
        responses.shape[1],
        cv,
        grid,
        **options,
    )


def centred(responses, runs):
    out = responses.astype(float)
    for run in set(runs):
        out[np.array(runs) == run] -= out[np.array(runs) == run].mean(0)
    return out


# --- against scikit-learn --------------------------------------------------------------------


@pytest.mark.parametrize("p", [6, 80])
@pytest.mark.parametrize("kind", ["voxel", "components", "region"])
def test_options_equal_a_plain_loop_with_scikit_learn(p, kind):
    """Trial by trial, with nothing collapsed or shared: r, r2 and penalties."""
    rng = np.random.default_rng(0)
    names, stimuli, runs = design(20, 3)
    index = np.array([names.index(s) for s in stimuli])
    features = rng.standard_normal((20, p)).astype(np.float32) * 4 + 2
    scale = np.array([1, 9, 1, 0.2, 5, 1])  # of voxels: must not decide a region's penalty
    responses = features[index] @ rng.standard_normal((p, 6)) / p + rng.standard_normal((60, 6))
    responses *= scale
    cv = encoding.cross_validation_folds(stimuli, runs, stimulus_folds=4)
    label = np.array([0, 3, 3, 3, 7, 7]) if kind == "region" else None
    pca = 3 if kind == "components" else None
    found = fitted(features, responses, cv, pca=pca, regions=label, dtype=torch.float64)
    y = centred(responses, runs)
    r, explained, logs = [], [], []
    for fold in cv.folds:
        train = np.flatnonzero(
            np.isin(cv.group, fold.train_groups) & np.isin(cv.stimulus, fold.train_stimuli)
        )
        x = features[index].astype(float)
        x = (x - x[train].mean(0)) / x[train].std(0) / np.sqrt(p)
        if pca:
            x = PCA(pca).fit(x[train]).transform(x)
        loss = np.zeros((len(ALPHAS), 6))
        for split in fold.inner:
            a = [t for t in train if cv.stimulus[t] in split.train_stimuli]
            b = [t for t in train if cv.stimulus[t] in split.test_stimuli]
            for row, value in enumerate(ALPHAS):
                left = Ridge(alpha=value).fit(x[a], y[a]).predict(x[b]) - y[b]
                loss[row] += (left**2).mean(0)
        if label is not None:
            share = loss / y[train].var(0)
            for name in (3, 7):
                loss[:, label == name] = share[:, label == name].sum(1, keepdims=True)
        best = np.array(ALPHAS)[loss.argmin(0)]
        model = Ridge(alpha=best).fit(x[train], y[train])
        got, real = model.predict(x[fold.test_trials]), y[fold.test_trials]
        r.append([np.corrcoef(got[:, v], real[:, v])[0, 1] for v in range(6)])
        explained.append(r2_score(real, got, multioutput="raw_values"))
        logs.append(np.log(best))
    np.testing.assert_allclose(found.score[0], np.mean(r, 0), atol=1e-8)
    np.testing.assert_allclose(found.r2[0], np.mean(explained, 0), atol=1e-8)
    np.testing.assert_allclose(found.alpha[0], np.exp(np.mean(logs, 0)), rtol=1e-10)
    if label is not None:
        assert len(set(found.alpha[0, 1:4])) == len(set(found.alpha[0, 4:])) == 1


@pytest.mark.parametrize("p", [5, 60])
def test_components_equal_scikit_learn(p):
    rng = np.random.default_rng(1)
    features = rng.standard_normal((25, p)) * np.linspace(3, 1, p)
    train, counts = np.arange(3, 20), rng.integers(1, 4, 17)
    peer = PCA(4).fit(np.repeat(features[train], counts, axis=0))
    expected = peer.transform(features)
    shares = torch.from_numpy(counts / counts.sum())
    x = torch.from_numpy(features) - shares @ torch.from_numpy(features[train])
    rows = torch.from_numpy(train)
    for known, dual in ((x, False), (x @ x.T, True)):
        got = principal_components(
            known, rows, torch.from_numpy(counts), number=4, inner_products=dual
        ).numpy()
        np.testing.assert_allclose(np.abs(got), np.abs(expected), atol=1e-9)
    few = principal_components(x, rows[:3], torch.ones(3), number=9)
    assert few.shape == (25, 2)  # three rows span a plane


def test_solvers_give_the_same():
    rng = np.random.default_rng(2)
    _, stimuli, runs = design(24, 2)
    cv = encoding.cross_validation_folds(stimuli, runs)
    for p in (5, 50):
        features = rng.standard_normal((24, p)).astype(np.float32)
        responses = rng.standard_normal((48, 7))
        one, other = (
            fitted(features, responses, cv, solver=solver, dtype=torch.float64)
            for solver in ("primal", "dual")
        )
        np.testing.assert_allclose(one.score, other.score, atol=1e-8)
        np.testing.assert_array_equal(one.alpha, other.alpha)


# --- nothing leaks -----------------------------------------------------------------------------


@pytest.mark.parametrize("path", list(OPTIONS))
def test_scores_of_shuffled_labels_average_zero(path):
    rng = np.random.default_rng(3)
    _, stimuli, runs = design(24, 2)
    cv = encoding.cross_validation_folds(stimuli, runs, stimulus_folds=3)
    means = []
    for _ in range(30):
        features = rng.standard_normal((24, 12)).astype(np.float32)
        signal = features @ rng.standard_normal((12, 60))
        shuffled = signal[rng.permutation(24)][cv.stimulus]
        responses = shuffled + rng.standard_normal((48, 60)) + 5
        means.append(fitted(features, responses, cv, **OPTIONS[path]).score.mean())
    error = np.std(means, ddof=1) / np.sqrt(len(means))
    assert abs(np.mean(means)) < 2.76 * error  # t(29), 99 %
    assert abs(np.mean(means)) < 0.05


@pytest.mark.parametrize("path", list(OPTIONS))
def test_held_out_responses_and_features_change_nothing_that_is_trained(path):
    rng = np.random.default_rng(4)
    _, stimuli, runs = design(24, 2)
    cv = encoding.cross_validation_folds(stimuli, runs, stimulus_folds=3)
    features = rng.standard_normal((24, 12)).astype(np.float32)
    responses = features[cv.stimulus] @ rng.standard_normal((12, 60))
    responses += rng.standard_normal((48, 60))

    def predictions(values, given=features):
        out = np.full((1, 48, 60), np.nan, np.float32)
        fitted(given, values, cv, predictions=out, **OPTIONS[path])
        return out[0]

    before = predictions(responses)
    fold = cv.folds[0]
    held_out = fold.test_trials
    changed = responses.copy()
    changed[held_out] = rng.standard_normal((len(held_out), 60)) * 40 + 100
    np.testing.assert_array_equal(predictions(changed)[held_out], before[held_out])
    # A tested stimulus' features change its own prediction alone
    stimulus = cv.stimulus[held_out[0]]
    moved = features.copy()
    moved[stimulus] += 30
    after = predictions(responses, moved)
    others = held_out[cv.stimulus[held_out] != stimulus]
    np.testing.assert_allclose(after[others], before[others], atol=1e-4)
    assert np.abs(after[held_out[0]] - before[held_out[0]]).max() > 0.1


def test_out_of_memory_halves_the_block_and_changes_nothing(caplog, monkeypatch):
    rng = np.random.default_rng(10)
    _, stimuli, runs = design(24, 2)
    cv = encoding.cross_validation_folds(stimuli, runs, stimulus_folds=3)
    features = rng.standard_normal((24, 12)).astype(np.float32)
    responses = rng.standard_normal((48, 60))
    options = {
        "regions": np.repeat([0, 1, 2], 20),
        "orders": permute_stimuli(cv, permutations=9, seed=0),
    }
    whole = fitted(features, responses, cv, dtype=torch.float64, **options)
    plain = RidgePlan.predict

    def scarce(self, targets, choice):
        if len(choice) > 20 * 9:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return plain(self, targets, choice)

    monkeypatch.setattr(RidgePlan, "predict", scarce)
    parts = fitted(features, responses, cv, dtype=torch.float64, **options)
    assert "out of memory with 60 voxels at once: going on with 30" in caplog.text
    np.testing.assert_allclose(parts.score, whole.score, atol=1e-12)
    np.testing.assert_array_equal(parts.alpha, whole.alpha)
    np.testing.assert_array_equal(parts.test.p_fwe, whole.test.p_fwe)


# --- the stage --------------------------------------------------------------------------------


@pytest.fixture
def study(tmp_path):
    """Betas of 40 voxels, two layers, regions A (15 voxels), B (20), and none (5)."""
    rng = np.random.default_rng(5)
    names, stimuli, runs = design(24, 3)
    layers = {"few": rng.standard_normal((24, 6)), "many": rng.standard_normal((24, 3, 4, 5))}
    index = np.array([names.index(s) for s in stimuli])
    signal = layers["few"] @ rng.standard_normal((6, 40)) / 2
    responses = (signal[index] + rng.standard_normal((72, 40))).astype(np.float32)
    responses[:, 3] = np.nan
    betas = write_betas(tmp_path / "b.zarr", responses, stimuli, runs)
    features = write_features(tmp_path / "f.zarr", layers, names)
    volume = np.zeros((40, 2, 2), np.int16)
    volume[:15, 1, 0], volume[15:35, 1, 0] = 1, 2
    regions = tmp_path / "regions.nii.gz"
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([3.0, 3, 3, 1])), regions)
    labels = tmp_path / "labels.tsv"
    labels.write_text("index\tname\n1\tA\n2\tB\n")
    given = {"regions": regions, "labels": labels}
    return tmp_path, betas, features, given, responses, runs, index, layers


def write_weights(folder, betas, features, out, *, name="encoding", **options):
    encoding.fit_weights(
        responses=betas,
        features=features,
        encoding=folder / f"{name}.zarr",
        out=out,
        cross_validation=CV,
        **options,
    )


def test_predictions_and_scores_agree(study):
    folder, betas, features, _, responses, runs, *_ = study
    result = fit(folder, betas, features, predictions=True)
    y = centred(responses, runs)
    cv = encoding.cross_validation_folds([str(value) for value in result["sample"].values], runs)
    for layer in range(2):
        got = result["prediction"].values[layer].astype(float)
        scores = [
            [
                np.corrcoef(got[fold.test_trials, v], y[fold.test_trials, v])[0, 1]
                for v in (0, 1, 30)
            ]
            for fold in cv.folds
        ]
        np.testing.assert_allclose(
            result["score"].values[layer, [0, 1, 30]], np.mean(scores, 0), atol=1e-5
        )
    ceiling = result["noise_ceiling"].values
    ok = np.arange(40) != 3
    np.testing.assert_allclose(
        result["r2_normalised"].values[:, ok],
        (result["r2"].values / ceiling**2)[:, ok],
        rtol=1e-5,
    )


@pytest.mark.parametrize("pca", [None, 3])
def test_weights_equal_scikit_learn_on_all_trials(study, pca):
    folder, betas, features, _, responses, runs, index, layers = study
    path = folder / "weights.zarr"
    result = fit(folder, betas, features, pca=pca)
    write_weights(folder, betas, features, path, voxel_batch=7)
    y = centred(responses, runs)
    for row, (layer, values) in enumerate(layers.items()):
        data = store.open(path, "encoding_weights", group=layer)
        flat = values.reshape(24, -1).astype(np.float32).astype(float)
        x = (flat - data["centre"].values) * data["scale"].values
        peer = x[index]
        np.testing.assert_allclose(peer.mean(0), 0, atol=1e-12)
        np.testing.assert_allclose((peer**2).mean(0), 1 / x.shape[1], rtol=1e-10)
        assert ("dual" in data) == (layer == "many")
        weight = x.T @ data["dual"].values if "dual" in data else data["weight"].values
        back = np.eye(x.shape[1])
        if pca:
            found = PCA(pca).fit(peer)
            peer, back = found.transform(peer), found.components_.T
        for voxel in (0, 1, 39):
            alpha = result["alpha"].values[row, voxel]
            model = Ridge(alpha=alpha).fit(peer, y[:, voxel])
            np.testing.assert_allclose(weight[:, voxel], back @ model.coef_, atol=1e-4)
        assert np.isnan(weight[:, 3]).all()


def test_agreement_of_stimuli_sums_to_the_regions_score(study):
    folder, betas, features, given, *_ = study
    result = fit(folder, betas, features, bootstrap=True, **given)
    agreement = result["agreement"]
    assert agreement.dims == ("layer", "region", "stimulus")
    assert list(result["region"].values) == ["A", "B"]
    score = result["score"].values
    members = [np.setdiff1d(np.arange(15), [3]), np.arange(15, 35)]
    for column, voxels in enumerate(members):
        np.testing.assert_allclose(
            agreement.values[:, column].sum(-1), score[:, voxels].mean(1), atol=1e-5
        )


def test_agreement_follows_reweighted_stimuli_to_first_order():
    """The region's r over trials that count more or less, against the weighted sum."""
    rng = np.random.default_rng(6)
    _, stimuli, runs = design(60, 2)
    cv = encoding.cross_validation_folds(stimuli, runs, stimulus_folds=2)
    features = rng.standard_normal((60, 5)).astype(np.float32)
    responses = features[cv.stimulus] @ rng.standard_normal((5, 8))
    responses = centred(responses + 2 * rng.standard_normal((120, 8)), runs)
    predictions = np.full((1, 120, 8), np.nan, np.float32)
    fitted(features, responses, cv, predictions=predictions)
    agreement = encoding.stimulus_agreement(
        predictions, lambda a, b: responses[:, a:b], cv, np.ones((1, 8), bool), voxel_batch=3
    )[0, 0]

    def weighted(weight):
        r = []
        for fold in cv.folds:
            w = weight[cv.stimulus[fold.test_trials]]
            for v in range(8):
                both = np.cov(
                    predictions[0, fold.test_trials, v],
                    responses[fold.test_trials, v],
                    aweights=w,
                )
                r.append(both[0, 1] / np.sqrt(both[0, 0] * both[1, 1]))
        return np.mean(r)

    base = np.ones(60)
    assert abs(weighted(base) - agreement.sum()) < 1e-5
    for stimulus in (0, 7, 31):  # the derivative
        bent = base.copy()
        bent[stimulus] += 1e-4
        slope = (weighted(bent) - weighted(base)) / 1e-4
        expected = agreement[stimulus] - agreement.sum() / 60
        assert abs(slope - expected) < 1e-3 * max(np.abs(agreement).max(), 1e-3)
    # and whole bootstrap samples: the spread over samples is nearly the same
    drawn = rng.multinomial(60, np.full(60, 1 / 60), size=300).astype(float)
    exact = np.array([weighted(weight) for weight in drawn])
    assert np.corrcoef(exact, drawn @ agreement)[0, 1] > 0.9
    assert 0.85 < (drawn @ agreement).std() / exact.std() < 1.15


def test_options_through_the_stage(study):
    folder, betas, features, given, *_ = study
    plain = fit(folder, betas, features, name="plain")
    shared = fit(folder, betas, features, name="region", alpha_per="region", **given)
    for voxels in (np.setdiff1d(np.arange(15), [3]), np.arange(15, 35)):
        assert len(np.unique(shared["alpha"].values[0, voxels])) == 1
    np.testing.assert_array_equal(plain["alpha"].values[:, 35:], shared["alpha"].values[:, 35:])
    part = fit(folder, betas, features, name="fraction", method="fractional", fractions=[0.3, 0.7])
    fraction = part["fraction"].values
    assert np.nanmin(fraction) >= 0.3
    assert np.nanmax(fraction) <= 0.7
    assert np.nanmean(np.abs(part["score"].values - plain["score"].values)[0]) < 0.1
    tested = fit(folder, betas, features, name="tested", permutations=19, pca=4)
    assert np.nanmin(tested["p"].values) == np.float32(1 / 20)
    assert np.isnan(tested["p_fwe"].values[:, 3]).all()
    assert tested.attrs["pca"] == 4
    again = fit(folder, betas, features, name="again", permutations=19, pca=4)
    assert (
        store.manifest(folder / "again.zarr")["content"]
        == (store.manifest(folder / "tested.zarr")["content"])
    )
    np.testing.assert_array_equal(again["p"].values, tested["p"].values)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "lasso"}, "unknown encoding.method 'lasso'"),
        ({"alpha_per": "brain"}, "unknown encoding.alpha_per 'brain'"),
        ({"alpha_per": "region"}, "need regions"),
        ({"bootstrap": True}, "need regions"),
    ],
)
def test_bad_options_in_one_line(study, options, words):
    folder, betas, features, *_ = study
    with pytest.raises(InputError, match=words):
        fit(folder, betas, features, **options)


def test_regions_on_another_grid_are_refused(study):
    folder, betas, features, given, *_ = study
    nibabel.save(nibabel.Nifti1Image(np.ones((4, 2, 2)), np.eye(4)), given["regions"])
    with pytest.raises(InputError, match="not on the grid of the encoding of subject 01"):
        fit(folder, betas, features, bootstrap=True, **given)


def test_conditions_left_out(tmp_path):
    rng = np.random.default_rng(7)
    names = [f"{kind}{n}" for kind in "abc" for n in range(8)]
    stimuli, conditions = names * 2, [name[0] for name in names] * 2
    layers = {"l": rng.standard_normal((24, 4))}
    responses = np.tile(layers["l"] @ rng.standard_normal((4, 10)), (2, 1))
    responses = responses + 0.5 * rng.standard_normal((48, 10))
    betas = write_betas(
        tmp_path / "b.zarr", responses, stimuli, ["1"] * 24 + ["2"] * 24, conditions=conditions
    )
    features = write_features(tmp_path / "f.zarr", layers, names)
    result = fit(tmp_path, betas, features, cross_validation={"over": "condition"})
    assert result.attrs["folds"].startswith("3 outer folds: 3 groups")
    assert result["score"].values.mean() > 0.5


# --- sizes at the edges -------------------------------------------------------------------------


def test_one_voxel_constant_features_and_many_units(tmp_path):
    rng = np.random.default_rng(8)
    names, stimuli, runs = design(12, 2)
    layers = {
        "constant": np.full((12, 7), 3.0),
        "nothing": np.zeros((12, 1)),
        "many": rng.standard_normal((12, 4000)),
        "same": np.repeat(rng.standard_normal((12, 1)), 30, axis=1),
    }
    index = np.array([names.index(s) for s in stimuli])
    responses = 2 * layers["same"][index, :1] + rng.standard_normal((24, 1))
    betas = write_betas(tmp_path / "b.zarr", responses, stimuli, runs)
    features = write_features(tmp_path / "f.zarr", layers, names)
    for name, options in (
        ("ridge", {"permutations": 9}),
        ("pca", {"pca": 3}),
        ("fractional", {"method": "fractional"}),
    ):
        result = fit(tmp_path, betas, features, name=name, **options)
        score = result["score"].values[:, 0]
        np.testing.assert_array_equal(score[:2], 0)
        assert abs(score[2]) < 0.7
        assert score[3] > 0.5
        assert result["best_layer"].values[0] == 3
    write_weights(tmp_path, betas, features, tmp_path / "w.zarr", name="ridge")
    flat = store.open(tmp_path / "w.zarr", "encoding_weights", group="constant")
    np.testing.assert_array_equal(flat["weight"].values, 0)


def test_200000_voxels_of_few_trials_are_read_a_shard_at_a_time(tmp_path, monkeypatch):
    rng = np.random.default_rng(9)
    names, stimuli, runs = design(8, 2)
    layer = rng.standard_normal((8, 3))
    responses = rng.standard_normal((16, 200_000)).astype(np.float32)
    index = np.array([names.index(s) for s in stimuli])
    responses[:, 150_000:] += 3 * (layer @ rng.standard_normal((3, 50_000)))[index]
    monkeypatch.setattr(store, "SHARD_BYTES", 2 << 20)
    betas = write_betas(tmp_path / "b.zarr", responses, stimuli, runs)
    features = write_features(tmp_path / "f.zarr", {"l": layer}, names)
    monkeypatch.setattr(encoding.design, "RESIDENT_BYTES", 1)
    opened = encoding.design.open_responses(betas)
    assert len(opened.blocks.edges) > 4
    result = fit(tmp_path, betas, features, voxel_batch=20_000, alphas=[1.0, 10.0])
    score = result["score"].values[0]
    assert np.isfinite(score).all()
    assert score[150_000:].mean() > 0.6
    assert abs(score[:150_000].mean()) < 0.02
