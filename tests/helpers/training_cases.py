"""One training problem in both shapes: our objective, and the step-by-step reference's state.

Run as a script it is one of several processes: `training_cases.py KIND RANK WORLD FOLDER`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import reference_training as reference
import torch
import torch.distributed as dist
from factories import tiny_config, tiny_vocabulary
from reference_med import State
from reference_training import Texts
from salesforce import random_salesforce
from torch import Tensor

from blip_fast.config import IMAGE_MEAN, IMAGE_STD, Kind
from blip_fast.med.blip import MED
from blip_fast.med.weights import ours_to_salesforce, salesforce_to_ours
from blip_fast.text import PackedText, Tokenizer, pack
from blip_fast.train.batches import PairBatch, predicted
from blip_fast.train.itc import MomentumContrast
from blip_fast.train.itm import Negatives
from blip_fast.train.pretrain import Pretrain
from blip_fast.train.retrieval import Retrieval

QUEUE, MOMENTUM, ALPHA, STEPS, LEARNING_RATE = 11, 0.9, 0.4, 3, 0.05
MAX_LENGTH = 9
# Images 0 and 2 of a batch are one image, so that retrieval has several positives.
IDS = [[5, 6, 5, 7], [6, 8, 9, 8]]


def build(kind: Kind, dtype: torch.dtype = torch.float64) -> tuple[State, MED]:
    """The same random weights for the reference, gradients wanted, and for us."""
    state = random_salesforce(kind)
    model = MED(tiny_config(kind))
    model.load_state_dict(salesforce_to_ours(state, model.config), strict=False)
    # Names of one tensor stay names of one tensor.
    leaves = {
        id(t): t.to(dtype, copy=True).requires_grad_()
        for t in state.values()
        if t.is_floating_point()
    }
    return {n: leaves[id(t)] for n, t in state.items() if id(t) in leaves}, model.train()


def pair_batch(step: int, rank: int) -> PairBatch:
    """Four pairs, texts of 3 to 9 tokens."""
    generator = torch.Generator().manual_seed(100 * step + rank)

    def ints(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    lengths = ints(3, MAX_LENGTH + 1, 4).tolist()
    text = pack([[101, *ints(1, 99, n - 2).tolist(), 102] for n in lengths])
    ids = torch.tensor(IDS[rank]) + 10 * step
    images = ints(0, 256, 4, 3, 32, 32).to(torch.uint8)
    keys = [f"{step}/{rank}/{i}" for i in range(4)]
    return PairBatch(keys, images, text, ids, predicted(text))


def normalised(images: Tensor) -> Tensor:
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGE_MEAN, IMAGE_STD))
    return (images / 255 - mean) / std


def padded(text: PackedText) -> Texts:
    rows = text.tolist()
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return Texts(ids, mask)


def objective(kind: Kind, model: MED) -> Any:
    contrast = MomentumContrast(model, QUEUE, MOMENTUM, ALPHA, alpha_epochs=2, seed=3)
    tokenizer = Tokenizer(tiny_vocabulary())
    if kind == "pretrain":
        return Pretrain(model, tokenizer, contrast)
    return Retrieval(model, tokenizer, contrast, negative_all_rank=True, max_length=MAX_LENGTH)


def queue_of(contrast: MomentumContrast, dtype: torch.dtype = torch.float32) -> reference.Queue:
    """A copy of our queue in the reference's layout."""
    queue = contrast.queue
    images, texts = (t.T.to(dtype, copy=True) for t in (queue.images, queue.texts))
    return reference.Queue(images, texts, queue.ids.clone(), int(queue.pointer))


def momentum_of(state: State) -> State:
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def gradients(model: MED) -> State:
    """Our gradients by Salesforce's names."""
    return ours_to_salesforce({name: p.grad for name, p in model.named_parameters()}, model.config)


def descend(parameters: Any) -> None:
    with torch.no_grad():
        for parameter in {id(p): p for p in parameters}.values():
            if parameter.grad is not None:
                parameter -= LEARNING_RATE * parameter.grad
                parameter.grad = None


def run(kind: Kind, rank: int, world: int) -> list[dict[str, Any]]:
    """Our side: a few steps of plain descent, and what each of them gave."""
    _, model = build(kind)
    task = objective(kind, model)
    drawn: list[Negatives] = []
    module = sys.modules[type(task).__module__]
    original = module.draw
    module.draw = lambda *weights: drawn.append(original(*weights)) or drawn[-1]
    results = []
    try:
        for step in range(STEPS):
            torch.manual_seed(17 * step + rank)
            task.before_step()
            losses = task(pair_batch(step, rank), epochs=0.5 * (step + 1))
            sum(losses.values()).backward()
            for parameter in model.parameters():
                if world > 1 and parameter.grad is not None:
                    dist.all_reduce(parameter.grad)
                    parameter.grad /= world
            results.append(
                {
                    "losses": {name: loss.item() for name, loss in losses.items()},
                    "gradients": {n: t.clone() for n, t in gradients(model).items()},
                    "queue": queue_of(task.contrast),
                    "negatives": drawn[-1],
                }
            )
            descend(model.parameters())
    finally:
        module.draw = original
    return results


if __name__ == "__main__":
    kind_, rank_, world_, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", world_)
    dist.init_process_group("gloo", store=store, rank=rank_, world_size=world_)
    torch.save(run(kind_, rank_, world_), Path(folder) / f"{rank_}.pt")  # type: ignore[arg-type]
    dist.destroy_process_group()
