"""Designs of volumes: features in scanner time, folds without leaks, a planted layer found."""

import numpy as np
import pytest
import xarray as xr
from nilearn.glm.first_level import compute_regressor
from sklearn.linear_model import Ridge

from isocortex import store
from isocortex.encoding import fit_encoding
from isocortex.encoding.delays import Events
from isocortex.encoding.design import design_of, open_responses
from isocortex.encoding.volumes import content_of, timeline, volume_folds
from isocortex.errors import InputError
from isocortex.glm.timeseries import import_timeseries

TR = 2.0


def write_features(path, layers, *, step=1.0, films=("film",)):
    """A features store of films: layer -> values of shape (samples of all films, ...)."""
    n = len(next(iter(layers.values()))) // len(films)
    time = step * np.arange(n)
    groups = {
        name: xr.Dataset(
            {"activation": (("stimulus", *"abc"[: values.ndim - 1]), values.astype(np.float32))},
            coords={
                "stimulus": np.array([f"{f}@{t:08.3f}" for f in films for t in time], object),
                "source": ("stimulus", np.repeat(np.array(films, object), n)),
                "time": ("stimulus", np.tile(time, len(films))),
                "duration": ("stimulus", np.full(n * len(films), step)),
            },
            attrs={"model": "net", "layer": name, "weights": "none", "preprocessing": {}},
        )
        for name, values in layers.items()
    }
    store.write(groups, path, spec="features")
    return path


def write_series(folder, runs, events, *, tr=TR):
    """A timeseries store from arrays of (volumes, voxels) and lists of events."""
    files, tables = [], []
    for number, (values, rows) in enumerate(zip(runs, events, strict=True)):
        files.append(folder / f"run{number}.npy")
        np.save(files[-1], values)
        tables.append(folder / f"run{number}.tsv")
        text = "".join(f"{onset}\t{length}\t{name}\n" for onset, length, name in rows)
        tables[-1].write_text("onset\tduration\tstim_file\n" + text)
    import_timeseries(
        files=files,
        events=tables,
        tr=tr,
        runs=[{"session": "", "run": str(k + 1)} for k in range(len(runs))],
        out=folder / "series.zarr",
        subject="01",
        task="film",
    )
    return folder / "series.zarr"


def test_features_are_resampled_and_delayed_as_by_hand(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.standard_normal((60, 3))
    features = write_features(tmp_path / "f.zarr", {"a": values}, step=1.0)
    noise = rng.standard_normal((40, 2))
    events = [[(5, 20, "film"), (40, 60, "film")], [(0, 60, "film")]]
    series = write_series(tmp_path, [noise, noise], events)
    design = design_of(
        open_responses(series), features, cross_validation={"new_stimuli": False}, delays=[0, 4, 9]
    )
    # a second at a time: what was on, then means over volumes, then shifts
    wanted = []
    for shown in events:
        seconds = np.zeros((80, 3))
        for onset, length, _ in shown:
            part = seconds[onset : min(onset + length, 80)]
            part[:] = values[: len(part)]
        volumes = seconds.reshape(40, 2, 3).mean(1)
        columns = [np.vstack([np.zeros((d, 3)), volumes])[:40] for d in (0, 2, 4)]
        wanted.append(np.hstack(columns))
    assert design.attrs["delays_volumes"] == [0, 2, 4]  # 9 s are 4.5 volumes, to even
    np.testing.assert_allclose(design.load("a"), np.vstack(wanted), atol=1e-6)
    assert design.load("a").dtype == np.float32


def test_features_of_volumes_that_were_left_out_are_delayed_into_later_ones():
    runs, times = ["1"] * 5, [7.0, 9.0, 11.0, 15.0, 17.0]
    line = timeline(runs, times, TR, where="here")
    assert line.first.tolist() == [1.0]
    assert line.n_volumes.tolist() == [9]
    assert line.rows.tolist() == [3, 4, 5, 7, 8]
    with pytest.raises(InputError, match="not one TR"):
        timeline(runs, times, 1.7, where="here")


@pytest.mark.parametrize("stands", [0.0, 0.967, 1.0, 1.9])
def test_the_grid_begins_with_the_run_whatever_time_slices_were_brought_to(stands):
    times = stands + TR * np.arange(3, 9)  # three volumes were not yet steady
    line = timeline(["1"] * 6, times, TR, where="here")
    assert line.first == pytest.approx([stands])
    assert line.rows.tolist() == [3, 4, 5, 6, 7, 8]


def test_maps_keep_the_dims_that_a_readout_weights(tmp_path):
    rng = np.random.default_rng(1)
    layers = {"map": rng.random((60, 4, 2, 3)), "token": rng.random((60, 5, 4))}
    layers["flat"] = rng.random((60, 6))
    features = write_features(tmp_path / "f.zarr", layers)
    series = write_series(tmp_path, [rng.random((30, 2))], [[(0, 60, "film")]])
    design = design_of(open_responses(series), features, cross_validation={}, delays=[2, 4])
    assert design.load_maps("map").shape == (30, 8, 2, 3)
    assert design.load_maps("token").shape == (30, 5, 8)
    assert design.load_maps("flat").shape == (30, 12)
    average = layers["token"].reshape(30, 2, 5, 4).mean(1)
    got = design.load_maps("token")
    np.testing.assert_allclose(got[1:, :, :4], average[:-1], atol=1e-6)
    np.testing.assert_allclose(got[2:, :, 4:], average[:-2], atol=1e-6)
    average = layers["map"].reshape(30, 2, 4, 2, 3).mean(1)
    np.testing.assert_allclose(design.load_maps("map")[2:, 4:], average[:-2], atol=1e-6)


def lines(n_runs, n=60):
    runs = np.repeat([str(k) for k in range(n_runs)], n)
    return timeline(runs, np.tile(TR * (np.arange(n) + 0.5), n_runs), TR, where="here"), runs


def shown(*rows):
    run, onset, duration, name = zip(*rows, strict=True)
    return Events(np.array(run), np.array(onset, float), np.array(duration, float), np.array(name))


def test_one_run_is_cut_into_blocks_with_a_gap_outside_and_inside():
    line, runs = lines(1, 120)
    cv = volume_folds(line, groups=runs, gap=4, blocks=5)
    assert len(cv.folds) == 5
    assert sorted(np.concatenate([f.test_trials for f in cv.folds])) == list(range(120))
    for fold in cv.folds:
        pairs = [(fold.train_stimuli, fold.test_trials)]
        pairs += [(split.train_stimuli, split.test_stimuli) for split in fold.inner]
        assert len(fold.inner) == 4
        for train, test in pairs:
            assert len(train)
            assert np.abs(train[:, None] - test[None]).min() == 5
        inner = [np.union1d(s.train_stimuli, s.test_stimuli) for s in fold.inner]
        assert not np.intersect1d(np.concatenate(inner), fold.test_trials).size
    assert "5 contiguous blocks" in cv.text
    assert "4 volumes on either side" in cv.text
    with pytest.raises(InputError, match=r"too few to hold any out.*encoding\.gap"):
        volume_folds(line, groups=runs, gap=200)


def test_runs_are_left_out_whole_and_shared_stimuli_are_not_trained_on():
    line, runs = lines(4)
    # run 3 ends with the film that run 0 begins with
    events = shown(
        ("0", 0, 30, "a"), ("0", 30, 90, "b"), ("1", 0, 120, "c"), ("2", 0, 120, "d"),
        ("3", 0, 90, "e"), ("3", 90, 30, "a"),
    )  # fmt: skip
    cv = volume_folds(line, groups=runs, content=content_of(line, events, 4), gap=4)
    assert [len(fold.test_trials) for fold in cv.folds] == [60] * 4
    lost = np.setdiff1d(np.arange(60, 240), cv.folds[0].train_stimuli)
    assert lost.min() >= 180 + 44
    assert set(range(180 + 46, 240)) <= set(lost)  # film a, from 90 s on, and what it reaches
    assert len(cv.folds[1].train_stimuli) == 180
    assert [split.test_groups for split in cv.folds[1].inner] == [(0, 2, 3)] * 3
    free = volume_folds(line, groups=runs, gap=4)
    assert len(free.folds[0].train_stimuli) == 180


def test_one_film_in_all_runs_is_held_out_in_blocks_of_film():
    line, runs = lines(3)
    events = shown(*((run, 0, 120, "film") for run in "012"))
    cv = volume_folds(line, groups=runs, content=content_of(line, events, 3), gap=3, blocks=4)
    assert len(cv.folds) == 12
    for fold in cv.folds:
        own = set(fold.test_trials // 60)
        assert not own & set(fold.train_stimuli // 60)
        # no moment of the film that reaches the test reaches the training
        assert np.abs(fold.train_stimuli[:, None] % 60 - fold.test_trials[None] % 60).min() > 3
        for split in fold.inner:
            train, test = split.train_stimuli % 60, split.test_stimuli % 60
            assert np.abs(train[:, None] - test[None]).min() > 3
    assert "in 4 contiguous blocks" in cv.text


def autocorrelated(rng, shape, rho):
    values = rng.standard_normal(shape)
    for t in range(1, len(values)):
        values[t] = rho * values[t - 1] + np.sqrt(1 - rho**2) * values[t]
    return values


def mean_score(features, responses, folds):
    """Mean over voxels of the held-out r of ridge regression, plain mean over folds."""
    scores = []
    for train, test in folds:
        model = Ridge(alpha=1.0).fit(features[train], responses[train])
        one, other = model.predict(features[test]), responses[test]
        one, other = (x - x.mean(0) for x in (one, other))
        scores.append((one * other).sum(0) / np.sqrt((one**2).sum(0) * (other**2).sum(0)))
    return np.mean(scores, 0)


def test_unrelated_features_score_0_with_autocorrelated_noise():
    """Slow noise and slow features: random folds leak, contiguous ones with a gap do not."""
    rng = np.random.default_rng(2)
    n, voxels, repeats = 200, 30, 20
    line, runs = lines(1, n)
    cv = volume_folds(line, groups=runs, gap=8, blocks=5)
    clean = [(fold.train_stimuli, fold.test_trials) for fold in cv.folds]
    order = rng.permutation(n)
    leaky = [(np.setdiff1d(order, part), part) for part in np.array_split(order, 5)]
    with_gap, without = [], []
    for _ in range(repeats):
        features = autocorrelated(rng, (n, 15), 0.8)
        responses = autocorrelated(rng, (n, voxels), 0.8)
        with_gap.append(mean_score(features, responses, clean).mean())
        without.append(mean_score(features, responses, leaky).mean())
    error = np.std(with_gap, ddof=1) / np.sqrt(repeats)
    assert abs(np.mean(with_gap)) < 3 * error
    assert np.mean(without) > 0.2


def test_a_planted_layer_is_found_through_the_haemodynamic_response(tmp_path):
    rng = np.random.default_rng(3)
    n_seconds, n_voxels = 240, 40
    films = ("a", "b", "c")
    layers = {f"layer{k}": rng.standard_normal((3 * n_seconds, 6)) for k in range(3)}
    features = write_features(tmp_path / "f.zarr", layers, films=films)
    truth = np.arange(n_voxels) % 3
    weights = rng.standard_normal((6, n_voxels))
    runs, events = [], []
    for number in range(3):
        at = slice(number * n_seconds, (number + 1) * n_seconds)
        middles = TR * (np.arange(n_seconds // 2 + 10) + 0.5)
        bold = np.zeros((len(middles), n_voxels))
        for voxel in range(n_voxels):
            drive = layers[f"layer{truth[voxel]}"][at] @ weights[:, voxel]
            onset = 10.0 + np.arange(n_seconds)
            condition = np.vstack([onset, np.ones(n_seconds), drive])
            bold[:, voxel] = compute_regressor(condition, "glover", middles)[0][:, 0]
        bold /= bold.std(0)
        runs.append(bold + autocorrelated(rng, bold.shape, 0.4))
        events.append([(10, n_seconds, films[number])])
    series = write_series(tmp_path, runs, events)
    fit_encoding(
        responses=series,
        features=features,
        out=tmp_path / "e.zarr",
        maps=tmp_path / "maps",
        alphas=[0.1, 1, 10, 100],
        cross_validation={"over": "run", "new_stimuli": True},
        delays=[2, 4, 6, 8, 10],
        device="cpu",
    )
    result = store.open(tmp_path / "e.zarr", "encoding")
    best, score = result["best_layer"].values, result["score"].values
    assert (best == truth).mean() > 0.95
    at_truth = score[truth, np.arange(n_voxels)]
    assert at_truth.mean() > 0.45  # of .71 that the noise allows
    elsewhere = score[(truth + 1) % 3, np.arange(n_voxels)]
    assert abs(elsewhere.mean()) < 0.05


def test_what_does_not_fit_is_told(tmp_path):
    rng = np.random.default_rng(4)
    features = write_features(tmp_path / "f.zarr", {"a": rng.random((60, 2))})
    series = write_series(tmp_path, [rng.random((30, 2))], [[(0, 60, "other")]])
    responses = open_responses(series)
    with pytest.raises(InputError, match="'other' of run 1 has no features"):
        design_of(responses, features, cross_validation={})
    with pytest.raises(InputError, match="over is 'condition'"):
        design_of(responses, features, cross_validation={"over": "condition"})
