"""What a study's config may ask of the GLM is known before any job."""

import pytest
from PIL import Image

from isocortex.early_checks import OWN_COLUMNS, check_own_confounds, check_recording
from isocortex.errors import InputError
from isocortex.preprocess import confounds
from isocortex.study import check_inputs, load_study
from tests.workflow import tiny


@pytest.fixture
def config(tmp_path, monkeypatch):
    made = tiny.make(tmp_path)
    for name in "abcdef":
        Image.new("L", (8, 8)).save(tmp_path / "bids" / "stimuli" / f"{name}.png")
    monkeypatch.chdir(tmp_path)
    return made


def check(config, **glm):
    check_inputs(load_study({**config, "glm": glm}))


def test_contrasts_are_of_conditions_that_the_events_have(config):
    check(config, contrasts={"things": "thing"})
    with pytest.raises(
        InputError, match=r"glm.contrasts.x: 'face - thing' names 'face'.*: conditions are thing"
    ):
        check(config, contrasts={"x": "face - thing"})
    with pytest.raises(InputError, match=r"glm.contrasts.all .* comes along by itself"):
        check(config, contrasts={"all": "thing"})
    for table in (tiny.Path("bids")).rglob("*_events.tsv"):
        table.write_text(table.read_text().replace("trial_type", "kind"))
    with pytest.raises(InputError, match=r"_events.tsv has no column trial_type: glm.contrasts"):
        check(config, contrasts={"things": "thing"})


@pytest.mark.parametrize(
    ("glm", "message"),
    [
        ({"trial_types": ["thin"]}, r"glm.trial_types names 'thin', .* did you mean 'thing'"),
        ({"nuisance_types": ["button"]}, r"glm.nuisance_types names 'button', .* there are thing"),
        ({"nuisance_types": ["th*"]}, r"_events.tsv: no events that are trials"),
        (
            {"confound_columns": ["motion6", "a_comp_cr_00"]},
            r"has 'a_comp_cr_00', which is no .* did you mean 'a_comp_cor_00'",
        ),
        ({"space": "MNI152NLin2009aSym:res-2"}, r"write MNI152NLin2009aSym; preprocess.resolution"),
        ({"contrasts": {"a b": "thing"}}, r"a b"),
        ({"noise_model": "ar2"}, r"glm.noise_model is \"ar2\", but must be one of ols, ar1"),
        ({"estimator": "optimised", "noise_model": "ar1"}, r"glm.noise_model is .?ar1"),
        ({"estimator": "optimised", "optimised": {"fractions": [1, 0.5]}}, r"do not ascend"),
    ],
)
def test_choices_that_there_are_not_are_refused(config, glm, message):
    with pytest.raises(InputError, match=message):
        check(config, **glm)


def test_halves_need_two_runs(tmp_path, monkeypatch):
    config = tiny.make(tmp_path, runs=(1,))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"glm.split_half needs two runs, and sub-01 has one"):
        load_study({**config, "glm": {"split_half": True}})
    load_study({**config, "rsa": {"measures": ["correlation"]}})


def test_averages_of_one_session_have_no_parts_to_validate_across(config):
    rsa = {"measures": ["crossnobis"]}
    load_study({**config, "rsa": rsa, "glm": {"repeats": "keep"}})
    with pytest.raises(InputError, match=r"glm.repeats is average.*sub-01 one part.*crossnobis"):
        load_study({**config, "rsa": rsa, "glm": {"repeats": "average"}})
    load_study({**config, "rsa": rsa, "glm": {"repeats": "average", "split_half": True}})


def test_what_needs_runs_is_refused_without(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stimuli").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "stimuli" / "a.png")
    config = {
        "study": "tiny",
        "input": {"stimuli": "stimuli"},
        "features": {"models": {"pixels": {"source": "builtin", "architecture": "pixels"}}},
    }
    for glm, key in (
        ({"contrasts": {"a": "b"}}, "glm.contrasts"),
        ({"split_half": True}, "glm.split_half"),
        ({"nifti": True}, "glm.nifti"),
    ):
        with pytest.raises(InputError, match=key):
            load_study({**config, "glm": glm})


@pytest.mark.parametrize(
    ("preprocess", "shape", "message"),
    [
        ({"dummy_scans": 16}, (8, 9, 6, 20), r"dummy_scans is 16, and .* has 20 volumes"),
        ({}, (8, 9, 6, 4), r"has 4 volumes, and preprocessing needs 5"),
        ({"motion": "ants"}, (8, 9, 4, 20), r"needs 5 voxels along each axis, and .* has 8x9x4"),
    ],
)
def test_recordings_that_cannot_be_preprocessed_are_refused(config, preprocess, shape, message):
    study = load_study({**config, "preprocess": preprocess})
    options = study.config["preprocess"]
    run = study.subjects["01"].runs[0]
    check_recording(run, (8, 9, 6, 21), options)
    with pytest.raises(InputError, match=message):
        check_recording(run, shape, options)


def test_every_column_that_is_made_may_be_asked_for():
    made = {
        *confounds._TEXT,
        *(f"{name}_00" for name in confounds.DECOMPOSITIONS),
        *(f"{name}_derivative1_power2" for name in (*confounds.MOTION, *confounds._EXPANDED)),
    }
    assert made <= set(OWN_COLUMNS)
    check_own_confounds(["motion24", "a_comp_cor_0?", "motion_outlier*", "cosine*", "rmsd"])
