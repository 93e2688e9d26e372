"""The universal encoder: subjects help each other, new ones need embeddings only, no leakage."""

import json

import nibabel
import numpy as np
import pytest
import torch
from torch.nn import functional

from isocortex import store
from isocortex.device import deterministic
from isocortex.encoding import fit_universal as fit_module
from isocortex.encoding import universal
from isocortex.encoding.fit_universal import fit_universal, stimulus_folds
from isocortex.encoding.readouts import FeatureMaps
from isocortex.encoding.universal import (
    Responders,
    UniversalEncoder,
    UniversalVoxels,
    fit_embeddings,
    train_network,
)
from isocortex.errors import InputError
from isocortex.phantom.readouts import routed_responses

from .test_encoding import write_betas, write_features

N, N_TEST = 300, 80
VALIDATION = np.arange(0, N, 6)
TRAIN = np.setdiff1d(np.arange(N), VALIDATION)
TEST = np.arange(N, N + N_TEST)
ROWS = {"train_rows": TRAIN, "validation_rows": VALIDATION}
NETWORK = {"dimension": 24, "width": 24, "epochs": 50, "patience": 12, "learning_rate": 0.005}
EMBEDDINGS = {"epochs": 80, "patience": 10, "learning_rate": 0.01}


def crowd(counts, n_voxels=8, *, ceiling=0.7, seed=0):
    """Subjects with voxels of their own, of the same two kinds, each with some of the stimuli."""
    planted = routed_responses(N + N_TEST, n_voxels * len(counts) // 2, ceiling=ceiling, seed=seed)
    rng = np.random.default_rng(seed)
    voxels = rng.permutation(planted.responses.shape[1]).reshape(len(counts), -1)
    subjects = []
    for count, mine in zip(counts, voxels, strict=True):
        rows = np.sort(rng.choice(N, count, replace=False))
        subjects.append(Responders(rows, planted.responses[np.ix_(rows, mine)], np.ones(count)))
    maps = FeatureMaps(planted.maps, np.arange(N), device="cpu")
    return planted, voxels, subjects, maps


def accuracy(trained, planted, voxels):
    """Mean r with the noiseless responses to test stimuli."""
    truth = planted.signal[np.ix_(TEST, voxels)]
    r = [np.corrcoef(*pair)[0, 1] for pair in zip(trained.prediction.T, truth.T, strict=True)]
    return np.nan_to_num(r).mean()


@pytest.fixture(scope="module")
def figures():
    """Accuracy for the last subject, by how it is predicted, with few and with many trials."""
    found = {}
    for label, count in (("few", 50), ("many", 300)):
        planted, voxels, subjects, maps = crowd([300] * 5 + [count])

        def last(network, known, subject=subjects[-1], maps=maps, planted=planted, mine=voxels[-1]):
            trained = fit_embeddings(
                network, maps, subject, known=known, predict_rows=TEST, **ROWS, **EMBEDDINGS
            )
            return accuracy(trained, planted, mine)

        own = train_network(maps, subjects[-1:], **ROWS, **NETWORK)
        others = train_network(maps, subjects[:-1], **ROWS, **NETWORK)
        everyone = train_network(maps, subjects, **ROWS, **NETWORK)
        weights = {key: value.clone() for key, value in others.network.state_dict().items()}
        found[label] = {
            "own": last(own, 0),
            "universal": last(everyone, 5),
            "new": last(others, None),
        }
        for key, value in others.network.state_dict().items():
            assert torch.equal(value, weights[key])  # a new subject changes nothing
    return found


def test_the_crowd_helps_who_has_few_trials(figures):
    few, many = figures["few"], figures["many"]
    assert few["universal"] > few["own"] + 0.2
    # With many trials of its own a subject gains little
    assert abs(many["universal"] - many["own"]) < 0.1
    assert many["own"] > 0.85


def test_a_new_subject_needs_embeddings_only(figures):
    few, many = figures["few"], figures["many"]
    assert few["new"] > few["own"] + 0.2
    assert many["new"] > 0.85


def test_a_layer_is_scaled_dot_product_attention():
    """The sum over tokens of attention times weighted features equals torch's own attention."""
    shapes = {"patches": (10, 5), "maps": (4, 3, 3)}
    generator = torch.Generator().manual_seed(0)
    network = UniversalEncoder(
        shapes, dimension=6, width=8, heads=2, frequencies=2, generator=generator
    )
    maps = {key: torch.randn(3, *shape, generator=generator) for key, shape in shapes.items()}
    embedding = torch.randn(7, 6, generator=generator)
    with torch.no_grad():
        network.parts[0].extra.normal_(generator=generator)
        added = network(maps, embedding)
        for index, layer in enumerate(shapes):
            part = network.parts[index]
            tokens = maps[layer] if index == 0 else maps[layer].flatten(2).transpose(1, 2)
            place = torch.cat([part.extra, part.code @ part.place.T])

            def heads(values):
                return values.unflatten(-1, (2, 4)).transpose(-2, -3)

            brought = functional.scaled_dot_product_attention(
                heads(embedding @ part.query.T).expand(3, -1, -1, -1),
                heads(tokens @ part.key.T + place),
                heads(tokens @ part.value.T),
            )
            weighted = (brought * heads(embedding @ part.feature.T)).sum((1, 3)) / 2
            torch.testing.assert_close(added[:, index], weighted)


def test_trained_from_a_checkpoint(tmp_path, monkeypatch):
    _, _, subjects, maps = crowd([120, 60, 90], seed=2)
    settings = ROWS | NETWORK | {"epochs": 4, "voxel_batch": 3, "batch_size": 32}
    with deterministic(1):
        whole = train_network(maps, subjects, **settings)
        states = {"checkpoint": tmp_path / "network.pt", "checkpoint_seconds": 0.0}
        written = []

        def killed(state, path):
            save(state, path)
            written.append(path)
            if len(written) == 2:
                raise KeyboardInterrupt

        save = universal.save_state
        monkeypatch.setattr(universal, "save_state", killed)
        with pytest.raises(KeyboardInterrupt):
            train_network(maps, subjects, **settings, **states)
        monkeypatch.undo()
        resumed = train_network(maps, subjects, **settings, **states)
        other = train_network(maps, subjects, **settings, seed=1)
    np.testing.assert_array_equal(whole.validation_loss, resumed.validation_loss)
    for one, two in zip(whole.embedding, resumed.embedding, strict=True):
        assert torch.equal(one, two)
    for one, two in zip(whole.network.parameters(), resumed.network.parameters(), strict=True):
        assert torch.equal(one, two)
    assert not torch.equal(whole.embedding[0], other.embedding[0])
    assert [len(part) for part in whole.embedding] == [8, 8, 8]


def test_bad_voxels_stay_by_themselves():
    _, _, subjects, maps = crowd([60, 60], n_voxels=4, seed=3)
    settings = ROWS | NETWORK | {"epochs": 2}
    bad = subjects[1].responses.copy()
    bad[3, 0], bad[:, 1] = np.nan, 7.0
    clean = train_network(maps, subjects, **settings)
    spoilt = Responders(subjects[1].rows, bad, subjects[1].weights)
    trained = train_network(maps, [subjects[0], spoilt], **settings)
    assert np.isfinite(trained.validation_loss).all()
    assert not np.array_equal(clean.validation_loss, trained.validation_loss)
    fitted = fit_embeddings(trained, maps, spoilt, known=1, predict_rows=TEST, **ROWS, epochs=1)
    assert np.isnan(fitted.prediction[:, :2]).all()
    assert np.isfinite(fitted.prediction[:, 2:]).all()
    assert fitted.results["embedding"].shape == (24, 4)


def test_voxels_of_a_frozen_network():
    network = UniversalEncoder(
        {"a": (4, 3, 3)},
        dimension=5,
        width=4,
        heads=1,
        frequencies=2,
        generator=torch.Generator().manual_seed(0),
    )
    start = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
    voxels = UniversalVoxels(
        {"a": (4, 3, 3)}, 6, generator=None, network=network, start=start, start_bias=torch.ones(6)
    )
    assert {name for name, _ in voxels.named_parameters()} == {"embedding", "bias"}
    maps = {"a": torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(2))}
    torch.testing.assert_close(voxels(maps), network(maps, start).sum(1) + 1)


def test_folds_of_stimuli():
    folds = stimulus_folds(50, folds=5, seed=1)
    assert len(folds) == 5
    np.testing.assert_array_equal(np.sort(np.concatenate([f.test for f in folds])), np.arange(50))
    for fold in folds:
        parts = np.concatenate([fold.train, fold.validation, fold.test])
        np.testing.assert_array_equal(np.sort(parts), np.arange(50))
        assert len(fold.validation) == 7
    assert len(stimulus_folds(8, folds=5)) == 2
    with pytest.raises(InputError, match="5 different stimuli over all subjects"):
        stimulus_folds(5)


N_STUDY = 60
FAST = {"folds": 2, "dimension": 16, "width": 16, "epochs": 30, "patience": 6, "batch_size": 16}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Three subjects: two see stimuli again in three runs, one sees fewer, each once."""
    folder = tmp_path_factory.mktemp("universal")
    names = [f"s{index:02d}" for index in range(N_STUDY)]
    rng = np.random.default_rng(0)
    units, other = rng.standard_normal((N_STUDY, 3)), rng.standard_normal((N_STUDY, 2, 3, 3))
    signal = units @ rng.standard_normal((3, 9))
    signal /= signal.std(0)
    betas = {}
    for number, subject in enumerate(("01", "02", "03")):
        repeats = 1 if subject == "03" else 3
        shown = rng.permutation(N_STUDY)[: 45 if subject == "03" else N_STUDY]
        order = np.concatenate([rng.permutation(shown) for _ in range(repeats)])
        runs = np.repeat(np.arange(repeats), len(shown))
        if repeats == 1:
            runs = np.arange(len(order)) // 15
        mine = slice(3 * number, 3 * number + 3)
        responses = signal[order, mine] + 0.7 * rng.standard_normal((len(order), 3))
        responses += np.array([3.0, -2.0, 8.0])[runs][:, None]
        if subject == "02":
            responses[5, 2] = np.nan
        betas[subject] = write_betas(
            folder / f"{subject}.zarr",
            responses,
            [names[row] for row in order],
            runs.astype(str),
            subject=subject,
            ncsnr=np.array([1 / 0.7, 1 / 0.7, 0.1]),
        )
    layers = {"other": other[::-1], "units": units[::-1]}
    features = write_features(folder / "f.zarr", layers, names[::-1])
    return betas, features


def fit(folder, betas, features, **more):
    fit_universal(
        responses=list(betas.values()),
        features=features,
        out=folder / "u.zarr",
        maps=folder / "maps",
        name="crowd",
        **(FAST | more),
    )
    return store.open(folder / "u.zarr", "universal").load()


def test_store(tmp_path, study):
    betas, features = study
    result = fit(tmp_path, betas, features, new_subjects=["03"], voxels="all")
    assert list(result["subject"].values) == ["01"] * 3 + ["02"] * 3 + ["03"] * 3
    assert result["embedding"].shape == (16, 9)
    assert result.sizes["fold"] == 3
    score = result["score"].values
    assert np.isnan(score[5])  # a trial of it is missing
    assert np.nanmean(score) > 0.5
    known = np.isfinite(score)
    weight = result["layer_weight"].values[:, known]
    np.testing.assert_allclose(weight.sum(0), 1, atol=1e-5)
    assert np.all(weight[1] > weight[0])  # the layer that was planted
    # Ceilings too low to divide by are left out, the others divide r and r2
    np.testing.assert_array_equal(np.isfinite(result["score_normalised"]), [True, True, False] * 3)
    ceiling = 1 / np.sqrt(1 + 0.49)
    np.testing.assert_allclose(result["score_normalised"][0], score[0] / ceiling, rtol=1e-5)
    np.testing.assert_allclose(result["r2_normalised"][0], result["r2"][0] / ceiling**2, rtol=1e-5)
    assert result.attrs["runs_held_out"] == ["01", "02"]
    assert result.attrs["new_subjects"] == ["03"]
    image = nibabel.load(
        tmp_path / "maps/sub-02_task-objects_universal-crowd_space-MNI_stat-r_statmap.nii.gz"
    )
    np.testing.assert_allclose(image.get_fdata()[:2, 1, 0], score[3:5], rtol=1e-6)
    assert len(list((tmp_path / "maps").iterdir())) == 6
    assert not list(tmp_path.glob(".*.checkpoints"))  # states are gone
    # The same again has the same content
    digest = json.loads((tmp_path / "u.json").read_text())["content"]
    fit(tmp_path / "again", betas, features, new_subjects=["03"], voxels="all")
    assert json.loads((tmp_path / "again/u.json").read_text())["content"] == digest


def test_voxels_left_out(tmp_path, study):
    betas, features = study
    # The third voxel of each subject has hardly any signal
    result = fit(tmp_path, betas, features, epochs=2)
    assert list(result["subject"].values) == ["01"] * 3 + ["02"] * 3 + ["03"] * 3
    np.testing.assert_array_equal(np.isfinite(result["score"]), [True, True, False] * 3)
    assert np.isnan(result["embedding"].values[:, 2::3]).all()
    np.testing.assert_array_equal(result["i"], [0, 1, 2] * 3)
    assert np.isfinite(result["noise_ceiling"]).all()
    assert result.attrs["n_voxels_left_out"] == {"01": 1, "02": 1, "03": 1}
    # Regions are each subject's own
    table, images = tmp_path / "dseg.tsv", []
    table.write_text("index\tname\n4\tV1\n")
    for place in range(3):
        labels = np.zeros((3, 2, 2), np.int16)
        labels[place, 1, 0] = 4
        images.append(tmp_path / f"{place}_dseg.nii.gz")
        nibabel.save(nibabel.Nifti1Image(labels, np.diag([3.0, 3, 3, 1])), images[-1])
    turned = dict(reversed(betas.items()))
    given = {"voxels": "regions", "regions": images[::-1], "region_labels": table}
    result = fit(tmp_path, turned, features, epochs=1, **given)
    weight = result["layer_weight"].values[0]
    np.testing.assert_array_equal(np.flatnonzero(np.isfinite(weight)), [0, 4, 8])


def test_killed_and_resumed(tmp_path, study, monkeypatch):
    betas, features = study
    whole = fit(tmp_path / "whole", betas, features, epochs=5)
    calls = []
    real = fit_module.fit_embeddings

    def killed(*args, **kwargs):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(fit_module, "fit_embeddings", killed)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "part", betas, features, epochs=5)
    monkeypatch.undo()
    assert len(list((tmp_path / "part").glob(".u.checkpoints/*/fold-*/network.pt"))) == 2
    trained = []
    real_network = fit_module.train_network

    def counted(*args, **kwargs):
        trained.append(
            len(torch.load(kwargs["checkpoint"])["losses"]) if kwargs["checkpoint"].exists() else 0
        )
        return real_network(*args, **kwargs)

    monkeypatch.setattr(fit_module, "train_network", counted)
    resumed = fit(tmp_path / "part", betas, features, epochs=5)
    assert trained == [5, 5, 0]
    assert whole.identical(resumed)


def test_test_stimuli_train_nobody(tmp_path, study, monkeypatch):
    """No fold's network or embedding sees a stimulus that anybody is tested on in that fold."""
    betas, features = study
    seen = []
    real = fit_module._Subject.samples

    def noted(self, fold, number):
        trains, tests = real(self, fold, number)
        seen.append((number, self, trains, tests))
        return trains, tests

    monkeypatch.setattr(fit_module._Subject, "samples", noted)
    fit(tmp_path, betas, features, epochs=1)
    for number in range(2):
        fold = [entry[1:] for entry in seen if entry[0] == number]
        trained = {int(r) for who, trains, _ in fold for r in who.row[trains]}
        tested = {int(r) for who, _, tests in fold for r in who.row[tests]}
        assert trained
        assert tested
        assert not trained & tested
        for who, trains, tests in fold:
            shared_runs = set(who.run[trains]) & set(who.run[tests])
            assert bool(shared_runs) == (who.of.subject == "03")


def test_centring_takes_no_test_sample(study):
    """A test trial's response changes nothing that is trained on."""
    betas, _ = study
    from isocortex.encoding.design import open_responses

    opened = open_responses(betas["03"])
    row_of = {name: row for row, name in enumerate(f"s{i:02d}" for i in range(N_STUDY))}
    person = fit_module._Subject(opened, row_of, 2)
    trains = np.arange(len(person.row)) % 3 > 0
    before = person.responders(trains).responses
    real = opened.blocks

    class Changed:
        def __call__(self, *args):
            values = real(*args).copy()
            values[~trains] += 100
            return values

    object.__setattr__(opened, "blocks", Changed())
    np.testing.assert_array_equal(person.responders(trains).responses, before)


def test_shuffled_responses_score_nothing(tmp_path, study):
    """Stimulus labels dealt anew within subjects: scores centred on 0."""
    _, features = study
    rng = np.random.default_rng(5)
    names = [f"s{index:02d}" for index in range(N_STUDY)]
    betas = {}
    for subject in ("01", "02"):
        order = [names[i] for _ in range(2) for i in rng.permutation(N_STUDY)]
        runs = np.repeat(["1", "2"], N_STUDY)
        noise = rng.standard_normal((len(order), 40))
        path = tmp_path / f"{subject}.zarr"
        betas[subject] = write_betas(path, noise, order, runs, subject=subject)
    score = fit(tmp_path, betas, features, epochs=4)["score"].values
    # 2 folds of 30 test trials a voxel; SD of one r is 1/sqrt(29)
    assert abs(score.mean()) < 2.58 / np.sqrt(29 * 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"new_subjects": ["07"]}, "subject 07 in encoding.universal.crowd.new_subjects has no"),
        ({"new_subjects": ["01", "02", "03"]}, "names all subjects: leave at least one"),
        ({"layers": ["missing"]}, "layer 'missing' of encoding.universal.crowd is not in"),
    ],
)
def test_bad_choices(tmp_path, study, settings, message):
    betas, features = study
    with pytest.raises(InputError, match=message):
        fit(tmp_path, betas, features, **settings)
