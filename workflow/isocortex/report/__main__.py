"""Print where the reports are and what the study found: ``python -m isocortex.report FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

from isocortex.report.findings import print_findings

if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m isocortex.report results/<study>/report")
    print_findings(Path(sys.argv[1]))
