"""What all tests share: the real recordings, where they are there."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's folder."""
    return ROOT


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real recordings, named by ISOCORTEX_DATA."""
    folder = os.environ.get("ISOCORTEX_DATA")
    if not folder:
        pytest.skip("ISOCORTEX_DATA is not set: it names the folder of real recordings")
    path = Path(folder).resolve()
    if not (path / "README.md").is_file():
        pytest.skip(f"ISOCORTEX_DATA={folder} holds no recordings")
    return path
