"""Movies and arrays of frames for tests: patterns whose frames are known."""

import json
import math
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch

CODECS = {
    ".mp4": ("libx264", "yuv420p"),
    ".avi": ("mpeg4", "yuv420p"),
    ".mov": ("mpeg4", "yuv420p"),
    ".mkv": ("libx264", "yuv420p"),
    ".webm": ("libvpx", "yuv420p"),
    ".gif": ("gif", "rgb8"),
}


def write_movie(path: Path, frames: np.ndarray, *, rate: int = 10, pixel: int = 1) -> Path:
    """Encode frames (time, rows, columns, 3), uint8, in the format of the file's ending.

    `pixel` is the width of a pixel by its height.
    """
    codec, pixels = CODECS[path.suffix]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixels
        stream.codec_context.sample_aspect_ratio = Fraction(pixel)
        for values in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(values), format="rgb24")
            for packet in stream.encode(frame.reformat(format=pixels)):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def grey_steps(n: int, *, step: int = 5, shape: tuple[int, int] = (48, 64)) -> np.ndarray:
    """Frames whose grey value is `step` times their number."""
    values = (step * np.arange(n)).astype(np.uint8)
    return np.broadcast_to(values[:, None, None, None], (n, *shape, 3)).copy()


def write_frames(path: Path, frames: np.ndarray, **beside: float) -> Path:
    """Save an array of frames and, where given, its JSON file."""
    (np.save if path.suffix == ".npy" else np.savez_compressed)(path, frames)
    if beside:
        path.with_suffix(".json").write_text(json.dumps(beside))
    return path


def drifting_grating(
    *,
    size: int,
    n_frames: int,
    rate: float,
    frequency: float,
    speed: float,
    direction: float,
    phase: float = 0.0,
    amplitude: float = 0.4,
) -> torch.Tensor:
    """Clip (1, frames, 3, size, size) of a grating that moves.

    `frequency` in cycles an image, `speed` in Hz, `direction` in degrees counterclockwise from
    rightwards.
    """
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    angle = math.radians(direction)
    along = (x * math.cos(angle) - y * math.sin(angle)) / size
    time = torch.arange(n_frames)[:, None, None] / rate
    wave = torch.cos(2 * math.pi * (frequency * along - speed * time) + phase)
    return (0.5 + amplitude * wave)[:, None].expand(-1, 3, -1, -1)[None]
