"""Schemas, the compiled library, and the choice of an implementation: the rooms' common ground.

The only place where operator schemas are written. Each opaque implementation of an operator is an
overload of its own (`blip_fast::add_layernorm.native`), so a trace, a profile or a compiled graph
shows by name which one ran. A reference is not an operator but the plain function: autograd
differentiates it and a compiler fuses it, with nothing to register.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from blip_fast.kernels._libraries import cuda_library, load, native_library

REFERENCE = "reference"
TRITON = "triton"
CUDA = "cuda"

# One schema an operator; the overloads in `_OVERLOADS` share it.
_SCHEMAS = {
    "add_layernorm": (
        "(Tensor x, Tensor? residual, Tensor weight, Tensor bias, float eps, bool keep_sum)"
        " -> (Tensor sum, Tensor out)"
    ),
    "add_layernorm_backward": (
        "(Tensor? grad_sum, Tensor grad_out, Tensor sum, Tensor weight, float eps)"
        " -> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias)"
    ),
    # `offsets` is none for dense attention, whose qkv has an axis more; `max_length` is 0 then.
    "attention": (
        "(Tensor qkv, Tensor? offsets, int max_length, bool causal)"
        " -> (Tensor out, Tensor logsumexp)"
    ),
    "attention_backward": (
        "(Tensor grad, Tensor qkv, Tensor out, Tensor logsumexp, Tensor? offsets, int max_length,"
        " bool causal) -> Tensor"
    ),
    "contrastive": (
        "(Tensor features, Tensor momentum, Tensor bank, Tensor temperature, Tensor ids,"
        " Tensor bank_ids, float alpha) -> (Tensor losses, Tensor statistics)"
    ),
    "contrastive_backward": (
        "(Tensor grad, Tensor features, Tensor momentum, Tensor bank, Tensor temperature,"
        " Tensor ids, Tensor bank_ids, Tensor statistics, float alpha)"
        " -> (Tensor grad_features, Tensor grad_temperature)"
    ),
    "cross_attention": (
        "(Tensor q, Tensor memory, Tensor offsets, Tensor index, Tensor? key_lengths)"
        " -> (Tensor out, Tensor logsumexp)"
    ),
    "cross_attention_backward": (
        "(Tensor grad, Tensor q, Tensor memory, Tensor out, Tensor logsumexp, Tensor offsets,"
        " Tensor index, Tensor? key_lengths) -> (Tensor grad_q, Tensor grad_memory)"
    ),
    "beam_step": (
        "(Tensor log_probs, Tensor scores, int keep) -> (Tensor best, Tensor beam, Tensor token)"
    ),
    "decode_attention": "(Tensor q, Tensor cache, Tensor ancestors, Tensor lengths) -> Tensor",
    "decode_cross_attention": (
        "(Tensor q, Tensor memory, Tensor index, Tensor? key_lengths) -> Tensor"
    ),
    "linear": "(Tensor x, Tensor weight, Tensor? bias, bool gelu, Tensor? residual) -> Tensor",
    "linear_cross_entropy": (
        "(Tensor hidden, Tensor weight, Tensor bias, Tensor targets, float label_smoothing)"
        " -> (Tensor losses, Tensor logsumexp)"
    ),
    "linear_cross_entropy_backward": (
        "(Tensor grad, Tensor hidden, Tensor weight, Tensor bias, Tensor targets, Tensor logsumexp,"
        " float label_smoothing) -> (Tensor grad_hidden, Tensor grad_weight, Tensor grad_bias)"
    ),
    # A `QuantizedWeight`'s tensors.
    "linear_int8": (
        "(Tensor x, Tensor weight, Tensor scales, Tensor starts, Tensor? bias, bool gelu,"
        " Tensor? residual) -> Tensor"
    ),
    "patchify": (
        "(Tensor images, int patch_size, float[] mean, float[] std, ScalarType dtype) -> Tensor"
    ),
    "penalise": (
        "(Tensor scores, Tensor tokens, Tensor lengths, float repetition_penalty, int min_length,"
        " int end_id) -> Tensor"
    ),
    "sample": (
        "(Tensor logits, Tensor uniform, float temperature, int top_k, float top_p) -> Tensor"
    ),
    # Not rooms: which instructions the CPU library uses, so that tests can force each path.
    "set_cpu_isa": "(str isa) -> ()",
    "cpu_isa": "() -> str",
    # One product of tiles by the level's kind of them, c [16, 16] + a [16, 64 bytes] b [16, 64
    # bytes] as AMX lays them out, and how many products emulated tiles have made so far.
    "tile_product": "(Tensor c, Tensor a, Tensor b) -> Tensor",
    "emulated_products": "() -> int",
}
_OVERLOADS = {
    "add_layernorm": ("native", "triton"),
    "add_layernorm_backward": ("triton",),
    "attention": ("native", "triton"),
    "attention_backward": ("native", "triton"),
    "beam_step": ("native", "triton"),
    "contrastive": ("chunked", "triton"),
    "contrastive_backward": ("chunked", "triton"),
    "cross_attention": ("native", "triton"),
    "cross_attention_backward": ("native", "triton"),
    "decode_attention": ("native", "triton", "cuda"),
    "decode_cross_attention": ("native", "triton", "cuda"),
    "linear": ("native", "onednn"),
    "linear_cross_entropy": ("chunked", "triton"),
    "linear_cross_entropy_backward": ("chunked", "triton"),
    "linear_int8": ("native",),
    "patchify": ("native", "triton"),
    "penalise": ("triton",),
    "sample": ("native", "triton"),
}
# Opaque, but written in PyTorch: they run on every device and need nothing compiled.
_EVERYWHERE = ("chunked",)

_library = torch.library.Library("blip_fast", "DEF")
for _name, _schema in _SCHEMAS.items():
    for _overload in _OVERLOADS.get(_name, ("",)):
        _library.define(f"{_name}.{_overload}{_schema}" if _overload else f"{_name}{_schema}")


NATIVE_LOADED = load(native_library())
CUDA_LOADED = torch.version.cuda is not None and load(cuda_library())
TRITON_INSTALLED = find_spec("triton") is not None
# Triton's interpreter: its kernels as numpy on the CPU, slowly. Triton itself reads it at import.
TRITON_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_ONEDNN_HAS_BF16 = (
    torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
)


def _missing(implementation: str) -> str:
    """What this machine lacks for an implementation; empty where nothing."""
    if implementation == "native" and not NATIVE_LOADED:
        return "the compiled library is not built; reinstall without BLIP_FAST_NATIVE=0"
    if implementation == "onednn" and not _ONEDNN_HAS_BF16:
        return "this torch has no oneDNN, or the processor no AVX-512 or its like for bfloat16"
    if implementation == TRITON and not TRITON_INSTALLED:
        return "triton is not installed; pip install 'blip-fast[triton]'"
    if implementation == CUDA and not CUDA_LOADED:
        return "libblip_fast_cuda.so is not built; reinstall with BLIP_FAST_CUDA=1 where nvcc is"
    return ""


def _wrong_device(implementation: str, device: torch.device) -> str:
    """Why an implementation does not run on a kind of device; empty where it does."""
    if implementation in _EVERYWHERE:
        return ""
    if implementation not in (TRITON, CUDA):
        return "" if device.type == "cpu" else "it is for the CPU"
    if implementation == TRITON and device.type == "cpu":
        return "" if TRITON_INTERPRETED else "it is for CUDA; tests set TRITON_INTERPRET=1"
    if device.type != "cuda":
        return "it is for CUDA"
    gpu = torch.cuda.get_device_properties(device)
    return "" if gpu.major >= 8 else f"it needs compute capability 8.0; this is {gpu.major}.x"


def register_cpu(name: str, overload: str, function: Callable[..., Any]) -> None:
    """Implement an overload of operator `name` for the CPU by a Python function."""
    _library.impl(f"{name}.{overload}", function, "CPU")


def register_everywhere(name: str, overload: str, function: Callable[..., Any]) -> None:
    """Implement an overload of operator `name` for every device by a Python function."""
    _library.impl(f"{name}.{overload}", function, "CompositeExplicitAutograd")


def register_triton(room: str, *names: str) -> None:
    """Implement operators, or the room's own, by the functions of their names in its `triton.py`.

    The file is read at the first call: whoever runs on a CPU needs no Triton.
    """
    for name in names or (room,):
        function = _at_first_call(room, name)
        for key in ("CUDA", "CPU") if TRITON_INTERPRETED else ("CUDA",):
            _library.impl(f"{name}.{TRITON}", function, key)


def _at_first_call(room: str, name: str) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        function = getattr(import_module(f"blip_fast.kernels.{room}.triton"), name)
        device = next(a.device for a in args if isinstance(a, Tensor))
        if device.type != "cuda":
            return function(*args)
        with torch.cuda.device(device):  # Triton launches on the current one
            return function(*args)

    return call


def register_fake(name: str, fake: Callable[..., Any]) -> None:
    """Give every overload of operator `name` the shapes of its outputs, for tracing."""
    for overload in _OVERLOADS[name]:
        torch.library.register_fake(f"blip_fast::{name}.{overload}", fake, lib=_library)


@dataclass(frozen=True)
class Choice:
    """Which implementation a room runs on a device, and why."""

    room: str
    device: str
    implementation: str
    why: str


class Room:
    """The implementations of one operation, in order of preference, and the choice among them.

    Args:
        dtypes: for each opaque implementation those of its first tensor that it computes. The
            reference, always there and last, computes them all.
    """

    def __init__(self, name: str, **dtypes: tuple[torch.dtype, ...]) -> None:
        self.name = name
        self._dtypes = dtypes
        _rooms[name] = self

    @property
    def implementations(self) -> list[str]:
        """All names, in order of preference; the reference is the last."""
        return [*self._dtypes, REFERENCE]

    def operator(self, implementation: str, name: str | None = None) -> Any:
        """The overload of an opaque implementation; of the room's own operator, or `name`."""
        return getattr(getattr(torch.ops.blip_fast, name or self.name), implementation)

    def choose(
        self,
        x: Tensor,
        order: Sequence[str] | None = None,
        obstacles: Mapping[str, str] | None = None,
    ) -> str:
        """The name of the implementation to run for a first tensor like `x`.

        Args:
            order: which opaque implementations suit this call, the best first; all, in the room's
                order, if none. One asked for by name runs whatever the order says.
            obstacles: what keeps an implementation from this call beside device and dtype, if
                anything; empty texts count as nothing.

        Raises:
            ValueError: where one was asked for by name that cannot run there.
        """
        return self._choose(x.device, x.dtype, order, obstacles or {})

    def dtype_of(self, model: torch.dtype) -> torch.dtype:
        """That of its first tensor where the model is in `model`: one room takes pixels, another
        scores, whatever the model's is."""
        computed = {dtype for some in self._dtypes.values() for dtype in some}
        return computed.pop() if len(computed) == 1 else model

    def explain(self, device: torch.device, dtype: torch.dtype) -> Choice:
        """What `choose` would answer for a tensor on `device`, in words."""
        chosen = self._choose(device, dtype)
        if self.name in _forced:
            why = "asked for by name"
        elif chosen != REFERENCE:
            able = [n for n in self._dtypes if not self._obstacle(n, device, dtype)]
            why = "; ".join([_advantage(chosen), *(f"or {n}, by the call" for n in able[1:])])
        else:
            why = "; ".join(f"{n}: {self._obstacle(n, device, dtype)}" for n in self._dtypes)
        return Choice(self.name, device.type, chosen, why)

    def _choose(
        self,
        device: torch.device,
        dtype: torch.dtype,
        order: Sequence[str] | None = None,
        obstacles: Mapping[str, str] = MappingProxyType({}),
    ) -> str:
        forced = _forced.get(self.name)
        if forced is None:
            names = self._dtypes if order is None else order
            for name in names:
                interpreted = name == TRITON and device.type == "cpu"  # only where asked for
                obstacle = obstacles.get(name) or self._obstacle(name, device, dtype)
                if not interpreted and not obstacle:
                    return name
            return REFERENCE
        if forced not in self.implementations:
            raise ValueError(
                f"{self.name} has no implementation {forced!r}; it has "
                f"{', '.join(self.implementations)}"
            )
        if obstacle := self._obstacle(forced, device, dtype) or obstacles.get(forced, ""):
            raise ValueError(f"{self.name} cannot run {forced!r} on {device.type}: {obstacle}")
        return forced

    def _obstacle(self, implementation: str, device: torch.device, dtype: torch.dtype) -> str:
        """Why an implementation cannot run; empty where it can."""
        if implementation == REFERENCE:
            return ""
        if wrong := _wrong_device(implementation, device):
            return wrong
        if missing := _missing(implementation):
            return missing
        if dtype not in self._dtypes[implementation]:
            able = ", ".join(str(d).removeprefix("torch.") for d in self._dtypes[implementation])
            return f"it computes {able}, not {str(dtype).removeprefix('torch.')}"
        return ""


def _advantage(implementation: str) -> str:
    """Why an opaque implementation goes before the reference."""
    if implementation in _EVERYWHERE:
        return "PyTorch, a part at a time: nothing large is stored"
    if implementation == "onednn":
        return "torch's own oneDNN, on weights packed once"
    if implementation == TRITON:
        return "Triton, compiled for this GPU at its first call"
    if implementation == CUDA:
        return "CUDA C++, compiled ahead for GPUs of compute capability 8.0 and later"
    return f"compiled for this machine ({torch.ops.blip_fast.cpu_isa()})"


_rooms: dict[str, Room] = {}
_forced: dict[str, str] = {}


@contextmanager
def use(implementation: str, *rooms: str) -> Iterator[None]:
    """Run one implementation by name in the named rooms, or in all, inside a `with`.

    It runs or raises: a room that lacks it, or a device that cannot run it, is a ValueError from
    the room's function.

    Raises:
        ValueError: where a room's name is unknown.
    """
    before = dict(_forced)
    _forced.update({room: implementation for room in _known_rooms(rooms)})
    try:
        yield
    finally:
        _forced.clear()
        _forced.update(before)


def choices(device: torch.device, dtype: torch.dtype) -> list[Choice]:
    """What each room would run for a model in `dtype` on `device`, and why."""
    return [room.explain(device, room.dtype_of(dtype)) for room in _rooms.values()]


def read_environment(value: str) -> None:
    """Apply `BLIP_FAST_KERNELS`: one name for all rooms, or `room=name` parts with commas.

    Raises:
        ValueError: where a room's name is unknown.
    """
    for part in filter(None, (part.strip() for part in value.split(","))):
        room, _, implementation = part.rpartition("=")
        for name in _known_rooms((room,) if room else ()):
            _forced[name] = implementation


def _known_rooms(names: tuple[str, ...]) -> list[str]:
    if unknown := sorted(set(names) - set(_rooms)):
        raise ValueError(f"there is no room {', '.join(unknown)}; there are {', '.join(_rooms)}")
    return list(names or _rooms)


def environment() -> str:
    """The value of `BLIP_FAST_KERNELS`, empty where it is not set."""
    return os.environ.get("BLIP_FAST_KERNELS", "")
