"""Made tests/golden/run, once; makes the one for the next layout of a run directory.

    python tests/golden/make.py NEW_FOLDER

Writes NEW_FOLDER/rows.jsonl and NEW_FOLDER/run: 40 invented comparisons of two or three
answers, a byte tokenizer, a decoder of width 8. The run stops after 3 of its 6 steps
and is continued. README.md says when, and why never twice into the same folder.
"""

import json
import os
import sys

from rm_jax import main

WORDS = ("apple", "bread", "cloud", "river", "stone")
KNOBS = {
    "name": "golden",
    "data.train": "jsonl:rows.jsonl",
    "data.eval": '{"valid": "#valid"}',
    "data.valid_fraction": 0.25,
    "data.test_fraction": 0.0,
    "contract.tokenizer": "byte",
    "contract.max_length": 64,
    "contract.max_response": 32,
    "contract.pooling": "mean",
    "model.d_model": 8,
    "model.n_layers": 2,
    "model.n_heads": 2,
    "model.n_kv_heads": 1,
    "model.d_ff": 16,
    "model.vocab_multiple": 8,
    "model.head.init": "normal",
    "batch.examples": 8,
    "batch.row_lengths": "(64, 128)",
    "batch.chunk_tokens": 512,
    "batch.tokens_per_slot": 8,
    "mesh.data": 1,
    "optim.learning_rate": 0.01,
    "optim.schedule": "constant",
    "optim.warmup": "2 steps",
    "train.log_every": "1 steps",
    "train.eval_every": "3 steps",
    "train.save_every": "3 steps",
    "train.keep_last": 1,
    "train.keep_best": 0,
    "train.ema": 0.5,
    "train.tensorboard": False,
    "train.report": False,
}


def rows():
    """The shorter answer is better; every fourth question has a third one."""
    for n in range(40):
        word = WORDS[n % len(WORDS)]
        answers = [f"{n} of {word}", f"{n} of {word}, or so they say"]
        if n % 4 == 0:
            answers.append("no idea")
        yield {
            "id": f"golden-{n}",
            "prompt": f"How many {word}s are in box {n}?",
            "responses": answers,
            "ranks": list(range(len(answers))),
        }


def make(folder: str) -> None:
    """Fills a new folder."""
    os.makedirs(folder)
    os.chdir(folder)
    with open("rows.jsonl", "w") as f:
        f.writelines(json.dumps(row) + "\n" for row in rows())
    knobs = [f"--config.{key}={value}" for key, value in KNOBS.items()]
    for duration in ("3 steps", "6 steps"):
        arguments = ["train", "--config", "rm_jax:base", "--workdir", "run", *knobs]
        arguments.append(f"--config.train.duration={duration}")
        sys.argv = ["rm-jax", *arguments]
        main.run(arguments)


if __name__ == "__main__":
    make(*sys.argv[1:])
