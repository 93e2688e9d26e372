"""The study's findings on a terminal, from the summary that the study's report writes."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

from isocortex.errors import InputError


def print_findings(folder: Path) -> None:
    """Print where the reports of a study are, and its findings in words.

    Parameters
    ----------
    folder
        The folder of reports, ``results/<study>/report``.

    Raises
    ------
    InputError
        Where the study's report is not there.
    """
    path = folder / "summary.json"
    if not path.is_file():
        raise InputError(f"{path} is missing: run the workflow to its end")
    summary = json.loads(path.read_text())
    print(f"\nThe report of study {summary['study']}: {folder / summary['report']}")
    if summary["subjects"]:
        print(f"Reports of its subjects: {', '.join(f'sub-{s}.html' for s in summary['subjects'])}")
    print()
    for number, finding in enumerate(summary["findings"], start=1):
        text = f"{number}. {finding['title']}: {finding['text']}"
        print(textwrap.fill(text, width=100, subsequent_indent="   "))
    print()
