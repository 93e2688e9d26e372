"""Features: one pass equals a plain forward, energy has its closed form, order plays no part."""

import json
import math
import subprocess
import sys
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from isocortex import features, store
from isocortex.errors import InputError
from isocortex.features.convnet import preprocess_images
from isocortex.features.layers import pool_activation
from isocortex.features.samples import Batch

WORKFLOW = Path(__file__).parents[2] / "workflow"
CPU = torch.device("cpu")


@pytest.fixture
def images(tmp_path):
    """Seven images of several sizes and modes."""
    rng = np.random.default_rng(0)
    paths = []
    for index, mode in enumerate(["RGB", "RGB", "L", "RGBA", "RGB", "LA", "RGB"]):
        pixels = rng.integers(0, 256, (50 + 9 * index, 70, 4), dtype=np.uint8)
        image = Image.fromarray(pixels, "RGBA").convert(mode)
        paths.append(tmp_path / f"image{index}.png")
        image.save(paths[-1])
    return paths


def extract(tmp_path, paths, *, name="out", model="net", ids=None, **options):
    out = tmp_path / f"{name}.zarr"
    ids = ids or [path.name for path in paths]
    features.extract_features(stimuli=paths, stimulus_ids=ids, out=out, model=model, **options)
    return out


def read(path, layer):
    dataset = store.open(path, "features", group=layer)
    return dataset["activation"].values, list(dataset["stimulus"].values), dataset.attrs


def collect(module, inputs, layers, **options):
    """Activations of several layers, batches of three inputs."""
    network = features.Network(features.Architecture(module), layers, device=CPU, **options)
    network.probe(Batch(inputs[:1], (1,)))
    got = {layer: [] for layer in network.shapes}
    for first in range(0, len(inputs), 3):
        part = inputs[first : first + 3]
        for layer, values in network.run(Batch(part, (1,) * len(part))).items():
            got[layer].append(values.copy())
    return {layer: np.concatenate(parts) for layer, parts in got.items()}


def test_one_pass_equals_plain_forward_also_with_operations_in_place():
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.ReLU(inplace=True), nn.Conv2d(5, 4, 3), nn.ReLU(inplace=True)
    ).eval()
    inputs = torch.randn(7, 3, 12, 12)
    got = collect(module, inputs, ["0", "1", "3"])
    with torch.inference_mode():
        first = nn.functional.conv2d(inputs, module[0].weight, module[0].bias)
        last = module(inputs)
    # The convolution's negative values are there although the next module overwrote them
    assert first.min() < 0
    np.testing.assert_allclose(got["0"], first.numpy(), atol=1e-6)
    np.testing.assert_allclose(got["1"], first.clamp(min=0).numpy(), atol=1e-6)
    np.testing.assert_allclose(got["3"], last.numpy(), atol=1e-6)


def test_hooks_leave_no_trace():
    module = nn.Sequential(nn.Conv2d(3, 2, 1)).eval()
    collect(module, torch.randn(2, 3, 4, 4), ["0"])
    assert not module[0]._forward_hooks


@pytest.mark.parametrize(("pool", "shape"), [("mean", (2, 5)), ("grid", (2, 5, 4, 3))])
def test_pooling(pool, shape):
    activation = torch.arange(2 * 5 * 8 * 3, dtype=torch.float32).reshape(2, 5, 8, 3)
    pooled = pool_activation(activation, pool=pool, grid=4)
    assert pooled.shape == shape
    expected = (
        activation.mean((2, 3)) if pool == "mean" else activation.reshape(2, 5, 4, 2, 3).mean(3)
    )
    torch.testing.assert_close(pooled, expected)
    tokens = torch.randn(2, 6, 4)
    expected = tokens.mean(1) if pool == "mean" else tokens
    torch.testing.assert_close(pool_activation(tokens, pool=pool, grid=4), expected)


def grating(size, frequency, angle, phase, amplitude=0.4):
    """RGB grating, luminance changes along the angle (radians, towards lower rows)."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    wave = torch.cos(2 * math.pi * frequency * (x * math.cos(angle) + y * math.sin(angle)) + phase)
    return (0.5 + amplitude * wave).expand(3, size, size)


@pytest.mark.parametrize("scale", [0, 1, 2, 3])
def test_gabor_prefers_its_own_orientation_and_frequency_at_every_phase(scale):
    model = features.GaborEnergy(size=128)
    frequency = 0.25 / 2**scale
    for channel in range(8):
        angle = math.pi * channel / 8
        batch = torch.stack([grating(128, frequency, angle, phase) for phase in (0, 1, 2, 3)])
        energy = model(batch)
        inner = energy[:, :, 3:5, 3:5].mean((2, 3))  # away from the reflected border
        assert (inner.argmax(1) == scale * 8 + channel).all()
        # Closed form: a matched grating gives its amplitude, whatever the phase
        torch.testing.assert_close(
            inner[:, scale * 8 + channel], torch.full((4,), 0.4), atol=0.004, rtol=0
        )
        # Closed form: the next orientation responds with the height of the Gaussian tuning
        ratio = (2**1.0 - 1) / (2**1.0 + 1)
        spread = frequency * ratio / math.sqrt(2 * math.log(2))
        distance = 2 * frequency * math.sin(math.pi / 16)
        expected = 0.4 * math.exp(-(distance**2) / (2 * spread**2))
        neighbour = inner[:, scale * 8 + (channel + 1) % 8]
        torch.testing.assert_close(neighbour, torch.full((4,), expected), atol=0.006, rtol=0)


def test_gabor_ignores_uniform_images_and_scales_with_contrast():
    model = features.GaborEnergy(size=64, scales=2)
    assert model(torch.full((1, 3, 64, 64), 0.7)).abs().max() < 1e-5
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model(0.5 * image), 0.5 * model(image), atol=1e-6, rtol=1e-4)


def test_features_depend_neither_on_batch_size_nor_on_file_order(tmp_path, images):
    for architecture in ("gabor", "convnet", "resnet20-cifar"):
        options = {"model": architecture, "architecture": architecture, "seed": 3}
        one = extract(tmp_path, images, name="one", batch_size=1, **options)
        all_ = extract(tmp_path, images, name="all", batch_size=32, **options)
        back = extract(tmp_path, images[::-1], name="back", batch_size=32, **options)
        for layer in store.groups(one):
            values, ids, attrs = read(one, layer)
            assert ids == sorted(path.name for path in images)
            together = read(all_, layer)[0]
            np.testing.assert_allclose(values, together, atol=1e-5 * np.abs(together).max())
            assert attrs["layer"] == layer
        # Same inputs, same bytes, whatever the order of the files
        assert store.manifest(all_)["content"] == store.manifest(back)["content"]


def test_store_joins_by_id(tmp_path, images):
    ids = [f"z{9 - index}" for index in range(len(images))]
    path = extract(tmp_path, images, ids=ids, architecture="pixels", layers=["rgb", "grey"])
    values, stored, _ = read(path, "rgb")
    assert stored == sorted(ids)
    for stimulus, row in zip(stored, values, strict=True):
        source = images[ids.index(stimulus)]
        expected = features.load_images([source], size=32)[0].numpy()
        np.testing.assert_array_equal(row, expected)
    grey = read(path, "grey")[0]
    np.testing.assert_allclose(
        grey[:, 0], np.tensordot(values, [0.299, 0.587, 0.114], (1, 0)), atol=1e-6
    )


def test_convnet_reads_images_as_its_own_module_does(tmp_path, images):
    path = extract(tmp_path, images, architecture="convnet", seed=5)
    assert store.groups(path) == [f"layer{number}" for number in range(1, 7)]
    from isocortex.features.convnet import convnet

    network, inputs = convnet(5), preprocess_images(sorted(images))
    with torch.inference_mode():
        plain = network.layer1(inputs - 0.5)
    np.testing.assert_allclose(read(path, "layer1")[0], plain.numpy(), atol=1e-5)


def test_normalisation_and_fit(images):
    raw = features.load_images(images[:1], size=20)
    scaled = features.load_images(images[:1], size=20, mean=(0.1, 0.2, 0.3), std=(0.5, 1, 2))
    expected = (raw - torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)) / torch.tensor(
        [0.5, 1, 2]
    ).view(1, 3, 1, 1)
    torch.testing.assert_close(scaled, expected)
    with Image.open(images[0]) as image:  # 70 x 50
        square = image.convert("RGB").crop((10, 0, 60, 50)).resize((20, 20), Image.BICUBIC)
    expected = np.asarray(square) / np.float32(255)
    np.testing.assert_array_equal(raw[0].permute(1, 2, 0).numpy(), expected)


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    values = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    loaded = features.load_images([tmp_path / "deep.png"], size=16)[0, 0].numpy()
    np.testing.assert_allclose(loaded, values / 65535, atol=1 / 255)


def test_checkpoint_with_prefix_round_trips(tmp_path, images):
    torch.manual_seed(4)
    network = features.ResNet20().eval()
    state = {f"module.{key}": value for key, value in network.state_dict().items()}
    torch.save({"state_dict": state, "best_prec1": 90.0}, tmp_path / "net.th")
    path = extract(
        tmp_path,
        images,
        architecture="resnet20-cifar",
        weights=str(tmp_path / "net.th"),
        layers=["linear", "avgpool"],
    )
    values, _, attrs = read(path, "linear")
    assert attrs["weights"] == features.weights_digest(network)
    inputs = features.load_images(
        sorted(images), size=32, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )
    with torch.inference_mode():
        np.testing.assert_allclose(values, network(inputs).numpy(), atol=1e-4)


def test_option_a_shortcut():
    block = features.ResNet20().layer2[0]
    images = torch.randn(2, 16, 8, 8)
    shortcut = block.shortcut(images)
    assert shortcut.shape == (2, 32, 4, 4)
    torch.testing.assert_close(shortcut[:, 8:24], images[:, :, ::2, ::2])
    assert not shortcut[:, :8].any()
    assert not shortcut[:, 24:].any()
    assert sum(p.numel() for p in features.ResNet20().parameters()) == 269722  # 0.27 M, table 6


def test_all_cnn_c_is_the_published_network(images):
    network = features.AllConvolutional()
    assert sum(p.numel() for p in network.parameters()) == 1369738  # 1.4 M
    made = features.build_architecture("m", architecture="all-cnn-c", seed=3)
    assert made.layers == (*(f"conv{number}" for number in range(1, 10)), "avgpool")
    inputs = features.load_images(images, size=32, mean=made.mean, std=made.std)
    shapes = {}
    for name, module in made.module.named_children():
        inputs = module(inputs)
        shapes[name] = tuple(inputs.shape[1:])
    assert shapes["conv2"] == (96, 32, 32)
    assert shapes["conv3"] == (96, 16, 16)
    assert shapes["conv6"] == (192, 8, 8)
    assert shapes["conv9"] == (10, 8, 8)
    assert shapes["avgpool"] == (10, 1, 1)
    # He's initialisation: the mean square of the responses neither dies nor explodes.
    strength = float(made.module.conv8(torch.randn(4, 192, 8, 8).relu()).square().mean())
    assert 0.2 < strength < 2
    again = features.build_architecture("m", architecture="all-cnn-c", seed=3).module
    assert features.weights_digest(made.module) == features.weights_digest(again)


def test_untrained_weights_follow_the_seed_and_leave_the_generator_alone():
    torch.manual_seed(9)
    expected = torch.rand(1)
    torch.manual_seed(9)
    digests = [
        features.weights_digest(
            features.build_architecture("m", architecture="resnet20-cifar", seed=seed).module
        )
        for seed in (1, 1, 2)
    ]
    assert digests[0] == digests[1] != digests[2]
    torch.testing.assert_close(torch.rand(1), expected)


LIBRARIES = """
import sys, pathlib, tempfile, numpy as np, torch
sys.path.insert(0, {path!r})
from PIL import Image
from isocortex import features, store
pixels = np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3), dtype=np.uint8)
with tempfile.TemporaryDirectory() as folder:
    paths = [pathlib.Path(folder, name) for name in ("a.png", "b.png")]
    for path, image in zip(paths, pixels):
        Image.fromarray(image).save(path)
    for source, name in (("torchvision", "resnet18"), ("timm", "vit_tiny_patch16_224"),
                         ("transformers", "ViTModel")):
        out = pathlib.Path(folder, "out.zarr")
        features.extract_features(
            stimuli=paths, stimulus_ids=["a", "b"], out=out, model="m", source=source,
            architecture=name, seed=1, pool="mean")
        layers = store.groups(out)
        last = store.open(out, "features", group=layers[-1])["activation"].values
        assert np.isfinite(last).all() and last.std() > 0 and not np.allclose(*last)
        print(source, len(layers), layers[0], layers[-1], last.shape[1],
              store.manifest(out)["content"])
"""


def test_library_architectures_untrained_are_the_same_in_two_processes():
    script = LIBRARIES.format(path=str(WORKFLOW))
    processes = [
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    runs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert runs[0] == runs[1]
    lines = [line.split()[:5] for line in runs[0].splitlines()]
    assert lines == [
        ["torchvision", "4", "layer1", "layer4", "512"],
        ["timm", "12", "blocks.0", "blocks.11", "192"],
        ["transformers", "12", "layers.0", "layers.11", "768"],
    ]


def test_torch_is_left_as_it_was(tmp_path, images):
    before = torch.get_deterministic_debug_mode(), torch.get_num_threads()
    extract(tmp_path, images[:1], architecture="pixels", threads=before[1] + 1)
    assert (torch.get_deterministic_debug_mode(), torch.get_num_threads()) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"architecture": "gabbor"}, ["'gabbor'", "did you mean gabor", "features.models.net"]),
        ({"architecture": "convnet", "layers": ["layre3"]}, ["'layre3'", "layer3"]),
        ({"architecture": "pixels", "weights": "hub"}, ["no weights on a hub"]),
        ({"architecture": "pixels", "device": "cuda"}, ["cuda", "features.device"]),
        ({"architecture": "resnet20-cifar", "weights": "nowhere.th"}, ["no checkpoint nowhere.th"]),
        ({"architecture": "convnet", "image_size": 32}, ["convnet takes 64"]),
        ({"source": "torchvision", "architecture": "resnet19"}, ["resnet18", "torchvision"]),
        ({"source": "timm", "architecture": "vit_tiny_patch16_22"}, ["vit_tiny_patch16_224"]),
        ({"source": "transformers", "architecture": "VitModel"}, ["ViTModel"]),
        ({"source": "transformers", "architecture": "BertModel"}, ["no tokenizer"]),
        ({"source": "elsewhere", "architecture": "x"}, ["'elsewhere'", "timm"]),
    ],
)
def test_bad_models_in_one_line(tmp_path, images, options, words):
    if options.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    with pytest.raises(InputError) as error:
        extract(tmp_path, images, **options)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)
    assert not (tmp_path / "out.zarr").exists()
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_hub_out_of_reach_names_the_local_way(tmp_path, images, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    with pytest.raises(InputError, match=r"hub.*checkpoint on disk"):
        extract(tmp_path, images, source="torchvision", architecture="resnet18", weights="hub")


def test_wrong_checkpoint_names_the_keys(tmp_path, images):
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(InputError, match=r"missing \(.*conv1\.weight.*1 unknown \(fc\.weight\)"):
        extract(tmp_path, images, architecture="resnet20-cifar", weights=str(tmp_path / "other.pt"))
    (tmp_path / "text.pt").write_text("not a checkpoint")
    with pytest.raises(InputError, match=r"unreadable checkpoint .*text\.pt"):
        extract(tmp_path, images, architecture="resnet20-cifar", weights=str(tmp_path / "text.pt"))


@pytest.mark.parametrize("content", [None, b"no image", b"\x89PNG\r\n\x1a\n0000"])
def test_bad_stimulus_is_named(tmp_path, images, content):
    bad = tmp_path / "bad.png"
    if content is not None:
        bad.write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.png"):
        extract(tmp_path, [*images, bad], architecture="pixels")
    assert not (tmp_path / "out.zarr").exists()


def test_truncated_stimulus_is_named(tmp_path, images):
    half = tmp_path / "half.png"
    half.write_bytes(images[0].read_bytes()[:2000])
    with pytest.raises(InputError, match=r"unreadable stimulus .*half\.png"):
        extract(tmp_path, [half], architecture="pixels")


def test_one_id_for_two_files_is_refused(tmp_path, images):
    with pytest.raises(InputError, match=r"'same' stands for two files"):
        extract(tmp_path, images[:2], ids=["same", "same"], architecture="pixels")


def test_schema_is_closed_and_its_defaults_are_the_functions():
    schema = json.loads((WORKFLOW / "schemas/config/features.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate({"models": {"a1": {"architecture": "gabor"}}}, schema)
    for wrong in (
        {"models": {"a_b": {"architecture": "gabor"}}},
        {"models": {"a": {"architecture": "gabor", "wieghts": "hub"}}},
        {"models": {"a": {}}},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)
    model = schema["properties"]["models"]["additionalProperties"]["properties"]
    defaults = features.extract_features.__kwdefaults__
    for key, entry in {**model, **schema["properties"]}.items():
        if key in defaults and "default" in entry:
            default = defaults[key]
            if isinstance(default, tuple) or default is None:
                default = list(default or ()) or None  # an empty section is none at all
            assert (entry["default"] or None) == (default or None)
            assert entry["description"]
