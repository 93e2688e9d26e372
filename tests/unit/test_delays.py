import numpy as np
import pytest

from isocortex.encoding.delays import (
    Events,
    Samples,
    averaging_weights,
    delayed,
    lanczos_weights,
    place_samples,
    resampling_weights,
    whole_volumes,
)
from isocortex.errors import InputError


def delayer(features, delays):
    """The Delayer of the voxelwise tutorials, written out for one run."""
    n, p = features.shape
    out = np.zeros((n, p * len(delays)))
    for index, delay in enumerate(delays):
        part = slice(index * p, (index + 1) * p)
        if delay < n:
            out[delay:, part] = features[: n - delay]
    return out


def huth(old, new, tr, window=3):
    """lanczosinterp2D of Huth et al. 2016, its dense matrix."""
    x = (new[:, None] - old[None]) / tr
    with np.errstate(invalid="ignore", divide="ignore"):
        value = window * np.sin(np.pi * x) * np.sin(np.pi * x / window) / (np.pi**2 * x**2)
    value[x == 0] = 1
    value[np.abs(x) > window] = 0
    return value


def test_delays_are_those_of_the_voxelwise_tutorials_run_by_run():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(17, 3)).astype(np.float32)
    delays = (0, 1, 2, 5, 8)
    assert np.array_equal(delayed(features, delays), delayer(features, delays))
    runs = ["b"] * 7 + ["a"] * 6 + ["c"] * 4  # the last shorter than the longest delay
    parts = [features[:7], features[7:13], features[13:]]
    wanted = np.concatenate([delayer(part, delays) for part in parts])
    assert np.array_equal(delayed(features, delays, runs=runs), wanted)


def test_delays_in_seconds_are_rounded_to_volumes():
    assert whole_volumes([2, 4, 6, 8], 2.0) == (1, 2, 3, 4)
    assert whole_volumes([8, 2, 4, 6], 1.317) == (2, 3, 5, 6)
    assert whole_volumes([2, 4, 6, 8], 3.0) == (1, 2, 3)
    for wrong in ([], [-1.0], [np.nan]):
        with pytest.raises(InputError, match=r"encoding\.delays"):
            whole_volumes(wrong, 2.0)


def test_averages_are_integrals_over_the_acquisition():
    start, duration = np.array([0.0, 1.5, 2.0, 6.1]), np.array([1.5, 0.5, 3.0, 0.4])
    got = averaging_weights(start, duration, first=1.0, tr=2.0, n_volumes=4).toarray()
    # volumes are 0-2, 2-4, 4-6, 6-8 s
    wanted = [[0.75, 0.25, 0, 0], [0, 0, 1, 0], [0, 0, 0.5, 0], [0, 0, 0, 0.2]]
    assert np.allclose(got, wanted, atol=1e-12)


def test_averages_against_a_fine_grid():
    rng = np.random.default_rng(1)
    start = np.sort(rng.uniform(-3, 30, 25))
    duration = np.append(np.diff(start) * rng.uniform(0.2, 1, 24), 2.0)
    got = averaging_weights(start, duration, first=0.7, tr=1.3, n_volumes=20).toarray()
    fine = 0.7 - 0.65 + np.arange(20 * 1300) / 1000 + 0.0005
    on = (fine[:, None] >= start) & (fine[:, None] < start + duration)
    assert np.allclose(got, on.reshape(20, 1300, -1).mean(1), atol=2e-3)


def test_overlapping_windows_are_averaged_and_words_without_length_counted():
    got = averaging_weights(np.array([0.0, 0.5]), np.array([2.0, 1.5]), first=1, tr=2, n_volumes=1)
    assert np.allclose(got.toarray(), [[2 / 3.5, 1.5 / 3.5]])
    words = averaging_weights(np.array([0.1, 0.3, 2.0]), np.zeros(3), first=1, tr=2, n_volumes=3)
    assert np.array_equal(words.toarray(), [[1, 1, 0], [0, 0, 1], [0, 0, 0]])


def test_overlapping_windows_are_averaged_for_the_time_that_they_cover():
    # a film of overlapping windows ends half way through the second volume; two words in it
    start = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 2.2, 2.9])
    duration = np.array([1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0])
    got = averaging_weights(start, duration, first=1.0, tr=2.0, n_volumes=3).toarray()
    assert got[:, :5].sum(1) == pytest.approx([1.0, 0.5, 0.0])
    assert got[1, :5] == pytest.approx(0.5 * np.array([0, 0, 0, 0.5, 1]) / 1.5)
    assert got[:, 5:].tolist() == [[0, 0], [1, 1], [0, 0]]
    # windows apart within a volume cover the time of both
    apart = averaging_weights(
        np.array([1.2, 0.1, 0.2]), np.array([0.4, 0.4, 0.3]), first=1.0, tr=2.0, n_volumes=1
    )
    assert apart.sum() == pytest.approx(0.4)


def test_lanczos_is_that_of_huth_2016():
    rng = np.random.default_rng(2)
    start, duration = np.sort(rng.uniform(-2, 40, 90)), rng.uniform(0, 0.5, 90)
    got = lanczos_weights(start, duration, first=1.0, tr=2.0, n_volumes=20).toarray()
    wanted = huth(start + duration / 2, 1 + 2.0 * np.arange(20), 2.0)
    assert np.allclose(got, wanted, atol=1e-12)
    assert (got != 0).sum() > 90
    with pytest.raises(InputError, match=r"encoding\.resampling is 'cubic'"):
        resampling_weights(start, duration, first=0, tr=1, n_volumes=3, method="cubic")


SAMPLES = Samples(
    ids=np.array(["a.png", "film@0000.000", "film@0002.000", "film@0004.000"]),
    source=np.array(["", "film", "film", "film"]),
    time=np.array([np.nan, 0, 2, 4.0]),
    duration=np.array([np.nan, 2, 2, 2.0]),
)


def events(*rows):
    run, onset, duration, stimulus = zip(*rows, strict=True)
    return Events(
        np.array(run), np.array(onset, float), np.array(duration, float), np.array(stimulus)
    )


def test_a_stimulus_whose_samples_begin_after_its_event_shows_nothing():
    late = Samples(np.array(["talk@0003.000"]), np.array(["talk"]), np.array([3.0]), np.ones(1))
    shown = events(("1", 0, 2, "talk"), ("1", 10, 9, "talk"))
    row, start, duration = place_samples(shown, "1", late, where="here")
    assert (row.tolist(), start.tolist(), duration.tolist()) == ([0], [13], [1])


def test_stimuli_are_placed_where_events_show_them():
    shown = events(
        ("1", 10, 6, "film"),
        ("1", 20, 3, "film"),
        ("1", 30, 1.5, "a.png"),
        ("1", 40, 9, "n/a"),
        ("2", 0, 0, "film"),
    )  # repeated, cut short, an image, a pause; in run 2 as long as it is
    row, start, duration = place_samples(shown, "1", SAMPLES)
    assert row.tolist() == [1, 2, 3, 1, 2, 0]
    assert start.tolist() == [10, 12, 14, 20, 22, 30]
    assert duration.tolist() == [2, 2, 2, 2, 1, 1.5]
    row, start, duration = place_samples(shown, "2", SAMPLES)
    assert row.tolist() == [1, 2, 3]
    assert duration.tolist() == [2, 2, 2]
    assert place_samples(shown, "3", SAMPLES)[0].size == 0
    with pytest.raises(InputError, match="'other' of run 1 has no features in here"):
        place_samples(events(("1", 0, 1, "other")), "1", SAMPLES, where="here")
