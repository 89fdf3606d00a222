"""The whole model on Triton's kernels alone, against the CPU's reference."""

from __future__ import annotations

import pytest
import torch
from forcing import Recorder
from whole_model import answers, assert_agrees, gradients, texts_written

from blip_fast import kernels
from blip_fast.kernels import _ops

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ROOMS = [name for name, room in _ops._rooms.items() if _ops.TRITON in room.implementations]
SEEING = {"patchify", "add_layernorm", "attention"}
OPERATORS = {
    answers: SEEING | {"cross_attention", "linear_cross_entropy"},
    gradients: SEEING
    | {"add_layernorm_backward", "attention_backward"}
    | {
        f"{name}{end}"
        for name in ("cross_attention", "linear_cross_entropy", "contrastive")
        for end in ("", "_backward")
    },
    texts_written: SEEING | {"decode_attention", "decode_cross_attention", "penalise", "beam_step"},
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("results", OPERATORS, ids=lambda results: results.__name__)
def test_agrees_with_the_reference(results, dtype: torch.dtype) -> None:
    with kernels.use("triton", *ROOMS), Recorder() as recorder:
        assert_agrees(results, torch.get_default_device().type, dtype)
    ran = {name.removeprefix("blip_fast.") for name in recorder.names}
    assert {f"{name}.triton" for name in OPERATORS[results]} <= ran
    others = {name for name in ran if not name.endswith(".triton")}
    assert {name.split(".")[0] for name in others} <= {"linear"}, others
