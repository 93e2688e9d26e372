"""Options of builtin models, and models whose units lie on a grid over the visual field."""

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from isocortex.errors import InputError
from isocortex.features.architectures import Architecture, Request
from isocortex.features.luminance import ContrastEnergy


def _key(request: Request) -> str:
    return f"features.models.{request.name}.options"


PLACE = ("size", "frame_rate")
"""Parameters of builtin modules that follow from other keys of the config."""


def checked_options(
    request: Request, defaults: Mapping[str, Any], *, besides: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Return all of a model's options, the config's over the defaults.

    Options named in `besides` are allowed, and not returned.

    Raises
    ------
    InputError
        For an option that the model does not have, or a value of another type than the
        default's; numbers must be positive or, in lists and where the default is 0, not negative.
    """
    chosen = dict(defaults)
    known = [*defaults, *besides]
    for option, value in request.options.items():
        if option in besides:
            continue
        if option not in defaults:
            near = difflib.get_close_matches(option, known, n=1, cutoff=0.5)
            has = ", ".join(known) or "none"
            hint = f"did you mean {near[0]}?" if near else f"its options are: {has}"
            raise InputError(f"unknown option {option!r} in {_key(request)}: {hint}")
        problem = _mismatch(value, defaults[option])
        if problem:
            raise InputError(f"{_key(request)}.{option} is {value!r}: write {problem}")
        chosen[option] = tuple(value) if isinstance(value, list) else value
    return chosen


def _mismatch(value: Any, default: Any) -> str:
    """Say what an option should be where its value is not of the default's kind."""

    def number(x: Any, *, least: float = 0.0) -> bool:
        return isinstance(x, int | float) and not isinstance(x, bool) and x >= least

    if isinstance(default, bool):
        return "" if isinstance(value, bool) else "true or false"
    if isinstance(default, int):
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        return "" if whole else "a whole number from 1 on"
    if isinstance(default, float):
        fits = number(value) and (value > 0 or default == 0)
        return "" if fits else "a positive number" if default else "a number from 0 on"
    if isinstance(default, tuple):
        fits = isinstance(value, list | tuple) and len(value) > 0 and all(map(number, value))
        return "" if fits else "a list of numbers from 0 on"
    return "" if isinstance(value, str) else "a word"


def _place(request: Request, cells: int) -> dict[str, Any]:
    """Where the centres of a grid's cells are: origin at the image's centre, y upwards.

    In degrees of visual angle where the option `field_of_view` is given (one number, or width
    and height), else in shares of the image's side.
    """
    told = request.options.get("field_of_view")
    sides = told if isinstance(told, list | tuple) else [1.0 if told is None else told] * 2
    if len(sides) != 2 or any(_mismatch(side, 1.0) for side in sides):
        raise InputError(
            f"{_key(request)}.field_of_view is {told!r}: write the degrees that the image "
            "spans, or its width and height"
        )
    centres = [(cell + 0.5) / cells - 0.5 for cell in range(cells)]
    return {
        "position_unit": "share of the side" if told is None else "degrees",
        "column_x": [round(centre * sides[0], 6) for centre in centres],
        "row_y": [round(-centre * sides[1], 6) for centre in centres],
    }


CLIP_RATE = 15.0
"""Frames a second that movie models are shown where the config says none."""


def _clip_rate(request: Request) -> float:
    """Frames a second of a movie model's clips."""
    length, frames = request.sampling.length, request.sampling.frames
    if length is None and frames is not None:
        raise InputError(
            f"features.models.{request.name}.sampling has frames and neither window nor rate, so "
            "the frames' rate would differ between movies: set window, or leave out frames"
        )
    if length is None:
        return CLIP_RATE
    return request.sampling.frames_of(length, CLIP_RATE) / length


def gridded(
    kind: type[nn.Module], *, size: int, layers: tuple[str, ...], takes: str = "image"
) -> Callable[[Request], Architecture]:
    """Entry of a module without weights whose units lie on a grid over the visual field.

    The module's keyword parameters are the model's options.
    """
    parameters = inspect.signature(kind).parameters
    defaults = {key: p.default for key, p in parameters.items() if key not in PLACE}

    def make(request: Request) -> Architecture:
        options = checked_options(request, defaults, besides=("field_of_view",))
        side = request.size or size
        rate = _clip_rate(request) if takes == "movie" else 1.0
        given = {"size": side, "frame_rate": rate}
        try:
            module = kind(**options, **{key: given[key] for key in PLACE if key in parameters})
        except ValueError as error:
            raise InputError(f"{_key(request)}: {error}") from error
        told = {}
        if hasattr(module, "frequencies"):
            told = {"cycles_per_image": [float(value) for value in module.frequencies]}
        named = {key: list(v) if isinstance(v, tuple) else v for key, v in options.items()}
        # One frame has no flicker.
        frames = request.sampling.frames_of(request.sampling.length or 1.0, CLIP_RATE)
        still = kind is ContrastEnergy and frames == 1
        return Architecture(
            module,
            side,
            layers=("contrast",) if still else layers,
            takes=takes,
            frame_rate=rate,
            attrs={"options": named}
            | told
            | _place(request, options.get("grid") or options["blocks"]),
        )

    return make


def without_options(make: Callable[[Request], Architecture]) -> Callable[[Request], Architecture]:
    """Entry of a model that has no options: any is refused."""

    def checked(request: Request) -> Architecture:
        checked_options(request, {})
        return make(request)

    return checked
