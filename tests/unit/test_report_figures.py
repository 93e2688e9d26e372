"""The computations behind the figures, against closed forms and peers."""

from __future__ import annotations

import base64
import io
import re
from itertools import pairwise

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from scipy.spatial.distance import pdist, squareform
from scipy.stats import ortho_group, percentileofscore

from isocortex.errors import InputError
from isocortex.report.brain import Backdrop, Grid, mosaic, project, slice_positions
from isocortex.report.drawing import (
    file_uri,
    new_figure,
    number_clip_paths,
    predictor_colours,
    read_thumbnails,
    report_style,
    svg_uri,
)
from isocortex.report.matrices import (
    _outline,
    align,
    classical_mds,
    metric_mds,
    order_by_similarity,
    order_stimuli,
    percentiles,
    rdm_figure,
    square,
)
from isocortex.report.study_geometry import reorder
from isocortex.report.study_persistence import _last_change


def test_classical_mds_recovers_points_in_the_plane():
    points = np.random.default_rng(0).standard_normal((12, 2))
    squared = squareform(pdist(points)) ** 2
    found, share = classical_mds(squared)
    np.testing.assert_allclose(squareform(pdist(found)) ** 2, squared, atol=1e-9)
    assert share == pytest.approx(1.0)


def test_classical_mds_takes_negative_and_missing_dissimilarities():
    rng = np.random.default_rng(1)
    matrix = squareform(rng.standard_normal(15))
    matrix[0, 1] = matrix[1, 0] = np.nan
    found, share = classical_mds(matrix)
    assert np.isfinite(found).all()
    assert 0 < share <= 1


def test_align_undoes_rotation_reflection_scale_and_shift():
    rng = np.random.default_rng(2)
    points = rng.standard_normal((20, 2))
    turned = [
        gain * points @ ortho_group.rvs(2, random_state=seed) + rng.standard_normal(2)
        for seed, gain in ((0, 1.0), (1, 3.0), (2, 0.2))
    ]
    first, *others = align(turned)
    assert np.linalg.norm(first) == pytest.approx(1.0)
    for other in others:
        np.testing.assert_allclose(other, first, atol=1e-9)


def test_percentiles_agree_with_scipy():
    values = np.random.default_rng(3).integers(0, 8, 45).astype(float)
    ours = squareform(percentiles(squareform(values)))
    ranks = np.array([percentileofscore(values, value, kind="mean") for value in values])
    # scipy counts i / n, ours (i - 1) / (n - 1) on the mean rank: one linear map of the other.
    expected = (ranks / 100 * 45 + 0.5 - 1) / 44 * 100
    np.testing.assert_allclose(ours, expected, atol=1e-9)


def test_square_joins_by_stimulus_not_by_position():
    order = ["c", "a", "b"]
    matrix = square(np.array([1.0, 2.0, 3.0]), ["a", "a", "b"], ["b", "c", "c"], order)
    np.testing.assert_array_equal(matrix, [[0, 2, 3], [2, 0, 1], [3, 1, 0]])
    matrix = square(np.array([1.0]), ["a"], ["b"], order)
    assert np.isnan(matrix[0, 1])


@pytest.mark.parametrize(
    ("names", "given", "categories"),
    [
        (["face1", "house1", "face2", "house2"], None, ("face", "face", "house", "house")),
        (["x/1", "y/1", "x/2", "y/2"], None, ("x", "x", "y", "y")),
        (["1", "2", "3", "4"], dict(zip("1234", "abab")), ("a", "a", "b", "b")),
        (["1", "2", "3", "4"], dict(zip("1234", "1234")), ()),
        (["im01", "im02", "im03"], None, ()),
    ],
)
def test_stimuli_are_ordered_by_category(names, given, categories):
    order = order_stimuli(names, given)
    assert order.categories == categories
    assert sorted(order.names) == sorted(names)
    runs = order.groups
    assert len(runs) == len(set(categories))


def _pixels(uri: str) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1]))) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def _red(pixels: np.ndarray) -> np.ndarray:
    return (pixels[..., 0] > 200) & (pixels[..., 1] < 60) & (pixels[..., 2] < 60)


@pytest.mark.parametrize("flip", [1.0, -1.0])
def test_mosaic_draws_left_on_the_left_whatever_the_storage_order(flip):
    affine = np.diag([flip * 4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = [-40.0 * flip, -40.0, -40.0]
    shape = (21, 21, 21)
    indices = np.stack(np.nonzero(np.ones(shape)))
    grid = Grid(affine, shape, indices, "T1w")
    world = nib.affines.apply_affine(affine, indices.T)
    right = (world[:, 0] > 16) & (np.abs(world[:, 2]) < 30)
    values = np.where(right, 0.0, np.nan)
    canonical = np.diag([4.0, 4.0, 4.0, 1.0])
    canonical[:3, 3] = -40.0
    ground = Backdrop(np.full(shape, 0.6, np.float32), canonical, "a block")
    with report_style():
        uri = mosaic(
            grid, values, ground=ground, slices=1, label="side", colours={"one": "#ff0000"}
        )
    pixels = _pixels(uri)
    grey = np.abs(pixels - 153).max(axis=2) < 12
    body = slice(0, int(0.8 * pixels.shape[0]))
    red = np.flatnonzero(_red(pixels)[body].any(axis=0))
    drawn = np.flatnonzero((grey | _red(pixels))[body].sum(axis=0) > 50)
    assert red.min() > drawn.min() + 0.6 * (drawn.max() - drawn.min())


def test_slices_lie_inside_the_voxels_that_carry_a_value():
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    indices = np.stack(np.nonzero(np.ones((5, 5, 50))))
    grid = Grid(affine, (5, 5, 50), indices, "T1w")
    values = np.where((indices[2] > 20) & (indices[2] < 30), 1.0, np.nan)
    z = slice_positions(grid, values, 4)
    assert len(z) == 4
    assert z.min() > 40
    assert z.max() < 60


def test_one_slice_is_drawn_once():
    indices = np.stack(np.nonzero(np.ones((40, 20, 1))))
    grid = Grid(np.diag([3.5, 3.75, 10.0, 1.0]), (40, 20, 1), indices, "T1w")
    assert slice_positions(grid, np.ones(800), 14).tolist() == [0.0]
    thin = Grid(grid.affine, (40, 20, 3), np.stack(np.nonzero(np.ones((40, 20, 3)))), "T1w")
    assert len(slice_positions(thin, np.ones(2400), 14)) == 3


def test_projection_keeps_side_and_category():
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = [-90, -126, -72]
    shape = (46, 55, 46)
    indices = np.stack(np.nonzero(np.ones(shape)))
    grid = Grid(affine, shape, indices, "MNI152NLin2009aSym")
    x = nib.affines.apply_affine(affine, indices.T)[:, 0]
    found = project(grid, np.where(x < 0, 0.0, 1.0), categories=True)
    for side, value in (("left", 0.0), ("right", 1.0)):
        texture = found[side]
        assert texture.shape == (10242,)
        assert np.mean(texture[np.isfinite(texture)] == value) > 0.95
    found = project(grid, np.where(x < 0, 0.25, np.nan), categories=False)
    inside = found["left"][np.isfinite(found["left"])]
    assert inside.size > 9000
    np.testing.assert_allclose(inside, 0.25, atol=1e-5)
    assert np.isfinite(found["right"]).mean() < 0.1


def test_thumbnails_stand_in_the_order_of_the_stimuli(tmp_path):
    colours = {"a": (255, 0, 0), "b": (0, 0, 255)}
    stimuli = {}
    for name, colour in colours.items():
        Image.new("RGB", (80, 50), colour).save(tmp_path / f"{name}.png")
        stimuli[name] = tmp_path / f"{name}.png"
    thumbnails = read_thumbnails(stimuli, ["a", "b", "c"])
    assert set(thumbnails) == {"a", "b"}
    assert thumbnails["a"].shape == (72, 72, 3)
    matrix = np.array([[0.0, 1.0], [1.0, 0.0]])
    with report_style():
        pixels = _pixels(
            rdm_figure({"V1": matrix}, order_stimuli(["b", "a"]), thumbnails=thumbnails)
        )
    red = np.argwhere(_red(pixels))
    blue = np.argwhere((pixels[..., 2] > 200) & (pixels[..., :2].max(axis=2) < 60))
    # Along the top a is left of b, along the side above it.
    assert red[:, 1].max() < blue[:, 1].max()
    assert red[:, 0].max() < blue[:, 0].max()


def test_stimuli_without_images_stand_by_name_where_they_can_be_read():
    def drawn(n, prefix):
        matrix = squareform(np.arange(n * (n - 1) / 2))
        order = order_stimuli([f"{prefix} {k:03d}" for k in range(n)])
        with report_style():
            return rdm_figure({"V1": matrix}, order, thumbnails={})

    assert drawn(8, "face") != drawn(8, "shoe")
    assert drawn(120, "face") == drawn(120, "shoe")


def test_layers_of_a_model_get_different_colours():
    names = [f"net/layer{n}" for n in range(8)] + ["gabor/energy", "pixels/rgb"]
    colours = predictor_colours(names)
    assert list(colours) == names
    assert len(set(colours.values())) == len(names)


def test_metric_mds_recovers_points_in_the_plane():
    points = np.random.default_rng(4).standard_normal((12, 2))
    distances = squareform(pdist(points))
    found, stress = metric_mds(distances)
    assert stress < 1e-3
    np.testing.assert_allclose(pdist(found), pdist(points), atol=1e-2)
    first, second = align([points, found])
    np.testing.assert_allclose(first, second, atol=1e-2)


def test_metric_mds_has_less_stress_than_classical_scaling():
    from scipy.optimize import minimize_scalar

    matrix = squareform(np.random.default_rng(5).gamma(4, 0.2, 190))
    found, stress = metric_mds(matrix)
    target, distances = squareform(matrix), pdist(found)
    expected = np.sqrt(np.sum((distances - target) ** 2) / np.sum(distances**2))
    assert stress == pytest.approx(expected, rel=1e-3)
    classical = pdist(classical_mds(matrix**2)[0])
    best = minimize_scalar(lambda gain: np.sum((gain * classical - target) ** 2)).fun
    assert np.sum((distances - target) ** 2) < best
    negative = matrix.copy()
    negative[0, 1] = negative[1, 0] = -0.3
    assert np.isfinite(metric_mds(negative)[0]).all()


def test_stimuli_without_categories_are_ordered_by_similarity():
    rng = np.random.default_rng(6)
    group = rng.permutation(np.repeat([0, 1, 2], 5))
    matrix = (group[:, None] != group).astype(float) + squareform(0.1 * rng.random(105))
    order = order_stimuli([f"{chr(97 + k)}" for k in range(15)])
    matrix[2, 3] = matrix[3, 2] = np.nan
    ordered = order_by_similarity(order, matrix)
    assert sorted(ordered.names) == sorted(order.names)
    place = {name: position for position, name in enumerate(order.names)}
    runs = [group[place[name]] for name in ordered.names]
    assert sum(a != b for a, b in pairwise(runs)) == 2
    moved = reorder(matrix, order, ordered)
    assert moved[0, 1] == matrix[place[ordered.names[0]], place[ordered.names[1]]]
    few = order_stimuli(["a", "b", "c"])
    assert order_by_similarity(few, np.zeros((3, 3))) is few


def test_pictures_are_webp_and_close_to_what_was_drawn(tmp_path):
    rng = np.random.default_rng(7)
    smooth = np.add.outer(np.linspace(0, 120, 90), np.linspace(0, 120, 120))
    noisy = np.clip(smooth + rng.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)
    Image.fromarray(noisy).save(tmp_path / "noisy.png")
    uri = file_uri(tmp_path / "noisy.png")
    assert uri.startswith("data:image/webp;base64,")
    assert len(uri) < (tmp_path / "noisy.png").stat().st_size
    assert np.abs(_pixels(uri)[..., 0] - noisy).mean() < 4
    flat = np.zeros((60, 60, 3), np.uint8)
    flat[20:40, 20:40] = (200, 30, 90)
    Image.fromarray(flat).save(tmp_path / "flat.png")
    np.testing.assert_array_equal(_pixels(file_uri(tmp_path / "flat.png")), flat)
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"broken\.png cannot be read"):
        file_uri(tmp_path / "broken.png")


def test_families_are_outlined_where_they_meet():
    axes = new_figure(2, 2).add_subplot()
    _outline(axes, np.array([[0, 0], [0, 1]]))
    (lines, _) = axes.collections
    # Eight sides of the square, and the two between the families.
    assert len(lines.get_segments()) == 10


def test_betti_curves_end_soon_after_their_last_change():
    threshold = np.linspace(0, 1, 11)
    curves = np.zeros((11, 2, 3))
    curves[:4] = 5.0
    curves[:, 1, 2] = np.nan
    assert _last_change(threshold, curves) == pytest.approx(0.48)
    curves[-1, 0, 0] = 1.0
    assert _last_change(threshold, curves) == 1.0
    assert _last_change(threshold, np.ones((11, 2, 3))) == 1.0


def test_clip_paths_are_named_by_their_order():
    """Two runs of a layout's solver differ in digits that are not printed, only hashed."""
    run = (
        '<g clip-path="url(#p{0})"/><g clip-path="url(#p{1})"/><clipPath id="p{0}"/><a id="patch"/>'
    )
    once = number_clip_paths(run.format("0123456789", "abcdef0123"))
    assert once == number_clip_paths(run.format("abcdef9876", "00000fffff"))
    assert once == (
        '<g clip-path="url(#clip0)"/><g clip-path="url(#clip1)"/><clipPath id="clip0"/>'
        '<a id="patch"/>'
    )


def test_drawn_clip_paths_keep_their_references():
    figure = new_figure(4.0, 2.0)
    for axes in figure.subplots(1, 2):
        axes.plot([0, 1], [0, 1])
    uri = svg_uri(figure)
    svg = base64.b64decode(uri.split(",", 1)[1]).decode()
    used = set(re.findall(r"url\(#(\w+)\)", svg))
    assert used == {"clip0", "clip1"}
    assert used == set(re.findall(r'<clipPath id="(\w+)"', svg))
