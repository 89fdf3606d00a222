"""The heads on top of the text transformer's states."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from blip_fast import kernels
from blip_fast.config import TextConfig
from blip_fast.med.layers import LayerNorm, Linear


class LanguageModelHead(nn.Module):
    """States to scores of the next token; its last matrix is the word embedding's."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.dense = Linear(config.width, config.width)
        self.norm = LayerNorm(config.width, config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def logits(self, states: Tensor, embedding: Tensor) -> Tensor:
        """[T, W] -> [T, V] float32."""
        return kernels.linear(self._transform(states), embedding, self.bias).float()

    def logits_of(self, states: Tensor, embedding: Tensor, tokens: Tensor) -> Tensor:
        """[T, W] -> [T, C] float32, of the tokens [C] alone."""
        return kernels.linear(self._transform(states), embedding[tokens], self.bias[tokens]).float()

    def losses_of(
        self,
        states: Tensor,
        embedding: Tensor,
        owners: Tensor,
        targets: Tensor,
        label_smoothing: float,
    ) -> Tensor:
        """As `losses`, of several targets a state: the vocabulary is summed over once for each.

        Args:
            owners: [E] int64, the state in 0..T-1 that predicts each target; every state has one.
            targets: [E] int64.

        Returns:
            [E] float32.
        """
        hidden = self._transform(states)
        one = owners.new_zeros(len(states)).scatter(0, owners, targets)
        loss = kernels.linear_cross_entropy(hidden, embedding, self.bias, one, label_smoothing)
        # Losses of one state differ by their targets' logits, and by nothing else.
        logit_of_one = self._logit(hidden, embedding, one)
        logit = self._logit(hidden[owners], embedding, targets)
        return loss[owners] + (1 - label_smoothing) * (logit_of_one[owners] - logit)

    def _logit(self, hidden: Tensor, embedding: Tensor, tokens: Tensor) -> Tensor:
        """[E, W] and [E] -> [E] float32, the score of one token a row."""
        products = hidden.float() * embedding[tokens].float()
        return products.sum(1) + self.bias[tokens].float()

    def losses(
        self, states: Tensor, embedding: Tensor, targets: Tensor, label_smoothing: float
    ) -> Tensor:
        """[T, W] and targets [T] -> [T] float32; see `kernels.linear_cross_entropy`."""
        return kernels.linear_cross_entropy(
            self._transform(states), embedding, self.bias, targets, label_smoothing
        )

    def _transform(self, states: Tensor) -> Tensor:
        return self.norm(self.dense(states, activation="gelu"))


class Temperature(nn.Module):
    """What similarities are divided by before their softmax: learned, and kept within bounds.

    A module of one parameter, so that sharding can leave it in full precision.
    """

    START, LEAST, MOST = 0.07, 0.001, 0.5

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor([self.START]))

    def forward(self) -> Tensor:
        """A scalar; a copy, because a sharded parameter's storage ends with this call."""
        return self.value[0].clone()

    def clamp(self) -> None:
        """Bring the parameter back into its bounds, as BLIP does before every step."""
        with torch.no_grad():
            self.value.clamp_(self.LEAST, self.MOST)


class PairClassifier(nn.Module):
    """NLVR2: is the sentence true of the two images?"""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.fc1 = Linear(config.width, config.width)
        self.fc2 = Linear(config.width, 2)

    def forward(self, states: Tensor) -> Tensor:
        """[N, W] -> [N, 2]; index 1 is true."""
        return self.fc2(torch.relu(self.fc1(states)))
