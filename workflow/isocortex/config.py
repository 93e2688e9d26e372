"""The config: its closed schema, its defaults, and errors that name key, value and remedy.

Only the standard library is imported at module level, because the Snakefile imports this module.
"""

from __future__ import annotations

import copy
import difflib
import json
import os
import re
from collections.abc import Mapping
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
    if error.validator == "enum":
        allowed = ", ".join(str(v) for v in error.validator_value)
        near = difflib.get_close_matches(str(error.instance), map(str, error.validator_value), n=1)
        hint = f": did you mean {near[0]!r}?" if near else ""
        return f"config: {key} is {value}, but must be one of {allowed}{hint}"
    wanted = {
        "type": lambda v: f"must be of type {v if isinstance(v, str) else ' or '.join(v)}",
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
    return _expand(filled, "")


def reference(schema: Mapping[str, Any] | None = None, prefix: str = "") -> list[dict[str, str]]:
    """Return every key of the config with its type, default and description, in order."""
    schema = load_schema() if schema is None else schema
    rows: list[dict[str, str]] = []
    for key, part in schema.get("properties", {}).items():
        full = f"{prefix}{key}"
        inner = part.get("properties")
        if inner and "x-reruns" not in part:
            rows.append({"key": full, "section": part.get("description", "")})
            rows += reference(part, f"{full}.")
            continue
        allowed = part.get("enum")
        kind = part.get("type", "")
        kind = kind if isinstance(kind, str) else " or ".join(kind)
        rows.append(
            {
                "key": full,
                "type": " \\| ".join(str(v) for v in allowed) if allowed else kind,
                "default": json.dumps(part["default"]) if "default" in part else "required",
                "description": part.get("description", ""),
            }
        )
        extra = part.get("additionalProperties")
        if isinstance(extra, dict) and extra.get("properties"):
            rows += reference(extra, f"{full}.<name>.")
    return rows
