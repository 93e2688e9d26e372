"""The fit of designs to data: against nilearn, closed forms and simulated truth."""

import hashlib

import numpy as np
import pandas as pd
import pytest
from nilearn.glm.first_level import make_first_level_design_matrix, mean_scaling, run_glm
from nilearn.glm.first_level.first_level import FirstLevelModel
from scipy.stats import gamma

from isocortex.errors import InputError
from isocortex.glm import (
    choose_confounds,
    estimate_noise_ceiling,
    fit_run,
    make_design,
    make_trials,
    stimulus_z,
)

TR = 2.0
EVENTS = [
    {
        "onset": 3.3 + 9.1 * k,
        "duration": 2.0,
        "trial_type": "ab"[k % 2],
        "stim_file": f"{k % 4}.png",
    }
    for k in range(12)
]


def glover_response(time, *, onset, duration):
    """The response to a boxcar by the integral of Glover's (1999) double gamma, of unit area."""

    def area(t):
        return gamma.cdf(t, 6 / 0.9, scale=0.9) - 0.48 * gamma.cdf(t, 12 / 0.9, scale=0.9)

    return (area(time - onset) - area(time - onset - duration)) / area(32.0)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def design_of(events=EVENTS, *, n_volumes=70, trials="single", **options):
    made, table = make_trials(events, trials=trials)
    return make_design(made, table, n_volumes=n_volumes, tr=TR, **options)


def fit(data, design, **options):
    beta = np.empty((len(design.trials), data.shape[1]), dtype=np.float64)
    residual = np.empty(data.shape, dtype=np.float64)
    return beta, residual, fit_run(data, design, beta=beta, residual=residual, **options)


@pytest.mark.parametrize(
    ("hrf", "drift"),
    [
        ("glover", "cosine"),
        ("spm", "polynomial"),
        ("glover + derivative", "none"),
        ("spm + derivative + dispersion", "cosine"),
    ],
)
@pytest.mark.parametrize("start_time", [0.0, 0.95])
def test_design_is_that_of_nilearn(rng, hrf, drift, start_time):
    confounds = pd.DataFrame(rng.standard_normal((70, 2)), columns=["rot_x", "csf"])
    ours = design_of(
        hrf=hrf,
        drift=drift,
        drift_order=2,
        high_pass=0.02,
        confounds=confounds,
        start_time=start_time,
    )
    events = pd.DataFrame(EVENTS)[["onset", "duration"]]
    events["trial_type"] = [f"trial_{k:05d}" for k in range(1, 13)]
    peer = make_first_level_design_matrix(
        start_time + TR * np.arange(70),
        events,
        hrf_model=hrf,
        drift_model=None if drift == "none" else drift,
        drift_order=2,
        high_pass=0.02,
        add_regs=confounds.to_numpy(),
        add_reg_names=["rot_x", "csf"],
    )
    assert list(peer.columns) == list(ours.names)
    np.testing.assert_allclose(ours.matrix, peer.to_numpy(), rtol=0, atol=1e-10)
    assert [ours.names[k] for k in ours.trial_columns] == list(events["trial_type"])
    assert len(ours.response_columns) == 12 * (1 + hrf.count("+"))


@pytest.mark.parametrize("start_time", [0.0, 0.5, 1.0, 1.9])
def test_onsets_are_placed_by_the_start_time(start_time):
    events = [{"onset": 10.0, "duration": 6.0, "trial_type": "a"}]
    design = design_of(events, n_volumes=40, drift="none", start_time=start_time)
    expected = glover_response(start_time + TR * np.arange(40), onset=10.0, duration=6.0)
    ours = design.matrix[:, design.trial_columns[0]]
    # nilearn samples in steps of TR/50, hence not exactly the integral.
    assert np.abs(ours - expected).max() < 0.02 * expected.max()
    if start_time:
        unshifted = glover_response(TR * np.arange(40), onset=10.0, duration=6.0)
        assert np.abs(ours - unshifted).max() > 0.1 * expected.max()


def test_amplitude_is_recovered_in_percent_signal_change():
    time = 0.7 + TR * np.arange(70)
    truth = np.linspace(0.5, 3.0, 12)
    percent = sum(
        b * glover_response(time, onset=e["onset"], duration=2.0)
        for b, e in zip(truth, EVENTS, strict=True)
    )
    data = np.array([50.0, 800.0]) * (1 + percent[:, None] / 100)
    beta, _, _ = fit(data, design_of(start_time=0.7, drift="none"))
    mean = 1 + percent.mean() / 100
    np.testing.assert_allclose(beta, np.repeat(truth[:, None] / mean, 2, axis=1), rtol=0.03)
    # A scanner's gain changes nothing.
    again, _, _ = fit(7.5 * data, design_of(start_time=0.7, drift="none"))
    np.testing.assert_allclose(again, beta, atol=1e-10)


def test_betas_and_residuals_equal_run_glm(rng):
    confounds = pd.DataFrame(rng.standard_normal((70, 3)) * [1e-3, 1, 1e4], columns=list("xyz"))
    design = design_of(confounds=confounds)
    data = 500 + 20 * rng.standard_normal((70, 31)) + 30 * np.linspace(0, 1, 70)[:, None]
    beta, residual, result = fit(data, design, block_voxels=7)
    labels, peer = run_glm(mean_scaling(data)[0], design.matrix, noise_model="ols")
    peer = peer[labels[0]]
    np.testing.assert_allclose(beta, peer.theta[design.trial_columns], atol=1e-6)
    np.testing.assert_allclose(residual, peer.residuals, atol=1e-6)
    assert result.degrees_of_freedom == peer.df_residuals
    cov = np.linalg.inv(design.matrix.T @ design.matrix)
    np.testing.assert_allclose(
        result.beta_se, np.sqrt(np.diag(cov)[design.trial_columns]), rtol=1e-6
    )
    weights = np.zeros(design.matrix.shape[1])
    weights[design.trial_columns] = 1 / 12
    contrast = peer.Tcontrast(weights)
    np.testing.assert_allclose(result.effect, contrast.effect, atol=1e-8)
    np.testing.assert_allclose(np.sqrt(result.variance), contrast.sd.ravel(), rtol=1e-6)


def test_residuals_are_orthogonal_to_the_design(rng):
    design = design_of()
    data = 100 + rng.standard_normal((70, 9))
    _, residual, _ = fit(data, design)
    assert np.abs(design.matrix.T @ residual).max() < 1e-8 * np.abs(design.matrix.T @ data).max()


def test_explained_variance_is_that_of_the_nested_models(rng):
    design = design_of(confounds=pd.DataFrame({"x": rng.standard_normal(70)}))
    data = (
        100
        + rng.standard_normal((70, 5))
        + design.matrix[:, design.trial_columns].sum(axis=1, keepdims=True)
    )
    _, _, result = fit(data, design)
    scaled = 100 * (data / data.mean(axis=0) - 1)

    def squares(columns):
        coefficients = np.linalg.lstsq(design.matrix[:, columns], scaled, rcond=None)[0]
        return ((scaled - design.matrix[:, columns] @ coefficients) ** 2).sum(axis=0)

    np.testing.assert_allclose(result.nuisance_squares, squares(design.nuisance_columns), rtol=1e-8)
    np.testing.assert_allclose(result.residual_squares, squares(slice(None)), rtol=1e-8)


def test_tsnr_ignores_drift(rng):
    noise = rng.standard_normal((400, 200))
    slow = 30 * np.cos(np.pi * (np.arange(400) + 0.5) / 400)[:, None]
    _, _, result = fit(200 + 4 * noise + slow, design_of(n_volumes=400))
    assert result.tsnr.mean() == pytest.approx(50, rel=0.01)


def test_z_equals_that_of_nilearn(rng, tmp_path):
    import nibabel as nib

    designs = [design_of(), design_of(EVENTS[:9], n_volumes=60)]
    images, series = [], []
    for design in designs:
        n = len(design.frame_times)
        signal = design.matrix[:, design.trial_columns].sum(axis=1) * 40
        data = 500 + 10 * rng.standard_normal((3, 4, 5, n)) + signal
        images.append(nib.Nifti1Image(data, np.eye(4)))
        series.append(data.reshape(-1, n).T)
    model = FirstLevelModel(
        noise_model="ols",
        signal_scaling=0,
        mask_img=nib.Nifti1Image(np.ones((3, 4, 5), np.uint8), np.eye(4)),
        standardize=False,
    )
    frames = [pd.DataFrame(d.matrix, columns=d.names, index=d.frame_times) for d in designs]
    model.fit(images, design_matrices=frames)
    weights = []
    for design in designs:
        weights.append(np.zeros(len(design.names)))
        weights[-1][design.trial_columns] = 1 / len(design.trials)
    peer = model.compute_contrast(weights, output_type="z_score").get_fdata().reshape(-1)
    ours = stimulus_z([fit(s, d)[2] for s, d in zip(series, designs, strict=True)])
    assert ours.max() > 4
    np.testing.assert_allclose(ours, peer, atol=1e-6)


def test_z_keeps_its_false_positive_rate(rng):
    design = design_of()
    z = stimulus_z([fit(1000 + rng.standard_normal((70, 20000)), design)[2] for _ in range(2)])
    assert (z > 1.6449).mean() == pytest.approx(0.05, abs=0.005)
    assert (z < -1.6449).mean() == pytest.approx(0.05, abs=0.005)


def test_fit_depends_on_no_threads_and_leaves_the_data_alone(rng):
    data = 500 + 10 * rng.standard_normal((70, 101))
    kept = data.copy()
    results = [
        fit(data, design_of(), threads=t, block_voxels=b)[0].tobytes()
        for t, b in [(1, 40), (3, 40)]
    ]
    assert len({hashlib.sha256(r).hexdigest() for r in results}) == 1
    np.testing.assert_array_equal(data, kept)


def test_a_voxel_without_positive_mean_gets_nan(rng):
    data = rng.standard_normal((70, 2)) - [[5.0, -5.0]]
    beta, _, _ = fit(data, design_of())
    assert np.isnan(beta[:, 0]).all()
    assert np.isfinite(beta[:, 1]).all()


# Trials


def test_events_are_grouped_into_blocks_and_conditions():
    events = [
        {"onset": onset, "duration": 1.0, "trial_type": kind, "image": f"i{k}"}
        for k, (onset, kind) in enumerate(
            [(0, "a"), (2, "a"), (4, "a"), (30, "b"), (32, "b"), (60, "b"), (62, "b"), (90, "a")]
        )
    ]
    single, table = make_trials(events)
    assert [t.stimulus for t in single] == [f"i{k}" for k in range(8)]
    assert table["trial_type"].is_unique
    block, table = make_trials(events, trials="block", block_gap=4.0)
    assert [(t.stimulus, t.onset, t.duration) for t in block] == [
        ("a", 0, 5),
        ("b", 30, 3),
        ("b", 60, 3),
        ("a", 90, 1),
    ]
    assert list(table["trial_type"]) == [f"trial_{k:05d}" for k in (1, 1, 1, 2, 2, 3, 3, 4)]
    condition, _ = make_trials(events, trials="condition")
    assert [(t.condition, t.onset) for t in condition] == [("a", 0), ("b", 30)]


def test_block_regressor_is_the_sum_of_its_events():
    events = [{"onset": 10.0 + 2 * k, "duration": 1.0, "trial_type": "a"} for k in range(3)]
    block = design_of(events, trials="block", n_volumes=40)
    single = design_of(events, n_volumes=40)
    np.testing.assert_allclose(
        block.matrix[:, block.trial_columns[0]],
        single.matrix[:, single.trial_columns].sum(axis=1),
        atol=1e-12,
    )


def test_events_that_are_no_trials_are_modelled_by_condition():
    events = [
        *EVENTS,
        {"onset": 15.0, "duration": 0.5, "trial_type": "key", "stim_file": "n/a"},
        {"onset": 70.0, "duration": 0.5, "trial_type": "key", "stim_file": "n/a"},
    ]
    made, table = make_trials(events)
    assert len(made) == 12
    assert (table["trial_type"] == "event_key").sum() == 2
    made, table = make_trials(EVENTS, nuisance_types=["b"])
    assert {t.condition for t in made} == {"a"}
    design = make_design(made, table, n_volumes=70, tr=TR)
    assert "event_b" in design.names
    assert design.names.index("event_b") in design.nuisance_columns


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        (("stim_file", "image", "trial_type"), "stim_file"),
        (("image", "trial_type"), "image"),
        (("trial_type",), "trial_type"),
    ],
)
def test_stimulus_column_is_found(columns, found):
    events = [{"onset": 5, "duration": 1, **dict.fromkeys(columns, "x")} | {found: "s"}]
    assert make_trials(events)[0][0].stimulus == "s"


@pytest.mark.parametrize(
    ("events", "options", "message"),
    [
        ([], {}, "no events"),
        ([{"onset": 1, "duration": 1}], {}, "no column stim_file or"),
        (EVENTS, {"stimulus_column": "picture"}, "no column picture"),
        (EVENTS, {"trial_types": ["face"]}, "no events that are trials"),
        ([{"onset": "n/a", "duration": 1, "trial_type": "a"}], {}, "event 1 has onset 'n/a'"),
        ([{"onset": 1, "duration": -1, "trial_type": "a"}], {}, "negative duration"),
        ([*EVENTS, EVENTS[3]], {"trials": "condition"}, "listed twice"),
    ],
)
def test_bad_events_are_refused(events, options, message):
    with pytest.raises(InputError, match=message):
        make_trials(events, **options)


@pytest.mark.parametrize(
    ("events", "options", "message"),
    [
        (EVENTS, {"n_volumes": 40}, "at or beyond the last volume"),
        ([{"onset": -30.0, "duration": 1, "trial_type": "a"}], {}, "before the first volume"),
        (EVENTS, {"n_volumes": 60, "high_pass": 0.22}, "12 trials and .* for 60 volumes: set glm"),
        (EVENTS, {"n_volumes": 2}, "at least 3"),
        ([*EVENTS, {**EVENTS[0], "stim_file": "x"}], {}, "rank 15 only, the trial at 3.3 s rep"),
    ],
)
def test_bad_designs_are_refused(events, options, message):
    with pytest.raises(InputError, match=message):
        design_of(events, **options)


def test_confounds_that_repeat_the_drift_are_named():
    drift = design_of().matrix[:, design_of().drift_columns[0]]
    with pytest.raises(InputError, match=r"slow|drift_1"):
        design_of(confounds=pd.DataFrame({"slow": 3 * drift}))


# Confounds


def confound_rows(n=20):
    names = [f"{kind}_{axis}" for kind in ("trans", "rot") for axis in "xyz"]
    rows = []
    for t in range(n):
        row = {name: str(np.sin(t + k)) for k, name in enumerate(names)}
        row |= {
            f"{name}_derivative1": "n/a" if t == 0 else str(t * 0.1 + len(name)) for name in names
        }
        row |= {f"{name}_power2": str(np.cos(t * 2 + k)) for k, name in enumerate(names)}
        row |= {
            f"{name}_derivative1_power2": "n/a" if t == 0 else str(np.cos(t * 3 + k))
            for k, name in enumerate(names)
        }
        row |= {"csf": str(t % 3), "still": "4.0", "non_steady_state_outlier00": str(int(t == 0))}
        rows.append(row)
    return rows


def test_confounds_are_chosen_by_strategy_and_pattern():
    rows = confound_rows()
    frame, dropped = choose_confounds(rows, "motion6", n_volumes=20)
    assert frame.shape == (20, 7)  # and the first volume's column
    assert dropped == []
    assert choose_confounds(rows, "motion24", n_volumes=20)[0].shape == (20, 25)
    frame, dropped = choose_confounds(rows, ["csf", "still", "trans_?"], n_volumes=20)
    assert list(frame) == ["csf", "trans_x", "trans_y", "trans_z", "non_steady_state_outlier00"]
    assert dropped == ["still"]
    assert choose_confounds(rows, "none", n_volumes=20)[0].shape == (20, 0)
    assert choose_confounds(rows, [], n_volumes=20)[0].shape == (20, 0)


def test_a_first_row_without_value_has_the_second_rows():
    frame, _ = choose_confounds(confound_rows(), ["trans_x_derivative1"], n_volumes=20)
    assert frame["trans_x_derivative1"][0] == frame["trans_x_derivative1"][1] != 0


def test_outlier_columns_may_be_absent():
    frame, _ = choose_confounds(confound_rows(), ["csf", "motion_outlier*"], n_volumes=20)
    assert "csf" in frame


def test_bad_confounds_are_refused():
    rows = confound_rows()
    with pytest.raises(InputError, match=r"c\.tsv has 20 rows for 21 volumes"):
        choose_confounds(rows, "motion6", n_volumes=21, where="c.tsv")
    with pytest.raises(InputError, match=r"c\.tsv has no column a_comp_cor_\*"):
        choose_confounds(rows, ["a_comp_cor_*"], n_volumes=20, where="c.tsv")
    rows[7]["csf"] = "n/a"
    with pytest.raises(InputError, match=r"c\.tsv has no number in column csf, row 8"):
        choose_confounds(rows, ["csf"], n_volumes=20, where="c.tsv")
    rows[7]["csf"] = "high"
    with pytest.raises(InputError, match="'high' in column csf"):
        choose_confounds(rows, ["csf"], n_volumes=20, where="c.tsv")


# Noise ceiling


@pytest.mark.parametrize("n_repeats", [2, 3, 5])
@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0, 2.0])
def test_noise_ceiling_recovers_the_truth(rng, n_repeats, ratio):
    stimuli = np.repeat(np.arange(120), n_repeats)
    signal = ratio * rng.standard_normal((120, 400))
    session = np.where(np.arange(stimuli.size) % 2, "a", "b")
    beta = 3 * (signal[stimuli] + rng.standard_normal((stimuli.size, 400)))
    beta[session == "b"] = 10 + 2 * beta[session == "b"]  # sessions differ in gain and level
    ceiling, ncsnr = estimate_noise_ceiling(beta, stimuli.astype(str), session)
    truth = ratio**2 / (ratio**2 + 1 / n_repeats)
    # Where there is no signal half of the voxels get a little, as variances do not fall below 0.
    tolerance = 0.03 if ratio else 0.08
    assert ceiling.mean() == pytest.approx(truth, abs=tolerance)
    assert np.median(ncsnr) == pytest.approx(ratio, abs=0.05 if ratio else 0.25)
    if not ratio:
        assert np.median(ceiling) < 0.05


def test_noise_ceiling_counts_repeated_stimuli_only(rng):
    stimulus = ["a", "a", "b", "b", "b", "c"]
    beta = rng.standard_normal((6, 3))
    ceiling, ncsnr = estimate_noise_ceiling(beta, stimulus, ["1"] * 6)
    z = (beta - beta.mean(axis=0)) / beta.std(axis=0, ddof=1)
    noise = (z[:2].var(axis=0, ddof=1) + z[2:5].var(axis=0, ddof=1)) / 2
    ratio = np.maximum(z[:5].var(axis=0, ddof=1) - noise, 0) / noise
    np.testing.assert_allclose(ncsnr, np.sqrt(ratio))
    np.testing.assert_allclose(ceiling, ratio / (ratio + (1 / 2 + 1 / 3) / 2))


def test_noise_ceiling_needs_repeats(rng):
    ceiling, ncsnr = estimate_noise_ceiling(rng.standard_normal((4, 3)), list("abcd"), ["1"] * 4)
    assert np.isnan(ceiling).all()
    assert np.isnan(ncsnr).all()
