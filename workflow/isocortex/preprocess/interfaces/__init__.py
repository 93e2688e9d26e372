"""nipype interfaces: our own steps and ANTs' behind typed inputs and outputs."""

from isocortex.preprocess.interfaces.anatomy import (
    AverageAnatomy,
    BrainExtraction,
    Normalise,
    TemplateAnatomy,
    TissueClasses,
)
from isocortex.preprocess.interfaces.confounds import (
    AssembleConfounds,
    Dvars,
    NoiseComponents,
    NoiseMasks,
)
from isocortex.preprocess.interfaces.distortion import (
    FieldmapFigures,
    MeasureField,
    OppositeField,
    UndistortReference,
)
from isocortex.preprocess.interfaces.figures import AnatomyFigures, BoldFigures
from isocortex.preprocess.interfaces.motion import (
    EstimateMotion,
    EstimateMotionAnts,
    ReadSeries,
)
from isocortex.preprocess.interfaces.quality import RunQuality, TemporalSnr
from isocortex.preprocess.interfaces.registration import Coregister, NormaliseReference
from isocortex.preprocess.interfaces.resampling import ResampleSeries

__all__ = [
    "AnatomyFigures",
    "AssembleConfounds",
    "AverageAnatomy",
    "BoldFigures",
    "BrainExtraction",
    "Coregister",
    "Dvars",
    "EstimateMotion",
    "EstimateMotionAnts",
    "FieldmapFigures",
    "MeasureField",
    "NoiseComponents",
    "NoiseMasks",
    "Normalise",
    "NormaliseReference",
    "OppositeField",
    "ReadSeries",
    "ResampleSeries",
    "RunQuality",
    "TemplateAnatomy",
    "TemporalSnr",
    "TissueClasses",
    "UndistortReference",
]
