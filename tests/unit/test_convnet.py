"""The small network that the demo study is planted from."""

import numpy as np
import pytest
import torch
from PIL import Image

from isocortex.errors import InputError
from isocortex.features.convnet import LAYERS, convnet, preprocess_images
from isocortex.phantom import REGIONS, make_images
from isocortex.phantom.anatomy import Anatomy
from isocortex.phantom.responses import plant_responses
from isocortex.phantom.study import model_features


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    paths = []
    for name, _, pixels in make_images(60):
        Image.fromarray(pixels).save(folder / name)
        paths.append(folder / name)
    return paths


@pytest.fixture(scope="module")
def features(pictures):
    return model_features(pictures)


def rdm(patterns):
    """Return 1 - Pearson between stimuli, upper triangle."""
    return (1 - np.corrcoef(patterns))[np.triu_indices(len(patterns), 1)]


def test_layers_have_the_declared_sizes(features):
    for number, shape in enumerate(LAYERS, start=1):
        layer = features[f"layer{number}"]
        assert layer.shape == (60, shape.channels, shape.size, shape.size)
        assert layer[0].size <= 4096


def test_seed_gives_the_weights_and_the_global_state_nothing():
    torch.manual_seed(1)
    first = convnet(3).state_dict()
    state = torch.get_rng_state()
    second = convnet(3).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    other = convnet(4).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["layer1.weight"], other["layer1.weight"])


def test_forward_hooks_and_children_agree(pictures, features):
    net, seen = convnet(0), {}
    for name, layer in net.named_children():
        layer.register_forward_hook(lambda m, i, out, name=name: seen.update({name: out}))
    with torch.no_grad():
        out = net(preprocess_images(pictures[:8]))
    assert list(seen) == [f"layer{k}" for k in range(1, 7)]
    assert torch.equal(out, seen["layer6"])
    for name, value in seen.items():
        np.testing.assert_allclose(value.numpy(), features[name][:8], atol=1e-4)


def test_channels_are_standardised_over_the_calibration_pictures():
    from isocortex.features.convnet import CALIBRATION_IMAGES, _dead_leaves

    net = convnet(0)
    x = _dead_leaves(CALIBRATION_IMAGES, torch.Generator().manual_seed(1)) - 0.5
    with torch.no_grad():
        for layer in net.children():
            x = layer(x)
            mean, deviation = x.mean((0, 2, 3)), x.std((0, 2, 3))
            torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-3, rtol=0)
            torch.testing.assert_close(deviation, torch.ones_like(deviation), atol=1e-3, rtol=0)


def test_convolution_layer_against_plain_numpy():
    """The fourth layer: divisive normalisation, threshold, pooling to 3 x 3."""
    layer = convnet(0).layer4
    x = torch.randn(2, 32, 6, 6, generator=torch.Generator().manual_seed(5))
    weight = layer.weight.numpy().astype(float)
    padded = np.pad(x.numpy().astype(float), ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    y = np.einsum("nchwij,ocij->nohw", windows, weight) / layer.drive.numpy()
    y = y / np.sqrt(0.01 + (y**2).mean(axis=1, keepdims=True))
    y = np.maximum(y - 0.5, 0).reshape(2, 48, 3, 2, 3, 2).mean(axis=(3, 5))
    expected = (y - layer.mean.numpy()) / layer.deviation.numpy()
    np.testing.assert_allclose(layer(x).numpy(), expected, atol=1e-4)


def test_pictures_of_any_mode_become_64_pixels_in_0_1(tmp_path):
    grey = tmp_path / "grey.png"
    Image.fromarray(np.full((30, 50), 51, np.uint8)).save(grey)
    clear = tmp_path / "white.png"
    Image.new("RGBA", (20, 20), (255, 255, 255, 255)).save(clear)
    x = preprocess_images([grey, clear])
    assert x.shape == (2, 3, 64, 64)
    assert x.dtype == torch.float32
    torch.testing.assert_close(x[0], torch.full((3, 64, 64), 0.2))
    torch.testing.assert_close(x[1], torch.ones(3, 64, 64))


def test_missing_and_damaged_pictures_are_named(tmp_path):
    with pytest.raises(InputError, match=r"absent\.png"):
        preprocess_images([tmp_path / "absent.png"])
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(InputError, match=r"text\.png"):
        preprocess_images([tmp_path / "text.png"])


def test_planted_geometry_names_its_own_layer(features):
    """Region by layer, noise free: each region's RDM goes with its own layer, by a margin."""
    models = {name: rdm(layer.reshape(60, -1)) for name, layer in features.items()}
    anatomy = Anatomy(np.random.default_rng(1))
    planted = plant_responses(anatomy, features, np.random.default_rng(2), spacing=3.0)
    for number, region in enumerate(REGIONS, start=1):
        brain = rdm(planted.beta[planted.region == number].T)
        score = {name: np.corrcoef(brain, model)[0, 1] for name, model in models.items()}
        own = score.pop(region.layer)
        assert own > max(score.values()) + 0.2, (region.name, own, score)


def test_ridge_on_held_out_stimuli_names_its_own_layer(features):
    """Closed-form kernel ridge, 6 folds over stimuli, noise as large as the signal."""
    rng = np.random.default_rng(3)
    anatomy = Anatomy(np.random.default_rng(1))
    planted = plant_responses(anatomy, features, rng, spacing=3.0)
    signal = planted.beta.T - planted.beta.T.mean(axis=0)
    data = signal + signal.std() * rng.standard_normal(signal.shape)
    fold = rng.permutation(60) % 6
    score = np.zeros((len(REGIONS), len(features)))
    for column, layer in enumerate(features.values()):
        x = layer.reshape(60, -1).astype(float)
        x = (x - x.mean(axis=0)) / np.maximum(x.std(axis=0), 1e-9)
        kernel = x @ x.T / x.shape[1]
        predicted = np.empty_like(data)
        for k in range(6):
            train, test = fold != k, fold == k
            weights = np.linalg.solve(
                kernel[np.ix_(train, train)] + np.eye(train.sum()),
                data[train] - data[train].mean(axis=0),
            )
            predicted[test] = data[train].mean(axis=0) + kernel[np.ix_(test, train)] @ weights
        r = [np.corrcoef(p, d)[0, 1] for p, d in zip(predicted.T, data.T)]
        for row in range(len(REGIONS)):
            score[row, column] = np.mean(np.array(r)[planted.region == row + 1])
    assert (score.argmax(axis=1) == np.arange(6)).sum() >= 5, score.round(2)
    assert (np.diag(score) > 0.1).all()
