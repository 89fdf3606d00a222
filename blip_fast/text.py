"""Texts to tokens: BERT's WordPiece with BLIP's two extra tokens, and rows of packed sequences.

Position 0 of a sequence says what it is for: [CLS] a text alone, [ENC] a text grounded in an
image, [DEC] a text to be written. [SEP] ends it. Texts travel packed, one after the other with
offsets, so nothing is ever computed on padding.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Literal

import torch
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as WordPieceTokenizer
from torch import Tensor
from torch.nn import functional as F

from blip_fast.config import TextConfig

First = Literal["[CLS]", "[ENC]", "[DEC]"]

_BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_BLIP_SPECIAL = ("[DEC]", "[ENC]")  # in this order: ids 30522 and 30523 after BERT's vocabulary

_SURROGATE = re.compile("[\ud800-\udfff]")
_LONGEST = 100_000  # characters of a text that are looked at, whatever they are
_LONGEST_WORD = 100  # tokens, as it has characters: BERT takes what is longer for one unknown word


@dataclass(frozen=True)
class PackedText:
    """N token sequences, one after the other.

    Attributes:
        ids: [T] int64.
        offsets: [N + 1] int32; sequence n is ids[offsets[n] : offsets[n + 1]].
        positions: [T] int64, the place of each token in its sequence.
        lengths: [N] int64.
        max_length: no length is larger; known on the host.
        truncated: [N] bool, on the host: whether the text was cut to fit.
    """

    ids: Tensor
    offsets: Tensor
    positions: Tensor
    lengths: Tensor
    max_length: int
    truncated: Tensor

    def __len__(self) -> int:
        return self.lengths.numel()

    @property
    def device(self) -> torch.device:
        return self.ids.device

    def to(self, device: torch.device | str) -> PackedText:
        return PackedText(
            self.ids.to(device),
            self.offsets.to(device),
            self.positions.to(device),
            self.lengths.to(device),
            self.max_length,
            self.truncated,
        )

    def starting_with(self, first: int) -> PackedText:
        """The same texts for another purpose: their first tokens replaced."""
        return replace(self, ids=self.ids.masked_fill(self.positions == 0, first))

    def take(self, index: Tensor) -> PackedText:
        """Some of the texts, any number of times each. Waits for the device, to know the size.

        Args:
            index: [M] int64; `truncated` is left behind, because it lives on the host.
        """
        lengths = self.lengths[index]
        total = int(lengths.sum())
        offsets = F.pad(lengths.cumsum(0), (1, 0))
        owner = torch.repeat_interleave(lengths, output_size=total)
        positions = torch.arange(total, device=self.device) - offsets[owner]
        return PackedText(
            ids=self.ids[self.offsets[index].long()[owner] + positions],
            offsets=offsets.int(),
            positions=positions,
            lengths=lengths,
            max_length=self.max_length,
            truncated=torch.zeros(len(index), dtype=torch.bool),
        )

    def tolist(self) -> list[list[int]]:
        """The sequences as lists of ids."""
        return [part.tolist() for part in self.ids.split(self.lengths.tolist())]


def pack(sequences: Sequence[Sequence[int]], truncated: Sequence[bool] = ()) -> PackedText:
    """Lay token sequences one after the other.

    Raises:
        ValueError: where a sequence is empty; each holds at least its first token.
    """
    lengths = [len(s) for s in sequences]
    if 0 in lengths:
        raise ValueError(f"sequence {lengths.index(0)} is empty; each needs a first token")
    sizes = torch.tensor(lengths, dtype=torch.int64)
    places = [torch.arange(n) for n in lengths]
    return PackedText(
        ids=torch.tensor([i for s in sequences for i in s], dtype=torch.int64),
        offsets=torch.tensor([0, *accumulate(lengths)], dtype=torch.int32),
        positions=torch.cat(places) if places else sizes,
        lengths=sizes,
        max_length=max(lengths, default=0),
        truncated=torch.tensor(truncated or [False] * len(lengths), dtype=torch.bool),
    )


def join(texts: Sequence[PackedText]) -> PackedText:
    """Several lists of texts as one, in order."""
    ends = accumulate(text.ids.numel() for text in texts)
    moved = [text.offsets[1:] + begin for text, begin in zip(texts, [0, *ends][:-1], strict=True)]
    return PackedText(
        ids=torch.cat([text.ids for text in texts]),
        offsets=torch.cat([texts[0].offsets[:1], *moved]),
        positions=torch.cat([text.positions for text in texts]),
        lengths=torch.cat([text.lengths for text in texts]),
        max_length=max(text.max_length for text in texts),
        truncated=torch.cat([text.truncated for text in texts]),
    )


class Tokenizer:
    """BERT's uncased WordPiece over a vocabulary, with [DEC] and [ENC] appended where missing.

    Gives the ids that transformers' BertTokenizer gives with the same two tokens added.

    Raises:
        ValueError: where the vocabulary lacks one of BERT's special tokens.
    """

    def __init__(self, vocabulary: Sequence[str]) -> None:
        self.vocabulary = list(vocabulary)
        if missing := [t for t in _BERT_SPECIAL if t not in self.vocabulary]:
            raise ValueError(
                f"the vocabulary of {len(self.vocabulary)} tokens lacks {', '.join(missing)}; "
                "a BERT vocab.txt has them, one token a line"
            )
        tokens = self.vocabulary + [t for t in _BLIP_SPECIAL if t not in self.vocabulary]
        ids = {token: i for i, token in enumerate(tokens)}
        self._ids = ids
        self._special = {ids[t] for t in (*_BERT_SPECIAL, *_BLIP_SPECIAL)}
        self._tokenizer = WordPieceTokenizer(
            models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100)
        )
        self._tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        self._tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        self._tokenizer.decoder = decoders.WordPiece()
        self._tokenizer.add_special_tokens(
            [
                AddedToken(t, special=True, normalized=False)
                for t in (*_BERT_SPECIAL, *_BLIP_SPECIAL)
            ]
        )

    @classmethod
    def read(cls, path: Path) -> Tokenizer:
        """Read a `vocab.txt`: one token a line, its id the line's number."""
        return cls(path.read_text(encoding="utf-8").removesuffix("\n").split("\n"))

    def write(self, path: Path) -> None:
        """Write a `vocab.txt` that `read` reads."""
        path.write_text("\n".join(self.vocabulary) + "\n", encoding="utf-8")

    def __len__(self) -> int:
        return len(self._ids)

    def id_of(self, token: str) -> int:
        """The id of a token, special or not; a KeyError where the vocabulary has none such."""
        return self._ids[token]

    def check(self, config: TextConfig) -> None:
        """Raise a ValueError unless the vocabulary fits the model's sizes and special ids."""
        if len(self) > config.vocab_size:
            raise ValueError(
                f"the vocabulary has {len(self)} tokens, the model embeds {config.vocab_size}; "
                "they are not of one checkpoint"
            )
        expected = {
            "[PAD]": config.pad_id,
            "[CLS]": config.cls_id,
            "[SEP]": config.sep_id,
            "[DEC]": config.dec_id,
            "[ENC]": config.enc_id,
        }
        for token, id_ in expected.items():
            if self.id_of(token) != id_:
                raise ValueError(
                    f"{token} is token {self.id_of(token)} of the vocabulary and {id_} of the "
                    "model; they are not of one checkpoint"
                )

    def encode(self, texts: Sequence[str], first: First, max_length: int) -> PackedText:
        """Tokenise and pack: `first`, the text, [SEP]; at most `max_length` tokens in all.

        Text beyond that is cut, [SEP] kept, and the sequence flagged as truncated; so is what goes
        on for more than 100,000 characters.
        """
        return self._pack(texts, [self.id_of(first)], [self.id_of("[SEP]")], max_length)

    def encode_prompts(self, prompts: Sequence[str], max_length: int) -> PackedText:
        """The beginnings of texts to be written: [DEC] and the prompt, no [SEP]; cut as above."""
        return self._pack(prompts, [self.id_of("[DEC]")], [], max_length)

    def encode_phrases(self, phrases: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """The ids of phrases within a text, without special tokens.

        Raises:
            ValueError: where a phrase holds no token.
        """
        found = self._encoded(phrases)
        for phrase, ids in zip(phrases, found, strict=True):
            if not ids:
                raise ValueError(f"the phrase {phrase!r} holds no word")
        return tuple(tuple(ids) for ids in found)

    def _pack(
        self, texts: Sequence[str], before: list[int], after: list[int], max_length: int
    ) -> PackedText:
        room = max_length - len(before) - len(after)
        bodies = self._heads(texts, room)
        return pack(
            [[*before, *ids[:room], *after] for ids in bodies],
            [
                len(ids) > room or len(text) > _LONGEST
                for ids, text in zip(bodies, texts, strict=True)
            ],
        )

    def _heads(self, texts: Sequence[str], room: int) -> list[list[int]]:
        """The ids of texts, the first `room` of them at least: of a text of megabytes, which
        would take minutes, only the beginning is looked at."""
        enough = 20 * room + 4000  # characters
        found = self._encoded([text[:enough] for text in texts])
        for place, text in enumerate(texts):
            # A word that was cut in two has been other tokens, but they are a hundred at most.
            if len(text) > enough and len(found[place]) <= room + _LONGEST_WORD:
                (found[place],) = self._encoded([text[: max(enough, _LONGEST)]])
        return found

    def _encoded(self, texts: Iterable[str]) -> list[list[int]]:
        # Half of a surrogate pair, as in a name that was no UTF-8, is no character: it is dropped,
        # as BERT drops all that it cannot read.
        whole = [_SURROGATE.sub("\ufffd", text) for text in texts]
        return [one.ids for one in self._tokenizer.encode_batch(whole, add_special_tokens=False)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids, special tokens left out."""
        return self._tokenizer.decode([i for i in ids if i not in self._special])
