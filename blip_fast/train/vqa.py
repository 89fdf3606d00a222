"""Finetuning for VQA: answers written by a decoder grounded in the question (BLIP, section 5.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from blip_fast.data.clean import clean_question
from blip_fast.med.blip import MED
from blip_fast.text import Tokenizer
from blip_fast.train.batches import QuestionBatch, keys_of, predicted, stack_images
from blip_fast.train.objective import Example, Objective


class VQA(Objective[QuestionBatch]):
    """Label-smoothed cross-entropy, summed over an answer's tokens, weighted by how many people
    gave it, summed over answers and divided by the number of questions.

    Args:
        model: of kind "vqa", in full precision.
        max_length: of a question, in tokens; longer ones are cut.
        max_words: of a question, before that.
    """

    def __init__(
        self,
        model: MED,
        tokenizer: Tokenizer,
        *,
        label_smoothing: float = 0.1,
        max_length: int = 35,
        max_words: int = 50,
    ) -> None:
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        self.label_smoothing = label_smoothing
        self.max_length, self.max_words = max_length, max_words

    def collate(self, examples: Sequence[Example]) -> QuestionBatch:
        samples = [example.sample for example in examples]
        questions = [clean_question(s.text, self.max_words) for s in samples]
        answers = self.tokenizer.encode(
            [answer for s in samples for answer in s.answers],
            "[DEC]",
            self.model.config.text.max_positions,
        )
        numbers = torch.tensor([len(s.answers) for s in samples])
        places = predicted(answers)
        owner = torch.repeat_interleave(answers.lengths)
        return QuestionBatch(
            keys=keys_of(examples),
            images=stack_images(examples),
            questions=self.tokenizer.encode(questions, "[ENC]", self.max_length),
            answers=answers,
            question_of=torch.repeat_interleave(numbers),
            weights=torch.tensor([w for s in samples for w in s.weights]),
            places=places,
            answer_of=owner[places],
        )

    def forward(self, batch: QuestionBatch, epochs: float) -> Mapping[str, Tensor]:
        memory = self.model.remember(self.model.vision(batch.images))
        own = torch.arange(len(batch.questions), device=batch.images.device)
        questions = self.model.ask_live(batch.questions, memory, own)
        losses = self.model.losses(
            batch.answers, questions, batch.question_of, self.label_smoothing, batch.places
        )
        return {"lm": (losses * batch.weights[batch.answer_of]).sum() / len(batch.questions)}
