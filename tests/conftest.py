"""Fixtures that all tests share: a fixed seed, and the optional folder of real data."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


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
