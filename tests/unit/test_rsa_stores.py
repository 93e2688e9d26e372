"""The RSA stage on stores: from betas and features to scores, and what it refuses."""

import json

import nibabel as nib
import numpy as np
import pytest
import xarray as xr

from isocortex import store
from isocortex.errors import InputError
from isocortex.rsa import (
    MEASURES,
    align_models,
    compare_rdms,
    compute_model_rdms,
    compute_rdms,
    correlate,
    correlation_distance,
    cosine_distance,
    covariance,
    crossnobis_distance,
    crossnobis_in_own_noise,
    load_rdms,
    mean_patterns,
    noise_ceiling,
    poisson_cv_distance,
    poisson_distance,
    whiten,
)

AFFINE = np.diag([3.0, 3.0, 3.0, 1.0])
SHAPE = (8, 8, 8)
REGIONS = {"early": 1, "late": 2}
STIMULI = [f"image{k:02d}.png" for k in range(24)]


def write_betas(path, *, subject="01", seed=0, n_runs=3, latent=None, change=None, residuals=60):
    """A betas store with planted patterns: two regions carry two geometries."""
    rng = np.random.default_rng(seed)
    index = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1).reshape(-1, 3)
    label = np.zeros(SHAPE, np.int16)
    label[:4], label[4:] = 1, 2
    label[:, :, 7] = 0
    at = label[tuple(index.T)]
    latent = latent if latent is not None else planted()
    signal = np.zeros((len(STIMULI), len(index)))
    for k, name in enumerate(REGIONS):
        inside = at == k + 1
        features = latent[name]
        signal[:, inside] = features @ rng.standard_normal((features.shape[1], inside.sum()))
    stimulus = np.concatenate([rng.permutation(STIMULI) for _ in range(n_runs)])
    run = np.repeat([f"{k + 1:02d}" for k in range(n_runs)], len(STIMULI))
    row = np.array([STIMULI.index(s) for s in stimulus])
    beta = signal[row] + 2.0 * rng.standard_normal((len(row), len(index)))
    n_trials, n_voxels = beta.shape
    one = np.ones(n_voxels, np.float32)
    dataset = xr.Dataset(
        {
            "beta": (("trial", "voxel"), beta.astype(np.float32)),
            "beta_se": ("trial", np.ones(n_trials)),
            "residual": (
                ("time", "voxel"),
                rng.standard_normal((residuals, n_voxels)).astype(np.float32),
            ),
            "design": (("volume", "regressor"), np.zeros((0, 0), np.float32)),
            "hrf_index": ("voxel", np.zeros(n_voxels, np.int16)),
            **dict.fromkeys(("r2", "noise_ceiling", "ncsnr", "tsnr", "z_stimulus"), ("voxel", one)),
        },
        coords={
            "stimulus": ("trial", stimulus.astype(object)),
            "condition": ("trial", np.array([f"c{int(s[5:7]) // 4}" for s in stimulus], object)),
            "session": ("trial", np.full(n_trials, "", object)),
            "run": ("trial", run.astype(object)),
            "onset": ("trial", np.arange(n_trials, dtype=float)),
            "duration": ("trial", np.ones(n_trials)),
            "time_run": ("time", np.full(residuals, "01", object)),
            "regressor": ("regressor", np.array([], object)),
            "frame_time": ("volume", np.zeros(0)),
            **{axis: ("voxel", index[:, d].astype(np.int32)) for d, axis in enumerate("ijk")},
        },
        attrs={
            "affine": AFFINE.tolist(),
            "shape": list(SHAPE),
            "space": "MNI152NLin2009aSym",
            "TR": 2.0,
            "estimator": "least squares all",
            "subject": subject,
            "task": "objects",
            "degrees_of_freedom": 50,
        },
    )
    if change:
        dataset = change(dataset)
    store.write(dataset, path, spec="betas")
    return path


def planted(seed=100):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal((len(STIMULI), 6)) for name in REGIONS}


def write_regions(folder, *, affine=AFFINE, extra=()):
    label = np.zeros(SHAPE, np.int16)
    label[:4], label[4:] = 1, 2
    label[:, :, 7] = 0
    dseg, table = folder / "dseg.nii.gz", folder / "dseg.tsv"
    nib.save(nib.Nifti1Image(label, affine), dseg)
    rows = [*REGIONS.items(), *extra]
    table.write_text("index\tname\n" + "".join(f"{k}\t{name}\n" for name, k in rows))
    return {"regions": dseg, "region_labels": table}


def write_features(path, layers, *, stimuli=STIMULI, model="net"):
    """Features in another order than the betas': stimuli are joined by id."""
    order = np.random.default_rng(1).permutation(len(stimuli))
    store.write(
        {
            name: xr.Dataset(
                {"activation": (("stimulus", "unit"), values[order].astype(np.float32))},
                coords={"stimulus": ("stimulus", np.array(stimuli, object)[order])},
                attrs={"model": model, "layer": name, "weights": "", "preprocessing": ""},
            )
            for name, values in layers.items()
        },
        path,
        spec="features",
    )
    return path


@pytest.fixture
def regions(tmp_path):
    return write_regions(tmp_path)


def _plain_rdm(measure, patterns, residual, labels, runs):
    """The RDM of a region by the functions that are tested against rsatoolbox."""
    if measure in ("mahalanobis", "crossnobis"):
        patterns = whiten(patterns, covariance(residual.astype(float), degrees_of_freedom=50))
    if measure == "crossnobis":
        return crossnobis_distance(patterns, labels, runs)[0]
    if measure == "poissoncv":
        return poisson_cv_distance(patterns, labels, runs)[0]
    means, names, _ = mean_patterns(patterns, labels)
    i, j = np.triu_indices(len(names), 1)
    if measure in ("euclidean", "mahalanobis"):
        return ((means[i] - means[j]) ** 2).mean(axis=1)
    if measure == "poisson":
        return poisson_distance(means)
    return (correlation_distance if measure == "correlation" else cosine_distance)(means)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("bad", [False, True])
def test_region_rdms_are_those_of_its_usable_voxels(tmp_path, regions, measure, bad):
    def change(dataset):
        beta = dataset["beta"].values.copy()
        residual = dataset["residual"].values.copy()
        if measure.startswith("poisson"):
            beta = np.abs(beta)
        if bad:
            beta[3, 5], beta[:, 6], residual[2, 8] = np.nan, 1.0, np.nan
        return dataset.assign(
            beta=(("trial", "voxel"), beta), residual=(("time", "voxel"), residual)
        )

    betas = write_betas(tmp_path / "b.zarr", change=change)
    compute_rdms(betas=betas, **regions, out=tmp_path / "r.zarr", measure=measure, threads=2)
    rdms = store.open(tmp_path / "r.zarr", "rdms")
    source = store.open(betas, "betas")
    label = np.asarray(nib.load(regions["regions"]).dataobj)
    at = label[tuple(source[a].values for a in "ijk")]
    if bad:
        noisy = measure in ("mahalanobis", "crossnobis")
        out = [5, 6, 8] if noisy else [5, 6]
        at[out] = 0
        assert rdms.attrs["n_voxels_dropped"] == {"early": len(out), "late": 0}
    assert list(rdms["region"].values) == list(REGIONS)
    for region, k in REGIONS.items():
        wanted = _plain_rdm(
            measure,
            source["beta"].values[:, at == k].astype(float),
            source["residual"].values[:, at == k],
            source["stimulus"].values,
            source["run"].values,
        )
        got = rdms["dissimilarity"].sel(region=region).values
        np.testing.assert_allclose(got, wanted, atol=1e-9)
        assert rdms["n_voxels"].sel(region=region) == (at == k).sum()
    assert sorted({*rdms["stimulus_i"].values, *rdms["stimulus_j"].values}) == STIMULI


def _empty(name, **value):
    def change(dataset):
        column = dataset[name].values.copy()
        column[:] = value.get("fill", "")
        return dataset.assign_coords({name: (dataset[name].dims, column)})

    return change


def _one_pattern(dataset, value):
    beta = dataset["beta"].values.copy()
    beta[dataset["stimulus"].values == STIMULI[4]] = value
    return dataset.assign(beta=(("trial", "voxel"), beta))


def _repeats_in_one_run(dataset):
    """One stimulus comes twice, once a run, the others once: the means of both fit all trials."""
    names = [f"only{k}" for k in range(dataset.sizes["trial"])]
    names[0] = names[-1] = "twice"
    return dataset.assign_coords(stimulus=("trial", np.array(names, object)))


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("grid", "not on the grid"),
        ("empty region", "region nowhere has 0 usable voxels"),
        ("label", "index is not a whole number"),
        ("region twice", "names region early twice"),
        ("one run", "has one run: crossnobis needs two"),
        ("no residuals", "no GLM residuals: set rsa.noise_normalisation.source"),
        ("no condition", "have no condition"),
        ("few rows", "has 1 different values of condition"),
        ("constant", "pattern of image04.png is constant over region early"),
        ("zero", "pattern of image04.png is zero over region early"),
        ("measure", "'hamming' is not one of"),
        ("no repeats", "no stimulus is repeated"),
        ("nothing left", "nothing is left of the betas of region early"),
        ("full", "early in .* has 224 voxels and 50 degrees of freedom of noise"),
        ("noise", "noise_normalisation.source is none, and mahalanobis"),
        ("counts", "betas of region early in .* are negative: poisson is for counts"),
        ("every voxel", "region early has 0 usable voxels"),
    ],
)
def test_bad_input_is_refused_in_one_line(tmp_path, regions, case, message):
    options = {"measure": "correlation"}
    given = {}
    if case == "grid":
        regions = write_regions(tmp_path, affine=np.diag([2.0, 2.0, 2.0, 1.0]))
    if case == "empty region":
        regions = write_regions(tmp_path, extra=[("nowhere", 9)])
    if case == "label":
        regions = write_regions(tmp_path, extra=[("nowhere", "x")])
    if case == "region twice":
        regions = write_regions(tmp_path, extra=[("early", 3)])
    if case == "one run":
        given, options = {"n_runs": 1}, {"measure": "crossnobis"}
    if case == "no residuals":
        given, options = {"residuals": 0}, {"measure": "crossnobis"}
    if case == "no condition":
        given, options = {"change": _empty("condition")}, options | {"average_by": "condition"}
    if case == "few rows":
        given = {"change": _empty("condition", fill="all")}
        options = options | {"average_by": "condition"}
    if case == "constant":
        given = {"change": lambda d: _one_pattern(d, 0.5)}
    if case == "zero":
        given, options = {"change": lambda d: _one_pattern(d, 0.0)}, {"measure": "cosine"}
    if case == "measure":
        options = {"measure": "hamming"}
    if case == "nothing left":
        given = {"n_runs": 2, "change": _repeats_in_one_run}
        options = {"measure": "crossnobis", "noise_normalisation": {"source": "betas"}}
    if case == "full":
        options = {"measure": "mahalanobis", "noise_normalisation": {"shrinkage": "full"}}
    if case == "noise":
        options = {"measure": "mahalanobis", "noise_normalisation": {"source": "none"}}
    if case == "counts":
        options = {"measure": "poisson"}
    if case == "every voxel":
        given = {"change": lambda d: d.assign(beta=d["beta"].where(d["trial"] != 0))}
    if case == "no repeats":
        rename = np.array([f"only{k}" for k in range(3 * len(STIMULI))], object)
        given = {"change": lambda d: d.assign_coords(stimulus=("trial", rename))}
        options = {"measure": "crossnobis", "noise_normalisation": {"source": "betas"}}
    betas = write_betas(tmp_path / "b.zarr", **given)
    with pytest.raises(InputError, match=message) as caught:
        compute_rdms(betas=betas, **regions, out=tmp_path / "r.zarr", **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "r.zarr").exists()


def test_crossnobis_with_noise_of_betas_or_none(tmp_path, regions):
    """By folds with 3 runs; with 2 and no repeats in one nothing is left to estimate from."""
    found = {}
    for source, n_runs in (("betas", 3), ("none", 3), ("betas", 2)):
        betas = write_betas(tmp_path / "b.zarr", residuals=0, n_runs=n_runs)
        options = {"noise_normalisation": {"source": source}}
        compute_rdms(
            betas=betas, **regions, out=tmp_path / "r.zarr", measure="crossnobis", **options
        )
        rdms = store.open(tmp_path / "r.zarr", "rdms").load()
        assert rdms.attrs["noise_normalisation"].startswith(source)
        found[source, n_runs] = rdms
    # Noise of SD 2 in every voxel: whitening by it divides distances by about 4.
    ratio = found["none", 3]["dissimilarity"][0] / found["betas", 3]["dissimilarity"][0]
    assert 2.5 < np.median(ratio) < 6
    validation = {key: rdms.attrs["cross_validation"] for key, rdms in found.items()}
    assert validation == {
        ("none", 3): "leave one run out",
        ("betas", 3): "leave one run out, noise from the other runs",
        ("betas", 2): "leave one run out, noise from the same runs",
    }
    source = store.open(write_betas(tmp_path / "b.zarr", residuals=0), "betas")
    label = np.asarray(nib.load(regions["regions"]).dataobj)
    inside = label[tuple(source[a].values for a in "ijk")] == 1
    wanted = crossnobis_in_own_noise(
        source["beta"].values[:, inside], source["stimulus"].values, source["run"].values
    )[0]
    np.testing.assert_allclose(found["betas", 3]["dissimilarity"][0], wanted, atol=1e-9)


def test_model_rdms_by_id_and_closed_form(tmp_path):
    layers = planted()
    features = write_features(tmp_path / "f.zarr", layers)
    for measure in ("correlation", "cosine", "euclidean"):
        compute_model_rdms(features=features, out=tmp_path / "m.zarr", model_measure=measure)
        models = align_models([tmp_path / "m.zarr"], STIMULI[::-1])
        assert models.predictors == ("net/early", "net/late")
        x = layers["late"].astype(np.float32).astype(float)[::-1]
        i, j = np.triu_indices(len(STIMULI), 1)
        wanted = 1 - np.corrcoef(x)[i, j]
        if measure == "euclidean":
            wanted = ((x[i] - x[j]) ** 2).mean(axis=1)
        if measure == "cosine":
            wanted = cosine_distance(x)
        np.testing.assert_allclose(models.dissimilarity[1], wanted, atol=1e-10)


@pytest.mark.parametrize(
    ("value", "measure", "message"),
    [
        (np.nan, "correlation", "not finite"),
        (0.25, "correlation", "are constant"),
        (0.0, "cosine", "are zero, no cosine"),
    ],
)
def test_bad_features_are_named(tmp_path, value, measure, message):
    layers = planted()
    layers["late"][7] = value
    features = write_features(tmp_path / "f.zarr", layers)
    with pytest.raises(InputError, match=f"late.*image07.*{message}"):
        compute_model_rdms(features=features, out=tmp_path / "m.zarr", model_measure=measure)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """RDM stores of three subjects with the same planted geometry, and one model store."""
    tmp_path = tmp_path_factory.mktemp("study")
    regions = write_regions(tmp_path)
    latent = planted()
    rdms = []
    for k, subject in enumerate(("02", "01", "03")):
        betas = write_betas(tmp_path / f"b{k}.zarr", subject=subject, seed=k, latent=latent)
        out = tmp_path / f"sub-{subject}.zarr"
        compute_rdms(betas=betas, **regions, out=out, measure="correlation")
        rdms.append(out)
    other = np.random.default_rng(5).standard_normal((len(STIMULI), 6))
    features = write_features(tmp_path / "f.zarr", {**latent, "other": other})
    compute_model_rdms(features=features, out=tmp_path / "m.zarr")
    return {"rdms": rdms, "model_rdms": [tmp_path / "m.zarr"]}


def test_study_recovers_the_planted_layers(tmp_path, study):
    out = tmp_path / "s.zarr"
    comparisons = ["pearson", "spearman", "corr_cov", "rho_a"]
    compare_rdms(**study, out=out, comparisons=comparisons, bootstrap={"samples": 300}, seed=3)
    scores = store.open(out, "scores").load()
    assert list(scores["subject"].values) == ["01", "02", "03"]
    brain = load_rdms(study["rdms"])
    models = align_models(study["model_rdms"], brain.stimuli)
    for c in comparisons:
        for r, region in enumerate(REGIONS):
            cell = scores.sel(comparison=c, region=region)
            assert cell["best_predictor"].item() == f"net/{region}"
            vectors = brain.dissimilarity[:, r]
            wanted = correlate(models.dissimilarity, vectors, comparison=c)
            np.testing.assert_allclose(cell["score"].values, wanted, atol=1e-12)
            np.testing.assert_allclose(cell["mean"].values, wanted.mean(axis=1), atol=1e-12)
            low, high = noise_ceiling(vectors, comparison=c)
            assert (cell["ceiling_low"].item(), cell["ceiling_high"].item()) == (low, high)
            best = cell.sel(predictor=f"net/{region}")
            assert best["p"] < 0.05 < cell.sel(predictor="net/other")["p"]
            assert best["interval_low"] < best["mean"] < best["interval_high"]
            assert best["p_corrected"] >= best["p"]
    assert scores.attrs["bootstrap"] == "both"


@pytest.mark.parametrize("over", ["subjects", "stimuli", "both"])
def test_same_bytes_whatever_the_threads(tmp_path, study, over):
    digests = []
    for threads in (1, 2):
        out = tmp_path / f"s{threads}.zarr"
        bootstrap = {"over": over, "samples": 300}
        compare_rdms(**study, out=out, bootstrap=bootstrap, seed=3, threads=threads)
        digests.append(store.manifest(out)["content"])
        assert store.open(out, "scores").attrs["bootstrap"] == over
    assert digests[0] == digests[1]


def test_subject_bootstrap_is_close_to_the_t_test(tmp_path, study):
    from scipy import stats

    out = tmp_path / "s.zarr"
    compare_rdms(**study, out=out, bootstrap={"over": "subjects", "samples": 20000})
    scores = store.open(out, "scores").load()
    t = stats.ttest_1samp(scores["score"].values, 0, axis=-1, alternative="greater")
    np.testing.assert_allclose(scores["p"].values, t.pvalue, rtol=0.05)


def test_one_subject_is_flagged(tmp_path, study):
    out = tmp_path / "s.zarr"
    compare_rdms(rdms=study["rdms"][:1], model_rdms=study["model_rdms"], out=out)
    scores = store.open(out, "scores")
    for key in ("p", "p_corrected", "ceiling_low", "ceiling_high"):
        assert np.isnan(scores[key].values).all()
    assert np.isfinite(scores["interval_low"].values).all()
    assert "one subject" in scores.attrs["flags"][0]


def _subset(path, out, keep, *, region=None, subject=None, missing=()):
    """Rewrite an rdms store with fewer stimuli or regions, its pairs shuffled."""
    rdms = store.open(path, "rdms").load()
    inside = np.isin(rdms["stimulus_i"], keep) & np.isin(rdms["stimulus_j"], keep)
    rdms = rdms.isel(pair=np.random.default_rng(0).permutation(np.flatnonzero(inside)))
    if region:
        rdms = rdms.sel(region=[region])
    for a, b in missing:
        at = (rdms["stimulus_i"] == a) & (rdms["stimulus_j"] == b)
        rdms["dissimilarity"] = rdms["dissimilarity"].where(~at)
    if subject:
        rdms.attrs["subject"] = subject
    store.write(rdms, out, spec="rdms")
    return out


def test_common_stimuli_missing_pairs_and_missing_regions(tmp_path, study):
    first, second, third = study["rdms"]
    fewer = _subset(first, tmp_path / "fewer.zarr", STIMULI[3:])
    gaps = [(STIMULI[5], STIMULI[6])]
    gap = _subset(third, tmp_path / "gap.zarr", STIMULI, region="late", missing=gaps)
    out = tmp_path / "s.zarr"
    for over in ("both", "subjects"):
        compare_rdms(
            rdms=[fewer, second, gap],
            model_rdms=study["model_rdms"],
            out=out,
            bootstrap={"over": over, "samples": 200},
        )
        scores = store.open(out, "scores").load()
        assert scores.attrs["n_stimuli"] == len(STIMULI) - 3
        assert scores.attrs["n_stimuli_dropped"] == 3
        assert scores.attrs["n_pairs_missing"] == {"early": 0, "late": 1}
        early = scores["score"].sel(region="early")
        assert np.isnan(early.sel(subject="03").values).all()
        assert np.isfinite(early.sel(subject=["01", "02"]).values).all()
        for key in ("mean", "p", "interval_low", "ceiling_low"):
            assert np.isfinite(scores[key].values).all()
    brain = load_rdms([fewer, second, gap])
    plain = load_rdms(study["rdms"])
    keep = [STIMULI.index(s) for s in brain.stimuli]
    i, j = np.triu_indices(len(STIMULI), 1)
    inside = np.isin(i, keep) & np.isin(j, keep)
    np.testing.assert_array_equal(brain.dissimilarity[0], plain.dissimilarity[0][:, inside])


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("stimuli", "only 3 stimuli are common"),
        ("twice", "subject 01 comes twice"),
        ("model", "has no features of 2 stimuli"),
        ("model twice", "model net comes twice"),
        ("comparison", "'tau' is not one of"),
        ("nothing", "no RDM stores"),
    ],
)
def test_studies_that_do_not_fit_are_refused(tmp_path, study, case, message):
    given = {**study, "comparisons": ["pearson"]}
    if case == "stimuli":
        few = _subset(study["rdms"][0], tmp_path / "few.zarr", STIMULI[:3])
        given["rdms"] = [few, *study["rdms"][1:]]
    if case == "twice":
        again = _subset(study["rdms"][0], tmp_path / "again.zarr", STIMULI, subject="01")
        given["rdms"] = [again, *study["rdms"][1:]]
    if case == "model":
        layers = {name: values[2:] for name, values in planted().items()}
        features = write_features(tmp_path / "f2.zarr", layers, stimuli=STIMULI[2:])
        compute_model_rdms(features=features, out=tmp_path / "m2.zarr")
        given["model_rdms"] = [tmp_path / "m2.zarr"]
    if case == "model twice":
        given["model_rdms"] = study["model_rdms"] * 2
    if case == "comparison":
        given["comparisons"] = ["tau"]
    if case == "nothing":
        given["rdms"] = []
    with pytest.raises(InputError, match=message) as caught:
        compare_rdms(**given, out=tmp_path / "s.zarr")
    assert "\n" not in str(caught.value)


def test_conditions_as_rows(tmp_path, regions):
    """Models' dissimilarities of conditions are means over their stimuli."""
    betas = write_betas(tmp_path / "b.zarr")
    compute_rdms(
        betas=betas,
        **regions,
        out=tmp_path / "r.zarr",
        measure="correlation",
        average_by="condition",
    )
    brain = load_rdms([tmp_path / "r.zarr"])
    assert brain.stimuli == tuple(f"c{k}" for k in range(6))
    assert brain.groups["c1"] == tuple(STIMULI[4:8])
    features = write_features(tmp_path / "f.zarr", planted())
    compute_model_rdms(features=features, out=tmp_path / "m.zarr")
    single = align_models([tmp_path / "m.zarr"], STIMULI)
    square = np.zeros((len(STIMULI),) * 2)
    square[np.triu_indices(len(STIMULI), 1)] = single.dissimilarity[0]
    square += square.T
    models = align_models([tmp_path / "m.zarr"], brain.stimuli, groups=brain.groups)
    assert models.dissimilarity[0, 0] == pytest.approx(square[:4, 4:8].mean())
    out = tmp_path / "s.zarr"
    compare_rdms(rdms=[tmp_path / "r.zarr"], model_rdms=[tmp_path / "m.zarr"], out=out)
    assert json.loads(store.open(tmp_path / "r.zarr", "rdms").attrs["groups"])["c0"] == STIMULI[:4]
    assert np.isfinite(store.open(out, "scores")["mean"].values).all()
