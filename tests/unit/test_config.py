"""The config's schema, defaults and documents agree with one another."""

import json

import pytest
import yaml

from isocortex import config
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
