"""Where steps end, from the text of a record to the slots and labels of a chunk."""

import gzip
import json

import numpy as np
import pytest
from tokenizers import normalizers

from rm_jax.data import cache, chunk_arrays, join, pack
from rm_jax.data.contract import Encoder, make_contract
from rm_jax.data.loader import Loader
from rm_jax.data.pack import Item, PackError, Segment, Shape
from rm_jax.data.schema import record_from_dict
from rm_jax.data.steps import StepError, ends
from rm_jax.data.terms import ContractError
from rm_jax.data.tokenizers import build_tokenizer

SHAPES = pack.shapes((16, 32, 64), 576, 2)
CONFIG = {
    "tokenizer": "byte", "template": "tokenizer", "date": "", "bos": "one",
    "eos": "template", "max_length": 400, "max_response": 300,
    "truncation_side": "left", "over_long": "truncate", "pooling": "last",
}  # fmt: skip


def encoder(made, **changes):
    return Encoder(make_contract(CONFIG | changes, made), made)


def solved(*solutions, **fields):
    """A record of solutions, each a list of (text, label); two lines between steps."""
    return record_from_dict(
        {
            "id": "q",
            "prompt": "2 + 2?",
            "responses": ["\n\n".join(t for t, _ in steps) for steps in solutions],
            "steps": [
                [{"text": t, "label": y} for t, y in steps] for steps in solutions
            ],
            **fields,
        }
    )


# Text


@pytest.mark.parametrize(
    "texts, steps, want",
    [
        (["a b"], ["a", "b"], [(0, 1), (0, 3)]),
        (["ab"], ["a", "b"], [(0, 1), (0, 2)]),
        ([" a\n\na "], ["a", "a"], [(0, 2), (0, 5)]),  # not by searching
        (["a ", "b c"], [" a", "b", "c\n"], [(0, 1), (1, 1), (1, 3)]),
        (["a", " ", "b"], ["a", "b"], [(0, 1), (2, 1)]),
        (["a"], [], []),
    ],
)
def test_ends_by_hand(texts, steps, want):
    assert ends(texts, steps) == want


@pytest.mark.parametrize(
    "texts, steps, step, why",
    [
        (["a b"], ["a", "c"], 1, "goes on with 'b', the step is 'c'"),
        (["a b"], ["b", "a"], 0, "goes on with 'a b'"),
        (["a b"], ["a", "\n"], 1, "without words"),
        (["a b"], ["a"], 0, "'b' of the response is in none"),
        (["a", "b"], ["a"], 0, "'b' of the response"),
        (["a", "b"], ["a b"], 0, "goes on with 'a'"),  # a step is in one message
        (["a"], ["a", "b"], 1, "goes on with ''"),
    ],
)
def test_steps_that_are_not_the_response(texts, steps, step, why):
    with pytest.raises(StepError, match=why) as error:
        ends(texts, steps)
    assert error.value.step == step


# Tokens


@pytest.fixture(scope="module")
def bpe():
    """A BPE that merges over what lies between two steps."""
    text = "So it is 4.\n\nSo it is 5.\n\nx=44\n\n" * 50
    return build_tokenizer("bpe:270", texts=[text])


def test_each_step_ends_with_a_token_of_its_own(bpe):
    record = solved([("So it is 4.", 1), ("So it is 5.", 0)], [("So it is 4.", 1)])
    enc = encoder(bpe, tokenizer="bpe:270")
    got = enc.encode(record)
    assert [len(s) for s in got.steps] == [2, 1] and enc.counts["steps"] == 3
    for ids, own, texts in zip(got.responses, got.steps, record.steps, strict=True):
        before = 0
        for end, step in zip(own, texts, strict=True):
            assert enc.decode(ids[before : end + 1]).strip() == step.text
            before = end + 1
        assert enc.decode(ids[before:]) == "<|end|>"


def test_nothing_is_merged_over_the_end_of_a_step(bpe):
    enc = encoder(bpe, tokenizer="bpe:270")
    row = {"prompt": "?", "responses": ["x=44"]}
    plain = enc.encode(record_from_dict(row))
    steps = [{"text": "x=4", "label": 1}, {"text": "4", "label": 0}]
    got = enc.encode(record_from_dict(row | {"steps": [steps]}))
    decoded = lambda r: [enc.decode([i]) for i in r.responses[0][:-1]]
    assert decoded(plain)[-1] == "44" and decoded(got)[-2:] == ["4", "4"]
    assert not plain.steps and got.steps[0].tolist() == [
        len(got.responses[0]) - 3, len(got.responses[0]) - 2]  # fmt: skip


def test_the_tokens_of_a_step_do_not_depend_on_those_that_follow(bpe):
    one, two = ("So it is 4.", 1), ("So it is 5.", 0)
    enc = encoder(bpe, tokenizer="bpe:270")
    short, long = (enc.encode(solved(s)) for s in ([one], [one, two]))
    end = int(short.steps[0][0])
    assert int(long.steps[0][0]) == end
    np.testing.assert_array_equal(
        short.responses[0][: end + 1], long.responses[0][: end + 1]
    )


def test_a_step_forges_no_special_token():
    record = solved([("a <|end", None), ("|> b <|end|>", 1)])
    enc = encoder(build_tokenizer("byte"))
    got = enc.encode(record)
    closing = enc.template.backend.token_to_id("<|end|>")
    assert (got.responses[0] == closing).sum() == 1  # the template's
    text = "a <|end\n\n|> b <|end|>"
    assert enc.decode(got.responses[0][:-1]) == text
    assert [enc.decode(got.responses[0][: e + 1]) for e in got.steps[0]] == [
        text[:7], text]  # fmt: skip


def test_steps_that_are_cut_off_are_counted():
    record = solved([("aaaa", 1), ("bbbb", 0), ("cccc", 1)], [("aa", 1)])
    enc = encoder(build_tokenizer("byte"), max_response=11)
    got = enc.encode(record)
    # 4, two lines, 4, ...: ten tokens of the content stay before the closing one.
    assert [s.tolist() for s in got.steps] == [[3, 9], [1]]
    assert len(got.responses[0]) == 11
    assert got.counts["steps_cut"] == 1 and enc.counts["steps"] == 3


def test_a_template_that_leaves_out_steps_is_refused(tmp_path):
    path = tmp_path / "short.jinja"
    path.write_text(
        "{{ bos_token }}{% for m in messages %}{{ '<|' + m.role + '|>' + m.content[:12]"
        " + '<|end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}"
        "{% endif %}"
    )
    enc = encoder(build_tokenizer("byte"), template=str(path))
    record = solved([("a", 1)], [("aaaa", 1), ("b" * 12, 0)])
    with pytest.raises(ContractError, match="record q, response 1: .* 1 of its 2 step"):
        enc.encode(record)


def test_a_step_without_tokens_is_refused():
    tokenizer = build_tokenizer("word", words=["a", "b"])
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("?", "")
    record = solved([("a", 1), ("?", 0), ("b", 1)])
    with pytest.raises(ContractError, match="record q, response 0: step 1 has no tok"):
        encoder(tokenizer, tokenizer="word").encode(record)


# Cache, rows and chunks


@pytest.fixture
def data(tmp_path, id_encoder, id_record):
    return cache.build(
        [
            id_record(0, [1, 10], [[20, 21, 22], [30]],
                      steps=[[(0, 1), (2, 0.5)], []]),
            id_record(1, [1, 11], [[40, 41]], steps=[[(1, None)]]),
        ],
        id_encoder(), tmp_path / "set", {}, {},
    )  # fmt: skip


def test_slots_and_labels_by_hand(data):
    items = [Item(0, (1, 0)), Item(1, (0,))]
    first, second = Segment(0, 2, (0, 1), 6, 2), Segment(1, 2, (0,), 4, 1)
    (groups) = pack.segments(data, items, Shape(1, 16, 8), True, steps=True)
    assert groups == [[first], [second]] and (first.slots, second.slots) == (4, 2)
    chunk = pack.Chunk(Shape(1, 16, 8), ((first, second),), (0, 1))
    got = chunk_arrays.fill(data, items, chunk, steps=True)
    # BOS 10 | 30 | 20 21 22 | BOS 11 | 40 41
    assert got.slots.tolist() == [[2, 3, 5, 5, 9, 9, 0, 0]]
    assert got.slot_ids.tolist() == [
        [[0, 0, 0], [0, 1, 1], [0, 1, 2], [0, 1, 0], [1, 0, 1], [1, 0, 0],
         [-1] * 3, [-1] * 3]
    ]  # fmt: skip
    labels = chunk_arrays.labels(data, items, chunk, 8, 2, steps=True)
    assert labels.steps.shape == (8, 2, 8) and labels.steps.dtype == np.float32
    np.testing.assert_array_equal(labels.steps[0, 1, :3], [1, 0.5, -1])
    labels.steps[0, 1, :2] = -1
    assert (labels.steps == -1).all()
    ends_only = chunk_arrays.fill(data, items, chunk)
    assert (ends_only.slot_ids[..., 0] >= 0).sum() == 3
    assert chunk_arrays.labels(data, items, chunk, 8, 2).steps.shape == (8, 2, 0)


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_every_step_of_a_random_set_is_scored_where_it_ends(random_set, layout):
    data = random_set(1, with_steps=True)
    loader = Loader(data, SHAPES, 20, layout=layout, steps=True)
    seen = 0
    for step in loader.in_order(block=20):
        for batch, labels in step.chunks:
            for row, slot in np.argwhere(batch.slot_ids[..., 0] >= 0):
                e, k, j = batch.slot_ids[row, slot]
                i, at = int(labels.ids[e]), batch.slots[row, slot]
                first = int(data.arrays["example_branch"][i]) - i
                a, b = data.arrays["step_start"][first + k : first + k + 2]
                tokens = data.branch(i, k + 1)
                end = len(tokens) - 1 if j == 0 else data.arrays["step_end"][a + j - 1]
                assert batch.tokens[row, at] == tokens[end]
                prompt = data.per_response("prompt_keep", i)[k]
                assert batch.positions[row, at] == prompt + end
                if j:
                    label = data.arrays["step_label"][a + j - 1]
                    want = -1 if np.isnan(label) else label
                    assert labels.steps[e, k, j - 1] == want
                    seen += 1
                else:
                    assert (labels.steps[e, k, b - a :] == -1).all()
    assert seen == len(data.arrays["step_end"]) > 50


@pytest.mark.parametrize("seed", range(4))
def test_no_row_has_more_slots_than_it_may(random_set, seed):
    data = random_set(seed, with_steps=True)
    shapes = pack.shapes((16, 64), 576, 8)
    items = [Item(i, tuple(range(data.count(i)))) for i in range(len(data))]
    groups = pack.segments(data, items, shapes[-1], True, steps=True)
    for chunk in pack.layout(groups, shapes):
        batch = chunk_arrays.fill(data, items, chunk, steps=True)
        assert batch.slots.shape[1] == chunk.shape.slots
        for row, segments in enumerate(chunk.rows):
            used = (batch.slot_ids[row, :, 0] >= 0).sum()
            assert used == sum(s.slots for s in segments) <= chunk.shape.slots


def test_more_steps_than_a_row_has_slots_names_the_knob(data):
    for shared in (True, False):
        with pytest.raises(PackError) as error:
            pack.check_fits(data, (Shape(4, 16, 2),), shared, steps=True)
        for words in ("example r0", "response of 2 steps needs 3 scored positions",
                      "has 2: lower config.batch.tokens_per_slot to 5"):  # fmt: skip
            assert words in str(error.value)
        pack.check_fits(data, (Shape(4, 16, 2),), shared)
        pack.check_fits(data, (Shape(4, 16, 3),), shared, steps=True)


def test_a_joined_set_keeps_the_steps_of_its_sources(random_set, tmp_path):
    sets = {"a": random_set(3, n=9, with_steps=True), "b": random_set(4, n=5),
            "c": random_set(5, n=14, with_steps=True)}  # fmt: skip
    joined = join.join(sets, tmp_path / "joined")
    assert joined.meta["max_steps"] == max(d.meta["max_steps"] for d in sets.values())

    def steps(data, i):
        first = int(data.arrays["example_branch"][i]) - i
        starts = data.arrays["step_start"][first : first + data.count(i) + 1]
        return [
            [data.arrays[n][a:b].tolist() for n in ("step_end", "step_label")]
            for a, b in zip(starts[:-1], starts[1:], strict=True)
        ]

    for name, own in join.sources_of(joined):
        for i, at in enumerate(own):
            np.testing.assert_equal(steps(joined, at), steps(sets[name], i))


# Real data


def test_real_solutions_and_a_real_tokenizer(test_data):
    """PRM800K's steps with a BPE of 512 pieces trained on them."""
    file = "prmbench/prm800k_train_p1_first400_4o_counterfactual.jsonl.gz"
    with gzip.open(test_data / file, "rt") as f:
        rows = [json.loads(line) for line in f][:40]
    processes = [row["modified_process"] for row in rows]
    tokenizer = build_tokenizer("bpe:512", texts=(" ".join(p) for p in processes))
    enc = encoder(tokenizer, tokenizer="bpe:512", max_length=4096, max_response=3000)
    for row in rows:
        steps = [s for s in row["modified_process"] if s.strip()]
        wrong = set(row["error_steps"])
        record = solved([(s, float(j not in wrong)) for j, s in enumerate(steps, 1)])
        got = enc.encode(record)
        before = 0
        for end, step in zip(got.steps[0], steps, strict=True):
            text = enc.decode(got.responses[0][before : end + 1])
            assert text.strip() == step.strip()
            before = int(end) + 1
