"""The rooms' Triton kernels: on a GPU where there is one, else as numpy on the CPU.

Under TRITON_INTERPRET=1 in a process of its own, which `tests/kernels/test_triton.py` starts:
elsewhere nothing here is collected, because an interpreted Triton cannot compile.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from blip_fast.kernels import _ops

DEVICE = "cpu" if _ops.TRITON_INTERPRETED else "cuda"

if _ops.TRITON_INTERPRETED:
    import interpreter

    interpreter.install()
elif not torch.cuda.is_available():
    collect_ignore_glob = ["test_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not _ops.TRITON_INTERPRETED and "kernels/triton" in str(item.path):
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(autouse=True)
def _device() -> Iterator[None]:
    """All tensors of a test are made on the device under test, by torch's factories."""
    with torch.device(DEVICE):
        yield
