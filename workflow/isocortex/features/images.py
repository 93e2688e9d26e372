"""Image files to tensors."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from isocortex.errors import InputError

BACKGROUND = (255, 255, 255)  # what shows through transparent pixels


def open_image(path: Path) -> Image.Image:
    """Open one image file as 8-bit RGB.

    Transparent pixels show white; 16-bit grey values keep their upper 8 bits; photographs are
    turned as their EXIF orientation says, which is how every viewer shows them.

    Raises
    ------
    InputError
        If the file is missing or no readable image.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no stimulus file {path}: check events.tsv (stim_file) and the folder")
    try:
        with Image.open(path) as image:
            image.load()
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I;16"):
                return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                image = image.convert("RGBA")
                canvas = Image.new("RGBA", image.size, (*BACKGROUND, 255))
                return Image.alpha_composite(canvas, image).convert("RGB")
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(
            f"unreadable stimulus {path} ({error}): replace it with a PNG, JPEG, TIFF or BMP image"
        ) from error


def fit_image(image: Image.Image, *, size: int, fit: str, resampling: str) -> Image.Image:
    """Bring one image to a square.

    Parameters
    ----------
    image
        Of any mode that can be resampled.
    size
        Side of the result, pixels.
    fit
        `crop`: the shorter side becomes `size`, the centre is kept. `stretch`: both sides
        become `size`. `pad`: the longer side becomes `size`, the rest is black.
    resampling
        `bicubic` or `bilinear`, both with a support that grows with the shrinkage (no aliasing).
    """
    how = Image.Resampling[resampling.upper()]
    if fit == "pad":
        scale = size / max(image.size)
        width, height = (max(1, round(side * scale)) for side in image.size)
        canvas = Image.new(image.mode, (size, size))
        canvas.paste(
            image.resize((width, height), how), ((size - width) // 2, (size - height) // 2)
        )
        return canvas
    if fit == "crop":
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    return image.resize((size, size), how)


def normalise(images: torch.Tensor, *, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """(images - mean) / std of the three channels, shape (n, 3, height, width)."""
    return (images - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)


def load_images(
    paths: Sequence[Path],
    *,
    size: int,
    fit: str = "crop",
    resampling: str = "bicubic",
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
) -> torch.Tensor:
    """Load images at one size, normalised.

    Parameters
    ----------
    paths
        Image files.
    size
        Side of the result, pixels.
    fit
        See `fit_image`.
    resampling
        `bicubic` or `bilinear`, both with a support that grows with the shrinkage (no aliasing).
    mean, std
        Of red, green and blue, in units of 0 (black) to 1; (value - mean) / std.

    Returns
    -------
    torch.Tensor
        Shape (n, 3, size, size), float32.

    Raises
    ------
    InputError
        If a file is missing or no readable image.
    """
    images = np.empty((len(paths), size, size, 3), np.uint8)
    for index, path in enumerate(paths):
        images[index] = fit_image(open_image(path), size=size, fit=fit, resampling=resampling)
    values = torch.from_numpy(images).permute(0, 3, 1, 2).to(torch.float32) / 255
    return normalise(values, mean=mean, std=std)
