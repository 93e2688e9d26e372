"""Pictures by which a lab judges the preprocessing of a subject and of a run."""

from isocortex.preprocess.figures.anatomy import anatomy_figures
from isocortex.preprocess.figures.book import FigureBook, Slices, mosaic
from isocortex.preprocess.figures.run import bold_figures

__all__ = ["FigureBook", "Slices", "anatomy_figures", "bold_figures", "mosaic"]
