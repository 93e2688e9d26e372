"""Photographs for the demo study, cropped out of what scikit-image's package carries."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image

from isocortex.errors import InputError

# Category -> photographs of scikit-image that its crops come from, with the bounds of a crop's
# side as fractions of the photograph's shorter side. "lfw_subset" holds face patches.
SOURCES: dict[str, list[tuple[str, float, float]]] = {
    "face": [("lfw_subset.npy", 1.0, 1.0)],
    "animal": [("chelsea.png", 0.45, 0.95), ("horse.png", 0.4, 0.9)],
    "object": [
        ("coffee.png", 0.4, 0.9),
        ("motorcycle_left.png", 0.4, 0.9),
        ("coins.png", 0.2, 0.5),
    ],
    "texture": [("brick.png", 0.3, 0.8), ("grass.png", 0.2, 0.6), ("gravel.png", 0.2, 0.6)],
    "text": [("page.png", 0.3, 0.9), ("text.png", 0.5, 0.95)],
    "scene": [("rocket.jpg", 0.5, 0.95), ("camera.png", 0.4, 0.8), ("astronaut.png", 0.4, 0.8)],
}
N_FACES = 100
MAX_PER_CATEGORY = 100


@cache
def _photograph(name: str) -> np.ndarray:
    path = files("skimage.data") / name
    if name.endswith(".npy"):
        return np.load(str(path))
    with Image.open(str(path)) as image:
        if image.mode == "RGBA":
            ground = Image.new("RGBA", image.size, (255, 255, 255, 255))
            image = Image.alpha_composite(ground, image)
        return np.asarray(image.convert("RGB"))


def _crop(category: str, number: int, size: int) -> np.ndarray:
    """Cut one picture; it depends on its category and number alone, never on how many are asked."""
    rng = np.random.default_rng([20, list(SOURCES).index(category), number])
    name, low, high = SOURCES[category][number % len(SOURCES[category])]
    photograph = _photograph(name)
    if name.endswith(".npy"):
        patch = np.repeat(np.round(photograph[number % N_FACES] * 255)[..., None], 3, axis=2)
        return np.asarray(
            Image.fromarray(patch.astype(np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
        )
    # A crop of flat background would be no stimulus: ask for some contrast, keep the best of 20.
    best, best_contrast = None, -1.0
    for _ in range(20):
        side = int(rng.uniform(low, high) * min(photograph.shape[:2]))
        row = int(rng.integers(0, photograph.shape[0] - side + 1))
        column = int(rng.integers(0, photograph.shape[1] - side + 1))
        patch = photograph[row : row + side, column : column + side]
        contrast = float(patch.mean(axis=2).std())
        if contrast > best_contrast:
            best, best_contrast = patch, contrast
        if contrast > 45:
            break
    # Half of the crops, none of text, are mirrored: one photograph gives more distinct pictures.
    mirrored = category != "text" and number // len(SOURCES[category]) % 2
    patch = best[:, ::-1] if mirrored else best
    return np.asarray(
        Image.fromarray(np.ascontiguousarray(patch)).resize((size, size), Image.Resampling.LANCZOS)
    )


def write_images(folder: str | Path, n_images: int = 60, *, size: int = 112) -> None:
    """Write pictures as PNG files, for the options see `make_images`.

    Parameters
    ----------
    folder
        Made where it is missing; other files in it stay.
    n_images, size
        See `make_images`.
    """
    folder = Path(folder)
    images = make_images(n_images, size=size)
    folder.mkdir(parents=True, exist_ok=True)
    for name, _, pixels in images:
        Image.fromarray(pixels).save(folder / name)


def make_images(n_images: int = 60, *, size: int = 112) -> list[tuple[str, str, np.ndarray]]:
    """Cut distinct pictures of six categories out of scikit-image's photographs.

    Parameters
    ----------
    n_images
        How many; the categories take turns, so that the first ``n`` pictures are the same
        whatever number is asked for.
    size
        Width and height in pixels.

    Returns
    -------
    list
        One ``(file name, category, pixels)`` a picture; pixels are (size, size, 3) uint8.

    Raises
    ------
    InputError
        If fewer than 2 or more than 600 images are asked for.
    """
    if not 2 <= n_images <= MAX_PER_CATEGORY * len(SOURCES):
        raise InputError(
            f"n_images is {n_images}: ask for 2 to {MAX_PER_CATEGORY * len(SOURCES)} images"
        )
    categories = list(SOURCES)
    images = []
    for index in range(n_images):
        number, which = divmod(index, len(categories))
        category = categories[which]
        images.append((f"{category}{number + 1:02d}.png", category, _crop(category, number, size)))
    return images
