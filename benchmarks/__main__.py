"""``python -m benchmarks NAME|all``: one JSON line a figure."""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import sys
from collections.abc import Sequence

from benchmarks.measure import Disagreement
from isocortex.device import select_device
from isocortex.errors import InputError

FIGURES = (
    "crossnobis",
    "searchlight-pearson",
    "searchlight-spearman",
    "searchlight-memory",
    "dual-bootstrap-corr",
    "dual-bootstrap-rho-a",
    "dual-bootstrap-corr-cov",
    "identification-grid",
    "geodesic-twostep",
    "agtdm",
    "ridge-cv-primal",
    "ridge-cv-dual",
    "banded-ridge",
    "features-throughput",
    "features-memory",
    "lsa",
    "lss",
    "glm-memory",
    "motion",
    "preprocess-bold",
)
"""Each is a module of this package, hyphens as underscores, with ``run(small=False)``."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the figures asked for and print a JSON line for each; return the exit code."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("figure", nargs="?", default="all", help=f"all, {', '.join(FIGURES)}")
    parser.add_argument(
        "--small", action="store_true", help="tiny arrays: do they run and agree? No figure to keep"
    )
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="cuda: figures that can, on a GPU, against the peer's CUDA backend",
    )
    options = parser.parse_args(arguments)
    if options.figure not in (*FIGURES, "all"):
        print(
            f"benchmarks: no figure {options.figure!r}: choose one of all, {', '.join(FIGURES)}",
            file=sys.stderr,
        )
        return 1
    code = 0
    if options.device == "cuda":
        try:
            select_device("cuda", key="--device")
        except InputError as error:
            print(f"benchmarks: {error}", file=sys.stderr)
            return 1
    for figure in FIGURES if options.figure == "all" else (options.figure,):
        module = importlib.import_module(f"benchmarks.{figure.replace('-', '_')}")
        try:
            chosen = {"small": options.small}
            if options.device != "cpu":
                if "device" not in inspect.signature(module.run).parameters:
                    print(f"benchmarks: {figure} runs on the CPU alone", file=sys.stderr)
                    code = 1
                    continue
                chosen["device"] = options.device
            found = {"figure": figure, **module.run(**chosen)}
        except Disagreement as error:
            print(f"benchmarks: {figure}: {error}", file=sys.stderr)
            code = 1
        else:
            print(json.dumps(found), flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
