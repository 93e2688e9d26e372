"""The config's schema, defaults and documents agree with one another."""

import json

import pytest
import yaml

from isocortex import config, study
from isocortex.errors import InputError

MINIMAL = {"study": "s", "input": {"bids": "x"}}


def test_defaults_are_filled_in_at_every_level():
    full = config.check_config(MINIMAL | {"glm": {"hrf": "spm"}})
    assert full["glm"]["hrf"] == "spm"
    assert full["glm"]["drift"] == "cosine"
    assert full["seed"] == 1
    assert set(full) >= {"preprocess", "features", "rsa", "trsa", "encoding", "report"}


def test_the_given_config_is_left_as_it_is():
    given = {"study": "s", "input": {"bids": "x"}, "glm": {}}
    before = json.dumps(given)
    config.check_config(given)
    assert json.dumps(given) == before


def test_every_key_is_closed_described_and_defaulted():
    def walk(schema, name):
        if schema.get("type") == "object" or "properties" in schema:
            assert "additionalProperties" in schema, name
            assert schema["additionalProperties"] is not True, name
        for key, part in schema.get("properties", {}).items():
            full = f"{name}.{key}"
            assert part.get("description"), full
            walk(part, full)
        if isinstance(schema.get("additionalProperties"), dict):
            walk(schema["additionalProperties"], f"{name}.<name>")

    walk(config.load_schema(), "config")


def test_defaults_satisfy_their_own_schema():
    config.check_config(MINIMAL)


def test_config_yaml_holds_exactly_the_defaults(root):
    written = yaml.safe_load((root / "config" / "config.yaml").read_text())
    full = config.check_config(MINIMAL)
    for key in ("study", "input"):
        full.pop(key)
    assert written == full


def test_documents_are_what_the_schemas_make(root, tmp_path):
    config.write_reference(tmp_path)
    for name in ("config.yaml", "README.md"):
        assert (tmp_path / name).read_text() == (root / "config" / name).read_text(), (
            f"config/{name} is out of date: run make docs"
        )


def test_the_demo_config_is_valid(root):
    demo = yaml.safe_load((root / "config" / "demo.yaml").read_text())
    assert config.check_config(demo)["study"] == "demo"


def test_environment_variables_are_expanded(monkeypatch):
    monkeypatch.setenv("MY_DATA", "/data/mine")
    assert config.check_config({"study": "s", "input": {"bids": "$MY_DATA/ds"}})["input"] == {
        "bids": "/data/mine/ds"
    }
    with pytest.raises(InputError, match=r"input\.bids .* NOT_THERE is not set"):
        config.check_config({"study": "s", "input": {"bids": "${NOT_THERE}/ds"}})


def test_every_stage_file_is_a_section_with_a_rerun_line():
    sections = set(config.load_schema()["properties"])
    assert sections == set(config.RERUNS)


def _with_models(models, **layers):
    return MINIMAL | {
        "features": {"models": models},
        "trsa": {"layer_identification": layers},
    }


def test_an_entry_with_seeds_is_a_family_of_models():
    given = _with_models(
        {
            "net": {"architecture": "convnet", "seeds": 3},
            "gabor": {"architecture": "gabor"},
            "trained": {
                "architecture": "resnet20-cifar",
                "weights": "w/{seed}.th",
                "seeds": [7, 2],
            },
        },
        families={"mixed": {"models": ["net1", "gabor"]}},
    )
    full = config.check_config(given)
    models = full["features"]["models"]
    assert list(models) == ["net0", "net1", "net2", "gabor", "trained7", "trained2"]
    assert [models[f"net{k}"]["seed"] for k in range(3)] == [0, 1, 2]
    assert models["trained2"]["weights"] == "w/2.th"
    assert not any("seeds" in model for model in models.values())
    families = full["trsa"]["layer_identification"]["families"]
    assert families == {
        "mixed": {"models": ["net1", "gabor"]},
        "net": {"models": ["net0", "net1", "net2"]},
        "trained": {"models": ["trained7", "trained2"]},
    }
    # What the jobs are given can be checked again.
    assert config.check_config(full) == full


@pytest.mark.parametrize(
    ("models", "text"),
    [
        ({"net": {"architecture": "convnet", "seeds": 1}}, "seeds is 1"),
        ({"net": {"architecture": "convnet", "seeds": 2, "seed": 3}}, "seed and seeds"),
        ({"g": {"architecture": "gabor", "seeds": 2}}, "has no weights"),
        (
            {"n": {"source": "timm", "architecture": "vit", "weights": "hub", "seeds": 2}},
            "which is one model",
        ),
        ({"n": {"architecture": "resnet20-cifar", "weights": "w.th", "seeds": 2}}, "{seed}"),
        (
            {
                "net1": {"architecture": "convnet"},
                "net": {"architecture": "convnet", "seeds": 2},
            },
            "makes a model net1",
        ),
    ],
)
def test_seeds_that_make_no_family_are_refused(models, text):
    with pytest.raises(InputError) as error:
        config.check_config(_with_models(models))
    assert text in str(error.value)
    assert "\n" not in str(error.value)


def test_a_study_of_stimuli_alone_has_models_and_families(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).touch()
    given = {
        "study": "s",
        "input": {"stimuli": str(tmp_path)},
        "features": {"models": {"net": {"architecture": "convnet", "seeds": 2}}},
    }
    found = study.load_study(given)
    assert found.entry == "stimuli"
    assert (found.tasks, found.measures, dict(found.subjects)) == ([], [], {})
    assert found.families == {"net": ["net0", "net1"]}
    assert list(found.stimuli) == ["a.png", "b.png"]
    families = {"trained": {"models": ["net0", "ent1"]}}
    for change, text in (
        ({"features": {}}, "names no model"),
        ({"subjects": ["01"]}, "subjects is given"),
        ({"input": given["input"] | {"model_rdms": "m.tsv"}}, "no brain to compare it with"),
        ({"trsa": {"layer_identification": {"families": families}}}, "did you mean 'net1'"),
    ):
        with pytest.raises(InputError, match=text):
            study.load_study(given | change)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"glm": {"contrasts": ["face"]}}, "must be keys with values"),
        ({"glm": {"contrasts": {"a b": "face"}}}, 'has the name "a b": use letters and digits'),
        ({"preprocess": {"spaces": "T1w"}}, "must be a list"),
        ({"preprocess": {"interpolation": 3}}, "must be one of linear, cubic, quintic"),
        ({"preprocess": {"compcor_components": "six"}}, "one of 50%, or a whole number"),
        ({"preprocess": {"dummy_scans": "four"}}, "one of auto, or a whole number"),
    ],
)
def test_messages_say_what_a_value_must_be_in_words(given, text):
    with pytest.raises(InputError) as error:
        config.check_config(MINIMAL | given)
    assert text in str(error.value)
    assert "\n" not in str(error.value)
