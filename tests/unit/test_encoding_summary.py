"""Encoding summary: means by region, calibrated tests over subjects, group maps."""

import csv
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import scipy.stats
import xarray as xr

from isocortex import encoding, store
from isocortex.errors import InputError

GRID = (6, 5, 4)
AFFINE = np.diag([3.0, 3.0, 3.0, 1.0])
VOXELS = np.stack(np.unravel_index(np.arange(np.prod(GRID)), GRID), axis=1)
REGIONS = {1: "V1", 2: "LO", 3: "empty"}


def write_encoding(
    folder, score, *, subject, model="net", ceiling=None, space="MNI", affine=AFFINE
):
    n_layers, n_voxels = score.shape
    ceiling = np.full(n_voxels, 0.7) if ceiling is None else ceiling
    dataset = xr.Dataset(
        {
            "score": (("layer", "voxel"), score.astype(np.float32)),
            "score_normalised": (("layer", "voxel"), (score / ceiling).astype(np.float32)),
            "alpha": (("layer", "voxel"), np.ones(score.shape, np.float32)),
            "best_layer": ("voxel", score.argmax(0).astype(np.int16)),
            "noise_ceiling": ("voxel", ceiling.astype(np.float32)),
        },
        coords={
            "layer": np.array([f"layer{n + 1}" for n in range(n_layers)], dtype=object),
            **{
                axis: ("voxel", VOXELS[:n_voxels, n].astype(np.int32))
                for n, axis in enumerate("ijk")
            },
        },
        attrs={
            "affine": affine.tolist(),
            "shape": list(GRID),
            "space": space,
            "subject": subject,
            "task": "objects",
            "model": model,
            "folds": "",
            "device": "cpu",
        },
    )
    path = folder / f"sub-{subject}_task-objects_model-{model}_encoding.zarr"
    store.write(dataset, path, spec="encoding")
    return path


@pytest.fixture
def labels(tmp_path):
    path = tmp_path / "labels.tsv"
    rows = "".join(f"{index}\t{name}\n" for index, name in REGIONS.items())
    path.write_text("index\tname\n" + rows)
    return path


def write_regions(folder, subject, *, affine=AFFINE):
    volume = np.zeros(GRID, np.int16)
    volume.ravel()[:40], volume.ravel()[40:100] = 1, 2
    path = folder / f"sub-{subject}_task-objects_dseg.nii.gz"
    nibabel.save(nibabel.Nifti1Image(volume, affine), path)
    return path


def summarise(folder, stores, regions, labels, **options):
    encoding.summarise_encoding(
        stores=stores,
        regions=regions,
        labels=labels,
        out=folder / "task-objects_summary.zarr",
        table=folder / "summary.tsv",
        maps=folder / "maps",
        **options,
    )
    return store.open(folder / "task-objects_summary.zarr", "encoding_summary")


@pytest.fixture
def study(tmp_path):
    """Three subjects, two models of two layers; V1 is a/layer1, LO is b/layer2."""
    rng = np.random.default_rng(0)
    arrays, stores, regions = {}, [], []
    for subject in ("01", "02", "03"):
        regions.append(write_regions(tmp_path, subject))
        for model in "ab":
            score = rng.normal(0.05, 0.05, (2, 120))
            if model == "a":
                score[0, :40] += 0.4
            else:
                score[1, 40:100] += 0.3
            ceiling = np.where(np.arange(120) % 4, 0.6, 0.1)  # shares of variance .36 and .01
            arrays[subject, model] = score.astype(np.float32).astype(float)
            stores.append(
                write_encoding(tmp_path, score, subject=subject, model=model, ceiling=ceiling)
            )
    return arrays, stores, regions


def test_means_over_responsive_voxels_and_best_predictor(tmp_path, study, labels):
    arrays, stores, regions = study
    result = summarise(tmp_path, stores, regions, labels)
    assert list(result["predictor"].values) == ["a/layer1", "a/layer2", "b/layer1", "b/layer2"]
    assert list(result["best_predictor"].values) == ["a/layer1", "b/layer2", ""]
    responsive = np.arange(120) % 4 > 0
    members = {0: responsive & (np.arange(120) < 40), 1: responsive & (np.arange(120) // 20 > 1)}
    members[1] &= np.arange(120) < 100
    for (subject, model), score in arrays.items():
        for region, voxels in members.items():
            got = result["score"].sel(subject=subject).values[:, region]
            rows = slice(0, 2) if model == "a" else slice(2, 4)
            np.testing.assert_allclose(got[rows], score[:, voxels].mean(1), rtol=1e-6)
            over = result["score_normalised"].sel(subject=subject).values[rows, region]
            np.testing.assert_allclose(over, score[:, voxels].mean(1) / 0.6, rtol=1e-5)
            assert result["n_voxels"].sel(subject=subject).values[region] == voxels.sum()
    assert np.isnan(result["mean"].values[:, 2]).all()
    assert (result["n_voxels"].values[2] == 0).all()


def test_inference_equals_scipy(tmp_path, study, labels):
    _, stores, regions = study
    result = summarise(tmp_path, stores, regions, labels, correction="fdr", confidence=0.9)
    z = np.arctanh(result["score"].values[:, :2])
    peer = scipy.stats.ttest_1samp(z, 0, axis=-1, alternative="greater")
    np.testing.assert_allclose(result["p"].values[:, :2], peer.pvalue, rtol=1e-9)
    interval = scipy.stats.ttest_1samp(z, 0, axis=-1).confidence_interval(0.9)
    np.testing.assert_allclose(result["interval_low"].values[:, :2], np.tanh(interval.low))
    np.testing.assert_allclose(result["interval_high"].values[:, :2], np.tanh(interval.high))
    np.testing.assert_allclose(
        result["p_corrected"].values[:, :2].ravel(),
        scipy.stats.false_discovery_control(peer.pvalue.ravel()),
    )
    assert np.isnan(result["p"].values[:, 2]).all()
    assert "8 predictors x regions" in result.attrs["correction"]


def test_without_regions_all_voxels_are_one(tmp_path, study):
    arrays, stores, _ = study
    result = summarise(tmp_path, stores, [], None)
    assert list(result["region"].values) == ["all"]
    assert (result["n_voxels"].values == 90).all()  # a quarter of 120 has too low a ceiling
    score = arrays["01", "a"][:, np.arange(120) % 4 > 0]
    np.testing.assert_allclose(result["score"].values[:2, 0, 0], score.mean(1), rtol=1e-6)


def test_an_unknown_correction_is_named(tmp_path, study, labels):
    _, stores, regions = study
    with pytest.raises(InputError, match="bonferroni"):
        summarise(tmp_path, stores, regions, labels, correction="bonferroni")
    plain = summarise(tmp_path, stores, regions, labels, correction="none")
    np.testing.assert_array_equal(plain["p"].values, plain["p_corrected"].values)
    assert plain.attrs["correction"] == "none"


@pytest.mark.parametrize("n_subjects", [3, 8, 24])
def test_false_positive_rate_is_nominal(n_subjects):
    """Binomial 99 % interval around .05 for the test of r; r2 would be far outside."""
    rng = np.random.default_rng(2)
    n = 4000
    # Mean r of a region of 40 voxels, each from 12 test trials a fold x 15 folds, no signal
    r = np.tanh(rng.normal(0, 0.03, (n, n_subjects)))
    low, high = scipy.stats.binom.interval(0.99, n, 0.05)
    p = encoding.one_sample_inference(r)[3]
    assert low <= (p < 0.05).sum() <= high
    wrong = encoding.one_sample_inference(r**2)[3]
    assert (wrong < 0.05).sum() > high
    # The interval covers a true mean as often as it says
    mean, start, end, _ = encoding.one_sample_inference(
        np.tanh(rng.normal(0.3, 0.1, (n, n_subjects)))
    )
    covered = ((start < np.tanh(0.3)) & (np.tanh(0.3) < end)).sum()
    low, high = scipy.stats.binom.interval(0.99, n, 0.95)
    assert low <= covered <= high
    assert (np.abs(mean) < 1).all()


def test_false_positive_rate_of_the_whole_chain():
    """Scores fitted to noise, averaged by region, tested over subjects: 5 % at p < .05."""
    rng = np.random.default_rng(3)
    names = [f"s{index:02d}" for index in range(20)]
    stimuli, runs = names * 2, ["1"] * 20 + ["2"] * 20
    cv = encoding.cross_validation_folds(stimuli, runs, stimulus_folds=3)
    n_studies, n_subjects, n_voxels = 300, 4, 4
    features = rng.standard_normal((20, 12)).astype(np.float32)
    # Voxels of all studies and subjects at once: their noise is independent
    responses = rng.standard_normal((40, n_studies * n_subjects * n_voxels)).astype(np.float32)
    score, _ = encoding.cross_validated_scores(
        [lambda: features],
        lambda first, last: responses[:, first:last],
        responses.shape[1],
        cv,
        [1.0, 10.0, 100.0],
    )
    by_subject = score.reshape(n_studies, n_subjects, n_voxels).mean(-1)
    p = encoding.one_sample_inference(by_subject)[3]
    low, high = scipy.stats.binom.interval(0.99, n_studies, 0.05)
    assert low <= (p < 0.05).sum() <= high


def test_no_spread_and_few_subjects():
    mean, low, _, p = encoding.one_sample_inference(
        np.array([[0.2, 0.2, 0.2], [0, 0, 0], [0.4, np.nan, np.nan], [np.nan] * 3])
    )
    np.testing.assert_allclose(mean, [0.2, 0, 0.4, np.nan])
    np.testing.assert_array_equal(p, [0, 1, np.nan, np.nan])
    assert np.isnan(low[2:]).all()


def test_one_subject_is_flagged_not_refused(tmp_path, study, labels, caplog):
    _, stores, regions = study
    result = summarise(tmp_path, stores[:2], regions[:1], labels)
    assert np.isnan(result["p"].values).all()
    assert result.attrs["few_subjects"]
    assert "no p-values" in caplog.text
    assert list(result["best_predictor"].values[:2]) == ["a/layer1", "b/layer2"]


def test_subject_without_one_model_is_counted(tmp_path, study, labels):
    _, stores, regions = study
    result = summarise(tmp_path, stores[:-1], regions, labels)
    np.testing.assert_array_equal(result["n_subjects"].values[:, 0], [3, 3, 2, 2])
    assert np.isnan(result["score"].sel(subject="03").values[2:]).all()


def test_no_repeats_means_all_voxels_count(tmp_path, labels):
    score = np.full((1, 120), 0.2)
    path = write_encoding(tmp_path, score, subject="01", ceiling=np.full(120, np.nan))
    result = summarise(tmp_path, [path], [write_regions(tmp_path, "01")], labels)
    assert list(result["n_voxels"].values[:, 0]) == [40, 60, 0]
    assert list(result.attrs["subjects_without_ceiling"]) == ["01"]


def test_table_and_group_maps(tmp_path, study, labels):
    arrays, stores, regions = study
    result = summarise(tmp_path, stores, regions, labels)
    with (tmp_path / "summary.tsv").open() as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    assert len(rows) == 12
    assert [(r["region"], r["model"], r["layer"]) for r in rows if r["best"] == "1"] == [
        ("V1", "a", "layer1"),
        ("LO", "b", "layer2"),
    ]
    assert float(rows[0]["r"]) == pytest.approx(result["mean"].values[0, 0], rel=1e-5)
    assert {row["p"] for row in rows if row["region"] == "empty"} == {"n/a"}

    stem = tmp_path / "maps/task-objects_space-MNI_"
    mean = np.mean(
        [np.concatenate([arrays[s, "a"], arrays[s, "b"]]) for s in ("01", "02", "03")], axis=0
    )
    image = nibabel.load(f"{stem}stat-r_statmap.nii.gz")
    np.testing.assert_allclose(image.get_fdata().ravel(), mean.max(0), rtol=1e-5)
    np.testing.assert_array_equal(image.affine, AFFINE)
    best = nibabel.load(f"{stem}desc-bestpredictor_dseg.nii.gz")
    np.testing.assert_array_equal(best.get_fdata().ravel(), mean.argmax(0) + 1)
    levels = json.loads(Path(f"{stem}desc-bestpredictor_dseg.json").read_text())["Levels"]
    assert levels["4"] == "b/layer2"


@pytest.mark.parametrize("reason", ["space", "grid"])
def test_no_group_maps_without_a_common_grid(tmp_path, labels, reason):
    stores, regions = [], []
    for index, subject in enumerate(("01", "02")):
        affine = AFFINE.copy()
        affine[0, 3] = index * (reason == "grid")
        regions.append(write_regions(tmp_path, subject, affine=affine))
        space = "T1w" if reason == "space" else "MNI"
        score = np.full((1, 120), 0.1 + index / 10)
        stores.append(write_encoding(tmp_path, score, subject=subject, space=space, affine=affine))
    result = summarise(tmp_path, stores, regions, labels)
    assert "no common grid" in result.attrs["maps"]
    assert [path.name for path in (tmp_path / "maps").iterdir()] == ["task-objects_maps.json"]


def test_regions_on_another_grid_are_refused(tmp_path, study, labels):
    _, stores, regions = study
    write_regions(tmp_path, "02", affine=np.diag([2.0, 3, 3, 1]))
    with pytest.raises(InputError, match=r"sub-02.*not on the grid.*subject 02"):
        summarise(tmp_path, stores, regions, labels)
    with pytest.raises(InputError, match="no regions for subject 03"):
        summarise(tmp_path, stores, regions[:2], labels)
