"""The report section of the configuration as a typed object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from isocortex.errors import InputError


@dataclass(frozen=True)
class ReportOptions:
    """Choices of the `report` section; the defaults stand in schemas/config/report.json.

    Parameters
    ----------
    title
        Title of the study report; None takes the study's name.
    thumbnails
        Draw the stimulus images along the RDMs and in the MDS plots.
    max_thumbnails
        More stimuli than this are drawn without images, which would be too small to see.
    max_regions_shown
        Regions drawn in RDM, MDS and model comparison figures; tables list all.
    surface
        Draw the study's maps of voxels on fsaverage5, too (MNI space only).
    slices
        Axial slices in a volume mosaic.
    encoding_threshold
        Correlation under which a voxel stays empty in encoding maps.
    searchlight_threshold
        Score under which a voxel stays empty in searchlight maps without a test.
    """

    title: str | None
    thumbnails: bool
    max_thumbnails: int
    max_regions_shown: int
    surface: bool
    slices: int
    encoding_threshold: float
    searchlight_threshold: float

    @classmethod
    def from_config(cls, section: Mapping[str, Any]) -> ReportOptions:
        """Check the keys of the configuration section and build the object."""
        known = {field.name for field in fields(cls)}
        for key in section:
            if key not in known:
                raise InputError(
                    f"unknown option {key!r} in config section report: use "
                    f"{', '.join(sorted(known))}"
                )
        missing = sorted(known - set(section))
        if missing:
            raise InputError(f"option {missing[0]!r} is missing in config section report: add it")
        return cls(**section)
