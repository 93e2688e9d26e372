"""Confounds chosen by a strategy's name are those of nilearn's load_confounds."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from nilearn.interfaces import fmriprep as peer

from isocortex.confound_strategy import Scrub, parse_strategy
from isocortex.errors import InputError
from isocortex.glm import make_design, read_confounds
from isocortex.glm.confounds import scrubbed_volumes
from isocortex.glm.methods import nuisance_text

DATA = Path(peer.__file__).parent / "data"
TABLES = {  # as fMRIPrep wrote them: 1.4 and 21
    "old": DATA / "test_desc-confounds_regressors",
    "v21": DATA / "test-v21_desc-confounds_timeseries",
}
N, TR = 80, 2.0


def folder_of(folder, table, name="sub-01_task-x_desc-confounds_timeseries"):
    """Put a table and its JSON into a folder beside an empty series; return series and table."""
    for ending in (".tsv", ".json"):
        shutil.copy(f"{table}{ending}", folder / f"{name}{ending}")
    image = folder / "sub-01_task-x_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz"
    image.touch()
    return str(image), folder / f"{name}.tsv"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A table of a run with bursts of motion, CompCor of three masks and dropped components."""
    rng = np.random.default_rng(3)
    columns, described = {}, {}
    for name in ["csf", "white_matter", "global_signal"] + [
        f"{kind}_{axis}" for kind in ("trans", "rot") for axis in "xyz"
    ]:
        values = np.cumsum(rng.standard_normal(N)) + 50
        step = np.r_[np.nan, np.diff(values)]
        columns |= {name: values, f"{name}_derivative1": step}
        columns |= {f"{name}_power2": values**2, f"{name}_derivative1_power2": step**2}
    for letter, mask, n in (("a", "combined", 9), ("c", "CSF", 3), ("w", "WM", 4), ("t", None, 5)):
        for k in range(n):
            columns[f"{letter}_comp_cor_{k:02d}"] = rng.standard_normal(N)
            described[f"{letter}_comp_cor_{k:02d}"] = {
                "CumulativeVarianceExplained": 0.5 * (k + 1) / n,
                "Retained": True,
                "Method": "tCompCor" if letter == "t" else "aCompCor",
            } | ({"Mask": mask} if mask else {})
    described["dropped_0"] = {"Mask": "combined", "Method": "aCompCor", "Retained": False}
    time = np.arange(N) + 0.5
    for k in (1, 2):
        columns[f"cosine{k - 1:02d}"] = np.sqrt(2 / N) * np.cos(np.pi * k * time / N)
    displacement = np.r_[np.nan, rng.uniform(0, 0.4, N - 1)]
    displacement[[1, 20, 24, 40, 41, 47, 70, 77]] = 1.1
    columns |= {"framewise_displacement": displacement}
    columns |= {"std_dvars": np.r_[np.nan, rng.uniform(0.8, 1.2, N - 1)]}
    columns["std_dvars"][[33, 41]] = 2.0
    for k in range(2):
        columns[f"non_steady_state_outlier{k:02d}"] = (np.arange(N) == k).astype(float)
    columns["motion_outlier00"] = (np.arange(N) == 20).astype(float)
    stem = tmp_path_factory.mktemp("made") / "made"
    pd.DataFrame(columns).to_csv(f"{stem}.tsv", sep="\t", index=False, na_rep="n/a")
    Path(f"{stem}.json").write_text(json.dumps(described))
    return stem


CASES = {
    "motion6": {"strategy": ("motion",), "motion": "basic"},
    "motion12": {"strategy": ("motion",), "motion": "derivatives"},
    "motion24": {"strategy": ("motion",), "motion": "full"},
    "motion6+wm_csf": {"strategy": ("motion", "wm_csf"), "motion": "basic"},
    "motion24+wm_csf4+global_signal2": {
        "strategy": ("motion", "wm_csf", "global_signal"),
        **{"wm_csf": "derivatives", "global_signal": "derivatives"},
    },
    "motion24+wm_csf8+global_signal4": {
        "strategy": ("motion", "wm_csf", "global_signal"),
        **{"wm_csf": "full", "global_signal": "full"},
    },
    "high_pass": {"strategy": ("high_pass",)},
    "acompcor": {"strategy": ("high_pass", "compcor")},
    "motion24+compcor": {"strategy": ("motion", "high_pass", "compcor")},
    "motion6+compcor3": {
        "strategy": ("motion", "high_pass", "compcor"),
        **{"motion": "basic", "n_compcor": 3},
    },
    "motion24+temporal_compcor": {
        "strategy": ("motion", "high_pass", "compcor"),
        "compcor": "temporal",
    },
    "acompcor2+temporal_compcor2": {
        "strategy": ("high_pass", "compcor"),
        **{"compcor": "temporal_anat_combined", "n_compcor": 2},
    },
    "motion6+scrub": {"strategy": ("motion", "scrub"), "motion": "basic"},
    "motion6+scrub(fd=0.2, dvars=3, segment=0)": {
        "strategy": ("motion", "scrub"),
        **{"motion": "basic", "fd_threshold": 0.2, "std_dvars_threshold": 3, "scrub": 0},
    },
}


@pytest.mark.filterwarnings("ignore:All volumes were marked")
@pytest.mark.parametrize("table", ["old", "v21", "made"])
@pytest.mark.parametrize("wanted", CASES)
def test_strategies_are_nilearns(tmp_path, made, table, wanted):
    image, path = folder_of(tmp_path, TABLES.get(table, made))
    compare(path, wanted, peer.load_confounds(image, demean=False, **CASES[wanted]))


@pytest.mark.filterwarnings("ignore:All volumes were marked")
@pytest.mark.parametrize("table", ["old", "v21", "made"])
@pytest.mark.parametrize("wanted", ["simple", "scrubbing", "compcor", "simple+global_signal"])
def test_presets_are_nilearns(tmp_path, made, table, wanted):
    image, path = folder_of(tmp_path, TABLES.get(table, made))
    preset, *rest = wanted.split("+")
    options = {"global_signal": "basic"} if rest else {}
    theirs = peer.load_confounds_strategy(image, preset, demean=False, **options)
    compare(path, wanted, theirs)


def compare(path, wanted, theirs):
    frame, mask = theirs
    n = len(pd.read_csv(path, sep="\t"))
    if mask is not None and not mask.size:
        with pytest.raises(InputError, match=f"scrubbing leaves no volume of {n}"):
            read_confounds(path, wanted, n_volumes=n)
        return
    ours, dropped = read_confounds(path, wanted, n_volumes=n)
    outliers = [name for name in ours if name.startswith(("non_steady", "motion_outlier"))]
    regressors = ours.drop(columns=outliers)
    constant = [name for name in frame if np.ptp(frame[name]) == 0]
    assert sorted(dropped) == sorted(constant)
    assert sorted(regressors) == sorted(set(frame) - set(constant))
    np.testing.assert_allclose(
        regressors.to_numpy(), frame[list(regressors)].to_numpy(), rtol=1e-12, atol=0
    )
    indicators = ours[outliers].to_numpy()
    assert set(np.unique(indicators)) <= {0, 1}
    assert (indicators.sum(axis=0) == 1).all()
    kept = np.arange(n) if mask is None else mask
    np.testing.assert_array_equal(np.flatnonzero(indicators.sum(axis=1) == 0), kept)
    assert indicators.sum() == n - len(kept)  # no volume has two


def test_indicator_columns_are_censoring(made):
    """A fit with them is the fit without those volumes."""
    confounds, _ = read_confounds(f"{made}.tsv", "motion6+scrub", n_volumes=N)
    design = make_design([], no_events(), n_volumes=N, tr=TR, confounds=confounds)
    series = np.random.default_rng(0).standard_normal((N, 5)) + 3
    out = [k for k, name in enumerate(design.names) if "outlier" in name]
    rest = [k for k in range(len(design.names)) if k not in out]
    kept = design.matrix[:, out].sum(axis=1) == 0
    whole = np.linalg.lstsq(design.matrix, series, rcond=None)[0][rest]
    part = np.linalg.lstsq(design.matrix[np.ix_(kept, rest)], series[kept], rcond=None)[0]
    np.testing.assert_allclose(whole, part, rtol=1e-8)


def test_all_scrubbing_of_random_runs_is_nilearns():
    from nilearn.interfaces.fmriprep.load_confounds_components import _load_scrub

    rng = np.random.default_rng(1)
    for _ in range(50):
        n, segment = int(rng.integers(12, 60)), int(rng.integers(0, 8))
        table = pd.DataFrame(
            {"framewise_displacement": rng.exponential(0.22, n), "std_dvars": rng.normal(1, 0.2, n)}
        )
        theirs = _load_scrub(table, segment, 0.5, 1.5).to_numpy()
        ours = scrubbed_volumes(
            *table.to_numpy().T, scrub=Scrub(fd=0.5, dvars=1.5, segment=segment)
        )
        np.testing.assert_array_equal(ours, np.flatnonzero(theirs.sum(axis=1)))


def no_events():
    return pd.DataFrame({"onset": [], "duration": [], "trial_type": []})


@pytest.mark.parametrize(("high_pass", "n_more"), [(0.01, 0), (0.004, 1)])
def test_cosines_of_the_table_and_of_the_drift_are_taken_once(made, high_pass, n_more):
    """The table has two, 160 s and 80 s long periods; a drift of .004 Hz has the first alone."""
    confounds, _ = read_confounds(f"{made}.tsv", "acompcor", n_volumes=N)
    options = {"n_volumes": N, "tr": TR, "high_pass": high_pass}
    design = make_design([], no_events(), confounds=confounds, **options)
    plain = make_design([], no_events(), **options)
    assert sum(name.startswith("cosine") for name in design.names) == n_more
    without = make_design([], no_events(), drift="none", confounds=confounds, n_volumes=N, tr=TR)
    assert sum(name.startswith("cosine") for name in without.names) == 2
    for part in (plain.matrix, confounds.to_numpy()):
        residual = part - design.matrix @ np.linalg.lstsq(design.matrix, part, rcond=None)[0]
        np.testing.assert_allclose(residual, 0, atol=1e-8)


@pytest.mark.parametrize("n_dummy", [1, 8])
@pytest.mark.parametrize("n", [100, 600])
def test_cosines_that_begin_after_dummy_volumes_leave_a_sound_design(n, n_dummy):
    """They are nearly the drift's: beside it they would make the matrix singular."""
    time = np.arange(n - n_dummy) + 0.5
    columns = {
        f"cosine{k:02d}": np.r_[np.zeros(n_dummy), np.cos(np.pi * (k + 1) * time / time.size)]
        for k in range(int(2 * time.size * TR / 128))
    }
    for k in range(n_dummy):
        columns[f"non_steady_state_outlier{k:02d}"] = (np.arange(n) == k).astype(float)
    frame = pd.DataFrame(columns)
    design = make_design([], no_events(), n_volumes=n, tr=TR, confounds=frame)
    assert np.linalg.cond(design.matrix / np.linalg.norm(design.matrix, axis=0)) < 10
    # what they span is still taken out but for a trifle
    left = frame - design.matrix @ np.linalg.lstsq(design.matrix, frame, rcond=None)[0]
    assert (np.linalg.norm(left, axis=0) < 0.05 * np.linalg.norm(frame, axis=0)).all()


def test_components_by_variance_explained(made):
    def chosen(wanted):
        return [c for c in read_confounds(f"{made}.tsv", wanted, n_volumes=N)[0] if "comp_cor" in c]

    assert len(chosen("acompcor")) == 9
    assert chosen("acompcor6") == [f"a_comp_cor_{k:02d}" for k in range(6)]
    # nine share half of the variance: the fourth is the first to come over a fifth
    assert len(chosen("acompcor20%")) == 4
    assert len(chosen("acompcor90%")) == 9
    assert len(chosen("motion6+temporal_compcor20%")) == 2


def test_names_and_columns_in_a_list(made):
    frame, _ = read_confounds(f"{made}.tsv", ["motion6", "a_comp_cor_0[01]", "scrub"], n_volumes=N)
    plain = read_confounds(f"{made}.tsv", "motion6+scrub", n_volumes=N)[0]
    assert set(frame) - set(plain) == {"a_comp_cor_00", "a_comp_cor_01"}


def test_a_named_part_takes_the_place_of_a_presets():
    assert set(parse_strategy("scrubbing+wm_csf").parts) == {"motion24", "wm_csf", "high_pass"}
    assert parse_strategy("motion6+compcor6").parts == ("motion6", "high_pass", "acompcor6")
    assert parse_strategy("compcor").parts == ("motion24", "high_pass", "acompcor")
    assert parse_strategy("scrubbing+scrub(segment=0)").scrub == Scrub(0.5, 1.5, 0)
    assert parse_strategy("none").is_empty
    assert parse_strategy([]).is_empty


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("motion25", "'motion25' is no strategy: did you mean 'motion24'"),
        ("motion6+motion24", "has motion6 and motion24: keep one"),
        ("simple+scrubbing", "has simple and scrubbing: keep one"),
        ("motion6+none", "none stands alone"),
        ("ica_aroma", "no part of fMRIPrep since 23.1"),
        (["ica_aroma", "csf"], "list the columns"),
        ("motion6+csf", "columns go into a list"),
        ("motion6+", "'' is no strategy"),
        ("scrub(fd=high)", "write for example scrub"),
        ("scrub(speed=3)", "write for example scrub"),
        ("scrub(fd=-1)", "write for example scrub"),
    ],
)
def test_wrong_names_are_told(wanted, message):
    with pytest.raises(InputError, match=message):
        parse_strategy(wanted)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("motion24", "has no column rot_x_derivative1, which motion24 takes"),
        ("scrub", "has no column std_dvars, for scrub"),
        ("acompcor", "tells no retained components of acompcor from white matter and CSF"),
    ],
)
def test_what_a_table_lacks_is_told(tmp_path, made, wanted, message):
    table = pd.read_csv(f"{made}.tsv", sep="\t").drop(columns=["rot_x_derivative1", "std_dvars"])
    table.to_csv(tmp_path / "c.tsv", sep="\t", index=False, na_rep="n/a")
    with pytest.raises(InputError, match=message):
        read_confounds(tmp_path / "c.tsv", wanted, n_volumes=N)


def test_a_run_of_motion_alone_is_refused(tmp_path, made):
    table = pd.read_csv(f"{made}.tsv", sep="\t")
    table["framewise_displacement"] = 2.0
    table.to_csv(tmp_path / "c.tsv", sep="\t", index=False, na_rep="n/a")
    with pytest.raises(InputError, match="scrubbing leaves no volume of 80"):
        read_confounds(tmp_path / "c.tsv", "scrub", n_volumes=N)


def test_numbered_confounds_are_told_from_first_to_last():
    names = [*(f"a_comp_cor_{k:02d}" for k in range(12)), "csf", "motion_outlier_00", "rot_x"]
    run = SimpleNamespace(confounds=names, design=SimpleNamespace(names=()))
    told = nuisance_text([run], drift="none", high_pass=0.01, drift_order=1)
    expected = "15 confounds (a_comp_cor_00 to a_comp_cor_11, csf, motion_outlier_00, rot_x)"
    assert told.endswith(expected)
