"""Weights in large pages: equal values, in memory of their own that Linux was asked to map so."""

from __future__ import annotations

import gc
import mmap
from pathlib import Path

import pytest
import torch
from torch import Tensor

from blip_fast.med.pages import PAGE, copy_to_large_pages


def flags_at(address: int) -> set[str]:
    """What the kernel says of the mapping that holds an address; empty where it is gone."""
    inside, found = False, set()
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            begin, end = (int(part, 16) for part in first.split("-"))
            inside = begin <= address < end
        elif inside and first == "VmFlags:":
            found = set(line.split()[1:])
    return found


def large(rows: int = 700) -> Tensor:
    return torch.randn(rows, 1500)  # 4.2 MB, no multiple of a page


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_copies_have_the_values_and_nothing_in_common(dtype: torch.dtype | None) -> None:
    tensors = [large(), torch.randn(3, 5), large().t(), torch.arange(7)]
    copies = copy_to_large_pages(tensors, dtype)
    for tensor, copy in zip(tensors, copies, strict=True):
        assert torch.equal(copy, tensor.to(dtype or tensor.dtype))
        assert copy.is_contiguous() and copy.data_ptr() % 64 == 0
    kept = copies[2].clone()
    copies[1].fill_(7)
    tensors[2].zero_()
    assert torch.equal(copies[2], kept)
    addresses = {copy.untyped_storage().data_ptr() for copy in copies}
    assert len(addresses) == len(copies), "safetensors refuses tensors of one storage"


def test_nothing_to_copy() -> None:
    assert copy_to_large_pages([]) == []


@pytest.mark.skipif(
    not hasattr(mmap, "MADV_HUGEPAGE") or not Path("/proc/self/smaps").exists(),
    reason="this system has no large pages to ask for",
)
def test_linux_was_asked_and_memory_is_given_back() -> None:
    if not Path("/sys/kernel/mm/transparent_hugepage").exists():
        pytest.skip("this kernel has no large pages")
    first, second = copy_to_large_pages([large(), large()])
    address = first.data_ptr()
    assert address % PAGE == 0
    assert "hg" in flags_at(address)
    del first
    gc.collect()
    assert flags_at(address), "the other tensor still needs the memory"
    del second
    gc.collect()
    assert "hg" not in flags_at(address)
