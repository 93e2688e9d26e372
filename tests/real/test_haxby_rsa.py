"""Haxby et al. (2001), one slice: crossnobis RDMs of eight kinds of objects, and searchlights."""

import nibabel as nib
import numpy as np
import pytest
import xarray as xr
from rsatoolbox.data import Dataset
from rsatoolbox.data.noise import prec_from_residuals
from rsatoolbox.rdm import calc_rdm
from scipy import stats

from isocortex import store
from isocortex.glm import fit_glm
from isocortex.rsa import compute_rdms, correlate, pair_labels
from isocortex.searchlight import map_searchlight

ENDING = "_space-T1w_desc-preproc_bold.nii.gz"


@pytest.fixture(scope="module")
def study(data, tmp_path_factory):
    """Betas of the 12 runs and of their odd and even halves, and the whole mask as a region."""
    root = data / "haxby2001-slice"
    func = root / "derivatives" / "preproc" / "sub-01" / "func"
    folder = tmp_path_factory.mktemp("haxby")
    files = sorted(func.glob(f"*{ENDING}"))

    def fit(name, bold):
        stems = [path.name.removesuffix(ENDING) for path in bold]
        fit_glm(
            bold=bold,
            mask=[func / f"{stem}_space-T1w_desc-brain_mask.nii.gz" for stem in stems],
            confounds=[func / f"{stem}_desc-confounds_timeseries.tsv" for stem in stems],
            sidecar=[func / f"{stem}_space-T1w_desc-preproc_bold.json" for stem in stems],
            events=[root / "sub-01" / "func" / f"{stem}_events.tsv" for stem in stems],
            runs=[{"session": None, "run": stem[-2:]} for stem in stems],
            out=folder / f"{name}.zarr",
            subject=name,
            task="objectviewing",
            space="T1w",
            trials="condition",
        )
        return folder / f"{name}.zarr"

    betas = {
        "all": fit("all", files),
        "odd": fit("odd", files[::2]),
        "even": fit("even", files[1::2]),
    }
    opened = store.open(betas["all"], "betas").load()
    volume = np.zeros(opened.attrs["shape"], np.int16)
    at = tuple(opened[a].values for a in "ijk")
    volume[at] = 1
    volume[tuple(a[opened["z_stimulus"].values > 3.1] for a in at)] = 2
    nib.save(nib.Nifti1Image(volume, np.array(opened.attrs["affine"])), folder / "dseg.nii.gz")
    (folder / "dseg.tsv").write_text("index\tname\n2\tresponsive\n1\trest\n")
    rdms = {}
    for name, path in betas.items():
        out = folder / f"{name}_rdms.zarr"
        compute_rdms(
            betas=path,
            regions=folder / "dseg.nii.gz",
            region_labels=folder / "dseg.tsv",
            out=out,
            measure="crossnobis",
            average_by="condition",
        )
        rdms[name] = store.open(out, "rdms").load()
    return folder, opened, rdms, volume[at]


def test_crossnobis_is_rsatoolbox_s(study):
    _, betas, rdms, label = study
    inside = label == 2
    noise = prec_from_residuals(
        betas["residual"].values[:, inside].astype(float), dof=betas.attrs["degrees_of_freedom"]
    )
    dataset = Dataset(
        betas["beta"].values[:, inside].astype(float),
        obs_descriptors={
            "condition": list(betas["condition"].values),
            "run": list(betas["run"].values),
        },
    )
    peer = calc_rdm(
        dataset, method="crossnobis", descriptor="condition", cv_descriptor="run", noise=noise
    ).get_vectors()[0]
    ours = rdms["all"]["dissimilarity"].sel(region="responsive").values
    np.testing.assert_allclose(ours, peer, rtol=0, atol=1e-8 * np.abs(peer).max())


def test_distances_are_there_and_the_same_in_both_halves(study):
    rdms = study[2]
    distance = rdms["all"]["dissimilarity"].sel(region="responsive").values
    assert (distance > 0).mean() > 0.9
    assert stats.ttest_1samp(distance, 0).pvalue < 1e-6
    halves = [
        rdms[h]["dissimilarity"].sel(region="responsive").values[None] for h in ("odd", "even")
    ]
    assert correlate(*halves)[0, 0] > 0.4
    # Faces and houses are the pair that this study is known for.
    pair = (rdms["all"]["stimulus_i"] == "face") & (rdms["all"]["stimulus_j"] == "house")
    assert distance[pair.values][0] > np.median(distance)


def test_searchlight_maps_of_houses_replicate(study):
    """Where patterns of houses stand apart: the maps of odd and of even runs agree."""
    folder, betas, _, _ = study
    names = sorted(set(betas["condition"].values))
    first, second = pair_labels(names)
    apart = ((first == "house") != (second == "house")).astype(float)
    store.write(
        xr.Dataset(
            {"dissimilarity": (("layer", "pair"), apart[None])},
            coords={
                "layer": ("layer", np.array(["house"], object)),
                "stimulus_i": ("pair", first),
                "stimulus_j": ("pair", second),
            },
            attrs={"model": "category", "measure": "given"},
        ),
        folder / "model.zarr",
        spec="model_rdms",
    )
    score = []
    for half in ("odd", "even"):
        map_searchlight(
            betas=folder / f"{half}.zarr",
            model_rdms=[folder / "model.zarr"],
            out=folder / f"{half}_light.zarr",
            maps=folder / f"{half}_maps",
            radius=12.0,
            min_voxels=15,
        )
        score.append(store.open(folder / f"{half}_light.zarr", "searchlight")["score"].values[0])
    score = np.array(score)
    there = np.isfinite(score).all(axis=0)
    assert there.mean() > 0.95
    assert np.corrcoef(score[:, there])[0, 1] > 0.6
    assert score.mean(axis=0)[there].max() > 0.7


@pytest.fixture(scope="module")
def apart(study):
    """Crossnobis searchlights of both halves: each of the 8 categories apart from the others."""
    folder, betas, _, _ = study
    names = sorted(set(betas["condition"].values))
    first, second = pair_labels(names)
    models = np.array([(first == name) != (second == name) for name in names], dtype=float)
    store.write(
        xr.Dataset(
            {"dissimilarity": (("layer", "pair"), models)},
            coords={
                "layer": ("layer", np.array(names, object)),
                "stimulus_i": ("pair", first),
                "stimulus_j": ("pair", second),
            },
            attrs={"model": "apart", "measure": "given"},
        ),
        folder / "apart.zarr",
        spec="model_rdms",
    )
    found = {}
    for half in ("odd", "even"):
        map_searchlight(
            betas=folder / f"{half}.zarr",
            model_rdms=[folder / "apart.zarr"],
            out=folder / f"{half}_apart.zarr",
            maps=folder / f"{half}_apart_maps",
            radius=12.0,
            min_voxels=15,
            measure="crossnobis",
            noise_normalisation={"source": "residuals", "shrinkage": "diag"},
            average_by="condition",
        )
        found[half] = store.open(folder / f"{half}_apart.zarr", "searchlight").load()
    return folder, names, models, found


def test_maps_of_the_eight_categories_replicate(apart):
    """A category's map in odd runs is like its own map in even runs and unlike the others'."""
    _, names, _, found = apart
    score = [found[half]["score"].values for half in ("odd", "even")]
    there = np.isfinite(score).all(axis=(0, 1))
    assert there.mean() > 0.95
    n = len(names)
    assert n == 8
    across = np.corrcoef(score[0][:, there], score[1][:, there])[:n, n:]
    own, others = np.diag(across), across[~np.eye(n, dtype=bool)]
    assert own.mean() > others.mean() + 0.25
    assert own[names.index("house")] > 0.5
    assert own[names.index("scrambledpix")] > 0.4
    # Which category a map is of, out of 8, in either direction: 1 by chance.
    assert (across.argmax(axis=0) == np.arange(n)).sum() >= 4
    assert (across.argmax(axis=1) == np.arange(n)).sum() >= 4


def test_one_crossnobis_searchlight_is_rsatoolbox_s(apart):
    folder, _, models, found = apart
    betas = store.open(folder / "odd.zarr", "betas").load()
    voxels = np.stack([betas[a].values for a in "ijk"], axis=1)
    centre = int(found["odd"]["n_voxels"].values.argmax())
    step = np.abs(np.asarray(betas.attrs["affine"])[:3, :3]).max(axis=0)
    near = np.linalg.norm((voxels - voxels[centre]) * step, axis=1) <= 12.0
    residual = betas["residual"].values[:, near].astype(float)
    near[np.flatnonzero(near)[residual.std(axis=0) == 0]] = False
    assert found["odd"]["n_voxels"].values[centre] == near.sum()
    noise = prec_from_residuals(
        betas["residual"].values[:, near].astype(float),
        dof=betas.attrs["degrees_of_freedom"],
        method="diag",
    )
    dataset = Dataset(
        betas["beta"].values[:, near].astype(float),
        obs_descriptors={
            "condition": list(betas["condition"].values),
            "run": list(betas["run"].values),
        },
    )
    peer = calc_rdm(
        dataset, method="crossnobis", descriptor="condition", cv_descriptor="run", noise=noise
    ).get_vectors()
    wanted = correlate(models, peer)[:, 0]
    np.testing.assert_allclose(found["odd"]["score"].values[:, centre], wanted, atol=1e-5)


def test_a_topological_searchlight_in_a_mask(apart, study):
    """The mask is the responsive region: no other centre, no voxel of elsewhere."""
    folder, _, _, _ = apart
    _, betas, _, label = study
    volume = np.zeros(betas.attrs["shape"], np.int16)
    inside = label == 2
    volume[tuple(betas[a].values[inside] for a in "ijk")] = 1
    nib.save(nib.Nifti1Image(volume, np.array(betas.attrs["affine"])), folder / "mask.nii.gz")
    map_searchlight(
        betas=folder / "all.zarr",
        model_rdms=[folder / "apart.zarr"],
        out=folder / "rgtm.zarr",
        maps=folder / "rgtm_maps",
        mask=folder / "mask.nii.gz",
        radius=12.0,
        min_voxels=5,
        measure="crossnobis",
        comparison="spearman",
        transform="rgtm(0.2,0.8)",
        average_by="condition",
    )
    lights = store.open(folder / "rgtm.zarr", "searchlight").load()
    assert lights.sizes["voxel"] == inside.sum()
    assert lights["n_voxels"].values.max() <= inside.sum()
    assert lights.attrs["transform"] == "rgtm(0.20,0.80)"
    score = lights["score"].values
    assert np.isfinite(score[:, lights["n_voxels"].values >= 5]).all()
    assert np.nanmax(score) > 0.4
