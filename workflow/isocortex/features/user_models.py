"""Models that a user's own function makes."""

import importlib
import inspect
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

from torch import nn

from isocortex.errors import InputError
from isocortex.features.architectures import Architecture, Request
from isocortex.provenance import digest_files, function_files

OPTIONS = frozenset(part.name for part in fields(Architecture)) - {"module", "origin", "call"}


def user_model(request: Request) -> Architecture:
    """Call the function that `package.module:function` names.

    It returns a module, or a module and a mapping with any of `image_size`, `mean`, `std`,
    `layers`, `fit`, `resampling`, `takes`, `frame_rate`, `tokenize` (see `Architecture`). A
    parameter `seed` is given the config's; torch's generator is seeded in any case.

    Raises
    ------
    InputError
        Where there is no such function, or it returns something else.
    """
    key = f"features.models.{request.name}.architecture"
    files = function_files(request.architecture, request.folder, key=key)
    package, _, name = request.architecture.partition(":")
    before = list(sys.path)
    sys.path.append(str(Path(request.folder).resolve()))
    try:
        function = getattr(importlib.import_module(package), name, None)
        if not callable(function):
            raise InputError(f"{package} has no function {name!r} in {key}: correct the name")
        seeded = "seed" in inspect.signature(function).parameters
        made = function(seed=request.seed) if seeded else function()
    except ImportError as error:
        raise InputError(f"{package} in {key} cannot be imported: {error}") from error
    finally:
        sys.path[:] = before
    module, options = made if isinstance(made, tuple) and len(made) == 2 else (made, {})
    if not isinstance(module, nn.Module) or not isinstance(options, Mapping):
        raise InputError(
            f"{request.architecture} in {key} returns {type(module).__name__}: return a "
            "torch.nn.Module, or one and a mapping of its preprocessing"
        )
    if unknown := sorted(set(options) - OPTIONS):
        raise InputError(
            f"{request.architecture} in {key} returns the option {unknown[0]!r}: known are "
            f"{', '.join(sorted(OPTIONS))}"
        )
    values = {
        name: tuple(value) if name in ("mean", "std", "layers") else value
        for name, value in options.items()
    }
    return Architecture(
        module,
        **{"image_size": 224, **values},
        origin=digest_files(files),
    )
