"""What all tests share: the real recordings, where they are there."""

import gc
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


DEMO = ("test_reruns", "test_demo_truth")
LONG = (*DEMO, "test_interrupted", "test_studyforrest_workflow", "test_phantom")


def _module(nodeid: str) -> str:
    return Path(nodeid.split("::")[0]).stem


def pytest_collection_modifyitems(items):
    """Start the longest modules first."""
    rank = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: rank.get(_module(item.nodeid), len(LONG)))


def pytest_collection_finish(session):
    """Leave what was imported out of garbage collections: nilearn asks for one at each read."""
    gc.freeze()


def pytest_xdist_make_scheduler(config, log):
    """Keep each module, and all that share the demo study, on one worker."""
    from xdist.scheduler import LoadScopeScheduling

    class ByCostlyFixture(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            module = _module(nodeid)
            return "demo" if module in DEMO else module

    return ByCostlyFixture(config, log)
