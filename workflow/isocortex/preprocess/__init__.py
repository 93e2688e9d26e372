"""From raw BIDS to BOLD that can be analysed: nipype workflows of one subject and of one run.

A module is imported when a function of it is first asked for: a job that only carries labels to
another grid starts without nipype and ANTs, which take seconds.
"""

from importlib import import_module
from typing import Any

_MODULES = {
    "correct_slice_timing": "slice_timing",
    "describe_derivatives": "description",
    "estimate_fieldmap": "fieldmaps",
    "estimate_motion": "motion",
    "init_anat_wf": "workflows",
    "init_bold_wf": "workflows",
    "init_fieldmap_wf": "fieldmaps",
    "preprocess_anat": "anat",
    "preprocess_bold": "bold",
    "resample_labels": "resampling",
    "resample_series": "resampling",
    "transform_regions": "regions",
}

__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
