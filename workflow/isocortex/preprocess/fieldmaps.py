"""Estimate one field of a subject: the function behind the rule estimate_fieldmap."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nipype.interfaces.utility import IdentityInterface
from nipype.pipeline.engine import Node, Workflow

from isocortex import provenance
from isocortex.bids import Fieldmap
from isocortex.fieldmaps_metadata import echo_times, opposite_groups, units_of
from isocortex.jobs import working_folder
from isocortex.preprocess.engine import run_workflow
from isocortex.preprocess.interfaces import distortion as own
from isocortex.preprocess.outputs import put_all, sources_of
from isocortex.preprocess.registration import make_deterministic

logger = logging.getLogger(__name__)

_METHODS = {
    "phasediff": "phase difference of two gradient echoes, unwrapped",
    "phases": "phases of two gradient echoes, unwrapped",
    "fieldmap": "measured map, smoothed",
    "pepolar": "echo-planar images of opposite phase encoding, least squares on B-splines",
}


def init_fieldmap_wf(fieldmap: Fieldmap, *, name: str = "fieldmap_wf") -> Workflow:
    """One field: measured by gradient echoes, or found between opposite phase encodings.

    Parameters
    ----------
    fieldmap
        Its images and their sidecars.
    name
        Of the workflow.

    Returns
    -------
    nipype.pipeline.engine.Workflow
        Outputs of ``outputnode``: field (Hz), reference (undistorted, on its grid), figures, qc.
    """
    workflow = Workflow(name=name)
    outputs = Node(
        IdentityInterface(fields=["field", "reference", "figures", "qc"]), name="outputnode"
    )
    pictures = Node(own.FieldmapFigures(), name="figures", mem_gb=0.8)
    shown = [(what, what) for what in ("field", "reference", "qc")]
    if fieldmap.kind == "pepolar":
        (first, first_files), (second, second_files) = opposite_groups(fieldmap)
        estimate = Node(
            own.OppositeField(
                first=_full(first_files),
                second=_full(second_files),
                axis=first.axis,
                signs=(first.sign, second.sign),
                readout_times=(first.total_readout_time, second.total_readout_time),
            ),
            name="opposite_field",
            mem_gb=1.5,
        )
        workflow.connect(estimate, "before", pictures, "before")
        workflow.connect(estimate, "after", pictures, "after")
    else:
        chosen: dict[str, Any] = (
            {"units": units_of(fieldmap)}
            if fieldmap.kind == "fieldmap"
            else {"echo_times": echo_times(fieldmap)}
        )
        estimate = Node(
            own.MeasureField(
                in_files=_full(fieldmap.files),
                magnitude=str(fieldmap.magnitudes[0].resolve()),
                **chosen,
            ),
            name="measure_field",
            mem_gb=1.5,
        )
    workflow.connect(
        [
            (estimate, pictures, shown),
            (estimate, outputs, shown),
            (pictures, outputs, [("figures", "figures")]),
        ]
    )
    return workflow


def _full(files: Sequence[Path]) -> list[str]:
    return [str(Path(path).resolve()) for path in files]


def estimate_fieldmap(
    fieldmap: Fieldmap,
    *,
    subject: str,
    outputs: Mapping[str, str | Path],
    seed: int,
    log: str | Path,
    temporary: str | Path | None = None,
    threads: int = 1,
    mem_mb: int = 3000,
    code: str = "",
) -> None:
    """Estimate one field of a subject.

    Parameters
    ----------
    fieldmap
        Its images and their sidecars.
    subject
        Label, without ``sub-``.
    outputs
        Name to file: field (Hz), reference, sidecar, reference_sidecar, figures (a folder),
        manifest.
    seed
        Of ANTs' sampling.
    log
        The rule's log; a crash report goes beside it as ``<log stem>.crash.txt``.
    temporary
        Folder for the working folder; the system's by default.
    threads, mem_mb
        What the job may use.
    code
        Digest of the code, for the manifest.

    Raises
    ------
    InputError
        The images or their sidecars cannot be used as they are.
    RuntimeError
        A step failed; the message names it and the crash report.

    Notes
    -----
    The outputs appear together, the manifest last.
    """
    make_deterministic(seed)
    log = Path(log)
    with working_folder("fieldmap", log, within=temporary) as folder:
        made = dict(
            run_workflow(
                init_fieldmap_wf(fieldmap),
                folder=folder,
                crash_file=log.with_name(f"{log.stem}.crash.txt"),
                where=f"sub-{subject} fieldmap {fieldmap.id}",
                threads=threads,
                mem_mb=mem_mb,
            )
        )
        qc = {"fieldmap": fieldmap.kind, **made.pop("qc")}
        shared = {"Sources": sources_of([*fieldmap.files, *fieldmap.magnitudes])}
        described = {
            "sidecar": {
                "Description": f"Off-resonance field: {_METHODS[fieldmap.kind]}",
                "Units": "Hz",
                "B0FieldIdentifier": fieldmap.id,
                **shared,
            },
            "reference_sidecar": {
                "Description": "Undistorted reference of the field, without its bias field",
                **shared,
            },
        }
        for name, content in described.items():
            made[name] = folder / f"{name}.json"
            provenance.write_json(made[name], content)
        sidecars = [path for files in fieldmap.sidecars for path in files]
        put_all(
            made,
            outputs,
            sources=[*fieldmap.files, *fieldmap.magnitudes, *dict.fromkeys(sidecars)],
            code=code,
            subject=subject,
            fieldmap=fieldmap.id,
            qc=qc,
        )
