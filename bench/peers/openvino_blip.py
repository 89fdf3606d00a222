"""transformers' BLIP by OpenVINO on a CPU: images to memories, and texts token by token.

Better than its users have it, who convert transformers' decoder as it is: keys and values of the
images are projected once, all beams of an image are rows of one product with them, what is kept
lies in the precision of the computation and goes from call to call without a copy, and our own
search chooses the tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from blip_fast.decoding.beams import BeamSearch
from blip_fast.decoding.options import SearchOptions
from blip_fast.decoding.search import IndependentSearch, Search
from blip_fast.text import pack

HEADS = 12


class See(nn.Module):
    """Pixels to keys and values [N, heads, S, D] of every cross-attention, in `kept`."""

    def __init__(self, model: Any, kept: torch.dtype) -> None:
        super().__init__()
        self.vision, self.kept = model.vision_model, kept
        layers = model.text_decoder.bert.encoder.layer
        self.projections = nn.ModuleList(
            linear
            for layer in layers
            for linear in (layer.crossattention.self.key, layer.crossattention.self.value)
        )

    def forward(self, pixels: Tensor) -> list[Tensor]:
        tokens = self.vision(pixels).last_hidden_state
        return [_heads(linear(tokens)).to(self.kept) for linear in self.projections]


class Step(nn.Module):
    """Some tokens of each row to the scores of the next, by transformers' modules."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.decoder = model.text_decoder

    def forward(
        self, ids: Tensor, positions: Tensor, mask: Tensor, parents: Tensor, *kept: Tensor
    ) -> tuple[Tensor, ...]:
        """Args:
            ids: [B, L], B a multiple of the images.
            positions: [1, L].
            mask: [L, P + L], 0 where a token sees another.
            parents: [B], the row of the past that each continues.
            kept: of each layer two of the images [N, heads, S, D] and two of the past
                [B', heads, P, D].

        Returns:
            the scores [B, V], and the past [B, heads, P + L, D] again.
        """
        bert = self.decoder.bert
        embed = bert.embeddings
        x = embed.word_embeddings(ids) + embed.position_embeddings(positions)
        x = embed.LayerNorm(x)
        pasts = []
        for number, layer in enumerate(bert.encoder.layer):
            keys, values, *before = kept[4 * number : 4 * number + 4]
            own = layer.attention.self
            pair = []
            for linear, past in zip((own.key, own.value), before, strict=True):
                new = _heads(linear(x))
                pair.append(torch.cat([past.index_select(0, parents).float(), new], 2))
            pasts += [state.to(keys.dtype) for state in pair]
            seen = F.scaled_dot_product_attention(_heads(own.query(x)), *pair, attn_mask=mask)
            x = layer.attention.output(_joined(seen), x)
            cross = layer.crossattention
            q = cross.self.query(x)
            together = _heads(q.reshape(keys.shape[0], -1, q.shape[2]))
            seen = F.scaled_dot_product_attention(together, keys.float(), values.float())
            x = cross.output(_joined(seen).reshape(x.shape), x)
            x = layer.output(layer.intermediate(x), x)
        return self.decoder.cls(x[:, -1]), *pasts


def _heads(x: Tensor) -> Tensor:
    """[B, L, W] -> [B, heads, L, D]."""
    return x.unflatten(2, (HEADS, x.shape[2] // HEADS)).transpose(1, 2)


def _joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


class Compiled:
    """A module as OpenVINO has converted and compiled it."""

    def __init__(
        self,
        module: nn.Module,
        example: Sequence[Tensor],
        dtype: torch.dtype,
        threads: int,
        shapes: Sequence[Sequence[int]] | None = None,
    ) -> None:
        """Args:
        dtype: in which it computes; the module's is float32.
        shapes: of the inputs, -1 where they change; where none are given, those of the example.
        """
        import openvino

        with torch.no_grad():
            model = openvino.convert_model(module.eval(), example_input=tuple(example))
        shapes = [list(tensor.shape) for tensor in example] if shapes is None else shapes
        model.reshape(
            {
                port: openvino.PartialShape(shape)
                for port, shape in zip(model.inputs, shapes, strict=True)
            }
        )
        precision = {torch.bfloat16: "bf16", torch.float32: "f32"}[dtype]
        settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads}
        compiled = openvino.compile_model(model, "CPU", settings)
        # Two, by turns: what one has given may be what the other is given.
        self._requests = [compiled.create_infer_request() for _ in range(2)]

    def __call__(self, inputs: Sequence[Any]) -> list[Any]:
        """OpenVINO's tensors -> the same, valid until the next call but one."""
        self._requests.reverse()
        request = self._requests[0]
        for place, tensor in enumerate(inputs):
            request.set_input_tensor(place, tensor)
        request.infer()
        return list(request.output_tensors)


def as_openvino(tensor: Tensor) -> Any:
    """A copy of a tensor of any dtype that numpy has."""
    import openvino

    return openvino.Tensor(tensor.contiguous().numpy(), shared_memory=False)


def captioner(
    model: Any, images: Tensor, prompt: list[int], dtype: torch.dtype, threads: int
) -> Callable[[Tensor, SearchOptions], Tensor]:
    """A function that captions as many images as the given ones.

    Args:
        model: transformers', in float32.
        prompt: begins with [DEC].

    Returns:
        pixels and options to the tokens of the best text of each image [N, L].
    """
    see = Compiled(See(model, dtype), [images], dtype, threads)
    layers = len(model.text_decoder.bert.encoder.layer)
    grid = images.shape[-1] // model.config.vision_config.patch_size
    tokens, head = 1 + grid**2, model.config.text_config.hidden_size // HEADS
    seen = torch.randn(2, HEADS, tokens, head).to(dtype)
    past = torch.randn(2, HEADS, 3, head).to(dtype)
    ids = torch.ones(4, 2, dtype=torch.int64)
    example = [ids, ids[:1], torch.zeros(2, 5), torch.tensor([0, 0, 1, 1])]
    example += [seen, seen, past, past] * layers
    of_image, of_past = [-1, HEADS, tokens, head], [-1, HEADS, -1, head]
    shapes = [[-1, -1], [1, -1], [-1, -1], [-1]] + [of_image, of_image, of_past, of_past] * layers
    step = Compiled(Step(model), example, dtype, threads, shapes)

    def call(pixels: Tensor, options: SearchOptions) -> Tensor:
        number, each, device = len(pixels), options.rows, torch.device("cpu")
        kind = IndependentSearch if each == 1 else BeamSearch
        search: Search = kind(options, model.config.text_config.sep_token_id, number, device)
        search.admit(torch.arange(number), pack([prompt] * number), [0] * number)
        memory = see([as_openvino(pixels)])
        pasts = [type(memory[0])(memory[0].element_type, [number, HEADS, 0, head])] * (2 * layers)
        new, parents = torch.tensor([prompt] * number), torch.arange(number)
        length, rows = 0, torch.arange(number * each)
        while True:
            places = torch.arange(length, length + new.shape[1])
            mask = torch.zeros(new.shape[1], int(places[-1]) + 1)
            mask.masked_fill_(torch.arange(mask.shape[1]) > places[:, None], -torch.inf)
            kept: list[Any] = []
            for n in range(0, 2 * layers, 2):
                kept += [*memory[n : n + 2], *pasts[n : n + 2]]
            scores, *pasts = step([*map(as_openvino, (new, places[None], mask, parents)), *kept])
            logits = torch.from_numpy(scores.data)
            if length == 0:
                logits = logits.repeat_interleave(each, 0)
            length += new.shape[1]
            chosen, _, parents = search.step(logits, rows)
            if not search.live.any():
                best = [texts[0].token_ids for texts in search.results(torch.arange(number))]
                return torch.tensor(best)
            if length == len(prompt):
                parents = rows // each
            elif parents is None:
                parents = rows
            new = chosen[:, None]

    return call
