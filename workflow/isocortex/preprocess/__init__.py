"""From raw BIDS to BOLD that can be analysed: nipype workflows of one subject and of one run."""

from isocortex.preprocess.anat import preprocess_anat
from isocortex.preprocess.bold import preprocess_bold
from isocortex.preprocess.description import describe_derivatives
from isocortex.preprocess.motion import estimate_motion
from isocortex.preprocess.regions import transform_regions
from isocortex.preprocess.resampling import resample_labels, resample_series
from isocortex.preprocess.slice_timing import correct_slice_timing
from isocortex.preprocess.workflows import init_anat_wf, init_bold_wf

__all__ = [
    "correct_slice_timing",
    "describe_derivatives",
    "estimate_motion",
    "init_anat_wf",
    "init_bold_wf",
    "preprocess_anat",
    "preprocess_bold",
    "resample_labels",
    "resample_series",
    "transform_regions",
]
