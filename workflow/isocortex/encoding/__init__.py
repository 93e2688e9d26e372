"""Prediction of single-trial responses from model features, per voxel and over subjects."""

from isocortex.encoding.agreement import stimulus_agreement
from isocortex.encoding.fit import cross_validated_scores, fit_encoding, fit_layers
from isocortex.encoding.folds import CrossValidation, cross_validation_folds
from isocortex.encoding.fractional import plan_fractional
from isocortex.encoding.inference import one_sample_inference
from isocortex.encoding.ridge import (
    Samples,
    Targets,
    choose_penalty,
    gram,
    pearson,
    plan_ridge,
    ridge_cv,
    standardisation,
)
from isocortex.encoding.summary import summarise_encoding
from isocortex.encoding.weights import fit_weights

__all__ = [
    "CrossValidation",
    "Samples",
    "Targets",
    "choose_penalty",
    "cross_validated_scores",
    "cross_validation_folds",
    "fit_encoding",
    "fit_layers",
    "fit_weights",
    "gram",
    "one_sample_inference",
    "pearson",
    "plan_fractional",
    "plan_ridge",
    "ridge_cv",
    "standardisation",
    "stimulus_agreement",
    "summarise_encoding",
]
