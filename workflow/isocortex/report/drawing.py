"""Figures as data URIs: one style, deterministic bytes, nothing outside the file."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageOps

from isocortex.errors import InputError

INK = "#1d2430"
MUTED = "#6b7480"
RULE = "#d5dae0"
ACCENT = "#1f5f8b"
WARM = "#b8532a"
CEILING = "#d9dee5"

STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8.5,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.fonttype": "path",
    # Without a fixed salt the ids in an SVG differ from run to run.
    "svg.hashsalt": "isocortex",
}

# Qualitative colours (Okabe and Ito 2008), told apart by colour-blind readers.
QUALITATIVE = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#7f5539",
    "#8f8f8f",
    "#5e3c99",
    "#a6a000",
)
LAYER_RAMPS = ("viridis", "YlOrRd", "PuRd", "GnBu")
SINGLE_LAYER = ("#8a8f98", "#c08a5a", "#5d6b7a", "#a98bb5", "#7aa38c")

MIME = {
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".gif": "image/gif",
    ".webp": "image/webp",
}


@contextmanager
def report_style() -> Iterator[None]:
    """Apply the report's matplotlib settings inside the block only."""
    with matplotlib.rc_context(STYLE):
        yield


def new_figure(width: float, height: float, *, layout: str | None = "constrained") -> Figure:
    """Make a figure outside pyplot, so that no global state is left behind.

    Parameters
    ----------
    width, height
        Inches; the page's text column is 11 inches.
    layout
        None where all axes are placed by hand, which also saves a second drawing.
    """
    figure = Figure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def data_uri(content: bytes, mime: str) -> str:
    """Encode bytes as a data URI."""
    return f"data:{mime};base64,{base64.b64encode(content).decode('ascii')}"


def svg_uri(figure: Figure) -> str:
    """Render a figure as an SVG data URI without a date, the same bytes each time."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return data_uri(number_clip_paths(buffer.getvalue()).encode(), MIME[".svg"])


def number_clip_paths(svg: str) -> str:
    """Return an SVG of Matplotlib whose clip paths are named in their order.

    Matplotlib hashes all digits of where the axes stand, and the layout's solver gives the last
    of them differently from run to run.
    """
    names: dict[str, str] = {}
    return re.sub(
        r'(url\(#|id=")(p[0-9a-f]{10})\b',
        lambda found: found[1] + names.setdefault(found[2], f"clip{len(names)}"),
        svg,
    )


def raster_uri(figure: Figure, *, dpi: int = 140) -> str:
    """Render a figure as pixels in a WebP data URI.

    Parameters
    ----------
    figure
        What to draw.
    dpi
        Pixels an inch.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, pil_kwargs={"compress_level": 0})
    with Image.open(buffer) as image:
        return data_uri(_webp(image), MIME[".webp"])


def _webp(image: Image.Image) -> bytes:
    """Encode as WebP: without loss where that is not much larger than with hardly visible loss."""
    pixels = image.convert("RGB")
    exact, close = io.BytesIO(), io.BytesIO()
    pixels.save(exact, "webp", lossless=True, quality=20, method=1)
    pixels.save(close, "webp", quality=85, method=2)
    smaller = len(close.getvalue()) < 0.75 * len(exact.getvalue())
    return (close if smaller else exact).getvalue()


def file_uri(path: Path | str) -> str:
    """Put an image file into a data URI; a PNG becomes a WebP, which is a fraction of its size.

    Raises
    ------
    InputError
        If the file is missing or its ending is no image format that browsers draw.
    """
    path = Path(path)
    mime = MIME.get(path.suffix.lower())
    if mime is None:
        raise InputError(
            f"{path} cannot be shown in a report: use one of {', '.join(sorted(MIME))}"
        )
    if not path.is_file():
        raise InputError(f"{path} is missing: run the rule that writes it again")
    if path.suffix.lower() != ".png":
        return data_uri(path.read_bytes(), mime)
    try:
        with Image.open(path) as image:
            return data_uri(_webp(image), MIME[".webp"])
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error}): make it again") from error


def read_thumbnails(
    stimuli: Mapping[str, Path | str], wanted: Sequence[str], *, size: int = 72
) -> dict[str, np.ndarray]:
    """Read stimulus images as square thumbnails.

    Parameters
    ----------
    stimuli
        Image file of each stimulus id; ids without a file are left out.
    wanted
        Ids to read.
    size
        Edge in pixels.

    Returns
    -------
    dict
        uint8 arrays of shape (size, size, 3) by stimulus id.
    """
    thumbnails = {}
    for name in wanted:
        path = stimuli.get(name)
        if path is None or Path(path).suffix.lower() not in (
            ".png",
            ".jpg",
            ".jpeg",
            ".bmp",
            ".gif",
            ".tif",
            ".tiff",
            ".webp",
        ):
            continue
        try:
            with Image.open(path) as image:
                upright = ImageOps.exif_transpose(image).convert("RGB")
                square = ImageOps.fit(upright, (size, size), Image.Resampling.LANCZOS)
        except OSError as error:
            raise InputError(
                f"stimulus image {path} cannot be read ({error}): replace the file or set "
                "report.thumbnails to false"
            ) from error
        thumbnails[name] = np.asarray(square)
    return thumbnails


def predictor_colours(predictors: Sequence[str]) -> dict[str, tuple[float, float, float]]:
    """Colour of each "model/layer": a ramp for a model of several layers, one colour otherwise."""
    models: dict[str, list[str]] = {}
    for predictor in predictors:
        models.setdefault(str(predictor).split("/", 1)[0], []).append(str(predictor))
    colours = {}
    ramps = singles = 0
    for members in models.values():
        if len(members) == 1:
            colours[members[0]] = matplotlib.colors.to_rgb(
                SINGLE_LAYER[singles % len(SINGLE_LAYER)]
            )
            singles += 1
            continue
        name = LAYER_RAMPS[ramps % len(LAYER_RAMPS)]
        low, high = (0.0, 0.93) if name == "viridis" else (0.3, 0.95)
        ramp = matplotlib.colormaps[name]
        ramps += 1
        for member, position in zip(members, np.linspace(low, high, len(members))):
            colours[member] = ramp(position)[:3]
    return colours


def category_colours(categories: Sequence[str]) -> dict[str, str]:
    """Colour of each category in order of appearance."""
    unique = list(dict.fromkeys(categories))
    return {name: QUALITATIVE[index % len(QUALITATIVE)] for index, name in enumerate(unique)}
