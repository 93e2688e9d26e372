"""Movies: which frame is read, however the file is made and read."""

import logging
import tracemalloc

import av
import numpy as np
import pytest
import torch
from PIL import Image

from isocortex.errors import InputError
from isocortex.features.images import fit_image, load_images, open_image
from isocortex.features.movies import Movie
from tests.unit.stimulus_files import CODECS, grey_steps, write_frames, write_movie

STEPS = grey_steps(50)


def numbers(images: torch.Tensor) -> np.ndarray:
    """Numbers of the frames of `grey_steps` that were read."""
    return (images.mean((1, 2, 3)) * 255 / 5).numpy()


@pytest.mark.parametrize("ending", CODECS)
def test_the_frame_on_the_screen_is_read_from_every_format(tmp_path, ending):
    movie = Movie(write_movie(tmp_path / f"film{ending}", STEPS), size=8)
    assert movie.duration == pytest.approx(5, abs=0.02)
    times = [0, 0.09, 0.101, 2.55, 4.95]
    read = movie.frames_at(times)
    assert read.shape == (5, 3, 8, 8)
    np.testing.assert_allclose(numbers(read), [0, 0, 1, 25, 49], atol=0.9)  # lossy codecs
    # What is read depends neither on where reading began nor on going back
    again = torch.cat([movie.frames_at([time]) for time in reversed(times)]).flip(0)
    assert torch.equal(again, read)
    fresh = Movie(movie.path, size=8)
    assert torch.equal(fresh.frames_at([2.55]), read[3:4])


@pytest.mark.parametrize("ending", [".npy", ".npz"])
def test_arrays_of_frames_are_read_exactly(tmp_path, ending):
    frames = np.random.default_rng(0).random((6, 8, 8), dtype=np.float32)
    movie = Movie(write_frames(tmp_path / f"film{ending}", frames, FrameRate=2), size=8)
    assert movie.duration == 3
    read = movie.frames_at([0.0, 0.49, 0.5, 2.9])
    for image, number in zip(read, (0, 0, 1, 5), strict=True):
        np.testing.assert_allclose(image, np.broadcast_to(frames[number], (3, 8, 8)), atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "beside", "white"),
    [
        (np.uint8, {}, 255),
        (np.uint16, {}, 65535),
        (bool, {}, 1),
        (np.float64, {}, 1),
        (np.float32, {"Black": -3, "White": 9}, 9),
        (np.int32, {"Black": 0, "White": 7}, 7),
    ],
)
def test_black_and_white_of_arrays(tmp_path, dtype, beside, white):
    frames = np.full((3, 4, 4, 3), white, dtype)
    frames[0] = beside.get("Black", 0)
    path = write_frames(tmp_path / "film.npy", frames, FrameRate=1, **beside)
    read = Movie(path, size=4).frames_at([0.5, 1.5])
    torch.testing.assert_close(read, torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 4, 4))


def test_frames_are_fitted_as_images_are(tmp_path):
    picture = np.random.default_rng(1).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    image = tmp_path / "image.png"
    Image.fromarray(picture).save(image)
    film = write_frames(tmp_path / "film.npy", picture[None], FrameRate=1)
    for fit in ("crop", "stretch", "pad"):
        expected = load_images([image], size=12, fit=fit)
        read = Movie(film, size=12, fit=fit).frames_at([0.0])
        # images are rounded to 8 bits, once along each axis; overshoot is cut off in both
        assert (read - expected).abs().max() < 2.5 / 255


def test_pad_shows_all_of_an_image_on_black():
    padded = np.asarray(
        fit_image(Image.new("RGB", (40, 20), "white"), size=8, fit="pad", resampling="bilinear")
    )
    assert (padded[2:6] == 255).all()
    assert (padded[:2] == 0).all()
    assert (padded[6:] == 0).all()


def test_photographs_are_turned_as_their_orientation_says(tmp_path):
    upright = np.zeros((20, 30, 3), np.uint8)
    upright[:5, :10] = 255  # upper left corner
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    turned = Image.fromarray(np.rot90(upright).copy())
    turned.save(tmp_path / "photograph.png", exif=exif)
    turned.save(tmp_path / "plain.png")
    np.testing.assert_array_equal(np.asarray(open_image(tmp_path / "photograph.png")), upright)
    assert open_image(tmp_path / "plain.png").size == (20, 30)


def test_movies_of_telephones_are_turned_as_they_are_played(tmp_path):
    frames = np.zeros((4, 48, 64, 3), np.uint8)
    frames[:, :12, :16] = 255  # upper left corner
    path = write_movie(tmp_path / "film.mp4", frames)
    content = path.read_bytes()
    one, none = (0x10000).to_bytes(4, "big"), bytes(4)
    last = none + none + (0x40000000).to_bytes(4, "big")
    identity = one + none + none + none + one + none + last
    clockwise = none + one + none + (2**32 - 0x10000).to_bytes(4, "big") + none + none + last
    track = content.index(b"tkhd")
    place = content.index(identity, track)
    assert place - track < 60
    path.write_bytes(content[:place] + clockwise + content[place + len(identity) :])
    shown = Movie(path, size=16, fit="stretch").frames_at([0.0])[0].mean(0)
    assert shown[1:3, 13:15].min() > 0.9  # upper right
    assert shown[:, :10].max() < 0.1


def test_pixels_that_are_not_square_are_stretched(tmp_path):
    frames = np.zeros((4, 32, 32, 3), np.uint8)
    frames[:, :, 8:24] = 255
    film = Movie(write_movie(tmp_path / "film.mp4", frames, pixel=2), size=8)
    # shown 64 x 32: the middle square is the white part
    assert film.frames_at([0.0]).min() > 0.7


def test_a_long_movie_is_never_held_whole(tmp_path):
    frames = np.lib.format.open_memmap(
        tmp_path / "film.npy", "w+", np.uint8, (4000, 128, 128)
    )  # 65 MB
    frames[:] = np.arange(4000, dtype=np.uint16).astype(np.uint8)[:, None, None]
    frames.flush()
    movie = Movie(tmp_path / "film.npy", size=8, frame_rate=100)
    tracemalloc.start()
    for start in range(40):
        movie.frames_at([start, start + 0.5], keep=start + 1.0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3e6


def test_overlapping_windows_are_decoded_once(tmp_path, monkeypatch):
    movie = Movie(write_movie(tmp_path / "film.mp4", STEPS), size=8)
    opened = []
    original = Movie._open
    monkeypatch.setattr(Movie, "_open", lambda self: (opened.append(1), original(self))[1])
    read = [
        movie.frames_at([start + k / 10 + 0.05 for k in range(20)], keep=start + 0.5)
        for start in (0.0, 0.5, 1.0, 1.5)
    ]
    assert len(opened) == 1
    np.testing.assert_allclose(numbers(read[3]), np.arange(15, 35), atol=0.9)


def test_bad_movies_are_told_in_one_line(tmp_path, caplog):
    caplog.set_level(logging.ERROR)
    good = write_movie(tmp_path / "good.mp4", STEPS)
    (tmp_path / "text.mp4").write_text("no movie")
    (tmp_path / "empty.mp4").write_bytes(b"")
    with av.open(str(tmp_path / "sound.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 800), np.int16), format="s16", layout="mono"
        )
        frame.rate = 8000
        for packet in [*stream.encode(frame), *stream.encode()]:
            container.mux(packet)
    np.save(tmp_path / "flat.npy", np.zeros((4, 4)))
    np.save(tmp_path / "none.npy", np.zeros((0, 4, 4)))
    np.save(tmp_path / "words.npy", np.array([[["a"]]]))
    np.save(tmp_path / "order.npy", np.asfortranarray(np.zeros((3, 4, 5))))
    np.savez(tmp_path / "two.npz", a=np.zeros(3), b=np.zeros(3))
    (tmp_path / "broken.npz").write_bytes(b"PK")
    np.save(tmp_path / "wide.npy", np.zeros((2, 4, 4), np.int64))
    cases = {
        "missing.mp4": "no stimulus file",
        "text.mp4": "unreadable movie",
        "empty.mp4": "unreadable movie",
        "sound.mkv": "has no frames",
        "flat.npy": "has the shape",
        "none.npy": "has no frames",
        "words.npy": "no numbers",
        "order.npy": "Fortran order",
        "two.npz": "holds 2 arrays",
        "broken.npz": "unreadable movie",
        "wide.npy": "Black and White",
    }
    for name, words in cases.items():
        with pytest.raises(InputError, match=words) as raised:
            Movie(tmp_path / name, size=8, frame_rate=5)
        assert name in str(raised.value)
        assert "\n" not in str(raised.value)
    np.save(tmp_path / "rateless.npy", np.zeros((2, 4, 4)))
    with pytest.raises(InputError, match=r"no frame rate.*sampling\.frame_rate"):
        Movie(tmp_path / "rateless.npy", size=8)
    bright = write_frames(tmp_path / "bright.npy", np.full((2, 4, 4), 9.0), FrameRate=1)
    with pytest.raises(InputError, match=r"values from 9 to 9.*White into bright\.json"):
        Movie(bright, size=4).frames_at([0.0])
    assert Movie(good, size=8).frames_at([0.0]).shape == (1, 3, 8, 8)


def test_movies_cut_short_are_found(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (60, 48, 64, 3), dtype=np.uint8)
    path = write_movie(tmp_path / "film.mkv", noise)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    movie = Movie(path, size=8)
    assert movie.duration == pytest.approx(6, abs=0.1)  # as its header says
    with pytest.raises(InputError, match=r"ends at .*incomplete"):
        movie.frames_at([5.9])
    array = write_frames(tmp_path / "film.npy", noise, FrameRate=10)
    content = array.read_bytes()
    array.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"ends in frame 3\d of 60"):
        Movie(array, size=8).frames_at([5.9])


def test_unusable_sidecars_are_told(tmp_path):
    frames = np.zeros((2, 4, 4))
    for beside, words in (
        ({"FrameRate": "fast"}, "FrameRate is 'fast'"),
        ({"FrameRate": 0}, "no frame rate"),
        ({"FrameRate": 1, "Black": 2, "White": 1}, "not above Black"),
    ):
        path = write_frames(tmp_path / "film.npy", frames, **beside)
        with pytest.raises(InputError, match=words):
            Movie(path, size=4)
