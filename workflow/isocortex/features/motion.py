"""Motion energy of movies: spatio-temporal Gabor filters in quadrature, on a grid."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from isocortex.errors import InputError
from isocortex.features.filters import Luminance


def _folded(weights: torch.Tensor, size: int, border: int) -> torch.Tensor:
    """Fold weights for a row mirrored at its ends, shape (points, size + 2 border), onto the row.

    The outermost pixels are not repeated, as in `pad`'s mode `reflect`.
    """
    places = (torch.arange(-border, size + border) % (2 * size - 2)).tolist()
    target = torch.tensor([p if p < size else 2 * size - 2 - p for p in places])
    out = torch.zeros(len(weights), size, dtype=weights.dtype)
    return out.index_add_(1, target, weights)


class MotionScale(nn.Module):
    """Complex responses of oriented Gabor filters of one spatial frequency, at points.

    Parameters
    ----------
    size
        Side of the square frames, pixels.
    frequency
        Cycles an image.
    orientations
        Equally spaced over 180 degrees.
    bandwidth
        Full width at half height of the tuning to frequency, octaves.
    grid
        Cells a side; each holds several points, half the envelope's standard deviation apart
        or closer.

    Notes
    -----
    A Gabor filter is a Gaussian times a wave, and both are products of a part along rows and
    one along columns. So all points' responses are two small matrix products a frame. What the
    filter would answer to uniform luminance is subtracted, times the luminance under the
    Gaussian: the response to uniform frames is 0 everywhere.
    """

    def __init__(
        self, *, size: int, frequency: float, orientations: int, bandwidth: float, grid: int
    ) -> None:
        super().__init__()
        ratio = (2**bandwidth - 1) / (2**bandwidth + 1)
        spread = frequency * ratio / math.sqrt(2 * math.log(2)) / size  # cycles a pixel
        width = 1 / (2 * math.pi * spread)  # of the Gaussian in space, pixels
        border = min(size - 1, math.ceil(3 * width))
        each = max(1, math.ceil(size / grid / (width / 2)))
        points = (torch.arange(grid * each, dtype=torch.float64) + 0.5) * size / (grid * each) - 0.5
        offset = torch.arange(-border, size + border, dtype=torch.float64) - points[:, None]
        envelope = torch.exp(-(offset**2) / (2 * width**2))
        envelope = envelope / envelope.sum(1, keepdim=True)
        blur = _folded(envelope, size, border)
        rows, columns, uniform = [], [], []
        for orientation in range(orientations):
            # Counterclockwise from rightwards, so that a positive angle points to upper rows.
            angle = math.pi * orientation / orientations
            waves = [
                envelope * torch.exp(2j * math.pi * frequency / size * along * offset)
                for along in (-math.sin(angle), math.cos(angle))
            ]
            down, across = (_folded(wave, size, border) for wave in waves)
            rows.append(down)
            columns.append(across)
            uniform.append(down.sum(1)[:, None] * across.sum(1)[None, :])
        self.grid = grid
        self.register_buffer("rows", torch.stack(rows).to(torch.complex64))
        self.register_buffer("columns", torch.stack(columns).to(torch.complex64))
        self.register_buffer("uniform", torch.stack(uniform).to(torch.complex64))
        self.register_buffer("blur", blur.to(torch.float32))

    def forward(self, grey: torch.Tensor) -> torch.Tensor:
        """Responses, shape (n, frames, orientations, points, points), of (n, frames, side, side).

        A grating of amplitude a at the preferred frequency and orientation gives the modulus a.
        """
        # real and imaginary parts of the filters side by side: the frames are real
        n_orientations, n_points, _ = self.rows.shape
        both = torch.view_as_real(self.rows).permute(0, 3, 1, 2).flatten(0, 2)
        halves = (both @ grey.unsqueeze(2)).unflatten(3, (n_orientations, 2, n_points)).squeeze(2)
        partial = torch.complex(halves[:, :, :, 0], halves[:, :, :, 1])
        responses = partial @ self.columns.mT
        local = self.blur @ grey @ self.blur.T
        return 2 * (responses - self.uniform * local.unsqueeze(2))


class MotionEnergy(nn.Module):
    """Motion energy of movies.

    Parameters
    ----------
    size
        Side of the square frames, pixels.
    frame_rate
        Of the clips, Hz.
    frequencies
        Spatial frequencies, cycles an image.
    temporal_frequencies
        Hz; 0 stands for static filters, which have orientations instead of directions.
    directions
        Number of directions, equally spaced over 360 degrees, even.
    temporal_window
        Length of the filters in time, s. A clip has to last as long.
    bandwidth
        Full width at half height of the tuning to spatial frequency, octaves.
    grid
        Cells a side.
    compression
        `sqrt`: the amplitude, that is the root of the energy averaged over a cell and over the
        times at which the filter lies in the clip altogether; `log`: log(1 + 100 amplitude);
        `none`: the energy.

    Notes
    -----
    Layers: `static`, `motion` and both together, `energy`; shape (n, channel, grid, grid).
    Channels go by spatial frequency, then temporal frequency, then direction: direction d of D
    moves 360 d / D degrees counterclockwise from rightwards; static filters have the first D / 2
    of them. A grating of amplitude a that moves as a channel prefers gives a, at any phase;
    uniform movies give 0, and what does not change gives the moving filters 0.

    References
    ----------
    Adelson & Bergen (1985), Spatiotemporal energy models for the perception of motion.
    Nishimoto et al. (2011), Reconstructing visual experiences from brain activity evoked by
    natural movies (frequencies, compression).
    """

    def __init__(
        self,
        *,
        size: int = 96,
        frame_rate: float = 15.0,
        frequencies: Sequence[float] = (2.0, 4.0, 8.0, 16.0),
        temporal_frequencies: Sequence[float] = (0.0, 2.0, 4.0),
        directions: int = 8,
        temporal_window: float = 2 / 3,
        bandwidth: float = 1.0,
        grid: int = 8,
        compression: str = "sqrt",
    ) -> None:
        super().__init__()
        if directions < 2 or directions % 2:
            raise ValueError(f"directions is {directions}: write an even number")
        if compression not in ("sqrt", "log", "none"):
            raise ValueError(f"compression is {compression!r}: write sqrt, log or none")
        if not frequencies or not temporal_frequencies:
            raise ValueError("frequencies or temporal_frequencies is empty: name one at least")
        if min(frequencies) <= 0 or max(frequencies) > size / 2:
            raise ValueError(
                f"frequencies run from {min(frequencies):g} to {max(frequencies):g} cycles an "
                f"image: images of {size} pixels show those above 0 and up to {size / 2:g}"
            )
        if min(temporal_frequencies) < 0 or max(temporal_frequencies) > frame_rate / 2:
            raise ValueError(
                f"temporal_frequencies go up to {max(temporal_frequencies):g} Hz: "
                f"{frame_rate:g} frames a second show those from 0 to {frame_rate / 2:g}"
            )
        self.length = max(1, round(temporal_window * frame_rate))
        if self.length < 2 and max(temporal_frequencies) > 0:
            raise ValueError(
                f"temporal_window {temporal_window:g} s is one frame at {frame_rate:g} a second: "
                "lengthen it, or take more frames"
            )
        self.frame_rate, self.grid, self.compression = frame_rate, grid, compression
        self.frequencies = list(frequencies)
        self.grey = Luminance()
        self.scales = nn.ModuleList(
            MotionScale(
                size=size,
                frequency=frequency,
                orientations=directions // 2,
                bandwidth=bandwidth,
                grid=grid,
            )
            for frequency in frequencies
        )
        middle = (self.length - 1) / 2
        times = (torch.arange(self.length, dtype=torch.float64) - middle) / frame_rate
        # two standard deviations to either side
        envelope = torch.exp(-(times**2) / (2 * (temporal_window / 4) ** 2))
        envelope = envelope / envelope.sum()
        kernels = []
        for rate in sorted(set(temporal_frequencies)):
            if rate == 0:
                kernels.append(envelope.to(torch.complex128))
                continue
            wave = envelope * torch.exp(2j * math.pi * rate * times)
            kernel = wave - wave.sum() * envelope  # nothing of what stands still
            gain = (kernel * torch.exp(-2j * math.pi * rate * times)).sum().abs()
            kernels.append(kernel / gain)
        self.n_static = int(min(temporal_frequencies) == 0)
        self.register_buffer("kernels", torch.stack(kernels).to(torch.complex64))
        self.static = nn.Identity()
        self.motion = nn.Identity()
        self.energy = nn.Identity()

    def _energies(self, responses: torch.Tensor) -> list[torch.Tensor]:
        """Energy of one scale by temporal frequency, each (n, directions, grid, grid)."""
        n, n_frames = responses.shape[:2]
        # Row v of a kernel's matrix holds it from frame v on: one product for all times at which
        # it lies in the clip altogether.
        n_times = n_frames - self.length + 1
        shifted = self.kernels.new_zeros(len(self.kernels), n_times, n_frames)
        for time in range(n_times):
            shifted[:, time, time : time + self.length] = self.kernels
        flat = responses.flatten(2)
        found = []
        for index, kernel in enumerate(shifted):
            # Luminance that moves towards an angle turns backwards in time where it turns
            # forwards in space, and a product with a kernel picks what turns as its conjugate.
            # So the conjugate serves the angle, the kernel the opposite direction.
            either = [kernel] if index < self.n_static else [kernel.conj(), kernel]
            energies = []
            for each in either:
                answer = torch.view_as_real((each @ flat).contiguous()).square().sum(-1).mean(1)
                cells = answer.view(n, *responses.shape[2:])
                cells = cells.unflatten(3, (self.grid, -1)).unflatten(2, (self.grid, -1))
                energies.append(cells.mean((3, 5)))
            found.append(torch.cat(energies, dim=1))
        return found

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        """Energy, shape (n, channels, grid, grid), of clips (n, frames, 3, size, size).

        Raises
        ------
        InputError
            Where clips are shorter than the filters.
        """
        n, n_frames = clips.shape[:2]
        if n_frames < self.length:
            raise InputError(
                f"clips of {n_frames} frames are shorter than temporal_window ({self.length} "
                "frames): lengthen sampling.window, or shorten temporal_window"
            )
        grey = self.grey(clips.flatten(0, 1)).squeeze(1).unflatten(0, (n, n_frames))
        static, motion, every = [], [], []
        for scale in self.scales:
            for index, energy in enumerate(self._energies(scale(grey))):
                if self.compression != "none":
                    energy = energy.sqrt()
                if self.compression == "log":
                    energy = torch.log1p(100 * energy)
                (static if index < self.n_static else motion).append(energy)
                every.append(energy)
        if static:
            self.static(torch.cat(static, dim=1))
        if motion:
            self.motion(torch.cat(motion, dim=1))
        return self.energy(torch.cat(every, dim=1))
