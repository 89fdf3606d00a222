"""What all tests share: a fixed seed, cheap garbage, and the optional folder of real data."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from chromium import Browser, find_browser

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_collection_finish() -> None:
    """What was imported for the tests stays: no collection of garbage need walk through it, as
    every one does where memory is said to run out."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # or extension modules would report at the end what nobody has let go of


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real photos, captions, vocabulary and hostile images; not part of the project."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the data folder ../shared/data is not on this machine")
    return SHARED_DATA


@pytest.fixture(scope="session")
def photos(shared_data: Path) -> list[Path]:
    """80 photos of COCO train2017, in order of name."""
    return sorted((shared_data / "coco_train80" / "images").glob("*.jpg"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A real one, where the machine has one."""
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium on this machine; BLIP_FAST_BROWSER may name one")
    with Browser(program) as opened:
        yield opened
