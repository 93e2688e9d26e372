"""The subject's report of responses: estimators' choices, confidence, contrasts, processing."""

import json

import numpy as np
import pytest

from isocortex import provenance, store
from isocortex.errors import InputError
from isocortex.hrf_library import hrf_library
from isocortex.report import ReportOptions, report_subject
from isocortex.report.brain import Grounds
from isocortex.report.drawing import report_style
from isocortex.report.methods_glm import response_sentences
from isocortex.report.page import Note, Picture, Table
from isocortex.report.processing import coregistration_text, processing_blocks
from isocortex.report.references import REFERENCES
from isocortex.report.study_flags import processing_flags
from isocortex.report.study_quality import quality_section, read_anatomy_quality, read_run_quality
from isocortex.report.study_sample import sample_section
from isocortex.report.subject_contrasts import contrast_blocks
from isocortex.report.subject_design import design_blocks
from isocortex.report.subject_estimator import estimator_blocks, read_choices, response_curves
from isocortex.report.subject_glm import confidence_blocks, response_blocks

from . import report_glm_files as made
from .report_study_files import default_options

OPTIONS = default_options() | {"slices": 2, "surface": False}
CHOICES = ReportOptions.from_config(OPTIONS)
RUN = {
    "slice_timing": "slices_first",
    "slice_timing_note": "",
    "distortion": "none",
    "distortion_note": "the dataset has no fieldmap for it",
    "coregistration_accepted": "bbr",
    "coregistration_cost_before": 0.61,
    "coregistration_cost_after": 0.44,
    "coregistration_moved_mm": 1.2,
    "dice_t1w_mask": 0.91,
}


@pytest.fixture(autouse=True)
def style():
    with report_style():
        yield


@pytest.fixture(scope="module")
def plain():
    return made.small_betas()


def shown(blocks, kind):
    return {block.title: block for block in blocks if isinstance(block, kind)}


def figures_folder(root, name, qc):
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "figures.json").write_text("[]")
    (folder / "qc.json").write_text(json.dumps(qc))
    return folder


def test_other_estimators_have_no_choices_to_show(plain):
    assert estimator_blocks([plain], Grounds(None), CHOICES) == []
    assert confidence_blocks(plain) == []
    titles = shown(response_blocks([plain], Grounds(None), CHOICES), Picture)
    assert "Split-half reliability" not in titles
    assert "interval" not in titles["Noise ceiling"].caption


def test_choices_are_counted_as_the_store_has_them(plain):
    dataset = made.with_choices(plain)
    blocks = estimator_blocks([dataset], Grounds(None), CHOICES)
    table = next(iter(shown(blocks, Table).values()))
    rows = {row[0]: row[1] for row in table.rows}
    responsive = dataset["r2_cross_validated"].values > 0
    assert rows["Voxels with cross-validated R² above 0"] == str(responsive.sum())
    assert rows["Noise components a run: chosen, of at most"] == "3 of 7"
    middle = np.median(dataset["fraction"].values[responsive])
    assert rows["Fraction of these voxels, median [5%, 95%]"].startswith(f"{middle:.2f} [")
    peak = np.array(dataset.attrs["hrf_peak"])[dataset["hrf_index"].values[responsive]]
    label = "Time to peak of these voxels' responses, s, median [5%, 95%]"
    assert rows[label].startswith(f"{np.median(peak):.1f} [")
    pictures = shown(blocks, Picture)
    assert list(pictures) == [
        "Haemodynamic responses that were chosen",
        "Time to peak of the chosen response",
        "Noise components and regularisation",
        "Cross-validated variance explained",
        "Fraction of the unpenalised length",
    ]
    used = len(np.unique(dataset["hrf_index"].values[responsive]))
    assert f"{used} of 20 occur" in pictures["Haemodynamic responses that were chosen"].caption
    n = f"{responsive.sum()} of {responsive.size} voxels"
    assert n in pictures["Time to peak of the chosen response"].caption


def test_halves_stand_side_by_side(plain):
    dataset = made.with_choices(plain, halves=True)
    first, second = read_choices(dataset)
    assert not np.array_equal(first.hrf, second.hrf)
    blocks = estimator_blocks([dataset], Grounds(None), CHOICES)
    table = next(iter(shown(blocks, Table).values()))
    assert table.header == ("Choice", "Half 1", "Half 2")
    both = first.responsive & second.responsive
    peak = np.array(first.attrs["hrf_peak"])
    r = np.corrcoef(peak[first.hrf[both]], peak[second.hrf[both]])[0, 1]
    assert f"r = {r:.2f}".replace("-", "−") in table.caption
    assert "Fraction of the unpenalised length, half 2" in shown(blocks, Picture)
    design = next(iter(shown(design_blocks([dataset]), Table).values()))
    assert [row[:2] for row in design.rows] == [["01", "1"], ["02", "2"], ["03", "1"], ["04", "2"]]


def test_a_single_run_or_no_repeats_leave_less_to_show(plain):
    dataset = made.with_choices(plain)
    n = dataset.sizes["voxel"]
    dataset["r2_cross_validated"] = ("voxel", np.full(n, np.nan, "f4"))
    dataset["fraction"] = ("voxel", np.ones(n, "f4"))
    dataset.attrs |= {"noise_components": 0, "noise_components_r2": [0.0]}
    blocks = estimator_blocks([dataset], Grounds(None), CHOICES)
    assert list(shown(blocks, Picture)) == [
        "Haemodynamic responses that were chosen",
        "Time to peak of the chosen response",
    ]
    notes = " ".join(block.text for block in blocks if isinstance(block, Note))
    assert "No noise components" in notes
    assert "regularised" in notes


def test_drawn_responses_are_those_of_the_library():
    library = hrf_library(5)
    time, curve = response_curves(library)
    np.testing.assert_allclose(time[curve.argmax(axis=1)], library.peak, atol=0.06)
    # the width at half of the peak, which the undershoot makes a little narrower
    step = time[1] - time[0]
    width = (curve > 0.5).sum(axis=1) * step
    np.testing.assert_allclose(width, library.width, rtol=0.12)


def test_confidence_is_said_with_what_chance_gives(plain):
    dataset = made.with_confidence(plain)
    over = int((dataset["ncsnr_low"].values > 0).sum())
    n = dataset.sizes["voxel"]
    pictures = shown(response_blocks([dataset], Grounds(None), CHOICES), Picture)
    caption = pictures["Noise-ceiling signal-to-noise ratio"].caption
    assert f"above 0 in {over} of {n} voxels" in caption
    assert "2.5% would by chance" in caption
    middle = np.median(dataset["noise_ceiling_high"].values) * 100
    assert f", {middle:.2f}]%" in pictures["Noise ceiling"].caption
    assert "odd and to their even repeats" in pictures["Split-half reliability"].caption
    caption = pictures["How surely signal and noise are told apart"].caption
    assert f"({np.median(dataset['reliability'].values):.2f})" in caption
    halves = made.with_choices(plain, halves=True)
    pictures = shown(response_blocks([halves], Grounds(None), CHOICES), Picture)
    assert "in the two halves" in pictures["Split-half reliability"].caption


def test_means_over_repeats_have_no_times_in_a_run(plain):
    dataset = plain.isel(trial=slice(0, 6)).copy()
    dataset.attrs = dict(plain.attrs)
    dataset.coords["run"] = ("trial", np.full(6, "all", dtype=object))
    dataset.coords["n_repeats"] = ("trial", np.full(6, 4, "i4"))
    blocks = design_blocks([dataset])
    table = next(iter(shown(blocks, Table).values()))
    assert [row[:3] for row in table.rows] == [[f"{k:02d}", 30, 6] for k in range(1, 5)]
    assert "6 stimuli, each shown 4 times" in table.caption
    assert "6 betas of 24 trials" in table.caption
    (picture,) = shown(blocks, Picture).values()
    assert picture.title == "Design matrix"
    caption = shown(response_blocks([dataset], Grounds(None), CHOICES), Picture)
    assert "Mean response to 24 trials" in caption["Response to stimuli against rest"].caption


def test_contrasts_are_drawn_over_a_threshold_that_is_said(plain, tmp_path):
    folder = made.write_contrasts(plain, tmp_path / "sub-01_task-objects_contrasts")
    blocks = contrast_blocks([folder], Grounds(None), CHOICES)
    (table,) = shown(blocks, Table).values()
    rows = {row[0]: row for row in table.rows}
    assert rows["all"][2:4] == [3, "240"]
    assert rows["faces"][1:4] == ["face - house", 2, "160"]
    half = plain.sizes["voxel"] // 2
    assert rows["all"][6] == str(half)
    assert rows["nothing"][6:] == ["0", "0"]
    assert "not corrected" in table.caption
    pictures = shown(blocks, Picture)
    assert list(pictures) == ["Contrast all", "Contrast faces"]
    assert "|z| ≥ 3.1" in pictures["Contrast faces"].caption
    (note,) = (block for block in blocks if isinstance(block, Note))
    assert "no voxel passes" in note.text
    next(folder.glob("*contrast-faces*")).unlink()
    with pytest.raises(InputError, match="faces: run map_contrasts again"):
        contrast_blocks([folder], Grounds(None), CHOICES)


def test_what_was_done_to_runs_and_what_needs_a_look(tmp_path):
    refused = RUN | {
        "coregistration_accepted": "mi",
        "coregistration_note": "refused: its cost is above 0.9",
        "slice_timing": "none",
        "slice_timing_note": "the sidecar has no SliceTiming",
    }
    odd = {"normalisation": "check: Dice of grey matter 0.61"}
    folders = [
        figures_folder(tmp_path, "anat", odd),
        figures_folder(tmp_path, "fmap/sub-01_fmapid-a", {"normalisation": "check: never"}),
        figures_folder(tmp_path, "func/sub-01_task-x_run-1", RUN),
        figures_folder(tmp_path, "func/sub-01_task-x_run-2", refused),
    ]
    blocks = processing_blocks(folders)
    said = [block.text for block in blocks if isinstance(block, Note)]
    assert said[0] == (
        "Registration to the template, anatomy: look at it: Dice of grey matter 0.61."
    )
    assert "refused for run task-x_run-2" in said[1]
    (table,) = shown(blocks, Table).values()
    first, second = table.rows
    assert first[1:3] == [
        "corrected, before the motion was undone",
        "not corrected: the dataset has no fieldmap for it",
    ]
    assert first[3] == "boundary: cost 0.610 → 0.440, 1.2 mm"
    assert second[1] == "not corrected: the sidecar has no SliceTiming"
    assert second[3].endswith("refinement to 0.440 refused, its cost is above 0.9")
    slab = refused | dict.fromkeys(("coregistration_cost_before", "coregistration_cost_after"))
    assert coregistration_text(slab) == ("mutual information; not refined, its cost is above 0.9")


def test_a_subject_without_a_t1w_says_so(tmp_path):
    straight = {key: RUN[key] for key in ("slice_timing", "distortion", "dice_t1w_mask")}
    straight |= {"anatomy": "template", "normalisation": "good", "distortion": "pepolar"}
    folders = [figures_folder(tmp_path, f"sub-01_task-x_run-{k}", straight) for k in (1, 2)]
    note, table = processing_blocks(folders)
    assert "no T1w image: all 2 runs went straight" in note.text
    assert table.rows[0][2:4] == [
        "corrected by opposite phase encoding",
        "none: straight to the template",
    ]
    assert processing_blocks([figures_folder(tmp_path, "sub-02_task-x", {"dice": 0.9})]) == []


def write_manifest(path, **content):
    path.parent.mkdir(parents=True, exist_ok=True)
    provenance.write_json(path, content)
    return path


def test_the_study_flags_registrations_and_compares_anatomies(tmp_path):
    paths = []
    for k in range(6):
        anatomy = {"brain_volume_ml": 1400.0 + 12 * k, "dice_template_mask": 0.97 + 0.001 * k}
        anatomy["normalisation"] = "good"
        if k == 4:
            anatomy |= {"dice_template_mask": 0.7, "normalisation": "check: Dice 0.70"}
        run = RUN | {"run": f"sub-{k}_task-x", "fd_mean": 0.1 + 0.01 * k}
        if k == 2:
            run |= {"coregistration_accepted": "mi", "distortion_note": "fmap/ holds a.nii.gz, but"}
        name = run.pop("run")
        paths += [
            write_manifest(tmp_path / f"{k}/anat.json", subject=str(k), qc=anatomy),
            write_manifest(tmp_path / f"{k}/run.json", subject=str(k), run=name, qc=run),
            write_manifest(tmp_path / f"{k}/fmap.json", subject=str(k), fieldmap="a", qc={"a": 1}),
        ]
    assert [a["run"] for a in read_anatomy_quality(paths)] == [f"sub-{k}" for k in range(6)]
    costs = [run["coregistration_cost"] for run in read_run_quality(paths)]
    assert costs == [0.44, 0.44, 0.61, 0.44, 0.44, 0.44]
    flags = processing_flags(paths)
    assert [row[:2] for row in flags] == [
        ["Registration to the template", "sub-4, anatomy"],
        ["Refinement of the registration refused", "sub-2_task-x"],
        ["Distortion not corrected", "sub-2_task-x"],
    ]
    blocks = quality_section(paths)
    tables = shown(blocks, Table)
    (marked,) = (row for row in tables["Subjects that stand out"].rows)
    assert marked[:3] == ["sub-4", "Dice with template, brain", "0.700"]
    assert tables["Anatomy by subject"].header[0] == "Subject"
    assert (
        "A point a subject (n = 6)" in shown(blocks, Picture)["Anatomies of the subjects"].caption
    )
    few = quality_section(paths[:3])
    assert any("With 1 subject no outlier" in b.text for b in few if isinstance(b, Note))


def test_methods_of_the_study_cite_what_the_estimator_did(plain):
    cited = []

    def cite(*keys):
        cited.extend(keys)
        return "[1]"

    told = " ".join(response_sentences([plain], cite, str))
    assert told.startswith("Responses were estimated.")
    assert cited == ["nilearn", "friston", "nsd"]
    cited.clear()
    halves = made.with_choices(plain, halves=True)
    halves.attrs["halves"][1]["noise_components"] = 1
    halves.attrs["methods"] = "Otherwise."
    told = " ".join(response_sentences([plain, halves], cite, str))
    assert told.startswith("Subject 01, task objects (the reports of the others say")
    assert "the number of noise components that were taken out of a run is 1 and 3" in told
    assert cited[2:] == ["glmdenoise", "fractional", "glmsingle", "nsd", "harmonic_mean"]
    assert set(cited) <= set(REFERENCES)
    separate = plain.assign_attrs(estimator="least squares, each trial separately")
    cited.clear()
    response_sentences([separate], cite, str)
    assert "least_squares_separate" in cited


def test_the_study_compares_signal_and_reliability_of_subjects(plain):
    dataset = made.with_confidence(plain)
    dataset.coords["n_repeats"] = ("trial", np.full(dataset.sizes["trial"], 3, "i4"))
    (table,) = shown(sample_section([plain, dataset], [], ["01"], {}), Table).values()
    first, second = (dict(zip(table.header, row)) for row in table.rows)
    assert (first["Runs"], first["Trials"], first["With signal, %"]) == (4, 24, "n/a")
    assert (second["Runs"], second["Trials"]) == (4, 72)
    over = 100 * (dataset["ncsnr_low"].values > 0).mean()
    assert second["With signal, %"] == f"{over:.1f}"
    high = np.percentile(dataset["reliability"].values, 95)
    assert second["Reliability, 95%"] == f"{high:.2f}"
    (table,) = shown(sample_section([plain], [], ["01"], {}), Table).values()
    assert "With signal, %" not in table.header


def test_the_whole_page_is_the_same_bytes_each_time(plain, tmp_path):
    dataset = made.with_choices(plain)
    betas = made.write_betas(dataset, tmp_path / "glm/sub-01_task-objects_betas.zarr")
    assert store.open(betas, "betas")["fraction"].dtype == np.float32
    contrasts = made.write_contrasts(plain, tmp_path / "glm/sub-01_task-objects_contrasts")
    pages = [
        report_subject(
            subject="01",
            study="made",
            out=tmp_path / name,
            options=OPTIONS,
            betas=[betas],
            contrasts=[contrasts],
        ).read_text()
        for name in ("one.html", "two.html")
    ]
    assert pages[0] == pages[1]
    for anchor in ("estimator", "responses", "contrasts"):
        assert f'<section id="{anchor}">' in pages[0]
    assert "glm/sub-01_task-objects_contrasts" in pages[0], "the maps' digest is listed"
