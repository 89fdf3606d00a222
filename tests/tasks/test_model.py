"""The object that people hold: what it takes, what it refuses, and what bad images cost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import random_med, tiny_config, tiny_vocabulary
from PIL import Image

import blip_fast
from blip_fast.config import Kind
from blip_fast.images import ImageError, ImageOptions, Status
from blip_fast.med.blip import MED
from blip_fast.med.vision import VisionTransformer
from blip_fast.tasks.model import Blip
from blip_fast.text import Tokenizer

SETTINGS = {"max_length": 10, "min_length": 4}


def blip(kind: Kind) -> Blip:
    tokenizer = Tokenizer(tiny_vocabulary())
    return Blip(random_med(kind), tokenizer, "random", "", True, ImageOptions(size=32))


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Two pictures with a broken and a missing one between them."""
    generator = np.random.default_rng(0)
    for name in ("a.png", "d.png"):
        pixels = generator.integers(0, 256, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    (tmp_path / "b.png").write_bytes(b"not an image")
    return [tmp_path / n for n in ("a.png", "b.png", "c.png", "d.png")]


def test_one_image_in_any_form_gives_one_result(pictures: list[Path]) -> None:
    model = blip("pretrain")
    opened = Image.open(pictures[0])
    array = np.asarray(opened)
    forms = [
        pictures[0],
        str(pictures[0]),
        pictures[0].read_bytes(),
        opened,
        array,
        torch.from_numpy(array.copy()).permute(2, 0, 1),
    ]
    expected = model.caption(forms[0], **SETTINGS)
    assert len(expected) == 1 and expected.texts[0]
    for captions in (
        *(model.caption(form, **SETTINGS) for form in forms),
        *([row] for row in model.caption(model.see(forms), **SETTINGS)),
    ):
        (row,) = captions
        assert row[0].token_ids == expected[0][0].token_ids
        # Pillow resizes files, torch arrays: at most one grey level apart.
        assert row[0].log_probability == pytest.approx(expected[0][0].log_probability, abs=0.01)


def test_bad_images_are_rows_with_a_status(pictures: list[Path]) -> None:
    model = blip("pretrain")
    captions = model.caption(pictures, batch_size=2, **SETTINGS)
    assert captions.status == (
        Status.SUCCESS,
        Status.FAILED_TO_DECODE,
        Status.FAILED_TO_READ,
        Status.SUCCESS,
    )
    assert [bool(text) for text in captions.texts] == [True, False, False, True]
    assert captions.errors[0] == "" and captions.errors[1] and captions.errors[2]
    alone = model.caption(pictures[3], seed=3, **SETTINGS)
    assert captions[3][0].token_ids == alone[0][0].token_ids

    with pytest.warns(UserWarning, match="2 images could not be read: .*b.png"):
        scores = model.match(pictures, ["the dog", "a ball"])
    assert scores.isnan().any(1).tolist() == [False, True, True, False]
    with pytest.warns(UserWarning, match="2 images could not be read"):
        features = model.embed_images(pictures)
    assert features.isnan().any(1).tolist() == [False, True, True, False]


def test_a_memory_has_no_holes(pictures: list[Path]) -> None:
    with pytest.raises(ImageError, match="2 of 4 images cannot be read: .*b.png.*c.png"):
        blip("retrieval").see(pictures)
    with pytest.raises(ValueError, match="no images"):
        blip("retrieval").see([])


def test_nothing_in_nothing_out() -> None:
    model = blip("pretrain")
    assert len(model.caption([], **SETTINGS)) == 0
    assert model.match([], ["a"]).shape == (0, 1)
    images = torch.randn(2, 3, 32, 32)
    assert model.match(images, []).shape == (2, 0)
    assert model.match(images, ["a"], pairs=[]).shape == (0,)
    assert model.embed_texts([]).shape == (0, 32)


def test_what_other_weights_saw_is_refused() -> None:
    one = replace(blip("retrieval"), sha256="1" * 64)
    other = replace(blip("caption"), sha256="2" * 64)
    memory = one.see(torch.randn(2, 3, 32, 32))
    for own in (memory, memory.to("cpu"), type(memory).join([memory, memory])):
        assert one.match(own, "the dog").shape == (len(own), 1)
        with pytest.raises(ValueError, match="other weights .sha256 1111.* model's 2222"):
            other.caption(own)
    assert len(replace(other, sha256="").caption(memory, **SETTINGS)) == 2


def test_pairs_of_images(pictures: list[Path]) -> None:
    model = blip("nlvr")
    left, right = torch.randn(2, 3, 3, 32, 32)
    sentences = ["the dog", "two cats on a table", "red"]
    together = model.compare(left, right, sentences)
    for i in range(3):
        alone = model.compare(left[i], right[i], sentences[i])
        torch.testing.assert_close(alone[0], together[i])
    torch.testing.assert_close(model.compare(left, right, sentences, batch_size=2), together)
    assert not torch.allclose(model.compare(right, left, sentences), together)
    with pytest.warns(UserWarning, match="could not be read"):
        truth = model.compare([pictures[0], pictures[0]], [pictures[3], pictures[1]], "the dog")
    assert truth.isnan().tolist() == [False, True]


def test_pairs_of_images_where_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model = blip("nlvr")
    left, right = torch.randn(2, 3, 3, 32, 32)
    expected, forward = model.compare(left, right, "the dog"), VisionTransformer.forward

    def tight(self: VisionTransformer, some: torch.Tensor) -> torch.Tensor:
        if len(some) > 1 or torch.equal(some[0], left[2]):
            raise torch.OutOfMemoryError("not so many")
        return forward(self, some)

    monkeypatch.setattr(VisionTransformer, "forward", tight)
    with pytest.warns(UserWarning, match="not so many"):
        found = model.compare(left, right, "the dog")
    torch.testing.assert_close(found[:2], expected[:2])
    assert found.isnan().tolist() == [False, False, True]


@pytest.mark.parametrize("part", ["image", "text"])
def test_fewer_are_embedded_at_once_where_memory_runs_out(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, images = blip("retrieval"), torch.randn(5, 3, 32, 32)
    texts = ["the dog", "two cats", "a red ball", "a", "the dog on a table"]

    def embed() -> torch.Tensor:
        return model.embed_images(images) if part == "image" else model.embed_texts(texts)

    expected, feature, tried = embed(), getattr(MED, f"{part}_feature"), []

    def tight(self: MED, some: Any) -> torch.Tensor:
        tried.append(len(some))
        if len(some) > 2:
            raise torch.OutOfMemoryError("not so many")
        return feature(self, some)

    monkeypatch.setattr(MED, f"{part}_feature", tight)
    torch.testing.assert_close(embed(), expected)
    assert tried == [5, 2, 2, 1]
    monkeypatch.setattr(MED, f"{part}_feature", lambda *_: tight(model.med, range(3)))
    if part == "text":
        with pytest.raises(torch.OutOfMemoryError, match="text 0 alone is too much: .*not so many"):
            embed()
    else:
        with pytest.warns(UserWarning, match="not so many"):
            assert embed().isnan().all()


def test_what_a_checkpoint_cannot_do_is_said() -> None:
    images = torch.randn(1, 3, 32, 32)
    with pytest.raises(
        ValueError, match="kind 'retrieval', which cannot caption; load a captioning"
    ):
        blip("retrieval").caption(images)
    with pytest.raises(ValueError, match="kind 'caption', which cannot match"):
        blip("caption").match(images, "a")
    with pytest.raises(ValueError, match="cannot answer; load a VQA"):
        blip("pretrain").answer(images, "who")
    with pytest.raises(ValueError, match="cannot compare"):
        blip("vqa").compare(images, images, "a")


def test_numbers_must_agree() -> None:
    images = torch.randn(3, 3, 32, 32)
    with pytest.raises(ValueError, match="2 prompts for 3 images"):
        blip("caption").caption(images, ["a", "b"])
    with pytest.raises(ValueError, match="1 seeds for 3 images"):
        blip("caption").caption(images, top_p=0.9, seed=[5])
    with pytest.raises(ValueError, match="2 questions for 3 images"):
        blip("vqa").answer(images, ["a", "b"])
    with pytest.raises(ValueError, match=r"pair \(3, 0\) names image 3; there are 3"):
        blip("retrieval").match(images, ["a"], [(0, 0), (3, 0)])


def test_long_texts_are_cut_with_a_warning() -> None:
    model = blip("retrieval")
    images = torch.randn(1, 3, 32, 32)
    with pytest.warns(UserWarning, match="1 of 2 texts were cut to 6 tokens"):
        scores = model.match(images, ["the dog", "a " * 30], max_length=6)
    torch.testing.assert_close(scores[:, 1:], model.match(images, "a a a a"))


def test_the_prompt_is_left_out_unless_kept() -> None:
    model = blip("caption")
    images = torch.randn(1, 3, 32, 32)
    bare = model.caption(images, "the red dog", **SETTINGS)
    kept = model.caption(images, "the red dog", keep_prompt=True, **SETTINGS)
    assert kept.texts[0].startswith("the red dog") and bare.texts[0]
    assert kept.texts[0].removeprefix("the red dog").strip() == bare.texts[0]
    assert kept[0][0].token_ids == bare[0][0].token_ids


def test_any_image_size_at_load(tmp_path: Path) -> None:
    blip("caption").save(tmp_path)
    model = blip_fast.load(tmp_path, image_size=48, dtype="float32", device="cpu")
    assert model.see(torch.zeros(1, 3, 50, 60, dtype=torch.uint8)).pairs.shape[2] == 1 + 36
    with pytest.raises(ValueError, match="image_size 50 is not a positive multiple of .* 8"):
        blip_fast.load(tmp_path, image_size=50)
    with pytest.raises(ValueError, match="dtype is 'int4'"):
        blip_fast.load(tmp_path, dtype="int4")
    with pytest.raises(ValueError, match="device 'cuda:99' cannot be used here: .*default"):
        blip_fast.load(tmp_path, device="cuda:99")


def test_the_packaged_model_is_trained_and_captions() -> None:
    model = blip_fast.load("scenes", device="cpu")
    assert model.trained
    caption = model.caption(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), **SETTINGS)
    assert caption.status == (Status.SUCCESS,)


def test_configs_survive_their_dictionary() -> None:
    config = tiny_config("vqa")
    assert blip_fast.BlipConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ValueError, match="VisionConfig does not know colour"):
        blip_fast.BlipConfig.from_dict({"vision": {"colour": "red"}})


def test_matching_looks_at_named_images_alone_and_within_a_budget(
    pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = blip("retrieval")
    texts, images = ["a cat", "the red dog on a box", "sky"], [pictures[0], pictures[3]] * 3
    pairs = [(4, 1), (0, 0), (5, 2), (0, 2), (4, 0)]
    expected = model.match(images, texts)[tuple(zip(*pairs, strict=True))]
    seen: list[int] = []
    see = model.med.see
    monkeypatch.setattr(model.med, "see", lambda pixels: seen.append(len(pixels)) or see(pixels))
    torch.testing.assert_close(model.match(images, texts, pairs), expected)
    assert seen == [3]
    one_image = 2 * 17 * 2 * 128 * 4  # bytes: layers, tokens, keys and values, width, float32
    seen.clear()
    found = model.match(images, texts, pairs, memory_budget=2 * one_image)
    torch.testing.assert_close(found, expected)
    assert seen == [2, 1]
    with pytest.warns(UserWarning, match=r"image 2: failed_to_decode"):
        found = model.match([images[0], images[1], b"none"], texts, [(2, 0), (1, 0)])
    assert found.isnan().tolist() == [True, False]
