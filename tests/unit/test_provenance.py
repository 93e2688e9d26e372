"""Digests change when content does, and only then; code digests follow imports."""

import gzip
import logging
import os
import subprocess
import sys

import pytest

from isocortex import provenance


def test_code_files_follow_the_imports(root):
    names = {p.relative_to(root / "workflow").as_posix() for p in provenance.code_files("fit_glm")}
    assert {"fit_glm.py", "isocortex/provenance.py", "isocortex/store.py"} <= names
    assert any(name.startswith("isocortex/glm/") for name in names)
    assert not any(name.startswith(("isocortex/rsa/", "isocortex/encoding/")) for name in names)


STAGES = {
    "preprocess": (
        "preprocess_anat",
        "estimate_fieldmap",
        "preprocess_bold",
        "transform_regions",
    ),
    "glm": ("fit_glm", "import_betas"),
    "features": ("extract_features",),
    "rsa": ("compute_rdms", "compute_model_rdms", "import_model_rdms", "compare_rdms"),
    "searchlight": (
        "map_searchlight",
        "map_surface_searchlight",
        "combine_searchlights",
        "combine_surface_searchlights",
    ),
    "topology": ("identify_regions", "compare_topology"),
    "encoding": ("fit_encoding", "fit_readout", "summarise_encoding"),
    "report": ("report_subject", "report_study"),
}
MAY_IMPORT = {"topology": {"rsa"}, "searchlight": {"rsa"}}


@pytest.mark.parametrize("stage", STAGES)
def test_stages_import_no_other_stage(root, stage):
    """The layers of the design, and what makes an edit re-run its stage and not all of them."""
    for script in STAGES[stage]:
        for file in provenance.code_files(script):
            part = file.relative_to(root / "workflow").parts
            if len(part) == 3:
                assert part[1] in {stage, *MAY_IMPORT.get(stage, ())}, (script, file)


def test_the_ground_needs_the_standard_library_only(root):
    """The Snakefile imports it, on every cluster node again."""
    code = (
        "import sys; before = set(sys.modules); import isocortex.study, isocortex.provenance; "
        "print(sorted({m.split('.')[0] for m in set(sys.modules) - before}"
        " - set(sys.stdlib_module_names) - {'isocortex'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(root / "workflow")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_fingerprint_sees_content_not_time(tmp_path):
    path = tmp_path / "x.nii.gz"
    path.write_bytes(gzip.compress(b"a" * 3_000_000, mtime=0))
    before = provenance.fingerprint(path)
    os.utime(path, (1, 1))
    assert provenance.fingerprint(path) == before
    path.write_bytes(gzip.compress(b"a" * 2_999_999 + b"b", mtime=0))
    assert provenance.fingerprint(path) != before
    large = tmp_path / "y.nii"
    large.write_bytes(bytes(3_000_000))
    before = provenance.fingerprint(large)
    large.write_bytes(bytes(2_999_999) + b"b")
    assert provenance.fingerprint(large) != before
    assert provenance.fingerprint(tmp_path / "none") == ""


def test_manifest_of_files_changes_with_content_only(tmp_path):
    def manifest(content, code, mtime):
        (tmp_path / "a.nii.gz").write_bytes(gzip.compress(content, mtime=mtime))
        path = tmp_path / "manifest.json"
        provenance.write_manifest(path, outputs={"a": tmp_path / "a.nii.gz"}, code=code)
        return path.read_text()

    assert manifest(b"1", "c", 0) == manifest(b"1", "d", 5)
    assert manifest(b"1", "c", 0) != manifest(b"2", "c", 0)
    assert provenance.read_manifest(tmp_path / "manifest.json")["code"] == "c"


def test_directory_digest_sees_names_and_bytes(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("1")
    one = provenance.directory_digest(tmp_path / "a")
    (tmp_path / "a" / "x").rename(tmp_path / "a" / "y")
    two = provenance.directory_digest(tmp_path / "a")
    (tmp_path / "a" / "y").write_text("2")
    assert len({one, two, provenance.directory_digest(tmp_path / "a")}) == 3


@pytest.mark.parametrize(
    ("raised", "line", "traced"),
    [
        ("InputError('x is bad in y: do z')", "isocortex: job sub-01: x is bad in y: do z", False),
        ("KeyError('k')", "isocortex: job sub-01: KeyError: 'k' (traceback in ", True),
    ],
)
def test_a_failed_job_says_one_line_and_keeps_the_rest_in_its_log(
    root, tmp_path, raised, line, traced
):
    code = f"""
import os, sys
from isocortex.errors import InputError
from isocortex.provenance import job_log
with job_log({str(tmp_path / "logs" / "j.log")!r}, where="job sub-01"):
    print("python says")
    os.system("echo a program says")
    raise {raised}
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(root / "workflow")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(line)
    assert done.stderr.count("\n") == 1
    log = (tmp_path / "logs" / "j.log").read_text()
    assert "python says" in log
    assert "a program says" in log
    assert ("Traceback" in log) is traced


def test_job_log_gives_logging_back(tmp_path):
    level = logging.getLogger().level
    with provenance.job_log(tmp_path / "j.log", where="job"):
        logging.getLogger("x").info("kept")
    assert logging.getLogger().level == level
    assert "kept" in (tmp_path / "j.log").read_text()


def test_what_a_killed_job_left_is_removed_and_nothing_else(tmp_path):
    for name in (".a.json.123.tmp", ".a.json.old.tmp", ".ba.json.123.tmp", "a.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / ".a.json.9.old").mkdir()
    (tmp_path / ".a.json.9.old" / "piece").touch()
    provenance.write_json(tmp_path / "a.json", {"b": 1})
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        ".a.json.old.tmp",
        ".ba.json.123.tmp",
        "a.json",
    ]
