"""The step of init_bold_wf that undistorts a run, where it has a field."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nipype.pipeline.engine import Node, Workflow

from isocortex.fieldmaps_metadata import PhaseEncoding
from isocortex.preprocess import interfaces as own


@dataclass(frozen=True)
class FieldOfRun:
    """The field that a run is corrected with.

    Attributes
    ----------
    field
        Hz.
    reference
        Undistorted image on the field's grid.
    kind
        ``phasediff``, ``phases``, ``fieldmap`` or ``pepolar``, for the report.
    encoding
        Of the run.
    jacobian
        Whether intensities are corrected, too.
    """

    field: Path
    reference: Path
    kind: str
    encoding: PhaseEncoding
    jacobian: bool = True


def connect_distortion(
    workflow: Workflow,
    given: FieldOfRun | None,
    *,
    note: str,
    motion: Node,
    resample: Node,
    pictures: Node,
    seed: int,
) -> Node:
    """Undistort the reference before the run is brought to the anatomy.

    Parameters
    ----------
    workflow
        Of the run.
    given
        Its field; None: the run stays as it is.
    note
        Why it has none.
    motion, resample, pictures
        Nodes that make the reference, take the distortion, and show it.
    seed
        Of the registration.

    Returns
    -------
    nipype.pipeline.engine.Node
        The node whose ``reference`` goes on: `motion` where nothing is corrected.
    """
    if given is None:
        pictures.inputs.distortion = {"distortion": "none", "distortion_note": note}
        return motion
    undistort = Node(
        own.UndistortReference(
            field=str(Path(given.field).resolve()),
            field_reference=str(Path(given.reference).resolve()),
            kind=given.kind,
            axis=given.encoding.axis,
            sign=given.encoding.sign,
            readout_time=given.encoding.total_readout_time,
            modulate=given.jacobian,
            seed=seed,
        ),
        name="undistort_reference",
        mem_gb=1.0,
    )
    workflow.connect(
        [
            (motion, undistort, [("reference", "reference")]),
            (motion, pictures, [("reference", "recorded")]),
            (undistort, resample, [("distortion", "distortion")]),
            (undistort, pictures, [("qc", "distortion")]),
        ]
    )
    return undistort
