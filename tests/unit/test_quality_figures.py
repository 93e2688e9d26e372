"""Figures of a run and of an anatomy: what they show, and what the report makes of them."""

import json

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from nipype.algorithms.confounds import TSNR
from PIL import Image
from scipy import ndimage

from isocortex.preprocess import figures, interfaces
from isocortex.preprocess.figures.courses import carpet_rows, marked
from isocortex.preprocess.images import as_image
from isocortex.preprocess.masks import crown
from isocortex.preprocess.registration import load_template
from isocortex.preprocess.transforms import AffineTransform, write_itk_affine
from isocortex.report.page import Picture
from isocortex.report.quality import figure_blocks

N, TR = 24, 2.0
SHIFT = np.array([5.0, -3.0, 8.0])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A noisy template's brain as a run that is shifted against the T1w, and its files."""
    folder = tmp_path_factory.mktemp("run")
    t1w = load_template(6.0)
    brain = np.asarray(t1w.dataobj) > 0.2
    moved = t1w.affine.copy()
    moved[:3, 3] += SHIFT
    rng = np.random.default_rng(0)
    mean = 1000 * np.asarray(t1w.dataobj)
    # a ghost of 5 % at half of the field of view, back to front
    mean = mean + 0.05 * np.roll(mean, mean.shape[1] // 2, axis=1)
    series = mean[..., None] + 10 * rng.standard_normal((*mean.shape, N))
    series[..., 9] += 40 * brain
    labels = np.where(brain, 1 + (ndimage.distance_transform_edt(brain) > 3), 0)

    def save(name, values, affine, **options):
        path = folder / f"{name}.nii"
        nib.save(as_image(np.asarray(values), affine, **options), path)
        return str(path)

    files = {
        "t1w": save("t1w", np.asarray(t1w.dataobj) * 100, t1w.affine),
        "dseg": save("dseg", labels.astype(np.uint8), t1w.affine),
        "t1w_mask": save("t1w_mask", brain.astype(np.uint8), t1w.affine),
        "mean": save("mean", mean.astype(np.float32), moved),
        "bold": save("bold", series.astype(np.float32), moved, repetition_time=TR),
        "mask": save("mask", brain.astype(np.uint8), moved),
        "tissues": save("tissues", labels.astype(np.uint8), moved),
        "crown": save("crown", crown(brain).astype(np.uint8), moved),
        "tsnr": save("tsnr", (series.mean(-1) / series.std(-1)).astype(np.float32), moved),
    }
    shift = np.eye(4)
    shift[:3, 3] = SHIFT
    files["to_t1w"] = str(write_itk_affine(folder / "to_t1w.txt", shift))
    table = {
        name: rng.normal(0, 0.1, N)
        for name in (*(f"{k}_{a}" for k in ("trans", "rot") for a in "xyz"), "global_signal")
    }
    table["global_signal"] = table["global_signal"] + 500
    table |= {"framewise_displacement": np.r_[np.nan, np.full(N - 1, 0.1)]}
    table |= {"std_dvars": np.r_[np.nan, np.ones(N - 1)], "motion_outlier00": np.arange(N) == 9}
    pd.DataFrame(table).astype(float).to_csv(folder / "c.tsv", sep="\t", na_rep="n/a", index=False)
    files["confounds"] = str(folder / "c.tsv")
    for name in ("framewise_displacement", "dvars", "std_dvars", "voxelwise_dvars"):
        path = folder / f"{name}.txt"
        rows = ["FD"] * (name == "framewise_displacement") + [str(v) for v in rng.random(N - 1)]
        path.write_text("\n".join(rows) + "\n")
        files[name] = str(path)
    return files, folder


def given(files, interface, **options):
    names = interface().inputs.copyable_trait_names()
    return interface(**{n: p for n, p in files.items() if n in names}, **options)


def test_measures_of_a_run_out_of_its_files(run):
    files, folder = run
    node = given(
        files, interfaces.RunQuality, raw=files["bold"], fd_threshold=0.5, repetition_time=TR
    )
    qc = node.run(cwd=folder).outputs.qc
    assert qc["gsr_y"] == pytest.approx(0.05, abs=0.01)
    assert qc["gsr_x"] < 0.03
    assert qc["coverage_brain"] == 100
    assert "coverage_template" not in qc, "there is no transform"
    # every slice jumps in the tenth volume, but for one at the edge that has few voxels
    mask = np.asarray(nib.load(files["mask"]).dataobj) > 0
    assert 0 <= mask.any(axis=(0, 1)).sum() - qc["spikes_num"] <= 1
    json.dumps(qc, allow_nan=False)
    away = np.eye(4)
    away[2, 3] = 110
    cut = str(write_itk_affine(folder / "away.txt", away))
    node.inputs.to_t1w = cut
    assert 30 < node.run(cwd=folder).outputs.qc["coverage_brain"] < 70


def test_temporal_snr_is_nipypes_from_the_steady_state_on(run, tmp_path):
    files, _ = run
    image = nib.load(files["bold"])
    series = np.array(image.dataobj)
    series[:4, :4, :4] = 7.0  # does not change
    bright = np.concatenate([series[..., :2] * 3, series], axis=-1)
    paths = {}
    for name, values in (("plain", series), ("bright", bright)):
        paths[name] = str(tmp_path / f"{name}.nii")
        nib.save(as_image(values, image.affine, repetition_time=TR), paths[name])
    plain = {f"{name}_file": str(tmp_path / f"{name}.nii") for name in ("tsnr", "mean", "stddev")}
    theirs = TSNR(in_file=paths["plain"], **plain).run(cwd=tmp_path).outputs.tsnr_file
    theirs = np.array(nib.load(theirs).dataobj)
    folder = tmp_path / "ours"
    folder.mkdir()
    ours = interfaces.TemporalSnr(in_file=paths["bright"], n_dummy=2).run(cwd=folder).outputs
    np.testing.assert_allclose(nib.load(ours.tsnr_file).get_fdata(), theirs, rtol=1e-3, atol=1e-4)


def test_figures_of_a_run(run, tmp_path):
    files, _ = run
    options = {"repetition_time": TR, "fd_threshold": 0.5, "dvars_threshold": 1.5}
    node = given(
        {**files, "reference": files["mean"], "epi_mask": files["mask"]},
        interfaces.BoldFigures,
        measures={"gsr_y": 0.05, "gsr_x": 0.01, "coverage_brain": 100.0},
        **options,
    )
    done = node.run(cwd=tmp_path).outputs
    blocks = figure_blocks(done.figures)
    pictures = {b.title: b for b in blocks if isinstance(b, Picture)}
    assert len(pictures) == 6
    overlay = pictures["Coregistration to the T1w"]
    assert len(overlay.sources) == 2
    assert tuple(overlay.labels) == ("BOLD reference", "T1w")
    assert "5.0 % back to front" in pictures["Ghosts in the background"].caption
    assert "100.0 % of the brain" in pictures["Coverage of the run"].caption
    assert "1 of 24 volumes" in pictures["Head motion"].caption
    for path in tmp_path.glob("figures/*.png"):
        assert path.stat().st_size < 800_000
        with Image.open(path) as image:
            assert image.width >= 1000
    listed = json.loads((tmp_path / "figures" / "figures.json").read_text())
    names = {name for entry in listed for name in entry.get("files", [entry["file"]])}
    assert names == {path.name for path in tmp_path.glob("figures/*.png")}
    assert done.qc["n_motion_outliers"] == 1


def test_slices_show_the_image_where_the_chain_says(run):
    files, _ = run
    t1w, mean = nib.load(files["t1w"]), nib.load(files["mean"])
    brain = np.asarray(nib.load(files["t1w_mask"]).dataobj) > 0
    slices = figures.Slices.around(brain, t1w.affine, resolution=6.0)
    shift = np.eye(4)
    shift[:3, 3] = SHIFT
    ours = slices.sample(mean, [AffineTransform(shift)])
    there = slices.sample(t1w) * (slices.sample((brain, t1w.affine)) > 0.9)
    inside = there > 0
    assert np.corrcoef(ours[inside], there[inside])[0, 1] > 0.99
    # a volume of the slices' grid is the same, sampled or taken
    upright = figures.Slices(t1w.shape, t1w.affine)
    values = np.asarray(t1w.dataobj)
    np.testing.assert_allclose(upright.take(values), upright.sample(t1w), atol=1e-3)


def test_slices_of_a_single_slice():
    values = np.random.default_rng(1).random((12, 9, 1)).astype(np.float32)
    slices = figures.Slices(values.shape, np.eye(4), rows=(2,))
    picture = slices.take(values)
    np.testing.assert_array_equal(picture[slices.inside].reshape(9, 7, 12)[:, 3].T, values[..., 0])


def test_rows_of_a_carpet():
    rng = np.random.default_rng(2)
    time = np.linspace(-1, 1, 50)
    jump = np.zeros(50)
    jump[20] = 6
    series = 100 + 30 * time**2 - 9 * time + jump + rng.standard_normal((300, 50))
    rows = carpet_rows(np.r_[series, np.full((4, 50), 7.0)], 30)
    assert rows.shape == (30, 50)
    np.testing.assert_allclose(rows.std(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(rows @ np.c_[time, time**2], 0, atol=1e-6)
    assert (rows.argmax(axis=1) == 20).all()
    assert len(carpet_rows(series[:5], 30)) == 5
    assert len(carpet_rows(np.ones((4, 50)), 30)) == 0
    table = pd.DataFrame({"motion_outlier00": [0, 1, 0], "motion_outlier01": [0, 0, 1.0]})
    assert marked(table, "motion_outlier").tolist() == [1, 2]
    assert marked(table, "non_steady_state_outlier").tolist() == []
