"""Coregistration, normalisation and brain masks against a planted truth and closed forms."""

import dataclasses
import functools
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from isocortex import bids
from isocortex.errors import InputError
from isocortex.phantom import anatomy as phantom
from isocortex.phantom import scanner
from isocortex.preprocess import boundary as edge
from isocortex.preprocess import interfaces, preprocess_bold
from isocortex.preprocess import registration as reg
from isocortex.preprocess.images import Timing, as_image
from isocortex.preprocess.masks import dice, signal_mask
from isocortex.preprocess.normalisation import (
    folding,
    jacobian_determinant,
    normalisation_quality,
)
from isocortex.preprocess.template_only import carry_tissues, normalise_reference
from isocortex.preprocess.tissues import brain_mask
from isocortex.preprocess.transforms import (
    AffineTransform,
    DisplacementField,
    apply_chain,
    grid_points,
    read_itk_affine,
    rigid_matrix,
)
from isocortex.preprocess.workflows import init_bold_wf

from .heads import FLIPPED, OBLIQUE, moved_series, save


@functools.cache
def subject():
    """The demo study's head: a T1w of 3 mm and a BOLD reference of 4 mm in another pose."""
    rng = np.random.default_rng(4)
    head = phantom.Anatomy(np.random.default_rng(3))
    shape, affine = head.t1w_grid(3.0)
    points = phantom.grid_points(shape, affine)
    tissues = head.tissues(points)
    t1w = phantom.make_t1w(head, tissues, points, rng, noise=1.0).astype(np.float32)
    brain = tissues["gm"] + tissues["wm"] + tissues["csf"] > 0.5
    grid, pose = scanner.make_session(head, rng, voxel_size=4.0)
    epi = scanner.epi_coefficients(head, tissues, affine, voxel_size=4.0)
    there = AffineTransform(np.linalg.inv(pose)).apply(grid_points(grid.shape, grid.affine))
    values = phantom.sample(epi, affine, there).reshape(grid.shape) * 700
    values = np.abs(values + 10 * rng.standard_normal(grid.shape)).astype(np.float32)
    inside = reg.resample_volume(brain.astype(np.float32), affine, there, grid.shape, order=1)
    return SimpleNamespace(
        head=head,
        pose=pose,
        t1w=as_image(t1w, affine),
        brain=brain,
        white=as_image(tissues["wm"], affine),
        grey=as_image(tissues["gm"], affine),
        reference=as_image(values, grid.affine),
        inside=inside > 0.5,
    )


@functools.cache
def boundary():
    return edge.white_matter_boundary(subject().white, subject().grey)


def error_mm(matrix, *, of=None):
    """Largest distance over the brain between where two poses put it."""
    s = subject()
    points = grid_points(s.brain.shape, s.t1w.affine)[s.brain.ravel()][::50]
    apart = AffineTransform(matrix).apply(points) - AffineTransform(of or s.pose).apply(points)
    return np.linalg.norm(apart, axis=1).max()


def away(shift, degrees):
    """The true pose, then an offset."""
    offset = np.r_[shift, np.radians(degrees)]
    return rigid_matrix(offset, np.array([0.0, -15, 10])) @ subject().pose


# --- the boundary ----------------------------------------------------------------------------


@pytest.mark.parametrize("affine", [OBLIQUE, FLIPPED], ids=["oblique", "flipped"])
def test_boundary_of_a_ball_is_its_surface(affine):
    affine = affine @ np.diag([0.5, 0.5, 0.5, 1])
    shape = (56, 56, 56)
    centre = affine[:3, :3] @ np.full(3, 28.0) + affine[:3, 3]
    radius = np.linalg.norm(grid_points(shape, affine) - centre, axis=1).reshape(shape)
    white = np.clip((30.5 - radius) / 2, 0, 1).astype(np.float32)
    grey = np.clip((40 - radius) / 2, 0, 1).astype(np.float32) - white
    found = edge.white_matter_boundary(as_image(white, affine), as_image(grey, affine))
    assert len(found.points) > 3000
    out = found.points - centre
    # one half of the probability is at 29.5 mm; voxels are 2 mm
    np.testing.assert_allclose(np.linalg.norm(out, axis=1), 29.5, atol=0.2)
    cosine = (out * found.normals).sum(axis=1) / np.linalg.norm(out, axis=1)
    assert cosine.min() > np.cos(np.radians(15))


def test_no_white_matter_no_boundary():
    empty = as_image(np.zeros((12, 12, 12), np.float32), FLIPPED)
    assert len(edge.white_matter_boundary(empty, empty).points) == 0


def test_cost_is_the_mean_of_one_plus_tanh():
    values = np.zeros((20, 20, 20), np.float32)
    values[:10], values[10:] = 90, 110
    image = as_image(values, np.eye(4))
    points = np.column_stack([np.full(9, 9.5), np.linspace(5, 14, 9), np.full(9, 9.0)])
    normals = np.tile([1.0, 0, 0], (9, 1))
    right = edge.boundary_cost(image, edge.Boundary(points, normals), np.eye(4))
    wrong = edge.boundary_cost(image, edge.Boundary(points, -normals), np.eye(4))
    # 20 % of contrast, at half a percent's slope
    assert right == pytest.approx(1 + np.tanh(0.5 * -20), abs=1e-7)
    assert wrong == pytest.approx(1 + np.tanh(0.5 * 20), abs=1e-7)
    outside = np.eye(4)
    outside[0, 3] = 100
    assert edge.boundary_cost(image, edge.Boundary(points, normals), outside) == 1.0


# --- coregistration --------------------------------------------------------------------------


def test_boundary_is_better_than_mutual_information_alone():
    s = subject()
    start = reg.coregister(s.reference, s.inside, s.t1w, s.brain, seed=1)
    found = edge.refine(s.reference, boundary(), start, mask=s.inside)
    assert found.accepted
    assert found.cost_after < found.cost_before
    assert error_mm(found.matrix) < min(0.2, 0.8 * error_mm(start)), "mm"


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_planted_offsets_are_found_back(seed):
    rng = np.random.default_rng(seed)
    start = away(rng.uniform(-3, 3, 3), rng.uniform(-2, 2, 3))
    found = edge.refine(subject().reference, boundary(), start, mask=subject().inside)
    assert found.accepted
    assert found.moved_mm > 1
    assert error_mm(found.matrix) < 0.25, "mm"


def test_slab_is_found_and_two_slices_are_not_tried():
    s = subject()
    start = away([1.5, -1, 1], [1, -1, 0.5])
    for slices, wanted in ((slice(16, 25), True), (slice(16, 17), False)):
        affine = np.array(s.reference.affine)
        affine[:3, 3] += affine[:3, 2] * slices.start
        slab = as_image(np.asarray(s.reference.dataobj)[..., slices], affine)
        found = edge.refine(slab, boundary(), start, mask=s.inside[..., slices])
        if wanted:
            assert found.accepted
            assert error_mm(found.matrix) < 0.9, "mm, also where the slab does not reach"
        else:
            # a head of which the image holds next to nothing
            few = dataclasses.replace(
                boundary(), points=boundary().points + 200, normals=boundary().normals
            )
            found = edge.refine(slab, few, start, mask=s.inside[..., slices])
            assert not found.accepted
            assert np.isnan(found.cost_before)
            np.testing.assert_array_equal(found.matrix, start)


def bad_cases():
    s = subject()
    values = np.asarray(s.reference.dataobj)
    noise = np.random.default_rng(8).normal(700, 60, values.shape).astype(np.float32)
    return {
        "no contrast": (noise * s.inside, away([1, 1, 1], [1, 0, 0])),
        "contrast of a T1w": ((1500 - values) * s.inside, s.pose),
        "too far": (values, away([0, 14, 0], [0, 0, 0])),
        "no better": (values, None),
    }


@pytest.mark.parametrize("name", ["no contrast", "contrast of a T1w", "too far", "no better"])
def test_a_bad_refinement_is_refused(name):
    s = subject()
    values, start = bad_cases()[name]
    image = as_image(values.astype(np.float32), s.reference.affine)
    if start is None:
        start = edge.refine(image, boundary(), s.pose, mask=s.inside).matrix
        start = edge.refine(image, boundary(), start, mask=s.inside).matrix
    found = edge.refine(image, boundary(), start, mask=s.inside)
    assert not found.accepted, found.reason
    assert found.reason
    np.testing.assert_array_equal(found.matrix, start)


def test_seed_of_zero_is_a_seed():
    """ANTs starts from the clock then."""
    fixed, moving = reg.load_template(6.0), reg.load_template(6.0, "GM")
    options = {"aff_iterations": (10,), "aff_shrink_factors": (1,), "aff_smoothing_sigmas": (0,)}
    found = [
        reg.linear_part(
            reg.register(fixed, moving, "Rigid", seed=0, aff_random_sampling_rate=0.2, **options)[0]
        )
        for _ in range(2)
    ]
    np.testing.assert_array_equal(*found)
    assert np.abs(found[0] - np.eye(4)).max() > 1e-3


def test_coregistration_says_what_it_took(tmp_path):
    s = subject()
    flat = np.where(s.inside, 700, 0) + np.random.default_rng(2).normal(0, 5, s.inside.shape)
    files = {
        "reference": (np.maximum(flat, 0).astype(np.float32), s.reference.affine),
        "t1w": (np.asarray(s.t1w.dataobj), s.t1w.affine),
        "mask": (s.brain.astype(np.uint8), s.t1w.affine),
        "gm": (np.asarray(s.grey.dataobj), s.t1w.affine),
        "wm": (np.asarray(s.white.dataobj), s.t1w.affine),
    }
    paths = {name: str(save(tmp_path / f"{name}.nii", *what)) for name, what in files.items()}
    done = interfaces.Coregister(**paths, seed=1).run(cwd=tmp_path).outputs
    # a brain without any contrast: mutual information has its outline, the boundary nothing
    assert done.quality["coregistration_accepted"] == "mi"
    assert done.quality["coregistration_cost_before"] > 0.9
    assert done.quality["dice_t1w_mask"] > 0.9
    assert error_mm(read_itk_affine(done.to_t1w).matrix) < 6


# --- masks -----------------------------------------------------------------------------------


def test_brain_mask_of_an_oblique_flipped_t1w():
    """The T1w's own head, sampled on another grid: the mask is the truth's, wherever axes point."""
    s = subject()
    turn = rigid_matrix(np.array([0, 0, 0, 0.2, -0.1, 0.1]), s.head.centre)
    affine = (
        turn
        @ s.t1w.affine
        @ np.array([[-1.0, 0, 0, s.t1w.shape[0] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    )
    grid = as_image(np.zeros(s.t1w.shape, np.uint8), affine)
    head = as_image(np.maximum(reg.warp(s.t1w, [], grid, order=1), 0), affine)
    wanted = reg.warp(as_image(s.brain.astype(np.float32), s.t1w.affine), [], grid) > 0.5
    head = as_image(reg.correct_bias(head), affine)
    start = reg.align_head_to_template(head, seed=1)
    found, _ = brain_mask(head, start, seed=1)
    # the demo's head has a shell of CSF around the brain that the mask leaves out
    assert dice(found, wanted) > 0.93
    tissue = as_image(np.asarray(s.white.dataobj) + np.asarray(s.grey.dataobj), s.t1w.affine)
    matter = reg.warp(tissue, [], grid) > 0.5
    assert (found & matter).sum() > 0.98 * matter.sum()
    assert (found & ~wanted).sum() < 0.01 * wanted.sum()


def test_dropout_is_no_signal_and_holes_are_filled():
    s = subject()
    values = np.array(s.reference.dataobj)
    index = np.argwhere(s.inside)
    low = index[index[:, 2].argmin()]
    distance = np.linalg.norm((np.indices(values.shape).T - low).T, axis=0)
    gone = (distance < 4) & s.inside
    values[gone] *= 0.05
    middle = tuple(np.round(index.mean(axis=0)).astype(int))
    values[middle] = 0
    found = signal_mask(values, s.inside)
    assert found[middle]
    core = (distance < 3) & s.inside
    assert (found & core).sum() < 0.25 * core.sum()
    kept = s.inside & (distance > 6)
    assert (found & kept).sum() > 0.995 * kept.sum()
    # with the T1w's mask carried to the reference, this is the brain of the run
    carried = s.inside & found
    assert dice(carried, s.inside & ~gone) > 0.95


def test_brain_of_a_run_is_the_same_in_every_space(tmp_path):
    s = subject()
    turn = rigid_matrix(np.array([3.0, -2, 4, 0.1, 0.05, -0.08]), s.head.centre)
    values = np.asarray(s.reference.dataobj)
    series = np.stack([values] * 5, axis=-1)
    gone = np.indices(values.shape)[0] < 19
    signal = signal_mask(np.where(gone, 0.02 * values, values), s.inside)
    inputs = {
        "in_file": save(tmp_path / "s.nii", series, s.reference.affine, repetition_time=2.0),
        "reference": save(tmp_path / "r.nii", values, s.reference.affine),
        "signal": save(tmp_path / "g.nii", signal.astype(np.uint8), s.reference.affine),
        "t1w_mask": save(tmp_path / "m.nii", s.brain.astype(np.uint8), turn @ s.t1w.affine),
        "to_t1w": reg.write_itk_affine(tmp_path / "to.txt", s.pose @ np.linalg.inv(turn)),
        "matrices": tmp_path / "motion.tsv",
    }
    names = [f"m{row}{column}" for row in range(3) for column in range(4)]
    row = "\t".join(str(v) for v in np.eye(4)[:3].ravel())
    inputs["matrices"].write_text("\n".join(["\t".join(names), *([row] * 5)]) + "\n")
    done = interfaces.ResampleSeries(
        **{name: str(path) for name, path in inputs.items()},
        spaces=["T1w"],
        resolution=4.0,
        repetition_time=2.0,
    ).run(cwd=tmp_path)
    native, other = nib.load(done.outputs.native_mask), nib.load(done.outputs.mask[0])
    assert not (np.asarray(native.dataobj) > 0)[:18].any()
    chain = [AffineTransform(turn @ np.linalg.inv(s.pose))]
    soft = as_image(np.asarray(other.dataobj, np.float32), other.affine)
    back = reg.warp(soft, chain, native) > 0.5
    assert dice(back, np.asarray(native.dataobj) > 0) > 0.96


# --- normalisation ---------------------------------------------------------------------------


def test_jacobian_of_a_linear_field_and_of_a_fold():
    points = grid_points((12, 11, 10), OBLIQUE)
    linear = np.array([[0.1, 0.02, 0], [-0.03, -0.2, 0.05], [0.01, 0, 0.3]])
    field = DisplacementField((points @ linear.T).reshape(12, 11, 10, 3), OBLIQUE)
    wanted = np.linalg.det(np.eye(3) + linear)
    np.testing.assert_allclose(jacobian_determinant(field), wanted, rtol=2e-4)
    template = reg.load_template(4.0)
    across = np.zeros((*template.shape, 3), np.float32)
    where = grid_points(template.shape, template.affine)[:, 0].reshape(template.shape)
    # x + u runs backwards between -20 and 20 mm
    across[..., 0] = -1.5 * np.clip(where, -20, 20)
    found = folding([DisplacementField(across, template.affine), AffineTransform(np.eye(4))])
    assert found["jacobian_min"] == pytest.approx(-0.5, abs=1e-4)
    assert 25 < found["jacobian_folded_percent"] < 50
    assert folding([AffineTransform(np.diag([2.0, 1, 1, 1]))])["jacobian_folded_percent"] == 0


def test_jacobian_equals_ants(tmp_path):
    import ants

    rng = np.random.default_rng(1)
    affine = np.diag([3.0, 3, 3, 1])
    shape = (16, 18, 14)
    displacement = ndimage.gaussian_filter(rng.standard_normal((*shape, 3)), (2, 2, 2, 0)) * 12
    field = DisplacementField(displacement.astype(np.float32), affine)
    lps = as_image((displacement * [-1, -1, 1])[:, :, :, None].astype(np.float32), affine)
    lps.header.set_intent("vector")
    nib.save(lps, tmp_path / "warp.nii.gz")
    domain = reg.to_ants(as_image(np.ones(shape, np.float32), affine))
    theirs = ants.create_jacobian_determinant_image(domain, str(tmp_path / "warp.nii.gz")).numpy()
    ours = jacobian_determinant(field)
    core = (slice(3, -3),) * 3
    assert np.ptp(theirs[core]) > 0.1
    # ITK takes differences of a higher order
    assert np.abs(ours - theirs)[core].max() < 0.05
    assert np.corrcoef(ours[core].ravel(), theirs[core].ravel())[0, 1] > 0.99


def test_normalisation_is_good_or_to_be_looked_at(caplog):
    template = np.asarray(reg.load_template(4.0).dataobj)
    brain = np.asarray(reg.load_template(4.0, "mask").dataobj) > 0.5
    grey = np.asarray(reg.load_template(4.0, "GM").dataobj)
    good = normalisation_quality(template, [], mask=brain, grey=grey, resolution=4.0)
    assert good["normalisation"] == "good"
    for key in ("dice_template_mask", "dice_template_grey", "template_correlation"):
        assert good[key] == pytest.approx(1)
    assert not caplog.records
    image, mask, shifted = (np.roll(a, 4, axis=1) for a in (template, brain, grey))
    bad = normalisation_quality(image, [], mask=mask, grey=shifted, resolution=4.0)
    assert bad["normalisation"].startswith("check: Dice of the brain masks 0.")
    assert "grey matter" in bad["normalisation"]
    assert "to be looked at" in caplog.text


# --- no T1w ----------------------------------------------------------------------------------


def test_a_run_without_a_t1w_lies_on_the_template():
    s = subject()
    values = np.asarray(s.reference.dataobj)
    forward, inverse = normalise_reference(s.reference, s.inside, seed=1, resolution=4.0)
    inside = np.argwhere(s.brain)[::40]
    in_t1w = inside @ s.t1w.affine[:3, :3].T + s.t1w.affine[:3, 3]
    found = apply_chain(forward, s.head.to_template(in_t1w))
    error = np.linalg.norm(found - AffineTransform(s.pose).apply(in_t1w), axis=1)
    assert np.median(error) < 2.5, "mm"
    assert np.percentile(error, 95) < 5, "mm"
    own = as_image(s.inside.astype(np.float32), s.reference.affine)
    brain, tissues = carry_tissues(inverse, own, resolution=4.0)
    assert dice(brain, s.inside) > 0.95
    np.testing.assert_allclose(sum(tissues.values())[brain], 1, atol=1e-4)
    # the stand-in tissues are where the image has their contrast: CSF brightest, white darkest
    level = {name: np.average(values, weights=share) for name, share in tissues.items()}
    assert level["wm"] < level["gm"] < level["csf"]


def test_workflow_without_a_t1w_asks_for_none(tmp_path):
    workflow = init_bold_wf(
        timing=Timing(2.0, None, 2),
        spaces=["MNI152NLin2009aSym"],
        resolution=4.0,
        slice_timing=None,
        interpolation="cubic",
        dummy_scans=0,
        fd_threshold=0.5,
        dvars_threshold=1.5,
        high_pass=128,
        compcor=3,
        series_gb=0.01,
        seed=1,
        has_t1w=False,
    )
    names = workflow.list_node_names()
    assert "normalise_reference" in names
    assert "coregister" not in names
    wanted = set(workflow.get_node("outputnode").outputs.copyable_trait_names())
    assert {"to_template", "from_template"} <= wanted
    assert "to_t1w" not in wanted
    fed = {
        target.name for source, target in workflow._graph.out_edges(workflow.get_node("inputnode"))
    }
    assert fed == {"read"}


def test_t1w_space_without_a_t1w_is_an_error(tmp_path):
    series = moved_series(FLIPPED, [[0.0] * 6] * 6, np.zeros(3), shape=(12, 12, 12), noise=5.0)
    bold = save(tmp_path / "bold.nii", series, repetition_time=2.0)
    options = {"spaces": ["T1w"], "dummy_scans": 0, "slice_timing": False}
    with pytest.raises(InputError, match="sub-07 has no T1w: add it, or take T1w out of"):
        preprocess_bold(
            bold,
            sidecars=[],
            anatomy={},
            subject="07",
            run="func/x",
            outputs={},
            options=options,
            seed=1,
            log=tmp_path / "x.log",
        )


def test_t1w_of_all_sessions_belong_to_the_subject(tmp_path):
    for session in ("a", "b"):
        folder = tmp_path / "sub-01" / f"ses-{session}"
        for kind, name in (("anat", "T1w"), ("func", "task-x_bold")):
            (folder / kind).mkdir(parents=True)
            (folder / kind / f"sub-01_ses-{session}_{name}.nii.gz").write_bytes(b"")
    found = bids.index_raw(tmp_path)["01"]
    assert [path.name for path in found.t1w] == [
        "sub-01_ses-a_T1w.nii.gz",
        "sub-01_ses-b_T1w.nii.gz",
    ]
