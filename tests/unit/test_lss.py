"""Least squares separate and autoregressive noise: against loops over nilearn's models."""

import numpy as np
import pandas as pd
import pytest
from nilearn.glm.first_level import make_first_level_design_matrix, run_glm
from nilearn.glm.first_level.first_level import FirstLevelModel

from isocortex.glm import make_design, make_trials
from isocortex.glm.autocorrelation import estimate_ar1
from isocortex.glm.estimate import RunModel

TR = 2.0
N_VOLUMES = 80
CONDITIONS = ["face", "house", "face", "tool", "house", "face", "tool", "tool", "face", "one"]
TIMES = TR * np.arange(N_VOLUMES)


@pytest.fixture
def rng():
    return np.random.default_rng(3)


@pytest.fixture
def run(rng):
    """A run: its design, its confounds, its events as nilearn takes them, and data (percent)."""
    events = [
        {"onset": 4.0 + 14.3 * k + rng.uniform(0, 2), "duration": 2.0, "trial_type": condition}
        for k, condition in enumerate(CONDITIONS)
    ]
    rows = [{**event, "stim_file": f"{k}.png"} for k, event in enumerate(events)]
    confounds = pd.DataFrame(rng.standard_normal((N_VOLUMES, 2)), columns=["trans_x", "csf"])
    data = rng.standard_normal((N_VOLUMES, 60))
    for volume in range(1, N_VOLUMES):  # from -0.3 to 0.7
        data[volume] += np.linspace(-0.3, 0.7, 60) * data[volume - 1]
    return rows, confounds, pd.DataFrame(events), data + np.sin(TIMES / 40)[:, None]


def design_of(rows, confounds, *, hrf="glover", **options):
    trials, table = make_trials(rows, **options)
    return make_design(trials, table, n_volumes=N_VOLUMES, tr=TR, hrf=hrf, confounds=confounds)


def separate_events(events, trial, others):
    """Isolate a trial as nilearn's example of beta series does, or with one label for the rest."""
    changed = events.copy()
    if others == "together":
        changed["trial_type"] = "rest"
    changed.loc[trial, "trial_type"] = "own"
    return changed


def looped(events, confounds, data, *, hrf, others, noise_model):
    found = []
    for trial in range(len(events)):
        matrix = make_first_level_design_matrix(
            TIMES,
            separate_events(events, trial, others),
            hrf_model=hrf,
            add_regs=confounds.to_numpy(),
            add_reg_names=list(confounds),
        )
        labels, results = run_glm(data, matrix.to_numpy(), noise_model=noise_model)
        beta = np.empty(data.shape[1])
        for label, result in results.items():
            beta[labels == label] = result.theta[list(matrix).index("own")]
        found.append(beta)
    return np.array(found)


@pytest.mark.parametrize("noise_model", ["ols", "ar1"])
@pytest.mark.parametrize("others", ["together", "condition"])
@pytest.mark.parametrize("hrf", ["glover", "spm + derivative"])
def test_separate_models_equal_the_loop_over_nilearn(run, hrf, others, noise_model):
    rows, confounds, events, data = run
    model = RunModel(
        design_of(rows, confounds, hrf=hrf),
        estimator="lss",
        lss_others=others,
        noise_model=noise_model,
    )
    peer = looped(events, confounds, data, hrf=hrf, others=others, noise_model=noise_model)
    np.testing.assert_allclose(model.fit(data).beta, peer, rtol=0, atol=1e-6)


def test_separate_models_of_blocks_equal_the_loop(run):
    rows, confounds, events, data = run
    rows = [{**row, "trial_type": "ab"[k // 2 % 2]} for k, row in enumerate(rows)]
    design = design_of(rows, confounds, trials="block", block_gap=20)
    assert len(design.trials) == 5
    events["trial_type"] = [f"block{k // 2}" for k in range(len(rows))]
    found = []
    for block in sorted(set(events["trial_type"])):
        own = np.where(events["trial_type"] == block, "own", "rest")
        matrix = make_first_level_design_matrix(
            TIMES,
            events.assign(trial_type=own),
            add_regs=confounds.to_numpy(),
            add_reg_names=list(confounds),
        )
        _, results = run_glm(data, matrix.to_numpy(), noise_model="ols")
        found.append(results[0.0].theta[list(matrix).index("own")])
    ours = RunModel(design, estimator="lss").fit(data).beta
    np.testing.assert_allclose(ours, found, rtol=0, atol=1e-6)


def test_residuals_and_z_are_those_of_the_model_with_all_trials(run):
    rows, confounds, _, data = run
    design = design_of(rows, confounds)
    together, apart = (RunModel(design, estimator=name).fit(data) for name in ("lsa", "lss"))
    for name in ("residual", "residual_squares", "effect", "variance"):
        np.testing.assert_array_equal(getattr(together, name), getattr(apart, name))
    assert np.abs(together.beta - apart.beta).max() > 0.1


def test_separate_betas_are_steadier_where_trials_overlap(rng):
    """The reason for separate models: noise of overlapping trials is not traded between them."""
    rows = [
        {"onset": 3.0 + 3 * k, "duration": 1.0, "trial_type": "a", "stim_file": f"{k}"}
        for k in range(45)
    ]
    design = design_of(rows, None)
    truth = 2 + rng.standard_normal((45, 200))
    signal = design.matrix[:, design.trial_columns] @ truth
    noisy = signal + 3 * rng.standard_normal(signal.shape)
    error = {
        name: np.mean((RunModel(design, estimator=name).fit(noisy).beta - truth) ** 2)
        for name in ("lsa", "lss")
    }
    assert error["lss"] < 0.2 * error["lsa"]


def test_autoregressive_fit_equals_run_glm(run):
    rows, confounds, _, data = run
    design = design_of(rows, confounds)
    ours = RunModel(design, noise_model="ar1").fit(data)
    labels, results = run_glm(data, design.matrix, noise_model="ar1")
    assert len(results) > 20
    weights = np.zeros(len(design.names))
    weights[design.trial_columns] = 1 / len(design.trials)
    for label, result in results.items():
        voxels = labels == label
        np.testing.assert_allclose(
            ours.beta[:, voxels], result.theta[design.trial_columns], atol=1e-6
        )
        residual = data[:, voxels] - design.matrix @ result.theta
        np.testing.assert_allclose(ours.residual[:, voxels], residual, atol=1e-6)
        contrast = result.Tcontrast(weights)
        np.testing.assert_allclose(ours.effect[voxels], contrast.effect, atol=1e-6)
        np.testing.assert_allclose(ours.variance[voxels], contrast.sd.ravel() ** 2, atol=1e-6)
        np.testing.assert_allclose(ours.residual_squares[voxels], result.SSE, rtol=1e-6)


def test_coefficients_equal_those_of_run_glm(run):
    rows, confounds, _, data = run
    matrix = design_of(rows, confounds).matrix
    labels, _ = run_glm(data, matrix, noise_model="ar1")
    residual = data - matrix @ np.linalg.lstsq(matrix, data, rcond=None)[0]
    np.testing.assert_array_equal(estimate_ar1(residual), labels.astype(float))


def test_prewhitened_z_keeps_its_false_positive_rate(rng):
    """Ordinary least squares does not, of data with slow noise."""
    rows = [
        {"onset": 4.0 + 40 * k, "duration": 20.0, "trial_type": "a", "stim_file": f"{k}"}
        for k in range(8)
    ]
    trials, table = make_trials(rows, trials="condition")
    n_volumes, n_voxels = 180, 6000
    design = make_design(trials, table, n_volumes=n_volumes, tr=TR, high_pass=0.005)
    noise = rng.standard_normal((n_volumes + 50, n_voxels))
    for volume in range(1, len(noise)):
        noise[volume] += 0.5 * noise[volume - 1]
    share = {}
    for name in ("ols", "ar1"):
        fit = RunModel(design, noise_model=name).fit(noise[50:])
        share[name] = np.mean(fit.effect / np.sqrt(fit.variance) > 1.653)  # t of 177, 5 %
    # 99 % of the binomial, and what is left because the coefficient itself is estimated
    assert abs(share["ar1"] - 0.05) < 2.576 * np.sqrt(0.05 * 0.95 / n_voxels) + 0.01
    assert share["ols"] > 0.1


def test_a_voxel_without_numbers_leaves_the_others_alone(run):
    rows, confounds, _, data = run
    design = design_of(rows, confounds)
    model = RunModel(design, estimator="lss", noise_model="ar1")
    holes = data.copy()
    holes[:, 7] = np.nan
    whole, rest = model.fit(data), model.fit(holes)
    assert np.isnan(rest.beta[:, 7]).all()
    others = np.arange(60) != 7
    np.testing.assert_allclose(rest.beta[:, others], whole.beta[:, others], atol=1e-12)


def test_condition_and_block_designs_equal_those_of_nilearn(run):
    rows, confounds, events, _ = run
    conditions = design_of(rows, confounds, trials="condition")
    peer = make_first_level_design_matrix(
        TIMES, events, add_regs=confounds.to_numpy(), add_reg_names=list(confounds)
    )
    order = [trial.condition for trial in conditions.trials]
    np.testing.assert_allclose(
        conditions.matrix[:, conditions.trial_columns], peer[order].to_numpy(), atol=1e-6
    )
    np.testing.assert_allclose(
        conditions.matrix[:, conditions.nuisance_columns],
        peer.drop(columns=order).to_numpy(),
        atol=1e-6,
    )
    rows = [{**row, "trial_type": "ab"[k // 2 % 2]} for k, row in enumerate(rows)]
    blocks = design_of(rows, confounds, trials="block", block_gap=20)
    events["trial_type"] = [f"block{k // 2}" for k in range(len(rows))]
    peer = make_first_level_design_matrix(TIMES, events)
    np.testing.assert_allclose(
        blocks.matrix[:, blocks.trial_columns],
        peer[[f"block{k}" for k in range(5)]].to_numpy(),
        atol=1e-6,
    )


def test_betas_of_conditions_equal_those_of_first_level_model(run, tmp_path):
    import nibabel as nib

    rows, confounds, events, data = run
    volume = 100 * (1 + data.T.reshape(5, 4, 3, N_VOLUMES) / 100)
    model = FirstLevelModel(
        t_r=TR,
        noise_model="ar1",
        signal_scaling=0,
        mask_img=nib.Nifti1Image(np.ones((5, 4, 3), np.uint8), np.eye(4)),
        minimize_memory=False,
    ).fit(nib.Nifti1Image(volume, np.eye(4)), events, confounds)
    design = design_of(rows, confounds, trials="condition")
    scaled = 100 * (volume.reshape(60, -1).T / volume.reshape(60, -1).mean(axis=1) - 1)
    ours = RunModel(design, noise_model="ar1").fit(scaled).beta
    for trial, beta in zip(design.trials, ours, strict=True):
        peer = model.compute_contrast(trial.condition, output_type="effect_size")
        np.testing.assert_allclose(beta, peer.get_fdata().ravel(), atol=1e-6)
