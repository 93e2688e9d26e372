"""The methods text of preprocessing says what the runs' measures say was done."""

from isocortex.report.methods_preprocess import preprocessing_sentences
from isocortex.report.references import Citations

SECTION = {
    "resolution": 3.0,
    "spaces": ["MNI152NLin2009aSym", "fsaverage5"],
    "compcor_components": "50%",
    "slice_timing": True,
    "motion": "gauss_newton",
    "distortion": {"correct": True, "jacobian": True},
}


def text(manifests=(), **section):
    cite = Citations()
    sentences = preprocessing_sentences(SECTION | section, manifests, cite, str)
    assert all(sentence == "" or sentence.endswith(".") for sentence in sentences)
    return " ".join(filter(None, sentences)), {reference.key for reference in cite.used}


def run(**qc):
    return {"run": "run", "qc": {"slice_timing": "slices_first", "distortion": "none"} | qc}


def test_a_study_of_two_kinds_of_runs():
    anatomy = {"qc": {"n_t1w": 2}}
    runs = [
        run(coregistration_accepted="bbr", distortion="pepolar"),
        run(coregistration_accepted="mi", slice_timing="none"),
        run(),
    ]
    told, cited = text([anatomy, *runs])
    assert "images of a subject (1 subject) were aligned" in told
    assert "Slice timing was corrected in 2 of 3 runs" in told
    assert "distortion was corrected in 1 of 3 runs from images of opposite" in told
    assert "taken, in 1 of 2 runs" in told
    assert "1 run of subjects without a T1w image went straight to the template" in told
    assert {"topup", "bbr", "lucas_kanade", "atropos", "mriqc"} <= cited
    assert "fieldmaps" not in cited


def test_what_was_not_done_is_said():
    told, cited = text([run(slice_timing="none")])
    assert "no sidecar gives slice times" in told
    assert "Susceptibility distortion was not corrected." in told
    assert "T1w image was corrected" not in told
    assert "bbr" not in cited
    told, _ = text([{"qc": {"n_t1w": 1}}, run()], slice_timing=False, motion="ants")
    assert "Slice timing was not corrected." in told
    assert "rigidly against it by ANTs' rigid registration" in told


def test_without_manifests_it_is_the_configuration():
    told, _ = text()
    assert "where the sidecar gives slice times" in told
    assert "Susceptibility" not in told
    assert "mean of 6 depths" in told
