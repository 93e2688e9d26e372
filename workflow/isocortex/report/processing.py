"""How each run of a subject was processed, and what of it needs a look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from isocortex import bids
from isocortex.report.page import Note, Table, count, join, number
from isocortex.report.quality import run_name

_FIELDS = {
    "phasediff": "phase-difference map",
    "phases": "two phase maps",
    "fieldmap": "measured field",
    "pepolar": "opposite phase encoding",
}
_SLICES = {
    "slices_first": "corrected, before the motion was undone",
    "motion_first": "corrected, along the path of the moving head",
}
NORMALISED = "good"
"""What ``normalisation`` says where nothing is odd."""


def processing_blocks(figures: Sequence[Path | str]) -> list[Any]:
    """Say how each run was processed, and flag what needs a look.

    Parameters
    ----------
    figures
        Figures directories of preprocessing: the anatomy's, the fieldmaps', the runs'.

    Returns
    -------
    list
        A note for what needs a look, and a table with a row a run; empty where the measures say
        nothing of it.
    """
    anatomy: Mapping[str, Any] = {}
    runs: dict[str, Mapping[str, Any]] = {}
    for directory in map(Path, figures):
        path = directory / "qc.json"
        if not path.is_file() or "_fmapid-" in directory.name:
            continue
        measures = bids.read_json(path)
        if directory.name == "anat":
            anatomy = measures
        else:
            runs[run_name(directory)] = measures
    blocks: list[Any] = []
    straight = [name for name, qc in runs.items() if qc.get("anatomy") == "template"]
    if straight:
        blocks.append(
            Note(
                "This subject has no T1w image: "
                f"{_of_runs(straight, runs)} went straight from the BOLD reference to the template "
                "by an affine and a nonlinear registration, and the tissues are the template's."
            )
        )
    blocks += [
        Note(f"Registration to the template, {name}: {normalisation_text(qc)}.")
        for name, qc in (("anatomy", anatomy), *((f"run {n}", qc) for n, qc in runs.items()))
        if normalisation_text(qc)
    ]
    refused = [name for name, qc in runs.items() if coregistration_refused(qc)]
    if refused:
        blocks.append(
            Note(
                "The refinement of the registration to the T1w image at the white matter's "
                f"boundary was refused for {_of_runs(refused, runs)}, which kept the pose found "
                "by mutual information: look at the overlay."
            )
        )
    columns = [
        (title, [text(qc) for qc in runs.values()])
        for title, text in (
            ("Slice timing", slice_timing_text),
            ("Susceptibility distortion", distortion_text),
            ("Registration to the T1w", coregistration_text),
            ("Dice with T1w mask", _overlap),
        )
    ]
    columns = [(title, cells) for title, cells in columns if any(cells)]
    if not columns:
        return blocks
    rows = [[name, *(cells[row] or "n/a" for _, cells in columns)] for row, name in enumerate(runs)]
    costs = any(title.endswith("the T1w") for title, _ in columns)
    blocks.append(
        Table(
            "How the runs were processed",
            ("Run", *(title for title, _ in columns)),
            rows,
            (
                "Registration: which pose was accepted, its cost before and after the refinement "
                "at the white matter's boundary (0: grey matter is brighter all along it, as in a "
                "BOLD image; 1: no contrast; 2: darker), and the furthest a point moved."
                if costs
                else ""
            ),
        )
    )
    return blocks


def slice_timing_text(qc: Mapping[str, Any]) -> str:
    """What was done about slice timing, empty where the measures do not say."""
    choice = qc.get("slice_timing")
    if choice is None:
        return ""
    if choice == "none":
        return f"not corrected: {qc.get('slice_timing_note') or 'switched off, or no slice times'}"
    return _SLICES.get(str(choice), str(choice))


def distortion_text(qc: Mapping[str, Any]) -> str:
    """What was done about distortion, and why if nothing, empty where the measures do not say."""
    kind = qc.get("distortion")
    if kind is None:
        return ""
    if kind == "none":
        return f"not corrected: {qc.get('distortion_note') or 'no reason recorded'}"
    text = f"corrected by {_FIELDS.get(str(kind), kind)}"
    if "distortion_median_mm" in qc:
        text += (
            f": signal moved by {number(qc['distortion_median_mm'], 1)} mm in the median, "
            f"{number(qc['distortion_max_mm'], 1)} mm where most"
        )
    return text


def coregistration_text(qc: Mapping[str, Any]) -> str:
    """Which registration to the T1w was accepted, with its costs."""
    if qc.get("anatomy") == "template":
        return "none: straight to the template"
    accepted = qc.get("coregistration_accepted")
    if accepted is None:
        return ""
    before, after, moved = (
        number(qc.get(f"coregistration_{name}", np.nan), digits)
        for name, digits in (("cost_before", 3), ("cost_after", 3), ("moved_mm", 1))
    )
    if accepted == "bbr":
        return f"boundary: cost {before} → {after}, {moved} mm"
    why = str(qc.get("coregistration_note") or "no reason recorded").removeprefix("refused: ")
    if qc.get("coregistration_cost_before") is None:
        return f"mutual information; not refined, {why}"
    return f"mutual information: cost {before}; refinement to {after} refused, {why}"


def coregistration_refused(qc: Mapping[str, Any]) -> bool:
    """Whether the refinement at the white matter's boundary was refused."""
    return qc.get("coregistration_accepted") == "mi"


def normalisation_text(qc: Mapping[str, Any]) -> str:
    """What is odd about the registration to the template, empty where nothing is."""
    said = str(qc.get("normalisation", NORMALISED))
    return "" if said == NORMALISED else f"look at it: {said.removeprefix('check: ')}"


def _overlap(qc: Mapping[str, Any]) -> str:
    return number(qc["dice_t1w_mask"], 3) if "dice_t1w_mask" in qc else ""


def _of_runs(names: Sequence[str], runs: Mapping[str, Any]) -> str:
    if len(names) == len(runs) > 1:
        return f"all {len(runs)} runs"
    return f"run {names[0]}" if len(names) == 1 else f"{count(len(names), 'run')} ({join(names)})"
