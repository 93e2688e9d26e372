"""Readouts against closed forms, and against simulated voxels whose reading is known."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge, RidgeCV

from isocortex.device import deterministic
from isocortex.encoding.readouts import KINDS, FeatureMaps, train
from isocortex.encoding.readouts.closed_form import (
    FOLDS,
    coefficients,
    held_out_error,
    row_coefficients,
)
from isocortex.phantom.readouts import (
    feature_maps,
    fixed_field_responses,
    places,
    routed_responses,
)

SPATIAL = ("factorised", "gaussian")
ALPHAS = [0.01, 0.3, 5.0]


def split(n):
    """60 % to train, 15 % to stop, the rest to test."""
    cuts = [int(0.6 * n), int(0.75 * n)]
    return dict(
        zip(
            ("train_rows", "validation_rows", "predict_rows"),
            np.split(np.arange(n), cuts),
            strict=True,
        )
    )


def fit(kind, maps, responses, *, options=None, rows=None, device="cpu", **more):
    rows = rows or split(len(responses))
    read = FeatureMaps(maps, rows["train_rows"], device=device)
    settings = {"epochs": 60, "patience": 8, "learning_rate": 0.02} | more
    with deterministic(1):
        return train(
            lambda voxels, generator: KINDS[kind](
                read.shapes, voxels.stop - voxels.start, generator=generator, **(options or {})
            ),
            read,
            lambda first, last: responses[:, first:last],
            responses.shape[1],
            **rows,
            **settings,
        )


def correlation(a, b):
    return np.array([np.corrcoef(x, y)[0, 1] for x, y in zip(a.T, b.T, strict=True)])


def ridge_score(values, responses, rows):
    """Held-out r of ridge regression on all units, its penalty chosen on the training rows."""
    flat = values.reshape(len(values), -1)
    known = np.r_[rows["train_rows"], rows["validation_rows"]]
    peer = RidgeCV(alphas=np.geomspace(1, 1e5, 11), alpha_per_target=True)
    predicted = peer.fit(flat[known], responses[known]).predict(flat[rows["predict_rows"]])
    return correlation(predicted, responses[rows["predict_rows"]])


@pytest.fixture(scope="module")
def fixed():
    return fixed_field_responses(
        300, 8, maps=feature_maps(300, layers={"early": (5, 10), "late": (8, 6)}, seed=2), seed=2
    )


# --- the phantom -----------------------------------------------------------------------------


def test_phantom_has_the_ceiling_that_it_says(fixed):
    for planted in (fixed, routed_responses(400, 6, ceiling=0.6)):
        reached = correlation(planted.signal, planted.responses)
        tolerance = 4 * (1 - planted.ceiling**2) / np.sqrt(len(planted.signal))
        assert (np.abs(reached - planted.ceiling) < tolerance).all()
        np.testing.assert_allclose(planted.signal.std(0), 1)


def test_phantom_of_a_fixed_field_is_what_it_says(fixed):
    values = fixed.maps["late"]
    voxel = int(np.flatnonzero(fixed.layer == 1)[2])
    expected = np.zeros(len(values))
    total = 0.0
    for row in range(6):
        for column in range(6):
            x, y = (column + 0.5) / 6 - 0.5, 0.5 - (row + 0.5) / 6
            distance = (x - fixed.x[voxel]) ** 2 + (y - fixed.y[voxel]) ** 2
            share = np.exp(-distance / 2 / fixed.size[voxel] ** 2)
            expected += share * values[:, :, row, column] @ fixed.weight[voxel]
            total += share
    assert np.corrcoef(expected / total, fixed.signal[:, voxel])[0, 1] > 1 - 1e-6


@pytest.mark.parametrize("routed", [True, False])
def test_only_routed_fields_follow_the_cue(routed):
    """What is at the cue's place explains routed responses alone; a linear model the fixed."""
    planted = routed_responses(400, 5, routed=routed, seed=1)
    values, rows = planted.maps["content"], split(400)
    content, cue = values[:, :6], values[:, 6:]
    across, up = places(6, 6)
    there = cue.reshape(400, 2, -1).argmax(-1)
    if routed:
        found = np.stack([across.ravel()[there], up.ravel()[there]], -1)
        assert np.abs(found - planted.focus).max() < 0.5 / 6 + 0.02
    flat = content.reshape(400, 6, -1)
    at_cue = np.stack([flat[np.arange(400), :, there[:, region]] for region in (0, 1)])
    r = np.concatenate(
        [
            ridge_score(at_cue[region], planted.responses[:, planted.region == region], rows)
            for region in (0, 1)
        ]
    )
    linear = ridge_score(values, planted.responses, rows)
    if routed:
        assert r.mean() > 0.6
        assert linear.mean() < 0.35
    else:
        assert abs(r.mean()) < 0.2
        assert linear.mean() > 0.5


# --- closed forms ----------------------------------------------------------------------------


@pytest.mark.parametrize("n_features", [7, 60])
def test_weighted_ridge_equals_sklearn(n_features):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((30, n_features)), rng.standard_normal((30, 4))
    share = rng.uniform(0.5, 2, (30, 1))
    share /= share.sum()
    x, y = x - (share * x).sum(0), y - (share * y).sum(0)
    given = [torch.from_numpy(part) for part in (x, y, share)]
    rows = row_coefficients(given[0] @ given[0].T, *given[1:], ALPHAS)
    for alpha, got, dual in zip(ALPHAS, coefficients(*given, ALPHAS), rows, strict=True):
        peer = Ridge(alpha=alpha, fit_intercept=False).fit(x, y, sample_weight=share[:, 0])
        np.testing.assert_allclose(got.T, peer.coef_, atol=1e-8)
        np.testing.assert_allclose(dual.T @ x, peer.coef_, atol=1e-8)


def test_held_out_error_equals_sklearn():
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((40, 6)) + 2, rng.standard_normal((40, 3)) - 1
    weights = rng.uniform(0.5, 2, (40, 1))
    got = held_out_error(*(torch.from_numpy(part) for part in (x, y, weights)), ALPHAS)
    for alpha, error in zip(ALPHAS, got, strict=True):
        expected = 0
        for part in np.array_split(np.arange(40), FOLDS):
            rest = np.setdiff1d(np.arange(40), part)
            peer = Ridge(alpha=alpha)
            peer.fit(x[rest], y[rest], sample_weight=weights[rest, 0] / weights[rest].sum())
            expected += (weights[part] * (peer.predict(x[part]) - y[part]) ** 2).sum(0)
        np.testing.assert_allclose(error, expected / weights.sum(), atol=1e-8)


def test_a_gaussian_voxel_is_a_weighted_field():
    torch.manual_seed(0)
    readout = KINDS["gaussian"]({"a": (3, 4, 8)}, 2, generator=torch.Generator())
    with torch.no_grad():
        readout.centre.copy_(torch.tensor([[0.2, 0.1], [-0.3, 0.0]]))
        readout.weight[0].normal_()
    maps = torch.randn(5, 3, 4, 8)
    got = readout({"a": maps}).detach()
    found = readout.results()
    x, y = (np.arange(8) + 0.5) / 8 - 0.5, 0.5 * (0.5 - (np.arange(4) + 0.5) / 4)
    for voxel in range(2):
        distance = (x - found["x"][voxel]) ** 2 + (y[:, None] - found["y"][voxel]) ** 2
        field = np.exp(-distance / (2 * found["size"][voxel] ** 2))
        pooled = np.einsum("ncij,ij->nc", maps.numpy(), field / field.sum())
        expected = pooled @ readout.weight[0].detach().numpy()[voxel]
        np.testing.assert_allclose(got[:, voxel], expected, atol=1e-5)


def test_a_factorised_voxel_is_a_mask_times_channels():
    readout = KINDS["factorised"]({"a": (3, 4, 5), "b": (2, 2, 2)}, 2, generator=torch.Generator())
    torch.manual_seed(1)
    for parameter in readout.parameters():
        torch.nn.init.normal_(parameter)
    maps = {"a": torch.randn(6, 3, 4, 5), "b": torch.randn(6, 2, 2, 2)}
    got = readout.contributions(maps).detach().numpy()
    total = 0.0
    for index, values in enumerate(maps.values()):
        mask, channel = (
            part[index].detach().flatten(1).numpy() for part in (readout.mask, readout.channel)
        )
        mask /= np.linalg.norm(mask, axis=1, keepdims=True)
        channel /= np.linalg.norm(channel, axis=1, keepdims=True)
        gain = readout.gain.detach().numpy()[:, index]
        flat = values.flatten(2).numpy()
        expected = np.einsum("ncs,vs,vc,v->nv", flat, mask, channel, gain)
        np.testing.assert_allclose(got[:, index], expected, atol=1e-5)
        grid = mask.reshape(2, *values.shape[2:])
        rough = sum((np.diff(grid, axis=axis) ** 2).sum() for axis in (1, 2))
        sparse = np.abs(mask).sum() / mask.shape[1] ** 0.5
        total += 0.003 * mask.shape[1] * rough + 0.01 * sparse
        total += 0.01 * (gain**2).sum() + 0.003 * np.abs(gain).sum()
    np.testing.assert_allclose(readout.penalty().item(), total, rtol=1e-5)


def test_the_start_of_the_gaussian_is_its_ridge_regression():
    """One candidate field and one penalty: weights as scikit-learn has them."""
    rng = np.random.default_rng(4)
    maps = {"a": rng.standard_normal((60, 4, 3, 3)).astype(np.float32)}
    responses, rows = rng.standard_normal((60, 2)), split(60)
    got = fit(
        "gaussian",
        maps,
        responses,
        rows=rows,
        options={"grid": 1, "sizes": [0.3], "alphas": [0.7]},
        epochs=0,
    )
    across, up = places(3, 3)
    field = np.exp(-(across**2 + up**2) / (2 * 0.3**2))
    pooled = np.einsum("ncij,ij->nc", maps["a"], field / field.sum())
    known = rows["train_rows"]
    standard = (pooled - pooled[known].mean(0)) / pooled[known].std(0) / 2
    # Mean of squares plus alpha; scikit-learn's is the sum, of 36 rows
    peer = Ridge(alpha=0.7 * 36).fit(standard[known], responses[known])
    expected = peer.predict(standard[rows["predict_rows"]])
    np.testing.assert_allclose(got.prediction, expected, atol=1e-4)


# --- what is planted is found ----------------------------------------------------------------


@pytest.mark.parametrize("kind", SPATIAL)
def test_planted_layers_are_found_at_the_ceiling(fixed, kind):
    rows = split(300)
    got = fit(kind, fixed.maps, fixed.responses)
    weight = got.results["layer_weight"]
    assert (weight.argmax(0) == fixed.layer).mean() > 0.85
    for region in (0, 1):
        assert weight[:, fixed.region == region].mean(1).argmax() == region
    reached = correlation(got.prediction, fixed.responses[rows["predict_rows"]])
    ceiling = correlation(fixed.signal, fixed.responses).mean()
    assert 0.88 < reached.mean() / ceiling < 1.05
    best = np.where(
        fixed.layer == 0,
        *(ridge_score(values, fixed.responses, rows) for values in fixed.maps.values()),
    )
    assert reached.mean() > best.mean() + 0.05  # than ridge on all units of the right layer


def test_planted_fields_are_found(fixed):
    got = fit("gaussian", fixed.maps, fixed.responses).results
    distance = np.hypot(got["x"] - fixed.x, got["y"] - fixed.y)
    step = 1 / np.where(fixed.layer == 0, 10, 6)  # cells of the planted layer
    assert np.median(distance) < 0.05
    assert (distance < step).mean() > 0.9
    assert np.corrcoef(got["size"], fixed.size)[0, 1] > 0.4


def test_a_search_in_few_components_finds_the_same_fields(fixed):
    few = fit("gaussian", fixed.maps, fixed.responses, options={"search_channels": 4}, epochs=0)
    full = fit("gaussian", fixed.maps, fixed.responses, epochs=0)
    distance = np.hypot(*(few.results[key] - full.results[key] for key in "xy"))
    assert (distance < 0.12).mean() > 0.75  # a step of the grid
    truth = fixed.responses[split(300)["predict_rows"]]
    r = [correlation(got.prediction, truth).mean() for got in (few, full)]
    assert r[0] > r[1] - 0.05


def test_gradient_finds_fields_between_those_of_the_search(fixed):
    options = {"grid": 4, "sizes": [0.15]}
    errors = []
    for epochs in (0, 60):
        got = fit("gaussian", fixed.maps, fixed.responses, options=options, epochs=epochs).results
        errors.append(np.hypot(got["x"] - fixed.x, got["y"] - fixed.y).mean())
    assert errors[1] < 0.7 * errors[0]


def test_masks_of_two_places_need_the_factorised_readout():
    """A mask with two lobes, one negative in every other voxel; ridge on all units is the bar."""
    rng = np.random.default_rng(0)
    maps = feature_maps(400, layers={"a": (5, 8)}, seed=1)
    across, up = places(8, 8)
    signal = []
    for voxel in range(6):
        near = [(across - x) ** 2 + (up - y) ** 2 for x, y in ((-0.3, 0.3), (0.3, -0.25))]
        lobes = [np.exp(-distance / (2 * 0.12**2)) for distance in near]
        mask = lobes[0] + (-1) ** voxel * lobes[1]
        signal.append(np.einsum("ncij,ij->nc", maps["a"], mask) @ rng.standard_normal(5))
    signal = np.array(signal).T / np.std(signal, axis=1)
    responses = signal + 0.75 * rng.standard_normal(signal.shape)
    rows = split(400)
    truth = responses[rows["predict_rows"]]
    r = {kind: correlation(fit(kind, maps, responses).prediction, truth) for kind in SPATIAL}
    assert r["factorised"].mean() > r["gaussian"].mean() + 0.1
    assert r["factorised"].mean() > ridge_score(maps["a"], responses, rows).mean()


@pytest.mark.parametrize("kind", SPATIAL)
def test_noise_is_predicted_by_chance_only(kind):
    rng = np.random.default_rng(6)
    maps = feature_maps(120, layers={"a": (4, 5)}, seed=3)
    responses = rng.standard_normal((120, 200))
    got = fit(kind, maps, responses, epochs=10)
    r = correlation(got.prediction, responses[split(120)["predict_rows"]])
    r = r[np.isfinite(r)]
    assert abs(r.mean()) < 4 * r.std() / np.sqrt(len(r))


@pytest.mark.parametrize("kind", SPATIAL)
def test_batches_of_voxels_change_nothing(fixed, kind):
    options = {"grid": 4, "sizes": [0.15]} if kind == "gaussian" else {}
    responses = fixed.responses[:, ::4]
    whole = fit(kind, fixed.maps, responses, options=options, epochs=10)
    parts = fit(kind, fixed.maps, responses, options=options, epochs=10, voxel_batch=3)
    difference = np.abs(whole.prediction - parts.prediction).max(0)
    assert np.median(difference) < 1e-4
    assert difference.max() < 0.05  # rounding may turn which epoch is best


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
@pytest.mark.parametrize("kind", SPATIAL)
@pytest.mark.parametrize(("precision", "least"), [("single", 0.999), ("mixed", 0.98)])
def test_same_predictions_on_a_gpu(fixed, kind, precision, least):
    options = {"epochs": 15}
    here = fit(kind, fixed.maps, fixed.responses, **options)
    there = fit(kind, fixed.maps, fixed.responses, device="cuda", precision=precision, **options)
    assert correlation(here.prediction, there.prediction).min() > least


def test_what_kinds_can_read():
    for kind in SPATIAL:
        assert KINDS[kind].reads((3, 4, 4))
        assert not KINDS[kind].reads((7, 16))
        assert not KINDS[kind].reads((9,))
