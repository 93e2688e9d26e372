"""Searchlights of subjects on stores: what is scored, written, counted and refused."""

import nibabel as nib
import numpy as np
import pytest
from rsatoolbox.data import Dataset
from rsatoolbox.rdm import calc_rdm

from isocortex import store
from isocortex.errors import InputError
from isocortex.rsa import (
    compute_model_rdms,
    compute_rdms,
    correlate,
)
from isocortex.searchlight import (
    map_searchlight,
)
from isocortex.searchlight.maps import write_maps
from isocortex.study import check_inputs, load_study
from tests.unit import test_rsa_stores as stores
from tests.workflow import tiny


@pytest.fixture(scope="module")
def mapped(tmp_path_factory):
    """Searchlights of one subject with planted regions, one NaN and one constant voxel."""
    folder = tmp_path_factory.mktemp("searchlight")

    def spoil(dataset):
        beta = dataset["beta"].values.copy()
        beta[2, 100] = np.nan
        beta[:, 101] = 3.0
        return dataset.assign(beta=(("trial", "voxel"), beta))

    betas = stores.write_betas(folder / "b.zarr", change=spoil)
    features = stores.write_features(folder / "f.zarr", stores.planted())
    compute_model_rdms(features=features, out=folder / "m.zarr")
    inputs = {"betas": betas, "model_rdms": [folder / "m.zarr"]}
    out = {"out": folder / "s.zarr", "maps": folder / "maps"}
    map_searchlight(**inputs, **out, radius=6.5, min_voxels=12)
    return inputs, out, folder


def test_map_finds_the_planted_regions(mapped):
    inputs, out, _ = mapped
    lights = store.open(out["out"], "searchlight").load()
    betas = store.open(inputs["betas"], "betas")
    assert lights.sizes["voxel"] == betas.sizes["voxel"]
    inside = {"early": lights["i"] < 3, "late": lights["i"] > 4}
    for region, where in inside.items():
        here = where & (lights["k"] < 6) & np.isfinite(lights["score"][0])
        score = lights["score"].where(here).mean("voxel")
        assert score["predictor"].values[int(score.argmax())] == f"net/{region}"
    assert lights.attrs["n_voxels_dropped"] == 2


def test_one_centre_by_hand(mapped):
    """The neighbourhood that holds the two bad voxels: they are left out and counted."""
    inputs, out, _ = mapped
    lights = store.open(out["out"], "searchlight").load()
    betas = store.open(inputs["betas"], "betas").load()
    voxels = np.stack([betas[a].values for a in "ijk"], axis=1)
    centre = voxels[100]
    near = np.linalg.norm((voxels - centre) * 3.0, axis=1) <= 6.5
    near[[100, 101]] = False
    data = Dataset(
        betas["beta"].values[:, near].astype(float),
        obs_descriptors={"stimulus": list(betas["stimulus"].values)},
    )
    rdm = calc_rdm(data, method="correlation", descriptor="stimulus").get_vectors()
    model = store.open(inputs["model_rdms"][0], "model_rdms")["dissimilarity"].values
    at = (np.stack([lights[a].values for a in "ijk"], axis=1) == centre).all(axis=1)
    assert lights["n_voxels"].values[at] == near.sum()
    np.testing.assert_allclose(lights["score"].values[:, at], correlate(model, rdm), atol=1e-6)


def test_maps_of_layers_whose_names_are_alike_are_all_there(tmp_path):
    rows = {name: np.full(2, k) for k, name in enumerate(["a/1.0", "a/10", "a1/0", "best"])}
    centres = {axis: np.array([0, 1]) for axis in "ijk"}
    attrs = {"space": "T1w", "affine": np.eye(4), "shape": [2, 2, 2], "step": 1}
    write_maps(tmp_path, rows, centres, attrs, prefix="sub-01", statistic="r", best=True)
    for k, label in enumerate(["a10", "a10v2", "a10v3", "bestv2"]):
        image = nib.load(tmp_path / f"sub-01_space-T1w_desc-{label}_stat-r_statmap.nii.gz")
        assert image.get_fdata()[1, 1, 1] == k


def test_small_neighbourhoods_have_no_score_and_maps_agree(mapped):
    _, out, _ = mapped
    lights = store.open(out["out"], "searchlight").load()
    small = lights["n_voxels"].values < 12
    assert np.isnan(lights["score"].values[:, small]).all()
    assert np.isfinite(lights["score"].values[:, ~small]).all()
    files = sorted(p.name for p in out["maps"].iterdir())
    name = "sub-01_task-objects_space-MNI152NLin2009aSym_desc-netearly_stat-r_statmap.nii.gz"
    assert name in files
    image = nib.load(out["maps"] / name)
    at = tuple(lights[a].values for a in "ijk")
    np.testing.assert_array_equal(image.get_fdata()[at], lights["score"].values[0])
    np.testing.assert_array_equal(image.affine, stores.AFFINE)
    best = nib.load(out["maps"] / name.replace("netearly_stat-r_statmap", "best_dseg"))
    assert set(np.unique(best.dataobj)) <= {0, 1, 2}


@pytest.mark.parametrize("comparison", ["pearson", "spearman"])
def test_steps_and_threads_change_no_score(mapped, comparison):
    inputs, _, folder = mapped
    found = []
    for step, threads in ((1, 2), (2, 1)):
        out = folder / f"{comparison}{step}.zarr"
        map_searchlight(
            **inputs,
            out=out,
            maps=folder / f"maps{step}",
            radius=6.5,
            min_voxels=12,
            step=step,
            comparison=comparison,
            threads=threads,
        )
        found.append(store.open(out, "searchlight").load())
    every, second = found
    assert (second["i"] % 2 == 0).all()
    kept = [a.values % 2 == 0 for a in (every["i"], every["j"], every["k"])]
    same = np.logical_and.reduce(kept)
    np.testing.assert_allclose(every["score"].values[:, same], second["score"].values, atol=1e-6)
    image = nib.load(next((folder / "maps2").glob("*_stat-r_statmap.nii.gz")))
    assert image.shape == (4, 4, 4)
    np.testing.assert_array_equal(np.diag(image.affine), [6, 6, 6, 1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"radius": 2.0}, "holds 1 voxels"),
        ({"min_voxels": 81, "radius": 9.0, "few": True}, "the fullest has 29 usable voxels"),
        ({"comparison": "kendall"}, "'kendall' is not one of"),
    ],
)
def test_searchlights_that_cannot_be_are_refused(mapped, tmp_path, change, message):
    inputs, _, _ = mapped
    change = dict(change)
    if change.pop("few", False):
        thin = stores.write_betas(tmp_path / "b.zarr", change=lambda d: d.isel(voxel=slice(0, 60)))
        inputs = {**inputs, "betas": thin}
    with pytest.raises(InputError, match=message):
        map_searchlight(**inputs, out=tmp_path / "s.zarr", maps=tmp_path / "maps", **change)


@pytest.mark.parametrize(
    ("measure", "noise"),
    [
        ("crossnobis", {"source": "residuals", "shrinkage": "shrinkage_diag"}),
        ("crossnobis", {"source": "residuals", "shrinkage": "diag"}),
        ("crossnobis", {"source": "betas", "shrinkage": "diag"}),
        ("mahalanobis", {"source": "betas", "shrinkage": "shrinkage_eye"}),
        ("crossnobis", {"source": "none", "shrinkage": "diag"}),
        ("mahalanobis", {"source": "residuals", "shrinkage": "full"}),
        ("euclidean", None),
        ("cosine", None),
    ],
)
def test_measures_of_one_centre_from_the_store(mapped, tmp_path, measure, noise):
    """A score is that of the region which is the sphere; voxels without residuals are left out."""
    inputs, _, _ = mapped

    def spoil(dataset):
        residual = dataset["residual"].values.copy()
        residual[3, 200] = np.nan
        return dataset.assign(residual=(("time", "voxel"), residual))

    inputs = {**inputs, "betas": stores.write_betas(tmp_path / "b.zarr", change=spoil)}
    map_searchlight(
        **inputs,
        out=tmp_path / "s.zarr",
        maps=tmp_path / "maps",
        radius=6.5,
        measure=measure,
        noise_normalisation=noise,
        comparison="cosine",
    )
    lights = store.open(tmp_path / "s.zarr", "searchlight").load()
    voxels = np.stack([lights[a].values for a in "ijk"], axis=1)
    near = np.linalg.norm((voxels - voxels[200]) * 3.0, axis=1) <= 6.5
    near[200] = not noise or noise["source"] != "residuals"
    assert lights["n_voxels"].values[200] == near.sum()
    volume = np.zeros(stores.SHAPE, np.int16)
    volume[tuple(voxels[near].T)] = 1
    nib.save(nib.Nifti1Image(volume, stores.AFFINE), tmp_path / "dseg.nii.gz")
    (tmp_path / "dseg.tsv").write_text("index\tname\n1\tsphere\n")
    compute_rdms(
        betas=inputs["betas"],
        regions=tmp_path / "dseg.nii.gz",
        region_labels=tmp_path / "dseg.tsv",
        out=tmp_path / "r.zarr",
        measure=measure,
        noise_normalisation=noise,
    )
    rdm = store.open(tmp_path / "r.zarr", "rdms")["dissimilarity"].values
    model = store.open(inputs["model_rdms"][0], "model_rdms")["dissimilarity"].values
    wanted = correlate(model, rdm, comparison="cosine")[:, 0]
    np.testing.assert_allclose(lights["score"].values[:, 200], wanted, atol=1e-4)
    assert lights.attrs["measure"] == measure
    source = (noise or {}).get("source", "none")
    expected = "none" if source == "none" else f"{source}, {noise['shrinkage']}"
    assert lights.attrs["noise_normalisation"] == expected


def test_a_mask_on_another_grid_and_one_that_is_none(mapped, tmp_path):
    inputs, _, _ = mapped
    fine = np.zeros((20, 20, 20), np.uint8)
    fine[:8] = 1
    nib.save(nib.Nifti1Image(fine, np.diag([1.5, 1.5, 1.5, 1.0])), tmp_path / "mask.nii.gz")
    out = {"out": tmp_path / "s.zarr", "maps": tmp_path / "maps"}
    map_searchlight(**inputs, **out, mask=tmp_path / "mask.nii.gz", radius=6.5)
    lights = store.open(out["out"], "searchlight").load()
    # Voxel i is at 3 i mm, the mask's first 8 planes end at 11.25 mm.
    assert lights["i"].values.max() == 3
    assert lights.sizes["voxel"] == 4 * 8 * 8
    assert lights["n_voxels"].values[lights["i"].values == 3].max() < 50
    nib.save(nib.Nifti1Image(0 * fine, np.eye(4)), tmp_path / "empty.nii.gz")
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4, 2)), np.eye(4)), tmp_path / "two.nii.gz")
    (tmp_path / "text.nii.gz").write_text("no image")
    for name, message in (
        ("empty", "holds no voxel"),
        ("two", "name an image of one volume"),
        ("text", "cannot be read"),
        ("nowhere", "cannot be read"),
    ):
        with pytest.raises(InputError, match=rf"searchlight\.mask: .*{name}.*{message}"):
            map_searchlight(**inputs, **out, mask=tmp_path / f"{name}.nii.gz")


def test_transforms_and_comparisons_reach_the_scores(mapped, tmp_path):
    inputs, _, _ = mapped
    found = {}
    for name, options in {
        "plain": {},
        "rgtm": {"transform": "rgtm(0.2,0.8)"},
        "ranks": {"transform": "rank"},
        "spearman": {"comparison": "spearman"},
        "whitened": {"comparison": "corr_cov"},
    }.items():
        out = tmp_path / f"{name}.zarr"
        map_searchlight(**inputs, out=out, maps=tmp_path / name, radius=6.5, step=2, **options)
        found[name] = store.open(out, "searchlight").load()
    scores = {name: lights["score"].values for name, lights in found.items()}
    there = np.isfinite(scores["plain"])
    assert there.any()
    for name, score in scores.items():
        np.testing.assert_array_equal(np.isfinite(score), there)
        assert np.corrcoef(score[there], scores["plain"][there])[0, 1] > 0.6, name
    np.testing.assert_allclose(scores["ranks"], scores["spearman"], atol=1e-4)
    assert np.abs(scores["rgtm"] - scores["plain"])[there].max() > 0.05
    assert found["rgtm"].attrs["transform"] == "rgtm(0.20,0.80)"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"measure": "poisson"}, "are negative: poisson is for counts"),
        ({"measure": "chebyshev"}, "searchlight.measure: 'chebyshev' is not one of"),
        ({"transform": "rgtm(2,3)"}, "needs quantiles in 0 to 1"),
        (
            {"measure": "crossnobis", "noise_normalisation": {"shrinkage": "oas"}},
            "shrinkage: 'oas' is not one of",
        ),
        (
            {
                "measure": "mahalanobis",
                "noise_normalisation": {"shrinkage": "full"},
                "radius": 9.5,
            },
            "their noise has 50 degrees of freedom",
        ),
        (
            {"measure": "mahalanobis", "noise_normalisation": {"source": "none"}},
            "searchlight.noise_normalisation.source is none, and mahalanobis",
        ),
    ],
)
def test_options_that_cannot_be_are_refused_in_one_line(mapped, tmp_path, options, message):
    inputs, _, _ = mapped
    with pytest.raises(InputError, match=message) as refused:
        map_searchlight(**inputs, out=tmp_path / "s.zarr", maps=tmp_path / "maps", **options)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("measure", ["crossnobis", "mahalanobis"])
def test_noise_of_betas_needs_repeats(mapped, tmp_path, measure):
    """Two runs: without one, or without run means of unrepeated stimuli, nothing is left."""
    inputs, _, _ = mapped

    def first_half_twice(dataset):
        keep = np.flatnonzero(dataset["run"].values == "01")
        again = np.flatnonzero(dataset["run"].values == "02")[:1]
        return dataset.isel(trial=np.concatenate([keep, again]))

    betas = stores.write_betas(tmp_path / "b.zarr", n_runs=2, change=first_half_twice)
    with pytest.raises(InputError, match=r"nothing is left of the betas"):
        map_searchlight(
            **{**inputs, "betas": betas},
            out=tmp_path / "s.zarr",
            maps=tmp_path / "maps",
            measure=measure,
            noise_normalisation={"source": "betas", "shrinkage": "diag"},
        )


def test_one_run_has_no_crossnobis_searchlight(mapped, tmp_path):
    inputs, _, _ = mapped
    betas = stores.write_betas(tmp_path / "b.zarr", n_runs=1)
    with pytest.raises(InputError, match=r"one run: crossnobis .* in searchlight\.measure"):
        map_searchlight(
            **{**inputs, "betas": betas},
            out=tmp_path / "s.zarr",
            maps=tmp_path / "maps",
            measure="crossnobis",
        )


@pytest.mark.parametrize(
    ("options", "space", "message"),
    [
        ({"transform": "rgtm(0.8,0.2)"}, "T1w", r"searchlight\.transform has .*lower first"),
        ({"transform": "ranks"}, "T1w", r"searchlight\.transform has .*a transform is one of"),
        ({"comparison": "kendall"}, "T1w", r"searchlight\.comparison is .*must be one of pearson"),
        ({"mask": "nowhere.nii.gz"}, "T1w", r"searchlight\.mask is 'nowhere.nii.gz', .*missing"),
        (
            {"measure": "mahalanobis", "noise_normalisation": {"source": "none"}},
            "T1w",
            r"searchlight\.noise_normalisation\.source is none, and mahalanobis",
        ),
        ({"surface": {"run": True}}, "T1w", r"searchlight\.surface\.run is true, but .* T1w"),
        ({"surface": {"run": True}}, "MNI152NLin2009aSym", None),
        ({"transform": "rgdm(k_nearest,3)", "measure": "crossnobis"}, "T1w", None),
    ],
)
def test_a_config_that_cannot_be_is_refused_before_any_job(
    tmp_path, monkeypatch, options, space, message
):
    config = tiny.make(tmp_path)
    config["preprocess"] = {"spaces": [space]}
    config["glm"] = {"space": space}
    config["searchlight"] = {"run": True, **options}
    monkeypatch.chdir(tmp_path)
    if message is None:
        check_inputs(load_study(config))
    else:
        with pytest.raises(InputError, match=message):
            check_inputs(load_study(config))


@pytest.mark.parametrize("run", [True, False])
def test_crossnobis_searchlights_of_one_run_are_refused_before_any_job(tmp_path, monkeypatch, run):
    config = tiny.make(tmp_path, runs=(1,))
    config["rsa"] = {"measures": ["correlation"]}
    config["searchlight"] = {"run": run, "measure": "crossnobis"}
    monkeypatch.chdir(tmp_path)
    if run:
        with pytest.raises(InputError, match=r"take crossnobis out of searchlight\.measure"):
            load_study(config)
    else:
        load_study(config)
