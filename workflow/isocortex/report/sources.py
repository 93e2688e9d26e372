"""Where results come from: content digests, code digests and versions out of the manifests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import xarray as xr

from isocortex import provenance, store
from isocortex.errors import InputError
from isocortex.report.page import Table


def own_store(path: Path | str, spec: str, subject: str) -> xr.Dataset:
    """Open a store that must be one subject's.

    Raises
    ------
    InputError
        If it is another's.
    """
    dataset = store.open(path, spec)
    if str(dataset.attrs["subject"]) != subject:
        raise InputError(
            f"{path} belongs to subject {dataset.attrs['subject']}, not {subject}: give the "
            "subject's own store"
        )
    return dataset


def manifest_of(path: Path | str) -> Path:
    """Manifest that goes with a store; a JSON file is its own."""
    path = Path(path)
    return path if path.suffix == ".json" else path.with_suffix(".json")


def read_manifests(paths: Sequence[Path | str]) -> dict[str, dict[str, Any]]:
    """Read manifests, or those of stores, by stage and file name; missing ones are left out."""
    out = {}
    for path in paths:
        manifest = manifest_of(path)
        if manifest.is_file():
            out[_label(Path(path))] = provenance.read_manifest(manifest)
    return dict(sorted(out.items()))


def _label(path: Path) -> str:
    # The folder tells the stage; nothing above it, so that the report is the same anywhere.
    name = path.name if path.name != "manifest.json" else f"{path.parent.name}/{path.name}"
    stage = path.parent.name if path.name != "manifest.json" else path.parent.parent.name
    return f"{stage}/{name}" if stage else name


def _content(manifest: Mapping[str, Any]) -> str:
    if "content" in manifest:
        return str(manifest["content"])
    outputs = manifest.get("outputs", {})
    return provenance.digest_bytes("".join(f"{k}{v}" for k, v in sorted(outputs.items())).encode())


def provenance_table(manifests: Mapping[str, Mapping[str, Any]]) -> Table:
    """List each result with the digest of its content and of the code that made it."""
    rows = [
        [
            name,
            f"{manifest.get('spec', '')} {manifest.get('spec_version', '')}".strip(),
            _content(manifest)[:16],
            str(manifest.get("code", ""))[:16] or "not recorded",
            len(manifest.get("sources", [])),
        ]
        for name, manifest in manifests.items()
    ]
    return Table(
        "Results that this report was made from",
        ("Result", "Kind", "Content (SHA-256)", "Code digest", "Sources"),
        rows,
        "First 16 digits of the digests. The same content digest means the same numbers; the code "
        "digest covers every module that the step used.",
        collapsed=len(rows) > 12,
        wrap=True,
    )


def package_versions(manifests: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Versions by package as the manifests record them; several where steps differ."""
    found: dict[str, dict[str, None]] = {}
    for manifest in manifests.values():
        for package, version in manifest.get("versions", {}).items():
            found.setdefault(package, {})[str(version)] = None
    if not found:
        return provenance.versions()
    return {package: ", ".join(sorted(versions)) for package, versions in sorted(found.items())}


def versions_table(versions: Mapping[str, str]) -> Table:
    """List package versions."""
    names = sorted(versions)
    half = -(-len(names) // 2)
    rows = []
    for index in range(half):
        left = names[index]
        right = names[half + index] if half + index < len(names) else ""
        rows.append([left, versions[left], right, versions.get(right, "")])
    return Table("Software", ("Package", "Version", "Package ", "Version "), rows)


def configuration_table(config: Mapping[str, Any]) -> Table:
    """List every configuration value."""
    return Table(
        "Configuration",
        ("Key", "Value"),
        [[key, value] for key, value in _flatten(config)],
        "Every analysis choice of this run.",
        collapsed=True,
        wrap=True,
    )


def _flatten(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            rows += _flatten(value, f"{name}.")
        elif isinstance(value, (list, tuple)):
            rows.append((name, ", ".join(str(item) for item in value) or "none"))
        else:
            rows.append((name, "none" if value is None or value == {} else str(value)))
    return rows
