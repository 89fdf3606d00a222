"""ITC of a batch of 32 against a queue of 57,600."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn import functional as F

from bench.harness import Case, main
from blip_fast import kernels

BATCH, QUEUE, WIDTH, ALPHA = 32, 57600, 256, 0.4


def cases() -> Iterator[Case]:
    query, momentum = F.normalize(torch.randn(2, BATCH, WIDTH), dim=-1)
    bank = F.normalize(torch.randn(BATCH + QUEUE, WIDTH), dim=-1)
    ids, temperature = torch.arange(BATCH), torch.tensor(0.07)
    bank_ids = torch.cat([ids, torch.full((QUEUE,), -100)])

    def plain() -> torch.Tensor:
        one_hot = torch.eye(BATCH, BATCH + QUEUE)
        soft = F.softmax(momentum @ bank.T / temperature, dim=1)
        target = ALPHA * soft + (1 - ALPHA) * one_hot
        return -(F.log_softmax(query @ bank.T / temperature, dim=1) * target).sum(1)

    def ours() -> torch.Tensor:
        return kernels.contrastive(query, momentum, bank, temperature, ids, bank_ids, ALPHA)

    contenders = {"blip_fast": ours, "torch, similarities stored": plain}
    yield Case("contrastive, 32 x 57632, fp32", contenders, bank.nbytes, "byte")


if __name__ == "__main__":
    main(cases())
