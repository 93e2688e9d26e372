"""Preprocess one BOLD run: the function behind the rule preprocess_bold."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from isocortex import bids, provenance
from isocortex.errors import InputError
from isocortex.fieldmaps_metadata import phase_encoding
from isocortex.jobs import working_folder
from isocortex.preprocess.distortion_workflow import FieldOfRun
from isocortex.preprocess.engine import run_workflow
from isocortex.preprocess.images import open_image, read_timing
from isocortex.preprocess.noise_components import HALF
from isocortex.preprocess.outputs import put_all, sources_of, spatial_reference
from isocortex.preprocess.registration import make_deterministic
from isocortex.preprocess.surfaces import SIDECAR
from isocortex.preprocess.workflows import init_bold_wf

logger = logging.getLogger(__name__)

NO_FIELD = {"kind": "none", "note": ""}


def preprocess_bold(
    bold: str | Path,
    *,
    sidecars: Sequence[str | Path],
    anatomy: Mapping[str, str | Path],
    subject: str,
    run: str,
    outputs: Mapping[str, str | Path | Sequence[str | Path]],
    options: Mapping[str, object],
    seed: int,
    log: str | Path,
    fieldmap: Sequence[str | Path] = (),
    distortion: Mapping[str, str] = NO_FIELD,
    temporary: str | Path | None = None,
    threads: int = 1,
    mem_mb: int = 4000,
    code: str = "",
) -> None:
    """Motion, slice timing, coregistration, one resampling a space, mask and confounds.

    Parameters
    ----------
    bold
        Raw run, 4D NIfTI.
    sidecars
        Its JSON files, the dataset's root first.
    anatomy
        Outputs of `preprocess_anat`: t1w, mask, dseg, gm, wm, csf, to_template. Empty for a
        subject without a T1w, whose run goes straight to the template.
    subject, run
        Labels, for messages and the manifest.
    outputs
        Name to file: bold, mask, boldref, sidecar, mask_sidecar (a list each, in the order of
        volumes of ``options["spaces"]``), surface, surface_sidecar (left and right hemisphere of
        each surface there), confounds, confounds_json, motion, to_t1w (without a T1w:
        to_template and from_template), figures (a folder),
        manifest.
    options
        The config's ``preprocess`` section: spaces, resolution, motion, slice_timing,
        slice_timing_order, interpolation, distortion, dummy_scans, fd_threshold,
        dvars_threshold, high_pass, compcor_components.
    seed
        Of ANTs' sampling.
    log
        The rule's log; the seconds of each step go beside it as ``<log stem>.seconds.json``,
        and a crash report as ``<log stem>.crash.txt``.
    fieldmap
        Field in Hz and its reference, of `estimate_fieldmap`; empty where the run has none.
    distortion
        ``kind`` of the fieldmap, or ``note``, why there is none.
    temporary
        Folder for the working folder; the system's by default.
    threads, mem_mb
        What the job may use.
    code
        Digest of the code, for the manifest.

    Raises
    ------
    InputError
        The run or its sidecar cannot be used as they are.
    RuntimeError
        A step failed; the message names it and the crash report.

    Notes
    -----
    Slices are brought to the middle of the volume's acquisition, and StartTime in the sidecar
    says so; without SliceTiming nothing is corrected and StartTime is 0. The outputs appear
    together, the manifest last.
    """
    bold = Path(bold)
    unknown = set(options) - {
        "spaces",
        "resolution",
        "motion",
        "slice_timing",
        "slice_timing_order",
        "interpolation",
        "distortion",
        "dummy_scans",
        "fd_threshold",
        "dvars_threshold",
        "high_pass",
        "compcor_components",
    }
    if unknown:
        raise TypeError(f"unknown options: {', '.join(sorted(unknown))}")
    image = open_image(bold)
    if len(image.shape) != 4 or image.shape[3] == 1:
        shape = "x".join(map(str, image.shape))
        raise InputError(f"BOLD {bold} is one volume ({shape}): give a 4D run")
    timing = read_timing(image, bids.metadata(sidecars), bold)
    spaces = [str(space) for space in options["spaces"]]
    n_dummy = None if options["dummy_scans"] == "auto" else int(options["dummy_scans"])
    if n_dummy is not None and n_dummy > image.shape[3] - 5:
        raise InputError(
            f"preprocess.dummy_scans is {n_dummy} but {bold} has {image.shape[3]} volumes: "
            "set it lower"
        )
    corrected = bool(options["slice_timing"]) and timing.slice_times is not None
    if timing.slice_times is None:
        logger.info("no SliceTiming in the sidecar: slices are not corrected")
    elif not corrected:
        logger.info("preprocess.slice_timing is off: slices are not corrected")
    field = None
    if fieldmap:
        field = FieldOfRun(
            *map(Path, fieldmap),
            kind=distortion["kind"],
            encoding=phase_encoding(bold, bids.metadata(sidecars), image.shape),
            jacobian=bool(options["distortion"]["jacobian"]),
        )
    else:
        logger.info("distortion is not corrected: %s", distortion["note"])
    if not anatomy:
        if "T1w" in spaces:
            raise InputError(
                f"sub-{subject} has no T1w: add it, or take T1w out of preprocess.spaces"
            )
        logger.info("no T1w: the run goes straight to the template")
    choice = options["compcor_components"]
    make_deterministic(seed)
    log = Path(log)
    where = f"sub-{subject} {run}"
    with working_folder("bold", log, within=temporary) as folder:
        workflow = init_bold_wf(
            timing=timing,
            spaces=spaces,
            resolution=float(options["resolution"]),
            slice_timing=str(options["slice_timing_order"]) if corrected else None,
            interpolation=str(options["interpolation"]),
            dummy_scans=n_dummy,
            fd_threshold=float(options["fd_threshold"]),
            dvars_threshold=float(options["dvars_threshold"]),
            high_pass=float(options["high_pass"]),
            compcor=HALF if choice == "50%" else int(choice),
            series_gb=float(np.prod(image.shape)) * 4e-9,
            seed=seed,
            has_t1w=bool(anatomy),
            motion_method=str(options["motion"]),
            threads=threads,
            distortion=field,
            distortion_note=distortion["note"],
        )
        start = workflow.get_node("inputnode").inputs
        start.bold = str(bold.resolve())
        for name, path in anatomy.items():
            setattr(start, name, str(Path(path).resolve()))
        made = dict(
            run_workflow(
                workflow,
                folder=folder,
                crash_file=log.with_name(f"{log.stem}.crash.txt"),
                where=where,
                threads=threads,
                mem_mb=mem_mb,
                seconds_file=log.with_name(f"{log.stem}.seconds.json"),
            )
        )
        qc = made.pop("qc")
        volumes = [space for space in spaces if space not in bids.SURFACES]
        content = {
            "RepetitionTime": timing.repetition_time,
            "StartTime": round(timing.reference_time if corrected else 0.0, 6),
            "SliceTimingCorrected": corrected,
            "SkullStripped": False,
            "Sources": sources_of([bold]),
            "NumberOfVolumesNonSteadyState": qc["n_non_steady_state"],
        }
        resolution = {"Resolution": f"{float(options['resolution']):g} mm isotropic"}
        for name in ("sidecar", "mask_sidecar", "surface_sidecar"):
            made[name] = []
        for space in volumes:
            grid = {**resolution, "SpatialReference": spatial_reference(space, subject)}
            made["sidecar"].append(_write(folder, f"{space}.json", {**content, **grid}))
            mask = {"Type": "Brain", "Sources": content["Sources"], **grid}
            made["mask_sidecar"].append(_write(folder, f"{space}_mask.json", mask))
        for surface in made["surface"]:
            name = f"{Path(surface).name}.json"
            made["surface_sidecar"].append(_write(folder, name, {**content, **SIDECAR}))
        wanted: dict[str, Path] = {}
        for name, value in outputs.items():
            if isinstance(made.get(name), list):
                files = [value] if isinstance(value, str | Path) else list(value)
                found = made.pop(name)
                names = [f"{name}_{number}" for number in range(len(files))]
                made |= dict(zip(names, found, strict=True))
                wanted |= dict(zip(names, map(Path, files), strict=True))
            else:
                wanted[name] = Path(value)
        for name in ("surface", "surface_sidecar"):
            if made.get(name) == []:
                del made[name]
        put_all(
            made,
            wanted,
            sources=[bold, *sidecars, *anatomy.values(), *fieldmap],
            code=code,
            subject=subject,
            run=run,
            qc=qc,
        )


def _write(folder: str, name: str, content: Mapping[str, object]) -> Path:
    path = Path(folder) / name
    provenance.write_json(path, content)
    return path
