"""Whether the tensors of a file are those of a model: all of them, no others, and sound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from blip_fast.med.weights.errors import WeightsError, listed
from blip_fast.med.weights.table import Entry


def check_state(state: Mapping[str, Tensor], table: Sequence[Entry]) -> None:
    """Raise a WeightsError listing whatever is wrong with `state`, measured against a table.

    First names, shapes and dtypes; where those are right, values: finite, and tied ones equal.
    """
    complaints = _names_and_shapes(state, table)
    if not complaints:
        complaints = _values(state, table)
    if complaints:
        raise WeightsError("the tensors do not fit the model; " + ";\n".join(complaints))


def _names_and_shapes(state: Mapping[str, Tensor], table: Sequence[Entry]) -> list[str]:
    missing: list[str] = []
    wrong: list[str] = []
    dtypes: list[str] = []
    known: set[str] = set()
    for entry in table:
        for names in entry.parts:
            known.update(names)
            stored = [name for name in names if name in state]
            if not stored:
                missing.append(f"{names[0]} {list(entry.part_shape)}")
            for name in stored:
                tensor = state[name]
                if tuple(tensor.shape) != entry.part_shape:
                    shapes = f"{list(tensor.shape)}, the model needs {list(entry.part_shape)}"
                    wrong.append(f"{name} is {shapes}")
                if not tensor.is_floating_point():
                    dtypes.append(f"{name} is {tensor.dtype}")
    extra = [f"{name} {list(t.shape)}" for name, t in state.items() if name not in known]
    return _complaints(
        {
            "missing": missing,
            "unexpected": extra,
            "of another shape": wrong,
            "not of floating point": dtypes,
        }
    )


def _values(state: Mapping[str, Tensor], table: Sequence[Entry]) -> list[str]:
    broken: list[str] = []
    differing: list[str] = []
    for entry in table:
        for names in entry.parts:
            stored = [name for name in names if name in state]
            broken += [name for name in stored if not _is_finite(state[name])]
            first = stored[0]
            for other in stored[1:]:
                if not _same(state[first], state[other]):
                    differing.append(f"{first} and {other}")
    return _complaints({"with NaN or infinity": broken, "tied, and yet different": differing})


def _complaints(found: Mapping[str, Sequence[str]]) -> list[str]:
    return [f"{len(items)} {what}:{listed(items)}" for what, items in found.items() if items]


def _is_finite(tensor: Tensor) -> bool:
    """One NaN or infinity makes the sum one, so a single pass without a mask settles nearly
    always; a sum of finite values that overflows is looked at again, element by element."""
    total = tensor.sum(dtype=torch.float32)
    return bool(torch.isfinite(total)) or bool(torch.isfinite(tensor).all())


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)
