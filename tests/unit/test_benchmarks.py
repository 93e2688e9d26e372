"""The benchmark programs run, and refuse answers that differ. No time is asserted here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as program
from benchmarks.measure import Disagreement, largest_difference, side_by_side

ROOT = Path(__file__).parents[2]
KEYS = ["figure", "ours_s", "peer", "peer_s", "ratio", "max_abs_diff", "peak_mib", "note"]


@pytest.mark.parametrize(
    "figure",
    [
        "crossnobis",
        "geodesic-twostep",
        "identification-grid",
        "dual-bootstrap-corr",
        "agtdm",
        "lss",
    ],
)
def test_a_figure_is_one_json_line(figure, capsys):
    assert program.main([figure, "--small"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    assert list(found) == KEYS
    assert found["figure"] == figure
    assert found["peer"].split()[0] in ("rsatoolbox", "networkx", "numpy", "nilearn")
    assert found["max_abs_diff"] < 1e-9
    assert found["ratio"] == pytest.approx(found["peer_s"] / found["ours_s"], rel=1e-2)


@pytest.mark.parametrize("figure", ["ridge-cv-primal", "ridge-cv-dual", "banded-ridge"])
def test_ridge_figures_give_their_share_of_the_products_rate(figure, capsys):
    assert program.main([figure, "--small"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == [*KEYS[:-1], "matmul_share", "matmul_tflop_s", "note"]
    assert found["peer"].startswith("himalaya")
    assert found["max_abs_diff"] < 1e-4


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_gpu_that_is_not_there_is_one_line(capsys):
    assert program.main(["ridge-cv-dual", "--small", "--device", "cuda"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert "cuda in --device" in line


def test_every_figure_has_its_module():
    for figure in program.FIGURES:
        text = (ROOT / "benchmarks" / f"{figure.replace('-', '_')}.py").read_text()
        assert "def run(*, small: bool = False" in text


def test_an_unknown_figure_is_one_line():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "crosnobis"],
        cwd=ROOT,
        env={"PYTHONPATH": "workflow", "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "'crosnobis'" in line
    assert all(figure in line for figure in program.FIGURES)


def _pair(ours, theirs, **options):
    return side_by_side(
        lambda: ours,
        lambda: theirs,
        difference=largest_difference,
        tolerance=1e-6,
        package="numpy",
        note="n",
        **options,
    )


@pytest.mark.parametrize("theirs", [[1.0, 2.1], [1.0, float("nan")], [1.0, 2.0, 3.0]])
def test_answers_that_differ_are_no_figure(theirs, monkeypatch, capsys):
    with pytest.raises(Disagreement):
        _pair([1.0, 2.0], theirs)

    class Module:
        run = staticmethod(lambda *, small: _pair([1.0, 2.0], theirs))

    monkeypatch.setattr(program.importlib, "import_module", lambda name: Module)
    assert program.main(["lsa"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("benchmarks: lsa: ")


def test_share_of_the_matrix_products_rate():
    found = _pair([1.0], [1.0], flop=1e6)
    assert list(found) == [*KEYS[1:-1], "matmul_share", "matmul_tflop_s", "note"]
    rate = found["matmul_tflop_s"] * 1e12
    assert found["matmul_share"] == pytest.approx(1e6 / found["ours_s"] / rate, rel=2e-2)


def test_seconds_are_for_one_of_the_units():
    found = _pair([1.0], [1.0], ours_units=1000, peer_units=1)
    assert found["ours_s"] < found["peer_s"]
