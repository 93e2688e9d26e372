"""Why parts of a report are not there: said once, in a table, instead of in empty sections."""

from __future__ import annotations

from collections.abc import Sequence

from isocortex.report.page import Table, join

ENTRY_TEXT = {
    "bids": "raw BIDS recordings",
    "derivatives": "preprocessed BIDS derivatives",
    "betas": "response estimates made elsewhere",
    "timeseries": "time series of continuous tasks, cleaned elsewhere",
    "rdms": "dissimilarity matrices made elsewhere",
}
_SKIPPED = {
    "derivatives": ("preprocess",),
    "betas": ("preprocess", "confounds"),
    "timeseries": (
        "preprocess",
        "confounds",
        "glm",
        "rdms",
        "regions",
        "searchlight",
        "models",
        "identification",
    ),
    "rdms": ("preprocess", "confounds", "glm", "regions", "searchlight", "encoding"),
}
_REASONS = {
    "models": "No model was compared: the config names none under features.models or "
    "input.model_rdms.",
    "encoding": "No encoding model was fitted: the config names none under features.models.",
    "searchlight": "No searchlight was run: it needs searchlight.run and models in the "
    "config and, for a map of all subjects, a template space.",
    "confounds": "The study gives no table of confounds.",
    "identification": "Regions were not identified: this needs at least two subjects and regions.",
}


def absence(stage: str, entry: str) -> str:
    """Say why a stage has nothing to show.

    Parameters
    ----------
    stage
        "preprocess", "confounds", "glm", "rdms", "regions", "searchlight", "encoding", "models" or
        "identification".
    entry
        Where the study enters the chain.
    """
    if stage in _SKIPPED.get(entry, ()):
        return f"This study starts from {ENTRY_TEXT[entry]}, so this step was not part of the run."
    return _REASONS.get(
        stage,
        "This step gave no result in this run: it is switched off in the configuration or "
        "needs an input that the study does not have.",
    )


def absence_rows(parts: Sequence[tuple[str, str]], entry: str) -> list[list[str]]:
    """Group the parts that a report leaves out by their reason.

    Parameters
    ----------
    parts
        Title and stage of each.
    entry
        Where the study enters the chain.

    Returns
    -------
    list
        Titles and reason, a row a reason.
    """
    titles: dict[str, list[str]] = {}
    for title, stage in parts:
        titles.setdefault(absence(stage, entry), []).append(title)
    return [[join(names), reason] for reason, names in titles.items()]


def absence_table(parts: Sequence[tuple[str, str]], entry: str) -> Table:
    """List the parts that a report leaves out, with the reason."""
    rows = absence_rows(parts, entry)
    return Table("Not part of this report", ("Part", "Why"), rows, wrap=True)
