"""Encoding at the study's level: hierarchy, families, differences; against peers, calibrated."""

import json
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import scipy.signal
import scipy.stats
import xarray as xr

from isocortex import encoding, store, study
from isocortex.encoding.differences import (
    scores_without,
    select_layers,
    stimulus_differences,
    stimulus_influence,
    subject_differences,
)
from isocortex.encoding.families import family_relations
from isocortex.encoding.hierarchy import spatial_inference, spatial_scores
from isocortex.encoding.inference import permutation_p
from isocortex.errors import InputError

from .test_encoding_summary import summarise, write_encoding, write_regions

AB = ["a"] * 3 + ["b"] * 3


def nominal(p: np.ndarray) -> bool:
    """Whether the rate of p < .05 is in the binomial 99 % interval."""
    low, high = scipy.stats.binom.interval(0.99, len(p), 0.05)
    return low <= (p < 0.05).sum() <= high


def not_above(p: np.ndarray) -> bool:
    return (p < 0.05).sum() <= scipy.stats.binom.ppf(0.995, len(p), 0.05)


def differences(score):
    selected = select_layers(score, AB, ["a", "b"])
    found = subject_differences(selected.score, scores_without(score, AB, ["a", "b"]))
    return selected, found


def test_layers_are_chosen_by_the_other_subjects():
    rng = np.random.default_rng(0)
    score = rng.normal(size=(6, 4, 5))
    score[3:, 1, 2] = np.nan  # subject 2 lacks model b in region 1
    selected = select_layers(score, AB, ["a", "b"])
    for region in range(4):
        for subject in range(5):
            others = np.delete(score[:, region], subject, axis=1)
            for row, first in enumerate((0, 3)):
                best = first + np.nanmean(others[first : first + 3], axis=1).argmax()
                assert selected.chosen[row, region, subject] == best
                np.testing.assert_equal(
                    selected.score[row, region, subject], score[best, region, subject]
                )
    assert (selected.best[0] == score[:3].mean(-1).argmax(0)).all()
    # One subject: several layers have nobody to choose them, a single one needs nobody
    alone = select_layers(score[:4, :, :1], ["a"] * 3 + ["b"], ["a", "b"])
    assert np.isnan(alone.score[0]).all()
    np.testing.assert_array_equal(alone.score[1], score[3, :, :1])
    # Noise scores 0, where the best layer of the subject itself does not
    noise = rng.normal(size=(6, 4000, 4))
    mean = select_layers(noise, AB, ["a", "b"]).score.mean()
    assert abs(mean) < 5 / np.sqrt(2 * 4000 * 4)


@pytest.mark.parametrize("n_subjects", [4, 12])
def test_differences_over_subjects(n_subjects):
    rng = np.random.default_rng(n_subjects)
    noise = rng.normal(0, 0.05, (6, 2000, n_subjects))
    clear = noise.copy()
    clear[[1, 3]] += 0.6
    selected, found = differences(clear)
    peer = scipy.stats.ttest_rel(*selected.score, axis=-1)
    np.testing.assert_allclose(found["p"][0, 1], peer.pvalue, rtol=1e-6)
    interval = peer.confidence_interval(0.95)
    np.testing.assert_allclose(found["low"][0, 1], interval.low, rtol=1e-6)
    np.testing.assert_allclose(found["high"][1, 0], -interval.low, rtol=1e-6)
    assert nominal(found["p"][0, 1])
    np.testing.assert_allclose(
        found["p_fdr"][1, 0], scipy.stats.false_discovery_control(found["p"][0, 1])
    )
    assert np.isnan(found["p"][0, 0]).all()
    # Layers that are equally good: a paired t-test would find too much
    selected, found = differences(noise)
    assert not_above(found["p"][0, 1])
    assert not not_above(scipy.stats.ttest_rel(*selected.score, axis=-1).pvalue)
    clear[:3] += 0.1
    assert (differences(clear)[1]["p"][0, 1] < 0.05).mean() > {4: 0.2, 12: 0.9}[n_subjects]


def test_differences_over_stimuli_equal_their_bootstrap():
    rng = np.random.default_rng(1)
    sizes, n_units = (90, 60), 30
    units = [rng.integers(0, n_units, size) for size in sizes]
    agreement = {
        (model, subject): rng.normal(0.2, 1, (2, sizes[subject])) / sizes[subject]
        for model in range(2)
        for subject in range(2)
    }
    found = {
        key: stimulus_influence(values, units[key[1]], n_units) for key, values in agreement.items()
    }
    result = stimulus_differences(found, (2, 2, 2), widening=1)
    drawn = np.zeros((4000, 2))
    for weights, row in zip(rng.multinomial(n_units, np.full(n_units, 1 / n_units), 4000), drawn):
        for subject, of_stimuli in enumerate(units):
            w = weights[of_stimuli] / weights[of_stimuli].mean()
            row += (agreement[0, subject] - agreement[1, subject]) @ w / 2
    error = (result["high"] - result["low"])[0, 1] / 2 / scipy.stats.t.ppf(0.975, n_units - 1)
    # to first order in the weights, which the mean weight is divided by
    np.testing.assert_allclose(error, drawn.std(0), rtol=0.08)
    value = np.mean([agreement[0, s].sum(1) - agreement[1, s].sum(1) for s in range(2)], axis=0)
    np.testing.assert_allclose(result["difference"][0, 1], value)
    np.testing.assert_allclose(result["difference"][1, 0], -value)


def test_differences_over_stimuli_are_calibrated():
    """Two models that are equally right, in many regions of one voxel each."""
    rng = np.random.default_rng(2)
    n, regions = 60, 1500
    names = [f"s{index:02d}" for index in range(n)]
    cv = encoding.cross_validation_folds(names * 2, ["1"] * n + ["2"] * n, stimulus_folds=2)
    signal = rng.standard_normal((n, regions))
    responses = np.tile(signal, (2, 1)) + rng.standard_normal((2 * n, regions))

    def p_values(noise):
        predicted = [np.tile(signal + s * rng.standard_normal((n, regions)), (2, 1)) for s in noise]
        agreement = encoding.stimulus_agreement(
            np.array(predicted),
            lambda first, last: responses[:, first:last],
            cv,
            np.eye(regions, dtype=bool),
            voxel_batch=regions,
        )
        found = {(m, 0): stimulus_influence(agreement[m], np.arange(n), n) for m in range(2)}
        return stimulus_differences(found, (2, regions, 1), widening=1)["p"][0, 1]

    assert nominal(p_values((1.0, 1.0)))
    assert (p_values((0.7, 1.5)) < 0.05).mean() > 0.4


def test_differences_of_fitted_models_over_stimuli():
    """Folds train on one another's test stimuli: the widened error keeps the level, and finds."""
    n, n_voxels, alphas = 60, 8, [10.0, 100.0]
    names = [f"s{index:02d}" for index in range(n)]
    cv = encoding.cross_validation_folds(names, ["1"] * n, new_stimuli=True, stimulus_folds=4)

    def p_values(seed, gain):
        rng = np.random.default_rng(seed)
        layers = rng.standard_normal((2, n, 8)).astype(np.float32)
        signal = gain * layers[0] @ rng.standard_normal((8, n_voxels)) / np.sqrt(8)
        responses = (signal + rng.standard_normal((n, n_voxels))).astype(np.float32)
        predictions = np.full((2, n, n_voxels), np.nan, np.float32)

        def read(first, last):
            return responses[:, first:last]

        loads = [lambda: layers[0], lambda: layers[1]]
        encoding.fit_layers(loads, read, n_voxels, cv, alphas, predictions=predictions)
        agreement = encoding.stimulus_agreement(predictions, read, cv, np.eye(n_voxels, dtype=bool))
        found = {(m, 0): stimulus_influence(agreement[m], np.arange(n), n) for m in range(2)}
        shape = (2, n_voxels, 1)
        held = stimulus_differences(found, shape, widening=1)["p"][0, 1]
        return stimulus_differences(found, shape)["p"][0, 1], held

    null, held = np.concatenate([p_values(seed, 0) for seed in range(24)], axis=1)
    assert not_above(null)
    assert not not_above(held)
    found, _ = np.concatenate([p_values(seed, 2) for seed in range(4)], axis=1)
    assert (found < 0.05).mean() > 0.5


def test_blocks_keep_the_level_where_neighbours_are_alike():
    rng = np.random.default_rng(3)
    noise = scipy.signal.lfilter([1], [1, -0.5], rng.standard_normal((2, 1500, 400)), axis=-1)

    def p_values(size):
        units = np.arange(400) // size
        found = {(m, 0): stimulus_influence(noise[m], units, 400 // size) for m in range(2)}
        return stimulus_differences(found, (2, 1500, 1), widening=1)["p"][0, 1]

    assert nominal(p_values(20))
    assert (p_values(1) < 0.05).mean() > 0.15


def test_spatial_score_is_the_correlation():
    rng = np.random.default_rng(4)
    depth = rng.integers(0, 8, (2, 3, 6)).astype(float)
    place = np.array([1.0, 2, 3, np.nan, 4, 5])
    depth[0, 1, 0] = np.nan
    got = spatial_scores(depth, place)
    keep = np.isfinite(place)
    for index in np.ndindex(2, 3):
        both = keep & np.isfinite(depth[index])
        peer = np.corrcoef(depth[index][both], place[both])[0, 1]
        assert got[index] == pytest.approx(peer)
    assert spatial_scores(np.full(6, 2.0), place) == 0
    assert np.isnan(spatial_scores(np.array([1.0, 2, np.nan, 3, np.nan, np.nan]), place))
    for n in (5, 9):  # exact, and drawn
        x, y = rng.normal(size=n) + np.arange(n), np.arange(n)
        peer = scipy.stats.permutation_test(
            (x,),
            lambda x, y=y: np.corrcoef(x, y)[0, 1],
            permutation_type="pairings",
            alternative="greater",
            n_resamples=5000,
            rng=np.random.default_rng(0),
        )
        assert permutation_p(x, y, alternative="greater") == pytest.approx(
            peer.pvalue, abs=1e-12 if n == 5 else 0.01
        )


@pytest.mark.parametrize("n_subjects", [1, 3, 10])
def test_spatial_score_is_calibrated(n_subjects):
    """Layers without relation to the hierarchy, and with some."""
    rng = np.random.default_rng(n_subjects)
    n, place = 400 if n_subjects == 1 else 3000, np.arange(6.0)
    # As of means over voxels: ties would make the permutation test cautious
    depth = rng.normal(3, 2, (n, n_subjects, 6))
    assert nominal(spatial_inference(depth, place)[-1])
    power = (spatial_inference(depth + place, place)[-1] < 0.05).mean()
    assert power > {1: 0.4, 3: 0.4, 10: 0.95}[n_subjects]
    layers = rng.integers(0, 4, (n, n_subjects, 6)).astype(float)
    assert not_above(spatial_inference(layers, place)[-1])


def test_family_relations():
    rng = np.random.default_rng(5)
    factor = np.array([1e6, np.nan, 1e7, 3e7, 2e8, 1e9])
    values = (
        rng.normal(0, 0.05, (6, 2, 4)) + 0.02 * np.log(np.nan_to_num(factor, nan=1))[:, None, None]
    )
    values[0, 1, 3] = np.nan
    slope, rho, p, p_models = family_relations(values, factor)
    keep = np.isfinite(factor)
    x, y = np.log10(factor[keep]), values[keep]
    slopes = [scipy.stats.linregress(x, y[:, 0, s]).slope for s in range(4)]
    assert slope[0] == pytest.approx(np.mean(slopes))
    assert p[0] == pytest.approx(scipy.stats.ttest_1samp(slopes, 0).pvalue)
    rhos = [scipy.stats.spearmanr(x, y[:, 0, s])[0] for s in range(4)]
    assert rho[0] == pytest.approx(np.mean(rhos))
    for region, subjects in ((0, slice(0, 4)), (1, slice(0, 3))):
        mean = y[:, region, subjects].mean(1)
        peer = scipy.stats.permutation_test(
            (mean,),
            lambda mean: abs(scipy.stats.spearmanr(x, mean)[0]),
            permutation_type="pairings",
            alternative="greater",
        )
        assert p_models[region] == pytest.approx(peer.pvalue)
    two = family_relations(values, np.where(np.arange(6) < 3, factor, np.nan))
    assert np.isnan(two).all()


def test_family_relations_are_calibrated():
    rng = np.random.default_rng(6)
    candidates = list("abcde")
    models = [name for name in candidates for _ in range(2)]
    factor = 10.0 ** np.arange(5)
    noise = rng.normal(0, 0.05, (10, 300, 6))

    def relations(score):
        left_out = scores_without(score, models, candidates)
        selected = select_layers(score, models, candidates).score
        return family_relations(selected, factor, left_out=left_out)

    clear = noise.copy()
    clear[::2] += 0.6
    _, _, p, p_models = relations(clear)
    assert nominal(p)
    assert not_above(p_models)
    assert not_above(relations(noise)[2])
    clear += np.repeat(np.arange(5) * 0.04, 2)[:, None, None]
    _, _, p, p_models = relations(clear)
    assert (p < 0.05).mean() > 0.9
    assert (p_models < 0.05).mean() > 0.5


def write_single(folder, spec, score, like, *, name):
    """A joint model's or a readout's store."""
    n = len(score)
    voxel = ("voxel", score.astype(np.float32))
    arrays = {"score": voxel, "r2": voxel, "score_normalised": voxel}
    attrs = {**like.attrs, "model": "net", "device": "cpu"}
    if spec == "encoding_joint":
        spaces = np.zeros((2, n), np.float32)
        by_space = dict.fromkeys(
            ("product_measure", "space_score", "weight"), (("space", "voxel"), spaces)
        )
        arrays |= {"r2_normalised": voxel, **by_space}
        coords = {"space": ["x", "y"], "source": ("space", np.array(["a", "b"], dtype=object))}
        coords["space"] = np.array(["x", "y"], dtype=object)
        attrs |= {"joint": name, "method": "banded"}
    else:
        arrays |= {
            "layer_weight": (("layer", "voxel"), np.ones((1, n), np.float32)),
            "preferred_layer": ("voxel", np.zeros(n, np.int16)),
            "training_loss": (("fold", "epoch"), np.ones((1, 1))),
            "validation_loss": (("fold", "epoch"), np.ones((1, 1))),
            "n_epochs": ("fold", np.ones(1, np.int32)),
        }
        coords = {"layer": np.array(["l"], dtype=object)}
        attrs |= {"name": name, "kind": "gaussian", "field_units": "degrees"}
    dataset = xr.Dataset(
        {**arrays, "noise_ceiling": ("voxel", like["noise_ceiling"].values)},
        coords={**coords, **{axis: ("voxel", like[axis].values) for axis in "ijk"}},
        attrs=attrs,
    )
    if spec == "encoding_joint":
        dataset = dataset.isel(voxel=np.arange(20, n))  # one that keeps to some voxels
    path = folder / f"sub-{attrs['subject']}_{spec}-{name}.zarr"
    store.write(dataset, path, spec=spec)
    return path


@pytest.fixture
def labels(tmp_path):
    path = tmp_path / "labels.tsv"
    path.write_text("index\tname\n1\tV1\n2\tLO\n")
    return path


def test_joint_models_and_readouts_are_predictors(tmp_path, labels):
    rng = np.random.default_rng(7)
    paths = {"stores": [], "joint": [], "readouts": [], "regions": []}
    for subject in ("01", "02", "03"):
        paths["regions"].append(write_regions(tmp_path, subject))
        linear = rng.normal(0.1, 0.02, (2, 120))
        path = write_encoding(tmp_path, linear, subject=subject, model="net")
        paths["stores"].append(path)
        like = store.open(path, "encoding")
        for spec, kind, level in (("encoding_joint", "joint", 0.3), ("readout", "readouts", 0.2)):
            score = rng.normal(level, 0.02, 120)
            paths[kind].append(write_single(tmp_path, spec, score, like, name="all"))
    result = summarise(
        tmp_path, paths["stores"], paths["regions"], labels,
        joint=paths["joint"], readouts=paths["readouts"],
        families={"size": {"net": 1.0}},
    )  # fmt: skip
    predictors = ["net/layer1", "net/layer2", "joint/all", "readout/all"]
    assert list(result["predictor"].values) == predictors
    assert list(result["candidate"].values) == ["net", "joint/all", "readout/all"]
    assert list(result["best_predictor"].values) == ["joint/all"] * 2
    assert list(result["model_layer"].values[1:, 0]) == ["all", "all"]
    np.testing.assert_allclose(result["score"].values[2].mean(), 0.3, atol=0.01)
    np.testing.assert_array_equal(result["n_voxels"].values, [[40] * 3, [60] * 3])
    part = store.open(paths["joint"][0], "encoding_joint")["score"].values
    np.testing.assert_allclose(result["score"].values[2, 0, 0], part[:20].mean(), rtol=1e-6)
    levels = tmp_path / "maps/task-objects_space-MNI_desc-bestpredictor_dseg.json"
    assert list(json.loads(levels.read_text())["Levels"].values())[-1] == "readout/all"
    assert "at 120 voxels" in result.attrs["maps"]
    assert list(result.attrs["models_with_fewer_voxels"]) == ["joint/all"]
    np.testing.assert_allclose(result["r2"].values[2:], result["score"].values[2:])
    assert np.isnan(result["r2"].values[:2]).all()
    assert (result["difference"].values[1, :2] * [[1], [np.nan]])[0] == pytest.approx(0.2, abs=0.02)
    assert (result["difference_p_fwe"].values[1, 0] < 0.05).all()
    assert "stimulus_difference" not in result
    assert "spatial_score" not in result
    assert np.isnan(result["family_slope"].values).all()


def test_hierarchy_families_and_blocks_of_volumes_in_the_store(tmp_path):
    """Blocks of volumes are 40 s long; a factor goes with nothing; one region is not known."""
    table = tmp_path / "labels.tsv"
    table.write_text("index\tname\n1\tV1\n2\tLO\n")
    rng = np.random.default_rng(8)
    regions = [write_regions(tmp_path, "01")]
    names = np.array(["V1", "LO"], dtype=object)
    stores, sums = [], []
    for model in "abc":
        path = write_encoding(tmp_path, np.full((1, 120), 0.2), subject="01", model=model)
        data = store.open(path, "encoding").load()
        agreement = rng.normal(0.1, 1, (1, 2, 100)).astype(np.float32)
        data = data.assign(agreement=(("layer", "region", "stimulus"), agreement)).assign_coords(
            region=names,
            stimulus=np.array([f"{r}#{v:06d}" for r in "12" for v in range(50)], dtype=object),
        )
        for array in data.variables.values():
            array.encoding = {}
        store.write(data.assign_attrs(kind="volumes", TR=4.0), path, spec="encoding")
        stores.append(path)
        sums.append(agreement[0].reshape(2, 10, 10).sum(-1))
    result = summarise(
        tmp_path, stores, regions, table, families={"size": {"a": 1.0, "b": 2.0, "c": 4.0}}
    )
    t = scipy.stats.ttest_1samp(sums[0] - sums[1], 0, axis=-1).statistic / 2  # of twice the error
    peer = 2 * scipy.stats.t.sf(np.abs(t), 9)
    np.testing.assert_allclose(result["stimulus_difference_p"].values[0, 1], peer, rtol=1e-4)
    np.testing.assert_allclose(
        result["stimulus_difference"].values[0, 1], (sums[0] - sums[1]).sum(-1), rtol=1e-4
    )
    assert np.isnan(result["difference_p"].values).all()  # one subject
    np.testing.assert_allclose(result["family_slope"].values, 0, atol=1e-12)
    with pytest.raises(InputError, match="'V2', which is no region"):
        summarise(tmp_path, stores, regions, table, hierarchy=["V1", "V2", "LO"])


def test_spatial_score_of_planted_layers(tmp_path):
    table = tmp_path / "labels.tsv"
    table.write_text("index\tname\n1\tlow\n2\tmiddle\n3\thigh\n4\taside\n")
    label = np.repeat([2, 1, 3, 4], 30).astype(np.int16)
    stores, regions = [], []
    for subject in ("01", "02"):
        rng = np.random.default_rng(int(subject))
        score = rng.normal(0.1, 0.02, (4, 120))
        for layer, of_region in enumerate((1, 2, 3)):
            score[layer, label == of_region] += 0.3
        stores.append(write_encoding(tmp_path, score, subject=subject, model="deep"))
        stores.append(write_encoding(tmp_path, score[:1], subject=subject, model="flat"))
        path = write_regions(tmp_path, subject)
        image = nibabel.load(path)
        nibabel.save(nibabel.Nifti1Image(label.reshape(image.shape), image.affine), path)
        regions.append(path)
    hierarchy = ["low", "middle", "high"]
    for depth in ("best", "mean"):
        result = summarise(tmp_path, stores, regions, table, hierarchy=hierarchy, depth=depth)
        np.testing.assert_allclose(result["spatial_score"].values[0], 1)
        assert np.isnan(result["spatial_score"].values[1]).all()  # one layer has no depth
        assert result["spatial_p"].values[0] < 0.001
        np.testing.assert_array_equal(result["region_place"].values, [1, 2, 3, np.nan])
    with pytest.raises(InputError, match="depth"):
        summarise(tmp_path, stores, regions, table, depth="deepest")


def test_hierarchy_and_families_are_checked_before_any_job(labels):
    def check(models=("small", "medium", "large"), regions=True, **summary):
        config = {"encoding": {"summary": {"hierarchy": [], "families": {}} | summary}}
        if regions:
            config["regions"] = {"labels": str(labels)}
        study._check_encoding_summary(SimpleNamespace(config=config, models=list(models)))

    size = {"small": 1.0, "medium": 2.0, "large": 3.0}
    check(families={"size": size})
    with pytest.raises(InputError, match=r"families.size names 'smal'.*did you mean 'small'"):
        check(families={"size": {"smal": 1.0, "medium": 2.0, "large": 3.0}})
    with pytest.raises(InputError, match="same for all"):
        check(families={"size": dict.fromkeys(size, 2.0)})
    with pytest.raises(InputError, match=r"names 'V1v', which is not in regions.labels: did you"):
        check(hierarchy=["V1v"])
    with pytest.raises(InputError, match="three regions"):
        check(hierarchy=["V1", "LO"])
    with pytest.raises(InputError, match="needs regions"):
        check(hierarchy=["V1", "LO"], regions=False)
