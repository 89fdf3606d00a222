"""To the transformers library and back: its folders, its models in memory, its own reading."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import hf_tiny, random_med, tiny_config, tiny_vocabulary
from salesforce import HF, assert_identical
from torch.nn import functional as F

from blip_fast.config import Kind
from blip_fast.med.blip import MED
from blip_fast.med.context import PackedMemory, PackedPast
from blip_fast.med.weights import (
    WeightsError,
    build,
    from_live_transformers,
    read_checkpoint,
    write_checkpoint,
)
from blip_fast.text import PackedText, Tokenizer, pack

LENGTHS = (3, 7, 5)


def texts(first: int) -> tuple[PackedText, torch.Tensor, torch.Tensor]:
    """Packed, and padded as ids and mask."""
    rows = [[first, *torch.randint(1, 100, (n - 1,)).tolist()] for n in LENGTHS]
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(r) for r in rows], batch_first=True)
    return pack(rows), ids, (torch.arange(7) < torch.tensor(LENGTHS)[:, None]).long()


def assert_agree(model: MED, theirs: Any) -> None:
    """Both give the same for three ragged texts on three images."""
    pixels, index = torch.randn(3, 3, 32, 32), torch.arange(3)
    memory = model.see(pixels)
    found: list[torch.Tensor]
    if model.config.kind == "retrieval":
        text, ids, mask = texts(model.config.text.cls_id)
        assert memory.feature is not None
        found = [
            model.match_logits(text, memory, index),
            memory.feature @ model.text_feature(text).T,
        ]
        expected = [
            theirs(ids, pixels, use_itm_head=head, attention_mask=mask).itm_score
            for head in (True, False)
        ]
    elif model.config.kind == "caption":
        text, ids, mask = texts(model.config.text.dec_id)
        found = [logits_of(model, text, PackedMemory(memory.pairs, index, text.offsets))]
        logits = theirs(pixel_values=pixels, input_ids=ids, attention_mask=mask).logits
        expected = [logits[mask.bool()]]
    else:
        # One question at a time: transformers ignores the mask of padded questions.
        text, ids, mask = texts(model.config.text.cls_id)
        answer, answer_ids, _ = texts(model.config.text.dec_id)
        asked = model.ask(text, memory, index)
        grounding = PackedMemory(asked.pairs, index, answer.offsets, asked.key_lengths)
        found = list(logits_of(model, answer, grounding).split(LENGTHS))
        vision = theirs.vision_model(pixels).last_hidden_state
        expected = []
        for row, n in enumerate(LENGTHS):
            states = theirs.text_encoder(
                input_ids=ids[row : row + 1, :n], encoder_hidden_states=vision[row : row + 1]
            ).last_hidden_state
            logits = theirs.text_decoder(
                input_ids=answer_ids[row : row + 1, :n], encoder_hidden_states=states
            ).logits
            expected.append(logits[0])
    for a, b in zip(found, expected, strict=True):
        assert b.std() > 1e-3
        assert (a - b).abs().max() < 1e-4 * b.abs().max()


def logits_of(model: MED, text: PackedText, grounding: PackedMemory) -> torch.Tensor:
    past = PackedPast(text, causal=True)
    return model.next_logits(model.write(text.ids, text.positions, past, grounding))


@pytest.mark.parametrize("kind", HF)
def test_live_model(kind: Kind) -> None:
    theirs = hf_tiny(HF[kind], seed=5)
    checkpoint = from_live_transformers(theirs)
    assert checkpoint.config.kind == kind and checkpoint.config.compat == "paper"
    assert checkpoint.layout == "transformers" and len(checkpoint.sha256) == 64
    model = build(checkpoint, dtype=torch.float32, device="cpu")
    assert_agree(model, theirs)
    shared = theirs.vision_model.post_layernorm.weight
    assert model.vision.norm.weight.data_ptr() == shared.data_ptr()


def test_live_model_keeps_its_gradients() -> None:
    theirs = hf_tiny("BlipForConditionalGeneration").requires_grad_(True)
    model = build(from_live_transformers(theirs), dtype=torch.float32, device="cpu")
    assert all(p.requires_grad for p in theirs.parameters())
    assert not any(p.requires_grad for p in model.parameters())


def test_live_models_that_are_refused() -> None:
    with pytest.raises(WeightsError, match=r"BlipModel.*match no BLIP checkpoint"):
        from_live_transformers(hf_tiny("BlipModel"))
    with pytest.raises(WeightsError, match="not the weights of a BLIP"):
        from_live_transformers(torch.nn.Linear(2, 2))
    with pytest.raises(WeightsError, match="MED is not a BLIP"):
        from_live_transformers(random_med("caption"))
    with pytest.raises(WeightsError, match="offloaded"):
        from_live_transformers(hf_tiny("BlipForConditionalGeneration").to("meta"))
    with pytest.raises(WeightsError, match=r"\[DEC\] is token 125"):
        tokenizer = Tokenizer(tiny_vocabulary()[:-1])
        from_live_transformers(hf_tiny("BlipForConditionalGeneration"), tokenizer)


@pytest.mark.parametrize("kind", HF)
def test_written_folder_is_read_by_transformers(tmp_path: Path, kind: Kind) -> None:
    import transformers

    model = random_med(kind, seed=4, config=tiny_config(kind, vision_width=128))
    tokenizer = Tokenizer(tiny_vocabulary())
    assert write_checkpoint(model, tokenizer, tmp_path, "transformers") == tmp_path
    theirs, report = getattr(transformers, HF[kind]).from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(report.values()), report
    assert_agree(model, theirs.eval())
    assert theirs.config.architectures == [HF[kind]]
    again = read_checkpoint(tmp_path)
    assert again.config == model.config
    state = {name: p.detach() for name, p in model.named_parameters()}
    if kind == "retrieval":
        state["temperature.value"] = torch.tensor([0.07])  # transformers keeps none
    assert_identical(again.state, state)


def test_written_tokenizer_and_processor_are_read_by_transformers(tmp_path: Path) -> None:
    from transformers import AutoTokenizer, BertTokenizer, BlipImageProcessor

    tokenizer = Tokenizer(tiny_vocabulary())
    model = random_med("caption", config=tiny_config("caption", vision_width=128))
    write_checkpoint(model, tokenizer, tmp_path, "transformers")
    sentences = ["the dog, on a beach!", "two red cars"]
    expected = tokenizer.encode(sentences, "[CLS]", max_length=64).tolist()
    for theirs in (AutoTokenizer, BertTokenizer):
        found = theirs.from_pretrained(tmp_path)
        assert found(sentences)["input_ids"] == expected
        assert found.convert_tokens_to_ids(["[DEC]", "[ENC]", "[PAD]"]) == [126, 127, 0]
        assert found.bos_token_id == 126 and len(found) == 128
    processor = BlipImageProcessor.from_pretrained(tmp_path)
    assert processor.size == {"height": 32, "width": 32}
    picture = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    pixels = processor(picture, return_tensors="pt")["pixel_values"]
    ours, theirs = model.vision(picture[None]), model.vision(pixels)
    assert F.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0) > 1 - 1e-5


def test_half_precision_stays(tmp_path: Path) -> None:
    model = random_med("caption", config=tiny_config("caption", vision_width=128)).bfloat16()
    write_checkpoint(model, None, tmp_path, "transformers")
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    assert {t.dtype for t in read_checkpoint(tmp_path).state.values()} == {torch.bfloat16}
    assert not (tmp_path / "vocab.txt").exists()
