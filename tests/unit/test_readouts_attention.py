"""Attention readouts: better than fixed fields where content is routed, and only there."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from isocortex.encoding.readouts import KINDS, FeatureMaps, train, training
from isocortex.encoding.readouts.tokens import as_tokens, places, position_code, token_grid
from isocortex.errors import InputError
from isocortex.phantom.readouts import feature_maps, fixed_field_responses, routed_responses

N = 400
TRAIN, VALIDATION, TEST = np.arange(260), np.arange(260, 320), np.arange(320, N)
FAST = {"epochs": 120, "patience": 20, "learning_rate": 0.01}
SMALL = {"grid": 5, "sizes": [0.12, 0.24]}
OPTIONS = {"gaussian": SMALL, "semantic": SMALL}


def fit(kind, planted, *, options=None, regions=True, predict=TEST, **settings):
    maps = FeatureMaps(planted.maps, TRAIN, device="cpu")
    options = OPTIONS.get(kind, {}) | (options or {})

    def make(voxels, generator):
        return KINDS[kind](
            maps.shapes,
            voxels.stop - voxels.start,
            generator=generator,
            regions=planted.region[voxels] if regions else None,
            **options,
        )

    return train(
        make,
        maps,
        lambda first, last: planted.responses[:, first:last],
        planted.responses.shape[1],
        train_rows=TRAIN,
        validation_rows=VALIDATION,
        predict_rows=predict,
        **(FAST | settings),
    )


def held_out(planted, trained):
    """r of the prediction with the noiseless response, over test rows, by voxel."""
    pairs = zip(trained.prediction.T, planted.signal[TEST].T, strict=True)
    return np.array([np.corrcoef(*pair)[0, 1] for pair in pairs])


@pytest.fixture(scope="module")
def routed():
    planted = routed_responses(N, 8, seed=3)
    kinds = ("gaussian", "factorised", "semantic", "routing")
    return planted, {kind: fit(kind, planted) for kind in kinds}


@pytest.fixture(scope="module")
def fixed():
    planted = routed_responses(N, 8, routed=False, seed=3)
    return planted, {kind: fit(kind, planted) for kind in ("gaussian", "semantic", "routing")}


def test_routing_wins_where_content_is_routed(routed):
    planted, trained = routed
    r = {kind: held_out(planted, one) for kind, one in trained.items()}
    best = np.maximum(r["gaussian"], r["factorised"])
    assert r["routing"].mean() > 0.9
    assert np.all(r["routing"] > best)
    assert r["semantic"].mean() > best.mean() + 0.1


def test_attention_gains_nothing_where_fields_are_fixed(fixed):
    planted, trained = fixed
    r = {kind: held_out(planted, one) for kind, one in trained.items()}
    assert r["gaussian"].mean() > 0.9
    for kind in ("routing", "semantic"):
        difference = r[kind] - r["gaussian"]
        # Not better, and at the price of more freedom not much worse
        assert difference.mean() < 0.02
        assert difference.mean() > -0.08


def test_attention_follows_the_focus(routed):
    """Maps of single images have their centre where the phantom's cue is."""
    planted, _ = routed
    queries = {}
    for kind in ("region", "learnt", "voxel"):
        maps = FeatureMaps(planted.maps, TRAIN, device="cpu")
        made = []

        def make(voxels, generator, kind=kind, maps=maps, made=made):
            made.append(
                KINDS["routing"](
                    maps.shapes,
                    voxels.stop - voxels.start,
                    generator=generator,
                    regions=planted.region[voxels],
                    queries=kind,
                    n_queries=4,
                )
            )
            return made[-1]

        trained = train(
            make,
            maps,
            lambda first, last: planted.responses[:, first:last],
            16,
            train_rows=TRAIN,
            validation_rows=VALIDATION,
            predict_rows=TEST,
            **FAST,
        )
        with torch.no_grad():
            seen = made[0].attention(maps(TEST))
        np.testing.assert_allclose(seen.sum((2, 3)), 1, rtol=1e-5)
        np.testing.assert_allclose(seen.mean(0), trained.attention, atol=1e-6)
        queries[kind] = seen.shape[1]
        region = np.arange(2) if kind == "region" else planted.region
        centre = seen.flatten(2).numpy() @ places(token_grid(maps.shapes["content"])).numpy()
        for query, of in enumerate(region):
            for axis in range(2):
                r = np.corrcoef(centre[:, query, axis], planted.focus[TEST, of, axis])[0, 1]
                assert r > 0.55, (kind, query, axis)
    assert queries == {"region": 2, "learnt": 16, "voxel": 16}


def test_centres_of_fixed_fields(fixed):
    planted, trained = fixed
    cell = 1 / 6
    for kind, limit in (("routing", cell), ("semantic", cell)):
        found = trained[kind].results
        error = np.hypot(found["x"] - planted.x, found["y"] - planted.y)
        assert np.median(error) < limit
    still = np.median(fixed[1]["semantic"].results["shift"])
    assert still < 0.05


def test_content_moves_fields_where_it_routes(routed, fixed):
    moved, still = (one[1]["semantic"].results["shift"].mean() for one in (routed, fixed))
    assert moved > 3 * still
    assert moved > 0.05
    assert routed[1]["semantic"].attention.shape == (16, 6, 6)


@pytest.mark.parametrize("kind", ["semantic", "routing"])
def test_planted_layer_comes_back(kind):
    maps = feature_maps(N, layers={"early": (4, 8), "late": (6, 5)}, seed=1)
    planted = fixed_field_responses(N, 6, maps=maps, ceiling=0.9, seed=1)
    weight = fit(kind, planted, epochs=40).results["layer_weight"]
    np.testing.assert_allclose(weight.sum(0), 1, atol=1e-5)
    for layer in range(2):
        of_region = weight[:, planted.layer == layer]
        assert np.mean(of_region.argmax(0) == layer) >= 5 / 6
        assert of_region[layer].mean() > 0.6


@pytest.mark.parametrize("kind", ["semantic", "routing"])
def test_the_same_again_and_from_a_checkpoint(tmp_path, monkeypatch, kind):
    planted = routed_responses(N, 3, seed=5)
    options = {"dropout": 0.1, "heads": 2} if kind == "routing" else {}
    whole = fit(kind, planted, options=options, epochs=6)
    again = fit(kind, planted, options=options, epochs=6)
    np.testing.assert_array_equal(whole.prediction, again.prediction)
    states = {"checkpoint": tmp_path / "states", "checkpoint_seconds": 0.0}
    epochs = []
    one_epoch = training._Batch._epoch

    def killed(batch):
        epochs.append(1)
        if len(epochs) > 3:
            raise KeyboardInterrupt
        return one_epoch(batch)

    monkeypatch.setattr(training._Batch, "_epoch", killed)
    with pytest.raises(KeyboardInterrupt):
        fit(kind, planted, options=options, epochs=6, **states)
    monkeypatch.undo()
    resumed = fit(kind, planted, options=options, epochs=6, **states)
    np.testing.assert_array_equal(whole.prediction, resumed.prediction)
    np.testing.assert_array_equal(whole.validation_loss, resumed.validation_loss)
    for key, values in whole.results.items():
        np.testing.assert_array_equal(values, resumed.results[key])
    np.testing.assert_array_equal(whole.attention, resumed.attention)
    other = fit(kind, planted, options=options, epochs=6, seed=1)
    assert not np.array_equal(whole.training_loss, other.training_loss)


def test_nothing_is_gained_from_shuffled_responses(routed):
    """Scores of responses that have nothing to do with the images are centred on 0."""
    planted, _ = routed
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((N, 60))
    shuffled = type(planted)(**{**vars(planted), "responses": noise, "region": np.zeros(60, int)})
    for kind in ("semantic", "routing"):
        trained = fit(kind, shuffled, epochs=10)
        varies = trained.prediction.std(0) > 1e-6
        pairs = zip(trained.prediction.T[varies], noise[TEST].T[varies], strict=True)
        r = np.zeros(60)  # what training leaves at a constant explains nothing
        r[varies] = [np.corrcoef(*pair)[0, 1] for pair in pairs]
        # r of 80 rows has SD 1/sqrt(79); voxels share the network, so no more than one counts
        assert abs(np.arctanh(r).mean()) < 3 / np.sqrt(79)


def readout(kind, shapes, n_voxels=3, **more):
    return KINDS[kind](shapes, n_voxels, generator=torch.Generator().manual_seed(0), **more)


def test_one_head_is_scaled_dot_product_attention():
    """What a query brings equals torch's own attention of the same queries, keys and values."""
    shapes = {"blocks": (10, 7)}  # a class token and 3 x 3 patches
    made = readout("routing", shapes, dimension=8, heads=2)
    with torch.no_grad():
        made.layer_parts[0].extra.normal_(generator=torch.Generator().manual_seed(1))
    maps = {"blocks": torch.randn(4, 10, 7, generator=torch.Generator().manual_seed(2))}
    part = made.layer_parts[0]
    place = torch.cat([part.extra, part.code @ part.place.T])

    def heads(values):
        return values.unflatten(-1, (2, 4)).transpose(1, 2)

    expected = functional.scaled_dot_product_attention(
        heads(made.queries.expand(4, -1, -1)),
        heads(maps["blocks"] @ part.key.T + place),
        heads(maps["blocks"] @ part.value.T),
    )
    brought, attention = made._attend(0, "blocks", maps)
    torch.testing.assert_close(brought, expected.transpose(1, 2).flatten(2))
    assert attention.shape == (4, 3, 10)
    torch.testing.assert_close(attention.sum(-1), torch.ones(4, 3))
    assert made.attention(maps).shape == (4, 3, 3, 3)  # without the class token
    assert set(made.averages(maps)) == {"x", "y", "size"}
    deep = readout("routing", shapes, dimension=8, depth=2)
    assert deep(maps).shape == (4, 3)


def test_semantic_starts_as_gaussian():
    """Before any content moves it, it predicts what the Gaussian readout does."""
    planted = routed_responses(60, 3, routed=False, seed=1)
    maps = FeatureMaps(planted.maps, np.arange(60), device="cpu")
    targets = torch.from_numpy(planted.responses).float()
    rows = {"train": np.arange(40), "validation": np.arange(40, 60), "weights": torch.ones(60)}
    made = [readout(kind, maps.shapes, 6, **SMALL) for kind in ("gaussian", "semantic")]
    for one in made:
        one.initialise(maps, targets, **rows)
    with torch.no_grad():
        batch = maps(np.arange(60))
        torch.testing.assert_close(made[0](batch), made[1](batch), rtol=1e-4, atol=1e-5)
        # Fields move by at most the reach, wherever the content says
        made[1].move.fill_(1e3)
        shift = made[1].averages(batch)["shift"]
    assert shift.max() <= 0.5 * np.sqrt(2) + 1e-5
    assert shift.max() > 0.4


def test_tokens():
    assert token_grid((5, 4, 6)) == type(token_grid((1,)))(4, 6, 0, 5)
    assert (token_grid((197, 8)).rows, token_grid((197, 8)).n_extra) == (14, 1)
    assert (token_grid((201, 8)).rows, token_grid((201, 8)).n_extra) == (14, 5)
    assert (token_grid((30, 8)).columns, token_grid((30, 8)).n_extra) == (5, 5)
    assert (token_grid((13, 8)).rows, token_grid((13, 8)).n_extra) == (3, 4)
    assert (token_grid((15, 8)).columns, token_grid((15, 8)).n_extra) == (0, 15)
    assert token_grid((9,)).n_tokens == 1
    maps = torch.arange(2 * 5 * 4 * 6.0).reshape(2, 5, 4, 6)
    assert torch.equal(as_tokens(maps)[1, 7], maps[1, :, 1, 1])
    assert as_tokens(maps[:, :, 0, 0]).shape == (2, 1, 5)
    where = places(token_grid((5, 2, 4)))
    np.testing.assert_allclose(where[0], [-0.375, 0.125])  # first patch: left, up
    np.testing.assert_allclose(where[-1], [0.375, -0.125])
    # The same place has the same code on a finer map
    coarse, fine = position_code(token_grid((1, 1, 1)), 3), position_code(token_grid((1, 3, 3)), 3)
    torch.testing.assert_close(coarse[0], fine[4])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"queries": "parcel"}, "write voxel, region, learnt"),
        ({"queries": "region"}, "needs a label image"),
        ({"dimension": 10, "heads": 4}, "no multiple of heads"),
        ({"depth": 0}, "'depth' of readout 'routing' in options is below 1"),
        ({"layers": 3}, "no option 'layers'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(InputError, match=message):
        readout("routing", {"a": (4, 3, 3)}, **options)


def test_voxels_without_region():
    maps = {"a": torch.randn(5, 4, 3, 3, generator=torch.Generator().manual_seed(0))}
    regions = np.array([0, -1, 2])
    made = readout("routing", {"a": (4, 3, 3)}, queries="region", regions=regions)
    with torch.no_grad():
        made.weight.fill_(1)
        assert torch.all(made(maps)[:, 1] == 0)
        seen = made.attention(maps)
        centre = made.averages(maps)["x"]
    assert seen.shape == (5, 3, 3, 3)
    assert torch.isfinite(seen[:, [0, 2]]).all()
    assert seen[:, 1].isnan().all()  # the region has no voxel here
    assert centre[:, 1].isnan().all()
    assert torch.isfinite(centre[:, [0, 2]]).all()
