"""What the linters say, and what they cannot."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from . import tiny

ROOT = tiny.ROOT
BIN = Path(sys.executable).parent
IMPORT_NAMES = {
    "pillow": "PIL",
    "antspyx": "ants",
    "jinja2": "jinja2",
    "scikit-image": "skimage",
    "scikit-learn": "sklearn",
}


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "."],
        ["snakefmt", "--check", "Snakefile", "rules"],
    ],
    ids=" ".join,
)
def test_linters_are_content(command):
    done = subprocess.run(
        [BIN / command[0], *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_snakemake_lint_is_content(tmp_path):
    tiny.make(tmp_path)
    done = tiny.snakemake(tmp_path, "--lint")
    assert done.returncode == 0, done.stderr


def scripts():
    return sorted((ROOT / "workflow").glob("*.py"))


def test_every_script_is_one_rule_of_that_name_and_short():
    text = "".join(path.read_text() for path in (ROOT / "rules").glob("*.smk"))
    rules = set(re.findall(r"^\s*rule (\w+):", text, re.MULTILINE))
    assert rules == {path.stem for path in scripts()}
    for path in scripts():
        assert len(path.read_text().splitlines()) < 40, path


def test_every_rule_says_what_a_rule_must():
    for path in (ROOT / "rules").glob("*.smk"):
        for part in re.split(r"^\s*rule ", path.read_text(), flags=re.MULTILINE)[1:]:
            name = part.split(":", 1)[0]
            for key in (
                *("output:", "params:", "log:", "benchmark:", "conda:", "threads:"),
                *("resources:", "mem_mb=", "runtime=", "script:", '"""', "code=code_version("),
            ):
                assert key in part, (name, key)
            assert f'code_version("{name}")' in part, name
            assert f"/{name}.py" in part, name


def test_snakefile_is_short():
    assert len((ROOT / "Snakefile").read_text().splitlines()) < 80


def pins():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if "==" in line)
    return {name.lower(): version for name, version in pairs}


def test_every_requirement_is_pinned_exactly():
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        assert not line or line.startswith("#") or re.fullmatch(r"[\w.-]+==[\w.]+", line), line


def environments():
    return {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / "envs").glob("*.yaml")}


def test_environments_have_the_versions_of_requirements():
    for name, env in environments().items():
        assert "nodefaults" in env["channels"], name
        for line in env["dependencies"][-1]["pip"]:
            package, version = line.split("==")
            assert pins()[package.lower()] == version, (name, package)


STAGE_OF = {"topology": "rsa"}


@pytest.mark.parametrize("stage", sorted(environments()))
def test_environments_have_what_the_stage_imports(stage):
    """Third-party modules imported anywhere below the stage's scripts, and nothing else."""
    sys.path.insert(0, str(ROOT / "workflow"))
    from isocortex import provenance

    text = "".join(path.read_text() for path in (ROOT / "rules").glob("*.smk"))
    rules = re.findall(r"rule (\w+):(?:(?!\n\s*rule ).)*?envs/(\w+)\.yaml", text, re.DOTALL)
    files = {f for rule, env in rules if env == stage for f in provenance.code_files(rule)}
    files = [f for f in files if f.suffix == ".py" and f.name not in ("config.py", "study.py")]
    found = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add(node.module.split(".")[0])
    found -= set(sys.stdlib_module_names) | {"isocortex", "snakemake"}
    if "xarray" in found:
        # Stores are opened as dask arrays.
        found.add("dask")
    listed = {line.split("==")[0] for line in environments()[stage]["dependencies"][-1]["pip"]}
    modules = {IMPORT_NAMES.get(name.lower(), name.replace("-", "_")).lower() for name in listed}
    assert modules == {name.lower() for name in found}


def test_no_path_of_a_machine_and_no_large_file_is_tracked():
    names = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    for name in names:
        assert (ROOT / name).stat().st_size < 1_000_000, name
