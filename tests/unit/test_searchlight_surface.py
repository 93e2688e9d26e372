"""Surface searchlights: geodesic discs against a sphere, sampling against nilearn, and the chain
from betas to group maps."""

import nibabel as nib
import numpy as np
import pytest
import xarray as xr
from nilearn.surface import InMemoryMesh, vol_to_surf
from scipy.sparse.csgraph import dijkstra

from isocortex import store
from isocortex.errors import InputError
from isocortex.rsa import compute_model_rdms, correlate, correlation_distance, mean_patterns
from isocortex.searchlight import (
    combine_surface_searchlights,
    discs,
    map_surface_searchlight,
    mesh_edges,
    path_graph,
    sampling_weights,
    template_surface,
)
from tests.unit import test_rsa_stores as stores

SHAPE = (36, 42, 34)
AFFINE = np.array([[5.0, 0, 0, -88], [0, 5, 0, -122], [0, 0, 5, -70], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def surface():
    return template_surface()


@pytest.fixture(scope="module")
def sphere():
    """fsaverage5's left sphere with its radius made exactly 100 mm."""
    from nilearn.datasets import load_fsaverage

    part = load_fsaverage("fsaverage5")["sphere"].parts["left"]
    unit = part.coordinates / np.linalg.norm(part.coordinates, axis=1, keepdims=True)
    return 100.0 * unit, np.asarray(part.faces)


def test_geodesics_of_a_sphere(sphere):
    """Great circles: 1 % too long on average and 5 % at most; edges alone are 7 % and 24 % off."""
    points, faces = sphere
    sources = np.random.default_rng(0).choice(len(points), 150, replace=False)
    distance = dijkstra(path_graph(points, faces), directed=False, indices=sources, limit=15)
    true = 100.0 * np.arccos(np.clip(points[sources] @ points.T / 1e4, -1, 1))
    there = np.isfinite(distance) & (true > 1.0)
    error = distance[there] / true[there] - 1
    assert error.mean() < 0.015
    assert error.max() < 0.06
    assert error.min() > -0.002
    found = discs(points, faces, radius=12.0, usable=np.ones(len(points), bool))
    wanted = (true <= 12.0).sum(axis=1)
    assert np.abs(found.whole[sources] - wanted).mean() < 0.08 * wanted.mean()


def test_paths_cross_an_edge_only_inside_it():
    """A flat square in two triangles: both diagonals; a bent arrow: no way outside the mesh."""
    square = np.array([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
    faces = np.array([[0, 1, 2], [0, 2, 3]])
    graph = path_graph(square, faces).toarray()
    assert graph[1, 3] == pytest.approx(np.sqrt(2))
    assert graph[0, 2] == pytest.approx(np.sqrt(2))
    folded = square.copy()
    folded[3] = [0.5, 0.5, np.sqrt(0.5)]
    assert path_graph(folded, faces)[1, 3] == pytest.approx(np.sqrt(2))
    arrow = np.array([[0.0, 0, 0], [1, 0, 0], [3, 1, 0], [3, -1, 0]])
    graph = path_graph(arrow, np.array([[0, 1, 2], [0, 3, 1]]))
    assert graph[2, 3] == 0


def test_discs_hold_usable_vertices_and_count_the_others():
    """A strip of triangles, 1 mm apart: a path may cross vertices without data."""
    x = np.arange(8.0)
    points = np.concatenate([np.c_[x, 0 * x, 0 * x], np.c_[x, 0 * x + 10, 0 * x]])
    faces = np.array([[k, k + 1, 8 + k] for k in range(7)])
    usable = np.ones(16, bool)
    usable[[3, 12]] = False
    found = discs(points, faces, radius=2.0, usable=usable)
    row = np.cumsum(usable) - 1
    members, sizes = found.members(slice(0, 8))
    assert found.missing == 14
    assert found.whole[:8].tolist() == [3, 4, 5, 5, 5, 5, 4, 3]
    assert sizes.tolist() == [3, 3, 4, 4, 4, 4, 4, 3]
    assert set(members[4][members[4] < 14]) == {row[k] for k in (2, 4, 5, 6)}


def test_sampling_is_nilearn_s(surface):
    rng = np.random.default_rng(1)
    volume = rng.standard_normal(SHAPE)
    voxels = np.argwhere(np.ones(SHAPE, bool))
    ours = sampling_weights(surface, voxels, SHAPE, AFFINE) @ volume.ravel()
    left = surface.hemisphere == "left"
    n = left.sum()
    faces = surface.faces[: len(surface.faces) // 2]
    peer = vol_to_surf(
        nib.Nifti1Image(volume, AFFINE),
        InMemoryMesh(surface.pial[left], faces),
        inner_mesh=InMemoryMesh(surface.white[left], faces),
    )
    np.testing.assert_allclose(ours[:n], peer, atol=1e-5)
    assert surface.index.max() == n - 1
    assert len(mesh_edges(surface.faces)) == 2 * (3 * n - 6)


def write_betas(path, *, subject="01", seed=0, space="MNI152NLin2009aSym"):
    """Betas of a head-sized volume: the left half carries one geometry, the right another."""
    rng = np.random.default_rng(seed)
    index = np.argwhere(np.ones(SHAPE, bool))
    latent = stores.planted()
    world = index @ AFFINE[:3, :3].T + AFFINE[:3, 3]
    left = world[:, 0] < 0
    signal = np.where(
        left[:, None],
        rng.standard_normal((len(index), 6)) @ latent["early"].T,
        rng.standard_normal((len(index), 6)) @ latent["late"].T,
    ).T
    names = stores.STIMULI * 2
    beta = (np.tile(signal, (2, 1)) + 2 * rng.standard_normal((len(names), len(index)))).astype(
        "f4"
    )
    hole = (world[:, 2] > 40) & left
    beta[3, hole] = np.nan
    template = stores.write_betas(path.parent / "small.zarr", subject=subject)
    small = store.open(template, "betas").load().isel(voxel=[0])
    empty = small.drop_dims(["voxel", "trial", "time"])
    one = np.ones(len(index), np.float32)
    dataset = xr.Dataset(
        {
            "beta": (("trial", "voxel"), beta),
            "beta_se": ("trial", np.ones(len(names))),
            "residual": (("time", "voxel"), np.zeros((0, len(index)), np.float32)),
            "design": empty["design"],
            "hrf_index": ("voxel", np.zeros(len(index), np.int16)),
            **dict.fromkeys(("r2", "noise_ceiling", "ncsnr", "tsnr", "z_stimulus"), ("voxel", one)),
        },
        coords={
            **{
                name: ("trial", np.array(values, object))
                for name, values in {
                    "stimulus": names,
                    "condition": names,
                    "session": [""] * len(names),
                    "run": ["01"] * len(stores.STIMULI) + ["02"] * len(stores.STIMULI),
                }.items()
            },
            "onset": ("trial", np.arange(len(names), dtype=float)),
            "duration": ("trial", np.ones(len(names))),
            "time_run": ("time", np.array([], object)),
            "regressor": empty["regressor"],
            "frame_time": empty["frame_time"],
            **{axis: ("voxel", index[:, d].astype(np.int32)) for d, axis in enumerate("ijk")},
        },
        attrs={
            **small.attrs,
            "subject": subject,
            "affine": AFFINE.tolist(),
            "shape": list(SHAPE),
            "space": space,
        },
    )
    store.write(dataset, path, spec="betas")
    return path


@pytest.fixture(scope="module")
def mapped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("surface")
    features = stores.write_features(folder / "f.zarr", stores.planted())
    compute_model_rdms(features=features, out=folder / "m.zarr")
    betas = write_betas(folder / "b.zarr")
    map_surface_searchlight(
        betas=betas,
        model_rdms=[folder / "m.zarr"],
        out=folder / "s.zarr",
        maps=folder / "maps",
        radius=12.0,
        threads=2,
    )
    return folder


def test_the_surface_map_finds_the_planted_hemispheres(mapped, surface):
    lights = store.open(mapped / "s.zarr", "searchlight_surface").load()
    assert lights.sizes["vertex"] == 2 * 10242
    score = lights["score"].values
    x = surface.midthickness[:, 0]
    there = np.isfinite(score).all(axis=0) & (np.abs(x) > 15)
    assert 0.4 < np.isfinite(score[0]).mean() < 1
    best = np.array(["left" if row else "right" for row in score[0] > score[1]])
    assert lights["predictor"].values[0] == "net/early"
    assert (best == np.where(x < 0, "left", "right"))[there].mean() > 0.95
    # The hole in the left half: no data at the vertex, no score, and counted.
    hole = (x < -15) & (surface.midthickness[:, 2] > 50)
    assert np.isnan(score[:, hole]).all()
    # Nor the medial wall, where white and pial surface are one.
    assert np.isnan(score[:, ~surface.cortex]).all()
    assert 300 < (~surface.cortex & (x < 0)).sum() < 900
    assert lights.attrs["n_vertices_without_data"] >= hole.sum()


def test_one_disc_by_hand(mapped, surface):
    lights = store.open(mapped / "s.zarr", "searchlight_surface").load()
    betas = store.open(mapped / "b.zarr", "betas").load()
    centre = int(np.flatnonzero(lights["n_voxels"].values == lights["n_voxels"].values.max())[0])
    graph = path_graph(surface.midthickness, surface.faces)
    near = dijkstra(graph, directed=False, indices=centre, limit=12.0) <= 12.0
    good = np.isfinite(betas["beta"].values).all(axis=0)
    voxels = np.stack([betas[a].values for a in "ijk"], axis=1)[good]
    weights = sampling_weights(surface, voxels, SHAPE, AFFINE)[np.flatnonzero(near)]
    means = mean_patterns(betas["beta"].values[:, good], list(betas["stimulus"].values))[0]
    patterns = (weights @ means.T / weights.sum(axis=1)[:, None]).T
    model = store.open(mapped / "m.zarr", "model_rdms")["dissimilarity"].values
    wanted = correlate(model, correlation_distance(patterns)[None])[:, 0]
    assert lights["n_voxels"].values[centre] == near.sum()
    np.testing.assert_allclose(lights["score"].values[:, centre], wanted, atol=1e-5)


def test_gifti_maps_of_both_hemispheres(mapped):
    lights = store.open(mapped / "s.zarr", "searchlight_surface").load()
    for letter, side in (("L", "left"), ("R", "right")):
        name = f"sub-01_task-objects_hemi-{letter}_space-fsaverage5_desc-netlate_stat-r_statmap"
        image = nib.load(mapped / "maps" / f"{name}.func.gii")
        here = lights["hemisphere"].values == side
        np.testing.assert_array_equal(image.darrays[0].data, lights["score"].values[1, here])
        assert image.meta["AnatomicalStructurePrimary"] == f"Cortex{side.capitalize()}"
        label = name.replace("netlate_stat-r_statmap", "best_dseg")
        best = nib.load(mapped / "maps" / f"{label}.label.gii").darrays[0].data
        # Both layers are there, and vertices without a score; most are of one layer.
        assert set(np.unique(best)) <= {0, 1, 2}
        assert (best == {"L": 1, "R": 2}[letter]).mean() > 0.5


def test_surface_group(mapped, tmp_path):
    """Six subjects whose scores rise in one patch: TFCE finds it, in one hemisphere."""
    rng = np.random.default_rng(2)
    lights = store.open(mapped / "s.zarr", "searchlight_surface").load()
    surface = template_surface()
    patch = (np.linalg.norm(surface.midthickness - [-40, -60, 0], axis=1) < 20) & (
        lights["hemisphere"].values == "left"
    )
    files = []
    for k in range(6):
        score = 0.1 * rng.standard_normal((1, len(patch))) + 0.2 * patch
        part = lights.isel(predictor=[0]).assign(
            score=(("predictor", "vertex"), score.astype(np.float32))
        )
        part.attrs = {**lights.attrs, "subject": f"{k + 1:02d}"}
        files.append(tmp_path / f"{k}.zarr")
        store.write(part, files[-1], spec="searchlight_surface")
    combine_surface_searchlights(
        searchlights=files, out=tmp_path / "g.zarr", maps=tmp_path / "maps", permutations=64
    )
    group = store.open(tmp_path / "g.zarr", "searchlight_surface_group").load()
    significant = group["p_tfce"].values[0] <= 0.05
    assert significant[patch].mean() > 0.9
    assert significant[group["hemisphere"].values == "right"].mean() < 0.05
    name = "task-objects_hemi-L_space-fsaverage5_desc-netearly_stat-ptfce_statmap.func.gii"
    found = nib.load(tmp_path / "maps" / name).darrays[0].data
    np.testing.assert_array_equal(found, group["p_tfce"].values[0, :10242])


def test_betas_of_a_subject_s_own_space_are_refused(mapped, tmp_path):
    own = write_betas(tmp_path / "b.zarr", space="T1w")
    with pytest.raises(InputError, match="is in space T1w, the template surface in MNI"):
        map_surface_searchlight(
            betas=own, model_rdms=[mapped / "m.zarr"], out=tmp_path / "s.zarr", maps=tmp_path
        )
