"""Model layers against regions by RSA in the study's report: scores, ceilings, tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from isocortex.report.bars import BarPanel, bars_figure
from isocortex.report.comparison import Scores, comparison_figure, comparison_name
from isocortex.report.drawing import predictor_colours
from isocortex.report.model_tests import ALPHA, ModelTests, choose_predictors, model_tests
from isocortex.report.options import ReportOptions
from isocortex.report.page import (
    Heading,
    Note,
    Picture,
    Table,
    capital,
    count,
    equals,
    interval,
    number,
    p_value,
)
from isocortex.report.study_findings import rsa_scores
from isocortex.report.wording import corrected_header, correction, given_text, level, resampled

MOST_BARS = 12
"""Bars a panel holds with legible names."""


def models_section(
    opened: Sequence[xr.Dataset], choices: ReportOptions, *, given: Sequence[str] = ()
) -> list[Any]:
    """Scores of model layers by RSA, for each task and measure.

    Parameters
    ----------
    opened
        Stores of scores.
    choices
        Options of the report.
    given
        Models that were given as RDMs.
    """
    blocks: list[Any] = []
    for dataset in opened:
        measure, task = str(dataset.attrs["measure"]), str(dataset.attrs["task"])
        if len(opened) > 1:
            blocks.append(Heading(f"{measure}, task {task}"))
        scores, tests = rsa_scores(dataset), model_tests(dataset)
        shown = scores.regions_with_scores()[: choices.max_regions_shown]
        if not shown:
            blocks.append(Note("No region has a score, so there is no figure."))
            continue
        if len(scores.predictors) > MOST_BARS:
            blocks.append(_overview(dataset, scores, shown))
        blocks.append(_bars(dataset, scores, tests, shown))
        blocks.append(_best_table(dataset, scores, tests))
        blocks.append(_all_table(dataset, scores, tests, given))
        blocks += _ceiling_table(dataset, tests)
        blocks += _by_comparison(dataset, scores)
    return blocks


def _overview(dataset: xr.Dataset, scores: Scores, shown: Sequence[str]) -> Picture:
    comparison = str(dataset["comparison"].values[0])
    return Picture(
        [comparison_figure(scores, label=comparison.replace("_", " "), shown=shown)],
        "Scores of each model layer in each region with noise ceilings; the best is "
        + "; ".join(f"{r}: {b}" for r, b in zip(scores.regions, scores.best) if r in shown)
        + ".",
        f"All model layers ({dataset.attrs['measure']})",
        f"{capital(comparison_name(comparison))}, without unit. Points: mean over "
        f"{count(len(scores.subjects), 'subject')}; "
        f"{_bootstrap_text(dataset)}; small dots: subjects; grey band: lower to upper "
        f"noise ceiling.{_more(shown, scores)}",
    )


def _more(shown: Sequence[str], scores: Scores) -> str:
    if len(shown) == len(scores.regions):
        return ""
    return f" The first {len(shown)} of {len(scores.regions)} regions are shown."


def _bars(dataset: xr.Dataset, scores: Scores, tests: ModelTests, shown: Sequence[str]) -> Picture:
    """Draw the scores with the tests; the best layer of each model where there are many."""
    comparison = str(dataset["comparison"].values[0])
    colours = predictor_colours(scores.predictors)
    models = [str(name) for name in dataset["model"].values]
    panels = []
    for region in shown:
        column = scores.regions.index(region)
        rows = choose_predictors(scores.mean[:, column], models, tests.kind, most=MOST_BARS)
        panels.append(
            BarPanel(
                title=region,
                names=[scores.predictors[row] for row in rows],
                kinds=[tests.kind[row] for row in rows],
                colours=[colours[scores.predictors[row]] for row in rows],
                mean=scores.mean[rows, column],
                low=scores.low[rows, column],
                high=scores.high[rows, column],
                subjects=scores.score[rows, column],
                ceiling=tests.ceiling[:, column],
                ceiling_interval=tests.ceiling_interval[..., column],
                above_zero=_significant(tests.p_chosen[rows, column]),
                below_ceiling=[
                    # A score over the ceiling differs from it, too, but is not below it.
                    None if found is None else found and bool(scores.mean[row, column] < low)
                    for row, found, low in zip(
                        rows,
                        _significant(tests.p_ceiling[rows, column]),
                        np.repeat(tests.ceiling[0, column], len(rows)),
                    )
                ],
                wins=tests.wins(column)[np.ix_(rows, rows)],
            )
        )
    few = len(scores.predictors) <= MOST_BARS
    return Picture(
        [bars_figure(panels, label=comparison.replace("_", " "))],
        "Bars of model scores by region with noise ceilings and tests; the highest is "
        + "; ".join(f"{p.title}: {p.names[int(np.argmax(p.mean))]}" for p in panels)
        + ".",
        f"Model comparison ({dataset.attrs['measure']})",
        f"{capital(comparison_name(comparison))}, without unit"
        + (". " if few else "; the best layer of each model in each region, chosen on these data. ")
        + f"Bars: mean over {count(len(scores.subjects), 'subject')}; "
        f"{_bootstrap_text(dataset)}; circles: subjects; grey band: lower to upper noise ceiling"
        + _ceiling_text(tests)
        + ". "
        + _tests_text(dataset, tests)
        + _more(shown, scores),
    )


def _significant(p: np.ndarray) -> list[bool | None]:
    return [None if not np.isfinite(value) else bool(value < ALPHA) for value in p]


def _ceiling_text(tests: ModelTests) -> str:
    if not np.isfinite(tests.ceiling_interval).any():
        return ""
    return ", with their intervals at its right end"


def _tests_text(dataset: xr.Dataset, tests: ModelTests) -> str:
    n = count(dataset.sizes["subject"], "subject")
    words = []
    if np.isfinite(tests.p_chosen).any():
        words.append(
            f"Filled dots under the bars: above 0 at p < 0.05, one-sided, {correction(dataset)}"
            + (
                "; below the lower noise ceiling at p < 0.05, two-sided, not corrected."
                if np.isfinite(tests.p_ceiling).any()
                else "."
            )
        )
    else:
        words.append(f"No test against 0 with {n}.")
    if np.isfinite(tests.difference_p).any():
        words.append(
            "Wings over the bars: the dotted predictor is better than those with a tick, "
            f"p < 0.05, two-sided, {correction(dataset)} over the pairs of a region"
            + ("." if (tests.difference_p < ALPHA).any() else " (there is none).")
        )
    else:
        words.append("No test between predictors.")
    return " ".join(words)


def _bootstrap_text(dataset: xr.Dataset) -> str:
    if dataset.attrs["bootstrap"] == "none":
        return "no intervals, because there are too few stimuli and subjects to resample"
    return (
        f"lines: {level(dataset)} interval (bootstrap over {resampled(dataset)}, "
        f"{dataset.attrs['n_bootstrap']} samples)"
    )


_P_COLUMNS = (
    ("p", "p", "one-sided against 0"),
    ("p_fdr", "p FDR", "false discovery rate over all predictors and regions"),
    ("p_fwe", "p FWE", "family-wise over all predictors and regions (Holm)"),
    ("p_permutation", "p perm.", "by permuted stimulus labels{orders}"),
    ("p_ceiling", "p ceiling", "two-sided against the lower noise ceiling"),
)


def _p_columns(dataset: xr.Dataset, tests: ModelTests) -> list[tuple[np.ndarray, str, str]]:
    """Values, head and meaning of the p-values that the store has."""
    orders = dataset.attrs.get("n_permutations")
    found = [
        (
            getattr(tests, key),
            head,
            meaning.format(orders=f" ({orders:,} orders)" if orders else ""),
        )
        for key, head, meaning in _P_COLUMNS
    ]
    if not np.isfinite(tests.p_fwe).any():
        meaning = f"one-sided against 0, {correction(dataset)}"
        found.insert(1, (tests.p_chosen, corrected_header(dataset), meaning))
    return [column for column in found if np.isfinite(column[0]).any()]


def _p_caption(columns: Sequence[tuple[np.ndarray, str, str]]) -> str:
    if not columns:
        return ""
    return "; ".join(f"{head}: {meaning}" for _, head, meaning in columns) + "."


def _best_table(dataset: xr.Dataset, scores: Scores, tests: ModelTests) -> Table:
    """Best layer of each region with its tests and the test against the runner-up."""
    columns = _p_columns(dataset, tests)
    if len(columns) > 1:
        # Beside the corrected ones; the table of all predictors has it.
        columns = [column for column in columns if column[1] != "p"]
    against = np.isfinite(tests.difference_p).any()
    rows = []
    for c, (region, best) in enumerate(zip(scores.regions, scores.best)):
        if best not in scores.predictors:
            rows.append([region, "no score", *["n/a"] * (3 + len(columns))])
            continue
        b = scores.predictors.index(best)
        second = scores.runner_up(c, tests.rivals(b))
        cells = [
            region,
            best,
            f"{number(scores.mean[b, c])} {interval(scores.low[b, c], scores.high[b, c])}",
            " – ".join(number(value) for value in tests.ceiling[:, c]),
            *(p_value(values[b, c]) for values, _, _ in columns),
            "none"
            if second is None
            else f"{scores.predictors[second]} ({number(scores.mean[second, c])}"
            + (f"; p\u00a0{equals(tests.difference_p[b, second, c])})" if against else ")"),
        ]
        rows.append(cells)
    name = str(dataset["comparison"].values[0]).replace("_", " ")
    return Table(
        f"Best model layer by RSA ({dataset.attrs['measure']}, {name})",
        (
            *("Region", "Best layer", f"Score [{level(dataset)} interval]", "Noise ceiling"),
            *(head for _, head, _ in columns),
            "Runner-up (score; p)" if against else "Runner-up",
        ),
        rows,
        " ".join(
            filter(
                None,
                [
                    _p_caption(columns),
                    "Runner-up: p of the best layer against it, two-sided, "
                    f"{correction(dataset)} over the pairs of a region."
                    if against
                    else "",
                ],
            )
        ),
    )


def _all_table(
    dataset: xr.Dataset, scores: Scores, tests: ModelTests, given: Sequence[str]
) -> Table:
    columns = _p_columns(dataset, tests)
    kinds = set(tests.kind) != {"fixed"}
    rows = [
        [
            region,
            predictor,
            *([tests.kind[r]] if kinds else []),
            f"{number(scores.mean[r, c], 3)} {interval(scores.low[r, c], scores.high[r, c], 3)}",
            *(p_value(values[r, c]) for values, _, _ in columns),
        ]
        for c, region in enumerate(scores.regions)
        for r, predictor in enumerate(scores.predictors)
        if np.isfinite(scores.mean[r, c])
    ]
    return Table(
        f"Scores of all predictors ({dataset.attrs['measure']})",
        (
            *("Region", "Predictor"),
            *(["Kind"] if kinds else []),
            f"Score [{level(dataset)} interval]",
            *(head for _, head, _ in columns),
        ),
        rows,
        " ".join(filter(None, [_p_caption(columns), given_text(given)])),
        collapsed=True,
    )


def _ceiling_table(dataset: xr.Dataset, tests: ModelTests) -> list[Table]:
    """Noise ceilings with their intervals, where the store has more than the two numbers."""
    if not (np.isfinite(tests.ceiling_interval).any() or np.isfinite(tests.ceiling_cv).any()):
        return []
    rows = [
        [
            str(region),
            *(
                f"{number(tests.ceiling[end, c])} {interval(*tests.ceiling_interval[end, :, c])}"
                for end in (0, 1)
            ),
            *(number(tests.ceiling_cv[end, c]) for end in (0, 1)),
        ]
        for c, region in enumerate(dataset["region"].values)
    ]
    return [
        Table(
            f"Noise ceilings ({dataset.attrs['measure']})",
            (
                "Region",
                f"Lower [{level(dataset)} interval]",
                f"Upper [{level(dataset)} interval]",
                "Lower, cross-validated",
                "Upper, cross-validated",
            ),
            rows,
            "Lower: mean score of the other subjects' mean RDM; upper: that of all subjects' mean "
            "RDM. Cross-validated: on held-out stimuli, the ceilings of fitted models.",
            collapsed=True,
        )
    ]


def _by_comparison(dataset: xr.Dataset, scores: Scores) -> list[Table]:
    comparisons = [str(name) for name in dataset["comparison"].values]
    if len(comparisons) < 2:
        return []
    best = dataset["best_predictor"].values
    return [
        Table(
            f"Best layer by comparison ({dataset.attrs['measure']})",
            ("Region", *(comparison_name(name) for name in comparisons)),
            [
                [region, *(str(name) or "no score" for name in best[:, r])]
                for r, region in enumerate(scores.regions)
            ],
            "Whether the answer depends on how RDMs are compared.",
        )
    ]
