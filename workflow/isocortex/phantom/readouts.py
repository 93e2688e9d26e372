"""Simulated voxels that read feature maps in known ways: what readouts must find again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch.nn import functional

# Layer -> channels, rows and columns
LAYERS = {"early": (6, 12), "middle": (10, 8), "late": (14, 6)}


@dataclass(frozen=True)
class PlantedVoxels:
    """Feature maps, and voxels whose way of reading them is known.

    Attributes
    ----------
    maps
        Layer to features, shape (stimuli, channels, rows, columns), float32.
    signal
        Responses without noise, SD 1, shape (stimuli, voxels).
    responses
        Responses of single trials, one a stimulus, shape (stimuli, voxels).
    ceiling
        Correlation of signal and responses to be expected, shape (voxels,).
    region, layer
        Region of each voxel (from 0) and index of the layer that it reads, shape (voxels,).
    x, y, size
        Receptive field, shape (voxels,): centre from the middle of the image, y upwards, and
        standard deviation, as shares of the image's width; NaN where it moves.
    weight
        Channel weights of each voxel, a list of arrays.
    focus
        Where attention of each region is, shape (stimuli, regions, 2), as x and y; NaN where the
        field is fixed.
    """

    maps: Mapping[str, np.ndarray]
    signal: np.ndarray
    responses: np.ndarray
    ceiling: np.ndarray
    region: np.ndarray
    layer: np.ndarray
    x: np.ndarray
    y: np.ndarray
    size: np.ndarray
    weight: Sequence[np.ndarray]
    focus: np.ndarray


def places(n_rows: int, n_columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Middle of each cell of a map, x and y upwards, shares of the width; (rows, columns) each."""
    x = (np.arange(n_columns) + 0.5) / n_columns - 0.5
    y = 0.5 - (np.arange(n_rows) + 0.5) / n_rows
    return np.broadcast_to(x, (n_rows, n_columns)), np.broadcast_to(y[:, None], (n_rows, n_columns))


def smooth_noise(
    n_stimuli: int, n_channels: int, size: int, smoothness: float, rng: np.random.Generator
) -> np.ndarray:
    """Gaussian noise filtered over space, SD 1, shape (stimuli, channels, size, size).

    Parameters
    ----------
    smoothness
        Standard deviation of the filter, cells.
    """
    noise = rng.standard_normal((n_stimuli, n_channels, size, size))
    noise = gaussian_filter(noise, (0, 0, smoothness, smoothness), mode="wrap")
    return noise / noise.std((0, 2, 3), keepdims=True)


def feature_maps(
    n_stimuli: int, *, layers: Mapping[str, tuple[int, int]] = LAYERS, seed: int = 0
) -> dict[str, np.ndarray]:
    """Layers of a small random convolutional network on pictures of smooth noise.

    Parameters
    ----------
    layers
        Name to channels and to rows (and columns). Each is a convolution of the one before (the
        first: of the picture), rectified, pooled by area, its channels standardised.

    Returns
    -------
    dict
        Layer to (stimuli, channels, rows, columns), float32.
    """
    rng = np.random.default_rng(seed)
    pictures = smooth_noise(n_stimuli, 3, 24, 1.0, rng)
    before = torch.from_numpy(pictures).float()
    maps = {}
    for name, (n_channels, size) in layers.items():
        kernel = torch.from_numpy(rng.standard_normal((n_channels, before.shape[1], 3, 3))).float()
        padded = functional.pad(before, [1] * 4, mode="replicate")
        after = functional.adaptive_avg_pool2d(functional.conv2d(padded, kernel).relu(), size)
        centre, deviation = after.mean((0, 2, 3), keepdim=True), after.std((0, 2, 3), keepdim=True)
        before = (after - centre) / deviation
        maps[name] = before.numpy()
    return maps


def _with_noise(
    signal: np.ndarray, ceiling: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Signal of SD 1 and the same with as much noise as gives a correlation of `ceiling`."""
    scaled = (signal - signal.mean(0)) / signal.std(0)
    noise = rng.standard_normal(signal.shape) * np.sqrt(1 / ceiling**2 - 1)
    return scaled, scaled + noise


def fixed_field_responses(
    n_stimuli: int,
    n_voxels: int,
    *,
    ceiling: float = 0.8,
    size: tuple[float, float] = (0.1, 0.2),
    maps: Mapping[str, np.ndarray] | None = None,
    seed: int = 0,
) -> PlantedVoxels:
    """Voxels with one Gaussian receptive field and one set of channel weights in one layer.

    Parameters
    ----------
    n_voxels
        Voxels of each region; there is one region a layer.
    ceiling
        Correlation of signal and single trials.
    size
        Least and largest standard deviation of receptive fields, shares of the image's width.
    maps
        Feature maps; by default `feature_maps`.
    """
    rng = np.random.default_rng([seed, 1])
    maps = feature_maps(n_stimuli, seed=seed) if maps is None else maps
    layer = np.repeat(np.arange(len(maps)), n_voxels)
    x, y = rng.uniform(-0.35, 0.35, (2, len(layer)))
    spread = rng.uniform(*size, len(layer))
    signal = np.empty((n_stimuli, len(layer)))
    weight = []
    names = list(maps)
    for voxel, number in enumerate(layer):
        values = maps[names[number]]
        across, up = places(*values.shape[2:])
        distance = (across - x[voxel]) ** 2 + (up - y[voxel]) ** 2
        field = np.exp(-distance / (2 * spread[voxel] ** 2))
        pooled = np.einsum("ncij,ij->nc", values, field / field.sum())
        weight.append(rng.standard_normal(values.shape[1]))
        signal[:, voxel] = pooled @ weight[-1]
    signal, responses = _with_noise(signal, ceiling, rng)
    return PlantedVoxels(
        maps,
        signal,
        responses,
        np.full(len(layer), ceiling),
        layer.copy(),
        layer,
        x,
        y,
        spread,
        weight,
        np.full((n_stimuli, len(maps), 2), np.nan),
    )


def routed_responses(
    n_stimuli: int,
    n_voxels: int,
    *,
    routed: bool = True,
    n_regions: int = 2,
    n_channels: int = 6,
    grid: int = 6,
    ceiling: float = 0.8,
    seed: int = 0,
) -> PlantedVoxels:
    """Voxels that read what is where a cue is, or what is at a fixed place.

    One layer, ``content``: `n_channels` channels of noise, and for each region a cue channel
    with one bump that is elsewhere in every stimulus. Attention of a region is the softmax over
    places of its cue; a voxel answers with its weighted channels at the attended place. With
    `routed` off the maps, weights and noise are the same, but each voxel reads at one place that
    never moves, and the cues mean nothing.

    Parameters
    ----------
    n_voxels
        Voxels of each region.
    routed
        Whether fields follow the cue.
    n_regions, n_channels, grid
        Regions (each with its own cue channel), channels with content, rows and columns.
    ceiling
        Correlation of signal and single trials.
    """
    rng = np.random.default_rng([seed, 2])
    content = smooth_noise(n_stimuli, n_channels, grid, 0.5, rng)
    across, up = places(grid, grid)
    focus = rng.uniform(-0.4, 0.4, (n_stimuli, n_regions, 2))
    distance = (across - focus[..., 0, None, None]) ** 2 + (up - focus[..., 1, None, None]) ** 2
    cue = np.exp(-distance / (2 * 0.12**2))
    x, y = rng.uniform(-0.35, 0.35, (2, n_regions * n_voxels))
    region = np.repeat(np.arange(n_regions), n_voxels)
    weight = rng.standard_normal((len(region), n_channels))
    if routed:
        attention = np.exp(8 * cue)[:, region]
        x = y = np.full(len(region), np.nan)
    else:
        near = (across - x[:, None, None]) ** 2 + (up - y[:, None, None]) ** 2
        attention = np.exp(8 * np.exp(-near / (2 * 0.12**2)))[None]
        focus = np.full_like(focus, np.nan)
    attention = attention / attention.sum((2, 3), keepdims=True)
    attention = np.broadcast_to(attention, (n_stimuli, len(region), grid, grid))
    signal = np.einsum("ncij,nvij,vc->nv", content, attention, weight, optimize=True)
    signal, responses = _with_noise(signal, ceiling, rng)
    scaled = (cue - cue.mean((0, 2, 3), keepdims=True)) / cue.std((0, 2, 3), keepdims=True)
    return PlantedVoxels(
        {"content": np.concatenate([content, scaled], axis=1).astype(np.float32)},
        signal,
        responses,
        np.full(len(region), ceiling),
        region,
        np.zeros(len(region), int),
        x,
        y,
        np.full(len(region), np.nan),
        list(weight),
        focus,
    )
