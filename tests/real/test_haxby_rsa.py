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
