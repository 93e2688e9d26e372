"""Movies, frame by frame: files that FFmpeg reads, and arrays of frames."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image

from isocortex import bids
from isocortex.errors import InputError
from isocortex.features.images import fit_image

WHITE = {"b": 1.0, "f": 1.0, "u1": 255.0, "u2": 65535.0}
"""The value of white in arrays of a dtype where their JSON file does not tell."""


class Movie:
    """A movie whose frames are read forward and held one window at a time.

    Parameters
    ----------
    path
        A file that FFmpeg decodes (.mp4, .avi, .mov, .mkv, .webm, .gif), or an array (.npy; .npz
        with one array) of frames, shape (time, rows, columns) or (time, rows, columns, 3).
    size, fit, resampling
        See `fit_image`.
    frame_rate
        Of an array, Hz, where no JSON file of the same name beside it says `FrameRate`. That
        file may also give the array's values of black and white, as `Black` and `White`.

    Attributes
    ----------
    duration : float
        Seconds.

    Raises
    ------
    InputError
        Where the file is damaged, has no frames, or an array's frame rate is not told.

    Notes
    -----
    The frame at time t is the one on the screen then: the last that begins at t or before. So
    what is read depends neither on the batches nor on where reading began.
    """

    def __init__(
        self,
        path: Path,
        *,
        size: int,
        fit: str = "crop",
        resampling: str = "bicubic",
        frame_rate: float | None = None,
    ) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise InputError(f"no stimulus file {self.path}: check events.tsv and the folder")
        self._fit = {"size": size, "fit": fit, "resampling": resampling}
        self._is_array = self.path.suffix.lower() in bids.FRAME_ARRAYS
        if self._is_array:
            self._array = _FrameArray(self.path, frame_rate)
            self.duration = self._array.duration
        else:
            self.duration, self._pixel = _video_shape(self.path)
        self._stream: Iterator[tuple[float, Any]] | None = None
        self._next: tuple[float, Any] | None = None
        self._held: list[tuple[float, _Frame]] = []  # frames already passed, by their start

    def _open(self) -> None:
        self._stream = self._array.frames() if self._is_array else _video_frames(self.path)
        self._held = []
        self._next = next(self._stream, None)
        if self._next is None:
            raise _no_frames(self.path)

    def frames_at(self, times: Sequence[float], *, keep: float | None = None) -> torch.Tensor:
        """Read the frames that are on the screen at some times.

        Parameters
        ----------
        times
            Seconds, ascending.
        keep
            Frames from this time on stay at hand for the next call, so that windows that
            overlap are decoded once; None: the last one only.

        Returns
        -------
        torch.Tensor
            Shape (times, 3, size, size), float32, 0 (black) to 1.

        Raises
        ------
        InputError
            Where the file is damaged, or ends before the last time.
        """
        first = max(float(times[0]), 0.0)
        if not self._held or self._held[0][0] > first + 1e-6:
            self._open()
        images = []
        for time in map(float, times):
            self._advance(time, time if keep is None else min(keep, time))
            shown = [frame for start, frame in self._held if start <= time + 1e-6]
            images.append(self._tensor(shown[-1]))
        return torch.stack(images)

    def _advance(self, time: float, keep: float) -> None:
        """Decode until the frame of a time is held, and let go of those before `keep`."""
        while self._next is not None and (not self._held or self._next[0] <= time + 1e-6):
            self._held.append((self._next[0], _Frame(self._next[1])))
            while len(self._held) > 1 and self._held[1][0] <= keep + 1e-6:
                self._held.pop(0)
            self._next = next(self._stream, None) if self._stream is not None else None
        while len(self._held) > 1 and self._held[1][0] <= keep + 1e-6:
            self._held.pop(0)
        if self._next is None and self._held[-1][0] + self._slack() < time:
            raise InputError(
                f"{self.path} ends at {self._held[-1][0]:.3f} s, its header says "
                f"{self.duration:.3f} s: it is incomplete, replace it"
            )

    def _slack(self) -> float:
        """How long after the start of the last frame it can still be on the screen, s."""
        return max(1.0, 0.05 * self.duration)

    def _tensor(self, frame: _Frame) -> torch.Tensor:
        """One frame at the model's size, shape (3, size, size), 0 to 1."""
        if frame.image is None:
            if self._is_array:
                values = np.moveaxis(self._array.grey_or_rgb(frame.decoded), -1, 0)
                planes = [
                    np.asarray(fit_image(Image.fromarray(plane), **self._fit))
                    for plane in np.ascontiguousarray(values)
                ]
                image = torch.from_numpy(np.stack(planes)).expand(3, -1, -1).clamp(0, 1)
            else:
                picture = frame.decoded.to_image()
                if self._pixel != 1:
                    picture = picture.resize((round(picture.width * self._pixel), picture.height))
                upright = picture.rotate(frame.decoded.rotation, expand=True)
                pixels = np.array(fit_image(upright, **self._fit))
                image = torch.from_numpy(pixels).permute(2, 0, 1).to(torch.float32) / 255
            frame.image, frame.decoded = image, None
        return frame.image


@dataclass
class _Frame:
    """A frame as it was decoded, until it is brought to the model's size."""

    decoded: Any
    image: torch.Tensor | None = None


def _no_frames(path: Path) -> InputError:
    return InputError(f"{path} has no frames: replace the file, or remove it")


def _video_error(path: Path, error: Exception) -> InputError:
    return InputError(
        f"unreadable movie {path} ({type(error).__name__}): "
        "replace it with a file that FFmpeg plays, for example MP4"
    )


def _video_shape(path: Path) -> tuple[float, float]:
    """Duration of a movie file, s, and the width of its pixels by their height."""
    import av

    end = 0.0
    try:
        with av.open(str(path)) as container:
            stream = next(iter(container.streams.video), None)
            if stream is None:
                raise _no_frames(path)
            pixel = float(stream.sample_aspect_ratio or 1)
            if stream.duration and stream.time_base:
                return float(stream.duration * stream.time_base), pixel
            if container.duration:
                return container.duration / av.time_base, pixel
            for packet in container.demux(stream):
                if packet.pts is not None and packet.time_base:
                    end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
    except (av.FFmpegError, OSError) as error:
        raise _video_error(path, error) from error
    if not end:
        raise _no_frames(path)
    return end, pixel


def _video_frames(path: Path) -> Iterator[tuple[float, Any]]:
    """Start (s, from the movie's first frame) and frame of a movie file, in the order shown."""
    import av

    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            stream.codec_context.thread_count = torch.get_num_threads()
            origin = None
            for frame in container.decode(stream):
                if frame.time is None:
                    continue
                origin = frame.time if origin is None else origin
                yield float(frame.time - origin), frame
    except (av.FFmpegError, OSError) as error:
        raise _video_error(path, error) from error


class _FrameArray:
    """An array of frames on disk, never held whole."""

    def __init__(self, path: Path, frame_rate: float | None) -> None:
        self.path = path
        with self._open() as stream:
            self.shape, self.fortran, self.dtype = self._header(stream)
        n_dims = len(self.shape)
        if n_dims not in (3, 4) or (n_dims == 4 and self.shape[3] != 3):
            raise InputError(
                f"{path} has the shape {self.shape}: save frames as (time, rows, columns) or "
                "(time, rows, columns, 3)"
            )
        if 0 in self.shape:
            raise _no_frames(path)
        if self.dtype.kind not in "biuf":
            raise InputError(f"{path} holds {self.dtype}, no numbers: save grey or RGB values")
        if self.fortran:
            raise InputError(
                f"{path} is in Fortran order, so its frames lie scattered: save "
                "numpy.ascontiguousarray of it"
            )
        self.rate, black, white = bids.read_frame_values(path, frame_rate)
        self.duration = self.shape[0] / self.rate
        self.black = black or 0.0
        if white is None:
            white = WHITE.get(self.dtype.str[1:], WHITE.get(self.dtype.kind))
        if white is None:
            raise InputError(
                f"{path} holds {self.dtype}: write its values of black and white as Black and "
                f"White into {path.with_suffix('.json').name}, or save uint8"
            )
        self.white = white

    def _open(self) -> IO[bytes]:
        """The bytes of the .npy file, also where it is in an .npz archive."""
        if self.path.suffix.lower() == ".npy":
            return self.path.open("rb")
        try:
            archive = zipfile.ZipFile(self.path)
            names = archive.namelist()
        except (OSError, zipfile.BadZipFile) as error:
            raise InputError(f"unreadable movie {self.path} ({error}): save it anew") from error
        if len(names) != 1:
            raise InputError(
                f"{self.path} holds {len(names)} arrays ({', '.join(names[:4])}): save one"
            )
        return archive.open(names[0])

    def _header(self, stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
        try:
            version = np.lib.format.read_magic(stream)
            read = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            return read(stream)
        except (ValueError, OSError) as error:
            raise InputError(f"unreadable movie {self.path} ({error}): save it anew") from error

    def frames(self) -> Iterator[tuple[float, np.ndarray]]:
        """Start (s) and values of the frames, one after the other."""
        count = math.prod(self.shape[1:])
        with self._open() as stream:
            self._header(stream)
            for index in range(self.shape[0]):
                content = stream.read(count * self.dtype.itemsize)
                if len(content) < count * self.dtype.itemsize:
                    raise InputError(
                        f"{self.path} ends in frame {index + 1} of {self.shape[0]}: it is "
                        "incomplete, save it anew"
                    )
                yield index / self.rate, np.frombuffer(content, self.dtype).reshape(self.shape[1:])

    def grey_or_rgb(self, frame: np.ndarray) -> np.ndarray:
        """One frame with black at 0 and white at 1, shape (rows, columns, 1 or 3), float32."""
        values = (frame.astype(np.float32) - self.black) / (self.white - self.black)
        low, high = float(values.min()), float(values.max())
        if not (low >= -1e-4 and high <= 1 + 1e-4):
            raise InputError(
                f"{self.path} has values from {frame.min():g} to {frame.max():g}, which are not "
                f"between black ({self.black:g}) and white ({self.white:g}): write Black and "
                f"White into {self.path.with_suffix('.json').name}"
            )
        return values.reshape(*self.shape[1:3], -1).astype(np.float32)
