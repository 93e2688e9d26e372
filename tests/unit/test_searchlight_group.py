"""Group maps of searchlights: TFCE against nilearn, sign flips against the definition and the
null, and the stores and images that are written."""

import numpy as np
import pytest
import xarray as xr
from nilearn.mass_univariate._utils import calculate_tfce
from scipy import stats
from scipy.ndimage import gaussian_filter, generate_binary_structure

from isocortex import store
from isocortex.errors import InputError
from isocortex.searchlight import (
    combine_searchlights,
    grid_edges,
    group_test,
    mesh_edges,
    neighbour_table,
    normal_deviate,
    sign_flips,
    tfce,
)

AFFINE = np.diag([3.0, 3.0, 3.0, 1.0])


def smooth_maps(rng, n, shape, *, sd=1.0):
    """Maps of smooth noise with SD 1, shape (n, n_voxels)."""
    maps = gaussian_filter(rng.standard_normal((n, *shape)), (0, sd, sd, sd), mode="wrap")
    return (maps / maps.std()).reshape(n, -1)


@pytest.mark.parametrize("connectivity", [6, 18, 26])
def test_tfce_is_nilearn_s(connectivity):
    rng = np.random.default_rng(0)
    shape = (9, 8, 7)
    maps = smooth_maps(rng, 3, shape)
    edges = grid_edges(np.argwhere(np.ones(shape, bool)), connectivity=connectivity)
    near = neighbour_table(edges, int(np.prod(shape)))
    structure = generate_binary_structure(3, {6: 1, 18: 2, 26: 3}[connectivity])
    for row in maps:
        step = row.max() / 100
        # Like FSL, nilearn leaves the step between thresholds out of the sum.
        peer = calculate_tfce(row.reshape(*shape, 1).copy(), structure, two_sided_test=False)
        ours = tfce(row[None], near)
        np.testing.assert_allclose(ours[0], step * peer.ravel(), rtol=1e-10, atol=1e-12)
    steps = np.array([0.04, 0.04, 0.1])
    together = tfce(maps, near, step=steps)
    apart = np.concatenate([tfce(row[None], near, step=s) for row, s in zip(maps, steps)])
    np.testing.assert_allclose(together, apart, rtol=1e-12)


def test_tfce_of_a_block_and_of_a_cone():
    """A block of 7 at height 3; a chain with one level a point: sums of e^E h^H by hand."""
    near = neighbour_table(np.stack([np.arange(9), np.arange(1, 10)], axis=1), 10)
    block = np.array([0, 3.0, 3, 3, 3, 3, 3, 3, 0, -5])
    thresholds = np.arange(1, 31) * 0.1
    wanted = np.where(block > 0, np.sqrt(7) * (thresholds**2).sum() * 0.1, 0)
    np.testing.assert_allclose(tfce(block[None], near, step=0.1)[0], wanted, rtol=1e-12)
    chain = np.array([1.0, 2, 3, 4, 5, 0, 2, 0, 0, np.nan])
    wanted = [sum(np.sqrt(6 - h) * h**2 for h in range(1, top + 1)) for top in range(1, 6)]
    found = tfce(chain[None], near, step=1.0)[0]
    np.testing.assert_allclose(found, [*wanted, 0, 1 + 4, 0, 0, 0], rtol=1e-12)
    found = tfce(chain[None], near, step=1.0, extent=1.0, height=0.0)[0]
    np.testing.assert_allclose(found[:5], np.cumsum([5, 4, 3, 2, 1]), rtol=1e-12)


def test_tfce_of_plateaus_and_saddles():
    """Few levels, so that neighbours are often equal: nilearn's sum with as few steps."""
    rng = np.random.default_rng(4)
    shape = (7, 6, 5)
    near = neighbour_table(grid_edges(np.argwhere(np.ones(shape, bool))), 210)
    for share in (0.2, 0.5, 0.9):
        row = np.where(rng.random(210) < share, rng.integers(1, 21, 210), 0).astype(float)
        row[0] = 20.0
        peer = calculate_tfce(
            row.reshape(*shape, 1).copy(),
            generate_binary_structure(3, 1),
            dh=1.0,
            two_sided_test=False,
        )
        np.testing.assert_allclose(tfce(row[None], near, step=1.0)[0], peer.ravel(), rtol=1e-9)


def test_neighbours_as_a_table():
    table = neighbour_table(np.array([[0, 1], [2, 1], [1, 3]]), 5)
    assert [sorted(set(row) - {k}) for k, row in enumerate(table)] == [[1], [0, 2, 3], [1], [1], []]
    assert neighbour_table(np.empty((0, 2), int), 3).shape == (3, 0)
    assert (
        tfce(np.full((1, 3), 2.0), neighbour_table(np.empty((0, 2), int), 3), step=1.0)[0, 0] == 5
    )


def test_tfce_of_a_mesh_follows_its_edges():
    """Two triangles that share an edge and one apart: clusters of 4 and of 3."""
    edges = mesh_edges(np.array([[0, 1, 2], [2, 1, 3], [4, 5, 6]]))
    assert len(edges) == 8
    found = tfce(np.ones((1, 7)), neighbour_table(edges, 7), step=1.0)
    np.testing.assert_allclose(found[0], np.sqrt([4, 4, 4, 4, 3, 3, 3]))


def test_neighbours_of_a_grid_with_holes():
    voxels = np.array([[5, 5, 5], [5, 5, 6], [5, 6, 6], [6, 6, 7], [9, 9, 9]])
    pairs = {c: {tuple(sorted(p)) for p in grid_edges(voxels, connectivity=c)} for c in (6, 18, 26)}
    assert pairs == {
        6: {(0, 1), (1, 2)},
        18: {(0, 1), (1, 2), (0, 2), (2, 3)},
        26: {(0, 1), (1, 2), (0, 2), (2, 3), (1, 3)},
    }


def test_too_fine_a_step_is_refused():
    with pytest.raises(ValueError, match="take a larger one"):
        tfce(np.full((1, 2), 100.0), np.array([[1], [0]]), step=1e-4)


def test_random_flips_hold_the_observed_signs():
    signs = sign_flips(12, 100, seed=1)
    assert signs.shape == (100, 12)
    assert (signs[0] == 1).all()
    np.testing.assert_array_equal(signs, sign_flips(12, 100, seed=1))
    every = sign_flips(8, 256, seed=0)
    assert len({tuple(row) for row in every}) == 256


def test_p_values_are_those_of_the_definition():
    rng = np.random.default_rng(1)
    shape = (4, 4, 3)
    z = smooth_maps(rng, 6, shape) + 0.3
    z[3, 5] = np.nan
    near = neighbour_table(grid_edges(np.argwhere(np.ones(shape, bool))), int(np.prod(shape)))
    signs = sign_flips(6, 64, seed=0)
    test = group_test(z[None], near, signs, threads=2)
    t = np.array([stats.ttest_1samp(row[:, None] * z, 0).statistic for row in signs])
    observed = stats.ttest_1samp(z, 0, nan_policy="omit").statistic
    np.testing.assert_allclose(test.t[0], observed, rtol=1e-6)
    there = np.arange(t.shape[1]) != 5
    top = np.nanmax(t, axis=1)
    close = 1e-9
    wanted = (t[:, there] >= t[0, there] - close).mean(axis=0)
    np.testing.assert_allclose(test.p[0, there], wanted)
    wanted = (top[:, None] >= t[0, there] - close).mean(axis=0)
    np.testing.assert_allclose(test.p_corrected[0, there], wanted)
    z_of_t = normal_deviate(t, 5)
    enhanced = tfce(z_of_t, near, step=np.nanmax(z_of_t[0]) / 100)
    np.testing.assert_allclose(test.tfce[0], enhanced[0], rtol=1e-6)
    wanted = (enhanced.max(axis=1)[:, None] >= enhanced[0, there] * (1 - close)).mean(axis=0)
    np.testing.assert_allclose(test.p_tfce[0, there], wanted)
    assert np.isnan([test.p[0, 5], test.p_corrected[0, 5], test.p_tfce[0, 5]]).all()


def test_normal_deviates_have_the_p_values_of_t():
    for df in (4, 7, 23):
        p = stats.norm.sf(np.linspace(-4, 4, 41))
        np.testing.assert_allclose(
            normal_deviate(stats.t.isf(p, df), df), stats.norm.isf(p), rtol=0.02, atol=1e-9
        )


@pytest.fixture(scope="module")
def null_studies():
    """Studies of 6 subjects, smooth noise: p-values of all 64 flips."""
    rng = np.random.default_rng(2)
    shape, studies = (6, 6, 6), 400
    near = neighbour_table(grid_edges(np.argwhere(np.ones(shape, bool))), int(np.prod(shape)))
    z = smooth_maps(rng, 6 * studies, shape).reshape(studies, 6, -1)
    return group_test(z, near, sign_flips(6, 64, seed=0), threads=2)


@pytest.mark.parametrize("kind", ["p_corrected", "p_tfce"])
def test_family_wise_error_rate(null_studies, kind):
    """P(any voxel at or below .05) under the null lies in its binomial 99% interval."""
    p = getattr(null_studies, kind)
    rate = (p <= 0.05).any(axis=1).mean()
    # 3 of 64 sign patterns can be at or above one at or below .05: the test's exact level.
    for level in (3 / 64, 0.05):
        low, high = stats.binom.ppf([0.005, 0.995], len(p), level) / len(p)
        assert low <= rate <= high


def test_p_of_single_voxels_is_uniform(null_studies):
    rate = (null_studies.p <= 0.05).mean()
    assert rate == pytest.approx(3 / 64, abs=0.006)


def test_power_and_what_tfce_adds():
    """An effect of 1.5 SD over a third of the volume: TFCE finds most of it, single t half."""
    rng = np.random.default_rng(3)
    shape, studies = (6, 6, 6), 40
    near = neighbour_table(grid_edges(np.argwhere(np.ones(shape, bool))), int(np.prod(shape)))
    z = smooth_maps(rng, 10 * studies, shape).reshape(studies, 10, -1)
    z.reshape(studies, 10, *shape)[..., :2] += 1.5
    test = group_test(z, near, sign_flips(10, 256, seed=0), threads=2)
    effect = np.zeros(shape, bool)
    effect[..., :2] = True
    hits = {
        kind: (getattr(test, kind)[:, effect.ravel()] <= 0.05).mean()
        for kind in ("p_corrected", "p_tfce")
    }
    assert hits["p_tfce"] > 0.8
    assert hits["p_tfce"] > hits["p_corrected"] + 0.2


def test_a_map_that_hardly_reaches_above_0():
    """Its flips reach thousands of times as high: thresholds are not a 100th of its largest t."""
    rng = np.random.default_rng(6)
    shape = (5, 5, 5)
    near = neighbour_table(grid_edges(np.argwhere(np.ones(shape, bool))), 125)
    z = rng.normal(-2, 1, (12, 125))
    z[:, 5] -= z[:, 5].mean() - 1e-6
    test = group_test(z[None], near, sign_flips(12, 100, seed=0))
    assert 0 < test.t[0].max() < 1e-4
    assert test.p_tfce.min() > 0.5
    assert test.p_corrected.min() > 0.5


def write_lights(folder, z, *, affine=AFFINE, first=1, **attrs):
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
                    **attrs,
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


@pytest.mark.parametrize(
    ("kind", "chance"),
    [
        ({"comparison": "bures"}, False),
        ({"comparison": "riemann"}, False),
        ({"comparison": "cosine", "measure": "correlation"}, False),
        ({"comparison": "cosine_cov", "measure": "crossnobis", "transform": "rank"}, False),
        ({"comparison": "cosine", "measure": "crossnobis", "transform": ""}, True),
        ({"comparison": "tau_a", "measure": "correlation"}, True),
    ],
)
def test_no_p_value_against_0_where_unrelated_rdms_do_not_score_0(tmp_path, kind, chance):
    z = 0.5 + 0.1 * np.random.default_rng(7).standard_normal((6, 1, 40))
    files = write_lights(tmp_path, z, **kind)
    combine_searchlights(searchlights=files, out=tmp_path / "g.zarr", maps=tmp_path / "maps")
    group = store.open(tmp_path / "g.zarr", "searchlight_group").load()
    for name in ("p", "p_corrected", "p_tfce"):
        assert np.isfinite(group[name].values).all() == chance
        assert np.isfinite(group[name].values).any() == chance
    assert any("is not 0" in flag for flag in group.attrs["flags"]) != chance
    assert any("stat-pfwe" in file.name for file in (tmp_path / "maps").iterdir()) == chance


def test_riemannian_distances_are_averaged_as_they_are(tmp_path):
    """They are below -1: Fisher z has no value there."""
    distance = -5.0 + np.random.default_rng(8).standard_normal((6, 1, 30))
    files = write_lights(tmp_path, np.zeros((6, 1, 30)), comparison="riemann")
    for file, row in zip(files, distance):
        subject = store.open(file, "searchlight").load()
        subject["score"][:] = row
        store.write(subject, file, spec="searchlight")
    combine_searchlights(searchlights=files, out=tmp_path / "g.zarr", maps=tmp_path / "maps")
    group = store.open(tmp_path / "g.zarr", "searchlight_group").load()
    np.testing.assert_allclose(group["mean"].values, distance.mean(axis=0), rtol=1e-5)


def test_subjects_on_other_grids_are_refused(tmp_path):
    z = np.random.default_rng(5).standard_normal((2, 1, 50))
    files = write_lights(tmp_path, z)
    files += write_lights(tmp_path, z[:1], affine=np.diag([2.0, 2.0, 2.0, 1.0]), first=9)
    with pytest.raises(InputError, match=r"sub-09.*another grid"):
        combine_searchlights(searchlights=files, out=tmp_path / "g.zarr", maps=tmp_path / "maps")
