"""Make the demo study from the command line: ``python -m isocortex.phantom OUT``."""

import argparse
import inspect
import logging
import sys

from isocortex.errors import InputError
from isocortex.phantom.stimuli import write_images
from isocortex.phantom.study import make_study


def main() -> int:
    """Read the options, make the study; 1 after bad input, told in one line."""
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(make_study).parameters.items()
    }
    parser = argparse.ArgumentParser(
        prog="isocortex.phantom",
        description="Make the demo study: a BIDS dataset, regions, and the truth behind them.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("out", help="folder that gets bids/, regions/ and truth/")
    for flag, name, kind, text in (
        ("--subjects", "n_subjects", int, "number of subjects"),
        ("--runs", "n_runs", int, "runs of each subject"),
        ("--images", "n_images", int, "images, each shown once a run"),
        ("--voxel-size", "voxel_size", float, "BOLD voxel size, mm"),
        ("--t1w-voxel-size", "t1w_voxel_size", float, "T1w voxel size, mm"),
        ("--noise", "noise", float, "multiplies all noise"),
        ("--motion", "motion", float, "multiplies head motion"),
        ("--seed", "seed", int, "gives every random number"),
        ("--processes", "processes", int, "subjects made at once; by default one a processor"),
    ):
        parser.add_argument(flag, dest=name, type=kind, default=defaults[name], help=text)
    parser.add_argument(
        "--only-images", action="store_true", help="write nothing but the images, into OUT itself"
    )
    options = vars(parser.parse_args())
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    out = options.pop("out")
    try:
        if options.pop("only_images"):
            write_images(out, options["n_images"])
        else:
            make_study(out, **options)
    except InputError as error:
        print(f"isocortex: demo study: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
