"""How well a brain lies on the template: overlap, correlation, and folding of the warp."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from isocortex.preprocess.images import as_image
from isocortex.preprocess.masks import dice
from isocortex.preprocess.registration import load_template, warp
from isocortex.preprocess.transforms import DisplacementField, Transform

logger = logging.getLogger(__name__)

# A brain that lies well is far from these: what is beyond them is to be looked at.
MIN_DICE_MASK = 0.9
MIN_DICE_GREY = 0.6
MIN_CORRELATION = 0.4
MAX_FOLDED_PERCENT = 0.1


def jacobian_determinant(field: DisplacementField) -> np.ndarray:
    """Determinant of the derivative of x + u(x) on the field's grid, by central differences.

    Parameters
    ----------
    field
        Displacements u in mm.

    Returns
    -------
    numpy.ndarray
        float32, the grid's shape: how much larger a volume is in the moving image than in the
        reference; 0 or less where the warp folds.
    """
    to_mm = np.linalg.inv(field.affine[:3, :3]).astype(np.float32)
    rows = []
    for component in range(3):
        slopes = np.gradient(np.asarray(field.displacement[..., component], np.float32))
        rows.append([sum(slopes[k] * to_mm[k, axis] for k in range(3)) for axis in range(3)])
        rows[component][component] += 1
    (a, b, c), (d, e, f), (g, h, i) = rows
    return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)


def folding(chain: Sequence[Transform]) -> dict[str, float]:
    """Smallest and largest Jacobian determinant of a chain's fields inside the template's brain.

    Parameters
    ----------
    chain
        Template points to the brain's points. Its affines, which change all volumes alike, are
        left out.

    Returns
    -------
    dict
        jacobian_min, jacobian_max and jacobian_folded_percent, the share of the brain with a
        determinant of 0 or less.
    """
    low, high, folded = 1.0, 1.0, 0.0
    brain = load_template(2.0, "mask")
    for field in chain:
        if not isinstance(field, DisplacementField):
            continue
        grid = as_image(np.zeros(field.displacement.shape[:3], np.uint8), field.affine)
        inside = warp(brain, [], grid) > 0.5
        box = (ndimage.find_objects(inside.astype(np.int8)) or [None])[0]
        if box is None:
            continue
        part = DisplacementField(field.displacement[box], field.affine)
        values = jacobian_determinant(part)[inside[box]]
        low, high = min(low, float(values.min())), max(high, float(values.max()))
        folded = max(folded, 100.0 * float((values <= 0).mean()))
    return {"jacobian_min": low, "jacobian_max": high, "jacobian_folded_percent": folded}


def normalisation_quality(
    image: np.ndarray,
    chain: Sequence[Transform],
    *,
    mask: np.ndarray,
    resolution: float,
    grey: np.ndarray | None = None,
    target: np.ndarray | None = None,
    seen: np.ndarray | None = None,
    deeper_mm: float = 0.0,
    least_correlation: float = MIN_CORRELATION,
) -> dict[str, float | str]:
    """Figures by which a registration to the template is judged.

    Parameters
    ----------
    image, mask, grey
        On the template's grid: the brain's image, its mask (boolean) and its probability of
        grey matter.
    chain
        Template points to the brain's points.
    resolution
        Of the grid, mm.
    target
        What the image should look like; the template's T1w by default.
    seen
        Boolean: what the image's field of view holds; all by default.
    deeper_mm
        Depth below the brain's surface from which on the images are correlated.
    least_correlation
        That is taken for good.

    Returns
    -------
    dict
        dice_template_mask, dice_template_grey (where grey matter is given), template_correlation
        (Pearson's r inside the template's brain), the figures of `folding`, and normalisation:
        "good", or "check: " and what is odd. That is a warning in the log, too.
    """
    brain = np.asarray(load_template(resolution, "mask").dataobj) > 0.5
    if target is None:
        target = np.asarray(load_template(resolution).dataobj)
    seen = np.ones(brain.shape, bool) if seen is None else seen
    quality: dict[str, float | str] = {"dice_template_mask": dice(mask & seen, brain & seen)}
    if grey is not None:
        wanted = np.asarray(load_template(resolution, "GM").dataobj) > 0.5
        quality["dice_template_grey"] = dice((grey > 0.5) & seen, wanted & seen)
    inside = brain & seen
    if deeper_mm:
        inside &= ndimage.distance_transform_edt(brain, sampling=resolution) > deeper_mm
    quality["template_correlation"] = _correlation(target[inside], image[inside])
    quality |= folding(chain)
    odd = [
        text
        for text, wrong in (
            (
                f"Dice of the brain masks {quality['dice_template_mask']:.2f}",
                quality["dice_template_mask"] < MIN_DICE_MASK,
            ),
            (
                f"Dice of grey matter {quality.get('dice_template_grey', 1.0):.2f}",
                quality.get("dice_template_grey", 1.0) < MIN_DICE_GREY,
            ),
            (
                f"correlation with the template {quality['template_correlation']:.2f}",
                quality["template_correlation"] < least_correlation,
            ),
            (
                f"the warp folds in {quality['jacobian_folded_percent']:.2g} % of the brain",
                quality["jacobian_folded_percent"] > MAX_FOLDED_PERCENT,
            ),
        )
        if wrong
    ]
    quality["normalisation"] = "check: " + ", ".join(odd) if odd else "good"
    if odd:
        logger.warning("registration to the template is to be looked at: %s", ", ".join(odd))
    return quality


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    if len(one) < 2 or one.std() == 0 or other.std() == 0:
        return 0.0
    return float(np.corrcoef(one, other)[0, 1])
