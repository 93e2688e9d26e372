"""Where a result comes from: digests of files and code, manifests, and the log of a job.

Only the standard library is imported at module level, because the Snakefile imports this module.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import gzip
import hashlib
import importlib.machinery
import json
import logging
import os
import re
import shutil
import sys
import traceback
import zlib
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from isocortex.errors import InputError
from isocortex.jobs import end_with_workflow

PACKAGE = Path(__file__).resolve().parent
SCRIPTS = PACKAGE.parent

_IMPORT = re.compile(
    r"^\s*(?:from\s+isocortex(?:\.([\w.]+))?\s+import\s+(\([^)]*\)|[^\n#]*)"
    r"|import\s+isocortex\.([\w.]+))",
    re.MULTILINE,
)
_VERSIONED = [
    "snakemake",
    "nipype",
    "nibabel",
    "nilearn",
    "antspyx",
    "numpy",
    "scipy",
    "pandas",
    "xarray",
    "dask",
    "zarr",
    "gudhi",
    "torch",
    "torchvision",
    "timm",
    "transformers",
    "scikit-image",
    "matplotlib",
]


def digest_bytes(data: bytes) -> str:
    """Return the SHA-256 of some bytes as hexadecimal text."""
    return hashlib.sha256(data).hexdigest()


def file_digest(path: str | Path) -> str:
    """Return the SHA-256 of a file's content; of a ``.gz`` file, of what it holds.

    A compressed file's bytes depend on the compressor, its content does not.
    """
    path = Path(path)
    opener = gzip.open if path.suffix == ".gz" else open
    digest = hashlib.sha256()
    try:
        with opener(path, "rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path} is truncated or damaged ({error}): restore the file") from error
    return digest.hexdigest()


def directory_digest(
    path: str | Path, *, leave_out: Sequence[str] = (), known: Mapping[str, bytes] | None = None
) -> str:
    """Return one SHA-256 over the names and bytes of all files below a folder.

    Parameters
    ----------
    path
        The folder.
    leave_out
        Files that do not count.
    known
        SHA-256 of files that need not be read for it.
    """
    root = Path(path)
    known = known or {}
    digest = hashlib.sha256()
    for file in sorted(p for p in root.rglob("*") if p.is_file()):
        name = file.relative_to(root).as_posix()
        if name in leave_out or file.name == ".snakemake_timestamp":
            continue
        digest.update(name.encode() + b"\0")
        digest.update(known.get(name) or hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def fingerprint(path: str | Path) -> str:
    """Return a cheap sign of a raw file's content that a touch does not change.

    Of a ``.gz`` file the size and its last eight bytes: they are the CRC-32 and the length of
    what it holds. Of another file up to 1 MiB its digest, of a larger one its size and 64 samples.
    A missing file gives an empty string: Snakemake reports it as a missing input.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            if path.suffix == ".gz":
                stream.seek(max(size - 8, 0))
                return f"{size}-{stream.read(8).hex()}"
            if size <= 1 << 20:
                return digest_bytes(stream.read())[:16]
            digest = hashlib.sha256()
            for k in range(64):
                stream.seek((size - 4096) * k // 63)
                digest.update(stream.read(4096))
            return f"{size}-{digest.hexdigest()[:16]}"
    except FileNotFoundError:
        return ""


@functools.cache
def _module_files(name: str) -> list[Path]:
    """Return the files of an ``isocortex`` module or, of a package, of all of it."""
    base = PACKAGE.joinpath(*name.split(".")) if name else PACKAGE
    if base.with_suffix(".py").is_file():
        return [base.with_suffix(".py")]
    if name and base.is_dir():
        return sorted(base.glob("*.py"))
    return []


@functools.cache
def _imported_files(file: Path) -> list[Path]:
    """Return the package's files that a file imports.

    Kept, because every job reads all rules, and their scripts import much of the same.
    """
    found: list[Path] = []
    for module, names, plain in _IMPORT.findall(file.read_text()):
        if plain:
            found += _module_files(plain)
            continue
        if module:
            found += _module_files(module.split(".")[0]) if "." in module else []
            found += _module_files(module)
        for name in re.findall(r"\w+", names):
            inner = f"{module}.{name}" if module else name
            found += _module_files(inner)
    return found


@functools.cache
def code_files(script: str) -> tuple[Path, ...]:
    """Return an entry script's file and every file of the package that it comes to import.

    Parameters
    ----------
    script
        The script's name without folder and ending, for example ``"fit_glm"``.
    """
    waiting = [SCRIPTS / f"{script}.py"]
    seen: dict[Path, None] = {}
    while waiting:
        file = waiting.pop()
        if file in seen:
            continue
        seen[file] = None
        waiting += _imported_files(file)
    templates = SCRIPTS / "report"
    if any(file.parent.name == "report" for file in seen) and templates.is_dir():
        # A report's look is code too.
        seen.update(dict.fromkeys(p for p in templates.rglob("*") if p.is_file()))
    return tuple(sorted(seen))


@functools.cache
def code_version(script: str) -> str:
    """Return a digest of all code that a rule's script runs, for the rule's ``params``.

    Snakemake does not see an edit in an imported package; a digest in ``params`` makes it one.
    """
    digest = hashlib.sha256()
    for file in code_files(script):
        digest.update(file.relative_to(SCRIPTS).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def function_files(reference: str, folder: str | Path, *, key: str) -> tuple[Path, ...]:
    """Return the source files of the package that a user's function is in, without importing it.

    Parameters
    ----------
    reference
        ``package.module:function``.
    folder
        Where packages are looked for that are not on Python's path.
    key
        Of the config, for the error.

    Raises
    ------
    InputError
        Where the reference has another form, or there is no such package.
    """
    if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", reference):
        raise InputError(f"config: {key} is {reference!r}: write package.module:function")
    package = reference.partition(":")[0].partition(".")[0]
    where = [*(path or "." for path in sys.path), str(folder)]
    found = importlib.machinery.PathFinder.find_spec(package, where)
    if found is None:
        raise InputError(
            f"config: {key} names the package {package!r}, which is not on PYTHONPATH nor in "
            f"{folder}: set folder of the model, or correct the name"
        )
    folders = found.submodule_search_locations
    if folders is None:
        return (Path(str(found.origin)),)
    return tuple(sorted(file for place in folders for file in Path(place).rglob("*.py")))


def digest_files(files: Sequence[str | Path]) -> str:
    """Return one digest over the names and bytes of some files, in their order."""
    digest = hashlib.sha256()
    for file in map(Path, files):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def versions() -> dict[str, str]:
    """Return the versions of the installed packages that results depend on."""
    found = {"python": sys.version.split()[0]}
    for name in _VERSIONED:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON with sorted keys, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    temporary.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    temporary.replace(path)


def provenance_path(manifest: str | Path) -> Path:
    """Return where the provenance that goes with a manifest lies."""
    manifest = Path(manifest)
    return manifest.with_name(f".{manifest.stem}.provenance.json")


def write_manifest(
    path: str | Path,
    *,
    outputs: Mapping[str, str | Path],
    sources: Sequence[str | Path] = (),
    code: str = "",
    spec: str = "files",
    **extra: Any,
) -> None:
    """Write the manifest of a rule's plain-file outputs, last of all its outputs.

    The manifest holds what the outputs are (their content digests, and ``extra``), so that it
    changes when, and only when, they do. How they came to be (code, versions, sources) goes to
    a file beside it that no rule takes as its input.

    Parameters
    ----------
    path
        The manifest, a ``.json`` file.
    outputs
        Name to file or folder.
    sources
        Files that the outputs were made from.
    code
        The rule's ``code_version``.
    spec
        What the outputs are.
    """
    digests = {
        name: directory_digest(file) if Path(file).is_dir() else file_digest(file)
        for name, file in outputs.items()
    }
    write_provenance(path, sources=sources, code=code)
    write_json(path, {"spec": spec, "outputs": digests, **extra})


def write_provenance(path: str | Path, *, sources: Sequence[str | Path], code: str) -> None:
    """Write how the results that a manifest describes came to be, beside the manifest."""
    write_json(
        provenance_path(path),
        {"code": code, "versions": versions(), "sources": sorted(str(s) for s in sources)},
    )


def read_manifest(path: str | Path) -> dict[str, Any]:
    """Return a manifest together with its provenance."""
    path = Path(path)
    manifest = json.loads(path.read_text())
    beside = provenance_path(path)
    if beside.is_file():
        manifest |= json.loads(beside.read_text())
    return manifest


def temporary_beside(path: str | Path) -> Path:
    """Return where to make a file or folder before it is renamed to its final place.

    What a killed job left there is removed: an output has one job at a time.
    """
    path = Path(path)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*"):
        if re.fullmatch(r"\d+\.(tmp|old)", left.name.removeprefix(f".{path.name}.")):
            if left.is_dir():
                shutil.rmtree(left)
            else:
                left.unlink(missing_ok=True)
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def replace_with(temporary: str | Path, final: str | Path) -> None:
    """Put a finished temporary file or folder in its final place."""
    temporary, final = Path(temporary), Path(final)
    if final.is_dir() and not final.is_symlink():
        old = final.with_name(f".{final.name}.{os.getpid()}.old")
        final.rename(old)
        temporary.rename(final)
        shutil.rmtree(old)
    else:
        temporary.replace(final)


@contextlib.contextmanager
def job_log(path: str | Path, *, where: str) -> Iterator[None]:
    """Run a job with all that it prints, its compiled libraries' words included, in its log.

    Parameters
    ----------
    path
        The rule's log.
    where
        What runs, for whom: the start of the one line that the terminal gets when it fails.

    Notes
    -----
    Bad input (`InputError`) ends in one line; any other failure in the traceback in the log, and
    one line. Both end the process with exit code 1. The job does not outlive its Snakemake.
    """
    end_with_workflow()
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    terminal = os.dup(2)
    kept = os.dup(1)
    failed = None
    with path.open("w", buffering=1) as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
        handler = logging.StreamHandler(stream)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        root = logging.getLogger()
        level = root.level
        root.addHandler(handler)
        root.setLevel(logging.INFO)
        try:
            logging.getLogger(__name__).info("%s: started", where)
            yield
            logging.getLogger(__name__).info("%s: finished", where)
        except InputError as error:
            failed = f"isocortex: {where}: {error}"
        except Exception as error:
            traceback.print_exc(file=stream)
            first = (str(error).splitlines() or [""])[0]
            failed = f"isocortex: {where}: {type(error).__name__}: {first} (traceback in {path})"
        finally:
            if failed:
                stream.write(failed + "\n")
            root.removeHandler(handler)
            root.setLevel(level)
            sys.stdout.flush()
            sys.stderr.flush()
            os.dup2(kept, 1)
            os.dup2(terminal, 2)
            os.close(kept)
            os.close(terminal)
    if failed:
        print(failed, file=sys.stderr, flush=True)
        raise SystemExit(1)
