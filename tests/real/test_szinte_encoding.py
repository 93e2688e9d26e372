"""V1 and moving bars: contrast energy with delays against pRF fits, on the same held-out blocks."""

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy.signal import lfilter
from scipy.stats import gamma

from isocortex import store
from isocortex.encoding import fit_encoding
from isocortex.encoding.design import design_of, open_responses
from isocortex.features import extract_features
from isocortex.glm import import_timeseries
from tests.real import studies

MODEL = "contrast"


def canonical_response():
    """The response that the pRFs were fitted with: SPM's, at the TR, of unit sum."""
    time = np.linspace(1e-4, 32, 24)
    response = gamma.pdf(time, 6) - gamma.pdf(time, 16) / 6
    return response / response.sum()


@pytest.fixture(scope="module")
def study(data, tmp_path_factory):
    """The example's stores, the vertices' pRFs and what these predict, without baseline."""
    folder = tmp_path_factory.mktemp("szinte")
    studies.prepare("szinte", data, folder)
    config = yaml.safe_load((studies.EXAMPLES / "szinte.yaml").read_text())
    inputs = folder / "inputs" / "szinte"
    source = data / "szinte2024-v1"
    series, features = folder / "series.zarr", folder / "features.zarr"
    import_timeseries(
        files=[source / "mask-v1_bold.tsv.gz"],
        events=[inputs / "events.tsv"],
        tr=studies.SZINTE_TR,
        runs=[{"session": "", "run": "1"}],
        out=series,
        subject="01",
        task="retinotopy",
    )
    extract_features(
        stimuli=[inputs / "stimuli" / "bars.npy"],
        stimulus_ids=["bars.npy"],
        out=features,
        model=MODEL,
        device="cpu",
        **config["features"]["models"][MODEL],
    )
    fit_encoding(
        responses=series,
        features=features,
        out=folder / "encoding.zarr",
        maps=folder / "maps",
        cross_validation={},
        device="cpu",
        **config["encoding"],
    )
    result = store.open(folder / "encoding.zarr", "encoding").load()
    options = {key: config["encoding"][key] for key in ("delays", "gap")}
    design = design_of(open_responses(series), features, cross_validation={}, **options)

    fits = pd.read_csv(source / "gauss_parameters.tsv", sep="\t").iloc[result["i"].values]
    fits["sd"] = fits["sd"].where(fits["sd"] > 0)
    grid = pd.read_csv(source / "grid_coordinates.tsv", sep="\t")
    movie = np.load(source / "dm_gazecenter.npz")["arr_0"].reshape(150, -1)
    distance = sum(
        (grid[axis].to_numpy() - fits[axis].to_numpy()[:, None]) ** 2 for axis in ("x", "y")
    )
    field = np.exp(-distance / (2 * fits["sd"].to_numpy()[:, None] ** 2))
    drive = movie @ field.T
    response = canonical_response()
    # what was on the screen first was there before
    drive = np.vstack([np.repeat(drive[:1], len(response), 0), drive])
    predicted = lfilter(response, [1.0], drive, axis=0)[len(response) :]
    values = open_responses(series).read(0, result.sizes["voxel"]).astype(float)
    return result, design, fits, predicted, values


def centred_r2(predicted, values):
    """Share of the variance of held-out volumes."""
    rest = ((values - predicted) ** 2).sum(0)
    return 1 - rest / ((values - values.mean(0)) ** 2).sum(0)


def refitted(design, predicted, values):
    """Held-out r2 of a prediction whose amplitude and baseline the training volumes give."""
    scores = []
    for fold in design.cv.folds:
        x, y = predicted[fold.train_stimuli], values[fold.train_stimuli]
        slope = ((x - x.mean(0)) * (y - y.mean(0))).sum(0) / ((x - x.mean(0)) ** 2).sum(0)
        test = y.mean(0) + slope * (predicted[fold.test_trials] - x.mean(0))
        scores.append(centred_r2(test, values[fold.test_trials]))
    return np.mean(scores, 0)


def as_shipped(design, fits, predicted, values):
    """Held-out r2 of the pRFs with their own amplitudes, fitted to all volumes.

    Their amplitudes are in units of 1 / sd and of the stimulus; one factor and one offset for
    all vertices take them to the time series.
    """
    own = predicted / fits["sd"].to_numpy() * fits["amplitude"].to_numpy()
    slope = ((own - own.mean(0)) * (values - values.mean(0))).sum(0)
    slope /= ((own - own.mean(0)) ** 2).sum(0)
    good = fits["r2"].to_numpy() > 0.3
    assert np.ptp(np.percentile(slope[good], [5, 95])) < 0.01 * np.median(slope[good])
    own = own * np.median(slope[good]) + fits["baseline"].to_numpy()
    own += np.median((values - own).mean(0)[good])
    tests = [fold.test_trials for fold in design.cv.folds]
    return np.mean([centred_r2(own[test], values[test]) for test in tests], 0)


def test_our_reading_of_the_shipped_fits_reproduces_their_r2(study):
    _, _, fits, predicted, values = study
    fitted = np.flatnonzero(np.isfinite(fits["r2"]))
    r = [np.corrcoef(predicted[:, k], values[:, k])[0, 1] for k in fitted]
    assert len(fitted) > 1200
    np.testing.assert_allclose(np.square(r), fits["r2"].to_numpy()[fitted], atol=5e-4)


def test_contrast_energy_predicts_held_out_blocks_where_the_fits_do(study):
    result, design, fits, predicted, values = study
    assert "5 contiguous blocks" in result.attrs["folds"]
    assert result.attrs["delays_volumes"] == [2, 3, 4, 5]
    with np.errstate(invalid="ignore"):
        theirs = refitted(design, predicted, values)
        shipped = as_shipped(design, fits, predicted, values)
    r, r2 = result["score"].values[0], result["r2"].values[0]
    told = fits["r2"].to_numpy()
    strong = told > 0.3
    assert strong.sum() > 600
    assert np.median(r[strong]) > 0.5
    assert np.median(r2[strong]) > 0.14
    assert np.corrcoef(r2[strong], theirs[strong])[0, 1] > 0.75
    assert abs(np.median(theirs[strong]) - np.median(shipped[strong])) < 0.05
    assert np.median(r2[~np.isfinite(told)]) < 0.05
    # one place and size, fitted to all volumes, is a better prior than 16 x 16 free cells
    assert np.median(theirs[strong]) > np.median(r2[strong])
