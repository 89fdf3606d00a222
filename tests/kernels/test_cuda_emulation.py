"""The emulation of CUDA on a CPU: it finds what is wrong, and its runs do not depend on turns."""

from __future__ import annotations

import re

import cuda_emulator
import pytest
import torch

FAULTS = {
    "some_skip_the_barrier": "wait for ever at __syncthreads",
    "some_are_at_another_barrier": "is at __syncthreads .* others are at __syncthreads",
    "some_lanes_shuffle_alone": "wait for ever at __shfl_xor_sync",
    "one_writes_beyond": "wrote beyond shared memory",
    "one_leaves_the_cluster": "wait for ever at cluster_sync",
    "one_reads_of_a_block_that_ended": "the shared memory of a block that has ended",
    "a_copy_is_not_waited_for": "the copy has not arrived",
}


@pytest.mark.parametrize("kernel", FAULTS)
@pytest.mark.parametrize("backwards", [False, True])
def test_faults_are_found(kernel: str, backwards: bool) -> None:
    emulated = cuda_emulator.library()
    try:
        emulated.emulate_turns(backwards, False)
        fault = cuda_emulator.fault_of(kernel)
    finally:
        emulated.emulate_turns(False, False)
    assert re.search(FAULTS[kernel], fault), fault


def test_what_is_right_is_not_blamed() -> None:
    assert cuda_emulator.fault_of("nothing_is_wrong") == ""


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("capability", "keys", "cluster"),
    [(9, 577, {4, 8}), (9, 97, {1}), (9, 1601, {8}), (8, 577, {1})],
)
def test_clusters_and_turns(
    capability: int, keys: int, cluster: set[int], dtype: torch.dtype
) -> None:
    """Clusters are as memories need and GPUs have them; nothing depends on whose turn it is."""
    emulated = cuda_emulator.library()
    operator = torch.ops.blip_fast.decode_cross_attention.cuda
    # More sequences than go at once, for the ring is filled again where keys do not fit.
    q = torch.randn(9, 1, 64).to(dtype)
    memory = torch.randn(1, keys, 2, 1, 64).to(dtype)
    index = torch.zeros(9, dtype=torch.int64)
    try:
        emulated.emulate_capability(capability)
        out = operator(q, memory, index, None)
        assert emulated.emulated_cluster() in cluster
        for turns in ((True, False), (False, True), (True, True)):
            emulated.emulate_turns(*turns)
            assert torch.equal(out, operator(q, memory, index, None)), turns
    finally:
        emulated.emulate_turns(False, False)
        emulated.emulate_capability(9)
    k, v = memory[0, :, :, 0].float().unbind(1)
    expected = torch.softmax(q[:, 0].float() @ k.T / 8, 1) @ v
    torch.testing.assert_close(out[:, 0].float(), expected, rtol=0.01, atol=2e-3)
