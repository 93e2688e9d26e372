"""Layers of a network: which are meant, and their outputs in one pass."""

import difflib
import fnmatch
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from isocortex.errors import InputError

ALL = "all"
_PATTERN = frozenset("*?[")


def _first_tensor(output: Any) -> torch.Tensor | None:
    """The tensor of a layer's output: itself, or the first of a tuple or of a named output."""
    while not torch.is_tensor(output):
        if isinstance(output, Mapping):
            output = output.values()
        elif not isinstance(output, Sequence) or isinstance(output, str):
            return None
        output = next(iter(output), None)
    return output


def pool_activation(
    activation: torch.Tensor, *, pool: str, grid: int = 4, tokens: torch.Tensor | None = None
) -> torch.Tensor:
    """Pool one layer's activation over space (n, channel, row, column) or tokens (n, token, unit).

    Parameters
    ----------
    activation
        The layer's output.
    pool
        `none` leaves it; `mean` averages; `grid` averages over grid x grid cells where the rows
        and columns are more; `last` takes the last token. Activations without space are left
        alone.
    grid
        Cells a side.
    tokens
        Of texts: which tokens count, shape (n, token), bool. Their number differs between texts,
        so that their mean is taken unless `pool` is `last`.
    """
    if tokens is not None and activation.ndim == 3 and activation.shape[:2] == tokens.shape:
        if pool == "last":
            places = torch.arange(tokens.shape[1], device=tokens.device)
            last = torch.where(tokens, places, -1).amax(1)
            return activation[torch.arange(len(last), device=last.device), last]
        weights = tokens.to(activation.dtype)
        weights = weights / weights.sum(1, keepdim=True)
        return (activation * weights[..., None]).sum(1)
    if pool == "mean" and activation.ndim == 4:
        return activation.mean((2, 3))
    if pool == "mean" and activation.ndim == 3:
        return activation.mean(1)
    if pool == "last" and activation.ndim == 3:
        return activation[:, -1]
    if pool == "grid" and activation.ndim == 4:
        cells = (min(grid, activation.shape[2]), min(grid, activation.shape[3]))
        return nn.functional.adaptive_avg_pool2d(activation, cells)
    return activation


def match_layers(
    module: nn.Module, wanted: Sequence[str], *, name: str
) -> tuple[dict[str, nn.Module], bool]:
    """Find the submodules that names and patterns stand for.

    Parameters
    ----------
    module
        The network.
    wanted
        Names of submodules; patterns with `*`, `?` or `[...]`, in which `*` stands for any text
        without a dot and `**` for any text; `all`: every submodule without children.
    name
        The model's key in the config, for messages.

    Returns
    -------
    tuple
        Submodules by name, a pattern's in the network's order; and whether `all` was asked for,
        so that those without an output of their own are to be left out.

    Raises
    ------
    InputError
        Where nothing fits a name or a pattern; it names close ones.
    """
    modules = {key: part for key, part in module.named_modules() if key}
    found: dict[str, nn.Module] = {}
    everything = False
    for layer in wanted:
        if layer == ALL and ALL not in modules:
            everything = True
            fitting = [key for key, part in modules.items() if next(part.children(), None) is None]
            # A network of one piece is its own leaf; it has no name to read it by
        elif _PATTERN & set(layer):
            fitting = [key for key in modules if _fits(key, layer)]
        else:
            fitting = [layer] if layer in modules else []
        if not fitting:
            close = difflib.get_close_matches(layer, modules, n=3, cutoff=0.4)
            hint = f"did you mean {' or '.join(close)}?" if close else "it has no such submodule"
            raise InputError(f"unknown layer {layer!r} in features.models.{name}.layers: {hint}")
        found |= {key: modules[key] for key in fitting}
    return found, everything


def _fits(key: str, pattern: str) -> bool:
    """Whether a module's name fits a pattern, dot for dot unless there is a `**`."""
    if "**" in pattern:
        return fnmatch.fnmatchcase(key, pattern)
    parts, wanted = key.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted))


class LayerReader:
    """Reads the outputs of submodules while a network runs.

    Parameters
    ----------
    layers
        Submodules by name.
    receive
        Called as `receive(layer, output)` inside the pass, right after the layer ran: a later
        operation in place may change the output, so keep a copy.

    Notes
    -----
    A layer that runs several times in one pass is received each time; the last one counts.
    """

    def __init__(
        self, layers: Mapping[str, nn.Module], receive: Callable[[str, torch.Tensor], None]
    ) -> None:
        self._layers, self._receive = layers, receive
        self._handles: list[Any] = []

    def __enter__(self) -> None:
        for layer, part in self._layers.items():
            self._handles.append(part.register_forward_hook(self._hook(layer)))

    def __exit__(self, *_error: object) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _hook(self, layer: str) -> Callable[..., None]:
        def read(_module: nn.Module, _inputs: Any, output: Any) -> None:
            value = _first_tensor(output)
            if value is not None:
                self._receive(layer, value)

        return read


def probe_layers(
    run: Callable[[], Any],
    layers: Mapping[str, nn.Module],
    *,
    n: int,
    everything: bool,
    name: str,
) -> dict[str, torch.Tensor]:
    """Run a network once and return the layers' outputs of it, for their shapes.

    Parameters
    ----------
    run
        Runs it on `n` inputs, at least two so that a number of inputs is seen to be one.
    layers
        Submodules by name, see `match_layers`.
    n
        Number of inputs.
    everything
        Leave out layers without an output per input, and those that hand on what another layer
        gave (dropout, identity); otherwise they are an error.
    name
        The model's key in the config, for messages.

    Raises
    ------
    InputError
        Where a layer gives no output per input.
    """
    seen: dict[str, torch.Tensor] = {}
    content: dict[str, tuple[Any, ...]] = {}

    def receive(layer: str, value: torch.Tensor) -> None:
        # Versions count operations in place: the same memory after one is another output
        seen[layer] = value
        content[layer] = (value.data_ptr(), tuple(value.shape), value._version)

    with torch.no_grad(), LayerReader(layers, receive):
        run()
    kept: dict[str, torch.Tensor] = {}
    known: set[tuple[Any, ...]] = set()
    for layer in layers:
        if layer not in seen or not seen[layer].ndim or len(seen[layer]) != n:
            if everything:
                continue
            raise InputError(
                f"layer {layer!r} in features.models.{name}.layers gives no output per input in "
                "the forward pass: name another"
            )
        if everything and content[layer] in known:
            continue
        known.add(content[layer])
        kept[layer] = seen[layer]
    if not kept:
        raise InputError(
            f"features.models.{name}.layers: no layer gives an output per input: name others"
        )
    return kept
