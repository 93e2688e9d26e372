"""Results are never stale and never made again for nothing: each on the list of jobs."""

import os
from pathlib import Path

import pytest

PREPROCESS = {"preprocess_anat", "preprocess_bold", "describe_derivatives"}
TOPOLOGY = {
    "identify_regions",
    "compare_topology",
    "measure_dependence",
    "summarise_persistence",
}
STUDY = TOPOLOGY | {
    "compare_rdms",
    "partition_models",
    "combine_searchlights",
    "combine_surface_searchlights",
    "summarise_encoding",
    "report_study",
    "all",
}
SUBJECT = {
    "preprocess_anat",
    "preprocess_bold",
    "transform_regions",
    "fit_glm",
    "compute_rdms",
    "map_searchlight",
    "map_surface_searchlight",
    "fit_encoding",
    "report_subject",
}
MODEL = {"extract_features", "compute_model_rdms"}


def rules(jobs):
    return {rule for rule, _ in jobs}


def test_a_new_subject_runs_its_own_jobs_and_the_studys(added):
    per_subject = {job for job in added if "subject=" in job[1]}
    assert {job for job in per_subject if "subject=04" not in job[1]} == set()
    assert rules(per_subject) == SUBJECT
    assert rules(added - per_subject) == STUDY


def test_nothing_is_left_to_do(demo):
    assert demo.jobs() == set()


def test_a_removed_subject_runs_the_studys_jobs_only(demo):
    assert rules(demo.jobs("--config", 'subjects=["01","02","03"]')) == STUDY
    assert rules(demo.jobs("--config", 'exclude={"04": "fell asleep"}')) == STUDY


def test_the_order_of_subjects_means_nothing(demo):
    assert demo.jobs("--config", 'subjects=["sub-04","02","01","03"]') == set()


def test_touching_files_runs_nothing(demo):
    files = [p for p in demo.folder.rglob("*") if p.is_file() and ".snakemake" not in p.parts]
    times = {file: file.stat() for file in files}
    assert len(files) > 300
    try:
        for file in files:
            os.utime(file)
        assert demo.jobs() == set()
    finally:
        for file, stat in times.items():
            os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_touching_code_runs_nothing(demo, code_copy):
    copy = code_copy()
    for file in copy.rglob("*.py"):
        os.utime(file)
    assert demo.jobs(root=copy) == set()


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        (
            "rsa/compare.py",
            (SUBJECT - PREPROCESS - {"transform_regions", "fit_glm", "fit_encoding"})
            | (STUDY - {"summarise_encoding"})
            | {"compute_model_rdms"},
        ),
        ("topology/identification.py", TOPOLOGY | {"report_study", "all"}),
        ("encoding/ridge.py", {"fit_encoding", "summarise_encoding"} | {"report_subject"}),
        ("glm/estimate.py", (SUBJECT - PREPROCESS - {"transform_regions"}) | STUDY),
        ("preprocess/motion.py", PREPROCESS | SUBJECT | STUDY),
        ("phantom/scanner.py", set()),
    ],
)
def test_editing_one_character_of_code_runs_its_stage_and_what_follows(
    demo, code_copy, file, expected
):
    copy = code_copy()
    path = copy / "workflow" / "isocortex" / file
    text = path.read_text()
    assert text.startswith('"""')
    path.write_text('"""_' + text[3:])
    if "encoding" in file:
        expected = expected | {"report_study", "all"}
    assert rules(demo.jobs(root=copy)) == expected


def test_editing_a_script_runs_its_rule(demo, code_copy):
    copy = code_copy()
    path = copy / "workflow" / "compare_rdms.py"
    path.write_text(path.read_text() + "\n")
    assert rules(demo.jobs(root=copy)) == {"compare_rdms", "report_study", "all"}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        # A space that nothing else reads must not hide the other key.
        (
            "preprocess: {spaces: [MNI152NLin2009aSym, fsaverage5], interpolation: linear}",
            (SUBJECT - {"preprocess_anat"}) | STUDY,
        ),
        ("glm: {hrf: spm}", (SUBJECT - PREPROCESS - {"transform_regions"}) | STUDY),
        (
            "rsa: {correction: none}",
            {"compare_rdms", "report_study", "all"},
        ),
        (
            "trsa: {permutations: 500}",
            (TOPOLOGY - {"compare_topology"}) | {"report_study", "all"},
        ),
        (
            "rsa: {bootstrap: {variance: debiased}}",
            {"compare_rdms", "report_study", "all"},
        ),
        (
            "searchlight: {noise_normalisation: {shrinkage: full}}",
            {"report_study", "all"},
        ),
        ("report: {thumbnails: false}", {"report_subject", "report_study", "all"}),
        ("dask: {scheduler: 'tcp://head:8786'}", set()),
    ],
)
def test_a_config_value_runs_what_uses_it(demo, tmp_path, change, expected):
    (tmp_path / "change.yaml").write_text(change)
    assert rules(demo.jobs(changes=tmp_path / "change.yaml")) == expected


def test_noise_normalisation_runs_what_is_in_units_of_the_noise(demo, tmp_path):
    (tmp_path / "change.yaml").write_text("rsa: {noise_normalisation: {shrinkage: diag}}")
    jobs = demo.jobs(changes=tmp_path / "change.yaml")
    assert "compute_rdms" in rules(jobs)
    assert not [job for job in jobs if "measure=correlation" in job[1]]


def test_a_changed_recording_runs_its_run_and_what_follows(demo):
    file = demo.folder / "demo/bids/sub-02/func/sub-02_task-objects_run-02_bold.nii.gz"
    content = file.read_bytes()
    try:
        file.write_bytes(content[:-8] + b"\0\0\0\0" + content[-4:])
        jobs = demo.jobs()
    finally:
        file.write_bytes(content)
    subject = {job for job in jobs if "subject=" in job[1]}
    assert all("subject=02" in wildcards for _, wildcards in subject)
    assert len([job for job in subject if job[0] == "preprocess_bold"]) == 1
    assert rules(subject) == SUBJECT - {"preprocess_anat"}
    assert rules(jobs - subject) == STUDY


def test_changed_events_run_from_the_glm_on(demo):
    file = demo.folder / "demo/bids/sub-03/func/sub-03_task-objects_run-01_events.tsv"
    text = file.read_text()
    try:
        file.write_text(text.replace("\t1.000\t", "\t1.100\t"))
        assert text != file.read_text()
        jobs = demo.jobs()
    finally:
        file.write_text(text)
    subject = {job for job in jobs if "subject=" in job[1]}
    assert all("subject=03" in wildcards for _, wildcards in subject)
    assert rules(jobs) == (SUBJECT - PREPROCESS - {"transform_regions"}) | STUDY


def test_no_rule_reads_the_truth(demo):
    for log in (demo.folder / "results").rglob("*.log"):
        assert "demo/truth" not in log.read_text(errors="replace"), log


def test_snakemake_report_builds(demo, tmp_path):
    done = demo.run("--report", str(tmp_path / "report.html"))
    assert done.returncode == 0, done.stderr
    assert Path(tmp_path / "report.html").stat().st_size > 100_000
