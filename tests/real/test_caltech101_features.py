"""Features of photographs of 21 kinds of things: what a trained network tells apart."""

import numpy as np
import pytest

from isocortex import features, store

CHECKPOINT = "resnet20-cifar10/resnet20-12fca82f.th"


@pytest.fixture(scope="module")
def photographs(data):
    """Files and their classes, 8 photographs of each of 21 classes."""
    paths = sorted((data / "caltech101-subset").glob("*/*.jpg"))
    assert len(paths) == 168
    return paths, np.array([path.parent.name for path in paths])


def extract(folder, name, paths, **options):
    out = folder / f"{name}.zarr"
    ids = [f"{path.parent.name}/{path.name}" for path in paths]
    features.extract_features(
        stimuli=paths, stimulus_ids=ids, out=out, model=name, fit="stretch", **options
    )
    found = {}
    for layer in store.groups(out):
        dataset = store.open(out, "features", group=layer)
        assert list(dataset["stimulus"].values) == sorted(ids)
        found[layer] = dataset["activation"].values.reshape(len(ids), -1)
    return found


def accuracy(values, classes):
    """Share of photographs whose class' centroid, without themselves, is the nearest one."""
    values = values - values.mean(1, keepdims=True)
    values = values / np.linalg.norm(values, axis=1, keepdims=True)  # correlation distance
    names = np.unique(classes)
    sums = np.stack([values[classes == name].sum(0) for name in names])
    right = 0
    for row, name in zip(values, classes, strict=True):
        centroids = sums - np.where(names == name, 1, 0)[:, None] * row
        centroids = centroids - centroids.mean(1, keepdims=True)
        centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
        right += names[(centroids @ row).argmax()] == name
    return right / len(classes)


def test_trained_layers_tell_classes_apart(data, photographs, tmp_path):
    paths, classes = photographs
    options = {"architecture": "resnet20-cifar", "layers": ["layer?.2", "avgpool"]}
    trained = extract(tmp_path, "trained", paths, weights=str(data / CHECKPOINT), **options)
    untrained = extract(tmp_path, "untrained", paths, **options)
    gabor = extract(tmp_path, "gabor", paths, architecture="gabor")
    assert list(trained) == ["layer1.2", "layer2.2", "layer3.2", "avgpool"]
    trained = {layer: accuracy(values, classes) for layer, values in trained.items()}
    untrained = {layer: accuracy(values, classes) for layer, values in untrained.items()}
    energy = accuracy(gabor["energy"], classes)
    # Chance is one in 21
    assert max(trained, key=trained.get) == "layer2.2"
    # Measured: .69, .77, .68 and .49 trained; .36, .39, .34 and .26 untrained; .62 Gabor energy
    assert trained["layer2.2"] > energy + 0.05
    assert all(trained[layer] > untrained[layer] + 0.15 for layer in trained)
    assert min(untrained.values()) > 2 / 21


def test_a_projection_tells_apart_what_the_layer_does(data, photographs, tmp_path):
    paths, classes = photographs
    options = {
        "architecture": "resnet20-cifar",
        "layers": ["layer2.2"],
        "weights": str(data / CHECKPOINT),
    }
    full = extract(tmp_path, "full", paths, **options)["layer2.2"]
    less = extract(tmp_path, "less", paths, project=1000, **options)["layer2.2"]
    assert (full.shape[1], less.shape[1]) == (8192, 1000)
    a, b = accuracy(full, classes), accuracy(less, classes)
    # Measured: .77 both
    assert abs(a - b) < 0.08
    distances = [np.linalg.norm(v[:, None] - v[None], axis=-1) for v in (full[::4], less[::4])]
    pairs = np.triu_indices(len(full[::4]), 1)
    ratio = distances[1][pairs] / distances[0][pairs]
    assert abs(ratio.mean() - 1) < 0.02
