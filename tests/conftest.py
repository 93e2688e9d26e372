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


LONG = ("demo", "test_interrupted", "test_studyforrest_workflow", "test_phantom")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Keep what shares a costly fixture on one worker, and start the longest first."""
    for item in items:
        shares_demo = {"demo", "demo3", "added"} & set(item.fixturenames)
        group = "demo" if shares_demo else item.path.stem
        item.add_marker(pytest.mark.xdist_group(group))
    groups = [item.get_closest_marker("xdist_group").args[0] for item in items]
    order = {name: rank for rank, name in enumerate(LONG)}
    ranks = {id(item): order.get(group, len(LONG)) for item, group in zip(items, groups)}
    items.sort(key=lambda item: ranks[id(item)])
