"""Remove the lock that a killed Snakemake left in this folder; leave a living one's alone.

Run as ``python -m isocortex.stale_lock`` before ``snakemake``.
"""

from __future__ import annotations

import os
from pathlib import Path

LOCKS = Path(".snakemake/locks")


def running_here() -> list[int]:
    """Return the process ids of Snakemake main processes whose working folder is this one."""
    import psutil

    here = os.getcwd()
    found = []
    for process in psutil.process_iter(["pid", "cmdline", "cwd"]):
        words = process.info["cmdline"] or []
        called = any(Path(word).name == "snakemake" for word in words[:3])
        if called and process.info["cwd"] == here and process.info["pid"] != os.getpid():
            found.append(process.info["pid"])
    return found


def remove_stale_lock() -> bool:
    """Remove the lock files here if no Snakemake runs here; return whether there were any.

    Raises
    ------
    SystemExit
        Where a Snakemake does run here.
    """
    files = [file for file in LOCKS.glob("*") if file.is_file()] if LOCKS.is_dir() else []
    if not files:
        return False
    if pids := running_here():
        raise SystemExit(
            f"isocortex: Snakemake already runs in this folder (process {pids[0]}): wait for it"
        )
    for file in files:
        file.unlink()
    print("isocortex: a killed run left its lock behind; removed it and going on", flush=True)
    return True


if __name__ == "__main__":
    remove_stale_lock()
