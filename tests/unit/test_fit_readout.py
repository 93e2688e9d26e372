"""The readout store: planted layers and fields come back through folds, nothing leaks."""

import json

import nibabel
import numpy as np
import pytest
import torch
import xarray as xr

from isocortex import store
from isocortex.encoding import fit_readout as module
from isocortex.encoding.fit_readout import fit_readout, validation_split
from isocortex.encoding.folds import cross_validation_folds
from isocortex.encoding.readouts import KINDS, Readout, training
from isocortex.errors import InputError
from isocortex.phantom.readouts import feature_maps, fixed_field_responses

from .test_encoding import CV, write_betas, write_features

N_STIMULI, N_RUNS = 90, 3
LAYERS = {"early": (4, 8), "late": (6, 5)}
FAST = {"epochs": 30, "patience": 5, "learning_rate": 0.02, "folds": 2}
GAUSSIAN = {"grid": 5, "sizes": [0.12, 0.2], "alphas": [0.1, 1.0]}


def names_of(n):
    return [f"s{index:03d}" for index in range(n)]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Stores of two layers of maps and of voxels with planted fields, shown in three runs."""
    folder = tmp_path_factory.mktemp("readout")
    planted = fixed_field_responses(
        N_STIMULI, 6, maps=feature_maps(N_STIMULI, layers=LAYERS, seed=1), seed=1
    )
    rng = np.random.default_rng(0)
    order = np.concatenate([rng.permutation(N_STIMULI) for _ in range(N_RUNS)])
    responses = planted.signal[order] + 0.6 * rng.standard_normal((len(order), 12))
    runs = np.repeat(np.arange(N_RUNS), N_STIMULI).astype(str)
    # Baselines of runs are none of the readout's business
    responses = responses + np.repeat([3.0, -2.0, 8.0], N_STIMULI)[:, None]
    names = names_of(N_STIMULI)
    stimuli = [names[index] for index in order]
    ncsnr = np.full(12, 1 / 0.6)
    betas = write_betas(folder / "betas.zarr", responses, stimuli, runs, ncsnr=ncsnr)
    flat = rng.standard_normal((N_STIMULI, 5))
    features = write_features(folder / "f.zarr", {**planted.maps, "flat": flat}, names)
    return planted, betas, features, (responses, stimuli, runs)


def fit(folder, betas, features, kind="gaussian", *, name="rf", **more):
    settings = {"options": GAUSSIAN} if kind == "gaussian" else {}
    fit_readout(
        responses=betas,
        features=features,
        out=folder / f"{name}.zarr",
        maps=folder / f"{name}_maps",
        name=name,
        kind=kind,
        **({"cross_validation": CV} | FAST | settings | more),
    )
    return store.open(folder / f"{name}.zarr", "readout").load()


@pytest.mark.parametrize("kind", ["factorised", "gaussian"])
def test_planted_layers_and_ceilings(tmp_path, study, kind):
    planted, betas, features, _ = study
    result = fit(tmp_path, betas, features, kind)
    assert list(result["layer"].values) == ["early", "late"]  # the flat one has no space
    for region in (0, 1):
        preferred = result["preferred_layer"].values[planted.region == region]
        assert np.bincount(preferred, minlength=2).argmax() == region
        weight = result["layer_weight"].values[:, planted.region == region].mean(1)
        assert weight.argmax() == region
        np.testing.assert_allclose(weight.sum(), 1, atol=1e-5)
    np.testing.assert_allclose(result["noise_ceiling"], 1 / np.sqrt(1 + 0.36), rtol=1e-5)
    # The right model of few parameters: little is lost, and nothing gained by chance
    normalised = result["score_normalised"].values
    assert 0.8 < normalised.mean() < 1.05
    assert 0.6 * normalised.mean() < (result["r2"] / result["noise_ceiling"] ** 2).mean() < 1.05


def test_fields_are_in_degrees_and_maps_are_written(tmp_path, study):
    planted, betas, features, _ = study
    result = fit(tmp_path, betas, features, field_of_view=10.0)
    distance = np.hypot(result["x"] - 10 * planted.x, result["y"] - 10 * planted.y)
    assert np.median(distance) < 1  # degree
    assert result.attrs["field_units"] == "degrees of visual angle"
    assert 0.5 < result["size"].mean() < 4
    stem = "sub-01_task-objects_readout-rf_space-MNI_"
    folder = tmp_path / "rf_maps"
    for suffix, values in (
        ("stat-r_statmap", result["score"].values),
        ("stat-x_statmap", result["x"].values),
        ("desc-preferredlayer_dseg", result["preferred_layer"].values + 1),
    ):
        image = nibabel.load(folder / f"{stem}{suffix}.nii.gz")
        np.testing.assert_allclose(image.get_fdata()[:, 1, 0], values, rtol=1e-5)
    sidecar = json.loads((folder / f"{stem}desc-preferredlayer_dseg.json").read_text())
    assert sidecar["Levels"]["2"] == "late"


def test_shuffled_responses_score_around_zero(tmp_path, study):
    _, _, features, _ = study
    rng = np.random.default_rng(5)
    names = names_of(60)
    stimuli = [name for _ in range(2) for name in names]
    runs = np.repeat(["a", "b"], 60)
    responses = rng.standard_normal((120, 150))
    betas = write_betas(tmp_path / "b.zarr", responses, stimuli, runs)
    options = {"grid": 3, "sizes": [0.2], "alphas": [1.0]}
    for kind, more in (("gaussian", {"options": options}), ("factorised", {})):
        result = fit(tmp_path, betas, features, kind, name=kind, **(more | {"epochs": 5}))
        score = result["score"].values
        # Voxels share the folds' test trials but not their noise
        assert abs(score.mean()) < 4 * score.std() / np.sqrt(len(score))
        assert result["r2"].values.mean() < 0


def test_large_maps_are_read_from_disk(tmp_path, study, monkeypatch):
    _, betas, features, _ = study
    more = {"epochs": 2, "folds": 1}
    whole = fit(tmp_path, betas, features, name="whole", **more)
    monkeypatch.setattr(module, "RESIDENT_BYTES", 1000)
    seen = []
    real = np.load
    monkeypatch.setattr(module.np, "load", lambda *a, **k: seen.append(a) or real(*a, **k))
    parts = fit(tmp_path, betas, features, name="parts", **more)
    assert len(seen) == 2
    np.testing.assert_array_equal(whole["score"], parts["score"])
    assert not (tmp_path / ".parts.checkpoints").exists()


def test_interrupted_job_gives_the_same_store(tmp_path, study, monkeypatch):
    _, betas, features, _ = study
    more = {"epochs": 6, "voxel_batch": 7}
    fit(tmp_path, betas, features, name="whole", **more)
    digest = store.manifest(tmp_path / "whole.zarr")["content"]
    real, done = training._Batch._epoch, 0

    def interrupted(self):
        nonlocal done
        done += 1
        if done == 15:
            raise KeyboardInterrupt
        return real(self)

    monkeypatch.setattr(training._Batch, "_epoch", interrupted)
    (tmp_path / "again").mkdir()
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "again", betas, features, name="whole", **more)
    hidden = tmp_path / "again" / ".whole.checkpoints"
    assert list(hidden.rglob("*.pt"))
    assert not (tmp_path / "again" / "whole.zarr").exists()
    fit(tmp_path / "again", betas, features, name="whole", **more)
    assert done < 15 + 24 - 6  # the finished batches were not trained again
    assert store.manifest(tmp_path / "again" / "whole.zarr")["content"] == digest
    assert not hidden.exists()


def test_other_options_do_not_go_on_with_old_states(tmp_path, study, monkeypatch):
    _, betas, features, _ = study
    real = training._Batch.trained

    def interrupted(self, rows):
        raise KeyboardInterrupt

    monkeypatch.setattr(training._Batch, "trained", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, betas, features, epochs=2)
    monkeypatch.setattr(training._Batch, "trained", real)
    seen = []
    resume = training._Batch._resume
    monkeypatch.setattr(
        training._Batch, "_resume", lambda self, path: seen.append(resume(self, path)) or seen[-1]
    )
    fit(tmp_path, betas, features, epochs=1)
    assert seen == [False, False]


class Seen(Readout):
    """Keeps what it is given; predicts nothing."""

    name = "seen"
    rows = ()

    def contributions(self, maps):
        return next(iter(maps.values())).flatten(1)[:, :1, None].expand(-1, 1, self.n_voxels) * 0

    def initialise(self, maps, targets, *, train, validation, weights):
        type(self).rows = (train, validation, targets, weights, self.regions)


def test_training_sees_means_over_training_runs_only(tmp_path, study, monkeypatch):
    _, betas, features, (responses, stimuli, runs) = study
    monkeypatch.setitem(KINDS, "seen", Seen)
    cv = {**CV, "new_stimuli": True}
    fit(tmp_path, betas, features, "seen", layers=["flat"], cross_validation=cv, epochs=1, folds=1)
    train, validation, targets, weights, _ = Seen.rows
    folds = cross_validation_folds(stimuli, runs, stimulus_folds=5, run_folds=8)
    fold = folds.folds[0]
    tested = np.unique(folds.stimulus[fold.test_trials])
    assert not np.intersect1d(train, tested).size
    assert not np.intersect1d(validation, tested).size
    assert not np.intersect1d(train, validation).size
    np.testing.assert_array_equal(np.union1d(train, validation), np.sort(fold.train_stimuli))
    centred = responses - np.repeat(responses.reshape(3, -1, 12).mean(1), N_STIMULI, axis=0)
    among = np.isin(folds.group, fold.train_groups)
    means = np.stack([centred[among & (folds.stimulus == row)].mean(0) for row in train])
    expected = (means - means.mean(0)) / means.std(0)
    np.testing.assert_allclose(targets[torch.from_numpy(train)], expected, atol=1e-4)
    assert (weights[torch.from_numpy(train)] == 1).all()


def test_repeats_never_stop_their_own_training():
    """Plain leave-one-run-out: inner splits share stimuli, so stimuli are dealt anew."""
    names = names_of(20) * 4
    runs = np.repeat(["a", "b", "c", "d"], 20)
    cv = cross_validation_folds(names, runs, new_stimuli=False)
    for fold in cv.folds:
        train, validation = validation_split(cv, fold, seed=3)
        assert not np.intersect1d(train, validation).size
        assert len(validation) == 4
        again = validation_split(cv, fold, seed=3)
        np.testing.assert_array_equal(again[1], validation)


def test_regions_reach_the_readout(tmp_path, study, monkeypatch):
    _, betas, features, _ = study
    monkeypatch.setitem(KINDS, "seen", Seen)
    labels = np.zeros((12, 2, 2), np.int16)
    labels[:5, 1, 0], labels[5:9, 1, 0] = 7, 3
    image = tmp_path / "dseg.nii.gz"
    nibabel.save(nibabel.Nifti1Image(labels, np.diag([3.0, 3, 3, 1])), image)
    table = tmp_path / "dseg.tsv"
    table.write_text("index\tname\n3\tearly\n7\tlate\n")
    given = {"layers": ["flat"], "epochs": 1, "folds": 1, "regions": image, "region_labels": table}
    fit(tmp_path, betas, features, "seen", **given)
    np.testing.assert_array_equal(Seen.rows[-1], [1] * 5 + [0] * 4 + [-1] * 3)
    nibabel.save(nibabel.Nifti1Image(labels, np.eye(4)), image)
    with pytest.raises(InputError, match="not on the grid"):
        fit(tmp_path, betas, features, "seen", **given)


def test_voxels_left_out_have_no_score(tmp_path, study, caplog):
    _, _, features, (responses, stimuli, runs) = study
    ncsnr = np.where(np.isin(np.arange(12), [2, 3, 11]), 0.1, 1 / 0.6)
    betas = write_betas(tmp_path / "b.zarr", responses, stimuli, runs, ncsnr=ncsnr)
    more = {"epochs": 3, "folds": 1}
    whole = fit(tmp_path, betas, features, name="whole", voxels="all", **more)
    with caplog.at_level("INFO"):
        some = fit(tmp_path, betas, features, name="some", **more)
    assert "9 voxels, 3 left out" in caplog.text
    left_out = ncsnr < 1
    for key in ("score", "r2", "score_normalised", "x", "layer_weight"):
        assert np.isnan(some[key].values[..., left_out]).all()
        # The order of training rows is drawn after the start, which has fewer voxels
        np.testing.assert_allclose(
            some[key].values[..., ~left_out], whole[key].values[..., ~left_out], atol=0.05
        )
    assert (some["preferred_layer"].values[left_out] == -1).all()
    np.testing.assert_array_equal(some["noise_ceiling"], whole["noise_ceiling"])
    np.testing.assert_array_equal(some["i"], np.arange(12))
    counts = [made.attrs["n_voxels_left_out"] for made in (whole, some)]
    assert counts == [0, 3]
    image = nibabel.load(
        tmp_path / "some_maps/sub-01_task-objects_readout-some_space-MNI_stat-r_statmap.nii.gz"
    ).get_fdata()[:, 1, 0]
    np.testing.assert_allclose(image, np.nan_to_num(some["score"]), rtol=1e-5)


def test_voxels_of_regions_and_their_queries(tmp_path, study):
    _, betas, features, _ = study
    labels = np.zeros((12, 2, 2), np.int16)
    labels[4:7, 1, 0] = 7
    image, table = tmp_path / "dseg.nii.gz", tmp_path / "dseg.tsv"
    nibabel.save(nibabel.Nifti1Image(labels, np.diag([3.0, 3, 3, 1])), image)
    table.write_text("index\tname\n7\tlate\n")
    given = {"regions": image, "region_labels": table, "voxels": "regions"}
    more = {"epochs": 1, "folds": 1, "options": {"dimension": 8}}
    result = fit(tmp_path, betas, features, "routing", **given, **more)
    np.testing.assert_array_equal(np.flatnonzero(np.isfinite(result["score"])), [4, 5, 6])
    assert list(result["query"].values) == ["voxel 4", "voxel 5", "voxel 6"]
    assert result.attrs["n_voxels_left_out"] == 9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"voxels": "regions"}, r"encoding\.readouts\.rf\.voxels is regions, and there are none"),
        ({"kind": "guassian"}, "unknown kind 'guassian'.*choose from"),
        ({"options": {"gird": 3}}, r"no option 'gird' in encoding\.readouts\.rf\.options"),
        ({"layers": ["conv9"]}, "layer 'conv9' of encoding.readouts.rf is not in"),
        ({"layers": ["flat"]}, "layer 'flat' of encoding.readouts.rf has no space"),
    ],
)
def test_bad_options_are_refused_in_one_line(tmp_path, study, change, message):
    _, betas, features, _ = study
    with pytest.raises(InputError, match=message) as caught:
        fit(tmp_path, betas, features, **change)
    assert "\n" not in str(caught.value)


def test_a_model_without_maps_is_refused(tmp_path, study):
    _, betas, _, _ = study
    names = names_of(N_STIMULI)
    flat = write_features(tmp_path / "f.zarr", {"fc": np.ones((N_STIMULI, 4))}, names)
    with pytest.raises(InputError, match=r"no layer in .* has space"):
        fit(tmp_path, betas, flat)


def test_folds_are_taken_evenly():
    assert module._chosen(8, 2) == [0, 4]
    assert module._chosen(3, None) == [0, 1, 2]
    assert module._chosen(2, 5) == [0, 1]


def test_volumes_of_a_continuous_stimulus(tmp_path):
    """Features of moments, delayed, predict volumes; a field is shared over the delays."""
    rng = np.random.default_rng(3)
    tr, n_volumes, runs = 2.0, 60, ["run-1", "run-2", "run-3"]
    n = n_volumes * len(runs)
    frames = feature_maps(n, layers={"early": (3, 6)}, seed=4)
    planted = fixed_field_responses(n, 5, maps=frames, ceiling=0.99, seed=4)
    # The response to a volume's frame is two volumes later in the same run
    by_run = planted.signal.reshape(len(runs), n_volumes, -1)
    late = np.roll(by_run, 2, axis=1)
    late[:, :2] = 0
    signal = (late + 0.3 * rng.standard_normal(late.shape)).reshape(n, -1)
    run = np.repeat(runs, n_volumes)
    given = {
        "signal": (("volume", "voxel"), signal.astype(np.float32)),
        "run": ("volume", run.astype(object)),
        "session": ("volume", np.full(n, "", object)),
        "time": ("volume", np.tile((np.arange(n_volumes) + 0.5) * tr, len(runs))),
        "event_run": ("event", np.array(runs, object)),
        "event_onset": ("event", np.zeros(3)),
        "event_duration": ("event", np.full(3, n_volumes * tr)),
        "event_stimulus": ("event", np.array(["a", "b", "c"], object)),
        "i": ("voxel", np.arange(5, dtype=np.int32)),
        "j": ("voxel", np.ones(5, np.int32)),
        "k": ("voxel", np.zeros(5, np.int32)),
    }
    attrs = dict.fromkeys(store.SPECS["timeseries"].attrs, "")
    attrs |= {"affine": np.eye(4).tolist(), "shape": [5, 2, 2], "space": "MNI", "TR": tr}
    attrs |= {"subject": "01", "task": "movie"}
    bold = tmp_path / "bold.zarr"
    store.write(xr.Dataset(given, attrs=attrs), bold, spec="timeseries")
    times = np.tile(np.arange(n_volumes) * tr, len(runs))
    sources = np.repeat(["a", "b", "c"], n_volumes)
    activation = xr.Dataset(
        {"activation": (("stimulus", "channel", "row", "column"), frames["early"])},
        coords={
            "stimulus": np.array(
                [f"{s}@{t:08.3f}" for s, t in zip(sources, times, strict=True)], object
            ),
            "source": ("stimulus", sources.astype(object)),
            "time": ("stimulus", times),
            "duration": ("stimulus", np.full(n, tr)),
        },
        attrs={"model": "net", "layer": "early", "weights": "", "preprocessing": ""},
    )
    features = tmp_path / "f.zarr"
    store.write({"early": activation}, features, spec="features")
    result = fit(
        tmp_path, bold, features, delays=[2.0, 4.0], cross_validation={**CV, "run_folds": 3}
    )
    assert result.attrs["samples"] == "volumes"
    assert result["score"].values.mean() > 0.8
    assert np.isnan(result["score_normalised"]).all()  # no ceiling is known
    assert np.median(np.hypot(result["x"] - planted.x, result["y"] - planted.y)) < 0.1


def test_kinds_and_options_are_in_the_schema_and_the_documentation(root):
    schema = json.loads((root / "workflow/schemas/config/encoding.json").read_text())
    entry = schema["properties"]["readouts"]["additionalProperties"]
    assert set(entry["properties"]["kind"]["enum"]) == set(KINDS)
    text = (root / "docs/readouts.md").read_text()
    for name, kind in KINDS.items():
        assert f"| `{name}` |" in text
        rows = [row for row in text.splitlines() if row.startswith("| `") and name in row]
        for option in kind.defaults:
            assert any(f"`{option}`" in row.split(" | ")[0] for row in rows), (name, option)
