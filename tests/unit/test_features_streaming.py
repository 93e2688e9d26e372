"""Extraction is streamed: in flat memory, killed and gone on with, by patterns, projected."""

import json
import math
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import dask.array
import numpy as np
import psutil
import pytest
import torch
import xarray as xr
from PIL import Image
from scipy.stats import binom
from sklearn.random_projection import SparseRandomProjection
from torch import nn

from isocortex import features, store
from isocortex.errors import InputError
from isocortex.features import extract as extraction
from isocortex.features.layers import match_layers, pool_activation
from isocortex.features.projection import SparseProjection
from isocortex.features.samples import Batch

WORKFLOW = Path(__file__).parents[2] / "workflow"
CPU = torch.device("cpu")


def groups(shapes, n, *, values=None):
    return {
        layer: xr.Dataset(
            {
                "activation": (
                    ("stimulus", *(f"axis{axis}" for axis in range(1, len(shape) + 1))),
                    dask.array.empty((n, *shape), dtype=np.float32)
                    if values is None
                    else values[layer],
                )
            },
            coords={"stimulus": np.array([f"{row:03d}" for row in range(n)], dtype=object)},
            attrs={"model": "m", "layer": layer, "weights": "w", "preprocessing": "p"},
        )
        for layer, shape in shapes.items()
    }


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(store, "CHUNK_BYTES", 256)
    monkeypatch.setattr(store, "SHARD_BYTES", 1024)


SHAPES = {"a": (3, 2), "b": (7,), "c": (40, 5), "d": (1,)}


def rows_of(n):
    rng = np.random.default_rng(1)
    return {
        layer: rng.normal(size=(n, *shape)).astype(np.float32) for layer, shape in SHAPES.items()
    }


@pytest.mark.parametrize("batch", [1, 5, 64, 101])
def test_a_stream_has_the_bytes_of_one_write(tmp_path, small_shards, batch):
    values = rows_of(101)
    whole = store.write(
        groups(SHAPES, 101, values=values), tmp_path / "whole.zarr", spec="features"
    )
    stream = store.Stream(tmp_path / "parts.zarr", spec="features", key="k")
    stream.begin(groups(SHAPES, 101))
    for first in range(0, 101, batch):
        stream.append({layer: part[first : first + batch] for layer, part in values.items()})
    parts = stream.finish()
    assert json.loads(whole.read_text()) == json.loads(parts.read_text())
    assert store.verify(tmp_path / "parts.zarr")
    for layer, part in values.items():
        stored = store.open(tmp_path / "parts.zarr", "features", group=layer)
        np.testing.assert_array_equal(stored["activation"].values, part)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == [
        "parts.zarr",
        "whole.zarr",
    ]


@pytest.mark.parametrize("cut", [1, 2, 5, 9])
def test_a_stream_goes_on_behind_the_rows_that_count(tmp_path, small_shards, cut, monkeypatch):
    """Also where the process ended after rows were written and before they counted."""
    values = rows_of(101)
    whole = store.write(
        groups(SHAPES, 101, values=values), tmp_path / "whole.zarr", spec="features"
    )

    def append(stream, first):
        stream.append({layer: part[first : first + 11] for layer, part in values.items()})

    stream = store.Stream(tmp_path / "parts.zarr", spec="features", key="k")
    stream.begin(groups(SHAPES, 101), notes={"batch": 11})
    for number in range(cut):
        append(stream, 11 * number)
    with monkeypatch.context() as patch:
        patch.setattr(store.Stream, "_keep", lambda _self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            append(stream, 11 * cut)
    left = stream.folder / "content" / "a" / "left.partial"
    left.write_bytes(b"cut short")

    again = store.Stream(tmp_path / "parts.zarr", spec="features", key="k")
    assert (again.begun, again.rows, again.notes) == (True, 11 * cut, {"batch": 11})
    for first in range(again.rows, 101, 11):
        append(again, first)
    assert json.loads(whole.read_text()) == json.loads(again.finish().read_text())
    assert not again.folder.exists()


def test_a_stream_of_another_key_starts_anew(tmp_path):
    stream = store.Stream(tmp_path / "parts.zarr", spec="features", key="k")
    stream.begin(groups(SHAPES, 9))
    stream.append({layer: part[:4] for layer, part in rows_of(9).items()})
    with pytest.raises(ValueError, match=r"4 of 9 rows of a"):
        stream.finish()
    other = store.Stream(tmp_path / "parts.zarr", spec="features", key="other")
    assert (other.begun, other.rows) == (False, 0)
    assert not other.folder.exists()


@pytest.fixture
def images(tmp_path):
    """Thirty small images."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "images"
    folder.mkdir()
    paths = [folder / f"{index:02d}.png" for index in range(30)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)
    return paths


def extract(out, paths, **options):
    features.extract_features(
        stimuli=paths,
        stimulus_ids=[path.name for path in paths],
        out=out,
        model="net",
        **{"architecture": "resnet20-cifar", "batch_size": 4, **options},
    )
    return store.manifest(out)["content"]


def test_killed_by_an_error_and_gone_on_with(tmp_path, images, monkeypatch):
    undisturbed = extract(tmp_path / "whole.zarr", images)
    ran = []
    run = features.Network.run

    def broken(self, batch):
        if len(ran) == 4:
            raise OSError("power is out")
        ran.append(len(batch))
        return run(self, batch)

    monkeypatch.setattr(features.Network, "run", broken)
    out = tmp_path / "parts.zarr"
    with pytest.raises(OSError, match="power"):
        extract(out, images)
    assert not out.exists()
    assert (tmp_path / ".parts.zarr.unfinished").is_dir()
    counted = []

    def counting(self, batch):
        counted.append(len(batch))
        return run(self, batch)

    monkeypatch.setattr(features.Network, "run", counting)
    assert extract(out, images) == undisturbed
    assert sum(counted) == len(images) - sum(ran)
    assert not (tmp_path / ".parts.zarr.unfinished").exists()


def test_a_changed_stimulus_or_model_does_not_go_on(tmp_path, images, monkeypatch):
    run = features.Network.run
    ran = []

    def broken(self, batch):
        if len(ran) == 3:
            raise OSError("power is out")
        ran.append(len(batch))
        return run(self, batch)

    for change in ("stimulus", "seed"):
        ran.clear()
        monkeypatch.setattr(features.Network, "run", broken)
        out = tmp_path / f"{change}.zarr"
        with pytest.raises(OSError, match="power"):
            extract(out, images)
        monkeypatch.setattr(features.Network, "run", run)
        if change == "stimulus":
            Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(images[0])
        seed = 1 if change == "seed" else 0
        plain = extract(tmp_path / "plain.zarr", images, seed=seed)
        assert extract(out, images, seed=seed) == plain


KILLED = """
import sys, time, pathlib
sys.path.insert(0, {path!r})
from isocortex import features
run = features.Network.run
def slow(self, batch):
    time.sleep(0.1)
    return run(self, batch)
features.Network.run = slow
paths = sorted(pathlib.Path({images!r}).glob("*.png"))
features.extract_features(
    stimuli=paths, stimulus_ids=[path.name for path in paths], out={out!r}, model="net",
    architecture="resnet20-cifar", batch_size=1)
"""


def test_killed_outright_and_gone_on_with(tmp_path, images):
    out = tmp_path / "parts.zarr"
    undisturbed = extract(tmp_path / "whole.zarr", images, batch_size=1)
    script = KILLED.format(path=str(WORKFLOW), images=str(images[0].parent), out=str(out))
    process = subprocess.Popen([sys.executable, "-c", script])
    progress = tmp_path / ".parts.zarr.unfinished" / "progress.json"
    give_up = time.monotonic() + 60
    while time.monotonic() < give_up and process.poll() is None:
        if progress.is_file() and json.loads(progress.read_text())["rows"] >= 3:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 3 <= json.loads(progress.read_text())["rows"] < len(images)
    assert not out.exists()
    assert extract(out, images, batch_size=1) == undisturbed
    assert not progress.parent.exists()


def test_memory_is_flat_in_the_number_of_images(tmp_path, images, monkeypatch):
    """Twelve times the images, 100 MB of features: not 12 MB more at the peak."""
    # Up to one shard memory may grow; both numbers of images are beyond it
    monkeypatch.setattr(store, "CHUNK_BYTES", 1 << 18)
    monkeypatch.setattr(store, "SHARD_BYTES", 1 << 20)

    def peak(n, name):
        most, done = 0, threading.Event()

        def watch():
            nonlocal most
            while not done.wait(0.002):
                most = max(most, psutil.Process().memory_info().rss)

        paths = [images[index % len(images)] for index in range(n)]
        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            features.extract_features(
                stimuli=paths,
                stimulus_ids=[f"{index:05d}" for index in range(n)],
                out=tmp_path / f"{name}.zarr",
                model="net",
                architecture="pixels",
                image_size=64,
                layers=["rgb", "grey"],
                batch_size=16,
            )
        finally:
            done.set()
            watcher.join()
        return most / 2**20

    peak(100, "warm")
    few, many = peak(130, "few"), peak(1560, "many")
    size = sum(p.stat().st_size for p in (tmp_path / "many.zarr").rglob("*") if p.is_file())
    assert size > 95 * 2**20
    assert many < few + 12


def test_out_of_memory_halves_the_batch_and_goes_on(tmp_path, images, monkeypatch, caplog):
    plain = tmp_path / "plain.zarr"
    extract(plain, images, batch_size=3)
    run = features.Network.run

    def tight(self, batch):
        if len(batch) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(self, batch)

    monkeypatch.setattr(features.Network, "run", tight)
    caplog.set_level("INFO")
    halved = tmp_path / "halved.zarr"
    extract(halved, images, batch_size=12)
    assert "out of memory, batches of 3" in caplog.text
    assert store.manifest(plain)["content"] == store.manifest(halved)["content"]
    with monkeypatch.context() as patch:
        patch.setattr(
            features.Network, "run", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("x"))
        )
        with pytest.raises(torch.OutOfMemoryError):
            extract(tmp_path / "never.zarr", images, batch_size=2)


def test_batches_are_as_large_as_memory_allows(monkeypatch):
    assert extraction._batch_size(1000, device=CPU) == 64
    assert extraction._batch_size(44 << 20, device=CPU) == 16
    assert extraction._batch_size(4 << 30, device=CPU) == 1
    memory = psutil.virtual_memory()._replace(available=1 << 20)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    assert extraction._batch_size(1 << 15, device=CPU) == 8


def test_values_that_are_not_finite_are_refused(tmp_path, images):
    with pytest.raises(InputError, match=r"'rgb' of features\.models\.net.*not finite"):
        extract(tmp_path / "out.zarr", images, architecture="pixels", mean=[np.inf, 0, 0])
    assert not [path for path in tmp_path.iterdir() if path.name != "images"]


class Net(nn.Module):
    """Submodules on two levels, one that is not run, one that hands on its input."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.layer1 = nn.ModuleDict({"conv1": nn.Conv2d(4, 4, 1), "conv2": nn.Conv2d(4, 5, 1)})
        self.layer2 = nn.ModuleDict({"conv1": nn.Conv2d(5, 6, 1), "act": nn.ReLU(inplace=True)})
        self.drop = nn.Dropout()
        self.idle = nn.Linear(2, 2)
        self.head = nn.Linear(6, 2)

    def forward(self, images):
        x = self.layer1.conv2(self.layer1.conv1(self.stem(images)))
        x = self.drop(self.layer2.act(self.layer2.conv1(x)))
        return self.head(x.mean((2, 3)).view(len(x), -1))


def test_layers_by_name_pattern_and_all():
    network = Net().eval()

    def names(*wanted):
        return list(match_layers(network, wanted, name="net")[0])

    assert names("head", "stem") == ["head", "stem"]
    assert names("layer?.conv?") == ["layer1.conv1", "layer1.conv2", "layer2.conv1"]
    assert names("layer*") == ["layer1", "layer2"]
    assert names("layer**") == [
        "layer1",
        "layer1.conv1",
        "layer1.conv2",
        "layer2",
        "layer2.conv1",
        "layer2.act",
    ]
    assert names("layer[2].conv1", "layer*.conv1") == ["layer2.conv1", "layer1.conv1"]
    with pytest.raises(InputError, match=r"'layer3\.conv\?'.*did you mean layer\d\.conv"):
        names("layer3.conv?")
    reader = features.Network(features.Architecture(network), ["all"], device=CPU)
    inputs = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    reader.probe(Batch(inputs[:1], (1,)))
    # Dropout hands on what the layer before it gave; the ReLU changes it in place
    assert list(reader.shapes) == [
        "stem",
        "layer1.conv1",
        "layer1.conv2",
        "layer2.conv1",
        "layer2.act",
        "head",
    ]
    got = reader.run(Batch(inputs, (1,) * 5))
    with torch.inference_mode():
        first = network.layer2.conv1(
            network.layer1.conv2(network.layer1.conv1(network.stem(inputs)))
        )
        np.testing.assert_allclose(got["layer2.conv1"], first.numpy(), atol=1e-6)
        np.testing.assert_allclose(got["layer2.act"], first.clamp(min=0).numpy(), atol=1e-6)
    idle = features.Network(features.Architecture(network), ["idle"], device=CPU)
    with pytest.raises(InputError, match=r"'idle'.*no output per input"):
        idle.probe(Batch(inputs[:1], (1,)))


def test_networks_that_need_the_usual_memory_order():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

        def forward(self, images):
            return self.two(self.one(images)).view(len(images), -1)

    torch.manual_seed(0)
    network, inputs = Flat().eval(), torch.randn(3, 3, 9, 9)
    reader = features.Network(features.Architecture(network), ["two"], device=CPU)
    reader.probe(Batch(inputs[:1], (1,)))
    got = reader.run(Batch(inputs, (1, 1, 1)))["two"]
    with torch.inference_mode():
        np.testing.assert_allclose(got.reshape(3, -1), network(inputs).numpy(), atol=1e-6)


def test_last_token_and_texts_of_any_length():
    activation = torch.arange(2 * 3 * 2, dtype=torch.float32).reshape(2, 3, 2)
    tokens = torch.tensor([[False, True, False], [True, True, True]])
    mean = pool_activation(activation, pool="none", tokens=tokens)
    torch.testing.assert_close(mean, torch.stack([activation[0, 1], activation[1].mean(0)]))
    last = pool_activation(activation, pool="last", tokens=tokens)
    torch.testing.assert_close(last, torch.stack([activation[0, 1], activation[1, 2]]))
    torch.testing.assert_close(pool_activation(activation, pool="last"), activation[:, 2])


@pytest.mark.parametrize("units", [400, 9000])
def test_projection_has_the_entries_that_scikit_learn_defines(units):
    matrix = SparseProjection(units, 300, seed=4, layer="l").matrix.to_dense().numpy()
    peer = SparseRandomProjection(300, density="auto", random_state=4).fit(np.zeros((1, units)))
    theirs = peer.components_.toarray()
    np.testing.assert_allclose(np.unique(matrix), np.unique(theirs), rtol=1e-6)
    assert peer.density_ == pytest.approx(1 / math.sqrt(units))
    # How many entries there are, and their signs, within the binomial's central 99 %
    filled = int((matrix != 0).sum())
    low, high = binom.interval(0.99, matrix.size, 1 / math.sqrt(units))
    assert low <= filled <= high
    low, high = binom.interval(0.99, filled, 0.5)
    assert low <= (matrix > 0).sum() <= high
    again = SparseProjection(units, 300, seed=4, layer="l").matrix.to_dense().numpy()
    np.testing.assert_array_equal(matrix, again)
    for other in ({"seed": 5, "layer": "l"}, {"seed": 4, "layer": "k"}):
        assert (SparseProjection(units, 300, **other).matrix.to_dense().numpy() != matrix).any()


def test_projection_keeps_distances():
    rng = np.random.default_rng(0)
    points = torch.from_numpy(rng.normal(size=(12, 5000)).astype(np.float32))
    ratios = []
    for seed in range(10):
        projected = SparseProjection(5000, 1000, seed=seed, layer="l")(points)
        ratios.append((torch.pdist(projected) / torch.pdist(points)).square().numpy())
    # Squared distances are right on average, with a variance of about 2 / dimensions
    assert np.mean(ratios) == pytest.approx(1, abs=0.01)
    assert np.std(ratios) == pytest.approx(math.sqrt(2 / 1000), rel=0.2)


def test_projected_layers_are_stored_as_such(tmp_path, images):
    options = {"layers": ["layer1.0", "avgpool", "linear"], "seed": 2}
    extract(tmp_path / "full.zarr", images, **options)
    extract(tmp_path / "less.zarr", images, **options, project=50)
    for layer, units in (("layer1.0", 50), ("avgpool", 50), ("linear", 10)):
        full = store.open(tmp_path / "full.zarr", "features", group=layer)["activation"].values
        less = store.open(tmp_path / "less.zarr", "features", group=layer)
        assert less["activation"].shape == (30, units)
        flat = full.reshape(30, -1)
        if units == 50:
            matrix = SparseProjection(flat.shape[1], 50, seed=2, layer=layer).matrix.to_dense()
            flat = flat @ matrix.numpy().T
        np.testing.assert_allclose(less["activation"].values, flat, atol=1e-4, rtol=1e-4)
        assert "projection to 50 (seed 2)" in less.attrs["preprocessing"]
