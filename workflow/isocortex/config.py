"""The config: its closed schema, its defaults, and errors that name key, value and remedy.

Only the standard library is imported at module level, because the Snakefile imports this module.
"""

from __future__ import annotations

import copy
import difflib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from isocortex.errors import InputError

SCHEMAS = Path(__file__).resolve().parent.parent / "schemas"


def load_schema() -> dict[str, Any]:
    """Return the schema of the whole config; each stage's section is a file of its own."""
    schema = json.loads((SCHEMAS / "config.json").read_text())
    for file in sorted((SCHEMAS / "config").glob("*.json")):
        section = json.loads(file.read_text())
        section.setdefault("default", {})
        schema["properties"][file.stem] = section
    return schema


def _fill(value: Any, schema: Mapping[str, Any]) -> Any:
    """Return a value with the schema's defaults filled in below it."""
    if not isinstance(value, dict):
        return value
    filled = dict(value)
    for key, part in schema.get("properties", {}).items():
        if key not in filled and "default" in part:
            filled[key] = copy.deepcopy(part["default"])
        if key in filled:
            filled[key] = _fill(filled[key], part)
    extra = schema.get("additionalProperties")
    if isinstance(extra, dict):
        for key in filled:
            if key not in schema.get("properties", {}):
                filled[key] = _fill(filled[key], extra)
    return filled


def _expand(value: Any, key: str) -> Any:
    """Return a value with environment variables in all of its paths expanded."""
    if isinstance(value, dict):
        return {
            name: _expand(part, f"{key}.{name}" if key else name) for name, part in value.items()
        }
    if isinstance(value, list):
        return [_expand(part, key) for part in value]
    if isinstance(value, str) and "$" in value:
        expanded = os.path.expandvars(value)
        if missing := re.search(r"\$\{?(\w+)\}?", expanded):
            raise InputError(
                f"config: {key} is {value!r} but the environment variable {missing.group(1)} is "
                "not set: set it or write the path out"
            )
        return expanded
    return value


_KINDS = {
    "string": "a text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list ([a, b])",
    "object": "keys with values ({key: value})",
    "null": "null",
}
"""Types of JSON schema in the words of a config."""


def _kinds(types: str | list[str]) -> str:
    listed = [types] if isinstance(types, str) else types
    return " or ".join(_KINDS[kind] for kind in listed)


def _explain(error: Any) -> str:
    """Return one line for one schema error."""
    key = ".".join(str(part) for part in error.absolute_path)
    if error.validator == "additionalProperties":
        known = list(error.schema.get("properties", {}))
        unknown = next(name for name in error.instance if name not in known)
        full = f"{key}.{unknown}" if key else str(unknown)
        near = difflib.get_close_matches(str(unknown), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known))}"
        return f"config: {full}: no such key: {hint} (config/README.md lists all keys)"
    if error.validator == "required":
        missing = re.search(r"'(.+?)' is a required", error.message)
        name = missing.group(1) if missing else "?"
        full = f"{key}.{name}" if key else name
        doc = error.schema.get("properties", {}).get(name, {}).get("description", "")
        return f"config: {full} is missing: {doc or 'add it'} (see config/README.md)"
    value = json.dumps(error.instance, ensure_ascii=False, default=str)
    value = value if len(value) <= 60 else value[:57] + "..."
    if "propertyNames" in error.absolute_schema_path and error.validator == "pattern":
        plain = error.validator_value == "^[A-Za-z0-9]+$"
        rule = "letters and digits only" if plain else f"one that matches {error.validator_value}"
        return f"config: {key} has the name {value}: use {rule}"
    anyof = error.parent is not None and error.parent.validator == "anyOf"
    forms = error.parent.validator_value if anyof else ()
    others = [form["type"] for form in forms if "enum" not in form and "type" in form]
    if error.validator == "type" and "enum" in error.schema:
        allowed = ", ".join(str(v) for v in error.schema["enum"])
        return f"config: {key} is {value}, but must be one of {allowed}"
    if error.validator == "enum":
        allowed = ", ".join(str(v) for v in error.validator_value)
        allowed += "".join(f", or {_KINDS[kind]}" for kind in others)
        near = difflib.get_close_matches(str(error.instance), map(str, error.validator_value), n=1)
        hint = f": did you mean {near[0]!r}?" if near else ""
        return f"config: {key} is {value}, but must be one of {allowed}{hint}"
    wanted = {
        "type": lambda v: f"must be {_kinds(v)}",
        "minimum": lambda v: f"must be at least {v}",
        "maximum": lambda v: f"must be at most {v}",
        "exclusiveMinimum": lambda v: f"must be above {v}",
        "exclusiveMaximum": lambda v: f"must be below {v}",
        "minItems": lambda v: f"needs at least {v} entries",
        "maxItems": lambda v: f"takes at most {v} entries",
        "minProperties": lambda v: f"needs at least {v} entries",
        "maxProperties": lambda v: f"takes at most {v} entries",
        "uniqueItems": lambda _v: "has an entry twice",
        "pattern": lambda v: f"must match {v}",
        "oneOf": lambda _v: "fits none, or several, of the allowed forms",
        "anyOf": lambda _v: "fits none of the allowed forms",
    }.get(error.validator)
    rule = wanted(error.validator_value) if wanted else error.message
    doc = error.schema.get("description", "")
    return f"config: {key} is {value}, but {rule}" + (f" ({doc})" if doc else "")


def check_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config with defaults filled in and environment variables expanded.

    Parameters
    ----------
    config
        What the config files and ``--config`` say, merged.

    Raises
    ------
    InputError
        For the first thing that is wrong: the key, its value, and what to do.
    """
    import jsonschema

    schema = load_schema()
    filled = _fill({k: v for k, v in config.items() if v is not None}, schema)
    errors = list(jsonschema.Draft202012Validator(schema).iter_errors(filled))
    if errors:
        # A branch of anyOf that the value was meant for says more than "fits none".
        first = min(errors, key=lambda e: (len(e.absolute_path), str(e.absolute_path)))
        best = jsonschema.exceptions.best_match([first])
        raise InputError(_explain(best))
    return _expand_seeds(_expand(filled, ""))


def _expand_seeds(config: dict[str, Any]) -> dict[str, Any]:
    """Return the config with a model for each seed of an entry with seeds, and its family."""
    models: dict[str, Any] = {}
    families = dict(config["trsa"]["layer_identification"]["families"])
    for name, entry in config["features"]["models"].items():
        key = f"features.models.{name}"
        model = {option: value for option, value in entry.items() if option != "seeds"}
        seeds = entry.get("seeds")
        if seeds is None:
            members = {name: model}
        else:
            _check_seeds(key, model)
            members = {
                f"{name}{seed}": model
                | {"seed": seed, "weights": model["weights"].replace("{seed}", str(seed))}
                for seed in (range(seeds) if isinstance(seeds, int) else seeds)
            }
            if name in families:
                raise InputError(
                    f"config: {key} has seeds and trsa.layer_identification.families.{name} is "
                    "there too: rename one"
                )
            families[name] = {"models": list(members)}
        for member in members:
            if member in models:
                raise InputError(
                    f"config: {key} makes a model {member}, which another entry of features.models "
                    "is or makes: rename one"
                )
        models |= members
    layers = config["trsa"]["layer_identification"] | {"families": families}
    return config | {
        "features": config["features"] | {"models": models},
        "trsa": config["trsa"] | {"layer_identification": layers},
    }


WITHOUT_WEIGHTS = (
    "pixels",
    "gabor",
    "luminance",
    "colour",
    "gist",
    "motion-energy",
    "contrast-energy",
    "words",
)
"""Builtin models that are the same for every seed."""


def _check_seeds(key: str, model: Mapping[str, Any]) -> None:
    """Refuse seeds of a model that would all be the same."""
    weights = model["weights"]
    if model["seed"]:
        raise InputError(f"config: {key} has seed and seeds: remove one")
    if model["source"] == "arrays":
        raise InputError(
            f"config: {key}.seeds: arrays have no weights, all seeds are the same: remove seeds"
        )
    if model["source"] == "builtin" and model["architecture"] in WITHOUT_WEIGHTS:
        raise InputError(
            f"config: {key}.seeds: {model['architecture']} has no weights, all seeds are the "
            "same: remove seeds"
        )
    if weights == "hub" or (weights != "none" and "{seed}" not in weights):
        raise InputError(
            f"config: {key}.weights is {weights!r}, which is one model, and {key}.seeds asks for "
            "several: use none, or a path with {seed} in it"
        )


def sections(schema: Mapping[str, Any] | None = None, prefix: str = "") -> Iterator[dict[str, str]]:
    """Yield every key of the config with its type, default and description, in order.

    A key with keys below it yields itself first, without a default of its own.
    """
    schema = load_schema() if schema is None else schema
    required = schema.get("required", [])
    for key, part in schema.get("properties", {}).items():
        name = f"{prefix}{key}"
        kind = part.get("type", "any")
        row = {
            "key": name,
            "type": kind if isinstance(kind, str) else " or ".join(kind),
            "default": "",
            "description": part.get("description", ""),
        }
        if "anyOf" in part:
            forms = (form.get("enum", [form.get("type")]) for form in part["anyOf"])
            row["type"] = " or ".join(str(value) for form in forms for value in form)
        if "enum" in part:
            row["type"] = " or ".join(str(value) for value in part["enum"])
        if part.get("properties") and part.get("default", {}) == {}:
            yield row
            yield from sections(part, f"{name}.")
            continue
        if "default" in part:
            row["default"] = json.dumps(part["default"], ensure_ascii=False)
        elif key in required:
            row["default"] = "required"
        yield row
        extra = part.get("additionalProperties")
        if isinstance(extra, dict) and extra.get("properties"):
            yield from sections(extra, f"{name}.<name>.")


RERUNS = {
    "dask": "nothing",
    "study": "everything: results go to another folder",
    "results": "everything: results go to another folder",
    "seed": "preprocessing, every bootstrap and permutation, and what follows",
    "input": "what reads the changed files",
    "subjects": "the study's comparisons and report; a new subject's own jobs",
    "exclude": "the study's comparisons and report",
    "tasks": "a new task's jobs, the reports",
    "regions": "regions, RDMs, encoding summary and what follows",
    "preprocess": "the preprocessing of runs and what follows; T1w images and fieldmaps stay",
    "glm": "the GLM and what follows; contrasts and nifti only their images and the reports, "
    "options of an estimator that is not chosen only the study's report",
    "features": "the changed model's features and what follows",
    "rsa": "RDMs or their comparison, whichever uses the key, and what follows",
    "searchlight": "the searchlights and the reports",
    "trsa": "the topological comparisons and the study's report",
    "encoding": "the encoding models and the reports",
    "report": "the reports",
}


def write_reference(folder: str | Path) -> None:
    """Write ``config.yaml`` (all defaults) and ``README.md`` (all keys) from the schemas."""
    folder = Path(folder)
    schema = load_schema()
    rows = list(sections(schema))
    lines = [
        "# Every key of the analysis with its default; README.md beside this file explains them.",
        "# A study's own config (--configfile config/my.yaml) needs only what differs, and study,",
        "# input and regions, which have no default. Written by `make docs` from workflow/schemas.",
        "",
    ]
    for row in rows:
        depth = row["key"].count(".")
        if "<name>" in row["key"]:
            continue
        name = row["key"].rsplit(".", 1)[-1]
        top = row["key"].split(".")[0]
        if top in ("study", "input", "regions"):
            lines.append("# " + "  " * depth + f"{name}:  # {row['description']}")
        elif row["default"]:
            lines.append("  " * depth + f"{name}: {row['default']}")
        else:
            lines.append("  " * depth + f"{name}:")
            if not any(r["default"] for r in rows if r["key"].startswith(row["key"] + ".")):
                lines[-1] += " {}"
    (folder / "config.yaml").write_text("\n".join(lines) + "\n")
    text = [
        "# The config",
        "A study's config is a YAML file, given by `snakemake --configfile config/my.yaml`.",
        "Keys that it leaves out have the defaults below. Unknown keys are refused. `$VARIABLES`",
        "in values are expanded. `config/demo.yaml` is the demo study's. Threads, memory and",
        "partitions are not here but in profiles/.",
        "",
        "This page and `config.yaml` are written by `make docs` from `workflow/schemas`.",
    ]
    top = None
    for row in rows:
        section = row["key"].split(".")[0]
        if section != top:
            top = section
            text += ["", f"## {section}", f"{row['description']}  "]
            text += [f"Changing it re-runs: {RERUNS[section]}.", ""]
            text += ["| key | type | default | what it is |", "|---|---|---|---|"]
        if not row["default"] and any(r["key"].startswith(row["key"] + ".") for r in rows):
            continue
        default = (
            f"`{row['default']}`" if row["default"] not in ("", "required") else row["default"]
        )
        cells = [f"`{row['key']}`", row["type"], default, row["description"]]
        text.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    (folder / "README.md").write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    write_reference(Path(__file__).resolve().parents[2] / "config")
