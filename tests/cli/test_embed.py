from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blip_fast.data.table import read_rows


def test_rows_of_features_and_of_the_table_agree(
    run: Any, pictures: Path, scenes: Any, tmp_path: Path
) -> None:
    output = tmp_path / "out" / "features.npy"
    (tmp_path / "texts.txt").write_text("a cat\n猫\n", encoding="utf-8")
    flags = ("--output", output, "--texts", tmp_path / "texts.txt", "--batch-size", 1)
    code, _, err = run("embed", pictures, *flags)
    assert code == 0 and "2 of 3 pictures embedded" in err
    features, rows = np.load(output), read_rows(output.with_suffix(".parquet"))
    assert features.dtype == np.float32 and len(features) == len(rows) == 3
    assert [row["status"] for row in rows] == ["success", "failed_to_decode", "success"]
    assert np.isnan(features[1]).all() and rows[1]["error_message"]
    good = [rows[0]["path"], rows[2]["path"]]
    np.testing.assert_allclose(features[[0, 2]], scenes.embed_images(good).numpy(), atol=1e-5)
    texts = read_rows(output.with_name("features_texts.parquet"))
    assert [row["text"] for row in texts] == ["a cat", "猫"]
    np.testing.assert_allclose(
        np.load(output.with_name("features_texts.npy")),
        scenes.embed_texts(["a cat", "猫"]).numpy(),
        atol=1e-5,
    )


def test_json(run: Any, pictures: Path) -> None:
    code, out, _ = run("embed", pictures, "--json")
    first, failed, _ = (json.loads(line) for line in out.splitlines())
    assert code == 0 and np.linalg.norm(first["embedding"]) == pytest.approx(1, abs=1e-5)
    assert failed["status"] == "failed_to_decode"


@pytest.mark.parametrize("flags", [(), ("--output", "features.txt")])
def test_a_place_for_the_features_is_needed(run: Any, pictures: Path, flags: tuple) -> None:
    code, _, err = run("embed", pictures, *flags)
    assert code == 1 and "--output" in err


def test_a_mistyped_folder_costs_no_index(run: Any, pictures: Path, tmp_path: Path) -> None:
    output = tmp_path / "features.npy"
    assert run("embed", pictures, "--output", output)[0] == 0
    before = output.read_bytes()
    code, _, err = run("embed", tmp_path / "typo", "--output", output)
    assert code == 1 and "0 of 1 pictures embedded" in err
    assert output.read_bytes() == before
