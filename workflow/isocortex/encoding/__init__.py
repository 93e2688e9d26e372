"""Prediction of single-trial responses from model features, per voxel and over subjects."""

from isocortex.encoding.agreement import stimulus_agreement
from isocortex.encoding.fit import cross_validated_scores, fit_encoding, fit_layers
from isocortex.encoding.folds import CrossValidation, cross_validation_folds
from isocortex.encoding.ridge import (
    Ridge,
    gram,
    held_out_loss,
    inner_ridge,
    pearson,
    predict,
    ridge_from_features,
    ridge_from_gram,
    standardisation,
)
from isocortex.encoding.summary import (
    one_sample_inference,
    summarise_encoding,
)

__all__ = [
    "CrossValidation",
    "Ridge",
    "cross_validated_scores",
    "cross_validation_folds",
    "fit_encoding",
    "fit_layers",
    "gram",
    "held_out_loss",
    "inner_ridge",
    "one_sample_inference",
    "pearson",
    "predict",
    "ridge_from_features",
    "ridge_from_gram",
    "standardisation",
    "stimulus_agreement",
    "summarise_encoding",
]
