"""The packaged model as the gate of faster arithmetic, which may lose half a point to fp32."""

from __future__ import annotations

from typing import Any

import pytest

import blip_fast
from blip_fast.scenes.score import score

SCENES = 256  # in each of the four groups
POINTS = 0.5


def summary(**settings: Any) -> dict[str, float]:
    model = blip_fast.load("scenes", device="cpu", **settings)
    return score(model, scenes=SCENES, among=SCENES).summary()


@pytest.fixture(scope="module")
def exact() -> dict[str, float]:
    return summary(dtype="float32")


@pytest.mark.parametrize("settings", [{"dtype": "bfloat16"}, {"quantize": "int8"}], ids=str)
def test_no_metric_is_lost(settings: dict[str, str], exact: dict[str, float]) -> None:
    faster = summary(**settings)
    assert faster.keys() == exact.keys() and len(exact) == 5
    gained = {name: faster[name] - exact[name] for name in exact}
    print(gained)
    assert min(gained.values()) >= -POINTS, gained
