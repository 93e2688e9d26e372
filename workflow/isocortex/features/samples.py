"""What a model is shown, one row of its features a sample: images, windows of movies, words."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from isocortex import bids
from isocortex.errors import InputError
from isocortex.features.images import load_images, normalise
from isocortex.features.movies import Movie
from isocortex.features.text import Text, word_texts

USABLE = {"image": ("image", "movie"), "movie": ("movie",), "text": ("caption", "words")}
"""What a model takes -> the kinds of stimuli that can be turned into it."""


@dataclass(frozen=True)
class Sampling:
    """How time-varying stimuli are cut into samples.

    Parameters
    ----------
    window
        Length of a sample of a movie, s; None: 1 / rate, and the whole movie where there is no
        rate either.
    rate
        Samples a second; None: windows lie end to end.
    frames
        Frames a sample, at the middles of equal parts of it; None: as many as the model's own
        rate of frames gives.
    context
        Words before a word that a text model reads with it.
    frame_rate
        Of arrays without a JSON sidecar, Hz.
    """

    window: float | None = None
    rate: float | None = None
    frames: int | None = None
    context: int = 20
    frame_rate: float | None = None

    @property
    def length(self) -> float | None:
        """Length of a window, s; None where a movie is one sample."""
        return self.window or (1 / self.rate if self.rate else None)

    @property
    def step(self) -> float | None:
        """Time between the starts of two windows, s."""
        return 1 / self.rate if self.rate else self.window

    def frames_of(self, duration: float, frame_rate: float) -> int:
        """Number of frames that are read of a sample that lasts `duration` s."""
        return self.frames or max(1, round(duration * frame_rate))


@dataclass(frozen=True)
class Batch:
    """The inputs of consecutive samples.

    Parameters
    ----------
    inputs
        Images, shape (inputs, 3, side, side); clips, (samples, frames, 3, side, side); or
        texts. An image model gets all frames of its samples one after the other.
    counts
        Inputs of each sample: 1 but for image models that are shown several frames.
    """

    inputs: torch.Tensor | list[Text]
    counts: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.counts)

    def average(self, values: torch.Tensor) -> torch.Tensor:
        """Mean over the inputs of each sample, shape (samples, ...) from (inputs, ...)."""
        if len(values) != sum(self.counts):
            raise ValueError(f"{len(values)} rows for {sum(self.counts)} inputs")
        if len(set(self.counts)) == 1:
            each = self.counts[0]
            return values if each == 1 else values.unflatten(0, (-1, each)).mean(1)
        return torch.stack([part.mean(0) for part in values.split(list(self.counts))])


class _Sample(NamedTuple):
    """One row: which file, from when, for how long, and how many frames."""

    id: str
    file: str
    source: str
    time: float
    duration: float
    frames: int = 1
    text: Text | None = None
    after: float | None = None  # when the next window of the same movie starts


def sample_id(source: str, start: float) -> str:
    """Id of the sample of a stimulus file that starts at `start` s: `film.mp4@0001.500`."""
    return f"{source}@{start:08.3f}"


@dataclass
class Samples:
    """The samples of all stimuli that a model can take, in the order of their files' ids.

    Made by `samples_of`. `load` reads any range of them; movies are decoded forward, and only
    the frames of one range are held.

    Parameters
    ----------
    takes
        `image`, `movie` or `text`.
    files
        The files in use by id.
    skipped
        How many stimuli of each kind that the model cannot take were passed over.
    """

    takes: str
    files: Mapping[str, Path]
    skipped: Mapping[str, int]
    _samples: Sequence[_Sample]
    _movies: Mapping[str, Movie]
    _size: int
    _options: Mapping[str, Any]
    _starts: list[int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._starts = [0, *np.cumsum(self.counts).tolist()]

    def __len__(self) -> int:
        return len(self._samples)

    @property
    def ids(self) -> list[str]:
        """Id of each sample: its file's, or `<file's id>@<start in s>`."""
        return [sample.id for sample in self._samples]

    @property
    def source(self) -> list[str]:
        """Id of the file that a sample is a part of; empty where it is all of it."""
        return [sample.source for sample in self._samples]

    @property
    def time(self) -> np.ndarray:
        """Start of each sample from its file's start, s; NaN for stimuli without time."""
        return np.array([sample.time for sample in self._samples], dtype=np.float64)

    @property
    def duration(self) -> np.ndarray:
        """Length of each sample, s; NaN for stimuli without time."""
        return np.array([sample.duration for sample in self._samples], dtype=np.float64)

    @property
    def counts(self) -> list[int]:
        """Inputs of each sample (frames of an image model)."""
        return [s.frames if self.takes == "image" else 1 for s in self._samples]

    @property
    def sources(self) -> list[Path]:
        """All files that are read: the stimuli, and the JSON files beside arrays of frames."""
        beside = map(bids.stimulus_sidecar, self.files.values())
        return [*self.files.values(), *(path for path in beside if path and path.is_file())]

    @property
    def varying(self) -> bool:
        """Whether `source`, `time` and `duration` say something: a sample is part of a file."""
        return any(sample.source for sample in self._samples)

    def ranges(self, batch_size: int, first: int = 0) -> list[tuple[int, int]]:
        """Cut the samples from `first` on into ranges of at most `batch_size` images or texts.

        A range has one sample at least, clips of one length, and captions or words of tables: those
        of the two that are too long are cut at different ends.
        """
        found = []
        while first < len(self):
            last = max(first + 1, bisect_right(self._starts, self._starts[first] + batch_size) - 1)
            if self.takes == "movie":
                frames = self._samples[first].frames
                last = min(last, first + max(1, batch_size // frames))
            if self.takes != "image":
                alike = (self._samples[first].frames, bool(self._samples[first].source))
                last = next(
                    (
                        i
                        for i, sample in enumerate(self._samples[first:last], start=first)
                        if (sample.frames, bool(sample.source)) != alike
                    ),
                    last,
                )
            found.append((first, last))
            first = last
        return found

    def load(self, first: int, last: int) -> Batch:
        """Read the samples `first` to `last` (excluded).

        Raises
        ------
        InputError
            Where a file cannot be read, or has fewer frames than its header says.
        """
        chosen = self._samples[first:last]
        counts = tuple(self.counts[first:last])
        if self.takes == "text":
            return Batch([sample.text for sample in chosen if sample.text is not None], counts)
        clips = [self._frames(sample) for sample in chosen]
        if self.takes == "image":
            return Batch(torch.cat(clips), counts)
        return Batch(torch.stack(clips), counts)

    def _frames(self, sample: _Sample) -> torch.Tensor:
        """Images of one sample, shape (frames, 3, side, side)."""
        movie = self._movies.get(sample.file)
        if movie is None:
            return load_images([self.files[sample.file]], size=self._size, **self._options)
        times = sample.time + (np.arange(sample.frames) + 0.5) * sample.duration / sample.frames
        values = movie.frames_at(times, keep=sample.after)
        return normalise(values, mean=self._options["mean"], std=self._options["std"])


def _windows(file: str, movie: Movie, sampling: Sampling, frame_rate: float) -> list[_Sample]:
    """Samples of one movie: windows that lie in it altogether, or the movie."""
    length, step = sampling.length, sampling.step
    if length is None or step is None:
        frames = sampling.frames_of(movie.duration, frame_rate)
        return [_Sample(file, file, "", 0.0, movie.duration, frames)]
    # Durations in headers are rounded: a thousandth of a second short is still complete.
    n = math.floor((movie.duration - length + 1e-3) / step) + 1
    if n < 1:
        raise InputError(
            f"{movie.path} lasts {movie.duration:g} s, less than one window of {length:g} s: "
            "shorten sampling.window of the model"
        )
    frames = sampling.frames_of(length, frame_rate)
    return [
        _Sample(
            sample_id(file, k * step), file, file, k * step, length, frames, after=(k + 1) * step
        )
        for k in range(n)
    ]


def samples_of(
    files: Mapping[str, Path],
    *,
    takes: str = "image",
    model: str = "model",
    sampling: Sampling | None = None,
    frame_rate: float = 1.0,
    size: int = 0,
    fit: str = "crop",
    resampling: str = "bicubic",
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
) -> Samples:
    """List the samples of a study's stimuli for one model.

    Parameters
    ----------
    files
        Stimulus files by id, see `isocortex.bids.find_stimuli`.
    takes
        What the model takes: `image` (n, 3, side, side), `movie` (n, frames, 3, side, side) or
        `text`. Image models are shown the frames of movies, one by one; stimuli of other kinds
        are passed over and counted.
    model
        The model's key in the config, for messages.
    sampling
        How movies and words are cut.
    frame_rate
        Frames a second where `sampling` gives no number of frames.
    size, fit, resampling, mean, std
        See `load_images`.

    Raises
    ------
    InputError
        Where the model can take none of the stimuli, or a file is damaged.
    """
    if takes not in USABLE:
        raise ValueError(f"takes is {takes!r}, not one of {', '.join(USABLE)}")
    sampling = sampling or Sampling()
    used: dict[str, Path] = {}
    skipped: dict[str, int] = {}
    for stimulus, path in sorted(files.items()):
        kind = bids.stimulus_kind(path)
        if kind in USABLE[takes]:
            used[stimulus] = Path(path)
        else:
            skipped[kind] = skipped.get(kind, 0) + 1
    if not used:
        there = ", ".join(f"{n} of kind {kind}" for kind, n in sorted(skipped.items())) or "none"
        raise InputError(
            f"features.models.{model} takes {takes}s, and there is no stimulus for it ({there}): "
            "remove the model, or correct input.stimuli"
        )
    samples: list[_Sample] = []
    movies: dict[str, Movie] = {}
    for stimulus, path in used.items():
        kind = bids.stimulus_kind(path)
        if kind == "movie":
            movies[stimulus] = Movie(
                path, size=size, fit=fit, resampling=resampling, frame_rate=sampling.frame_rate
            )
            samples += _windows(stimulus, movies[stimulus], sampling, frame_rate)
        elif kind == "words":
            words = bids.read_words(path)
            for word, text in zip(words, word_texts(words, sampling.context), strict=True):
                start = word.onset
                samples.append(
                    _Sample(
                        sample_id(stimulus, start),
                        stimulus,
                        stimulus,
                        start,
                        word.duration,
                        1,
                        text,
                    )
                )
        else:
            text = Text(bids.read_caption(path)) if kind == "caption" else None
            samples.append(_Sample(stimulus, stimulus, "", math.nan, math.nan, text=text))
    options = {"fit": fit, "resampling": resampling, "mean": tuple(mean), "std": tuple(std)}
    return Samples(takes, used, skipped, samples, movies, size, options)
