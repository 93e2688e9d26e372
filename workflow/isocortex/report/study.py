"""The report of the study."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

import isocortex
from isocortex import provenance, store
from isocortex.report.brain import Grid
from isocortex.report.comparison import (
    Scores,
    comparison_figure,
    comparison_name,
    identification_figure,
)
from isocortex.report.drawing import read_thumbnails, report_style
from isocortex.report.maps import LayerMaps, average_encoding, layer_pictures
from isocortex.report.matrices import (
    StimulusOrder,
    align,
    classical_mds,
    confusion_figure,
    mds_figure,
    order_stimuli,
    rdm_figure,
    square,
    threshold_grid_figure,
)
from isocortex.report.methods import methods_blocks
from isocortex.report.options import ReportOptions
from isocortex.report.page import (
    Heading,
    Note,
    Paragraph,
    Picture,
    Section,
    Table,
    count,
    interval,
    join,
    number,
    p_value,
    percent,
    render,
)
from isocortex.report.quality import read_confounds
from isocortex.report.sources import (
    configuration_table,
    package_versions,
    provenance_table,
    read_manifests,
    versions_table,
)
from isocortex.report.subject import ENTRY_TEXT, absence, radius_text, voxel_reason

log = logging.getLogger(__name__)


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


def report_study(
    *,
    study: str,
    subjects: Sequence[str],
    out: Path | str,
    summary: Path | str,
    options: Mapping[str, Any],
    config: Mapping[str, Any],
    entry: str = "bids",
    excluded: Mapping[str, str] | None = None,
    scores: Sequence[Path | str] = (),
    identification: Sequence[Path | str] = (),
    topology: Sequence[Path | str] = (),
    encoding_summary: Sequence[Path | str] = (),
    searchlight: Sequence[Path | str] = (),
    rdms: Sequence[Path | str] = (),
    model_rdms: Sequence[Path | str] = (),
    encoding: Sequence[Path | str] = (),
    betas: Sequence[Path | str] = (),
    confounds: Sequence[Path | str] = (),
    stimuli: Mapping[str, Path | str] | None = None,
    categories: Mapping[str, str] | None = None,
    manifests: Sequence[Path | str] = (),
    code: str = "",
) -> Path:
    """Write the report of the study and a summary of its findings.

    Parameters
    ----------
    study
        Name of the study.
    subjects
        Labels of the subjects analysed, without ``sub-``.
    out
        HTML file to write.
    summary
        JSON file with the findings as text and numbers.
    options
        The ``report`` section of the configuration.
    config
        The whole configuration, for the methods text and the configuration table.
    entry
        Where the study enters the chain: ``bids``, ``derivatives``, ``betas`` or ``rdms``.
    excluded
        Reason by excluded subject.
    scores, identification, topology
        Stores, one a task and measure; the first of each carries the finding.
    encoding_summary, searchlight
        Group stores, one a task.
    rdms
        RDM stores of all subjects, tasks and measures.
    model_rdms
        Model RDM stores, one a model.
    encoding
        Encoding stores of all subjects, tasks and models, for the group maps.
    betas, confounds
        Betas stores and confounds tables of all subjects, for the data quality table and, from
        the betas, the category of each stimulus.
    stimuli
        Image file by stimulus id.
    categories
        Category by stimulus id; goes before the conditions in the betas.
    manifests
        Further manifests for the provenance table.
    code
        Digest of the report's code.

    Returns
    -------
    pathlib.Path
        `out`.

    Raises
    ------
    InputError
        If an input cannot be read.
    """
    choices = ReportOptions.from_config(options)
    excluded = {
        str(key).removeprefix("sub-"): str(value) for key, value in (excluded or {}).items()
    }
    opened = {
        "scores": [store.open(path, "scores") for path in scores],
        "identification": [store.open(path, "identification") for path in identification],
        "topology": [store.open(path, "topology") for path in topology],
        "encoding_summary": [store.open(path, "encoding_summary") for path in encoding_summary],
        "searchlight": [store.open(path, "searchlight_group") for path in searchlight],
        "rdms": [store.open(path, "rdms") for path in rdms],
        "encoding": [store.open(path, "encoding") for path in encoding],
        "betas": [store.open(path, "betas") for path in betas],
    }
    given = dict(categories or {})
    if not given and opened["betas"]:
        first = opened["betas"][0]
        given = dict(zip(first["stimulus"].values, first["condition"].values))

    findings = [
        _rsa_finding(opened["scores"], entry),
        _identification_finding(opened["identification"], entry),
        _encoding_finding(opened["encoding_summary"], entry),
    ]
    with report_style():
        sections = [
            Section(
                "findings",
                "Findings",
                [Findings(findings), *_views_table(opened, choices)],
            ),
            Section(
                "sample",
                "Sample and data quality",
                _sample(opened["betas"], confounds, subjects, excluded, entry),
            ),
            Section(
                "rdms",
                "Representational geometry of the regions",
                _geometry(opened["rdms"], given, stimuli or {}, choices, entry),
            ),
            Section(
                "models", "Models against regions (RSA)", _models(opened["scores"], choices, entry)
            ),
            Section(
                "topology",
                "Topological RSA",
                _topology(opened["identification"], opened["topology"], choices, entry),
            ),
            Section(
                "encoding",
                "Encoding models",
                _encoding(opened["encoding_summary"], encoding, choices, entry),
            ),
            Section(
                "searchlight", "Searchlight", _searchlight(opened["searchlight"], choices, entry)
            ),
            Section(
                "notes", "Flagged and skipped", _flags(opened, excluded, stimuli or {}, choices)
            ),
        ]
        found = read_manifests(
            [
                path
                for group in (manifests, model_rdms, betas, rdms, scores, identification, topology)
                for path in group
            ]
            + [path for group in (searchlight, encoding, encoding_summary) for path in group]
        )
        versions = package_versions(found)
        text, references = methods_blocks(
            entry=entry,
            config=config,
            versions=versions,
            surface=choices.surface and any(Grid.of(ds).is_template for ds in opened["encoding"]),
            **opened,
        )
        sections += [
            Section("methods", "Methods", text),
            Section("references", "References", [references]),
            Section(
                "provenance",
                "Provenance",
                [
                    provenance_table(found) if found else Note("No manifest was given."),
                    versions_table(versions),
                    configuration_table(config),
                ],
            ),
        ]
    tasks = list(dict.fromkeys(str(ds.attrs["task"]) for group in opened.values() for ds in group))
    facts = {
        "Subjects": str(len(subjects)),
        "Excluded": str(len(excluded)),
        "Tasks": join(tasks) if tasks else "–",
        "Regions": str(opened["rdms"][0].sizes["region"]) if opened["rdms"] else "–",
        "Started from": ENTRY_TEXT.get(entry, entry),
        "isocortex": isocortex.__version__,
        "Report code": code[:16] or "not recorded",
    }
    path = render(
        out,
        title=choices.title or study,
        subtitle="Study report" if not choices.title else f"{study} · study report",
        facts=facts,
        sections=sections,
    )
    provenance.write_json(
        summary,
        {
            "study": study,
            "subjects": [str(subject) for subject in subjects],
            "excluded": excluded,
            "report": path.name,
            "findings": [
                {
                    "name": finding.name,
                    "title": finding.title,
                    "text": finding.text,
                    "available": finding.available,
                    "values": _plain(finding.values),
                }
                for finding in findings
            ],
        },
    )
    log.info("wrote %s (%.1f MB)", path, path.stat().st_size / 1e6)
    return path


def _capital(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}"


def _plain(value: Any) -> Any:
    """Make numbers fit for JSON: what is not finite becomes null."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value


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
    return Finding(name, title, absence(stage, entry).text, "", [], available=False)


def _rsa_finding(opened: Sequence[xr.Dataset], entry: str) -> Finding:
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
        inference = f"{significant} of {len(values)} best layers above 0 (p < 0.05, corrected)"
    return Finding(
        "rsa",
        title,
        f"{text}." if text else "No region has a score.",
        f"{_capital(comparison_name(comparison))} "
        f"({dataset.attrs['measure']}), mean over "
        f"{count(len(scores.subjects), 'subject')} [95% interval]; {inference}.",
        {
            "task": str(dataset.attrs["task"]),
            "measure": str(dataset.attrs["measure"]),
            "comparison": comparison,
            "n_subjects": len(scores.subjects),
            "regions": values,
        },
        lines=_lines(values),
    )


def headline_statistic(dataset: xr.Dataset) -> int:
    """Index of the statistic that carries the identification finding.

    The one whose thresholds were chosen inside the left-out subject; where it is absent or has no
    value (too few subjects), the first statistic of the store that has one. Never the best of the
    grid, which would be circular.
    """
    names = [str(name) for name in dataset["statistic"].values]
    values = dataset["accuracy" if "accuracy" in dataset else "score"].values
    has_value = np.isfinite(values.reshape(len(names), -1)).any(axis=1)
    for index, name in enumerate(names):
        if "nested" in name and has_value[index]:
            return index
    return int(has_value.argmax())


def _identification_finding(opened: Sequence[xr.Dataset], entry: str) -> Finding:
    title = "Regions identified by topology (tRSA)"
    if not opened:
        return _missing_finding("identification", title, "models", entry)
    dataset = opened[0]
    if not np.isfinite(dataset["accuracy"].values).any():
        return Finding(
            "identification", title, f"{_capital(_no_identification(dataset))}.", "", [], False
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

    bounds = (
        f"[{number(100 * low[index], 0)}, {number(100 * high[index], 0)}]%"
        if np.isfinite(low[index]) and np.isfinite(high[index])
        else "no interval"
    )
    text = (
        f"{names[index]} identifies {percent(accuracy[index])} {bounds} of the regions of left-out "
        "subjects; "
        f"chance is {percent(chance)}"
        + (f", p {_equals(p[index])}." if np.isfinite(p[index]) else "; no p-value was computed.")
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
        f"({dataset.attrs['measure']})."
    )
    if "rdm" in names and names[index] != "rdm":
        plain = names.index("rdm")
        values["baseline"] = numbers(plain)
        detail = f"The plain RDM identifies {percent(accuracy[plain])}. {detail}"
    return Finding("identification", title, text, detail, values)


def _no_identification(dataset: xr.Dataset) -> str:
    return f"regions were not identified: {dataset.attrs.get('flag') or 'no accuracy is finite'}"


def _resampled(dataset: xr.Dataset) -> str:
    """What the bootstrap of an identification store drew."""
    options = dataset.attrs.get("options")
    drawn = str(options.get("resample", "")) if isinstance(options, Mapping) else ""
    return {
        "both": "bootstrap over subjects and stimuli",
        "subjects": "bootstrap over subjects",
        "stimuli": "bootstrap over stimuli",
    }.get(drawn, f"bootstrap over {drawn}" if drawn else "bootstrap")


def _equals(p: float) -> str:
    text = p_value(p)
    return text if text.startswith("<") else f"= {text}"


def _encoding_finding(opened: Sequence[xr.Dataset], entry: str) -> Finding:
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
        inference = f"{significant} of {len(values)} best layers above 0 (p < 0.05, corrected)"
    return Finding(
        "encoding",
        title,
        f"{text}." if text else "No region has a score.",
        "Held-out correlation r over responsive voxels, mean over "
        f"{count(len(scores.subjects), 'subject')} "
        f"[95% interval]; {inference}.",
        {
            "task": str(dataset.attrs["task"]),
            "n_subjects": len(scores.subjects),
            "regions": values,
        },
        lines=_lines(values),
    )


def _views_table(opened: Mapping[str, Sequence[xr.Dataset]], choices: ReportOptions) -> list[Any]:
    """Best predictor of each region under the three views, side by side."""
    views: dict[str, dict[str, str]] = {}
    if opened["scores"]:
        scores = rsa_scores(opened["scores"][0])
        views["RSA"] = dict(zip(scores.regions, scores.best))
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
        rows.append([region, *cells, "all agree" if agreement else "differ"])
    return [
        Table(
            "Best model layer of each region under each view",
            ("Region", *views, "Agreement"),
            rows,
            "The layer with the highest mean over subjects; a difference between two layers is not "
            "tested here.",
        )
    ]


def _sample(
    betas: Sequence[xr.Dataset],
    confounds: Sequence[Path | str],
    subjects: Sequence[str],
    excluded: Mapping[str, str],
    entry: str,
) -> list[Any]:
    blocks: list[Any] = [
        Paragraph(
            f"{count(len(subjects), 'subject')} analysed: {join([str(s) for s in subjects])}."
            if subjects
            else "No subject was analysed."
        )
    ]
    if excluded:
        blocks.append(
            Table(
                "Excluded subjects",
                ("Subject", "Reason"),
                [[k, v] for k, v in sorted(excluded.items())],
            )
        )
    else:
        blocks.append(Paragraph("No subject was excluded."))
    motion: dict[str, list[Any]] = {}
    for path in confounds:
        run = read_confounds(path)
        label = Path(path).name.split("_", 1)[0].removeprefix("sub-")
        motion.setdefault(label, []).append(run)
    if not betas:
        blocks.append(absence("glm", entry))
        return blocks
    rows = []
    for dataset in betas:
        subject = str(dataset.attrs["subject"])
        runs = motion.get(subject, [])
        displacement = [
            run.columns["framewise_displacement"]
            for run in runs
            if "framewise_displacement" in run.columns
        ]
        together = np.concatenate(displacement) if displacement else np.array([])
        together = together[np.isfinite(together)]
        rows.append(
            [
                subject,
                str(dataset.attrs["task"]),
                len(set(dataset["run"].values)),
                dataset.sizes["trial"],
                len(set(dataset["stimulus"].values)),
                f"{dataset.sizes['voxel']:,}",
                number(float(np.nanmedian(dataset["tsnr"].values)), 1)
                if dataset["tsnr"].notnull().any()
                else "n/a",
                _share(dataset["ncsnr"].values, 95),
                _share(dataset["r2"].values, 95),
                number(float(together.mean()) if together.size else np.nan, 3),
                number(float(together.max()) if together.size else np.nan, 2),
            ]
        )
    blocks.append(
        Table(
            "Data quality by subject",
            (
                "Subject",
                "Task",
                "Runs",
                "Trials",
                "Stimuli",
                "Voxels",
                "tSNR, median",
                "ncsnr, 95%",
                "R², 95%",
                "FD mean, mm",
                "FD max, mm",
            ),
            rows,
            "95%: 95th percentile over voxels. FD: framewise displacement over all runs of the "
            "subject "
            "with a confounds table.",
        )
    )
    return blocks


def _share(values: np.ndarray, percentile: float) -> str:
    values = np.asarray(values)
    values = values[np.isfinite(values)]
    return number(float(np.percentile(values, percentile)), 2) if values.size else "n/a"


def _by_task_and_measure(opened: Sequence[xr.Dataset]) -> dict[tuple[str, str], list[xr.Dataset]]:
    groups: dict[tuple[str, str], list[xr.Dataset]] = {}
    for dataset in opened:
        key = (str(dataset.attrs["task"]), str(dataset.attrs["measure"]))
        groups.setdefault(key, []).append(dataset)
    return groups


def mean_rdms(
    stores: Sequence[xr.Dataset], order: StimulusOrder
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Average RDMs over subjects after scaling each to unit root-mean-square.

    Parameters
    ----------
    stores
        RDM stores of the subjects, one measure and task.
    order
        Stimuli of rows and columns.

    Returns
    -------
    matrices, n
        Mean by region, shape (n, n), NaN for pairs that no subject has, and subjects by region.
    """
    total: dict[str, np.ndarray] = {}
    weight: dict[str, np.ndarray] = {}
    n: dict[str, int] = {}
    for dataset in stores:
        values = np.asarray(dataset["dissimilarity"].values)
        for index, region in enumerate(str(name) for name in dataset["region"].values):
            row = values[index]
            finite = np.isfinite(row)
            scale = np.sqrt(np.mean(row[finite] ** 2)) if finite.any() else 0.0
            if scale == 0:
                continue
            matrix = square(
                row / scale, dataset["stimulus_i"].values, dataset["stimulus_j"].values, order.names
            )
            known = np.isfinite(matrix)
            total.setdefault(region, np.zeros_like(matrix))
            weight.setdefault(region, np.zeros_like(matrix))
            total[region] += np.where(known, matrix, 0)
            weight[region] += known
            n[region] = n.get(region, 0) + 1
    with np.errstate(invalid="ignore"):
        return {region: total[region] / weight[region] for region in total}, n


def _geometry(
    opened: Sequence[xr.Dataset],
    given: Mapping[str, str],
    stimuli: Mapping[str, Path | str],
    choices: ReportOptions,
    entry: str,
) -> list[Any]:
    if not opened:
        return [absence("rdms", entry)]
    blocks: list[Any] = []
    groups = _by_task_and_measure(opened)
    for position, ((task, measure), stores) in enumerate(groups.items()):
        names = [
            name for ds in stores for key in ("stimulus_i", "stimulus_j") for name in ds[key].values
        ]
        order = order_stimuli(names, given)
        matrices, n = mean_rdms(stores, order)
        if len(groups) > 1:
            blocks.append(Heading(f"{measure}, task {task}"))
        if not matrices:
            blocks.append(Note("No region has a finite dissimilarity that is not 0 everywhere."))
            continue
        shown = list(matrices)[: choices.max_regions_shown]
        # Images with the first measure of a task suffice: the order is the same in all.
        repeated = any(other == task for other, _ in list(groups)[:position])
        thumbnails = {}
        if choices.thumbnails and not repeated and len(order.names) <= choices.max_thumbnails:
            thumbnails = read_thumbnails(stimuli, order.names)
        more = (
            f" The first {len(shown)} of {len(matrices)} regions are shown."
            if len(shown) < len(matrices)
            else ""
        )
        counts = sorted({n[region] for region in shown})
        people = (
            count(counts[0], "subject")
            if len(counts) == 1
            else f"{counts[0]} to {counts[-1]} subjects"
        )
        whose = "RDMs of the one subject" if counts == [1] else f"Mean over {people} of RDMs"
        images = f" Images along the axes are the {len(thumbnails)} stimuli." if thumbnails else ""
        blocks.append(
            Picture(
                [
                    rdm_figure(
                        {region: matrices[region] for region in shown}, order, thumbnails=thumbnails
                    )
                ],
                f"Mean dissimilarity matrices of {join(shown)} over {len(order.names)} stimuli.",
                f"Representational dissimilarity by region ({measure})",
                f"{whose} scaled to unit root-mean-square, {len(order.names)} "
                "stimuli"
                + (
                    f" ordered by category ({order.source})"
                    if order.categories
                    else " ordered by name"
                )
                + f", in percentiles within each region.{images}{more}",
            )
        )
        if repeated or len(order.names) < 4:
            continue
        places = {region: classical_mds(matrices[region]) for region in shown}
        aligned = align([points for points, _ in places.values()])
        blocks.append(
            Picture(
                [
                    mds_figure(
                        dict(zip(places, aligned)),
                        {region: share for region, (_, share) in places.items()},
                        order,
                        thumbnails=thumbnails,
                    )
                ],
                f"Plane of {len(order.names)} stimuli for each of {len(shown)} regions; close "
                "stimuli are "
                "represented alike.",
                f"Multidimensional scaling of the regions' RDMs ({measure})",
                "Classical scaling of the mean RDMs, dissimilarities taken as squared distances, "
                "configurations aligned across regions by generalised Procrustes (shift, scale, "
                "rotation, "
                "reflection). In brackets: share of the positive variance that the plane carries"
                + ("; frames: category." if order.categories else "."),
            )
        )
    return blocks


def _models(opened: Sequence[xr.Dataset], choices: ReportOptions, entry: str) -> list[Any]:
    if not opened:
        return [absence("models", entry)]
    blocks: list[Any] = []
    for dataset in opened:
        measure, task = str(dataset.attrs["measure"]), str(dataset.attrs["task"])
        comparisons = [str(name) for name in dataset["comparison"].values]
        if len(opened) > 1:
            blocks.append(Heading(f"{measure}, task {task}"))
        scores = rsa_scores(dataset)
        label = comparison_name(comparisons[0])
        shown = _with_scores(scores)[: choices.max_regions_shown]
        if not shown:
            blocks.append(Note("No region has a score, so there is no figure."))
            continue
        more = (
            f" The first {len(shown)} of {len(scores.regions)} regions are shown."
            if len(shown) < len(scores.regions)
            else ""
        )
        blocks.append(
            Picture(
                [comparison_figure(scores, label=comparisons[0].replace("_", " "), shown=shown)],
                "Scores of each model layer in each region with noise ceilings; the best is "
                + "; ".join(f"{r}: {b}" for r, b in zip(scores.regions, scores.best) if r in shown)
                + ".",
                f"Model comparison ({measure})",
                f"{_capital(label)}, without unit. Points: mean over "
                f"{count(len(scores.subjects), 'subject')}; "
                f"lines: 95% bootstrap interval ({dataset.attrs['bootstrap']}, "
                f"{dataset.attrs['n_bootstrap']} samples); small dots: subjects; grey band: lower "
                "to upper "
                f"noise ceiling.{more}",
            )
        )
        blocks.append(
            Table(
                f"Best model layer by RSA ({measure}, {comparisons[0].replace('_', ' ')})",
                (
                    "Region",
                    "Best layer",
                    "Score [95% interval]",
                    "Noise ceiling",
                    "p, corrected",
                    "Runner-up",
                ),
                scores.best_rows(),
            )
        )
        if len(comparisons) > 1:
            rows = [
                [
                    region,
                    *(
                        str(dataset["best_predictor"].values[c, r]) or "no score"
                        for c in range(len(comparisons))
                    ),
                ]
                for r, region in enumerate(scores.regions)
            ]
            blocks.append(
                Table(
                    f"Best layer by comparison ({measure})",
                    ("Region", *(comparison_name(name) for name in comparisons)),
                    rows,
                    "Whether the answer depends on how RDMs are compared.",
                )
            )
    return blocks


def _with_scores(scores: Scores) -> list[str]:
    return [
        region
        for index, region in enumerate(scores.regions)
        if np.isfinite(scores.mean[:, index]).any()
    ]


def _topology(
    identification: Sequence[xr.Dataset],
    topology: Sequence[xr.Dataset],
    choices: ReportOptions,
    entry: str,
) -> list[Any]:
    if not identification and not topology:
        return [absence("models", entry)]
    blocks: list[Any] = []
    if not identification:
        blocks.append(
            Note("Regions were not identified: this needs at least two subjects and regions.")
        )
    for dataset in identification:
        if len(identification) > 1:
            blocks.append(
                Heading(f"Identification: {dataset.attrs['measure']}, task {dataset.attrs['task']}")
            )
        blocks += _identification(dataset)
    for dataset in topology:
        blocks += _topology_models(dataset, several=len(topology) > 1)
    return blocks


def split_statistics(dataset: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Tell the cells of the threshold grid from the statistics that are compared by name.

    Returns
    -------
    grid, named
        Indices. The grid is every RGTM with finite thresholds; it is drawn as a grid where there
        are at least 6 cells, else its members are listed by name.
    """
    names = [str(name) for name in dataset["statistic"].values]
    lower, upper = (np.asarray(dataset[key].values, dtype=float) for key in ("lower", "upper"))
    grid = np.array(
        [
            name.startswith("rgtm(") and np.isfinite(lower[i]) and np.isfinite(upper[i])
            for i, name in enumerate(names)
        ],
        dtype=bool,
    )
    if grid.sum() < 6:
        grid[:] = False
    return np.flatnonzero(grid), np.flatnonzero(~grid)


def _identification(dataset: xr.Dataset) -> list[Any]:
    if not np.isfinite(dataset["accuracy"].values).any():
        return [Note(f"{_capital(_no_identification(dataset))}.")]
    names = [str(name) for name in dataset["statistic"].values]
    accuracy, low, high, p, ratio = (
        np.asarray(dataset[key].values, dtype=float)
        for key in ("accuracy", "accuracy_low", "accuracy_high", "p", "ratio")
    )
    by_subject = np.asarray(dataset["accuracy_subject"].values, dtype=float)
    chance = float(dataset.attrs["chance"])
    n_subjects, n_regions = dataset.sizes["subject"], dataset.sizes["region"]
    grid, named = split_statistics(dataset)
    # Statistics without a value, such as a nested choice among two subjects, are no figure.
    grid, named = (rows[np.isfinite(accuracy[rows])] for rows in (grid, named))
    corrected = np.asarray(dataset["p_corrected"].values, dtype=float)
    setting = (
        f"scale {dataset.attrs['scale']}, thresholds by {dataset.attrs['threshold']}, pool "
        f"{dataset.attrs['pool']}"
    )
    blocks: list[Any] = []
    if named.size:
        chosen = named[:24]
        blocks.append(
            Picture(
                [
                    identification_figure(
                        [names[i] for i in chosen],
                        accuracy[chosen],
                        low[chosen],
                        high[chosen],
                        by_subject[chosen],
                        chance=chance,
                    )
                ],
                "Share of regions identified by each summary statistic: "
                + "; ".join(f"{names[i]} {percent(accuracy[i])}" for i in chosen)
                + f"; chance {percent(chance)}.",
                "Region identification by summary statistic",
                f"Share of the {n_regions} regions of a left-out subject whose nearest centroid "
                "over the other "
                f"subjects is the right one. Points: mean over {count(n_subjects, 'subject')}; "
                "lines: 95% interval "
                f"({_resampled(dataset)}); small dots: subjects; dashed: chance "
                f"({percent(chance)}).",
                narrow=True,
            )
        )
        blocks.append(
            Table(
                "Region identification",
                (
                    "Statistic",
                    "Accuracy, %",
                    "95% interval, %",
                    "p against chance",
                    "p, corrected",
                    "Within / across distance",
                ),
                [
                    [
                        names[i],
                        number(100 * accuracy[i], 1),
                        interval(100 * low[i], 100 * high[i], 1),
                        p_value(p[i]),
                        p_value(corrected[i]),
                        number(ratio[i], 2),
                    ]
                    for i in named
                ],
                f"{setting}; geodesics: {dataset.attrs['geodesic']}.",
            )
        )
    if grid.size:
        top = grid[int(np.nanargmax(accuracy[grid]))]
        lower, upper = (np.asarray(dataset[key].values, dtype=float) for key in ("lower", "upper"))
        blocks.append(
            Picture(
                [threshold_grid_figure(lower[grid], upper[grid], accuracy[grid], chance=chance)],
                f"Heat map of identification accuracy over {grid.size} threshold pairs; from "
                f"{percent(float(np.nanmin(accuracy[grid])))} to "
                f"{percent(float(np.nanmax(accuracy[grid])))}.",
                "Identification accuracy over the geo-topological thresholds",
                f"RGTM(l, u) on {grid.size} threshold pairs ({setting}); colours start at chance "
                f"({percent(chance)}). n = {n_subjects} subjects × {n_regions} regions. The "
                "highest cell, "
                f"{names[top]} with {percent(accuracy[top])}, is chosen on these data and so "
                "biased upwards: "
                "the statistic marked nested is the unbiased figure.",
                narrow=True,
            )
        )
    else:
        blocks.append(Note("No grid of thresholds (l, u) was asked for, so there is no heat map."))
    confusion = np.asarray(dataset["confusion"].values)
    wanted = [headline_statistic(dataset)]
    if "rdm" in names and names.index("rdm") not in wanted:
        wanted.insert(0, names.index("rdm"))
    blocks.append(
        Picture(
            [
                confusion_figure(
                    {names[i]: confusion[i] for i in wanted},
                    [str(name) for name in dataset["region"].values],
                    [str(name) for name in dataset["predicted"].values],
                )
            ],
            "Matrices of true against predicted region; "
            + "; ".join(
                f"{names[i]}: {int(np.trace(confusion[i]))} of {int(confusion[i].sum())} on the "
                "diagonal"
                for i in wanted
            )
            + ".",
            "Which regions are taken for which",
            f"Number of left-out subjects (of {n_subjects}) by true and predicted region; colour: "
            "percent of the "
            "true region's cases.",
        )
    )
    return blocks


def _topology_models(dataset: xr.Dataset, *, several: bool) -> list[Any]:
    names = [str(name) for name in dataset["statistic"].values]
    regions = [str(name) for name in dataset["region"].values]
    predictors = [str(name) for name in dataset["predictor"].values]
    best = np.asarray(dataset["best_predictor"].values)
    mean, low, high = (
        np.asarray(dataset[key].values) for key in ("score", "interval_low", "interval_high")
    )
    rows = []
    for index, name in enumerate(names):
        cells: list[str] = [name]
        for column in range(len(regions)):
            predictor = str(best[index, column])
            if predictor not in predictors:
                cells.append("no score")
                continue
            row = predictors.index(predictor)
            cells.append(
                f"{predictor}, {number(mean[index, row, column])} "
                + interval(low[index, row, column], high[index, row, column]).replace(" ", "\u00a0")
            )
        rows.append(cells)
    where = f" ({dataset.attrs['measure']}, task {dataset.attrs['task']})" if several else ""
    # Regions in rows where they are many: a table must not run off the page.
    header: list[str] = ["Statistic", *regions]
    if len(rows) <= 8 or len(regions) > len(rows):
        header, *rows = [list(cells) for cells in zip(*([header, *rows]))]
        header[0] = "Region"
    shown = 7
    more = (
        f" The first {shown - 1} of {len(header) - 1} columns are shown."
        if len(header) > shown
        else ""
    )
    return [
        Table(
            f"Best model layer by geo-topological statistic{where}",
            header[:shown],
            [row[:shown] for row in rows],
            f"Score of the best layer, mean over {count(dataset.sizes['subject'], 'subject')} [95% "
            f"interval].{more}",
            collapsed=len(rows) > 24,
        )
    ]


def _encoding(
    opened: Sequence[xr.Dataset], encoding: Sequence[Path | str], choices: ReportOptions, entry: str
) -> list[Any]:
    if not opened and not encoding:
        return [absence("encoding", entry)]
    blocks: list[Any] = []
    for dataset in opened:
        task = str(dataset.attrs["task"])
        if len(opened) > 1:
            blocks.append(Heading(f"Task {task}"))
        scores = encoding_scores(dataset)
        shown = _with_scores(scores)[: choices.max_regions_shown]
        if not shown:
            blocks.append(Note("No region has an encoding score, so there is no figure."))
            continue
        blocks.append(
            Picture(
                [comparison_figure(scores, label="held-out r", shown=shown)],
                "Encoding scores of each model layer in each region; the best is "
                + "; ".join(f"{r}: {b}" for r, b in zip(scores.regions, scores.best) if r in shown)
                + ".",
                "Encoding by region",
                "Pearson correlation r of predicted and measured responses on held-out runs, mean "
                "over the region's "
                f"responsive voxels. Points: mean over {count(len(scores.subjects), 'subject')}; "
                "lines: 95% interval; "
                "small dots: subjects.",
            )
        )
        normalised = np.asarray(dataset["score_normalised"].values)
        voxels = np.asarray(dataset["n_voxels"].values)
        rows = []
        for column, cells in enumerate(scores.best_rows()):
            row = scores.predictors.index(cells[1]) if cells[1] in scores.predictors else None
            value = normalised[row, column] if row is not None else np.array([np.nan])
            value = value[np.isfinite(value)]
            rows.append(
                [
                    *cells[:3],
                    number(float(value.mean())) if value.size else "n/a",
                    *cells[3:],
                    f"{voxels[column].min():,}"
                    if voxels[column].min() == voxels[column].max()
                    else f"{voxels[column].min():,} – {voxels[column].max():,}",
                ]
            )
        blocks.append(
            Table(
                "Best model layer by encoding",
                (
                    "Region",
                    "Best layer",
                    "r [95% interval]",
                    "r / ceiling",
                    "p, corrected",
                    "Runner-up",
                    "Voxels a subject",
                ),
                rows,
                "r / ceiling: divided by the highest correlation that the noise allows, where that "
                "is known.",
            )
        )
    if not opened:
        blocks.append(Note("There is no summary by region, because the study has no regions."))
    blocks += _encoding_maps(encoding, opened, choices)
    return blocks


def _encoding_maps(
    encoding: Sequence[Path | str], opened: Sequence[xr.Dataset], choices: ReportOptions
) -> list[Any]:
    """Draw the maps of the model that is best in most regions; name the others."""
    groups: dict[tuple[str, str], list[Path | str]] = {}
    for path in encoding:
        attrs = store.open(path, "encoding").attrs
        groups.setdefault((str(attrs["task"]), str(attrs["model"])), []).append(path)
    if not groups:
        return [Note("No encoding stores of the subjects were given, so there are no maps.")]
    blocks: list[Any] = []
    for task in dict.fromkeys(task for task, _ in groups):
        models = [model for other, model in groups if other == task]
        wins = dict.fromkeys(models, 0)
        for dataset in opened:
            if str(dataset.attrs["task"]) == task:
                for name in dataset["best_predictor"].values:
                    model = str(name).split("/", 1)[0]
                    wins[model] = wins.get(model, 0) + 1
        chosen = max(models, key=lambda model: wins[model])
        blocks.append(Heading(f"Maps, task {task}"))
        if len(models) > 1:
            blocks.append(
                Paragraph(
                    f"Maps are drawn for {chosen}, the best model in {wins[chosen]} of "
                    f"{sum(wins.values())} "
                    f"regions; the subject reports have those of "
                    f"{join([model for model in models if model != chosen])} too."
                )
            )
        paths = groups[task, chosen]
        maps = average_encoding(paths)
        if isinstance(maps, str):
            blocks.append(Note(maps))
            continue
        who = f"mean over {count(maps.n, 'subject')} at voxels that all have"
        blocks += layer_pictures(
            maps,
            what=f"Encoding by {chosen}",
            score="held-out correlation r",
            threshold=choices.encoding_threshold,
            slices=choices.slices,
            surface=choices.surface,
            who=who,
        )
    return blocks


def _searchlight(opened: Sequence[xr.Dataset], choices: ReportOptions, entry: str) -> list[Any]:
    if not opened:
        return [absence("searchlight", entry)]
    blocks: list[Any] = []
    for dataset in opened:
        n = np.asarray(dataset["n_subjects"].values)
        if not n.size or n.max() < 1:
            blocks.append(Note(f"Task {dataset.attrs['task']}: no centre has a score."))
            continue
        people = (
            count(int(n.max()), "subject")
            if n.min() == n.max()
            else f"{n.min()} to {n.max()} subjects"
        )
        p = np.asarray(dataset["p_corrected"].values)
        if np.isfinite(p).any():
            below = int((np.nanmin(np.where(np.isfinite(p), p, 1), axis=0) < 0.05).sum())
            blocks.append(
                Paragraph(
                    f"{below:,} of {p.shape[1]:,} centres are above 0 for at least one predictor "
                    "at "
                    "p < 0.05, corrected over centres; the maps show every centre over the display "
                    "threshold."
                )
            )
        else:
            blocks.append(Note(f"No p-values with {people}: the maps describe and do not test."))
        maps = LayerMaps(
            Grid.of(dataset),
            [str(name) for name in dataset["predictor"].values],
            np.asarray(dataset["mean"].values),
            int(n.max()),
        )
        blocks += layer_pictures(
            maps,
            what="Searchlight RSA",
            score=comparison_name(str(dataset.attrs["comparison"])),
            threshold=choices.searchlight_threshold,
            slices=choices.slices,
            who=f"mean over {people}, task {dataset.attrs['task']}, radius "
            f"{radius_text(dataset.attrs['radius'])}",
        )
    return blocks


def _flags(
    opened: Mapping[str, Sequence[xr.Dataset]],
    excluded: Mapping[str, str],
    stimuli: Mapping[str, Path | str],
    choices: ReportOptions,
) -> list[Any]:
    """Collect what is absent or needs care, out of the stores themselves."""
    rows: list[list[str]] = [
        ["Excluded subject", f"sub-{key}", why] for key, why in sorted(excluded.items())
    ]
    for kind, key in (
        ("scores", "p"),
        ("identification", "p"),
        ("topology", "p"),
        ("encoding_summary", "p"),
    ):
        for dataset in opened[kind]:
            values = np.asarray(dataset[key].values)
            absent = int((~np.isfinite(values)).sum())
            if absent:
                n = dataset.sizes["subject"]
                rows.append(
                    [
                        "No p-value",
                        _name(kind, dataset),
                        f"{absent} of {values.size} tests; n = {count(n, 'subject')}"
                        + (", too few for this test" if absent == values.size else ""),
                    ]
                )
    for kind in ("scores", "identification", "topology", "searchlight", "encoding"):
        for dataset in opened[kind]:
            rows += [
                ["Said by the analysis", _name(kind, dataset), text] for text in _said(dataset)
            ]
    for dataset in opened["scores"]:
        for region in [str(r) for r in dataset["region"].values]:
            scores = np.asarray(dataset["score"].sel(region=region).values)
            without = [
                str(subject)
                for index, subject in enumerate(dataset["subject"].values)
                if not np.isfinite(scores[..., index]).any()
            ]
            if without:
                rows.append(["Region without a score", region, f"subject {join(without)}"])
    for dataset in opened["rdms"]:
        values = np.asarray(dataset["dissimilarity"].values)
        for index, region in enumerate(dataset["region"].values):
            absent = int((~np.isfinite(values[index])).sum())
            if absent:
                rows.append(
                    [
                        "Dissimilarities without a value",
                        f"subject {dataset.attrs['subject']}, {region}, {dataset.attrs['measure']}",
                        f"{absent} of {values.shape[1]} pairs",
                    ]
                )
        dropped = dataset.attrs.get("n_voxels_dropped") or {}
        if not isinstance(dropped, Mapping):
            dropped = {"all regions": int(dropped)}
        lost = [f"{name}: {int(n):,}" for name, n in dropped.items() if n]
        if lost:
            rows.append(
                [
                    "Voxels left out of the RDMs",
                    f"subject {dataset.attrs['subject']}, {dataset.attrs['measure']}",
                    ", ".join(lost),
                ]
            )
    for dataset in opened["betas"]:
        for key in sorted(dataset.attrs):
            if key.startswith("n_voxels_") and key != "n_voxels_mask" and dataset.attrs[key]:
                rows.append(
                    [
                        "Voxels left out of the GLM",
                        f"subject {dataset.attrs['subject']}, task {dataset.attrs['task']}",
                        f"{int(dataset.attrs[key]):,} {voxel_reason(key)}",
                    ]
                )
        for run in dataset.attrs.get("design") or []:
            if isinstance(run, Mapping) and run.get("weak_trials"):
                rows.append(
                    [
                        "Trials that are hardly measured",
                        f"subject {dataset.attrs['subject']}, run {run['run']}",
                        f"onsets {', '.join(f'{onset:g}' for onset in run['weak_trials'])} s",
                    ]
                )
    if opened["rdms"] and choices.thumbnails:
        names = sorted({str(name) for ds in opened["rdms"] for name in ds["stimulus_i"].values})
        if len(names) + 1 > choices.max_thumbnails:
            rows.append(
                [
                    "Stimulus images",
                    "not drawn",
                    f"more than report.max_thumbnails = {choices.max_thumbnails} stimuli",
                ]
            )
        elif not any(name in stimuli for name in names):
            rows.append(["Stimulus images", "not drawn", "the study names no image files"])
    if not rows:
        return [
            Paragraph(
                "Nothing: every test has a p-value, every region a score, no voxel was left out."
            )
        ]
    return [
        Table("Flagged and skipped", ("What", "Where", "Detail"), rows, collapsed=len(rows) > 30)
    ]


def _said(dataset: xr.Dataset) -> list[str]:
    """What a stage itself put down as absent or needing care."""
    attrs = dataset.attrs
    flags = attrs.get("flags") or []
    said = [flags] if isinstance(flags, str) else [str(flag) for flag in flags]
    said += [str(attrs[key]) for key in ("flag", "warning") if attrs.get(key)]
    for key in ("regions_left_out", "left_out"):
        if isinstance(attrs.get(key), Mapping):
            said += [f"{name} left out: {why}" for name, why in attrs[key].items()]
    return said


def _name(kind: str, dataset: xr.Dataset) -> str:
    name = {
        "scores": "RSA",
        "identification": "region identification",
        "topology": "topological RSA",
        "searchlight": "searchlight",
        "encoding": "encoding",
        "encoding_summary": "encoding",
    }[kind]
    where = [str(dataset.attrs[key]) for key in ("model", "measure") if key in dataset.attrs]
    if "subject" in dataset.attrs:
        where.append(f"subject {dataset.attrs['subject']}")
    return ", ".join([name, *where])
