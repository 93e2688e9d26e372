"""dataset_description.json and .bidsignore of the derivatives folder."""

from __future__ import annotations

import os
from pathlib import Path

import isocortex
from isocortex import provenance

_IGNORE = """\
# not in the standard: references, runs on surfaces, confounds and transforms, named as fMRIPrep
# names them
*_boldref.nii.gz
*_hemi-*
*_timeseries.*
*_xfm.*
# fields, named as fMRIPrep names them
*_fmapid-*
# provenance and the pictures of the reports
*manifest.json
.*.provenance.json
figures
"""


def describe_derivatives(*, raw: str | Path, description: str | Path, ignore: str | Path) -> None:
    """Describe the derivatives folder; it depends on no subject.

    Parameters
    ----------
    raw
        The raw dataset's folder.
    description, ignore
        dataset_description.json and .bidsignore to write.
    """
    link = os.path.relpath(Path(raw).resolve(), Path(description).resolve().parent)
    provenance.write_json(
        description,
        {
            "Name": "isocortex preprocessed BOLD",
            "BIDSVersion": "1.10.0",
            "DatasetType": "derivative",
            "GeneratedBy": [
                {
                    "Name": "isocortex",
                    "Version": isocortex.__version__,
                    "Description": "Preprocessing with nipype and ANTs",
                }
            ],
            "SourceDatasets": [{"URL": link}],
            "DatasetLinks": {"raw": link},
        },
    )
    path = Path(ignore)
    temporary = provenance.temporary_beside(path)
    temporary.write_text(_IGNORE)
    temporary.replace(path)
