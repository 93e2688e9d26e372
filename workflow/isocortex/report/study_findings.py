"""The findings that stand first in the study's report, and the scores that they are read from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from isocortex.report.absence import absence
from isocortex.report.comparison import (
    Scores,
    comparison_name,
)
from isocortex.report.model_tests import model_tests
from isocortex.report.page import (
    Table,
    capital,
    count,
    equals,
    interval,
    join,
    number,
    p_value,
    percent,
)
from isocortex.report.wording import (
    correction,
    level,
    resampled,
)


@dataclass
class Finding:
    """One of the findings that stand first."""

    name: str
    title: str
    text: str
    detail: str
    values: Any
    available: bool = True
    lines: Sequence[tuple[str, str]] = ()


@dataclass
class Findings:
    """The findings as a block of the page."""

    items: list[Finding]
    kind: str = "findings"


def rsa_scores(dataset: xr.Dataset, comparison: int = 0) -> Scores:
    """Take one comparison out of a scores store."""
    part = dataset.isel(comparison=comparison)
    return Scores(
        predictors=[str(name) for name in dataset["predictor"].values],
        regions=[str(name) for name in dataset["region"].values],
        subjects=[str(name) for name in dataset["subject"].values],
        score=np.asarray(part["score"].values),
        mean=np.asarray(part["mean"].values),
        low=np.asarray(part["interval_low"].values),
        high=np.asarray(part["interval_high"].values),
        p=np.asarray(part["p_corrected"].values),
        best=[str(name) for name in part["best_predictor"].values],
        ceiling_low=np.asarray(part["ceiling_low"].values),
        ceiling_high=np.asarray(part["ceiling_high"].values),
    )


def encoding_scores(dataset: xr.Dataset) -> Scores:
    """Take the scores out of an encoding summary."""
    return Scores(
        predictors=[str(name) for name in dataset["predictor"].values],
        regions=[str(name) for name in dataset["region"].values],
        subjects=[str(name) for name in dataset["subject"].values],
        score=np.asarray(dataset["score"].values),
        mean=np.asarray(dataset["mean"].values),
        low=np.asarray(dataset["interval_low"].values),
        high=np.asarray(dataset["interval_high"].values),
        p=np.asarray(dataset["p_corrected"].values),
        best=[str(name) for name in dataset["best_predictor"].values],
    )


def _best_sentence(scores: Scores) -> tuple[str, list[dict[str, Any]]]:
    """Say each region's best predictor with score and interval, grouping nothing away."""
    words = []
    values = []
    for region, best in zip(scores.regions, scores.best):
        if best not in scores.predictors:
            values.append({"region": region, "predictor": None})
            continue
        numbers = scores.of(region, best)
        low, high = numbers["interval"]  # type: ignore[misc]
        words.append(f"{region}: {best}, {number(numbers['score'])} {interval(low, high)}")  # type: ignore[arg-type]
        values.append({"region": region, "predictor": best, **numbers})
    return "; ".join(words), values


def _lines(values: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """One line a region for the page, where a sentence would be long."""
    return [
        (
            value["region"],
            f"{value['predictor']}, {number(value['score'])} {interval(*value['interval'])}"
            if value["predictor"]
            else "no score",
        )
        for value in values
    ]


def _missing_finding(name: str, title: str, stage: str, entry: str) -> Finding:
    return Finding(name, title, absence(stage, entry), "", [], available=False)


def rsa_finding(opened: Sequence[xr.Dataset], entry: str) -> Finding:
    """Say which layer fits each region best by the first scores store."""
    title = "Best model layer by geometry (RSA)"
    if not opened:
        return _missing_finding("rsa", title, "models", entry)
    dataset = opened[0]
    scores = rsa_scores(dataset)
    text, values = _best_sentence(scores)
    comparison = str(dataset["comparison"].values[0])
    significant = sum(value.get("p_corrected", np.nan) < 0.05 for value in values)
    if not np.isfinite(scores.p).any():
        inference = f"no p-value with {count(len(scores.subjects), 'subject')}"
    else:
        inference = (
            f"{significant} of {len(values)} best layers above 0 (p < 0.05, {correction(dataset)})"
        )
    return Finding(
        "rsa",
        title,
        f"{text}." if text else "No region has a score.",
        f"{capital(comparison_name(comparison))} "
        f"({dataset.attrs['measure']}), mean over "
        f"{count(len(scores.subjects), 'subject')} [{level(dataset)} interval]; {inference}.",
        {
            "task": str(dataset.attrs["task"]),
            "measure": str(dataset.attrs["measure"]),
            "comparison": comparison,
            "n_subjects": len(scores.subjects),
            "regions": values,
        },
        lines=_lines(values),
    )


HEADLINES = {
    "identification": ("rgtm(nested)", "rank_rdm", "rdm"),
    "topology": ("rgtm(0.20,0.80)", "rank_rdm", "rdm"),
}
"""The statistics that speak for an analysis, the first that has a value. Fixed beforehand: the best
of the grid would be circular. Identification: thresholds chosen inside the left-out subject, else
the baseline of ranks. Models: Lin & Kriegeskorte's geo-topological example."""


def headline_statistic(dataset: xr.Dataset) -> int:
    """Index of the statistic that speaks for a store, see `HEADLINES`.

    Where none of them has a value it is the first of the store that has one.
    """
    kind = "identification" if "accuracy" in dataset else "topology"
    names = [str(name) for name in dataset["statistic"].values]
    values = dataset["accuracy" if kind == "identification" else "score"].transpose(
        "statistic", ...
    )
    has_value = np.isfinite(values.values.reshape(len(names), -1)).any(axis=1)
    for name in HEADLINES[kind]:
        if name in names and has_value[names.index(name)]:
            return names.index(name)
    return int(has_value.argmax())


def _stand_in(dataset: xr.Dataset, index: int) -> str:
    """Say why another statistic than the first choice speaks for the identification, if so."""
    wanted = HEADLINES["identification"][0]
    if str(dataset["statistic"].values[index]) == wanted:
        return ""
    n = dataset.sizes["subject"]
    reason = f"{wanted} needs at least 3 subjects" if n < 3 else f"{wanted} has no value"
    chosen = dataset["statistic"].values[index]
    return f"Because {reason}, the figure is that of {chosen}, a choice fixed beforehand."


def identification_finding(opened: Sequence[xr.Dataset], entry: str) -> Finding:
    """Say how well regions are identified by the first identification store."""
    title = "Regions identified by topology (tRSA)"
    if not opened:
        return _missing_finding("identification", title, "identification", entry)
    dataset = opened[0]
    if not np.isfinite(dataset["accuracy"].values).any():
        return Finding(
            "identification", title, f"{capital(no_identification(dataset))}.", "", [], False
        )
    index = headline_statistic(dataset)
    names = [str(name) for name in dataset["statistic"].values]
    accuracy, low, high, p = (
        np.asarray(dataset[key].values, dtype=float)
        for key in ("accuracy", "accuracy_low", "accuracy_high", "p")
    )
    chance = float(dataset.attrs["chance"])
    n_subjects = dataset.sizes["subject"]

    def numbers(row: int) -> dict[str, Any]:
        return {
            "statistic": names[row],
            "accuracy": float(accuracy[row]),
            "interval": [float(low[row]), float(high[row])],
            "p": float(p[row]),
        }

    text = (
        f"{names[index]} identifies {percent(accuracy[index])} "
        f"{_percent_interval(low[index], high[index])} of the regions of left-out "
        "subjects; "
        f"chance is {percent(chance)}"
        + (f", p {equals(p[index])}." if np.isfinite(p[index]) else "; no p-value was computed.")
    )
    values: dict[str, Any] = {
        "task": str(dataset.attrs["task"]),
        "measure": str(dataset.attrs["measure"]),
        "chance": chance,
        "n_subjects": n_subjects,
        "n_regions": dataset.sizes["region"],
        **numbers(index),
    }
    detail = (
        f"{count(n_subjects, 'subject')}, {dataset.sizes['region']} regions "
        f"({dataset.attrs['measure']})"
        + (
            f" [{level(dataset)} interval, bootstrap over {resampled(dataset)}]."
            if np.isfinite(low[index])
            else "."
        )
    )
    if "rdm" in names and names[index] != "rdm":
        plain = names.index("rdm")
        values["baseline"] = numbers(plain)
        detail = f"The plain RDM identifies {percent(accuracy[plain])}. {detail}"
    if instead := _stand_in(dataset, index):
        detail = f"{detail} {instead}"
    left_out = dataset.attrs.get("regions_left_out")
    if isinstance(left_out, Mapping) and left_out:
        detail = f"{detail} Left out: {join(list(left_out))}."
    return Finding("identification", title, text, detail, values)


def layers_finding(opened: Sequence[xr.Dataset]) -> list[Finding]:
    """Say how well layers are identified without and with the most noise, if they were."""
    title = "Network layers identified across seeds"
    if not opened:
        return []
    dataset = opened[0]
    accuracy, low, high = (
        np.asarray(dataset[key].values, dtype=float)
        for key in ("accuracy", "accuracy_low", "accuracy_high")
    )
    if not np.isfinite(accuracy).any():
        why = dataset.attrs.get("flag") or "no accuracy is finite"
        return [Finding("layers", title, f"Layers were not identified: {why}.", "", [], False)]
    names = [str(name) for name in dataset["statistic"].values]
    noise = np.asarray(dataset["noise"].values, dtype=float)
    index = headline_statistic(dataset)
    chance = float(dataset.attrs["chance"])

    def at(level_index: int, row: int) -> str:
        return (
            f"{percent(accuracy[level_index, row])} "
            f"{_percent_interval(low[level_index, row], high[level_index, row])}"
        )

    # The fair baselines: gain differences alone lift an RGTM over the raw RDM.
    rows = [index, *(names.index(n) for n in ("rank_rdm", "unit_rdm") if n in names[:index])]
    text = "; ".join(
        f"{names[row]} identifies {at(0, row)} of the layers of left-out seeds"
        + (f" at {noise[0]:g} SD of noise and {at(-1, row)} at {noise[-1]:g}" * (len(noise) > 1))
        for row in rows
    )
    return [
        Finding(
            "layers",
            title,
            f"{text}; chance is {percent(chance)}.",
            f"{count(dataset.sizes['seed'], 'seed')}, {count(dataset.sizes['layer'], 'layer')} of "
            f"{dataset.attrs['network']} ({dataset.attrs['measure']}) [{level(dataset)} interval].",
            {
                "network": str(dataset.attrs["network"]),
                "measure": str(dataset.attrs["measure"]),
                "chance": chance,
                "noise": noise.tolist(),
                "statistics": {
                    names[row]: {
                        "accuracy": accuracy[:, row].tolist(),
                        "interval": np.stack([low[:, row], high[:, row]], axis=1).tolist(),
                    }
                    for row in rows
                },
            },
        )
    ]


def _percent_interval(low: float, high: float) -> str:
    if not (np.isfinite(low) and np.isfinite(high)):
        return "no interval"
    return f"[{number(100 * low, 0)}, {number(100 * high, 0)}]%"


def no_identification(dataset: xr.Dataset) -> str:
    """Say why an identification store holds no accuracy."""
    return f"regions were not identified: {dataset.attrs.get('flag') or 'no accuracy is finite'}"


def encoding_finding(opened: Sequence[xr.Dataset], entry: str) -> Finding:
    """Say which layer predicts each region best by the first encoding summary."""
    title = "Best model layer by prediction (encoding)"
    if not opened:
        return _missing_finding("encoding", title, "encoding", entry)
    dataset = opened[0]
    scores = encoding_scores(dataset)
    text, values = _best_sentence(scores)
    if not np.isfinite(scores.p).any():
        inference = f"no p-value with {count(len(scores.subjects), 'subject')}"
    else:
        significant = sum(value.get("p_corrected", np.nan) < 0.05 for value in values)
        inference = (
            f"{significant} of {len(values)} best layers above 0 (p < 0.05, {correction(dataset)})"
        )
    return Finding(
        "encoding",
        title,
        f"{text}." if text else "No region has a score.",
        "Held-out correlation r over responsive voxels, mean over "
        f"{count(len(scores.subjects), 'subject')} "
        f"[{level(dataset)} interval]; {inference}.",
        {
            "task": str(dataset.attrs["task"]),
            "n_subjects": len(scores.subjects),
            "regions": values,
        },
        lines=_lines(values),
    )


def views_table(opened: Mapping[str, Sequence[xr.Dataset]]) -> list[Any]:
    """Best predictor of each region under the three views, side by side."""
    views: dict[str, dict[str, str]] = {}
    against: dict[str, str] = {}
    if opened["scores"]:
        scores = rsa_scores(opened["scores"][0])
        views["RSA"] = dict(zip(scores.regions, scores.best))
        against = _runner_up_p(opened["scores"][0], scores)
    if opened["topology"]:
        dataset = opened["topology"][0]
        index = headline_statistic(dataset)
        name = str(dataset["statistic"].values[index])
        best = dataset["best_predictor"].values[index]
        views[f"Topology ({name})"] = {
            str(region): str(value) for region, value in zip(dataset["region"].values, best)
        }
    if opened["encoding_summary"]:
        scores = encoding_scores(opened["encoding_summary"][0])
        views["Encoding"] = dict(zip(scores.regions, scores.best))
    if len(views) < 2:
        return []
    regions = list(dict.fromkeys(region for view in views.values() for region in view))
    rows = []
    for region in regions:
        cells = [view.get(region) or "no score" for view in views.values()]
        agreement = len(set(cells)) == 1
        rows.append(
            [
                region,
                *cells,
                "all agree" if agreement else "differ",
                *([against.get(region, "n/a")] if against else []),
            ]
        )
    tested = (
        "RSA, p: the best layer against the second best layer, two-sided, "
        f"{correction(opened['scores'][0])} over the pairs of a region."
        if against
        else "A difference between two layers is not tested here."
    )
    return [
        Table(
            "Best model layer of each region under each view",
            ("Region", *views, "Agreement", *(["RSA, p against the second"] if against else [])),
            rows,
            f"The layer with the highest mean over subjects. {tested}",
        )
    ]


def _runner_up_p(dataset: xr.Dataset, scores: Scores) -> dict[str, str]:
    """p-value of the best layer against the second by region; empty where none was computed."""
    tests = model_tests(dataset)
    if not np.isfinite(tests.difference_p).any():
        return {}
    found = {}
    for column, (region, best) in enumerate(zip(scores.regions, scores.best)):
        if best not in scores.predictors:
            continue
        row = scores.predictors.index(best)
        second = scores.runner_up(column, tests.rivals(row))
        if second is not None:
            found[region] = p_value(tests.difference_p[row, second, column])
    return found
