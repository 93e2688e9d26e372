"""What `make demo` prints at its end."""

import json

import pytest

from isocortex.errors import InputError
from isocortex.report.findings import print_findings


def test_findings_and_paths_are_printed(tmp_path, capsys):
    findings = [{"title": "RSA", "text": "V1 is best explained by layer1."}]
    summary = {"study": "s", "report": "study.html", "subjects": ["01"], "findings": findings}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    print_findings(tmp_path)
    text = capsys.readouterr().out
    assert str(tmp_path / "study.html") in text
    assert "sub-01.html" in text
    assert "1. RSA: V1 is best explained by layer1." in text


def test_a_study_without_subjects_names_no_reports_of_subjects(tmp_path, capsys):
    findings = [{"title": "Layers", "text": "rdm identifies 90%."}]
    summary = {"study": "s", "report": "study.html", "subjects": [], "findings": findings}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    print_findings(tmp_path)
    text = capsys.readouterr().out
    assert "1. Layers: rdm identifies 90%." in text
    assert "Reports of" not in text


def test_a_missing_report_is_said(tmp_path):
    with pytest.raises(InputError, match="run the workflow to its end"):
        print_findings(tmp_path)
