"""Searchlights of subjects on stores: what is scored, written, counted and refused."""

import importlib.util
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import xarray as xr
from rsatoolbox.data import Dataset
from rsatoolbox.rdm import calc_rdm
from scipy import stats

from isocortex import store
from isocortex.errors import InputError
from isocortex.rsa import (
    compute_model_rdms,
    correlate,
    covariance,
    crossnobis_distance,
    euclidean_distance,
    mean_patterns,
    parse_transform,
    whiten,
)
from isocortex.searchlight import (
    combine_searchlights,
    combine_surface_searchlights,
    map_searchlight,
    map_surface_searchlight,
    template_surface,
)

_SPEC = importlib.util.spec_from_file_location(
    "rsa_stores", Path(__file__).with_name("test_rsa_stores.py")
)
stores = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(stores)


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


def write_lights(folder, z, *, affine=stores.AFFINE, first=1, n_predictors=1):
    """Searchlight stores of subjects whose Fisher z is given: (subject, predictor, voxel)."""
    files = []
    n_voxels = z.shape[2]
    at = np.unravel_index(np.arange(n_voxels), (10, 10, 10))
    for k, one in enumerate(z, start=first):
        path = folder / f"sub-{k:02d}.zarr"
        names = [f"m/l{p}" for p in range(z.shape[1])]
        store.write(
            xr.Dataset(
                {
                    "score": (("predictor", "voxel"), np.tanh(one).astype(np.float32)),
                    "n_voxels": ("voxel", np.full(n_voxels, 30, np.int32)),
                },
                coords={
                    "predictor": ("predictor", np.array(names, object)),
                    "model": ("predictor", np.array(["m"] * len(names), object)),
                    "layer": ("predictor", np.array([n[2:] for n in names], object)),
                    **{a: ("voxel", v.astype(np.int32)) for a, v in zip("ijk", at)},
                },
                attrs={
                    "affine": np.asarray(affine).tolist(),
                    "shape": [10, 10, 10],
                    "space": "MNI152NLin2009aSym",
                    "subject": f"{k:02d}",
                    "task": "objects",
                    "comparison": "pearson",
                    "radius": 6.0,
                    "step": 1,
                },
            ),
            path,
            spec="searchlight",
        )
        files.append(path)
    return files


def test_group_t_and_corrected_p(tmp_path):
    rng = np.random.default_rng(3)
    z = 0.1 * rng.standard_normal((7, 2, 200))
    z[:, 1, :20] += 0.4
    z[2, 0, 5] = np.nan
    files = write_lights(tmp_path, z)
    out = {"out": tmp_path / "g.zarr", "maps": tmp_path / "maps"}
    combine_searchlights(searchlights=files[::-1], **out, permutations=500)
    group = store.open(out["out"], "searchlight_group").load()
    with np.errstate(invalid="ignore"):
        wanted = stats.ttest_1samp(z, 0, axis=0, nan_policy="omit").statistic
    np.testing.assert_allclose(group["t"].values, np.asarray(wanted), rtol=1e-3)
    np.testing.assert_allclose(group["mean"].values, np.tanh(np.nanmean(z, axis=0)), atol=1e-6)
    assert group["n_subjects"].values[5] == 6
    assert np.isnan(group["p_corrected"].values[0, 5])
    p = group["p_corrected"].values
    assert (p[1, :20] < 0.05).mean() > 0.9
    assert (p[1, 20:] < 0.05).sum() <= 2
    # All 128 sign patterns were used: p-values are multiples of 1/128.
    counts = p[1] * 128
    np.testing.assert_allclose(counts, np.round(counts), atol=1e-4)
    files = {p.name for p in out["maps"].iterdir()}
    assert "task-objects_space-MNI152NLin2009aSym_desc-ml1_stat-t_statmap.nii.gz" in files


def test_few_subjects_have_no_corrected_p(tmp_path):
    files = write_lights(tmp_path, np.random.default_rng(4).standard_normal((4, 1, 50)))
    combine_searchlights(searchlights=files, out=tmp_path / "g.zarr", maps=tmp_path / "maps")
    group = store.open(tmp_path / "g.zarr", "searchlight_group")
    assert np.isnan(group["p_corrected"].values).all()
    assert np.isfinite(group["t"].values).all()
    assert "at least 5" in group.attrs["flags"][0]


def test_subjects_on_other_grids_are_refused(tmp_path):
    z = np.random.default_rng(5).standard_normal((2, 1, 50))
    files = write_lights(tmp_path, z)
    files += write_lights(tmp_path, z[:1], affine=np.diag([2.0, 2.0, 2.0, 1.0]), first=9)
    with pytest.raises(InputError, match=r"sub-09.*another grid"):
        combine_searchlights(searchlights=files, out=tmp_path / "g.zarr", maps=tmp_path / "maps")
