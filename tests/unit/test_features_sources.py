"""Where models come from: own functions, text models and towers, arrays on disk."""

import h5py
import numpy as np
import pytest
import torch
import xarray as xr
from PIL import Image
from torch import nn

from isocortex import features, provenance, store
from isocortex.errors import InputError
from isocortex.feature_arrays import open_arrays
from isocortex.features.builtins import BUILTINS as MADE
from isocortex.features.text import Text
from isocortex.study import BUILTINS, check_inputs, load_study, model_files

CAPTIONS = {
    "a.txt": "a dog runs on the beach",
    "b.txt": "two cats",
    "c.txt": "the dog and the cat are in a house with a red door",
}


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "images"
    folder.mkdir()
    paths = [folder / f"{name}.png" for name in "cabd"]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (30, 30, 3), dtype=np.uint8)).save(path)
    return paths


@pytest.fixture
def captions(tmp_path):
    folder = tmp_path / "captions"
    folder.mkdir()
    for name, text in CAPTIONS.items():
        (folder / name).write_text(text)
    return [folder / name for name in CAPTIONS]


def extract(tmp_path, paths, *, name="out", **options):
    out = tmp_path / f"{name}.zarr"
    ids = [path.name for path in paths]
    features.extract_features(stimuli=paths, stimulus_ids=ids, out=out, model="net", **options)
    return out


def read(path, layer):
    dataset = store.open(path, "features", group=layer)
    return dataset["activation"].values, list(dataset["stimulus"].values), dataset.attrs


OWN = """
import torch
from mymodels{number}.parts import WIDTH
def make(seed):
    net = torch.nn.Sequential(torch.nn.Conv2d(3, WIDTH, 3), torch.nn.ReLU())
    return net, {{"image_size": 20, "mean": [0.5] * 3, "layers": ["1"], "fit": "stretch"}}
def plain():
    return torch.nn.Sequential(torch.nn.Conv2d(3, WIDTH, 3))
def wrong():
    return "a network"
def strange():
    return torch.nn.Identity(), {{"colour": "red"}}
"""


def write_package(folder, number, width=4):
    """A package of its own for each test: Python keeps what was imported."""
    package = folder / f"mymodels{number}"
    package.mkdir(exist_ok=True)
    (package / "__init__.py").write_text(OWN.format(number=number))
    (package / "parts.py").write_text(f"WIDTH = {width}\n")
    return f"mymodels{number}"


def test_a_function_of_ones_own_makes_the_model(tmp_path, images):
    package = write_package(tmp_path, 1)
    out = extract(
        tmp_path,
        images,
        source="python",
        architecture=f"{package}:make",
        folder=str(tmp_path),
        seed=3,
    )
    values, ids, attrs = read(out, "1")
    assert ids == ["a.png", "b.png", "c.png", "d.png"]
    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    inputs = features.load_images(sorted(images), size=20, fit="stretch", mean=[0.5] * 3)
    with torch.inference_mode():
        np.testing.assert_allclose(values, net(inputs).numpy(), atol=1e-6)
    assert attrs["weights"] == features.weights_digest(net)
    # Weights of a checkpoint fit into it
    torch.save({key: value * 2 for key, value in net.state_dict().items()}, tmp_path / "w.pt")
    double = extract(
        tmp_path,
        images,
        name="double",
        source="python",
        architecture=f"{package}:make",
        folder=str(tmp_path),
        weights=str(tmp_path / "w.pt"),
    )
    np.testing.assert_allclose(read(double, "1")[0], 2 * values, atol=1e-5)


def test_a_changed_function_is_another_model(tmp_path):
    package = write_package(tmp_path, 2)
    model = {"source": "python", "architecture": f"{package}:plain", "folder": str(tmp_path)}
    files = model_files("net", model)
    assert [file.name for file in files] == ["__init__.py", "parts.py"]
    before = [provenance.fingerprint(file) for file in files]
    made = features.build_architecture("net", **model)
    write_package(tmp_path, 2, width=5)
    assert [provenance.fingerprint(file) for file in files] != before
    # What was extracted of the old one is not gone on with, either
    assert provenance.digest_files(files) != made.origin


@pytest.mark.parametrize(
    ("architecture", "words"),
    [
        ("mymodels3.make", "write package.module:function"),
        ("nowhere:make", "'nowhere', which is not on PYTHONPATH"),
        ("mymodels3:mak", "no function 'mak'"),
        ("mymodels3:wrong", "returns str: return a torch.nn.Module"),
        ("mymodels3:strange", "option 'colour'"),
        ("mymodels3.absent:make", "cannot be imported"),
    ],
)
def test_wrong_functions_in_one_line(tmp_path, architecture, words):
    write_package(tmp_path, 3)
    with pytest.raises(InputError, match=words) as error:
        features.build_architecture(
            "net", source="python", architecture=architecture, folder=str(tmp_path)
        )
    assert "\n" not in str(error.value)
    assert "features.models.net.architecture" in str(error.value)


def write_tokenizer(folder, *, special=True):
    """A tokenizer of the captions' words, as transformers saves one."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = sorted({word for text in CAPTIONS.values() for word in text.split()})
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if special:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A", special_tokens=[("[CLS]", 2)]
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=16
    )
    fast.save_pretrained(folder)
    return vocabulary


@pytest.fixture
def bert(tmp_path):
    """A tiny text model with its tokenizer, saved to a folder."""
    features.import_torchvision()
    from transformers import BertConfig, BertModel

    folder = tmp_path / "bert"
    vocabulary = write_tokenizer(folder)
    torch.manual_seed(0)
    model = BertModel(
        BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=16,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=20,
            max_position_embeddings=16,
        )
    ).eval()
    model.save_pretrained(folder)
    return folder, model, vocabulary


def hidden_states(model, vocabulary, text, *, special=(2,)):
    tokens = torch.tensor([[*special, *(vocabulary.get(word, 1) for word in text.split())]])
    with torch.inference_mode():
        return model(tokens, output_hidden_states=True).hidden_states


@pytest.mark.parametrize(("pool", "batch"), [("none", 2), ("last", 3)])
def test_captions_give_the_mean_or_the_last_of_their_tokens(tmp_path, captions, bert, pool, batch):
    folder, model, vocabulary = bert
    out = extract(
        tmp_path,
        captions,
        source="transformers",
        architecture="BertModel",
        weights=str(folder),
        layers=["encoder.layer.*"],
        pool=pool,
        batch_size=batch,
    )
    assert store.groups(out) == [f"encoder.layer.{number}" for number in range(3)]
    for number in range(3):
        values, ids, attrs = read(out, f"encoder.layer.{number}")
        assert ids == list(CAPTIONS)
        assert attrs["weights_from"] == "bert"
        for row, text in zip(values, CAPTIONS.values(), strict=True):
            # Alone, without padding: the special token takes part, but does not count
            states = hidden_states(model, vocabulary, text)[number + 1][0, 1:]
            expected = states[-1] if pool == "last" else states.mean(0)
            np.testing.assert_allclose(row, expected.numpy(), atol=1e-5)


def test_a_word_counts_alone_in_its_context(bert):
    folder, _, vocabulary = bert
    made = features.build_architecture(
        "net", source="transformers", architecture="BertModel", weights=str(folder)
    )
    context = "two cats a dog"
    text = f"{context} runs"
    named, tokens = made.tokenize([Text("runs"), Text(text, len(context))])
    assert tokens.sum(1).tolist() == [1, 1]
    words = [list(vocabulary)[index] for index in named["input_ids"][tokens].tolist()]
    assert words == ["runs", "runs"]
    # A context that is too long loses its beginning, not the word
    long = " ".join(["dog"] * 30)
    named, tokens = made.tokenize([Text(f"{long} runs", len(long))])
    assert named["input_ids"].shape == (1, 16)
    assert [list(vocabulary)[index] for index in named["input_ids"][tokens].tolist()] == ["runs"]
    with pytest.raises(InputError, match="no token for ''"):
        made.tokenize([Text("dog ", 4)])
    assert len(made.origin) == 64


def test_untrained_text_models_take_a_tokenizer(tmp_path, captions, bert):
    folder = tmp_path / "only"
    write_tokenizer(folder, special=False)
    options = {"source": "transformers", "architecture": str(bert[0]), "pool": "mean"}
    one, other = (
        extract(tmp_path, captions, name=f"s{seed}", tokenizer=str(folder), seed=seed, **options)
        for seed in (0, 1)
    )
    layer = store.groups(one)[0]
    assert not np.allclose(read(one, layer)[0], read(other, layer)[0])
    with pytest.raises(InputError, match=r"no tokenizer in features\.models\.net\.tokenizer"):
        features.build_architecture("net", source="transformers", architecture="BertModel")
    with pytest.raises(InputError, match=r"tokenizer of .*nowhere.* give the path of a folder"):
        features.build_architecture(
            "net",
            source="transformers",
            architecture="BertModel",
            tokenizer=str(tmp_path / "nowhere"),
        )


def test_a_hub_out_of_reach_names_folders(monkeypatch):
    features.import_torchvision()
    import transformers

    def refuse(*_args, **_kwargs):
        raise OSError("We couldn't connect to 'https://huggingface.co'\nto load the files")

    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", refuse)
    with pytest.raises(InputError, match=r"cannot be had.*folder that save_pretrained wrote"):
        features.build_architecture(
            "net", source="transformers", architecture="google/vit", weights="hub"
        )
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", refuse)
    with pytest.raises(InputError, match=r"tokenizer of gpt2 .*path of a folder"):
        features.build_architecture(
            "net", source="transformers", architecture="BertModel", tokenizer="gpt2"
        )


@pytest.fixture
def clip(tmp_path):
    """A tiny CLIP with its tokenizer, saved to a folder."""
    features.import_torchvision()
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    folder = tmp_path / "clip"
    vocabulary = write_tokenizer(folder)
    tower = {
        "hidden_size": 16,
        "intermediate_size": 20,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
    }
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config={
            **tower,
            "vocab_size": len(vocabulary),
            "max_position_embeddings": 16,
            "eos_token_id": 0,
        },
        vision_config={**tower, "image_size": 24, "patch_size": 8},
    )
    model = CLIPModel(config).eval()
    model.save_pretrained(folder)
    processor = CLIPImageProcessor(image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.4])
    processor.save_pretrained(folder)
    return folder, model, vocabulary


def test_both_towers_of_clip(tmp_path, images, captions, clip):
    folder, model, vocabulary = clip
    options = {"source": "transformers", "architecture": "CLIPModel", "weights": str(folder)}
    layer = "encoder.layers.2"
    seen = extract(tmp_path, images, name="seen", layers=[layer], **options)
    values = read(seen, layer)[0]
    assert values.shape == (4, 10, 16)  # nine patches and the class token
    inputs = features.load_images(
        sorted(images), size=24, mean=[0.4, 0.5, 0.6], std=[0.2, 0.3, 0.4]
    )
    with torch.inference_mode():
        expected = model.vision_model(inputs, output_hidden_states=True).hidden_states[3]
    np.testing.assert_allclose(values, expected.numpy(), atol=1e-5)

    heard = extract(tmp_path, captions, name="heard", tower="text", layers=[layer], **options)
    values = read(heard, layer)[0]
    text = CAPTIONS["b.txt"]
    tokens = torch.tensor([[2, *(vocabulary[word] for word in text.split())]])
    with torch.inference_mode():
        states = model.text_model(tokens, output_hidden_states=True).hidden_states[3]
    np.testing.assert_allclose(values[1], states[0, 1:].mean(0).numpy(), atol=1e-5)

    with pytest.raises(InputError, match="takes texts, and there is no stimulus for it"):
        extract(tmp_path, images, name="none", tower="text", **options)
    with pytest.raises(InputError, match=r"has no text tower in features\.models\.net\.tower"):
        features.build_architecture(
            "net", source="transformers", architecture="ViTModel", tower="text"
        )


ROWS = np.random.default_rng(1).normal(size=(5, 3, 2)).astype(np.float32)
IDS = ["d.png", "b.png", "other.png", "a.png", "c.png"]


def given_npy(folder):
    np.save(folder / "conv.npy", ROWS.astype(np.float64))
    (folder / "conv_stimuli.txt").write_text("\n".join(IDS))
    return folder / "conv.npy", "conv"


def given_folder(folder):
    folder = folder / "layers"
    folder.mkdir()
    np.save(folder / "conv.npy", ROWS)
    np.save(folder / "fc.npy", ROWS[:, 0])
    (folder / "file_names.txt").write_text("\n".join(IDS) + "\n")
    return folder, "conv"


def given_hdf5(folder):
    with h5py.File(folder / "all.h5", "w") as file:
        file["block/conv"] = ROWS
        file["stimulus"] = IDS
    return folder / "all.h5", "block.conv"


def given_zarr(folder):
    xr.Dataset(
        {"conv": (("stimulus", "i", "j"), ROWS), "ids": ("stimulus", np.array(IDS))}
    ).to_zarr(folder / "all.zarr", zarr_format=3, consolidated=False)
    return folder / "all.zarr", "conv"


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("give", [given_npy, given_folder, given_hdf5, given_zarr])
@pytest.mark.parametrize("batch", [2, "auto"])
def test_arrays_are_joined_by_id(tmp_path, images, give, batch):
    where, layer = give(tmp_path)
    out = extract(tmp_path, images, source="arrays", files=str(where), batch_size=batch)
    values, ids, attrs = read(out, layer)
    assert ids == ["a.png", "b.png", "c.png", "d.png"]
    np.testing.assert_array_equal(values, ROWS[[IDS.index(stimulus) for stimulus in ids]])
    assert attrs["source"] == "arrays"
    reduced = extract(
        tmp_path,
        images[1:],
        name="reduced",
        source="arrays",
        files={layer: str(where)},
        layers=[layer],
        pool="mean",
    )
    three = ROWS[[IDS.index(stimulus) for stimulus in ("a.png", "b.png", "d.png")]]
    np.testing.assert_allclose(read(reduced, layer)[0], three.mean(1), atol=1e-6)
    if give is given_npy:
        # Own features are arrays, too
        again = extract(tmp_path, images, name="again", source="arrays", files=str(out))
        np.testing.assert_array_equal(read(again, layer)[0], values)
        assert store.manifest(again)["content"] != ""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: (folder / "conv_stimuli.txt").unlink(), "no stimulus ids in"),
        (
            lambda folder: (folder / "conv_stimuli.txt").write_text("\n".join(IDS[:4])),
            "5 rows and 4 stimulus ids",
        ),
        (
            lambda folder: (folder / "conv_stimuli.txt").write_text("\n".join([*IDS[:4], IDS[0]])),
            "'d.png' of layer conv is there twice",
        ),
        (
            lambda folder: (folder / "conv_stimuli.txt").write_text("\n".join([*IDS[:4], "x"])),
            r"no row for 1 of 4 stimuli \(c\.png\)",
        ),
        (lambda folder: (folder / "conv.npy").write_bytes(b"nothing"), "cannot be read"),
        (lambda folder: (folder / "conv.npy").unlink(), "no file"),
        (lambda folder: np.save(folder / "conv.npy", np.array(IDS)), "no array of real numbers"),
    ],
)
def test_wrong_arrays_are_found_before_any_job(tmp_path, images, change, words):
    path, _ = given_npy(tmp_path)
    config = {
        "study": "t",
        "input": {"stimuli": str(images[0].parent)},
        "features": {"models": {"net": {"source": "arrays", "files": str(path)}}},
    }
    check_inputs(load_study(config))
    files = model_files("net", config["features"]["models"]["net"])
    assert [file.name for file in files] == ["conv.npy", "conv_stimuli.txt"]
    change(tmp_path)
    with pytest.raises(InputError, match=words) as error:
        check_inputs(load_study(config))
    assert "\n" not in str(error.value)
    assert "features.models.net" in str(error.value)


def test_swapped_files_of_layers_are_not_gone_on_with(tmp_path, images, monkeypatch):
    paths = [tmp_path / f"{name}.npy" for name in "xy"]
    for path in paths:
        np.save(path, np.random.default_rng(len(path.stem)).normal(size=(4, 3)))
    listed = tmp_path / "ids.txt"
    listed.write_text("\n".join(path.name for path in images))
    keys = []
    begin = store.Stream.__init__

    def noted(self, path, *, spec, key):
        keys.append(key)
        begin(self, path, spec=spec, key=key)

    monkeypatch.setattr(store.Stream, "__init__", noted)
    for first, second in (paths, paths, paths[::-1]):
        files = {"a": str(first), "b": str(second)}
        extract(tmp_path, images, source="arrays", files=files, stimulus_list=str(listed))
    assert keys[0] == keys[1] != keys[2]


def test_wrong_layers_of_arrays_and_wrong_entries(tmp_path, images):
    path, _ = given_npy(tmp_path)
    with pytest.raises(InputError, match=r"unknown layer 'fc'.*the arrays have conv"):
        extract(tmp_path, images, source="arrays", files=str(path), layers=["fc"])
    both = tmp_path / "two.h5"
    with h5py.File(both, "w") as file:
        file["x"], file["y"], file["ids"] = ROWS, ROWS, IDS
    with pytest.raises(InputError, match=r"two\.h5 has no array 'b'.*it has x, y"):
        open_arrays("net", {"b": str(both)})
    config = {"study": "t", "input": {"stimuli": str(images[0].parent)}}
    with pytest.raises(InputError, match=r"features\.models\.net\.files is missing"):
        load_study({**config, "features": {"models": {"net": {"source": "arrays"}}}})
    with pytest.raises(InputError, match=r"features\.models\.net\.architecture is missing"):
        load_study({**config, "features": {"models": {"net": {"source": "timm"}}}})
    bad = {"source": "python", "architecture": "nowhere_at_all:make"}
    with pytest.raises(InputError, match="nowhere_at_all"):
        load_study({**config, "features": {"models": {"net": bad}}})


def test_names_of_builtins_are_told_without_importing_them():
    assert set(BUILTINS) == set(MADE)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"architecture": "gist", "files": "x.npy"}, r"net\.files is for source arrays"),
        ({"architecture": "gist", "tower": "text"}, r"net\.tower is for source transformers"),
        ({"architecture": "gist", "folder": "own"}, r"net\.folder is for source python"),
        (
            {"source": "timm", "architecture": "x", "options": {"grid": 2}},
            r"net\.options is for source builtin, and the model's source is timm",
        ),
        ({"source": "arrays", "files": "x.npy", "weights": "hub"}, r"net\.weights is for source"),
        ({"architecture": "gabbor"}, r"unknown architecture 'gabbor'.*did you mean gabor"),
        ({"architecture": "gabor", "options": {"scale": 3}}, r"'scale'.*did you mean scales"),
    ],
)
def test_keys_that_would_be_ignored_and_wrong_builtins_before_any_job(images, model, words):
    config = {"study": "t", "input": {"stimuli": str(images[0].parent)}}
    with pytest.raises(InputError, match=words) as error:
        check_inputs(load_study({**config, "features": {"models": {"net": model}}}))
    assert "\n" not in str(error.value)
    right = {"architecture": "gabor", "options": {"scales": 3}}
    check_inputs(load_study({**config, "features": {"models": {"net": right}}}))


@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_changed_configuration_is_another_origin(clip, tower):
    folder, _, _ = clip
    config = folder / "config.json"

    def origin():
        return features.build_architecture(
            "net",
            source="transformers",
            architecture="CLIPModel",
            weights=str(folder),
            tower=tower,
        ).origin

    before = origin()
    assert before == origin()
    changed = config.read_text().replace('"quick_gelu"', '"relu"')
    assert changed != config.read_text()
    config.write_text(changed)  # the weights stay the same
    assert origin() != before
