"""Tokens: the ids of transformers' BertTokenizer, packing, truncation."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import pytest
import torch

from blip_fast.config import TextConfig
from blip_fast.text import Tokenizer, pack

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PIECES = [*string.ascii_lowercase, *(f"##{c}" for c in string.ascii_lowercase), "a", "dog", "##gy"]
VOCABULARY = [*SPECIAL, *dict.fromkeys(PIECES), "sits", "red", ",", "."]

HOSTILE = [
    "",
    " \t\n\r ",
    "Café NAÏVE ﬁancée ÅNGSTRÖM",
    "日本語 漢字 and 한국어 ภาษาไทย",
    "\u202eright to left\u202c עברית العربية",
    "emoji 👩‍👩‍👧‍👦 🏳️‍🌈 1️⃣",
    "nul\x00 bell\x07 \ufffd \ufeff bom \u200b zero width",
    "combining a\u0301\u0302\u0303 zalgo",
    "don't   stop... it's(a)test—with–dashes_and_underscores",
    "[MASK] [SEP] [DEC] [ENC][CLS] [dec] [ DEC ]",
    "x" * 250,
    "supercalifragilistic " * 100,
    "\U0001d54f\U0001d4b8 mathematical \u2167 ligatures ﷺ",
    "https://example.com/a_b?c=d&e=%20#f <b>html</b> \\n \\u0041",
    "\ud7ff\ue000 private \uf8ff\U0010ffff",
]


@pytest.fixture(scope="module")
def vocab_file(shared_data: Path) -> Path:
    return shared_data / "bert_vocab" / "vocab.txt"


@pytest.fixture(scope="module")
def bert(vocab_file: Path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    tokenizer = transformers.BertTokenizer(str(vocab_file))
    tokenizer.add_special_tokens({"bos_token": "[DEC]", "additional_special_tokens": ["[ENC]"]})
    return tokenizer


def test_ids_are_those_of_bert_tokenizer(bert, vocab_file: Path, shared_data: Path) -> None:
    annotations = json.loads((shared_data / "coco_train80" / "captions.json").read_text())
    captions = [a["caption"] for a in annotations["annotations"]]
    assert len(captions) == 400
    ours = Tokenizer.read(vocab_file)
    assert len(ours) == len(bert) == 30524
    texts = captions + HOSTILE
    expected = [bert(t)["input_ids"] for t in texts]
    assert max(len(e) for e in expected) > 512
    assert ours.encode(texts, "[CLS]", max_length=10_000).tolist() == expected


def test_decoded_texts_are_those_of_bert_tokenizer(bert, vocab_file: Path) -> None:
    ours = Tokenizer.read(vocab_file)
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        ids = torch.randint(0, 30524, (12,), generator=generator).tolist()
        assert ours.decode(ids) == bert.decode(ids, skip_special_tokens=True)


def test_special_ids_fit_the_base_model(vocab_file: Path) -> None:
    Tokenizer.read(vocab_file).check(TextConfig())


def test_the_first_token_says_what_a_text_is_for() -> None:
    tokenizer = Tokenizer(VOCABULARY)
    for first in ("[CLS]", "[ENC]", "[DEC]"):
        (ids,) = tokenizer.encode(["a dog"], first, 32).tolist()
        assert ids[0] == tokenizer.id_of(first)
        assert ids[-1] == tokenizer.id_of("[SEP]")
    (ids,) = tokenizer.encode_prompts(["a dog"], 32).tolist()
    assert ids == [tokenizer.id_of(t) for t in ("[DEC]", "a", "dog")]


def test_long_texts_are_cut_and_flagged_and_keep_their_end() -> None:
    packed = Tokenizer(VOCABULARY).encode(["a dog", "a " * 50, "a a a a"], "[CLS]", 6)
    assert packed.truncated.tolist() == [False, True, False]
    assert packed.lengths.tolist() == [4, 6, 6]
    assert all(ids[-1] == SPECIAL.index("[SEP]") for ids in packed.tolist())


def test_of_a_text_of_megabytes_the_beginning_is_looked_at(monkeypatch: Any) -> None:
    """And its tokens are those of the whole, whatever stands where it is cut."""
    tokenizer = Tokenizer(VOCABULARY)
    texts = [" a dog" * 2000, "a" * 9000 + " dog" * 4000, " " * 9000 + "a dog", "a.dog " * 5000]
    short = tokenizer.encode(texts, "[ENC]", 30)
    lengths, encode = [], Tokenizer._encoded
    monkeypatch.setattr(
        Tokenizer,
        "_encoded",
        lambda self, some: lengths.extend(map(len, some)) or encode(self, some),
    )
    again = tokenizer.encode(texts, "[ENC]", 30)
    assert lengths[:4] == [4560] * 4 and again.tolist() == short.tolist()
    monkeypatch.setattr(Tokenizer, "_heads", lambda self, some, room: encode(self, list(some)))
    whole = tokenizer.encode(texts, "[ENC]", 30)
    assert short.tolist() == whole.tolist()
    assert short.truncated.tolist() == whole.truncated.tolist() == [True, True, False, True]
    monkeypatch.undo()
    packed = tokenizer.encode(["a" * 10_000_000, " " * 100_001 + "a"], "[ENC]", 30)
    assert packed.truncated.tolist() == [True, True] and packed.lengths.tolist() == [3, 2]


def test_packing() -> None:
    packed = pack([[7], [1, 2, 3], [4, 5]])
    assert packed.ids.tolist() == [7, 1, 2, 3, 4, 5]
    assert packed.offsets.tolist() == [0, 1, 4, 6]
    assert packed.offsets.dtype == torch.int32
    assert packed.positions.tolist() == [0, 0, 1, 2, 0, 1]
    assert packed.lengths.tolist() == [1, 3, 2]
    assert packed.max_length == 3
    assert packed.tolist() == [[7], [1, 2, 3], [4, 5]]
    assert len(pack([])) == 0
    with pytest.raises(ValueError, match="sequence 1 is empty"):
        pack([[1], []])


def test_vocabularies_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"lacks \[CLS\], \[SEP\], \[MASK\]"):
        Tokenizer(["[PAD]", "[UNK]", "a"])
    tokenizer = Tokenizer(VOCABULARY)
    with pytest.raises(ValueError, match="the model embeds 10"):
        tokenizer.check(TextConfig(vocab_size=10))
    with pytest.raises(ValueError, match=r"\[CLS\] is token 2 of the vocabulary and 101"):
        tokenizer.check(TextConfig())


def test_a_vocabulary_survives_its_file(tmp_path: Path) -> None:
    Tokenizer(VOCABULARY).write(tmp_path / "vocab.txt")
    again = Tokenizer.read(tmp_path / "vocab.txt")
    assert again.vocabulary == VOCABULARY
    assert again.id_of("[ENC]") == len(VOCABULARY) + 1
