"""Evaluation prompts that were trained on: found whole, found nearly, not made up."""

import dataclasses

import numpy as np
import pytest

from rm_jax.data import cache, contamination
from rm_jax.data.contract import Encoded
from rm_jax.data.schema import Message, Record


class Ids:
    """Stands in for an encoder: a prompt's words are its token ids."""

    vocab_size, bos_id = 30_000, 1

    def __init__(self):
        import types

        self.counts, self.contract = {}, types.SimpleNamespace(truncation_side="left")

    def encode_many(self, records):
        for r in records:
            prompt = np.array(r.prompt[0].content.split(), np.int32)
            y = np.array([5, 6], np.int32)
            keep = np.array([len(prompt)] * 2, np.int32)
            yield r, Encoded(prompt, (y, y), keep, {})


@pytest.fixture
def make(tmp_path):
    def make(name, prompts):
        records = (
            Record(
                id=f"{name}-{i}",
                source=name,
                prompt=(Message("user", " ".join(map(str, prompt))),),
                responses=((Message("assistant", "a"),), (Message("assistant", "b"),)),
                ranks=(0, 1),
            )
            for i, prompt in enumerate(prompts)
        )
        return cache.build(records, Ids(), tmp_path / name, {}, {})

    return make


def draw(rng, n):
    return rng.integers(10, 30_000, n).tolist()


def test_the_rule_by_hand(make):
    rng = np.random.default_rng(0)
    x, y, z = draw(rng, 40), draw(rng, 40), draw(rng, 40)
    train = make("train", [x, y, z, draw(rng, 3)])
    held = {
        "same": y,
        "half": x[:20] + draw(rng, 20),  # 20 of 40 tokens are in grams of x
        "below": x[:19] + draw(rng, 21),
        "scattered": x[:10] + draw(rng, 5) + x[20:30] + draw(rng, 15),  # 20, one prompt
        "two": x[:10] + y[:10] + draw(rng, 15),  # 20 of 35, 10 of each training prompt
        "short": x[:7],  # no 8-gram in it
        "new": draw(rng, 40),
        "inside": draw(rng, 2) + z + draw(rng, 30),
    }
    found = contamination.overlap(train, make("held", held.values()), 8)
    near = [f"held-{list(held).index(n)}" for n in ("half", "scattered", "inside")]
    assert found.ids == sorted([*near, "held-0"])
    assert found == (8, 1, 3, found.ids)
    assert "of 8 prompts 1 are training prompts, 3 more share half" in found.line("v")


def brute(train, held, n):
    """Share of each held prompt's tokens in n-grams of its best training prompt."""
    grams = [{tuple(x[i : i + n]) for i in range(len(x) - n + 1)} for x in train]
    out = []
    for y in held:
        best = 0
        for own in grams:
            starts = [i for i in range(len(y) - n + 1) if tuple(y[i : i + n]) in own]
            best = max(best, len({i + j for i in starts for j in range(n)}))
        out.append(best / len(y) >= 0.5)
    return out


@pytest.mark.parametrize("block", [3, 1000])
@pytest.mark.parametrize("n", [2, 3, 8])
def test_blocks_agree_with_a_plain_search(make, monkeypatch, block, n):
    rng = np.random.default_rng(n)
    monkeypatch.setattr(contamination, "BLOCK", block)
    monkeypatch.setattr(contamination, "COMMON", 10_000)
    # Few words, so that grams repeat inside a prompt and between prompts.
    prompts = [rng.integers(10, 14, rng.integers(1, 25)).tolist() for _ in range(60)]
    train, held = prompts[:40], prompts[40:]
    data, other = make("train", train), make("held", held)
    got = contamination._near(data, other, n)
    assert got.tolist() == brute(train, held, n)
    assert 0 < sum(got) < len(got) or n == 2


def test_what_every_prompt_begins_with_is_no_contamination(make):
    rng = np.random.default_rng(1)
    system = draw(rng, 60)
    many = contamination.COMMON + 1
    train = make("train", [system + draw(rng, 10) for _ in range(many)])
    few = make("few", [system + draw(rng, 10) for _ in range(many - 1)])
    held = make("held", [system + draw(rng, 10) for _ in range(5)])
    assert contamination.overlap(train, held, 8)[1:3] == (0, 0)
    assert contamination.overlap(few, held, 8)[1:3] == (0, 5)


def test_a_gram_is_eight_words_in_the_tokens_of_the_contract(make):
    held = make("held", [[11] * 30, [12] * 50])
    assert contamination.gram_tokens(held, lambda ids: "word " * len(ids)) == 8
    assert contamination.gram_tokens(held, lambda ids: "word " * (len(ids) // 5)) == 40
    assert contamination.gram_tokens(held, lambda ids: "") > 8


def test_another_set_of_the_same_prompts_is_all_the_same(make):
    rng = np.random.default_rng(2)
    train = make("train", [draw(rng, 5) for _ in range(30)])
    found = contamination.overlap(train, dataclasses.replace(train), 8)
    assert found[:3] == (30, 30, 0) and len(found.ids) == 10
    other = make("other", [draw(rng, 5) for _ in range(30)])
    assert contamination.overlap(train, other, 8) == (30, 0, 0, [])
    assert "no prompt of it is, or is near," in contamination.Overlap(3, 0, 0, []).line(
        "valid"
    )
