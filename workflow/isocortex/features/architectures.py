"""Models by name: built in, torchvision, timm, transformers; from the hub, a file or a seed."""

import difflib
import hashlib
import importlib.util
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from isocortex.errors import InputError
from isocortex.features.samples import Sampling

logger = logging.getLogger(__name__)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_KEPT_LIBRARIES: list[Any] = []  # operator schemas live as long as the object that defined them


@dataclass(frozen=True)
class Architecture:
    """A model in evaluation mode and what its input has to be.

    Parameters
    ----------
    module
        The network.
    image_size
        Side of its input, pixels; 0 of a model that takes no images.
    mean, std
        The normalisation of red, green and blue that it was made for.
    layers
        Names of the submodules that are read when the config names none.
    fit, resampling
        How images are brought to that size, see `load_images`.
    takes
        What one sample is: `image`, a `movie`'s clip, or a `text`, see `samples_of`.
    frame_rate
        Frames a second that it was made for, where it takes movies; of an image model, how many
        frames of a movie it is shown.
    tokenize
        For models that take text: returns the module's named inputs of a list of texts (see
        `isocortex.features.text.Text`), and which tokens count, shape (n, token), bool.
    call
        Runs the module on what was loaded (texts: tokenized); None: the module itself.
    origin
        A digest of what the weights' digest does not hold: a configuration, a tokenizer, a
        user's code.
    attrs
        What the store of its features says besides: a builtin's options, its grid's positions.
    """

    module: nn.Module
    image_size: int = 0
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    layers: tuple[str, ...] = ()
    fit: str = "crop"
    resampling: str = "bicubic"
    takes: str = "image"
    frame_rate: float = 1.0
    tokenize: Callable[[Sequence[Any]], tuple[Mapping[str, Any], torch.Tensor]] | None = None
    call: Callable[[Any], Any] | None = None
    origin: str = ""
    attrs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    """What the config says of a model.

    Parameters
    ----------
    name
        The model's key in the config, for messages.
    architecture, weights, seed, tower, tokenizer, folder
        See `build_architecture`.
    size
        Side of the input, pixels; None: the model's own.
    options
        A builtin's own, see docs/stimuli.md.
    sampling
        How movies are cut, which sets the rate of the frames of builtins that take movies.
    """

    name: str
    architecture: str = ""
    weights: str = "none"
    seed: int = 0
    size: int | None = None
    tower: str = "image"
    tokenizer: str | None = None
    folder: str = "."
    options: Mapping[str, Any] = field(default_factory=dict)
    sampling: Sampling = field(default_factory=Sampling)

    @property
    def hub(self) -> bool:
        """Whether its weights come from a hub."""
        return self.weights == "hub"


def import_torchvision() -> ModuleType:
    """Import torchvision, also where its compiled operators do not fit the installed torch.

    Notes
    -----
    torchvision's wheel from PyPI is linked against CUDA. Beside a CPU-only torch its library
    cannot be loaded, and the import then fails with "operator torchvision::nms does not exist",
    because torchvision describes the output shapes of two operators without asking whether they
    are there. Declaring these two lets the import pass. The architectures, pure torch, work; box
    operators of detection models raise when called. timm and transformers import torchvision,
    so call this before either.
    """
    found = importlib.util.find_spec("torchvision")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("torchvision is not installed: install requirements.txt")
    if not _KEPT_LIBRARIES and not hasattr(torch.ops.torchvision, "nms"):
        try:
            torch.ops.load_library(str(Path(found.submodule_search_locations[0]) / "_C.so"))
        except (OSError, ImportError):
            library = torch.library.Library("torchvision", "DEF")
            for name in ("nms", "qnms"):
                library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            _KEPT_LIBRARIES.append(library)
            logger.info("torchvision without its compiled operators: they do not fit this torch")
    import torchvision

    return torchvision


def weights_digest(module: nn.Module) -> str:
    """SHA-256 (hex) of all parameters and buffers: names, shapes and bytes."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        array = value.detach().cpu().contiguous()
        digest.update(f"{name} {array.dtype} {tuple(array.shape)}\n".encode())
        digest.update(array.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def default_layers(module: nn.Module) -> tuple[str, ...]:
    """Names of a network's stages, for when the config names no layers.

    `layer1`, `layer2` ... where the network has them (ResNets); otherwise the members of the
    longest of its outermost lists of at least three modules (`features.*` of AlexNet and VGG,
    `blocks.*`, `encoder.layers.*` or `layers.*` of transformers); otherwise its children.
    """
    children = [name for name, _ in module.named_children()]
    stages = [name for name in children if name.startswith("layer") and name[5:].isdigit()]
    if len(stages) > 1:
        return tuple(stages)
    lists = [
        (name.count("."), -len(part), name, part)
        for name, part in module.named_modules()
        if isinstance(part, nn.ModuleList | nn.Sequential) and len(part) >= 3
    ]
    if lists:
        _, _, name, part = min(lists, key=lambda entry: entry[:3])
        return tuple(f"{name}.{child}" if name else child for child, _ in part.named_children())
    return tuple(children)


def unknown_architecture(request: Request, known: Sequence[str], *, source: str) -> InputError:
    """The error that names architectures with a name close to the one asked for."""
    small = {entry.lower(): entry for entry in known}
    close = difflib.get_close_matches(request.architecture.lower(), small, n=3, cutoff=0.5)
    hint = f"there are {len(known)}, see its documentation"
    if close:
        hint = f"did you mean {' or '.join(small[entry] for entry in close)}?"
    return InputError(
        f"unknown architecture {request.architecture!r} of {source} in "
        f"features.models.{request.name}.architecture: {hint}"
    )


def hub_error(request: Request, error: Exception) -> InputError:
    """The error of weights that cannot be had; it names the local way."""
    reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
    key = f"features.models.{request.name}.weights"
    if not request.hub:
        return InputError(
            f"{request.weights} cannot be read ({type(error).__name__}: {reason}) in {key}: give "
            "a folder that save_pretrained wrote"
        )
    return InputError(
        f"weights of {request.architecture} cannot be had from the hub ({type(error).__name__}: "
        f"{reason}) in {key}: give the path of a checkpoint on disk (of transformers: of a folder "
        "that save_pretrained wrote) instead of 'hub'"
    )


def _builtin(request: Request) -> Architecture:
    from isocortex.features.builtins import BUILTINS  # which imports this module

    if request.architecture not in BUILTINS:
        raise unknown_architecture(request, list(BUILTINS), source="builtin")
    if request.hub:
        raise InputError(
            f"builtin {request.architecture} has no weights on a hub in "
            f"features.models.{request.name}.weights: write 'none' or the path of a checkpoint"
        )
    return BUILTINS[request.architecture](request)


def _torchvision(request: Request) -> Architecture:
    models = import_torchvision().models
    known = models.list_models(module=models)
    if request.architecture not in known:
        raise unknown_architecture(request, known, source="torchvision.models")
    weights = models.get_model_weights(request.architecture).DEFAULT
    try:
        module = models.get_model(request.architecture, weights=weights if request.hub else None)
    except (OSError, RuntimeError) as error:
        if not request.hub:
            raise
        raise hub_error(request, error) from error
    transforms = weights.transforms()
    return Architecture(
        module, transforms.crop_size[0], tuple(transforms.mean), tuple(transforms.std)
    )


def _timm(request: Request) -> Architecture:
    import_torchvision()
    import timm

    if not timm.is_model(request.architecture):
        raise unknown_architecture(request, timm.list_models(), source="timm")
    try:
        module = timm.create_model(request.architecture, pretrained=request.hub)
    except Exception as error:
        if not request.hub:
            raise
        raise hub_error(request, error) from error
    data = timm.data.resolve_model_data_config(module)
    return Architecture(module, data["input_size"][-1], tuple(data["mean"]), tuple(data["std"]))


def _transformers(request: Request) -> Architecture:
    from isocortex.features.transformers_models import transformers_model

    return transformers_model(request)


def _python(request: Request) -> Architecture:
    from isocortex.features.user_models import user_model

    return user_model(request)


_SOURCES: dict[str, Callable[[Request], Architecture]] = {
    "builtin": _builtin,
    "torchvision": _torchvision,
    "timm": _timm,
    "transformers": _transformers,
    "python": _python,
}


def _read_checkpoint(name: str, path: Path) -> Mapping[str, torch.Tensor]:
    """Read a state dict, without its wrappings (`state_dict`, `model`, `module.`)."""
    key = f"features.models.{name}.weights"
    if not path.is_file():
        raise InputError(f"no checkpoint {path} in {key}: write 'hub', 'none' or an existing file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0][:120]
        raise InputError(
            f"unreadable checkpoint {path} ({type(error).__name__}: {reason}) in {key}: "
            "save the model's state_dict with torch.save or as safetensors"
        ) from error
    for wrapping in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapping), Mapping):
            state = state[wrapping]
    if not isinstance(state, Mapping) or not all(torch.is_tensor(v) for v in state.values()):
        raise InputError(f"{path} holds no state_dict in {key}: save model.state_dict()")
    if state and all(entry.startswith("module.") for entry in state):
        state = {entry.removeprefix("module."): value for entry, value in state.items()}
    return state


def _load_checkpoint(name: str, module: nn.Module, path: Path) -> None:
    state = _read_checkpoint(name, path)
    own = module.state_dict()
    # Checkpoints from before this counter existed are complete without it: it only matters in
    # training.
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in own]
    shapes = [k for k in state if k in own and state[k].shape != own[k].shape]
    problems = [
        f"{len(keys)} {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for what, keys in (
            ("missing", missing),
            ("unknown", unexpected),
            ("of another shape", shapes),
        )
        if keys
    ]
    if problems:
        raise InputError(
            f"checkpoint {path} does not fit the architecture, keys: {'; '.join(problems)} in "
            f"features.models.{name}: name the architecture that it was saved from"
        )
    module.load_state_dict(state, strict=False)


def build_architecture(
    name: str,
    *,
    source: str = "builtin",
    architecture: str,
    weights: str = "none",
    seed: int = 0,
    image_size: int | None = None,
    tower: str = "image",
    tokenizer: str | None = None,
    folder: str = ".",
    options: Mapping[str, Any] | None = None,
    sampling: Sampling | None = None,
) -> Architecture:
    """Make a model ready for reading its layers.

    Parameters
    ----------
    name
        The model's key in the config, for messages.
    source
        `builtin`, `torchvision`, `timm`, `transformers` or `python`.
    architecture
        Its name there: `resnet18`, `vit_tiny_patch16_224`, `ViTModel`; on the transformers hub
        the repository, `google/vit-base-patch16-224`; of builtin a key of `BUILTINS`; of python
        `package.module:function`, see `user_model`.
    weights
        `hub`: pretrained; `none`: untrained, from `seed`; else a checkpoint's path: a state dict
        (.pt, .pth, .th, .safetensors), possibly within `state_dict` and with `module.` prefixes;
        of transformers also a folder that `save_pretrained` wrote.
    seed
        Of an untrained model's weights.
    image_size
        Side of the input, pixels; None: the architecture's own.
    tower
        `image` or `text`, of transformers models with both.
    tokenizer
        Of transformers text models: a folder or a repository of the hub; None: the weights' own.
    folder
        Of python: where packages are looked for that are not installed.
    options, sampling
        See `Request`.

    Raises
    ------
    InputError
        Where the name is unknown, the hub out of reach, or the checkpoint does not fit.
    """
    if source not in _SOURCES:
        raise InputError(
            f"unknown source {source!r} in features.models.{name}.source: "
            f"write one of {', '.join(_SOURCES)}"
        )
    if options and source != "builtin":
        raise InputError(
            f"features.models.{name}.options are for builtin models, and its source is {source}: "
            "remove them"
        )
    request = Request(
        name,
        architecture,
        weights,
        seed,
        image_size,
        tower,
        tokenizer,
        folder,
        options or {},
        sampling or Sampling(),
    )
    # The global generator is what all libraries draw weights from; the caller's is kept.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = _SOURCES[source](request)
    if weights not in ("hub", "none") and not (source == "transformers" and Path(weights).is_dir()):
        _load_checkpoint(name, made.module, Path(weights))
    module = made.module.eval().requires_grad_(False)
    return replace(
        made,
        module=module,
        image_size=(image_size or made.image_size) if made.image_size else 0,
        layers=made.layers or default_layers(module),
    )
