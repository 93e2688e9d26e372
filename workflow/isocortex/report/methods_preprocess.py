"""The methods text of preprocessing, from what each run's measures say was done to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from isocortex.report.page import count, join
from isocortex.surface import MESH, SERIES_DEPTHS

_INTERPOLATION = {"linear": "linear", "cubic": "cubic spline", "quintic": "quintic spline"}
_FIELDS = {
    "phasediff": "a phase-difference map",
    "phases": "two phase maps",
    "fieldmap": "a measured field map",
    "pepolar": "images of opposite phase-encoding directions",
}


def preprocessing_sentences(
    section: Mapping[str, Any],
    manifests: Sequence[Mapping[str, Any]],
    cite: Any,
    version: Any,
) -> list[str]:
    """Say what preprocessing did, and to how many subjects and runs.

    Parameters
    ----------
    section
        The ``preprocess`` section of the configuration.
    manifests
        Those of the anatomies and runs, with their ``qc``; those of runs have ``run``. Without
        any the text says what the configuration asks for.
    cite
        Numbers references.
    version
        A package's name with its version.
    """
    measured = [manifest for manifest in manifests if isinstance(manifest.get("qc"), Mapping)]
    runs = [manifest["qc"] for manifest in measured if manifest.get("run")]
    anatomies = [manifest["qc"] for manifest in measured if not manifest.get("run")]
    return [
        *_anatomy(anatomies, runs, cite, version),
        *_motion(section, runs, cite),
        *_distortion(section, runs, cite),
        *_coregistration(runs, cite),
        *_resampling(section, runs),
        *_confounds(section, cite),
    ]


def _share(n: int, total: int) -> str:
    return f"all {total} runs" if n == total > 1 else f"{n} of {count(total, 'run')}"


def _anatomy(
    anatomies: Sequence[Mapping[str, Any]], runs: Sequence[Mapping[str, Any]], cite: Any, version
) -> list[str]:
    engine = (
        f"Preprocessing ran as nipype workflows ({version('nipype')}) {cite('nipype')} on ANTs "
        f"({version('antspyx')})."
    )
    if runs and not anatomies:
        return [engine]
    several = sum(int(qc.get("n_t1w", 1)) > 1 for qc in anatomies)
    averaged = (
        f"Several T1w images of a subject ({count(several, 'subject')}) were aligned rigidly and "
        "averaged."
        if several
        else ""
    )
    return [
        engine,
        averaged,
        f"The T1w image was corrected for intensity non-uniformity by N4 {cite('n4')}, its brain "
        "extracted by the template's mask fitted to its tissue, its tissues classified by Atropos "
        f"{cite('atropos')}, and it was registered to the MNI152 template of nilearn "
        f"{cite('template', 'nilearn')} by SyN {cite('syn')}.",
    ]


def _motion(section: Mapping[str, Any], runs: Sequence[Mapping[str, Any]], cite: Any) -> list[str]:
    ants = section.get("motion", "gauss_newton") == "ants"
    how = (
        "by ANTs' rigid registration"
        if ants
        else "by Gauss-Newton steps on a masked part of the voxels at two resolutions "
        f"{cite('lucas_kanade')}"
    )
    told = [
        "Of each run a reference image was made as the median of aligned volumes, and head "
        f"motion estimated rigidly against it {how}."
    ]
    if not section.get("slice_timing", True):
        told.append("Slice timing was not corrected.")
        return told
    known = [qc for qc in runs if "slice_timing" in qc]
    timed = sum(qc["slice_timing"] != "none" for qc in known)
    order = (
        "each sample follows the moving head and keeps the time of the slices it was taken from"
        if section.get("slice_timing_order") == "motion_first"
        else "within the voxels of the scanner, before motion is undone"
    )
    where = (
        "where the sidecar gives slice times" if not known else f"in {_share(timed, len(known))}"
    )
    if known and not timed:
        told.append("Slice timing was not corrected, as no sidecar gives slice times.")
    else:
        told.append(
            f"Slice timing was corrected {where} to the middle of the acquisition ({order})."
        )
    return told


def _distortion(
    section: Mapping[str, Any], runs: Sequence[Mapping[str, Any]], cite: Any
) -> list[str]:
    kinds = Counter(str(qc["distortion"]) for qc in runs if "distortion" in qc)
    none = kinds.pop("none", 0)
    if not kinds:
        return ["Susceptibility distortion was not corrected."] if none else []
    by = join([_FIELDS.get(kind, kind) for kind in sorted(kinds)])
    corrected = sum(kinds.values())
    sources = [cite("topup")] if "pepolar" in kinds else []
    if set(kinds) - {"pepolar"}:
        sources.append(cite("fieldmaps"))
    choice = section.get("distortion")
    modulated = isinstance(choice, Mapping) and choice.get("jacobian", True)
    return [
        f"Susceptibility distortion was corrected in {_share(corrected, corrected + none)} from "
        f"{by} {' '.join(sources)}"
        + (", intensities with it." if modulated else ", intensities were left as they are.")
    ]


def _coregistration(runs: Sequence[Mapping[str, Any]], cite: Any) -> list[str]:
    chosen = [qc["coregistration_accepted"] for qc in runs if "coregistration_accepted" in qc]
    straight = len(runs) - len(chosen)
    told = []
    if chosen or not runs:
        refined = sum(choice == "bbr" for choice in chosen)
        told.append(
            "The reference was registered rigidly to the T1w image by mutual information, then by "
            f"the contrast at the white matter's boundary {cite('bbr')}"
            + (
                f"; the second was no worse, and taken, in {_share(refined, len(chosen))}."
                if chosen
                else ", where that improves it."
            )
        )
    if straight and runs:
        told.append(
            f"{count(straight, 'run')} of subjects without a T1w image went straight to the "
            "template by an affine and SyN, with the template's tissues."
        )
    return told


def _resampling(section: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> list[str]:
    resolution = section.get("resolution")
    spaces = section.get("spaces")
    spline = _INTERPOLATION.get(str(section.get("interpolation", "cubic")), "spline")
    text = (
        f"All of these were applied in a single {spline} interpolation of the recorded volumes"
        + (f" into {join([str(space) for space in spaces])}" if spaces else "")
        + (f" at {resolution:g} mm." if isinstance(resolution, int | float) else ".")
    )
    surface = (
        f"A vertex of {MESH} is the mean of {SERIES_DEPTHS} depths between the template's white "
        "and pial surfaces."
        if spaces and MESH in spaces
        else ""
    )
    return [text, surface]


def _confounds(section: Mapping[str, Any], cite: Any) -> list[str]:
    chosen = section.get("compcor_components")
    many = {None: "", "50%": " (as many as explain half of the variance)"}.get(
        chosen, f" ({chosen} of each mask)"
    )
    return [
        f"Confounds carry fMRIPrep's names {cite('fmriprep')}: motion parameters with their "
        f"derivatives and squares, framewise displacement and DVARS {cite('fd')}, mean signals of "
        f"CSF, white matter and brain, anatomical and temporal CompCor components{many} "
        f"{cite('compcor')}, and 24 components of the band of voxels around the "
        f"brain {cite('crown')}.",
        f"Image quality measures are those of MRIQC {cite('mriqc')}.",
    ]
