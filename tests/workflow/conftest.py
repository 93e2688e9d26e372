"""The demo study, run once a session for all tests of the workflow.

With ISOCORTEX_DEMO set to a folder, the study is made and kept there, so that a second session
runs only what changed.
"""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
Job = tuple[str, str]


@dataclass
class Demo:
    """A folder with the demo study's data and results."""

    folder: Path

    def data(self, n_subjects: int, *options: str) -> None:
        """Make the data of the first subjects."""
        command = [sys.executable, "-m", "isocortex.phantom", "demo"]
        subprocess.run(
            [*command, "--subjects", str(n_subjects), *options],
            cwd=self.folder,
            env=environment(),
            check=True,
            capture_output=True,
        )

    def command(self, *arguments: str, root: Path = ROOT, changes: Path | None = None) -> list[str]:
        """Return the Snakemake command, by the code in ``root``, with ``changes`` of the config."""
        return [
            *(sys.executable, "-m", "snakemake", "--snakefile", str(root / "Snakefile")),
            *("--directory", str(self.folder), "--cores", "2"),
            *("--profile", str(ROOT / "profiles" / "default")),
            *("--configfile", str(ROOT / "config" / "demo.yaml")),
            *([str(changes)] if changes else []),
            *arguments,
        ]

    def run(self, *arguments: str, **options: Path | None) -> subprocess.CompletedProcess:
        """Run Snakemake on the study."""
        return subprocess.run(
            self.command(*arguments, **options), capture_output=True, text=True, check=False
        )

    def jobs(self, *arguments: str, **options: Path | None) -> set[Job]:
        """Return rule and wildcards of the jobs that would run."""
        done = self.run("--dry-run", *arguments, **options)
        assert done.returncode == 0, done.stderr
        text = done.stdout + done.stderr
        found = set()
        for part in re.split(r"\n(?=(?:local)?rule \w+:|checkpoint \w+:)", text)[1:]:
            rule = re.match(r"(?:local)?rule (\w+):", part).group(1)
            wildcards = re.search(r"^ +wildcards: (.*)$", part, re.MULTILINE)
            found.add((rule, wildcards.group(1) if wildcards else ""))
        return found


def environment() -> dict[str, str]:
    """Return the environment in which the package is found."""
    return os.environ | {"PYTHONPATH": str(ROOT / "workflow")}


def kill_tree(pid: int) -> None:
    """Kill a process and all that it started, as a power cut would."""
    try:
        parent = psutil.Process(pid)
    except psutil.NoSuchProcess:
        return
    family = [parent, *parent.children(recursive=True)]
    for process in family:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(family, timeout=30)


@pytest.fixture(scope="session")
def code_copy(tmp_path_factory):
    """Return a function that makes a copy of the workflow's code to edit."""

    def copy() -> Path:
        folder = tmp_path_factory.mktemp("code")
        for name in ("rules", "workflow", "envs", "config", "profiles"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.pyc"))
        shutil.copy(ROOT / "Snakefile", folder)
        return folder

    return copy


@pytest.fixture(scope="session")
def demo3(tmp_path_factory) -> Demo:
    """The demo study of three subjects, run."""
    given = os.environ.get("ISOCORTEX_DEMO")
    folder = Path(given).resolve() if given else tmp_path_factory.mktemp("study")
    folder.mkdir(exist_ok=True)
    demo = Demo(folder)
    if not (folder / "demo/bids/sub-04").exists():
        demo.data(3)
        done = demo.run()
        assert done.returncode == 0, done.stderr[-5000:]
    return demo


@pytest.fixture(scope="session")
def added(demo3) -> set[Job]:
    """The jobs that a fourth subject needs, listed before they were run."""
    if (demo3.folder / "demo/bids/sub-04").exists():
        jobs = (demo3.folder / "added.txt").read_text().splitlines()
        return {tuple(line.split("\t")) for line in jobs}
    demo3.data(4)
    jobs = demo3.jobs()
    (demo3.folder / "added.txt").write_text("".join("\t".join(job) + "\n" for job in sorted(jobs)))
    return jobs


@pytest.fixture(scope="session")
def demo(demo3, added) -> Demo:
    """The demo study of four subjects, run: three first, then the fourth."""
    done = demo3.run()
    assert done.returncode == 0, done.stderr[-5000:]
    return demo3
