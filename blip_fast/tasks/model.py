"""The object that people hold: a MED, its tokenizer, and one method for each thing it can do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blip_fast.config import BlipConfig
from blip_fast.decoding.limit import default_budget
from blip_fast.decoding.options import DEFAULT_TOP_K, EarlyStopping, SearchOptions
from blip_fast.images import ImageOptions
from blip_fast.med.blip import MED
from blip_fast.med.memory import ImageMemory
from blip_fast.med.quantize import Quantize, is_quantized
from blip_fast.med.weights import write_checkpoint
from blip_fast.med.weights.write import Layout
from blip_fast.tasks import answer, caption, compare, embed, match, retrieve
from blip_fast.tasks import arguments as given
from blip_fast.tasks.captions import Captions, Outcome
from blip_fast.tasks.match import Pairs, Score
from blip_fast.tasks.retrieve import RankBy, Retrieval
from blip_fast.tasks.views import ImageList, Images, listed, see_all
from blip_fast.text import Tokenizer

# The reference's prompt: every captioning checkpoint was finetuned to go on from it.
DEFAULT_PROMPT = "a picture of "

# Images whose memory is held at once: 8 of a base model take 170 MB in bf16.
_CPU_BATCH, _DEVICE_BATCH = 8, 64


@dataclass(frozen=True)
class Blip:
    """A BLIP model ready for inference; `blip_fast.load` makes it.

    Wherever a method takes `images`, it takes one image or many (paths, URLs, bytes, PIL images,
    arrays, tensors) or the `ImageMemory` that `see` made of them. An image that cannot be read
    never costs its neighbours their result: its own is a status, or NaN with a warning. A method
    that the checkpoint has no parts for raises a ValueError that says which checkpoint has.

    Attributes:
        med: the network.
        tokenizer: of the checkpoint.
        source: what `load` was given.
        sha256: of the weights file, empty where the model came from memory.
        trained: False for the packaged model as long as its weights are random.
        image_options: how images are read; `size` in pixels is the input size.
    """

    med: MED
    tokenizer: Tokenizer
    source: str
    sha256: str
    trained: bool
    image_options: ImageOptions

    @property
    def config(self) -> BlipConfig:
        return self.med.config

    @property
    def image_size(self) -> int:
        return self.image_options.size

    @property
    def device(self) -> torch.device:
        return self.med.device

    @property
    def dtype(self) -> torch.dtype:
        return self.med.dtype

    @property
    def quantize(self) -> Quantize | None:
        """ "int8" where most weights are; see `blip_fast.load`."""
        return "int8" if is_quantized(self.med) else None

    def see(self, images: Images, batch_size: int | None = None) -> ImageMemory:
        """Run images through the vision transformer, once for all questions to come.

        Returns:
            the memory of all images, in order: 42 MB an image for a base model in fp32.

        Raises:
            ImageError: where images cannot be read, naming each; a memory has no holes. Other
                methods go on without them.
        """
        images, at_once = self._listed(images), self._at_once(batch_size)
        return see_all(self.med, images, self.image_options, at_once, self.sha256)

    def caption(
        self,
        images: Images,
        prompt: str | Sequence[str] = DEFAULT_PROMPT,
        *,
        num_captions: int = 1,
        num_beams: int = 3,
        top_p: float | None = None,
        top_k: int = DEFAULT_TOP_K,
        temperature: float = 1.0,
        max_length: int = 30,
        min_length: int = 10,
        repetition_penalty: float | None = None,
        length_penalty: float = 1.0,
        seed: int | Sequence[int] = 0,
        keep_prompt: bool = False,
        early_stopping: EarlyStopping = False,
        forbidden: Sequence[str] = (),
        batch_size: int | None = None,
        slots: int | None = None,
    ) -> Captions:
        """Write captions: by beam search, greedily (`num_beams=1`), or by sampling (`top_p`).

        Args:
            prompt: what the captions begin with; one for all images or one for each.
            num_captions, num_beams, top_p, top_k, temperature, max_length, min_length,
            repetition_penalty, length_penalty, early_stopping: see `SearchOptions`; lengths are
                in tokens and count the prompt.
            seed: of sampling; with one number, image n uses seed + n. The captions of an image
                depend on its seed, never on its batch.
            keep_prompt: whether texts include the prompt.
            forbidden: words and phrases that are never written.
            batch_size: images seen at once.
            slots: images written about at once: when the captions of one have ended, another
                takes its place. `batch_size` where that alone is given, else what fits a budget.

        Raises:
            ValueError: where the model has no decoder, or settings contradict each other.
        """
        outcomes = self.caption_stream(
            images,
            prompt,
            num_captions=num_captions,
            num_beams=num_beams,
            top_p=top_p,
            top_k=top_k,
            temperature=temperature,
            max_length=max_length,
            min_length=min_length,
            repetition_penalty=repetition_penalty,
            length_penalty=length_penalty,
            seed=seed,
            keep_prompt=keep_prompt,
            early_stopping=early_stopping,
            forbidden=forbidden,
            batch_size=batch_size,
            slots=slots,
        )
        return Captions.of(list(outcomes))

    def caption_stream(
        self,
        images: Images,
        prompt: str | Sequence[str] = DEFAULT_PROMPT,
        *,
        num_captions: int = 1,
        seed: int | Sequence[int] = 0,
        keep_prompt: bool = False,
        forbidden: Sequence[str] = (),
        batch_size: int | None = None,
        slots: int | None = None,
        **search: Any,
    ) -> Iterator[Outcome]:
        """The same one image after the other, as soon as each is ready: for thousands of them.

        Args:
            images, prompt and others: as for `caption`.
            search: the other settings of `SearchOptions`.
        """
        self._require(self.config.kind in ("caption", "pretrain"), "caption", "captioning")
        phrases = self.tokenizer.encode_phrases(given.texts_of(forbidden))
        options = SearchOptions(num_texts=num_captions, forbidden=phrases, **search)
        images = self._listed(images)
        return caption.caption(
            self.med,
            self.tokenizer,
            images,
            given.for_each("prompts", prompt, len(images)),
            options,
            given.seeds_of(seed, len(images)),
            keep_prompt,
            self.image_options,
            self._at_once(batch_size),
            batch_size if slots is None else given.positive("slots", slots, 1),
        )

    def match(
        self,
        images: Images,
        texts: str | Sequence[str],
        pairs: Pairs | None = None,
        *,
        score: Score = "probability",
        max_length: int | None = None,
        batch_size: int | None = None,
        memory_budget: int | None = None,
    ) -> Tensor:
        """Judge with the ITM head whether texts describe images.

        Pairs are taken image by image: a memory is made once, serves all its texts, and goes.

        Args:
            pairs: (image, text) indices to judge; all pairs where none are given.
            score: the softmax probability of a match, its logit, or both "logits" of the ITM
                head, no match and match, as a last axis.
            max_length: texts longer than this, in tokens, are cut, with a warning; the model's
                maximum where none is given. BLIP was evaluated with 35.
            batch_size: images whose memories are held at once.
            memory_budget: the bytes that they may take instead.

        Returns:
            [images, texts], or [pairs], float32 on the host; NaN where an image cannot be read.
        """
        self._require(self.config.has_matching, "match", "matching")
        return match.match(
            self.med,
            self.tokenizer,
            self._listed(images),
            given.texts_of(texts),
            pairs,
            score,
            self._cut_to(max_length),
            self.image_options,
            self._at_once(batch_size) if memory_budget is None else self._within(memory_budget),
        )

    def retrieve(
        self,
        images: Images,
        texts: str | Sequence[str],
        *,
        k: int = 128,
        rank_by: RankBy = "itm+itc",
        max_length: int | None = None,
        batch_size: int | None = None,
        memory_budget: int | None = None,
    ) -> Retrieval:
        """Rank images for each text and texts for each image: ITC finds k candidates, ITM ranks
        them again (BLIP, section 5.1).

        A pair that both directions want is judged once.

        Args:
            k: candidates of each query; BLIP takes 256 on COCO and 128 on Flickr30K.
            rank_by: "itm+itc", the ITM logit of a match plus the cosine, as published; "itm", the
                logit alone; "itc", the cosine, with no second stage.
            max_length: as for `match`.
            batch_size: images seen at once.
            memory_budget: bytes of image tokens and memories that are held; what is not held is
                seen a second time.

        Raises:
            ValueError: where the model has no ITM head, or there is nothing to rank.
        """
        self._require(self.config.has_matching, "retrieve", "matching")
        return retrieve.retrieve(
            self.med,
            self.tokenizer,
            self._listed(images),
            given.texts_of(texts),
            k,
            rank_by,
            self._cut_to(max_length),
            self.image_options,
            self._at_once(batch_size),
            given.positive("memory_budget", memory_budget, default_budget(self.device)),
        )

    def similarity(
        self,
        images: Images,
        texts: str | Sequence[str],
        *,
        max_length: int | None = None,
        batch_size: int | None = None,
    ) -> Tensor:
        """ITC cosines [images, texts], float32 on the host; arguments as for `match`."""
        return embed.similarity(
            self.embed_images(images, batch_size=batch_size),
            self.embed_texts(texts, max_length=max_length),
        )

    def embed_images(self, images: Images, *, batch_size: int | None = None) -> Tensor:
        """Normalised ITC features [N, E], float32 on the host; comparable with those of texts."""
        self._require(self.config.has_matching, "embed", "matching")
        if isinstance(images, ImageMemory):
            return embed.features_of(images)
        several: Any = self._listed(images)  # no memory
        batch_size = self._at_once(batch_size)
        return embed.embed_images(self.med, several, self.image_options, batch_size)

    def embed_texts(self, texts: str | Sequence[str], *, max_length: int | None = None) -> Tensor:
        """Normalised ITC features [T, E], float32 on the host."""
        self._require(self.config.has_matching, "embed", "matching")
        several, max_length = given.texts_of(texts), self._cut_to(max_length)
        return embed.embed_texts(self.med, self.tokenizer, several, max_length)

    def answer(
        self,
        images: Images,
        questions: str | Sequence[str],
        candidates: Sequence[str] | None = None,
        *,
        k: int = 128,
        num_beams: int = 3,
        max_length: int = 10,
        min_length: int = 1,
        max_question_length: int | None = None,
        batch_size: int | None = None,
    ) -> Captions:
        """Answer a question about each image.

        Args:
            questions: one for all images, or one for each.
            candidates: answers to choose from; written freely where none are given.
            k: how many candidates are scored whole, after the likeliness of their first token.
            num_beams, max_length, min_length: of written answers; see `SearchOptions`.
        """
        self._require(self.config.kind == "vqa", "answer", "VQA")
        choices = None if candidates is None else given.texts_of(candidates)
        if choices == []:
            raise ValueError("candidates is empty; give some, or None to have answers written")
        images = self._listed(images)
        return answer.answer(
            self.med,
            self.tokenizer,
            images,
            given.for_each("questions", questions, len(images)),
            choices,
            given.positive("k", k, 1),
            SearchOptions(num_beams=num_beams, max_length=max_length, min_length=min_length),
            self._cut_to(max_question_length, "max_question_length"),
            self.image_options,
            self._at_once(batch_size),
        )

    def compare(
        self,
        left: Images,
        right: Images,
        sentences: str | Sequence[str],
        *,
        max_length: int | None = None,
        batch_size: int | None = None,
    ) -> Tensor:
        """NLVR2: the probability that each sentence is true of its pair of images, [N] float32."""
        self._require(self.config.kind == "nlvr", "compare", "NLVR2")
        lefts, rights = self._listed(left), self._listed(right)
        given.same_number("right images", len(rights), len(lefts))
        return compare.compare(
            self.med,
            self.tokenizer,
            lefts,
            rights,
            given.for_each("sentences", sentences, len(lefts)),
            self._cut_to(max_length),
            self.image_options,
            self._at_once(batch_size),
        )

    def save(self, folder: str | Path, layout: Layout = "blip_fast") -> Path:
        """Write the checkpoint; see `blip_fast.med.weights.write_checkpoint`."""
        return write_checkpoint(self.med, self.tokenizer, Path(folder), layout)

    def _at_once(self, batch_size: int | None) -> int:
        default = _CPU_BATCH if self.device.type == "cpu" else _DEVICE_BATCH
        return given.positive("batch_size", batch_size, default)

    def _within(self, budget: int) -> int:
        budget = given.positive("memory_budget", budget, 1)
        return max(1, budget // self.med.memory_bytes(self.image_size))

    def _listed(self, images: Images) -> ImageList:
        return listed(images, self.sha256)

    def _cut_to(self, length: int | None, name: str = "max_length") -> int:
        return given.text_length(name, length, self.config.text.max_positions)

    def _require(self, able: bool, verb: str, kind: str) -> None:
        if not able:
            raise ValueError(
                f"{self.source} is a checkpoint of kind {self.config.kind!r}, which cannot {verb}; "
                f"load a {kind} checkpoint"
            )
