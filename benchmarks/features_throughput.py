"""Features of many layers: into one store, against a plain loop that saves a file a layer."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.measure import CORES, Disagreement, side_by_side
from isocortex import store
from isocortex.device import select_device
from isocortex.features import build_architecture, extract_features, load_images

CONVOLUTIONS = ["conv1", "layer?.?.conv?", "layer?.?.downsample.0"]
BLOCKS = ["maxpool", "layer?.?", "avgpool", "fc"]


def plain_loop(
    module: torch.nn.Module,
    paths: list[Path],
    layers: list[str],
    folder: Path,
    *,
    load: Any,
    batch_size: int,
    device: str,
) -> None:
    """Read layers with hooks, batch by batch, and save an .npy of each at the end."""
    kept: dict[str, list[np.ndarray]] = {layer: [] for layer in layers}
    modules = dict(module.named_modules())

    def keep(layer: str) -> Any:
        # A copy, as operations in place follow
        return lambda _m, _i, output: kept[layer].append(
            output.detach().to("cpu", copy=True).numpy()
        )

    handles = [modules[layer].register_forward_hook(keep(layer)) for layer in layers]
    with torch.no_grad():
        for first in range(0, len(paths), batch_size):
            module(load(paths[first : first + batch_size]).to(device))
    for handle in handles:
        handle.remove()
    for layer, parts in kept.items():
        np.save(folder / f"{layer}.npy", np.concatenate(parts))


def run(*, small: bool = False) -> dict[str, Any]:
    """ResNet-50: all 53 convolutions, all 16 blocks, and what is before and behind them."""
    architecture, side, n = ("resnet18", 64, 5) if small else ("resnet50", 224, 32)
    device = select_device("auto", key="device").type
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        paths = [folder / f"{index:03d}.jpg" for index in range(n)]
        for path in paths:
            coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
            coarse.resize((500, 375), Image.Resampling.BICUBIC).save(path)
        made = build_architecture(
            "net", source="torchvision", architecture=architecture, seed=1, image_size=side
        )

        def load(some: list[Path]) -> torch.Tensor:
            return load_images(some, size=side, mean=made.mean, std=made.std)

        def ours() -> Path:
            extract_features(
                stimuli=paths,
                stimulus_ids=[path.name for path in paths],
                out=folder / "ours.zarr",
                model="net",
                source="torchvision",
                architecture=architecture,
                seed=1,
                image_size=side,
                layers=[*CONVOLUTIONS, *BLOCKS],
                threads=CORES,
            )
            return folder / "ours.zarr"

        def theirs() -> Path:
            out = folder / "theirs"
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            network = build_architecture(
                "net", source="torchvision", architecture=architecture, seed=1, image_size=side
            ).module.to(device)
            layers = store.groups(folder / "ours.zarr")
            plain_loop(network, paths, layers, out, load=load, batch_size=8, device=device)
            return out

        def difference(store_path: Path, arrays: Path) -> float:
            """Largest difference, in units of the layer's largest response."""
            gaps = []
            for layer in store.groups(store_path):
                plain = np.load(arrays / f"{layer}.npy")
                stored = store.open(store_path, "features", group=layer)["activation"].values
                if stored.shape != plain.shape or not np.isfinite(stored).all():
                    raise Disagreement(f"layer {layer} has other shapes or is not finite")
                gaps.append(float(np.abs(stored - plain).max() / np.abs(plain).max()))
            return max(gaps)

        def note(store_path: Path, _arrays: Path) -> str:
            size = sum(file.stat().st_size for file in store_path.rglob("*") if file.is_file())
            return (
                f"{len(store.groups(store_path))} layers of {architecture}, {n} images of {side} "
                f"pixels, {size / 2**20:.0f} MiB of features, against a loop with hooks and an "
                f".npy a layer, on {device}; differences in units of a layer's largest response"
            )

        return side_by_side(
            ours, theirs, difference=difference, tolerance=1e-4, package="torch", note=note
        )
