"""The report of the study."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import isocortex
from isocortex import provenance, store
from isocortex.report.absence import ENTRY_TEXT, absence_rows
from isocortex.report.brain import Grid
from isocortex.report.drawing import report_style
from isocortex.report.encoding_regions import read_regions
from isocortex.report.methods import methods_blocks
from isocortex.report.options import ReportOptions
from isocortex.report.page import (
    Note,
    Section,
    join,
    render,
)
from isocortex.report.sources import (
    configuration_table,
    package_versions,
    provenance_table,
    read_manifests,
    versions_table,
)
from isocortex.report.study_dependence import dependence_section
from isocortex.report.study_encoding import encoding_section
from isocortex.report.study_findings import (
    Finding,
    Findings,
    encoding_finding,
    identification_finding,
    layers_finding,
    rsa_finding,
    views_table,
)
from isocortex.report.study_flags import flags_section
from isocortex.report.study_geometry import geometry_section
from isocortex.report.study_layers import layers_section
from isocortex.report.study_models import models_section
from isocortex.report.study_partition import partition_section
from isocortex.report.study_persistence import persistence_section
from isocortex.report.study_predictors import predictor_findings, scores_by_task
from isocortex.report.study_quality import quality_section
from isocortex.report.study_sample import sample_section
from isocortex.report.study_searchlight import searchlight_section
from isocortex.report.study_topology import topology_section
from isocortex.report.wording import given_models

log = logging.getLogger(__name__)

KINDS = {
    "scores": "scores",
    "partition": "partition",
    "identification": "identification",
    "topology": "topology",
    "layers": "layer_identification",
    "dependence": "dependence",
    "persistence": "persistence",
    "encoding_summary": "encoding_summary",
    "searchlight": "searchlight_group",
    "searchlight_surface": "searchlight_surface_group",
    "rdms": "rdms",
    "model_rdms": "model_rdms",
    "encoding": "encoding",
    "joint": "encoding_joint",
    "readouts": "readout",
    "universal": "universal",
    "betas": "betas",
}
"""Spec of the stores behind each argument of `report_study`."""


def report_study(
    *,
    study: str,
    subjects: Sequence[str],
    out: Path | str,
    summary: Path | str,
    options: Mapping[str, Any],
    config: Mapping[str, Any],
    entry: str = "bids",
    made_by: str = "",
    excluded: Mapping[str, str] | None = None,
    scores: Sequence[Path | str] = (),
    partition: Sequence[Path | str] = (),
    identification: Sequence[Path | str] = (),
    topology: Sequence[Path | str] = (),
    layers: Sequence[Path | str] = (),
    dependence: Sequence[Path | str] = (),
    persistence: Sequence[Path | str] = (),
    encoding_summary: Sequence[Path | str] = (),
    searchlight: Sequence[Path | str] = (),
    searchlight_surface: Sequence[Path | str] = (),
    rdms: Sequence[Path | str] = (),
    model_rdms: Sequence[Path | str] = (),
    encoding: Sequence[Path | str] = (),
    joint: Sequence[Path | str] = (),
    readouts: Sequence[Path | str] = (),
    universal: Sequence[Path | str] = (),
    regions: Sequence[Path | str] = (),
    region_labels: Sequence[Path | str] = (),
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
    made_by
        What made the derivatives that the study starts from, with its version.
    excluded
        Reason by excluded subject.
    scores, partition, identification, topology, dependence, persistence
        Stores, one a task and measure; the first of each carries the finding.
    layers
        Stores of layer identification, one a family of networks.
    encoding_summary, searchlight, searchlight_surface
        Group stores, one a task.
    rdms
        RDM stores of all subjects, tasks and measures.
    model_rdms
        Model RDM stores, one a model.
    encoding
        Encoding stores of all subjects, tasks and models, for the group maps.
    joint, readouts
        Stores of joint encoding models and readouts of all subjects and tasks.
    universal
        Stores of universal encoders, one a task and encoder.
    regions, region_labels
        Label images of all subjects and tasks on the grid of their responses and their tables, for
        the means of joint models, readouts and universal encoders.
    betas, confounds
        Betas stores and confounds tables of all subjects, for the data quality table and, from
        the betas, the category of each stimulus.
    stimuli
        Image file by stimulus id.
    categories
        Category by stimulus id; goes before the conditions in the betas.
    manifests
        Further manifests, for the provenance table; those of preprocessed runs hold their
        quality measures.
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
    stores = {
        "scores": scores,
        "partition": partition,
        "identification": identification,
        "topology": topology,
        "layers": layers,
        "dependence": dependence,
        "persistence": persistence,
        "encoding_summary": encoding_summary,
        "searchlight": searchlight,
        "searchlight_surface": searchlight_surface,
        "rdms": rdms,
        "model_rdms": model_rdms,
        "encoding": encoding,
        "joint": joint,
        "readouts": readouts,
        "universal": universal,
        "betas": betas,
    }
    opened = {
        name: [store.open(path, KINDS[name]) for path in paths] for name, paths in stores.items()
    }
    given = dict(categories or {})
    if not given:
        # Of all subjects: they need not have seen the same stimuli. The first one's word counts.
        for dataset in reversed(opened["betas"]):
            given.update(zip(dataset["stimulus"].values, dataset["condition"].values))

    # Read only where something has means over them.
    further = joint or readouts or universal
    predictors = scores_by_task(opened, read_regions(regions, region_labels) if further else {})
    findings = layers_finding(opened["layers"])
    if subjects:
        findings = [
            rsa_finding(opened["scores"], entry),
            identification_finding(opened["identification"], entry),
            encoding_finding(opened["encoding_summary"], entry),
            *predictor_findings(predictors),
            *findings,
        ]
    with report_style():
        parts = [
            (
                "",
                Section(
                    "sample",
                    "Sample and data quality",
                    sample_section(opened["betas"], confounds, subjects, excluded)
                    + quality_section(manifests),
                ),
            ),
            (
                "rdms",
                Section(
                    "rdms",
                    "Representational geometry of the regions",
                    geometry_section(
                        opened["rdms"],
                        opened["scores"],
                        opened["model_rdms"],
                        given,
                        stimuli or {},
                        choices,
                    ),
                ),
            ),
            (
                "models",
                Section(
                    "models",
                    "Models against regions (RSA)",
                    models_section(
                        opened["scores"], choices, given=given_models(opened["model_rdms"])
                    ),
                ),
            ),
            (
                "",
                Section(
                    "partition",
                    "Variance shared between models",
                    partition_section(opened["partition"], choices),
                ),
            ),
            (
                "identification",
                Section(
                    "topology",
                    "Topological RSA",
                    topology_section(opened["identification"], opened["topology"]),
                ),
            ),
            (
                "",
                Section(
                    "dependence",
                    "Adaptive geo-topological dependence",
                    dependence_section(opened["dependence"], choices),
                ),
            ),
            (
                "",
                Section(
                    "persistence",
                    "Persistent homology",
                    persistence_section(opened["persistence"], choices),
                ),
            ),
            (
                "",
                Section(
                    "layers", "Identification of network layers", layers_section(opened["layers"])
                ),
            ),
            (
                "encoding",
                Section(
                    "encoding",
                    "Encoding models",
                    encoding_section(
                        opened["encoding_summary"], opened["encoding"], predictors, choices
                    ),
                ),
            ),
            (
                "searchlight",
                Section(
                    "searchlight",
                    "Searchlight",
                    searchlight_section(
                        opened["searchlight"], opened["searchlight_surface"], choices
                    ),
                ),
            ),
        ]
        left_out = [(part.title, stage) for stage, part in parts if stage and not part.blocks]
        sections = [
            Section(
                "findings",
                "Findings",
                [*_findings(findings), *views_table(opened)],
            ),
            *(part for _, part in parts if part.blocks),
            Section(
                "notes",
                "Flagged and left out",
                flags_section(
                    opened,
                    excluded,
                    stimuli or {},
                    choices,
                    absence_rows(left_out, entry) if subjects else [],
                    manifests,
                ),
            ),
        ]
        found = read_manifests([*manifests, *(path for group in stores.values() for path in group)])
        versions = package_versions(found)
        text, references = methods_blocks(
            entry=entry,
            made_by=made_by,
            config=config,
            versions=versions,
            surface=choices.surface and any(Grid.of(ds).is_template for ds in opened["encoding"]),
            opened=opened,
            preprocessed=[entry for entry in found.values() if entry.get("spec") == "preprocess"],
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
    tasks = dict.fromkeys(
        str(ds.attrs["task"]) for group in opened.values() for ds in group if "task" in ds.attrs
    )
    facts = {
        **({"Subjects": str(len(subjects)), "Excluded": str(len(excluded))} if subjects else {}),
        **({"Tasks": join(list(tasks))} if tasks else {}),
        **({"Regions": str(opened["rdms"][0].sizes["region"])} if opened["rdms"] else {}),
        **({"Started from": ENTRY_TEXT.get(entry, entry)} if subjects else {}),
        **({"Preprocessed by": made_by} if made_by else {}),
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


def _findings(findings: Sequence[Finding]) -> list[Any]:
    """Show the findings that there are; where there is none, why."""
    there = [finding for finding in findings if finding.available]
    if there:
        return [Findings(there)]
    why = [Note(f"{finding.title}: {finding.text}") for finding in findings]
    return why or [Note("No analysis of this run has a finding yet.")]


def _plain(value: Any) -> Any:
    """Make numbers fit for JSON: what is not finite becomes null."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value
