"""Training of readouts: best state of each voxel, batches, checkpoints, killed and resumed."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from isocortex.device import deterministic
from isocortex.encoding.readouts import FeatureMaps, Readout, train
from isocortex.encoding.readouts import training as training_module
from isocortex.errors import InputError


class Linear(Readout):
    """Every unit of one layer weighted: what training can be checked with."""

    name = "linear"
    defaults: ClassVar = {"decay": 0.0, "dropout": 0.0}

    def __init__(self, shapes, n_voxels, *, generator, regions=None, **options):
        super().__init__(shapes, n_voxels, generator=generator, regions=regions, **options)
        n_units = int(np.prod(shapes[self.layers[0]]))
        first = 0.01 * torch.randn(n_units, generator=generator)
        self.weight = nn.Parameter(first.expand(n_voxels, -1).clone())

    def contributions(self, maps):
        flat = maps[self.layers[0]].flatten(1)
        flat = nn.functional.dropout(flat, self.options["dropout"], self.training)
        return (flat @ self.weight.T)[:, None]

    def penalty(self):
        return self.options["decay"] * self.weight.square().sum()


class Shared(Linear):
    """The same with one state for all voxels."""

    name = "shared"
    voxelwise = False


ROWS = np.arange(90)
SPLIT = {"train_rows": ROWS[:50], "validation_rows": ROWS[50:70], "predict_rows": ROWS[70:]}


def planted(n_voxels=6, n_units=8, noise=0.3, seed=0):
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((90, n_units)).astype(np.float32) * 3 + 1
    responses = features @ rng.standard_normal((n_units, n_voxels)) + 5
    return features, responses + noise * responses.std() * rng.standard_normal(responses.shape)


def fit(features, responses, kind=Linear, options=None, **more):
    maps = FeatureMaps({"layer": features}, SPLIT["train_rows"], device="cpu")
    n_voxels = responses.shape[1]

    def make(voxels, generator):
        n = voxels.stop - voxels.start
        return kind(maps.shapes, n, generator=generator, **(options or {}))

    settings = SPLIT | {"epochs": 60, "patience": 8, "batch_size": 16, "learning_rate": 0.05}
    with deterministic(1):
        return train(make, maps, lambda a, b: responses[:, a:b], n_voxels, **(settings | more))


def same(a, b):
    assert a.prediction.tobytes() == b.prediction.tobytes()
    assert a.validation_loss.tobytes() == b.validation_loss.tobytes()
    assert a.training_loss.tobytes() == b.training_loss.tobytes()


def test_reaches_least_squares():
    features, responses = planted(noise=0.0)
    got = fit(features, responses, epochs=300, patience=300)
    np.testing.assert_allclose(got.prediction, responses[70:], atol=0.05 * responses.std())
    assert got.prediction.shape == (20, 6)
    assert got.n_epochs == 300
    assert got.validation_loss[-1] < 1e-3 < got.validation_loss[0]
    np.testing.assert_allclose(got.results["layer_weight"], 1)


def test_voxels_do_not_depend_on_their_batch():
    features, responses = planted()
    whole = fit(features, responses)
    parts = fit(features, responses, voxel_batch=2)
    np.testing.assert_allclose(whole.prediction, parts.prediction, atol=1e-3)
    alone = fit(features, responses[:, 3:4])
    np.testing.assert_allclose(whole.prediction[:, 3], alone.prediction[:, 0], atol=1e-3)


def test_each_voxel_keeps_its_best_state():
    features, responses = planted(noise=2.0)
    stopped = fit(features, responses, epochs=150, patience=5)
    assert stopped.n_epochs < 150
    # A voxel alone stops when it has waited long enough: its best is the same among others
    for voxel in range(3):
        alone = fit(features, responses[:, voxel : voxel + 1], epochs=150, patience=5)
        np.testing.assert_allclose(stopped.prediction[:, voxel], alone.prediction[:, 0], atol=1e-3)
    fitted = fit(features, responses, epochs=150, patience=150)
    error = [((t.prediction - responses[70:]) ** 2).mean() for t in (stopped, fitted)]
    assert error[0] < 1.05 * error[1]


def test_a_shared_readout_stops_as_one():
    features, responses = planted(noise=2.0)
    got = fit(features, responses, Shared, epochs=150, patience=5)
    best = int(np.nanargmin(got.validation_loss))
    again = fit(features, responses, Shared, epochs=best + 1, patience=50)
    np.testing.assert_array_equal(got.prediction, again.prediction)


def test_the_seed_decides():
    features, responses = planted()
    same(fit(features, responses), fit(features, responses))
    other = fit(features, responses, seed=1)
    assert not np.array_equal(other.prediction, fit(features, responses).prediction)


def test_validation_and_test_rows_teach_nothing():
    features, responses = planted()
    changed_features, changed = features.copy(), responses.copy()
    changed_features[70:] *= 100
    changed[70:] = np.nan
    whole = fit(features, responses)
    other = fit(changed_features, changed)
    np.testing.assert_array_equal(whole.validation_loss, other.validation_loss)


def test_weights_are_repeats():
    features, responses = planted()
    weights = np.ones(90)
    weights[:25] = 3
    repeated = np.r_[np.repeat(ROWS[:25], 3), ROWS[25:50]]
    # One step of all rows, so that the order of rows does not matter
    weighted = fit(features, responses, weights=weights, batch_size=200, epochs=5)
    maps = FeatureMaps({"layer": features}, SPLIT["train_rows"], device="cpu")
    again = train(
        lambda voxels, generator: Linear(maps.shapes, 6, generator=generator),
        maps,
        lambda a, b: responses[:, a:b],
        6,
        **(SPLIT | {"train_rows": repeated}),
        batch_size=200,
        epochs=5,
        patience=8,
        learning_rate=0.05,
    )
    np.testing.assert_allclose(weighted.prediction, again.prediction, atol=1e-3)


def test_features_are_standardised_by_channel_on_training_rows():
    rng = np.random.default_rng(0)
    values = rng.standard_normal((30, 4, 3, 5)).astype(np.float32) * 7 + 2
    values[:, 2] = 4.0  # a channel that never varies
    maps = FeatureMaps({"a": values}, ROWS[:20], device="cpu")
    part = maps(ROWS[:20])["a"].numpy()
    np.testing.assert_allclose(part.mean((0, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(part[:, [0, 1, 3]].std((0, 2, 3)), 1, atol=1e-5)
    assert (part[:, 2] == 0).all()
    held_out = (values[20:, :1] - values[:20, :1].mean()) / values[:20, :1].std()
    np.testing.assert_allclose(maps(ROWS[20:30])["a"][:, :1].numpy(), held_out, atol=1e-4)


def test_bad_voxels_are_masked():
    features, responses = planted()
    responses[3, 1] = np.nan
    responses[:, 4] = 2.0
    got = fit(features, responses, epochs=3)
    assert np.isnan(got.prediction[:, [1, 4]]).all()
    assert np.isnan(got.results["layer_weight"][:, [1, 4]]).all()
    assert np.isfinite(got.prediction[:, [0, 2, 3, 5]]).all()
    assert np.isfinite(got.validation_loss).all()


def test_mixed_precision_is_near_single():
    features, responses = planted(noise=0.1)
    single = fit(features, responses, epochs=100)
    mixed = fit(features, responses, epochs=100, precision="mixed")
    assert not np.array_equal(single.prediction, mixed.prediction)
    for voxel in range(6):
        assert np.corrcoef(single.prediction[:, voxel], mixed.prediction[:, voxel])[0, 1] > 0.99


@pytest.mark.parametrize("kind", [Linear, Shared])
def test_interrupted_training_goes_on_to_the_same_end(tmp_path, monkeypatch, kind):
    features, responses = planted()
    options = {"dropout": 0.2}
    more = {"epochs": 12, "voxel_batch": 4, "checkpoint_seconds": 0.0, "options": options}
    undisturbed = fit(features, responses, kind, **more)
    epochs = 0
    real = training_module._Batch._epoch

    def interrupted(self):
        nonlocal epochs
        epochs += 1
        if epochs in (5, 14):
            raise KeyboardInterrupt
        return real(self)

    monkeypatch.setattr(training_module._Batch, "_epoch", interrupted)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            fit(features, responses, kind, checkpoint=tmp_path, **more)
    before = epochs
    resumed = fit(features, responses, kind, checkpoint=tmp_path, **more)
    assert epochs - before < 24  # it did not begin again
    same(undisturbed, resumed)
    assert not list(tmp_path.glob("*.tmp"))


def test_killed_training_goes_on_to_the_same_end(tmp_path):
    script = tmp_path / "train_it.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import sys, time
            sys.path.insert(0, {os.path.dirname(__file__)!r})
            from pathlib import Path
            import test_readout_training as t
            from isocortex.encoding.readouts import training
            real = training._Batch._epoch
            def slow(self):
                time.sleep(0.05)
                return real(self)
            training._Batch._epoch = slow
            features, responses = t.planted()
            t.fit(features, responses, checkpoint=Path({str(tmp_path / "state")!r}),
                  checkpoint_seconds=0.0, epochs=200, patience=200)
            """
        )
    )
    child = subprocess.Popen(
        [sys.executable, str(script)], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
    wanted = tmp_path / "state" / "voxels-0-6.pt"
    for _ in range(600):
        if wanted.exists():
            break
        assert child.poll() is None
        time.sleep(0.05)
    time.sleep(0.2)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    features, responses = planted()
    more = {"epochs": 30, "patience": 200}
    reached = len(torch.load(wanted, weights_only=True)["losses"])
    assert 0 < reached < 30
    resumed = fit(features, responses, checkpoint=wanted.parent, **more)
    same(fit(features, responses, **more), resumed)


def test_out_of_memory_halves_the_batch_of_voxels(monkeypatch, caplog):
    features, responses = planted()
    whole = fit(features, responses, epochs=8)
    real = training_module._Batch._epoch

    def small_only(self):
        if self.targets.shape[1] > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self)

    monkeypatch.setattr(training_module._Batch, "_epoch", small_only)
    halved = fit(features, responses, epochs=8)
    np.testing.assert_allclose(whole.prediction, halved.prediction, atol=1e-3)
    assert "out of memory with 6 voxels at once: going on with 3" in caplog.text


def test_nothing_to_stop_by_is_refused():
    features, responses = planted()
    with pytest.raises(InputError, match="no rows"):
        fit(features, responses, validation_rows=ROWS[:0])


def test_options_are_checked():
    with pytest.raises(InputError, match="no option 'widht'"):
        Linear.complete({"widht": 1})
    with pytest.raises(InputError, match=r"'decay'.*give it a value like 0.0"):
        Linear.complete({"decay": "much"})
    assert Linear.complete({"decay": 1}) == {"decay": 1, "dropout": 0.0}
