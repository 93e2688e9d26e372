"""Subjects without a T1w beside others: which jobs they have."""

import re
import shutil

from . import tiny


def jobs(text):
    """Return rule and subject of the jobs that a dry run lists."""
    found = re.findall(r"^(?:local)?rule (\w+):\n((?: .*\n)+)", text, re.MULTILINE)
    wildcards = ((rule, re.search(r"wildcards:.*subject=(\w+)", rest)) for rule, rest in found)
    return {(rule, match[1]) for rule, match in wildcards if match}


def test_a_subject_without_a_t1w_has_no_anatomy_and_all_else(tmp_path):
    tiny.make(tmp_path)
    shutil.rmtree(tmp_path / "bids" / "sub-02" / "anat")
    done = tiny.snakemake(tmp_path, "--dry-run")
    assert done.returncode == 0, done.stderr
    found = jobs(done.stdout + done.stderr)
    own = {("preprocess_anat", "01"), ("preprocess_bold", "01"), ("preprocess_bold_alone", "02")}
    assert {job for job in found if job[0].startswith("preprocess_")} == own
    for rule in ("transform_regions", "fit_glm", "report_subject"):
        assert {(rule, "01"), (rule, "02")} <= found
    text = re.search(r"rule preprocess_bold_alone:\n((?: .*\n)+)", done.stdout + done.stderr)[1]
    assert "from-boldref_to-MNI152NLin2009aSym" in text
    assert "T1w" not in text
