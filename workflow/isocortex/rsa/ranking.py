"""Ranks and rank concordance, of RDMs as they are and of bootstrap samples of their stimuli.

A pair of stimuli that a sample holds w times has weight w. The rank of a pair is then the mean
rank of its w copies, and Kendall's sum runs over all copies: both come from one sort and cumulated
weights, and copies are never made.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

_LARGEST_TABLE = 50_000
"""Pairs above which tables of neighbouring ranks need too much memory: then a merge counts."""
_BLOCK_BYTES = 32 << 20
_CACHED = 1 << 18
"""Comparisons at once: they stay in the processor's cache."""


def sorted_groups(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return each RDM's sorting order, and where every pair's group of equals starts and ends.

    Parameters
    ----------
    vectors
        Shape (n_rdms, n_pairs), finite.

    Returns
    -------
    order, starts, ends : numpy.ndarray
        int64, shape (n_rdms, n_pairs); starts and ends are positions in the order.
    """
    order = np.argsort(vectors, axis=1, kind="stable")
    starts, ends = np.empty_like(order), np.empty_like(order)
    for row, (values, sorting) in enumerate(zip(vectors, order)):
        ascending = values[sorting]
        opens = np.r_[True, ascending[1:] != ascending[:-1]]
        first = np.flatnonzero(opens)
        group = np.cumsum(opens) - 1
        starts[row, sorting] = first[group]
        ends[row, sorting] = np.r_[first[1:], len(values)][group]
    return order, starts, ends


def sample_ranks(
    weights: np.ndarray, order: np.ndarray, starts: np.ndarray, ends: np.ndarray
) -> np.ndarray:
    """Return ranks under bootstrap samples.

    Parameters
    ----------
    weights
        Shape (n_samples, n_pairs).
    order, starts, ends
        Of `sorted_groups`.

    Returns
    -------
    numpy.ndarray
        Shape (n_samples, n_rdms, n_pairs): the mean rank of a pair's copies.
    """
    ranks = np.empty((len(weights), *order.shape))
    for row, below in enumerate(_cumulated(weights, order)):
        ranks[:, row] = below[:, starts[row]]
        ranks[:, row] += below[:, ends[row]]
    ranks += 1.0
    ranks *= 0.5
    return ranks


def sample_ties(
    weights: np.ndarray, order: np.ndarray, starts: np.ndarray, ends: np.ndarray
) -> np.ndarray:
    """Return the sums over groups of equals of their weight squared, (n_samples, n_rdms).

    Parameters are those of `sample_ranks`.
    """
    sums = np.empty((len(weights), len(order)))
    for row, below in enumerate(_cumulated(weights, order)):
        first = np.unique(starts[row])
        last = np.unique(ends[row])
        sums[:, row] = np.square(below[:, last] - below[:, first]).sum(axis=1)
    return sums


def _cumulated(weights: np.ndarray, order: np.ndarray) -> Iterator[np.ndarray]:
    """Yield, for each RDM, the weight below each place of its order, one array overwritten."""
    below = np.zeros((len(weights), order.shape[1] + 1))
    for sorting in order:
        np.cumsum(weights[:, sorting], axis=1, out=below[:, 1:])
        yield below


def weighted_ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the mean rank of each value's copies, each row by itself.

    Parameters
    ----------
    values
        Whole numbers not below 0, of any dtype, shape (n_rows, n_values).
    weights
        How many copies there are of each, shape (n_values,).

    Returns
    -------
    numpy.ndarray
        float64, shape (n_rows, n_values).
    """
    n_rows, n = values.shape
    bits = max(int(n - 1).bit_length(), 1)
    # A number and its place in one integer: sorting those is many times faster than argsort.
    packed = np.sort((values.astype(np.int64) << bits) | np.arange(n), axis=1)
    place = packed & ((1 << bits) - 1)
    ascending = packed >> bits
    opens = np.ones((n_rows, n), dtype=bool)
    np.not_equal(ascending[:, 1:], ascending[:, :-1], out=opens[:, 1:])
    drawn = weights[place]
    cumulated = np.cumsum(drawn, axis=1)
    first = np.flatnonzero(opens)
    lengths = np.diff(np.r_[first, n_rows * n])
    cumulated, drawn = cumulated.ravel(), drawn.ravel()
    middle = 0.5 * (cumulated[first] - drawn[first] + cumulated[first + lengths - 1] + 1.0)
    ranks = np.empty((n_rows, n))
    np.put_along_axis(ranks, place, np.repeat(middle, lengths).reshape(n_rows, n), axis=1)
    return ranks


def concordance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return Kendall's sum of every RDM of one set with every RDM of another.

    That is, over all two pairs p < q, sign(a_p - a_q) sign(b_p - b_q).

    Parameters
    ----------
    a, b
        Shapes (n_a, n_pairs) and (n_b, n_pairs), finite.

    Returns
    -------
    numpy.ndarray
        int64, shape (n_a, n_b).

    Notes
    -----
    The ranks of each RDM are cut into buckets, once. Pairs that lie in different buckets of both
    RDMs are counted in the cumulated table of buckets, the others are compared one by one: small
    work, because buckets are.
    """
    if a.shape[1] > _LARGEST_TABLE:
        sums = np.empty((len(a), len(b)), dtype=np.int64)
        ones = np.ones(a.shape[1])
        for row, column in np.ndindex(sums.shape):
            found = weighted_concordance(a[row : row + 1], b[column : column + 1], ones)
            sums[row, column] = np.rint(found[0])
        return sums
    columns = [_Buckets(vector) for vector in b]
    return np.array([[_kendall_sum(row, c) for c in columns] for row in map(_Buckets, a)]).reshape(
        len(a), len(b)
    )


class _Buckets:
    """The ranks of one RDM in buckets of neighbouring ranks; equal values share one.

    Attributes: ``rank`` and ``bucket`` of each pair, both with one entry more for the padding;
    ``table``, the pairs of each bucket; ``above``, which of two pairs of a bucket is larger.
    """

    def __init__(self, values: np.ndarray) -> None:
        n = len(values)
        size = max(8, round(0.45 * np.sqrt(n)))
        order = np.argsort(values)
        ascending = values[order]
        opens = np.r_[True, ascending[1:] != ascending[:-1]]
        group = np.cumsum(opens) - 1
        first = np.flatnonzero(opens)
        lengths = np.diff(np.r_[first, n])
        # A large group of equals gets a bucket of its own, so that the others stay small.
        large = lengths >= size
        step = first // size
        changes = np.r_[False, (step[1:] != step[:-1]) | large[1:] | large[:-1]]
        of_group = np.cumsum(changes)
        ordered = of_group[group]
        self.n_buckets = int(of_group[-1]) + 1
        dtype = np.int16 if n < 2**15 else np.int32
        self.rank = np.full(n + 1, -1, dtype=dtype)
        self.rank[order] = group
        self.bucket = np.full(n + 1, -1, dtype=dtype)
        self.bucket[order] = ordered
        self.wide = self.bucket[:n].astype(np.int64)
        # Within a bucket that is one group of equals no pair is above another: leave it out.
        compared = np.zeros(self.n_buckets, dtype=bool)
        several = np.bincount(of_group, minlength=self.n_buckets) > 1
        compared[several] = True
        kept = order[compared[ordered]]
        inside = ordered[compared[ordered]]
        counts = np.bincount(inside, minlength=self.n_buckets)[compared]
        rows = np.repeat(np.arange(len(counts)), counts)
        slots = np.arange(len(kept)) - np.repeat(np.cumsum(counts) - counts, counts)
        width = int(counts.max(initial=1))
        # Buckets last: comparisons then run along long rows.
        self.table = np.full((width, len(counts)), n)
        self.table[slots, rows] = kept
        ranks = self.rank[self.table]
        self.above = (ranks[:, None] > ranks) & (self.table < n)
        self.n_above = int(np.count_nonzero(self.above))
        self.untied = len(first) == n


def _kendall_sum(a: _Buckets, b: _Buckets) -> int:
    shape = (a.n_buckets, b.n_buckets)
    cell = a.wide * shape[1] + b.wide
    before = np.bincount(cell, minlength=shape[0] * shape[1]).reshape(shape).astype(np.int32)
    counts = before.copy()
    np.cumsum(counts, axis=0, out=before)
    before -= counts
    inside = np.cumsum(before, axis=1, out=counts)
    # Of each pair, those in lower buckets of both less those in a lower and a higher one.
    apart = 2 * int(inside.ravel()[cell].sum(dtype=np.int64))
    apart -= int(before.ravel()[cell].sum(dtype=np.int64))
    apart -= int(inside[:, -1][a.wide].sum(dtype=np.int64))
    return apart + _within(a, b.rank, untied=b.untied) + _within(b, a.bucket, untied=False)


def _within(buckets: _Buckets, other: np.ndarray, *, untied: bool) -> int:
    """Return the sum over pairs of a bucket, the other RDM being compared by ``other``."""
    values = other[buckets.table]
    total = 0
    size = max(1, _CACHED // max(values.size, 1))
    for start in range(0, len(values), size):
        left = values[start : start + size, None]
        above = buckets.above[start : start + size]
        compared = left > values
        compared &= above
        total += int(np.count_nonzero(compared))
        if not untied:
            np.less(left, values, out=compared)
            compared &= above
            total -= int(np.count_nonzero(compared))
    return 2 * total - buckets.n_above if untied else total


def sample_concordance(a: np.ndarray, b: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return Kendall's sums under bootstrap samples.

    Parameters
    ----------
    a, b
        Shapes (n_a, n_pairs) and (n_b, n_pairs), finite.
    weights
        Whole numbers, shape (n_samples, n_pairs).

    Returns
    -------
    numpy.ndarray
        float64, shape (n_samples, n_a, n_b): for each sample the sum over p < q of
        w_p w_q sign(a_p - a_q) sign(b_p - b_q).
    """
    n = a.shape[1]
    # Sums of whole numbers below 2**24 are exact in float32, and twice as fast.
    exact = np.float32 if weights.sum(axis=1).max(initial=0) < 2**24 else np.float64
    drawn = weights.T.astype(exact)
    sums = np.zeros((len(weights), len(a), len(b)))
    size = int(max(1, min(256, _BLOCK_BYTES // (n * (len(b) + 8)))))
    for start in range(0, n, size):
        stop = min(start + size, n)
        rows = weights[:, start:stop].T
        # Signs of (p, q) and (q, p) have one product: half of the square is enough, and the block
        # on the diagonal, which has both, counts half.
        half = np.ones((stop - start, n - start), dtype=exact)
        half[:, : stop - start] = 0.5
        signs = [_signs(vector[start:stop], vector[start:]) for vector in b]
        for i, vector in enumerate(a):
            own = _signs(vector[start:stop], vector[start:])
            for j, others in enumerate(signs):
                product = (own * others).astype(exact)
                product *= half
                sums[:, i, j] += np.einsum("ps,ps->s", product @ drawn[start:], rows)
    return sums


def _signs(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    larger = rows[:, None] > columns
    return larger.view(np.int8) - (rows[:, None] < columns).view(np.int8)


def weighted_concordance(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return Kendall's sums of rows with rows, with weights: for orders that change by sample.

    Parameters
    ----------
    x, y
        Shape (n_rows, n_values), finite.
    weights
        Not negative, shape (n_values,).

    Returns
    -------
    numpy.ndarray
        float64, shape (n_rows,): the sum over p < q of w_p w_q sign(x_p - x_q) sign(y_p - y_q).

    Notes
    -----
    Along x, y is split by its bits from the highest: of two values that first differ in a bit,
    the one with 1 is the larger, so the discordant ones are ones before zeros of their part.
    """
    n_rows, n = x.shape
    ranks_x, ranks_y = _dense(x), _dense(y)
    bits = max(int(n - 1).bit_length(), 1)
    order = np.argsort((ranks_x << bits) | ranks_y, axis=1)
    sorted_y = np.take_along_axis(ranks_y, order, axis=1)
    drawn = weights[order]
    place = np.arange(n)
    discordant = np.zeros(n_rows)
    for level in range(bits - 1, -1, -1):
        part = sorted_y >> (level + 1)
        packed = np.sort((part << bits) | place, axis=1)
        where = packed & ((1 << bits) - 1)
        one = (np.take_along_axis(sorted_y, where, axis=1) >> level) & 1
        weight = np.take_along_axis(drawn, where, axis=1)
        ones = np.cumsum(weight * one, axis=1)
        # What the parts before hold, to be taken off: the ones cumulated at a part's start.
        starts = np.zeros((n_rows, n), dtype=bool)
        parts = packed >> bits
        np.not_equal(parts[:, 1:], parts[:, :-1], out=starts[:, 1:])
        at_start = np.zeros((n_rows, n))
        at_start[:, 1:][starts[:, 1:]] = ones[:, :-1][starts[:, 1:]]
        np.maximum.accumulate(at_start, axis=1, out=at_start)
        discordant += np.einsum("rp,rp->r", weight * (1 - one), ones - at_start)
    total = weights.sum() ** 2
    joint = (ranks_x << bits) | ranks_y
    equal = (
        tied_squares(ranks_x, weights)
        + tied_squares(ranks_y, weights)
        - tied_squares(joint, weights)
    )
    return 0.5 * (total - equal) - 2.0 * discordant


def _dense(values: np.ndarray) -> np.ndarray:
    """Return ranks 0, 1, ... of each row, the same for equal values."""
    order = np.argsort(values, axis=1)
    ascending = np.take_along_axis(values, order, axis=1)
    ranks = np.zeros(values.shape, dtype=np.int64)
    np.cumsum(ascending[:, 1:] != ascending[:, :-1], axis=1, out=ranks[:, 1:])
    dense = np.empty_like(ranks)
    np.put_along_axis(dense, order, ranks, axis=1)
    return dense


def tied_squares(groups: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return, for each row, the sum over groups of equals of their weight squared.

    Parameters
    ----------
    groups
        Equal where tied, shape (n_rows, n_values).
    weights
        Shape (n_values,).
    """
    order = np.argsort(groups, axis=1)
    ascending = np.take_along_axis(groups, order, axis=1)
    opens = np.ones(groups.shape, dtype=bool)
    np.not_equal(ascending[:, 1:], ascending[:, :-1], out=opens[:, 1:])
    first = np.flatnonzero(opens)
    held = np.add.reduceat(weights[order].ravel(), first)
    return np.add.reduceat(
        np.square(held), np.searchsorted(first, np.arange(len(groups)) * groups.shape[1])
    )
