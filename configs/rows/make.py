"""Writes the two small sets of labels that the synthetic world does not have.

    python configs/rows/make.py

rated.jsonl.gz: pairs of the world with five ratings, 0 to 4, of each response (named as
in HelpSteer2), the strength of the preference, 1 to 3, and under `meta` the one rating
`good`, 1 or 0. steps.jsonl.gz: sums modulo 10 done in steps, right or wrong; the label
of a step is the share of eight rollouts from it that end right, the rating `right` is
the result, and the reference is the uniform policy over SIGNS.
"""

import dataclasses
import gzip
import json
import math
import pathlib
import random
from collections.abc import Iterator
from typing import Any

from rm_jax.data.schema import Record, record_to_dict
from rm_jax.data.world import make_world

SIGNS = "0123456789+=\n"
ROLLOUTS = 8
ERROR = 0.15  # chance that a step, or a rollout's step, is wrong


def rated(n: int) -> Iterator[dict[str, Any]]:
    """Rows of n prompts with two responses."""
    draw = random.Random(0)
    knobs = {"seed": 1, "train": n, "noise": 0.0, "strength_levels": 3}
    for record in make_world(knobs).records("train"):
        ratings = _ratings(record, draw)
        good = [int(rating > 2) for rating in ratings["helpfulness"]]
        named = {"id": record.id, "source": "rated", "meta": {"thumbs": {"good": good}}}
        yield record_to_dict(dataclasses.replace(record, ratings=ratings, **named))


def _ratings(record: Record, draw: random.Random) -> dict[str, tuple[int, ...]]:
    """Parts of the gold utility with noise of N(0, 1/4), rounded to 0 ... 4."""
    m = record.meta
    wrong = [2 * x for x in m["irrelevant"]]
    exact = {
        "helpfulness": [2 + g for g in m["gold"]],
        "correctness": [
            4 * c - w / 2 for c, w in zip(m["correct"], wrong, strict=True)
        ],
        "coherence": [4 - 2 * r for r in m["repeats"]],
        "complexity": m["facts"],
        "verbosity": [(words - 10) / 10 for words in m["words"]],
    }
    noisy = lambda x: min(4, max(0, round(x + draw.gauss(0.0, 0.5))))
    return {name: tuple(map(noisy, values)) for name, values in exact.items()}


def steps(n: int) -> Iterator[dict[str, Any]]:
    """Rows of n sums modulo 10 of four numbers, with two endings in three steps."""
    draw = random.Random(0)
    for i in range(n):
        numbers = [draw.randrange(5) for _ in range(4)]
        solutions = [_solution(numbers, draw)]
        while len(solutions) < 2:
            other = _solution(numbers, draw)
            if other[-1]["text"] != solutions[0][-1]["text"]:
                solutions.append(other)
        texts = ["\n".join(step["text"] for step in s) for s in solutions]
        right = [int(s[-1]["label"] == 1) for s in solutions]
        yield {
            "id": f"steps-{i}",
            "source": "steps",
            "prompt": "+".join(map(str, numbers)),
            "responses": texts,
            "ranks": [1 - r for r in right],
            "ratings": {"right": right},
            "steps": solutions,
            "reference_logp": [round(-len(t) * math.log(len(SIGNS)), 3) for t in texts],
        }


def _solution(numbers: list[int], draw: random.Random) -> list[dict[str, Any]]:
    total, sound, out = numbers[0], True, []
    for after, number in reversed(list(enumerate(reversed(numbers[1:])))):
        slip = draw.random() < ERROR
        result = (total + number + (draw.choice((1, 2)) if slip else 0)) % 10
        sound &= not slip
        chance = (1 - ERROR) ** after if sound else 0.0
        label = sum(draw.random() < chance for _ in range(ROLLOUTS)) / ROLLOUTS
        out.append({"text": f"{total}+{number}={result}", "label": label})
        total = result
    return out


def write(folder: pathlib.Path) -> None:
    """Writes both files."""
    for name, rows in (("rated", rated(600)), ("steps", steps(600))):
        text = "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)
        data = gzip.compress(text.encode(), mtime=0)
        (folder / f"{name}.jsonl.gz").write_bytes(data)


if __name__ == "__main__":
    write(pathlib.Path(__file__).parent)
