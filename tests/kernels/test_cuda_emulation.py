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
        emulated.emulate_backwards(backwards)
        fault = cuda_emulator.fault_of(kernel)
    finally:
        emulated.emulate_backwards(False)
    assert re.search(FAULTS[kernel], fault), fault


def test_what_is_right_is_not_blamed() -> None:
    assert cuda_emulator.fault_of("nothing_is_wrong") == ""


@pytest.mark.parametrize(
    ("capability", "keys", "cluster"), [(9, 577, 4), (9, 97, 1), (9, 5000, 8), (8, 577, 1)]
)
def test_clusters_and_turns(capability: int, keys: int, cluster: int) -> None:
    """A GPU without clusters has blocks of more keys; threads may run in any order."""
    emulated = cuda_emulator.library()
    operator = torch.ops.blip_fast.decode_cross_attention.cuda
    q = torch.randn(6, 1, 64).bfloat16()
    memory = torch.randn(1, keys, 2, 1, 64).bfloat16()
    index = torch.zeros(6, dtype=torch.int64)
    try:
        emulated.emulate_capability(capability)
        forwards = operator(q, memory, index, None)
        assert emulated.emulated_cluster() == cluster
        emulated.emulate_backwards(True)
        assert torch.equal(forwards, operator(q, memory, index, None))
    finally:
        emulated.emulate_backwards(False)
        emulated.emulate_capability(9)
    k, v = memory[0, :, :, 0].float().unbind(1)
    expected = torch.softmax(q[:, 0].float() @ k.T / 8, 1) @ v
    torch.testing.assert_close(forwards[:, 0].float(), expected, rtol=0.01, atol=2e-3)
