"""From preprocessed runs, or from betas made elsewhere, to a store of single-trial responses."""

from isocortex.glm.betas import import_betas
from isocortex.glm.confounds import choose_confounds, read_confounds
from isocortex.glm.contrasts import map_contrasts
from isocortex.glm.design import Design, Trial, find_stimulus_column, make_design, make_trials
from isocortex.glm.estimate import RunFit, fit_run, stimulus_z
from isocortex.glm.export import export_betas
from isocortex.glm.fit import fit_glm
from isocortex.glm.images import intersect_masks, open_image, read_series
from isocortex.glm.noise_ceiling import describe_repeats, estimate_noise_ceiling
from isocortex.glm.optimised import fit_optimised
from isocortex.glm.timeseries import clean_bold, import_timeseries

__all__ = [
    "Design",
    "RunFit",
    "Trial",
    "choose_confounds",
    "clean_bold",
    "describe_repeats",
    "estimate_noise_ceiling",
    "export_betas",
    "find_stimulus_column",
    "fit_glm",
    "fit_optimised",
    "fit_run",
    "import_betas",
    "import_timeseries",
    "intersect_masks",
    "make_design",
    "make_trials",
    "map_contrasts",
    "open_image",
    "read_confounds",
    "read_series",
    "stimulus_z",
]
