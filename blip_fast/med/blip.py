"""The multimodal mixture of encoder-decoder (MED) of BLIP, arXiv 2201.12086, section 3.

Tensors in, tensors out: no files, no strings, no search. An image is seen once (`see`); whatever
is asked of it afterwards reads the memory through an index.
"""

from __future__ import annotations

from math import prod
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from blip_fast.config import BlipConfig
from blip_fast.kernels.linear_cross_entropy import IGNORE
from blip_fast.med.context import Memory, PackedMemory, PackedPast, Past
from blip_fast.med.heads import LanguageModelHead, PairClassifier, Temperature
from blip_fast.med.layers import Linear
from blip_fast.med.memory import (
    ImageMemory,
    LiveMemory,
    QuestionMemory,
    memory_shape,
    project_into,
    project_live,
    project_memory,
)
from blip_fast.med.transformer import TextTransformer
from blip_fast.med.vision import VisionBlock, VisionTransformer
from blip_fast.text import PackedText


class MED(nn.Module):
    """All the parts that one kind of BLIP checkpoint carries; see `BlipConfig`."""

    def __init__(self, config: BlipConfig) -> None:
        super().__init__()
        self.config = config
        vision, text = config.vision, config.text
        self.vision = VisionTransformer(vision)
        if config.has_encoder:
            self.text_encoder = TextTransformer(text, vision.width, twin=config.kind == "nlvr")
        if config.has_decoder:
            # A VQA answer is grounded in the question's states, all others in the image's.
            memory_width = text.width if config.kind == "vqa" else vision.width
            self.text_decoder = TextTransformer(text, memory_width)
            self.lm_head = LanguageModelHead(text)
        if config.ties_decoder:
            self.text_decoder.share_all_but_self_attention(self.text_encoder)
        if config.has_matching:
            self.vision_proj = Linear(vision.width, config.embed_width)
            self.text_proj = Linear(text.width, config.embed_width)
            self.itm_head = Linear(text.width, 2)
            self.temperature = Temperature()
        if config.kind == "nlvr":
            self.classifier = PairClassifier(text)

    @property
    def device(self) -> torch.device:
        return self.vision.cls_token.device

    @property
    def dtype(self) -> torch.dtype:
        return self.vision.cls_token.dtype

    def regularise(self, dropout: float, drop_path: float) -> None:
        """Set what happens in training mode alone.

        Args:
            dropout: of the text transformers' hidden states; BERT's and BLIP's is 0.1. The
                attention probabilities, which are never stored, have none.
            drop_path: of the last vision block; those before it have proportionally less.
        """
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.p = dropout
        rates = torch.linspace(0, drop_path, len(self.vision.blocks)).tolist()
        for block, rate in zip(self.vision.blocks, rates, strict=True):
            cast(VisionBlock, block).drop_path.rate = rate

    # Seeing

    def see(self, images: Tensor) -> ImageMemory:
        """Images [N, 3, S, S], uint8 or normalised, to their memory; without gradients."""
        return self.memory_of(self.vision(images))

    def memory_of(self, tokens: Tensor) -> ImageMemory:
        """Image tokens [N, S, W] to their memory, without gradients."""
        return ImageMemory(
            pairs=project_memory(self._reader, tokens),
            feature=self.image_feature(tokens) if self.config.has_matching else None,
        )

    def see_into(self, images: Tensor, pairs: Tensor, places: Tensor | slice) -> None:
        """Images [N, 3, S, S] to memories in N `places` of a larger one, `room_for(M, S)`."""
        project_into(self._reader, self.vision(images), pairs, places)

    def room_for(self, images: int, size: int) -> Tensor:
        """Unwritten memory for so many images of `size` pixels: `ImageMemory.pairs`."""
        return torch.empty(self._memory_shape(images, size), dtype=self.dtype, device=self.device)

    def memory_bytes(self, size: int) -> int:
        """Bytes of `ImageMemory.pairs` for one image of `size` pixels."""
        return prod(self._memory_shape(1, size)) * self.dtype.itemsize

    def _memory_shape(self, images: int, size: int) -> tuple[int, ...]:
        return memory_shape(self._reader, images, self.config.vision.tokens_at(size))

    def remember(self, tokens: Tensor) -> LiveMemory:
        """Image tokens [N, S, W] to their memory, with gradients."""
        return LiveMemory(project_live(self._reader, tokens))

    @property
    def _reader(self) -> TextTransformer:
        """The text transformer whose cross-attention projects images; a tied decoder's too."""
        return self.text_encoder if self.config.has_encoder else self.text_decoder

    def image_feature(self, tokens: Tensor) -> Tensor:
        """Image tokens [N, S, W] to normalised ITC features [N, E] in float32."""
        return F.normalize(self.vision_proj(tokens[:, 0]).float(), dim=-1)

    # Texts alone and texts grounded in images

    def text_feature(self, text: PackedText) -> Tensor:
        """Texts beginning with [CLS] to normalised ITC features [N, E] in float32."""
        return F.normalize(self.text_proj(self.text_encoder.first(text)).float(), dim=-1)

    def ground(self, text: PackedText, memory: ImageMemory | LiveMemory, index: Tensor) -> Tensor:
        """States [T, W] of texts beginning with [ENC], each reading the image it points at.

        Args:
            index: [N] int64, the image of each text; [2, N] for NLVR2's pairs of images.
        """
        grounding = PackedMemory(memory.pairs, index, text.offsets)
        past = PackedPast(text, causal=False)
        return self.text_encoder(text.ids, text.positions, past, grounding)

    def match_logits(
        self, text: PackedText, memory: ImageMemory | LiveMemory, index: Tensor
    ) -> Tensor:
        """ITM logits [N, 2] in float32; index 1 is a match."""
        return self.itm_head(self._ground_first(text, memory, index)).float()

    def compare_logits(
        self, text: PackedText, memory: ImageMemory | LiveMemory, index: Tensor
    ) -> Tensor:
        """NLVR2 logits [N, 2] in float32; index 1 is true.

        Args:
            index: [2, N] int64, the left and the right image of each text.

        Raises:
            ValueError: where `index` is of another shape.
        """
        if index.shape != (2, len(text)):
            raise ValueError(
                f"index is {tuple(index.shape)} for {len(text)} texts; NLVR2 needs (2, {len(text)})"
            )
        return self.classifier(self._ground_first(text, memory, index)).float()

    def _ground_first(
        self, text: PackedText, memory: ImageMemory | LiveMemory, index: Tensor
    ) -> Tensor:
        """As `ground`, the state [N, W] of each text's first token."""
        return self.text_encoder.first(text, PackedMemory(memory.pairs, index, text.offsets))

    def ask(self, questions: PackedText, memory: ImageMemory, index: Tensor) -> QuestionMemory:
        """Questions beginning with [ENC] to the memory that their answers are grounded in;
        without gradients."""
        padded = self._questions(questions, memory, index)
        return QuestionMemory(project_memory(self.text_decoder, padded), questions.lengths)

    def ask_live(self, questions: PackedText, memory: LiveMemory, index: Tensor) -> LiveMemory:
        """The same with gradients."""
        padded = self._questions(questions, memory, index)
        return LiveMemory(project_live(self.text_decoder, padded), questions.lengths)

    def _questions(
        self, text: PackedText, memory: ImageMemory | LiveMemory, index: Tensor
    ) -> Tensor:
        """States of questions, padded with zeros: [N, longest, W]."""
        states = self.ground(text, memory, index)
        rows = torch.repeat_interleave(text.lengths, output_size=text.ids.numel())
        padded = states.new_zeros(len(text), text.max_length, states.shape[1])
        return padded.index_put((rows, text.positions), states)

    # Texts to be written

    def write(self, ids: Tensor, positions: Tensor, past: Past, memory: Memory) -> Tensor:
        """Decoder states [T, W] of tokens [T]."""
        return self.text_decoder(ids, positions, past, memory)

    def next_logits(self, states: Tensor) -> Tensor:
        """Decoder states [T, W] to scores of the token that follows each, [T, V] float32."""
        return self.lm_head.logits(states, self.text_decoder.embeddings.word.weight)

    def next_logits_of(self, states: Tensor, tokens: Tensor) -> Tensor:
        """The same for the tokens [C] alone: [T, C] float32."""
        return self.lm_head.logits_of(states, self.text_decoder.embeddings.word.weight, tokens)

    def losses_of(
        self, states: Tensor, owners: Tensor, targets: Tensor, label_smoothing: float = 0.0
    ) -> Tensor:
        """Losses [E] of targets [E], each predicted by one of the decoder states [T, W]; see
        `LanguageModelHead.losses_of`."""
        word = self.text_decoder.embeddings.word.weight
        return self.lm_head.losses_of(states, word, owners, targets, label_smoothing)

    def losses(
        self,
        text: PackedText,
        memory: ImageMemory | QuestionMemory | LiveMemory,
        index: Tensor,
        label_smoothing: float = 0.0,
        places: Tensor | None = None,
    ) -> Tensor:
        """Losses of tokens of texts beginning with [DEC], each given those before it.

        Args:
            places: [P] int64, where in `text.ids` the tokens lie that are to be predicted; none
                is a text's first. All are predicted where it is not given.

        Returns:
            [P] float32; without `places` [T], 0 at each text's first token.
        """
        key_lengths = None if isinstance(memory, ImageMemory) else memory.key_lengths
        grounding = PackedMemory(memory.pairs, index, text.offsets, key_lengths)
        past = PackedPast(text, causal=True)
        states = self.write(text.ids, text.positions, past, grounding)
        word = self.text_decoder.embeddings.word.weight
        if places is not None:
            return self.lm_head.losses(states[places - 1], word, text.ids[places], label_smoothing)
        # State t predicts token t + 1; the last state of a text predicts nothing.
        targets = text.ids.masked_fill(text.positions == 0, IGNORE).roll(-1)
        return self.lm_head.losses(states, word, targets, label_smoothing).roll(1)


def initialise(model: MED, seed: int) -> None:
    """Fill every parameter as BLIP's training starts: weights with standard deviation 0.02
    (truncated in vision), biases 0, LayerNorms 1 and 0, and the temperature."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name == "temperature.value":
                parameter.fill_(Temperature.START)
            elif ".norm" in name or "norm." in name:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
            elif name.endswith("bias"):
                parameter.zero_()
            elif name.startswith("vision."):
                nn.init.trunc_normal_(parameter, std=0.02, generator=generator)
            else:
                parameter.normal_(std=0.02, generator=generator)
