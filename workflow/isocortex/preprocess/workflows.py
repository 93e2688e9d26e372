"""The nipype workflows of both rules; `isocortex.preprocess.engine` runs them."""

from __future__ import annotations

import logging

from nipype.algorithms.confounds import FramewiseDisplacement, NonSteadyStateDetector
from nipype.interfaces.utility import IdentityInterface
from nipype.pipeline.engine import Node, Workflow

from isocortex.preprocess import interfaces as own
from isocortex.preprocess.distortion_workflow import FieldOfRun, connect_distortion
from isocortex.preprocess.images import Timing

logger = logging.getLogger(__name__)

ANATOMY = ["t1w", "mask", "dseg", "gm", "wm", "csf", "to_template"]


def init_anat_wf(*, seed: int, n_images: int, name: str = "anat_wf") -> Workflow:
    """Anatomy: bias field, brain mask, registration to the template, tissue classes.

    Parameters
    ----------
    seed
        Of ANTs.
    n_images
        Number of T1w volumes, stated in the figures.
    name
        Of the workflow.

    Returns
    -------
    nipype.pipeline.engine.Workflow
        Inputs of ``inputnode``: t1w (list of files). Outputs of ``outputnode``: t1w, mask, dseg,
        gm, wm, csf, to_template, from_template, t1w_template, figures, qc.
    """
    workflow = Workflow(name=name)
    inputs = Node(IdentityInterface(fields=["t1w"]), name="inputnode")
    outputs = Node(
        IdentityInterface(
            fields=[
                "t1w",
                "mask",
                "dseg",
                "gm",
                "wm",
                "csf",
                "to_template",
                "from_template",
                "t1w_template",
                "figures",
                "qc",
            ]
        ),
        name="outputnode",
    )
    average = Node(own.AverageAnatomy(seed=seed), name="average", mem_gb=1.5)
    extract = Node(own.BrainExtraction(seed=seed), name="extract_brain", mem_gb=1.5)
    normalise = Node(own.Normalise(seed=seed), name="normalise", mem_gb=1.5)
    tissue = Node(own.TissueClasses(seed=seed), name="tissue_classes", mem_gb=1.5)
    template = Node(own.TemplateAnatomy(), name="template_anatomy", mem_gb=0.7)
    pictures = Node(own.AnatomyFigures(n_images=n_images), name="figures", mem_gb=0.7)
    workflow.connect(
        [
            (inputs, average, [("t1w", "in_files")]),
            (average, extract, [("out_file", "in_file")]),
            (extract, normalise, [("brain", "brain"), ("affine", "affine")]),
            (average, tissue, [("out_file", "in_file")]),
            (extract, tissue, [("mask", "mask")]),
            (normalise, tissue, [("from_template", "from_template")]),
            (average, template, [("out_file", "in_file")]),
            (extract, template, [("mask", "mask")]),
            (tissue, template, [("gm", "gm")]),
            (normalise, template, [("to_template", "to_template")]),
            (average, pictures, [("out_file", "t1w")]),
            (extract, pictures, [("mask", "mask")]),
            (tissue, pictures, [("dseg", "dseg")]),
            (template, pictures, [("out_file", "t1w_template"), ("correlation", "correlation")]),
            (template, pictures, [("quality", "quality")]),
            (extract, outputs, [("mask", "mask")]),
            (
                normalise,
                outputs,
                [("to_template", "to_template"), ("from_template", "from_template")],
            ),
            (
                tissue,
                outputs,
                [("dseg", "dseg"), ("gm", "gm"), ("wm", "wm"), ("csf", "csf")],
            ),
            (template, outputs, [("compressed", "t1w"), ("out_file", "t1w_template")]),
            (pictures, outputs, [("figures", "figures"), ("qc", "qc")]),
        ]
    )
    return workflow


def init_bold_wf(
    *,
    timing: Timing,
    spaces: list[str],
    resolution: float,
    slice_timing: str | None,
    interpolation: str,
    dummy_scans: int | None,
    fd_threshold: float,
    dvars_threshold: float,
    high_pass: float,
    compcor: float,
    series_gb: float,
    seed: int,
    has_t1w: bool = True,
    motion_method: str = "gauss_newton",
    threads: int = 1,
    distortion: FieldOfRun | None = None,
    distortion_note: str = "",
    name: str = "bold_wf",
) -> Workflow:
    """BOLD: motion, coregistration, one resampling into all spaces, confounds.

    Parameters
    ----------
    timing
        Repetition time and slice times.
    spaces
        Output spaces: "T1w", the template's name, or its surface's.
    resolution
        Voxel size of the outputs, mm.
    slice_timing
        Order of slice timing and motion, ``slices_first`` or ``motion_first``; None: slices are
        not corrected.
    interpolation
        Spline in space: linear, cubic or quintic.
    dummy_scans
        Volumes before the steady state; None: detected.
    fd_threshold, dvars_threshold
        mm and standardised DVARS above which a volume is marked.
    high_pass
        Period in s of the slowest cosine left out of CompCor.
    compcor
        CompCor components: below 1, the share of variance that they explain; else their number.
    series_gb
        Size of the run in float32.
    seed
        Of ANTs.
    has_t1w
        Whether there is an anatomy; without one the reference goes straight to the template,
        whose tissues stand in, and there is a to_template and a from_template, but no to_t1w.
    motion_method
        ``gauss_newton`` or ``ants``.
    threads
        Of motion and of each resampling.
    distortion
        The field that the run is corrected with; None: it is not.
    distortion_note
        Why not.
    name
        Of the workflow.

    Returns
    -------
    nipype.pipeline.engine.Workflow
        Inputs of ``inputnode``: bold, t1w, mask, dseg, gm, wm, csf, to_template. Outputs of
        ``outputnode``: bold, mask, boldref (a list each, of the spaces that are volumes),
        surface (a list: left and right hemisphere of each surface), confounds, confounds_json,
        motion, to_t1w, figures, qc, n_dummy.
    """
    workflow = Workflow(name=name)
    inputs = Node(IdentityInterface(fields=["bold", *ANATOMY]), name="inputnode")
    transforms = ["to_t1w"] if has_t1w else ["to_template", "from_template"]
    per_space = ("bold", "mask", "boldref", "surface")
    outputs = Node(
        IdentityInterface(
            fields=[
                *per_space,
                "confounds",
                "confounds_json",
                "motion",
                *transforms,
                "figures",
                "qc",
            ]
        ),
        name="outputnode",
    )
    base = 0.4
    repetition_time = timing.repetition_time
    read = Node(
        own.ReadSeries(repetition_time=repetition_time), name="read", mem_gb=base + 2 * series_gb
    )
    estimate = (
        own.EstimateMotionAnts(seed=seed) if motion_method == "ants" else own.EstimateMotion()
    )
    estimate.inputs.threads = threads
    motion = Node(estimate, name="estimate_motion", mem_gb=base + 2 * series_gb, n_procs=threads)
    if has_t1w:
        coregister, anatomy = Node(own.Coregister(seed=seed), name="coregister", mem_gb=1.0), inputs
        workflow.connect([(inputs, coregister, [(n, n) for n in ("t1w", "mask", "gm", "wm")])])
    else:
        coregister = Node(own.NormaliseReference(seed=seed), name="normalise_reference", mem_gb=1.5)
        anatomy = Node(IdentityInterface(fields=ANATOMY), name="anatomy")
        stand_in = [("t1w", "t1w"), ("brain", "mask"), *((n, n) for n in ANATOMY[2:])]
        workflow.connect([(coregister, anatomy, stand_in)])
    workflow.connect(
        [
            (inputs, read, [("bold", "in_file")]),
            (read, motion, [("out_file", "in_file")]),
        ]
    )
    needs_dummy: list[Node] = [motion]
    resample = Node(
        own.ResampleSeries(
            spaces=spaces,
            resolution=resolution,
            repetition_time=repetition_time,
            interpolation=interpolation,
            threads=threads,
        ),
        name="resample",
        mem_gb=base + (4 if slice_timing == "motion_first" else 1) * series_gb,
        n_procs=threads,
    )
    if slice_timing is not None and timing.slice_times is not None:
        resample.inputs.trait_set(
            slice_times=list(timing.slice_times),
            slice_axis=timing.slice_axis,
            reference_time=timing.reference_time,
            slice_order=slice_timing,
        )
        needs_dummy.append(resample)
    workflow.connect(
        [
            (read, resample, [("out_file", "in_file")]),
            (motion, resample, [("matrices", "matrices")]),
            (coregister, resample, [(n, n) for n in ("to_t1w", "reference", "signal")]),
            (anatomy, resample, [("mask", "t1w_mask"), ("to_template", "to_template")]),
            (resample, outputs, [(what, what) for what in per_space]),
        ]
    )
    masks = Node(own.NoiseMasks(), name="noise_masks", mem_gb=1.0)
    displacement = Node(FramewiseDisplacement(parameter_source="FSL"), name="framewise")
    dvars = Node(
        own.Dvars(),
        name="dvars",
        mem_gb=base + 3 * series_gb,
    )
    compcor = Node(
        own.NoiseComponents(
            criterion=compcor, high_pass=high_pass, repetition_time=repetition_time
        ),
        name="compcor",
        mem_gb=base + 2 * series_gb,
    )
    tsnr = Node(own.TemporalSnr(), name="tsnr", mem_gb=base + series_gb)
    confounds = Node(
        own.AssembleConfounds(fd_threshold=fd_threshold, dvars_threshold=dvars_threshold),
        name="confounds",
        mem_gb=base,
    )
    quality = Node(
        own.RunQuality(
            repetition_time=repetition_time,
            resolution=resolution,
            slice_axis=timing.slice_axis,
            fd_threshold=fd_threshold,
        ),
        name="quality",
        mem_gb=base + 3 * series_gb,
    )
    pictures = Node(
        own.BoldFigures(
            repetition_time=repetition_time,
            fd_threshold=fd_threshold,
            dvars_threshold=dvars_threshold,
            settings={
                "slice_timing": slice_timing if slice_timing and timing.slice_times else "none",
                "slice_timing_note": "the sidecar has no SliceTiming"
                if timing.slice_times is None
                else ("" if slice_timing else "preprocess.slice_timing is false"),
                "interpolation": interpolation,
                "motion_method": motion_method,
            },
        ),
        name="figures",
        mem_gb=base + series_gb,
    )
    reference = connect_distortion(
        workflow,
        distortion,
        note=distortion_note,
        motion=motion,
        resample=resample,
        pictures=pictures,
        seed=seed,
    )
    workflow.connect(
        [
            (reference, coregister, [("reference", "reference")]),
            (anatomy, masks, [("gm", "gm"), ("wm", "wm"), ("csf", "csf")]),
            (resample, masks, [("native_mask", "mask"), ("native_covered", "covered")]),
            (coregister, masks, [("to_t1w", "to_t1w")]),
            (motion, displacement, [("parameters", "in_file")]),
            (resample, dvars, [("native_bold", "in_file"), ("native_mask", "in_mask")]),
            (resample, compcor, [("native_bold", "bold"), ("native_mask", "mask")]),
            (
                masks,
                compcor,
                [("csf", "csf"), ("wm", "wm"), ("combined", "combined"), ("crown", "crown")],
            ),
            (resample, tsnr, [("native_bold", "in_file")]),
            (motion, confounds, [("parameters", "parameters")]),
            (displacement, confounds, [("out_file", "framewise_displacement")]),
            (dvars, confounds, [("out_nstd", "dvars"), ("out_std", "std_dvars")]),
            (compcor, confounds, [("out_file", "components")]),
            (read, quality, [("out_file", "raw")]),
            (reference, quality, [("reference", "mean")]),
            (resample, quality, [("native_bold", "bold"), ("native_mask", "mask")]),
            (tsnr, quality, [("tsnr_file", "tsnr")]),
            (displacement, quality, [("out_file", "framewise_displacement")]),
            (
                dvars,
                quality,
                [("out_nstd", "dvars"), ("out_std", "std_dvars"), ("out_vxstd", "voxelwise_dvars")],
            ),
            (coregister, quality, [("to_t1w", "to_t1w")]),
            (anatomy, quality, [("mask", "t1w_mask"), ("to_template", "to_template")]),
            (quality, pictures, [("qc", "measures")]),
            (reference, pictures, [("reference", "mean")]),
            (masks, pictures, [("crown", "crown")]),
            (coregister, pictures, [("reference", "reference"), ("mask", "epi_mask")]),
            (coregister, pictures, [("to_t1w", "to_t1w"), ("quality", "registration")]),
            (resample, pictures, [("native_bold", "bold"), ("native_mask", "mask")]),
            (masks, pictures, [("tissues", "tissues")]),
            (tsnr, pictures, [("tsnr_file", "tsnr")]),
            (anatomy, pictures, [("t1w", "t1w"), ("dseg", "dseg")]),
            (confounds, pictures, [("table", "confounds")]),
            (confounds, outputs, [("table", "confounds"), ("sidecar", "confounds_json")]),
            (motion, outputs, [("matrices", "motion")]),
            (coregister, outputs, [(n, n) for n in transforms]),
            (pictures, outputs, [("figures", "figures"), ("qc", "qc")]),
        ]
    )
    needs_dummy += [compcor, tsnr, confounds, quality, pictures]
    if dummy_scans is None:
        steady = Node(NonSteadyStateDetector(), name="non_steady_state", mem_gb=base + series_gb)
        workflow.connect(read, "out_file", steady, "in_file")
        for node in needs_dummy:
            workflow.connect(steady, "n_volumes_to_discard", node, "n_dummy")
    else:
        for node in needs_dummy:
            node.inputs.n_dummy = dummy_scans
    return workflow
