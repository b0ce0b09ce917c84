"""The reader of attributes: a small network that says which individual it sees in a picture, part by part.

Each question (an attribute of a kind, its pose, or the picture's kind, scene and count) has a query that looks about
the picture's features for its answer; questions with the same answers, such as all colours, share their classifier. One
more head says of each spot whether it is the subject or one of the scenes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lab.world import KINDS, SCENES

SIDE, GRID = 128, 32  # of the pictures, in pixels; of the spots
WIDTH, HEADS = 128, 4
COUNTS = ("1", "2")
KIND, SCENE, COUNT, POSE = "kind", "scene", "count", "pose"
SPOTS = ("subject", *SCENES)
UNASKED = -1  # as a label: the picture has no answer


@dataclass(frozen=True)
class Question:
    """kind: whose attribute it is; empty where it is asked of every picture."""

    kind: str
    name: str
    answers: tuple[str, ...]


@cache
def questions() -> tuple[Question, ...]:
    """All of them, those of every picture first."""
    found = [Question("", KIND, tuple(KINDS)), Question("", SCENE, tuple(SCENES)), Question("", COUNT, COUNTS)]
    for kind in KINDS.values():
        found += [Question(kind.word, a.name, a.values) for a in kind.attributes]
        if kind.poses:
            found.append(Question(kind.word, POSE, kind.poses))
    return tuple(found)


@cache
def asked_of(kind: str) -> tuple[int, ...]:
    """Numbers of the questions that are asked of a picture of that kind."""
    return tuple(i for i, question in enumerate(questions()) if question.kind in ("", kind))


@dataclass(frozen=True)
class Reading:
    """What the reader sees of B pictures of known kinds.

    answers: of each, the answer to each question that is asked of it. subject: [B, 32, 32], the probability that the
    subject is there. around: [B, scenes], shares of the rest that look like each of SCENES.
    """

    answers: list[dict[str, str]]
    subject: Tensor
    around: Tensor


class Reader(nn.Module):
    """Pictures [B, 3, 128, 128] in 0..1 -> (logits [B, M, A] of the questions asked of each, spots [B, S, 32, 32])."""

    group: Tensor  # [Q]: the classifier of each question
    beyond: Tensor  # [Q, A]: true where a question has no such answer

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Sequential(_stage(3, 64, 8, 4), _Block(64))  # 32 x 32
        self.middle = nn.Sequential(_stage(64, WIDTH, 4, 2), _Block(WIDTH), _Block(WIDTH))  # 16 x 16
        self.coarse = nn.Sequential(_stage(WIDTH, 192, 4, 2), _Block(192), _Block(192))  # 8 x 8
        self.down = nn.Conv2d(192, WIDTH, 1)
        self.joined = nn.Sequential(_Block(WIDTH), _Block(WIDTH))
        self.around, self.spots = nn.Conv2d(WIDTH, 64, 1), nn.Conv2d(64, len(SPOTS), 1)
        self.position = nn.Parameter(torch.randn(WIDTH, GRID // 2, GRID // 2) * 0.3)
        self.keys = nn.Linear(WIDTH, 2 * WIDTH)
        self.queries = nn.Parameter(torch.randn(len(questions()), WIDTH))
        self.after = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))
        kinds_of_answers = list(dict.fromkeys(question.answers for question in questions()))
        most = max(len(answers) for answers in kinds_of_answers)
        self.classifiers = nn.Parameter(torch.randn(len(kinds_of_answers), most, WIDTH) * WIDTH**-0.5)
        group = [kinds_of_answers.index(question.answers) for question in questions()]
        self.register_buffer("group", torch.tensor(group), persistent=False)
        sizes = torch.tensor([len(question.answers) for question in questions()])
        self.register_buffer("beyond", torch.arange(most)[None] >= sizes[:, None], persistent=False)

    def forward(self, pictures: Tensor, asked: Tensor) -> tuple[Tensor, Tensor]:
        """asked: [B, M], numbers of questions."""
        fine = self.fine((pictures - 0.5).contiguous(memory_format=torch.channels_last))
        middle = self.middle(fine)
        features = self.joined(middle + F.interpolate(self.down(self.coarse(middle)), scale_factor=2))
        spots = self.spots(F.relu(fine + F.interpolate(self.around(features), scale_factor=2)))
        k, v = self.keys((features + self.position).flatten(2).transpose(1, 2)).chunk(2, -1)  # [B, 256, C]
        seen = F.scaled_dot_product_attention(_heads(self.queries[asked]), _heads(k), _heads(v))
        found = seen.transpose(1, 2).flatten(2)  # [B, M, C]
        found = found + self.after(found)
        logits = torch.einsum("bmc,bmac->bma", found, self.classifiers[self.group[asked]].to(found.dtype))
        return logits.float().masked_fill(self.beyond[asked], -torch.inf), spots.float()

    @torch.no_grad()
    def read(self, pictures: Tensor, kinds: Sequence[str]) -> Reading:
        """pictures: [B, H, W, 3] in 0..1, one of each kind; other sides than 128 are resized."""
        x = pictures.movedim(-1, 1)
        if x.shape[-1] != SIDE:
            x = F.interpolate(x, [SIDE] * 2, mode="bilinear", antialias=True)
        logits, spots = self(x, asked_table(kinds))
        answers = [
            {questions()[q].name: questions()[q].answers[a] for q, a in zip(asked_of(kind), row.tolist())}
            for kind, row in zip(kinds, logits.argmax(-1))
        ]
        labels = spots.softmax(1)
        subject = labels[:, 0]
        named = F.one_hot(labels[:, 1:].argmax(1), len(SPOTS) - 1) * (subject < 0.5)[..., None]
        shares = named.sum((1, 2)) / named.sum((1, 2, 3)).clamp(min=1)[:, None]
        return Reading(answers, subject, shares)


def asked_table(kinds: Sequence[str]) -> Tensor:
    """[B, M]: the questions asked of pictures of those kinds; what is short repeats its first question."""
    rows = [asked_of(kind) for kind in kinds]
    most = max(map(len, rows))
    return torch.tensor([[*row, *[row[0]] * (most - len(row))] for row in rows])


def _heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def _stage(n_in: int, n_out: int, size: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(n_in, n_out, size, stride, (size - stride) // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(n_out), nn.ReLU())


class _Block(nn.Module):
    """A residual of two convolutions that begins as nothing, so that it needs no normalisation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        last = nn.Conv2d(width, width, 3, 1, 1)
        nn.init.zeros_(last.weight)
        self.inner = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1), nn.ReLU(), last)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.inner(x))
