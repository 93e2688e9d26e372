"""Corrected p-values against statsmodels."""

import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests

from isocortex.multiple_tests import correct_p


@pytest.mark.parametrize(("ours", "peer"), [("holm", "holm"), ("fdr", "fdr_bh")])
def test_corrections_equal_statsmodels(ours, peer):
    p = np.random.default_rng(15).random((4, 6)) ** 3
    p[2, 1] = np.nan
    corrected = correct_p(p, correction=ours)
    assert np.isnan(corrected[2, 1])
    tested = np.isfinite(p)
    np.testing.assert_allclose(corrected[tested], multipletests(p[tested], method=peer)[1])
    np.testing.assert_array_equal(correct_p(p, correction="none"), p)
    with pytest.raises(ValueError, match="bonferroni"):
        correct_p(p, correction="bonferroni")
