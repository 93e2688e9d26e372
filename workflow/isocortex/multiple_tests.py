"""p-values corrected for their number, the same way in every stage."""

from __future__ import annotations

import numpy as np

CORRECTIONS = ("holm", "fdr", "none")


def correct_p(p: np.ndarray, *, correction: str = "holm") -> np.ndarray:
    """Correct p-values for their number.

    Parameters
    ----------
    p
        One family of tests, any shape; NaN is no test and stays NaN.
    correction
        ``holm`` bounds the chance of any false finding, ``fdr`` (Benjamini-Hochberg) the share of
        false ones among the findings, ``none`` returns the p-values.
    """
    if correction not in CORRECTIONS:
        raise ValueError(f"correction is {correction!r}: choose one of {', '.join(CORRECTIONS)}")
    corrected = np.array(p, dtype=np.float64)
    tested = np.isfinite(corrected)
    values = corrected[tested]
    if correction == "none" or not values.size:
        return corrected
    order = np.argsort(values, kind="stable")
    n = len(values)
    if correction == "holm":
        stepped = np.maximum.accumulate(values[order] * (n - np.arange(n)))
    else:
        scaled = values[order] * n / np.arange(1, n + 1)
        stepped = np.minimum.accumulate(scaled[::-1])[::-1]
    back = np.empty(n)
    back[order] = np.minimum(stepped, 1.0)
    corrected[tested] = back
    return corrected
