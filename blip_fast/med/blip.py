"""The multimodal mixture of encoder-decoder (MED) of BLIP, arXiv 2201.12086, section 3.

Tensors in, tensors out: no files, no strings, no search. An image is seen once (`see`); whatever
is asked of it afterwards reads the memory through an index.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from blip_fast.config import BlipConfig
from blip_fast.kernels.linear_cross_entropy import IGNORE
from blip_fast.med.context import Memory, PackedMemory, PackedPast, Past
from blip_fast.med.heads import LanguageModelHead, PairClassifier
from blip_fast.med.layers import Linear
from blip_fast.med.memory import ImageMemory, QuestionMemory, project_memory
from blip_fast.med.transformer import TextTransformer
from blip_fast.med.vision import VisionTransformer
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
            self.temperature = nn.Parameter(torch.tensor(0.07))
        if config.kind == "nlvr":
            self.classifier = PairClassifier(text)

    @property
    def device(self) -> torch.device:
        return self.vision.cls_token.device

    @property
    def dtype(self) -> torch.dtype:
        return self.vision.cls_token.dtype

    # Seeing

    def see(self, images: Tensor) -> ImageMemory:
        """Images [N, 3, S, S], uint8 or normalised, to their memory."""
        tokens = self.vision(images)
        reader = self.text_encoder if self.config.has_encoder else self.text_decoder
        return ImageMemory(
            pairs=project_memory(reader, tokens),
            feature=self.image_feature(tokens) if self.config.has_matching else None,
        )

    def image_feature(self, tokens: Tensor) -> Tensor:
        """Image tokens [N, S, W] to normalised ITC features [N, E] in float32."""
        return F.normalize(self.vision_proj(tokens[:, 0]).float(), dim=-1)

    # Texts alone and texts grounded in images

    def text_feature(self, text: PackedText) -> Tensor:
        """Texts beginning with [CLS] to normalised ITC features [N, E] in float32."""
        states = self.text_encoder(text.ids, text.positions, PackedPast(text, causal=False))
        return F.normalize(self.text_proj(_first(states, text)).float(), dim=-1)

    def ground(self, text: PackedText, memory: ImageMemory, index: Tensor) -> Tensor:
        """States [T, W] of texts beginning with [ENC], each reading the image it points at.

        Args:
            index: [N] int64, the image of each text; [2, N] for NLVR2's pairs of images.
        """
        grounding = PackedMemory(memory.pairs, index, text.offsets)
        past = PackedPast(text, causal=False)
        return self.text_encoder(text.ids, text.positions, past, grounding)

    def match_logits(self, text: PackedText, memory: ImageMemory, index: Tensor) -> Tensor:
        """ITM logits [N, 2] in float32; index 1 is a match."""
        return self.itm_head(_first(self.ground(text, memory, index), text)).float()

    def compare_logits(self, text: PackedText, memory: ImageMemory, index: Tensor) -> Tensor:
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
        return self.classifier(_first(self.ground(text, memory, index), text)).float()

    def ask(self, questions: PackedText, memory: ImageMemory, index: Tensor) -> QuestionMemory:
        """Questions beginning with [ENC] to the memory that their answers are grounded in."""
        states = self.ground(questions, memory, index)
        place = torch.arange(questions.max_length, device=states.device)
        padded = states.new_zeros(len(questions), questions.max_length, states.shape[1])
        padded[place < questions.lengths[:, None]] = states
        return QuestionMemory(project_memory(self.text_decoder, padded), questions.lengths)

    # Texts to be written

    def write(self, ids: Tensor, positions: Tensor, past: Past, memory: Memory) -> Tensor:
        """Decoder states [T, W] of tokens [T]."""
        return self.text_decoder(ids, positions, past, memory)

    def next_logits(self, states: Tensor) -> Tensor:
        """Decoder states [T, W] to scores of the token that follows each, [T, V] float32."""
        return self.lm_head.logits(states, self.text_decoder.embeddings.word.weight)

    def losses(
        self,
        text: PackedText,
        memory: ImageMemory | QuestionMemory,
        index: Tensor,
        label_smoothing: float = 0.0,
    ) -> Tensor:
        """Loss of every token of texts beginning with [DEC], given those before it.

        Returns:
            [T] float32; 0 at each text's first token, which nothing predicts.
        """
        key_lengths = memory.key_lengths if isinstance(memory, QuestionMemory) else None
        grounding = PackedMemory(memory.pairs, index, text.offsets, key_lengths)
        past = PackedPast(text, causal=True)
        states = self.write(text.ids, text.positions, past, grounding)
        starts = text.positions == 0
        # State t predicts token t + 1; the last state of a text predicts nothing.
        targets = text.ids.masked_fill(starts, IGNORE).roll(-1)
        losses = self.lm_head.losses(
            states, self.text_decoder.embeddings.word.weight, targets, label_smoothing
        )
        return losses.roll(1)


def _first(states: Tensor, text: PackedText) -> Tensor:
    """The states [N, W] at each text's position 0."""
    return states[text.offsets[:-1].long()]


def initialise(model: MED, seed: int) -> None:
    """Fill every parameter as BLIP's training starts: weights with standard deviation 0.02
    (truncated in vision), biases 0, LayerNorms 1 and 0, the temperature 0.07."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name == "temperature":
                parameter.fill_(0.07)
            elif ".norm" in name or "norm." in name:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
            elif name.endswith("bias"):
                parameter.zero_()
            elif name.startswith("vision."):
                nn.init.trunc_normal_(parameter, std=0.02, generator=generator)
            else:
                parameter.normal_(std=0.02, generator=generator)
