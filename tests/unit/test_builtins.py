"""Features without learning: each against its closed form or an independent computation."""

import math

import numpy as np
import pytest
import torch
from skimage import color

from isocortex.errors import InputError
from isocortex.features import build_architecture
from isocortex.features.colour import Colour
from isocortex.features.gist import Gist
from isocortex.features.luminance import ContrastEnergy, LuminanceContrast, cell_means
from isocortex.features.motion import MotionEnergy
from isocortex.features.samples import Sampling
from tests.unit.stimulus_files import drifting_grating


def layer_outputs(module, inputs):
    """Outputs of a module's children by name."""
    seen = {}
    handles = [
        child.register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: out}))
        for name, child in module.named_children()
    ]
    module(inputs)
    for handle in handles:
        handle.remove()
    return seen


def random_images(n, size, seed=0):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


# Luminance and contrast


@pytest.mark.parametrize(("size", "cells"), [(16, 4), (17, 5), (5, 7)])
def test_cell_means_are_those_of_torch(size, cells):
    images = random_images(2, size).double()
    expected = torch.nn.functional.adaptive_avg_pool2d(images, cells)
    torch.testing.assert_close(cell_means(images, cells), expected, atol=1e-12, rtol=0)


def test_luminance_and_contrast_are_mean_and_sd_of_each_cell():
    images = random_images(3, 32)
    got = layer_outputs(LuminanceContrast(grid=4), images)
    grey = np.tensordot((0.299, 0.587, 0.114), images.double().numpy(), axes=(0, 1))
    cells = grey.reshape(3, 4, 8, 4, 8)
    np.testing.assert_allclose(got["luminance"][:, 0], cells.mean((2, 4)), atol=1e-6)
    np.testing.assert_allclose(got["contrast"][:, 0], cells.std((2, 4)), atol=1e-6)


def test_a_low_contrast_on_a_bright_ground_is_not_lost():
    checks = 0.9 + 1e-4 * (torch.arange(64).view(8, 8) % 2 - 0.5)
    got = LuminanceContrast(grid=1)(checks.expand(1, 3, 8, 8))
    assert got[0, 1].item() == pytest.approx(0.5e-4, rel=1e-2)


def test_linear_luminance_undoes_the_curve_of_srgb():
    images = torch.tensor([[0.5, 0.5, 0.5], [1, 0, 0], [0.02, 0.02, 0.02]])[:, :, None, None]
    got = LuminanceContrast(grid=1, linear=True)(images.expand(3, 3, 4, 4))[:, 0].flatten()
    expected = [((0.5 + 0.055) / 1.055) ** 2.4, 0.2126, 0.02 / 12.92]
    np.testing.assert_allclose(got, expected, rtol=1e-5)


# Contrast energy and flicker


def test_contrast_of_a_silhouette_is_the_share_of_the_cell_that_it_covers():
    clip = torch.zeros(1, 2, 3, 16, 16)
    clip[:, :, :, :, 2:8] = 1  # a bar over 3/4 of the left column of cells
    got = layer_outputs(ContrastEnergy(grid=2), clip)
    np.testing.assert_allclose(got["contrast"][0, 0], [[0.75, 0], [0.75, 0]], atol=1e-6)
    assert got["flicker"].abs().max() == 0


def test_flicker_is_the_squared_change_from_frame_to_frame():
    levels = torch.tensor([0.5, 0.9, 0.5, 0.2])
    clip = levels.view(1, 4, 1, 1, 1).expand(1, 4, 3, 8, 8)
    got = layer_outputs(ContrastEnergy(grid=2, background=0.5), clip)
    np.testing.assert_allclose(got["contrast"], (0.16 + 0.09) / 4, atol=1e-6)
    np.testing.assert_allclose(got["flicker"], (0.16 + 0.16 + 0.09) / 3, atol=1e-6)
    still = layer_outputs(ContrastEnergy(grid=2), clip[:, :1])
    assert "flicker" not in still


# Colour


def test_lab_is_that_of_scikit_image():
    images = random_images(2, 16)
    images[0, :, 0, :4] = torch.tensor([0.0, 1.0, 0.01, 0.5])
    got = layer_outputs(Colour(grid=16), images)["lab"]
    expected = color.rgb2lab(images.permute(0, 2, 3, 1).double().numpy())
    np.testing.assert_allclose(got.permute(0, 2, 3, 1), expected, atol=0.01)


def test_opponent_channels_of_plain_colours():
    plain = torch.tensor([[1.0, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]])[:, :, None, None]
    got = Colour(grid=1)(plain.expand(4, 3, 4, 4)).flatten(1)
    root = math.sqrt
    expected = [
        [0, 0, root(3)],
        [1 / root(2), 1 / root(6), 1 / root(3)],
        [-1 / root(2), 1 / root(6), 1 / root(3)],
        [0, -2 / root(6), 1 / root(3)],
    ]
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_histograms_are_those_of_numpy_in_each_cell():
    images = random_images(2, 24)
    got = layer_outputs(Colour(grid=2, bins=5), images)["histogram"]
    values = color.rgb2lab(images.permute(0, 2, 3, 1).double().numpy())
    for row in range(2):
        for column in range(2):
            cell = values[0, 12 * row : 12 * row + 12, 12 * column : 12 * column + 12]
            for channel, (low, high) in enumerate(((0, 100), (-100, 100), (-100, 100))):
                counts, _ = np.histogram(cell[..., channel].clip(low, high), 5, (low, high))
                shares = got[0, 5 * channel : 5 * channel + 5, row, column]
                # a pixel at a bin's edge may fall to either side
                np.testing.assert_allclose(shares, counts / 144, atol=1.01 / 144)
    torch.testing.assert_close(got.sum(1), torch.full((2, 2, 2), 3.0))


# Gist


def gist_of(image, *, scales, orientations, blocks):
    """The descriptor of one grey image as its source computes it, in float64."""
    image = 255 * (image - image.min()) / (image.max() - image.min())
    values = np.pad(np.log(image + 1), 5, mode="symmetric")
    n = len(values)
    fx, fy = np.meshgrid(np.arange(-n // 2, n // 2), np.arange(-n // 2, n // 2))
    low = np.fft.fftshift(np.exp(-(fx**2 + fy**2) / (4 / np.sqrt(np.log(2))) ** 2))
    high = values - np.fft.ifft2(np.fft.fft2(values) * low).real
    local = np.sqrt(np.abs(np.fft.ifft2(np.fft.fft2(high**2) * low)))
    filtered = (high / (0.2 + local))[5:-5, 5:-5]
    spectrum = np.fft.fft2(np.pad(filtered, 32, mode="symmetric"))
    n = len(spectrum)
    fx, fy = np.meshgrid(np.arange(-n // 2, n // 2), np.arange(-n // 2, n // 2))
    radius, angle = np.fft.fftshift(np.hypot(fx, fy)), np.fft.fftshift(np.angle(fx + 1j * fy))
    found = []
    for scale in range(scales):
        for orientation in range(orientations):
            turned = angle + np.pi / orientations * orientation
            turned = turned + 2 * np.pi * (turned < -np.pi) - 2 * np.pi * (turned > np.pi)
            gabor = np.exp(
                -10 * 0.35 * (radius / n / (0.3 / 1.85**scale) - 1) ** 2
                - 2 * (16 * orientations**2 / 32**2) * np.pi * turned**2
            )
            answer = np.abs(np.fft.ifft2(spectrum * gabor))[32:-32, 32:-32]
            side = len(answer) // blocks
            found.append(answer.reshape(blocks, side, blocks, side).mean((1, 3)))
    return np.stack(found)


def test_gist_is_that_of_its_source():
    rng = np.random.default_rng(2)
    smooth = np.cumsum(np.cumsum(rng.standard_normal((2, 64, 64)), axis=1), axis=2)
    smooth = (smooth - smooth.min()) / np.ptp(smooth)
    model = Gist(size=64, scales=3, orientations=6, blocks=4)
    images = torch.from_numpy(smooth).to(torch.float32)[:, None].expand(-1, 3, -1, -1)
    for image, got in zip(smooth, model(images), strict=True):
        expected = gist_of(image, scales=3, orientations=6, blocks=4)
        np.testing.assert_allclose(got, expected, atol=1e-4 * expected.max())


def test_gist_of_a_uniform_image_is_zero_and_contrast_does_not_matter():
    model = Gist(size=64)
    assert model(torch.full((1, 3, 64, 64), 0.3)).abs().max() < 1e-5
    image = random_images(1, 64).mean(1, keepdim=True).expand(-1, 3, -1, -1)
    torch.testing.assert_close(model(0.2 + 0.5 * image), model(image), atol=1e-4, rtol=1e-3)


# Motion energy

RATE = 15.0


@pytest.fixture(scope="module")
def motion():
    return MotionEnergy(
        size=48, frame_rate=RATE, frequencies=(4.0, 8.0), temporal_frequencies=(0.0, 2.0, 4.0)
    ).eval()


def channels(model, clip):
    """Middle cells' energy by spatial frequency: static (2, 4), moving (2, 2, 8)."""
    inner = model(clip)[0, :, 3:5, 3:5].mean((1, 2)).view(2, 20)
    return inner[:, :4], inner[:, 4:].view(2, 2, 8)


@pytest.mark.parametrize("channel", range(8))
def test_motion_prefers_its_direction_and_speed_at_every_phase(motion, channel):
    for scale, frequency in enumerate((4.0, 8.0)):
        for rate, speed in enumerate((2.0, 4.0)):
            for phase in (0.0, 1.0, 2.5):
                clip = drifting_grating(
                    size=48,
                    n_frames=20,
                    rate=RATE,
                    frequency=frequency,
                    speed=speed,
                    direction=45 * channel,
                    phase=phase,
                )
                static, moving = channels(motion, clip)
                assert moving.argmax() == (scale * 2 + rate) * 8 + channel
                # Closed form: a matched grating gives its amplitude, whatever the phase
                assert moving[scale, rate, channel] == pytest.approx(0.4, abs=0.006)
                # The opposite direction: the tuning's height at twice the temporal frequency,
                # and what the correction for static input subtracts
                assert moving[scale, rate, (channel + 4) % 8] < 0.03
                assert static.max() < 0.1


def test_static_gratings_drive_static_filters_alone(motion):
    for orientation in range(4):
        clip = drifting_grating(
            size=48,
            n_frames=15,
            rate=RATE,
            frequency=4.0,
            speed=0.0,
            direction=45 * orientation,
        )
        static, moving = channels(motion, clip)
        assert static.argmax() == orientation
        assert static[0, orientation] == pytest.approx(0.4, abs=0.006)
        assert moving.max() < 1e-5
    uniform = torch.full((1, 12, 3, 48, 48), 0.7)
    assert motion(uniform).abs().max() < 1e-5
    # Full-field flicker has no spatial structure
    flicker = torch.rand(1, 12, 1, 1, 1).expand(1, 12, 3, 48, 48)
    assert motion(flicker).abs().max() < 1e-5


def test_motion_energy_is_a_plain_correlation_with_gabor_filters():
    size, n_frames, frequency, speed = 24, 10, 3.0, 2.5
    model = MotionEnergy(
        size=size,
        frame_rate=RATE,
        frequencies=(frequency,),
        temporal_frequencies=(speed,),
        directions=2,
        temporal_window=7 / RATE,
        grid=1,
        compression="none",
    )
    clip = torch.rand(1, n_frames, 3, size, size, generator=torch.Generator().manual_seed(3))
    # The same by direct sums over a clip mirrored at its borders, in float64
    grey = np.tensordot((0.299, 0.587, 0.114), clip[0].double().numpy(), axes=(0, 1))
    width = math.sqrt(2 * math.log(2)) * 3 / (2 * np.pi * frequency / size)
    border = min(size - 1, math.ceil(3 * width))
    padded = np.pad(grey, ((0, 0), (border, border), (border, border)), mode="reflect")
    axis = np.arange(-border, size + border)
    # points half the envelope's width apart
    n_points = math.ceil(size / (width / 2))
    points = (np.arange(n_points) + 0.5) * size / n_points - 0.5
    time = (np.arange(7) - 3) / RATE
    envelope = np.exp(-(time**2) / (2 * (7 / RATE / 4) ** 2))
    envelope /= envelope.sum()
    for direction, sign in enumerate((1, -1)):
        wave = envelope * np.exp(-2j * np.pi * sign * speed * time)
        kernel = wave - wave.sum() * envelope
        kernel /= abs((kernel * np.exp(2j * np.pi * sign * speed * time)).sum())
        energies = []
        for y in points:
            for x in points:
                gauss = np.exp(
                    -((axis[:, None] - y) ** 2 + (axis[None, :] - x) ** 2) / (2 * width**2)
                )
                gauss /= gauss.sum()
                gabor = gauss * np.exp(2j * np.pi * frequency / size * (axis[None, :] - x))
                gabor = 2 * (gabor - gabor.sum() * gauss)
                course = np.einsum("tyx,yx->t", padded, gabor)
                energies.append(np.abs(np.convolve(course, kernel[::-1], mode="valid")) ** 2)
        expected = np.mean(energies)
        assert model(clip)[0, direction, 0, 0].item() == pytest.approx(expected, rel=1e-4)


def test_a_grating_in_one_corner_drives_that_corner(motion):
    clip = drifting_grating(
        size=48, n_frames=15, rate=RATE, frequency=8.0, speed=2.0, direction=0.0
    )
    clip = clip.clone()
    clip[..., 24:, :] = 0.5
    clip[..., :, :24] = 0.5
    energy = motion(clip)[0, 24]  # 8 cycles an image, 2 Hz, rightwards
    assert energy[:3, 5:].min() > 0.25
    assert energy[5:].max() < 0.01
    assert energy[:, :3].max() < 0.01


def test_compression_of_motion_energy():
    clip = torch.rand(1, 12, 3, 32, 32, generator=torch.Generator().manual_seed(4))
    amplitude, log, energy = (
        MotionEnergy(size=32, grid=2, frequencies=(4.0,), compression=kind)(clip)
        for kind in ("sqrt", "log", "none")
    )
    torch.testing.assert_close(amplitude**2, energy)
    torch.testing.assert_close(torch.log1p(100 * amplitude), log)
    torch.testing.assert_close(
        MotionEnergy(size=32, grid=2, frequencies=(4.0,))(0.5 * clip), 0.5 * amplitude
    )


# What the config can ask for


def test_options_reach_the_model_and_its_store():
    made = build_architecture(
        "m",
        architecture="gabor",
        options={"scales": 2, "orientations": 6, "grid": 5, "field_of_view": [20, 10]},
    )
    assert made.module(torch.rand(1, 3, 128, 128)).shape == (1, 12, 5, 5)
    assert made.attrs["cycles_per_image"] == [32, 16]
    assert made.attrs["position_unit"] == "degrees"
    assert made.attrs["column_x"] == [-8, -4, 0, 4, 8]
    assert made.attrs["row_y"] == [4, 2, 0, -2, -4]  # the first row is above


def test_clips_are_as_fast_as_the_sampling_says():
    made = build_architecture(
        "m", architecture="motion-energy", sampling=Sampling(window=2, frames=20)
    )
    assert made.takes == "movie"
    assert made.frame_rate == 10
    assert made.module.length == 7  # 2/3 s
    whole = build_architecture("m", architecture="motion-energy")
    assert whole.frame_rate == 15
    one = build_architecture(
        "m", architecture="contrast-energy", sampling=Sampling(window=2, frames=1)
    )
    assert one.layers == ("contrast",)
    short = build_architecture("m", architecture="contrast-energy", sampling=Sampling(window=0.05))
    assert short.layers == ("contrast",)
    with pytest.raises(InputError, match=r"clips of 3 frames are shorter than temporal_window"):
        whole.module(torch.rand(1, 3, 3, 96, 96))
    with pytest.raises(InputError, match=r"sampling has frames and neither window nor rate"):
        build_architecture("m", architecture="motion-energy", sampling=Sampling(frames=20))


@pytest.mark.parametrize(
    ("architecture", "options", "words"),
    [
        ("gabor", {"orientation": 4}, "unknown option 'orientation'.*did you mean orientations"),
        ("gabor", {"size": 4}, "unknown option 'size'"),
        ("pixels", {"grid": 4}, "unknown option 'grid'.*its options are: none"),
        ("gabor", {"grid": 0}, r"options\.grid is 0: write a whole number"),
        ("gabor", {"grid": True}, r"options\.grid is True"),
        ("colour", {"bins": 2.5}, r"options\.bins is 2\.5"),
        ("luminance", {"linear": "yes"}, r"options\.linear is 'yes': write true or false"),
        ("contrast-energy", {"background": 3}, "background is 3: write a luminance"),
        ("motion-energy", {"bandwidth": -1}, r"options\.bandwidth is -1: write a positive"),
        ("motion-energy", {"frequencies": 4}, r"options\.frequencies is 4: write a list"),
        ("motion-energy", {"frequencies": [99]}, "images of 96 pixels show those"),
        ("motion-energy", {"temporal_frequencies": [9]}, "15 frames a second show those"),
        ("motion-energy", {"directions": 7}, "directions is 7: write an even number"),
        ("motion-energy", {"compression": "root"}, "write sqrt, log or none"),
        ("gist", {"field_of_view": [1, 2, 3]}, r"field_of_view is \[1, 2, 3\]"),
    ],
)
def test_bad_options_are_told_in_one_line(architecture, options, words):
    with pytest.raises(InputError, match=words) as raised:
        build_architecture("m", architecture=architecture, options=options)
    assert "features.models.m.options" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_options_are_for_builtins():
    with pytest.raises(InputError, match=r"options are for builtin models.*timm"):
        build_architecture("m", source="timm", architecture="resnet18", options={"grid": 3})
