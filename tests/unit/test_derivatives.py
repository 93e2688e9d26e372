"""Derivatives as fMRIPrep 23 to 25 name them are indexed, or refused with what to do."""

import json
from pathlib import Path

import pytest

from isocortex import derivatives
from isocortex.bids import Subject
from isocortex.derivatives import index_derivatives, made_by, parse_space
from isocortex.errors import InputError
from isocortex.study import Study

RUN = "sub-01/func/sub-01_task-a_run-01"


def touch(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def volumes(stem, *spaces, confounds="desc-confounds_timeseries"):
    """Return what fMRIPrep writes of a run in some spaces, as the parts of its file names."""
    names = [f"{stem}_{confounds}.tsv", f"{stem}_{confounds}.json"]
    names += [
        f"{stem}_desc-brain_mask.nii.gz",
        f"{stem}_desc-coreg_boldref.nii.gz",
        f"{stem}_from-boldref_to-T1w_mode-image_desc-coreg_xfm.txt",
    ]
    for space in spaces:
        names += [
            f"{stem}_{space}_{what}"
            for what in (
                "desc-preproc_bold.nii.gz",
                "desc-preproc_bold.json",
                "desc-brain_mask.nii.gz",
                "boldref.nii.gz",
                "desc-aparcaseg_dseg.nii.gz",
            )
        ]
    return names


def test_sessions_as_fmriprep_names_them(tmp_path):
    stems = [f"sub-01/ses-{s}/func/sub-01_ses-{s}_task-a_run-01" for s in ("pre", "post")]
    for stem in stems:
        touch(tmp_path / "out", *volumes(stem, "space-MNI152NLin2009cAsym_res-2", "space-T1w"))
        touch(tmp_path / "raw", f"{stem}_events.tsv")
    touch(tmp_path / "out", "sub-01/anat/sub-01_from-MNI152NLin2009cAsym_to-T1w_mode-image_xfm.h5")
    index = index_derivatives(
        tmp_path / "out", space="MNI152NLin2009cAsym", events=tmp_path / "raw"
    )
    post, pre = index["01"].runs
    assert (post.name, pre.name) == ("ses-post_run-01", "ses-pre_run-01")
    assert pre.session == "pre"
    assert pre.stem == "ses-pre/func/sub-01_ses-pre_task-a_run-01"
    assert pre.bold.name.endswith("res-2_desc-preproc_bold.nii.gz")
    assert pre.mask.name.endswith("res-2_desc-brain_mask.nii.gz")
    assert pre.confounds.name == "sub-01_ses-pre_task-a_run-01_desc-confounds_timeseries.tsv"
    assert pre.events.name == "sub-01_ses-pre_task-a_run-01_events.tsv"
    assert list(index["01"].transforms) == ["MNI152NLin2009cAsym-T1w"]
    # one anatomical reference of the subject: T1w is the same space in both sessions
    assert len(index_derivatives(tmp_path / "out", space="T1w")["01"].runs) == 2


def test_t1w_of_references_for_each_session_is_refused(tmp_path):
    for s in ("1", "2"):
        stem = f"sub-01/ses-{s}/func/sub-01_ses-{s}_task-a"
        touch(tmp_path, *volumes(stem, "space-T1w", "space-MNI152NLin2009cAsym"))
        touch(tmp_path, f"sub-01/ses-{s}/anat/sub-01_ses-{s}_desc-preproc_T1w.nii.gz")
    with pytest.raises(InputError, match="reference for each of its sessions"):
        index_derivatives(tmp_path, space="T1w")
    assert len(index_derivatives(tmp_path, space="MNI152NLin2009cAsym")["01"].runs) == 2


def test_anatomy_of_a_single_session_lies_in_it(tmp_path):
    stem = "sub-01/ses-1/func/sub-01_ses-1_task-a"
    touch(
        tmp_path,
        *volumes(stem, "space-T1w"),
        "sub-01/ses-1/anat/sub-01_ses-1_desc-preproc_T1w.nii.gz",
        "sub-01/ses-1/anat/sub-01_ses-1_acq-x_from-MNI152NLin6Asym_to-T1w_mode-image_xfm.h5",
        "sub-01/ses-1/anat/sub-01_ses-1_acq-x_from-T1w_to-MNI152NLin6Asym_mode-image_xfm.h5",
    )
    subject = index_derivatives(tmp_path, space="T1w")["01"]
    assert sorted(subject.transforms) == ["MNI152NLin6Asym-T1w", "T1w-MNI152NLin6Asym"]


@pytest.mark.parametrize(
    ("space", "ending"),
    [
        ("MNI152NLin6Asym:res-2", "space-MNI152NLin6Asym_res-2"),
        ("MNI152NLin6Asym:res-1", "space-MNI152NLin6Asym_res-1"),
        ("MNI152NLin6Asym:res-native", "space-MNI152NLin6Asym"),
        ("MNIInfant:cohort-1", "space-MNIInfant_cohort-1_res-2"),
        ("MNIInfant:cohort-2:res-2", "space-MNIInfant_cohort-2_res-2"),
        ("T1w", "space-T1w"),
    ],
)
def test_cohorts_and_resolutions_are_chosen(tmp_path, space, ending):
    spaces = [f"space-MNI152NLin6Asym{res}" for res in ("", "_res-1", "_res-2")]
    spaces += [f"space-MNIInfant_cohort-{n}_res-2" for n in (1, 2)] + ["space-T1w"]
    touch(tmp_path, *volumes(RUN, *spaces))
    touch(tmp_path, "sub-01/anat/sub-01_from-MNIInfant+1_to-T1w_mode-image_xfm.h5")
    subject = index_derivatives(tmp_path, space=space)["01"]
    (run,) = subject.runs
    assert run.bold.name == f"sub-01_task-a_run-01_{ending}_desc-preproc_bold.nii.gz"
    assert run.mask.name == f"sub-01_task-a_run-01_{ending}_desc-brain_mask.nii.gz"
    assert run.stem == "func/sub-01_task-a_run-01"
    assert list(subject.transforms) == ["MNIInfant_cohort-1-T1w"]


def test_several_resolutions_or_cohorts_are_listed(tmp_path):
    names = ("MNI152NLin6Asym", "MNI152NLin6Asym_res-2", "MNIInfant_cohort-1", "MNIInfant_cohort-2")
    touch(tmp_path, *volumes(RUN, *(f"space-{name}" for name in names)))
    expected = "one of MNI152NLin6Asym:res-2, MNI152NLin6Asym:res-native"
    with pytest.raises(InputError, match=expected):
        index_derivatives(tmp_path, space="MNI152NLin6Asym")
    expected = "one of MNIInfant:cohort-1:res-native, MNIInfant:cohort-2:res-native"
    with pytest.raises(InputError, match=expected):
        index_derivatives(tmp_path, space="MNIInfant")
    expected = "it has MNI152NLin6Asym:res-2, MNI152NLin6Asym:res-native, MNIInfant:cohort-1, MNI"
    with pytest.raises(InputError, match=expected):
        index_derivatives(tmp_path, space="MNI152NLin2009cAsym")


def test_a_run_without_the_space_is_told_not_skipped(tmp_path):
    touch(tmp_path, *volumes(RUN, "space-T1w", "space-MNI152NLin6Asym_res-2"))
    touch(tmp_path, *volumes(RUN.replace("run-01", "run-02"), "space-T1w"))
    with pytest.raises(InputError, match="run-02 is there in T1w but not in MNI152NLin6Asym"):
        index_derivatives(tmp_path, space="MNI152NLin6Asym")
    assert len(index_derivatives(tmp_path, space="T1w")["01"].runs) == 2


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("space-fsLR_den-91k_bold.dtseries.nii", "fsLR:den-91k .CIFTI."),
        ("hemi-L_space-fsaverage5_bold.func.gii", "fsaverage5 .surface."),
    ],
)
def test_surfaces_alone_are_refused_with_what_to_do(tmp_path, name, told):
    touch(tmp_path, f"{RUN}_{name}", f"{RUN}_desc-confounds_timeseries.tsv")
    with pytest.raises(InputError, match=f"it has {told}; .*--output-spaces MNI152NLin2009cAsym"):
        index_derivatives(tmp_path, space="MNI152NLin2009cAsym")
    # beside volumes they are no hindrance
    touch(tmp_path, *volumes(RUN, "space-T1w"))
    assert len(index_derivatives(tmp_path, space="T1w")["01"].runs) == 1


def test_the_native_space_of_runs_is_no_space_to_analyse(tmp_path):
    touch(tmp_path, f"{RUN}_desc-preproc_bold.nii.gz", f"{RUN}_echo-1_desc-preproc_bold.nii.gz")
    with pytest.raises(InputError, match=r"it has each run's own space \(func\)"):
        index_derivatives(tmp_path, space="T1w")


@pytest.mark.parametrize(
    ("own", "table"),
    [
        ("acq-hi_rec-x_dir-AP_run-1", "acq-hi_rec-x_dir-AP_run-1_desc-confounds_timeseries"),
        ("dir-AP_run-1_part-mag", "dir-AP_run-1_desc-confounds_timeseries"),
        ("run-1_part-mag", "run-1_part-mag_desc-confounds_timeseries"),
        ("run-1", "run-1_desc-confounds_regressors"),
        ("ce-gd", "ce-gd_desc-confounds_timeseries"),
    ],
)
def test_further_entities_find_their_confounds(tmp_path, own, table):
    stem = "sub-01/func/sub-01_task-a"
    image = f"{stem}_{own}_space-T1w_desc"
    touch(
        tmp_path,
        *(f"{image}-{e}" for e in ("preproc_bold.nii", "preproc_bold.json", "brain_mask.nii")),
        f"{stem}_{table}.tsv",
        f"{stem}_run-2_desc-confounds_timeseries.tsv",
    )
    (run,) = index_derivatives(tmp_path, space="T1w")["01"].runs
    assert run.confounds.name == f"sub-01_task-a_{table}.tsv"
    assert run.stem == f"func/sub-01_task-a_{own}"


def test_another_runs_confounds_are_not_taken(tmp_path):
    image = f"{RUN}_space-T1w_desc"
    touch(
        tmp_path,
        *(f"{image}-{e}" for e in ("preproc_bold.nii", "preproc_bold.json", "brain_mask.nii")),
        "sub-01/func/sub-01_task-a_desc-confounds_timeseries.tsv",
    )
    with pytest.raises(InputError, match="has no confounds table"):
        index_derivatives(tmp_path, space="T1w")


@pytest.mark.parametrize("text", ["T1w:native", "T1w:res", "MNI:res-2:den-3", "", "a b"])
def test_a_space_in_another_form_is_refused(text):
    with pytest.raises(InputError, match="as fMRIPrep's --output-spaces does"):
        parse_space(text)


@pytest.mark.parametrize(
    ("described", "told"),
    [
        ({"GeneratedBy": [{"Name": "fMRIPrep", "Version": "24.1.1"}]}, "fMRIPrep 24.1.1"),
        ({"PipelineDescription": {"Name": "fMRIPrep", "Version": "1.5.0"}}, "fMRIPrep 1.5.0"),
        ({"GeneratedBy": [{"Name": "a"}, {"Name": "b", "Version": "2"}]}, "a, b 2"),
        ({"Name": "x"}, ""),
        (None, ""),
    ],
)
def test_who_made_the_derivatives(tmp_path, described, told):
    if described is not None:
        (tmp_path / "dataset_description.json").write_text(json.dumps(described))
    assert made_by(tmp_path) == told


def test_spaces_read_back():
    for text in ("T1w", "MNIInfant:cohort-1", "MNI152NLin2009cAsym:res-2"):
        assert str(derivatives.parse_space(text)) == text


def study_of(entry, space, regions, *, transforms=(), t1w=("x",)):
    config = {"glm": {"space": space}, "regions": {"space": regions}, "input": {}}
    subject = Subject("01", t1w, (), {key: Path(key) for key in transforms})
    return Study(config, entry, {"01": subject}, {})


@pytest.mark.parametrize(
    ("study", "route"),
    [
        (study_of("bids", "MNI152NLin2009aSym", "MNI152NLin2009aSym"), []),
        (study_of("bids", "T1w", "MNI152NLin2009aSym"), [("MNI152NLin2009aSym", "T1w")]),
        (study_of("bids", "MNI152NLin2009aSym", "T1w"), [("T1w", "MNI152NLin2009aSym")]),
        (study_of("derivatives", "T1w", "A", transforms=["A-T1w", "T1w-A"]), [("A", "T1w")]),
        (
            study_of("derivatives", "A", "B", transforms=["B-T1w", "T1w-A"]),
            [("T1w", "A"), ("B", "T1w")],
        ),
        (study_of("derivatives", "A_cohort-1", "A:cohort-1"), []),
        (study_of("betas", "A", "B"), []),
    ],
)
def test_the_atlas_finds_its_way(study, route):
    assert study.region_route("01") == route


@pytest.mark.parametrize(
    "study",
    [
        study_of("bids", "MNI152NLin2009aSym", "MNI152NLin6Asym"),
        study_of("bids", "T1w", "MNI152NLin6Asym"),
        study_of("bids", "MNI152NLin2009aSym", "T1w", t1w=()),
        study_of("derivatives", "A", "B", transforms=["A-T1w", "B-T1w"]),
        study_of("derivatives", "A_cohort-1", "A:cohort-2"),
    ],
)
def test_an_atlas_without_a_way_is_refused(study):
    with pytest.raises(InputError, match="give the atlas in"):
        study.region_route("01")
