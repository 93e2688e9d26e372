"""Samples: what one row of a model's features is, for stimuli of all kinds."""

import numpy as np
import pytest
import torch
from PIL import Image

from isocortex import features, store
from isocortex.errors import InputError
from isocortex.features.samples import Batch, Sampling, sample_id, samples_of
from tests.unit.stimulus_files import grey_steps, write_frames, write_movie


@pytest.fixture
def stimuli(tmp_path):
    """Two images, a movie of 5 s, an array of 3 s, a caption and a table of words."""
    for number, name in enumerate(("b.png", "a.png")):
        Image.new("RGB", (20, 16), (100 * number,) * 3).save(tmp_path / name)
    write_movie(tmp_path / "film.mp4", grey_steps(50))
    write_frames(tmp_path / "bars.npy", np.linspace(0, 1, 6)[:, None, None] * np.ones((8, 8)))
    (tmp_path / "caption.txt").write_text("A cow on a meadow")
    (tmp_path / "story.tsv").write_text("onset\tword\n0.5\tOnce\n0.9\tupon\n1.4\ta\n")
    names = ("b.png", "a.png", "film.mp4", "bars.npy", "caption.txt", "story.tsv")
    return {name: tmp_path / name for name in names}


RATE = {"frame_rate": 2.0}


def test_image_models_see_images_and_frames(stimuli):
    samples = samples_of(stimuli, size=8, sampling=Sampling(window=1.5, frames=3, **RATE))
    assert samples.ids == [
        "a.png",
        "b.png",
        *(f"bars.npy@000{n}.{d}00" for n, d in ((0, 0), (1, 5))),
        *(f"film.mp4@000{n}.{d}00" for n, d in ((0, 0), (1, 5), (3, 0))),
    ]
    assert samples.source == ["", ""] + ["bars.npy"] * 2 + ["film.mp4"] * 3
    np.testing.assert_array_equal(samples.time, [np.nan, np.nan, 0, 1.5, 0, 1.5, 3])
    np.testing.assert_array_equal(samples.duration, [np.nan] * 2 + [1.5] * 5)
    assert samples.counts == [1, 1, 3, 3, 3, 3, 3]
    assert samples.skipped == {"caption": 1, "words": 1}
    batch = samples.load(1, 4)
    assert batch.inputs.shape == (7, 3, 8, 8)
    means = batch.average(batch.inputs).mean((1, 2, 3))
    # the array's six frames, half a second each, are 0 .2 ... 1
    torch.testing.assert_close(means, torch.tensor([0.0, 0.2, 0.8]), atol=1e-6, rtol=0)
    frames = samples.load(4, 5).inputs.mean((1, 2, 3)) * 255 / 5
    np.testing.assert_allclose(frames, [2, 7, 12], atol=0.9)


def test_movie_models_see_clips_of_movies_alone(stimuli):
    samples = samples_of(
        stimuli, size=8, takes="movie", sampling=Sampling(window=2, rate=1, frames=4, **RATE)
    )
    assert samples.ids == [
        *(sample_id("bars.npy", n) for n in (0, 1)),
        *(sample_id("film.mp4", n) for n in (0, 1, 2, 3)),
    ]
    assert samples.skipped == {"image": 2, "caption": 1, "words": 1}
    batch = samples.load(1, 3)
    assert batch.inputs.shape == (2, 4, 3, 8, 8)
    np.testing.assert_allclose(batch.inputs[0].mean((1, 2, 3)), [0.4, 0.6, 0.8, 1], atol=1e-6)
    np.testing.assert_allclose(batch.inputs[1].mean((1, 2, 3)) * 255 / 5, [2, 7, 12, 17], atol=0.9)


def test_text_models_read_captions_and_words(stimuli):
    samples = samples_of(stimuli, takes="text", sampling=Sampling(context=1))
    assert samples.ids == ["caption.txt"] + [f"story.tsv@000{t}00" for t in ("0.5", "0.9", "1.4")]
    assert samples.source == ["", *["story.tsv"] * 3]
    np.testing.assert_allclose(samples.duration, [np.nan, 0.4, 0.5, 0.5])
    assert [text.text for text in samples.load(0, 4).inputs] == [
        "A cow on a meadow",
        "Once",
        "Once upon",
        "upon a",
    ]
    assert samples.skipped == {"image": 2, "movie": 2}
    # what is too long is cut at the end of captions and at the beginning of contexts
    assert samples.ranges(100) == [(0, 1), (1, 4)]


def test_without_window_and_rate_a_movie_is_one_sample(stimuli):
    samples = samples_of(stimuli, size=8, sampling=Sampling(**RATE))
    assert samples.ids == ["a.png", "b.png", "bars.npy", "film.mp4"]
    assert not samples.varying
    assert samples.counts == [1, 1, 3, 5]  # a frame a second
    clips = samples_of(stimuli, size=8, takes="movie", sampling=Sampling(**RATE), frame_rate=4)
    # clips of different lengths are never in one batch
    assert clips.ranges(100) == [(0, 1), (1, 2)]
    assert clips.load(1, 2).inputs.shape == (1, 20, 3, 8, 8)


@pytest.mark.parametrize("takes", ["image", "movie"])
@pytest.mark.parametrize("size", [1, 4, 5, 100])
def test_ranges_cover_all_samples_and_stay_within_a_batch(stimuli, takes, size):
    sampling = Sampling(window=0.5, frames=2, **RATE)
    samples = samples_of(stimuli, size=8, takes=takes, sampling=sampling)
    ranges = samples.ranges(size)
    assert [n for first, last in ranges for n in range(first, last)] == list(range(len(samples)))
    frames = 2 if takes == "movie" else 1
    for first, last in ranges:
        assert last - first == 1 or frames * sum(samples.counts[first:last]) <= size
    assert samples.ranges(size, 3)[0][0] == 3
    # as few as that allows
    total = frames * sum(samples.counts)
    assert len(ranges) <= max(np.ceil(total / max(size // 2 * 2 - 1, 1)), 1) + 1


def test_a_batch_averages_the_frames_of_a_sample():
    values = torch.arange(12.0).view(6, 2)
    assert torch.equal(Batch(values, (1,) * 6).average(values), values)
    torch.testing.assert_close(
        Batch(values, (3, 3)).average(values), torch.tensor([[2.0, 3], [8, 9]])
    )
    torch.testing.assert_close(
        Batch(values, (1, 2, 3)).average(values), torch.tensor([[0.0, 1], [3, 4], [8, 9]])
    )
    with pytest.raises(ValueError, match="5 rows for 6 inputs"):
        Batch(values, (3, 3)).average(values[:5])


def test_stimuli_that_a_model_cannot_take(stimuli):
    images = {name: path for name, path in stimuli.items() if name.endswith(".png")}
    with pytest.raises(InputError, match=r"features\.models\.lm takes texts.*2 of kind image"):
        samples_of(images, takes="text", model="lm")
    with pytest.raises(InputError, match=r"lasts 3 s, less than one window of 4 s"):
        samples_of(stimuli, size=8, sampling=Sampling(window=4, **RATE))
    with pytest.raises(InputError, match=r"bars\.npy has no frame rate"):
        samples_of(stimuli, size=8)


def test_features_of_movies_and_images_in_one_store(tmp_path, stimuli):
    out = tmp_path / "model-rgb_features.zarr"
    features.extract_features(
        stimuli=list(stimuli.values()),
        stimulus_ids=list(stimuli),
        out=out,
        model="rgb",
        architecture="pixels",
        image_size=8,
        sampling={"window": 1.5, "frames": 3, "frame_rate": 2.0},
        pool="mean",
        batch_size=4,
    )
    with store.open(out, "features", group="rgb") as opened:
        ids = opened["stimulus"].values.tolist()
        values = opened["activation"].values
        assert opened.attrs["skipped"] == "1 caption, 1 words"
        assert opened["source"].values.tolist() == [
            "",
            "",
            "bars.npy",
            "bars.npy",
            *["film.mp4"] * 3,
        ]
        np.testing.assert_array_equal(opened["duration"].values[2:], 1.5)
        np.testing.assert_array_equal(opened["time"].values[2:], [0, 1.5, 0, 1.5, 3])
    assert ids[2] == "bars.npy@0000.000"
    np.testing.assert_allclose(values[2:4, 0], [0.2, 0.8], atol=1e-6)
    np.testing.assert_allclose(values[4:, 0] * 255 / 5, [7, 22, 37], atol=0.9)


def test_features_of_clips(tmp_path, stimuli):
    out = tmp_path / "model-bars_features.zarr"
    features.extract_features(
        stimuli=list(stimuli.values()),
        stimulus_ids=list(stimuli),
        out=out,
        model="bars",
        architecture="contrast-energy",
        options={"grid": 2, "field_of_view": 10},
        sampling={"window": 1, "frames": 2, "frame_rate": 2.0},
        batch_size=6,
    )
    assert store.groups(out) == ["contrast", "flicker"]
    with store.open(out, "features", group="contrast") as opened:
        contrast = opened["activation"].values[:3]
        assert opened.attrs["column_x"] == [-2.5, 2.5]
        assert opened.attrs["options"] == {"grid": 2, "background": 0.0}
    expected = [(0 + 0.04) / 2, (0.16 + 0.36) / 2, (0.64 + 1) / 2]
    np.testing.assert_allclose(contrast[:, 0, 0, 1], expected, atol=1e-5)
    with store.open(out, "features", group="flicker") as opened:
        np.testing.assert_allclose(opened["activation"].values[:3], 0.04, atol=1e-5)
