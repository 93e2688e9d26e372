"""Models of the transformers library: vision, text, and both towers of CLIP and its like."""

import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from isocortex.errors import InputError
from isocortex.features.architectures import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Architecture,
    Request,
    hub_error,
    import_torchvision,
    unknown_architecture,
)
from isocortex.features.text import Text


def transformers_model(request: Request) -> Architecture:
    """Make a model of transformers: from its hub, a folder saved by it, or untrained.

    Raises
    ------
    InputError
        Where the name is unknown, the hub out of reach, there is no such tower, or a text model
        has no tokenizer.
    """
    import_torchvision()
    import transformers

    key = f"features.models.{request.name}"
    kind = getattr(transformers, request.architecture, None)
    saved = _saved(request)
    if saved:
        try:
            module = (kind or transformers.AutoModel).from_pretrained(saved)
        except Exception as error:
            raise hub_error(request, error) from error
    elif (Path(request.architecture) / "config.json").is_file():
        config = transformers.AutoConfig.from_pretrained(request.architecture)
        module = transformers.AutoModel.from_config(config)
    elif kind is None or getattr(kind, "config_class", None) is None:
        known = [name for name in dir(transformers) if name.endswith("Model")]
        raise unknown_architecture(request, known, source="transformers")
    else:
        module = kind(kind.config_class())
    whole = module
    if hasattr(module, "vision_model") and hasattr(module, "text_model"):
        module = module.text_model if request.tower == "text" else module.vision_model
    takes = getattr(module, "main_input_name", "")
    if request.tower == "text" and takes != "input_ids":
        raise InputError(
            f"{request.architecture} has no text tower in {key}.tower: write image, or name a "
            "model of text"
        )
    if takes == "pixel_values":
        return _vision(module, saved)
    if takes == "input_ids":
        return _text(module, whole, request, saved)
    raise InputError(
        f"{request.architecture} takes neither images nor texts but {takes or 'nothing known'} in "
        f"{key}.architecture: name a model of vision or text"
    )


def _saved(request: Request) -> str:
    """Where pretrained weights are: a repository of the hub, a folder, or nowhere (empty)."""
    if request.weights == "hub":
        return request.architecture
    return request.weights if Path(request.weights).is_dir() else ""


def _vision(module: nn.Module, saved: str) -> Architecture:
    import transformers

    mean, std = IMAGENET_MEAN, IMAGENET_STD
    if saved and not (Path(saved).is_dir() and not _has_processor(Path(saved))):
        processor = transformers.AutoImageProcessor.from_pretrained(saved)
        mean, std = tuple(processor.image_mean), tuple(processor.image_std)
    own = getattr(module.config, "image_size", None)
    movie = hasattr(module.config, "num_frames")
    return Architecture(
        module,
        own if isinstance(own, int) else 224,
        mean,
        std,
        takes="movie" if movie else "image",
        origin=_origin(module),
    )


def _origin(module: nn.Module, *parts: str) -> str:
    """A digest of what weights do not tell: activation functions, heads, and further parts."""
    config = module.config.to_json_string(use_diff=False)
    return hashlib.sha256("\0".join([config, *parts]).encode()).hexdigest()


def _has_processor(folder: Path) -> bool:
    return any(folder.glob("*processor_config.json"))


def _text(module: nn.Module, whole: nn.Module, request: Request, saved: str) -> Architecture:
    import transformers

    key = f"features.models.{request.name}.tokenizer"
    folder = request.architecture if Path(request.architecture).is_dir() else ""
    where = request.tokenizer or saved or folder
    if not where:
        raise InputError(
            f"{request.architecture} takes texts and has no tokenizer in {key}: name a folder "
            "that holds one, or a repository of the hub"
        )
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(where)
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0][:120]
        raise InputError(
            f"tokenizer of {where} cannot be had ({type(error).__name__}: {reason}) in {key}: give "
            "the path of a folder that holds it (tokenizer.json)"
        ) from error
    if not tokenizer.is_fast:
        raise InputError(
            f"tokenizer of {where} does not tell where its tokens are in the text in {key}: give "
            "one with a tokenizer.json"
        )
    if tokenizer.pad_token is None:
        # Padding is masked, so that any token will do
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    vocabulary = getattr(module.config, "vocab_size", len(tokenizer))
    if len(tokenizer) > vocabulary:
        raise InputError(
            f"tokenizer of {where} has {len(tokenizer)} tokens and {request.architecture} "
            f"{vocabulary} in {key}: give the model's own"
        )
    longest = min(
        tokenizer.model_max_length, getattr(module.config, "max_position_embeddings", 1 << 30)
    )
    backend = tokenizer.backend_tokenizer.to_str()
    return Architecture(
        module,
        takes="text",
        tokenize=_tokenize(tokenizer, longest, inspect.signature(module.forward).parameters),
        origin=_origin(module, backend, str(longest)),
    )


def _tokenize(
    tokenizer: Any, longest: int, accepted: Mapping[str, Any]
) -> Callable[[Sequence[Text]], tuple[dict[str, torch.Tensor], torch.Tensor]]:
    """Return what makes texts to a model's inputs, and tells which tokens count."""

    def tokenize(texts: Sequence[Text]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        # Of a context that is too long its beginning goes, of a caption its end
        tokenizer.truncation_side = "left" if any(text.start for text in texts) else "right"
        tokenizer.padding_side = "right"
        encoded = tokenizer(
            [text.text for text in texts],
            padding=True,
            truncation=longest < 1 << 30,
            max_length=longest if longest < 1 << 30 else None,
            return_offsets_mapping=True,
            return_attention_mask=True,
            return_tensors="pt",
        )
        first, last = encoded.pop("offset_mapping").unbind(-1)
        starts = torch.tensor([text.start for text in texts])[:, None]
        # Special tokens cover no characters
        tokens = (last > first) & (last > starts) & encoded["attention_mask"].bool()
        if not bool(tokens.any(1).all()):
            empty = texts[int(tokens.any(1).to(torch.int8).argmin())]
            raise InputError(
                f"the tokenizer has no token for {empty.text[empty.start :][:40]!r}: correct the "
                "text, or take another model"
            )
        return {name: value for name, value in encoded.items() if name in accepted}, tokens

    return tokenize
