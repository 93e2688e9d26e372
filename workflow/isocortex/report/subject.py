"""The report of one subject."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import isocortex
from isocortex.report.absence import ENTRY_TEXT, absence_table
from isocortex.report.brain import Grounds
from isocortex.report.drawing import (
    report_style,
)
from isocortex.report.encoding_regions import read_regions
from isocortex.report.options import ReportOptions
from isocortex.report.page import (
    Note,
    Section,
    join,
    render,
)
from isocortex.report.processing import processing_blocks
from isocortex.report.quality import (
    confounds_figure,
    confounds_table,
    figure_blocks,
    read_confounds,
)
from isocortex.report.sources import (
    own_store,
    package_versions,
    provenance_table,
    read_manifests,
    versions_table,
)
from isocortex.report.subject_contrasts import contrast_blocks
from isocortex.report.subject_design import design_blocks
from isocortex.report.subject_encoding import encoding_blocks
from isocortex.report.subject_estimator import estimator_blocks
from isocortex.report.subject_geometry import rdm_blocks, region_blocks, searchlight_blocks
from isocortex.report.subject_glm import response_blocks

log = logging.getLogger(__name__)


def report_subject(
    *,
    subject: str,
    study: str,
    out: Path | str,
    options: Mapping[str, Any],
    entry: str = "bids",
    figures: Sequence[Path | str] = (),
    confounds: Sequence[Path | str] = (),
    betas: Sequence[Path | str] = (),
    contrasts: Sequence[Path | str] = (),
    regions: Sequence[Path | str] = (),
    region_labels: Sequence[Path | str] = (),
    rdms: Sequence[Path | str] = (),
    searchlight: Sequence[Path | str] = (),
    searchlight_surface: Sequence[Path | str] = (),
    encoding: Sequence[Path | str] = (),
    joint: Sequence[Path | str] = (),
    readouts: Sequence[Path | str] = (),
    anatomy: Mapping[str, Path | str] | None = None,
    stimuli: Mapping[str, Path | str] | None = None,
    manifests: Sequence[Path | str] = (),
    code: str = "",
) -> Path:
    """Write the report of one subject, one HTML file that is complete in itself.

    Parameters
    ----------
    subject
        Label without ``sub-``.
    study
        Name of the study.
    out
        HTML file to write.
    options
        The ``report`` section of the configuration.
    entry
        Where the study enters the chain: ``bids``, ``derivatives``, ``betas`` or ``rdms``; says
        why a part is absent.
    figures
        Figures directories of preprocessing: the anatomy's, then each run's.
    confounds
        Confounds tables, one a run.
    betas
        Betas stores, one a task.
    contrasts
        Folders of contrast maps, one a task, each with its manifest beside it.
    regions, region_labels
        Label images (NIfTI) on the grid of the betas and their tables (index, name), one a task.
    rdms
        RDM stores, one a task and measure.
    searchlight, searchlight_surface
        Searchlight stores of the volume and of the surface, one a task.
    encoding
        Encoding stores, one a task and model.
    joint, readouts
        Stores of joint encoding models and of readouts, one a task and model or readout.
    anatomy
        NIfTI image to draw maps on by space name; MNI spaces have nilearn's template without.
    stimuli
        Image file by stimulus id.
    manifests
        Further manifests for the provenance table (preprocessing's, regions').
    code
        Digest of the report's code.

    Returns
    -------
    pathlib.Path
        `out`.

    Raises
    ------
    InputError
        If an input cannot be read, or belongs to another subject.
    """
    choices = ReportOptions.from_config(options)
    subject = str(subject)
    with report_style():
        opened = [own_store(path, "betas", subject) for path in betas]
        matrices = [own_store(path, "rdms", subject) for path in rdms]
        tasks = list(dict.fromkeys(str(ds.attrs["task"]) for ds in [*opened, *matrices]))
        grounds = Grounds(anatomy)
        # Parts without a stage are shown where there is something, and not missed elsewhere.
        parts = [
            (
                "preprocess",
                Section("preprocessing", "Preprocessing and registration", _preprocessing(figures)),
            ),
            ("confounds", Section("motion", "Motion and confounds", _confounds(confounds))),
            ("glm", Section("design", "Design", design_blocks(opened))),
            (None, Section("estimator", "Estimator", estimator_blocks(opened, grounds, choices))),
            ("glm", Section("responses", "Responses", response_blocks(opened, grounds, choices))),
            (None, Section("contrasts", "Contrasts", contrast_blocks(contrasts, grounds, choices))),
            (
                "regions",
                Section(
                    "regions",
                    "Regions",
                    region_blocks(opened, regions, region_labels, rdms, subject, grounds, choices),
                ),
            ),
            (
                "rdms",
                Section(
                    "rdms",
                    "Dissimilarity matrices",
                    rdm_blocks(rdms, opened, subject, stimuli or {}, choices),
                ),
            ),
            (
                "searchlight",
                Section(
                    "searchlight",
                    "Searchlight",
                    searchlight_blocks(searchlight, searchlight_surface, subject, anatomy, choices),
                ),
            ),
            (
                "encoding",
                Section(
                    "encoding",
                    "Encoding models",
                    encoding_blocks(
                        [own_store(path, "encoding", subject) for path in encoding],
                        [own_store(path, "encoding_joint", subject) for path in joint],
                        [own_store(path, "readout", subject) for path in readouts],
                        read_regions(regions, region_labels) if joint or readouts else {},
                        anatomy=anatomy,
                        choices=choices,
                    ),
                ),
            ),
        ]
        sections = [section for _, section in parts if section.blocks]
        if left_out := [(part.title, stage) for stage, part in parts if stage and not part.blocks]:
            sections.append(Section("notes", "Left out", [absence_table(left_out, entry)]))
        found = read_manifests(
            [
                *(*manifests, *betas, *contrasts, *rdms, *searchlight, *searchlight_surface),
                *(*encoding, *joint, *readouts),
            ]
        )
        versions = package_versions(found)
        last: list[Any] = [provenance_table(found)] if found else [Note("No manifest was given.")]
        sections.append(Section("provenance", "Provenance", [*last, versions_table(versions)]))
    facts = {
        "Study": study,
        "Subject": subject,
        "Tasks": join(tasks) if tasks else "–",
        "Started from": ENTRY_TEXT.get(entry, entry),
        "isocortex": isocortex.__version__,
        "Report code": code[:16] or "not recorded",
    }
    path = render(
        out,
        title=f"Subject {subject}",
        subtitle=f"{study} · subject report",
        facts=facts,
        sections=sections,
    )
    log.info("wrote %s (%.1f MB)", path, path.stat().st_size / 1e6)
    return path


def _preprocessing(figures: Sequence[Path | str]) -> list[Any]:
    shown = [block for directory in figures for block in figure_blocks(directory)]
    return processing_blocks(figures) + shown


def _confounds(confounds: Sequence[Path | str]) -> list[Any]:
    if not confounds:
        return []
    runs = [read_confounds(path) for path in confounds]
    return [confounds_table(runs), confounds_figure(runs)]
