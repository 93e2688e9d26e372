"""Confounds: equal to nipype's functions and to closed forms, read by nilearn as fMRIPrep's."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from nilearn.interfaces.fmriprep import load_confounds
from nipype.algorithms import confounds as peer
from scipy import linalg, ndimage

from isocortex.glm import read_confounds
from isocortex.preprocess import confounds as columns_of
from isocortex.preprocess import interfaces, noise_components
from isocortex.preprocess.confounds import (
    expansions,
    motion_outliers,
    root_mean_square_displacement,
    temporal_difference_variance,
)
from isocortex.preprocess.images import as_image
from isocortex.preprocess.masks import crown
from isocortex.preprocess.transforms import rigid_matrix, write_itk_affine

N, N_DUMMY, TR = 90, 2, 2.0


def save(path, values, **options):
    nib.save(as_image(values, np.diag([3.0, 3, 3, 1]), **options), path)
    return str(path)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run with slow and quick noise, its masks, and the table that our nodes make of it."""
    folder = tmp_path_factory.mktemp("confounds")
    rng = np.random.default_rng(9)
    shape = (12, 11, 10)
    slow = np.cumsum(rng.standard_normal((3, N)), axis=1)
    series = 500 + rng.standard_normal((*shape, 3)) @ slow
    series += rng.gamma(2, size=(*shape, 1)) * rng.standard_normal((*shape, N))
    series[..., :N_DUMMY] += 400
    series = series.astype(np.float32)
    brain = np.zeros(shape, bool)
    brain[2:-2, 2:-2, 2:-2] = True
    noise = brain & (rng.random(shape) > 0.4)
    masks = {
        "mask": brain,
        "wm": noise & (np.arange(shape[0]) < 6)[:, None, None],
        "csf": noise & (np.arange(shape[0]) > 7)[:, None, None],
        "crown": crown(brain),
    }
    masks["combined"] = masks["wm"] | masks["csf"]
    series[4, 4, 4] = 700  # does not change at all
    bold = save(folder / "bold.nii", series, repetition_time=TR)
    paths = {name: save(folder / f"{name}.nii", m.astype(np.uint8)) for name, m in masks.items()}
    node = interfaces.NoiseComponents(
        bold=bold, high_pass=100, repetition_time=TR, n_dummy=N_DUMMY, **paths
    )
    components = node.run(cwd=folder).outputs.out_file
    motion = np.cumsum(rng.standard_normal((N, 6)) * [0.1, 0.1, 0.1, 1e-3, 1e-3, 1e-3], axis=0)
    np.savetxt(folder / "motion.par", np.c_[motion[:, 3:], motion[:, :3]], fmt="%.10g")
    displacement = peer.FramewiseDisplacement(
        parameter_source="FSL", in_file=str(folder / "motion.par"), out_file=str(folder / "fd")
    ).run(cwd=folder)
    dvars = interfaces.Dvars(in_file=bold, in_mask=paths["mask"]).run(cwd=folder).outputs
    done = interfaces.AssembleConfounds(
        parameters=str(folder / "motion.par"),
        framewise_displacement=displacement.outputs.out_file,
        dvars=dvars.out_nstd,
        std_dvars=dvars.out_std,
        components=components,
        n_dummy=N_DUMMY,
        fd_threshold=0.9,
        dvars_threshold=1.5,
    ).run(cwd=folder)
    table = pd.read_csv(done.outputs.table, sep="\t", na_values="n/a")
    sidecar = json.loads(Path(done.outputs.sidecar).read_text())
    return series, masks, motion, table, sidecar, paths, bold, folder


def theirs(series, mask, criterion):
    """Components and metadata of nipype's function, from the steady state on."""
    return peer.compute_noise_components(
        series[..., N_DUMMY:],
        [nib.Nifti1Image(mask.astype(np.uint8), np.eye(4))],
        criterion,
        "cosine",
        period_cut=100,
        repetition_time=TR,
    )


@pytest.mark.parametrize(
    ("prefix", "name", "label"),
    [
        ("a_comp_cor", "combined", "combined"),
        ("c_comp_cor", "csf", "CSF"),
        ("w_comp_cor", "wm", "WM"),
        ("t_comp_cor", "mask", "brain"),
        ("edge_comp", "crown", "Edge"),
    ],
)
def test_every_compcor_equals_nipypes(made, prefix, name, label, tmp_path, monkeypatch):
    series, masks, _, table, sidecar, paths, bold, _ = made
    ours = table.filter(regex=rf"^{prefix}_\d\d$").to_numpy()
    mask = masks[name]
    if prefix == "t_comp_cor":
        monkeypatch.chdir(tmp_path)
        node = peer.TCompCor(
            realigned_file=bold,
            mask_files=[paths["mask"]],
            pre_filter="cosine",
            high_pass_cutoff=100,
            repetition_time=TR,
            ignore_initial_volumes=N_DUMMY,
            variance_threshold=0.5,
        )
        done = node.run(cwd=tmp_path).outputs
        mask = np.asarray(nib.load(done.high_variance_masks).dataobj) > 0
        assert 0 < mask.sum() < 0.05 * masks["mask"].sum()
        np.testing.assert_allclose(table["tcompcor"], series[mask].mean(axis=0), rtol=1e-6)
    components, basis, metadata = theirs(series, mask, 24 if prefix == "edge_comp" else 0.5)
    assert ours.shape[1] == components.shape[1] > 0
    assert (ours[:N_DUMMY] == 0).all()
    agree = np.abs(np.sum(ours[N_DUMMY:] * components, axis=0))
    np.testing.assert_allclose(agree, 1, atol=2e-3)
    np.testing.assert_allclose(table.filter(like="cosine")[N_DUMMY:], basis, atol=1e-9)
    for number in range(components.shape[1]):
        entry = sidecar[f"{prefix}_{number:02d}"]
        assert (entry["Mask"], entry["Retained"]) == (label, True)
        for key in ("singular_value", "variance_explained", "cumulative_variance_explained"):
            ours_key = "".join(part.title() for part in key.split("_"))
            np.testing.assert_allclose(entry[ours_key], metadata[key][number], rtol=1e-4)
    method = sidecar[f"{prefix}_00"]["Method"]
    dropped = [
        entry
        for key, entry in sidecar.items()
        if key.startswith("dropped") and (entry["Mask"], entry["Method"]) == (label, method)
    ]
    assert len(dropped) == len(metadata["retained"]) - components.shape[1]
    assert not any(entry["Retained"] for entry in dropped)


def test_columns_are_fmripreps(made):
    series, masks, motion, table, sidecar, *_ = made
    expected = ["tcompcor", "std_dvars", "dvars", "framewise_displacement", "rmsd"]
    for name in (
        *("global_signal", "csf", "white_matter", "csf_wm"),
        *(f"{kind}_{axis}" for kind in ("trans", "rot") for axis in "xyz"),
    ):
        expected += [f"{name}{end}" for end in ("", "_derivative1", "_power2")]
        expected.append(f"{name}_derivative1_power2")
    expected += ["non_steady_state_outlier00", "non_steady_state_outlier01"]
    others = table.filter(regex=r"^(motion_outlier\d\d|cosine\d\d|edge_comp_\d\d|._comp_cor_\d\d)$")
    assert sorted([*expected, *others.columns]) == sorted(table.columns)
    assert set(table.columns) <= set(sidecar)
    for name, mask in (("global_signal", "mask"), ("csf", "csf"), ("white_matter", "wm")):
        np.testing.assert_allclose(table[name], series[masks[mask]].mean(axis=0), rtol=1e-6)
    both = series[masks["combined"]].mean(axis=0, dtype=float)
    np.testing.assert_allclose(table["csf_wm_derivative1_power2"][1:], np.diff(both) ** 2, 1e-4)
    np.testing.assert_allclose(table[["trans_x", "rot_z"]], motion[:, [0, 5]], atol=1e-9)
    step = np.abs(np.diff(motion, axis=0))
    power = step[:, :3].sum(axis=1) + 50 * step[:, 3:].sum(axis=1)
    np.testing.assert_allclose(table["framewise_displacement"][1:], power, rtol=1e-4)
    # nipype counts the constant among floor(2 x duration / period) of them
    assert table.filter(like="cosine").shape[1] == int(2 * (N - N_DUMMY) * TR / 100) - 1


@pytest.mark.parametrize(
    ("compcor", "prefixes"),
    [("anat_combined", "a"), ("anat_separated", "cw"), ("temporal", "t")],
)
def test_nilearn_reads_the_table_as_fmripreps(made, tmp_path, compcor, prefixes):
    *_, sidecar, _, bold, folder = made
    stem = "sub-01_task-x"
    (tmp_path / f"{stem}_desc-confounds_timeseries.tsv").write_bytes(
        (folder / "confounds.tsv").read_bytes()
    )
    (tmp_path / f"{stem}_desc-confounds_timeseries.json").write_text(json.dumps(sidecar))
    image = tmp_path / f"{stem}_space-T1w_desc-preproc_bold.nii.gz"
    nib.save(nib.load(bold), image)
    found, sample = load_confounds(
        str(image),
        strategy=("motion", "wm_csf", "global_signal", "high_pass", "compcor", "scrub"),
        motion="full",
        wm_csf="full",
        global_signal="full",
        compcor=compcor,
        n_compcor=3 if compcor != "anat_separated" else "all",
        scrub=0,
        fd_threshold=0.9,
        demean=False,
    )
    assert "rot_z_derivative1_power2" in found
    assert "white_matter_power2" in found
    for prefix in "acwt":
        assert (f"{prefix}_comp_cor_00" in found) == (prefix in prefixes)
    assert sample is None or len(sample) < N


@pytest.mark.parametrize(
    "wanted",
    [
        *("simple", "scrubbing", "compcor", "motion12+wm_csf4+global_signal2"),
        *("motion24+wm_csf8+global_signal4", "motion6+acompcor2+temporal_compcor2"),
        "temporal_compcor30%+scrub(fd=0.9)",
    ],
)
def test_every_strategy_finds_its_columns(made, wanted):
    folder = made[-1]
    chosen, dropped = read_confounds(folder / "confounds.tsv", wanted, n_volumes=N)
    assert not dropped
    assert np.isfinite(chosen.to_numpy()).all()
    assert sum(name.startswith("non_steady_state") for name in chosen) == N_DUMMY


def test_dvars_equal_nipypes(tmp_path, monkeypatch):
    def yule_walker(x, order, rxx=None):
        x = x - x.mean()
        r = np.array([np.sum(x[k:] * x[: len(x) - k]) for k in range(order + 1)]) / len(x)
        return linalg.solve_toeplitz(r[:order], r[1:])

    monkeypatch.setattr(peer, "_AR_est_YW", yule_walker)
    monkeypatch.setattr(columns_of, "_VOXELS_AT_A_TIME", 100)
    rng = np.random.default_rng(4)
    series = 500 + np.cumsum(rng.standard_normal((8, 8, 8, 60)), axis=-1).astype(np.float32)
    mask = rng.random((8, 8, 8)) > 0.3
    save(tmp_path / "s.nii", series)
    save(tmp_path / "m.nii", mask.astype(np.uint8))
    std, plain, voxelwise = peer.compute_dvars(
        tmp_path / "s.nii", tmp_path / "m.nii", remove_zerovariance=True, variance_tol=1e-7
    )
    ours = temporal_difference_variance(series[mask])
    for found, expected in zip(ours, (plain, std, voxelwise), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_standardised_dvars_of_noise_is_one():
    series = 1000 + np.random.default_rng(6).standard_normal((4000, 200))
    _, std_dvars, voxelwise = temporal_difference_variance(series)
    assert abs(std_dvars.mean() - 1) < 0.02
    assert abs(voxelwise.mean() - 1) < 0.02
    plain, *rest = temporal_difference_variance(np.full((5, 9), 3.0))
    assert (plain == 0).all()
    assert np.isnan(rest).all()


def test_root_mean_square_displacement_is_that_of_points_in_a_sphere():
    """The closed form against the displacement of points drawn inside the sphere."""
    rng = np.random.default_rng(3)
    motion = rng.standard_normal((4, 6)) * [1, 1, 1, 0.02, 0.02, 0.02]
    points = rng.standard_normal((200_000, 3))
    points *= 80 * rng.random((200_000, 1)) ** (1 / 3) / np.linalg.norm(points, axis=1)[:, None]
    found = root_mean_square_displacement(motion)
    assert np.isnan(found[0])
    poses = [rigid_matrix(row, np.zeros(3)) for row in motion]
    for t in (1, 2, 3):
        change = poses[t] @ np.linalg.inv(poses[t - 1])
        moved = points @ change[:3, :3].T + change[:3, 3] - points
        np.testing.assert_allclose(found[t], np.sqrt((moved**2).sum(axis=1).mean()), rtol=3e-3)
    shift = np.zeros((3, 6))
    shift[1:, 1] = 2.5
    np.testing.assert_allclose(root_mean_square_displacement(shift)[1:], [2.5, 0], atol=1e-12)


def test_components_of_odd_masks():
    rng = np.random.default_rng(1)
    basis = noise_components.cosine_basis(40, repetition_time=TR, period=20)
    few = noise_components.noise_components(rng.random((3, 42)), basis, criterion=6, n_dummy=2)
    assert few.components.shape == (42, 3)  # no more components than voxels
    np.testing.assert_allclose(few.components[2:].T @ basis, 0, atol=1e-7)
    assert noise_components.noise_components(np.ones((9, 40)), basis, criterion=0.5).n_kept == 0
    short = noise_components.cosine_basis(10, repetition_time=TR, period=128)
    assert short.shape == (10, 0)
    # of what the filter left there are no more than 40 - 7 - 1
    every = noise_components.noise_components(rng.random((99, 40)), basis, criterion=40)
    assert every.n_kept == 40 - basis.shape[1] - 1
    largest = np.abs(every.components).argmax(axis=0)
    assert (every.components[largest, np.arange(every.n_kept)] > 0).all()


def test_masks_of_noise_leave_out_what_a_volume_does_not_reach(tmp_path):
    """A head that nods out of a slab: the zeros of that volume are in no mask."""
    shape = (24, 24, 12)
    index = np.indices(shape).T - np.array([11.5, 11.5, 5.5])
    brain = (np.linalg.norm(index, axis=-1) < 9).T
    volume = np.where(brain, 900, 300).astype(np.float32)
    series = volume[..., None] + np.random.default_rng(3).normal(0, 5, (*shape, 4))
    motion = np.tile(np.eye(4)[:3].ravel(), (4, 1))
    motion[2, 11] = 6.0  # mm upwards: two slices are out of reach
    pd.DataFrame(motion).to_csv(tmp_path / "motion.tsv", sep="\t", index=False)
    to_t1w = str(write_itk_affine(tmp_path / "to_t1w.txt", np.eye(4)))
    mask = save(tmp_path / "t1w_mask.nii", brain.astype(np.uint8))
    run = interfaces.ResampleSeries(
        in_file=save(tmp_path / "s.nii", series.astype(np.float32), repetition_time=TR),
        reference=save(tmp_path / "r.nii", volume),
        matrices=str(tmp_path / "motion.tsv"),
        to_t1w=to_t1w,
        t1w_mask=mask,
        spaces=["T1w"],
        resolution=3.0,
        repetition_time=TR,
    )
    done = run.run(cwd=tmp_path).outputs
    tissue = {
        name: save(tmp_path / f"{name}.nii", (brain * share).astype(np.float32))
        for name, share in (("gm", 0.5), ("wm", 0.3), ("csf", 0.2))
    }
    options = {"mask": done.native_mask, "to_t1w": to_t1w, **tissue}
    found = interfaces.NoiseMasks(**options, covered=done.native_covered).run(cwd=tmp_path).outputs
    values = np.asarray(nib.load(done.native_bold).dataobj)
    band = np.asarray(nib.load(found.crown).dataobj) > 0
    assert band.sum() > 500
    assert not band[..., 10:].any()
    assert (values[band] > 100).all()
    bare = interfaces.NoiseMasks(**options).run(cwd=tmp_path).outputs
    assert (values[np.asarray(nib.load(bare.crown).dataobj) > 0] == 0).any()


def test_crown_is_a_band_of_two_voxels():
    brain = np.zeros((11, 11, 11), bool)
    brain[5, 5, 5] = True
    distance = ndimage.distance_transform_edt(~brain)
    np.testing.assert_array_equal(crown(brain), (distance > 0) & (distance <= 2))


def test_expansions_and_outliers():
    columns = expansions(np.array([1.0, 3.0, 2.0]), "trans_x")
    assert list(columns) == [
        "trans_x", "trans_x_derivative1", "trans_x_power2", "trans_x_derivative1_power2",
    ]  # fmt: skip
    np.testing.assert_array_equal(columns["trans_x_derivative1"], [np.nan, 2, -1])
    np.testing.assert_array_equal(columns["trans_x_derivative1_power2"], [np.nan, 4, 1])
    rows = motion_outliers(
        np.array([np.nan, 0.6, 0.1, 0.7, 0.1, 0.1]),
        np.array([np.nan, 1.0, 9.0, 1.0, 1.6, 1.0]),
        fd_threshold=0.5,
        dvars_threshold=1.5,
        n_dummy=2,
    )
    # volume 2 is brighter than nothing but the dummy before it
    np.testing.assert_array_equal(rows, [3, 4])
    moved = np.array([np.nan, 0.1, 0.6])
    options = {"fd_threshold": 0.5, "dvars_threshold": 1.5}
    rows = motion_outliers(moved, np.array([np.nan, 1.6, 1.0]), **options)
    np.testing.assert_array_equal(rows, [1, 2])
    np.testing.assert_array_equal(motion_outliers(moved, moved, **options, n_dummy=2), [2])
