"""Tiles of AMX, real and emulated: their arithmetic, when they run, and who chooses them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
from forcing import ISAS, TILES, forced_isa
from torch import Tensor

from blip_fast import kernels
from blip_fast.kernels import _ops
from blip_fast.kernels.linear_int8.weight import QuantizedWeight

pytestmark = pytest.mark.skipif(
    not _ops.NATIVE_LOADED, reason="the compiled library is not built (BLIP_FAST_NATIVE=0)"
)
EMULATED = TILES[1:]


def multiply(isa: str, c: Tensor, a: Tensor, b: Tensor) -> Tensor:
    with forced_isa(isa):
        return torch.ops.blip_fast.tile_product(c, a, b)


def pairs_by_hand(c: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Even and odd elements of pairs summed apart, in order; fp32 products and sums are exact."""
    left, right = a.float().view(16, 16, 2), b.float().view(16, 16, 2)
    sums = torch.zeros(2, 16, 16)
    for k, which in product(range(16), range(2)):
        exact = left[:, k, which, None].double() * right[k, :, which].double()
        sums[which] = (sums[which].double() + exact).float()
    return c + (sums[0] + sums[1])


@pytest.mark.parametrize("isa", TILES)
def test_pairs_are_summed_in_the_order_of_the_manual(isa: str) -> None:
    # Eight bits by eight, of like size: their sums fit float64, so each step is rounded once.
    a, b = torch.randn(2, 16, 32).bfloat16()
    c = torch.randn(16, 16)
    actual = multiply(isa, c, a, b)
    assert torch.equal(actual, pairs_by_hand(c, a, b))
    plain = c + torch.einsum("mkp,knp->mn", a.float().view(16, 16, 2), b.float().view(16, 16, 2))
    assert not torch.equal(actual, plain), "the order of the sums does not show"


@pytest.mark.parametrize("isa", TILES)
def test_numbers_too_small_are_zeros(isa: str) -> None:
    least = torch.finfo(torch.float32).tiny
    a, b = torch.zeros(2, 16, 32).bfloat16()
    a[:, 0], b[0, 0::2] = 1.0, least
    assert (multiply(isa, torch.zeros(16, 16), a, b) == least).all()
    b[0, 0::2] = least / 2  # what goes in
    assert not multiply(isa, torch.zeros(16, 16), a, b).any()
    b[0, 0::2] = least
    a[:, 0] = 0.5  # what comes out
    assert not multiply(isa, torch.zeros(16, 16), a, b).any()
    c = torch.full((16, 16), least * 1.5)
    a[:, 0] = -1.0
    assert not multiply(isa, c, a, b).any()
    c = torch.full((16, 16), least / 2)  # the sum that was there
    assert (multiply(isa, c, a, b) == -least).all()


@pytest.mark.parametrize("isa", TILES)
def test_infinities_and_nan_go_through(isa: str) -> None:
    a, b = torch.ones(2, 16, 32).bfloat16()
    a[3, 5], a[7, 9] = torch.inf, torch.nan
    y = multiply(isa, torch.zeros(16, 16), a, b)
    assert (y[3] == torch.inf).all() and y[7].isnan().all()
    assert (y[[0, 15]] == 32).all()


@pytest.mark.parametrize("isa", TILES)
def test_quads_are_exact_and_of_unlike_signs(isa: str) -> None:
    a = torch.randint(0, 256, (16, 64), dtype=torch.uint8)
    b = torch.randint(-128, 128, (16, 64), dtype=torch.int8)
    c = torch.randint(-(2**31), 2**31, (16, 16)).int()
    exact = torch.einsum("mkq,knq->mn", a.long().view(16, 16, 4), b.long().view(16, 16, 4))
    assert torch.equal(multiply(isa, c, a, b), (c + exact).int())  # modulo 2^32


def test_levels_without_tiles_have_no_product() -> None:
    with forced_isa("portable"), pytest.raises(RuntimeError, match="'portable' has no tiles"):
        torch.ops.blip_fast.tile_product(torch.zeros(16, 16), *torch.zeros(2, 16, 32).bfloat16())


def attention(dtype: torch.dtype = torch.bfloat16, width: int = 64) -> Tensor:
    return kernels.attention(torch.randn(1, 5, 3, 1, width).to(dtype))


def cross_attention(dtype: torch.dtype = torch.bfloat16) -> Tensor:
    offsets, index = torch.tensor([0, 2], dtype=torch.int32), torch.tensor([0])
    q, memory = torch.randn(2, 1, 64).to(dtype), torch.randn(1, 9, 2, 1, 64).to(dtype)
    return kernels.cross_attention(q, memory, offsets, index)


def decode(dtype: torch.dtype = torch.bfloat16) -> Tensor:
    q, memory = torch.randn(2, 1, 64).to(dtype), torch.randn(1, 9, 2, 1, 64).to(dtype)
    return kernels.decode_cross_attention(q, memory, torch.tensor([0, 0]))


def linear_int8(rows: int) -> Tensor:
    return kernels.linear_int8(torch.randn(rows, 20), QuantizedWeight.of(torch.randn(9, 20)))


@pytest.mark.parametrize("isa", [*ISAS, *EMULATED])
@pytest.mark.parametrize(
    ("call", "tiled"),
    [
        (attention, True),
        (lambda: attention(torch.float32), False),
        (lambda: attention(width=32), False),
        (cross_attention, True),
        (lambda: cross_attention(torch.float32), False),
        (decode, True),
        (lambda: linear_int8(13), True),
        (lambda: linear_int8(12), False),
    ],
    ids=["attention", "fp32", "width 32", "cross", "cross fp32", "decode", "int8", "few rows"],
)
def test_tiles_run_where_they_should(isa: str, call: Callable[[], Tensor], tiled: bool) -> None:
    with forced_isa(isa), kernels.use("native"):
        before = torch.ops.blip_fast.emulated_products()
        call()
        made = torch.ops.blip_fast.emulated_products() - before
    assert (made > 0) == (tiled and isa in EMULATED)


def test_nothing_chooses_an_emulation_by_itself() -> None:
    assert torch.ops.blip_fast.cpu_isa() in (*ISAS, "amx")


def test_the_library_knows_amx_where_the_system_grants_it() -> None:
    granted = torch.cpu._is_amx_tile_supported() and torch.cpu._init_amx()
    assert (torch.ops.blip_fast.cpu_isa() == "amx") == granted


def test_an_unknown_level_is_refused_with_the_known_ones() -> None:
    with pytest.raises(RuntimeError, match="unknown instruction set 'mmx'.*'amx-portable'"):
        torch.ops.blip_fast.set_cpu_isa("mmx")
