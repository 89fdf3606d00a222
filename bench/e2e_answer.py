"""VQA by ranking: 1,000 candidates, the 128 likeliest scored whole, against the reference's way.

Base size, random weights, questions of 6 to 14 tokens, answers of 1 to 5 (most are one or two, as
in VQA's list, and many begin alike). Image and question are encoded before the clock starts: both
ways begin with the question's states. The same winners in fp32 come before any timing.

Usage: python -m bench.e2e_answer [--questions 4] [--candidates 1000] [--k 128] [--threads 2]
           [--dtype bfloat16] [--turns 3] [--seconds 60]
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from bench.harness import Case, print_table, race
from bench.peers.plain_answer import rank_answers
from blip_fast.config import BlipConfig, VisionConfig
from blip_fast.decoding.rank import Candidates, rank_candidates
from blip_fast.med.blip import MED, initialise
from blip_fast.med.memory import QuestionMemory, project_memory
from blip_fast.med.weights.names import ours_to_transformers

DEC, SEP = 30522, 102
LENGTHS = [1] * 45 + [2] * 35 + [3] * 14 + [4] * 5 + [5]  # of answers, in hundredths


def answer_list(number: int) -> list[list[int]]:
    """Distinct token sequences; a word follows others the more often the lower its number."""
    generator, found = random.Random(0), dict[tuple[int, ...], None]()
    while len(found) < number:
        length = generator.choice(LENGTHS)
        words = [1000 + int(2000 * generator.random() ** 3) for _ in range(length)]
        found[(DEC, *words, SEP)] = None
    return [list(answer) for answer in found]


class Problem:
    """Questions, answers, and one model as both ways want it."""

    def __init__(self, dtype: torch.dtype, questions: int, candidates: int) -> None:
        # The decoder is of base size; of vision nothing is used.
        config = BlipConfig(kind="vqa", vision=VisionConfig(depth=1))
        self.model = MED(config)
        initialise(self.model, seed=0)
        self.model = self.model.to(dtype).eval().requires_grad_(False)
        self.state = ours_to_transformers(self.model.state_dict(), config)
        generator = torch.Generator().manual_seed(1)
        lengths = torch.randint(6, 15, (questions,), generator=generator)
        states = torch.randn(questions, 14, config.text.width, generator=generator).to(dtype)
        self.mask = (torch.arange(14) < lengths[:, None]).long()
        self.states, self.lengths = states * self.mask[:, :, None].to(dtype), lengths
        self.answers = answer_list(candidates)

    def ours(self, k: int) -> Callable[[], Tensor]:
        candidates = Candidates.of(self.answers)

        def call() -> Tensor:
            pairs = project_memory(self.model.text_decoder, self.states)
            memory = QuestionMemory(pairs, self.lengths)
            ranked = rank_candidates(self.model, memory, candidates, k)
            return torch.tensor([best.candidate for best in ranked])

        return call

    def reference(self, k: int) -> Callable[[], Tensor]:
        rows = [torch.tensor(answer) for answer in self.answers]
        padded = pad_sequence(rows, batch_first=True)
        return lambda: rank_answers(self.state, self.states, self.mask, padded, k)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--questions", type=int, default=4)
    parser.add_argument("--candidates", type=int, default=1000)
    parser.add_argument("--k", type=int, default=128)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--turns", type=int, default=3, help="at least, of each")
    parser.add_argument("--seconds", type=float, default=60.0)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    # not inference_mode: weights made in it would be packed anew by every call
    with torch.no_grad():
        dtype = getattr(torch, arguments.dtype)
        exact = Problem(torch.float32, 2, arguments.candidates)
        winners = exact.ours(arguments.k)()
        assert torch.equal(winners, exact.reference(arguments.k)()), "winners differ"
        print("winners agree in fp32")
        del exact
        problem = Problem(dtype, arguments.questions, arguments.candidates)
        name = f"{arguments.questions} questions, k={arguments.k}, {arguments.dtype}"
        calls = {"blip_fast": problem.ours(arguments.k)}
        calls["reference"] = problem.reference(arguments.k)
        case = Case(name, calls, arguments.questions, "image")
        turns = arguments.turns
        timings = race(case, arguments.seconds, check=False, turns_at_least=turns)
        print_table([(case, timings)])


if __name__ == "__main__":
    main()
