"""The rooms' CUDA kernels: on a GPU where there is one, else emulated on the CPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from blip_fast.kernels import _ops

EMULATED = not torch.cuda.is_available()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not EMULATED and "kernels/cuda" in str(item.path):
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(autouse=True)
def _device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """All tensors of a test are made on the device under test, by torch's factories."""
    if not EMULATED:
        with torch.device("cuda"):
            yield
        return
    import cuda_emulator

    cuda_emulator.library()
    before = _ops._wrong_device

    def wrong_device(implementation: str, device: torch.device) -> str:
        return "" if implementation == _ops.CUDA else before(implementation, device)

    monkeypatch.setattr(_ops, "_wrong_device", wrong_device)
    monkeypatch.setattr(_ops, "CUDA_LOADED", True)
    yield
