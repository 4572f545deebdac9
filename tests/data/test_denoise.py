"""Labels corrected by scores: mu = score of the preferred response minus the other."""

import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rm_jax import config as configs
from rm_jax.data import datasets

RANKS = [[0, 1], [1, 0], [0, 1], [0, 1], [1, 0], [0, 0]]
SCORES = [[2.0, 1.0], [2.0, 1.0], [0.0, 3.0], [5.0, 1.0], [0.5, 1.0], [9.0, 1.0]]
MU = [1.0, -1.0, -3.0, 4.0, 0.5, 0.0]


@pytest.fixture
def opened(tmp_path):
    """The training set of six pairs, by the knobs of config.data.denoise."""
    rows = [
        {
            "id": f"r{i}",
            "prompt": f"question {i}",
            "responses": [f"yes {i}", f"no {i}"],
            "ranks": ranks,
            "soft": 0.75 if i == 2 else None,
        }
        for i, ranks in enumerate(RANKS)
    ]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))

    def plain():
        c = configs.load("rm_jax:small")
        c.data.train = f"jsonl:{tmp_path}/x.jsonl"
        c.data.eval = {}
        c.train.keep_best = 0
        c.data.cache_dir = str(tmp_path / "cache")
        c.contract.tokenizer = "byte"
        return c

    found = datasets.open_data(plain().to_dict(), None, lambda s: None)
    prompts = found.train.arrays["prompt_hash"].tolist()

    def open_it(
        changes=(), keep=6, ids="r{}", moved=0, own=SCORES, more=0, source="", **denoise
    ):
        order = np.random.default_rng(0).permutation(keep * 2)
        order = np.concatenate([order, order[:more]])
        example, response = order // 2, order % 2
        table = pa.table(
            {
                "id": [ids.format(i) for i in example],
                "prompt": [prompts[i] + moved for i in example],
                "response": response,
                "score": [own[i][j] for i, j in zip(example, response, strict=True)],
                "source": [source] * len(order),
            }
        )
        pq.write_table(table, tmp_path / "scores.parquet")
        c = plain()
        for key, value in {**denoise, **dict(changes)}.items():
            where = key if "." in key else f"data.denoise.{key}"
            configs.override(c, where, value)
        return datasets.open_data(configs.validate(c).to_dict(), None, lambda s: None)

    open_it.scores = str(tmp_path / "scores.parquet")
    open_it.rows = tmp_path / "x.jsonl"
    return open_it


def ranks_of(data):
    return data.train.arrays["ranks"].reshape(-1, 2).tolist()


def test_without_scores_labels_are_the_records(opened):
    data = opened()
    assert ranks_of(data) == RANKS
    assert "strength" not in next(iter(datasets.label_counts(data).values()))


def test_soft_is_the_chance_of_the_first_response(opened):
    data = opened(scores=opened.scores, rule="soft")
    sigma = lambda x: 1 / (1 + math.exp(-x))
    # Of the second and the fifth the label prefers response 1: 1 - σ(μ).
    want = [sigma(1), 1 - sigma(-1), sigma(-3), sigma(4), 1 - sigma(0.5), 0.5]
    np.testing.assert_allclose(data.train.arrays["soft"], want, rtol=1e-6)
    assert ranks_of(data) == RANKS
    assert next(iter(datasets.label_counts(data).values()))["soft"] == 6


def test_strength_is_mu(opened):
    data = opened(scores=opened.scores, rule="strength")
    np.testing.assert_allclose(data.train.arrays["strength"], MU)
    assert next(iter(datasets.label_counts(data).values()))["strength"] == 6


def test_flip_turns_the_share_with_the_lowest_mu(opened):
    data = opened(scores=opened.scores, rule="flip", share=0.4)  # 2 of 5: the tie stays
    assert ranks_of(data) == [[0, 1], [0, 1], [1, 0], [0, 1], [1, 0], [0, 0]]
    soft = data.train.arrays["soft"]
    assert soft[2] == 0.25 and np.isnan(np.delete(soft, 2)).all()


def test_other_labels_are_another_data_set(opened):
    prints = [
        opened(scores=opened.scores, rule=rule).train.meta["source"]
        for rule in ("soft", "flip")
    ]
    prints.append(opened().train.meta["source"])
    assert len({p["fingerprint"] for p in prints}) == 3
    assert prints[0]["denoise"]["rule"] == "soft" and "denoise" not in prints[2]
    assert len(prints[0]["denoise"]["sha256"]) == 64


def test_scores_of_other_examples_are_refused(opened):
    with pytest.raises(ValueError, match="no two scores of 2 of the 6 .* 'r4'"):
        opened(scores=opened.scores, keep=4)
    with pytest.raises(ValueError, match="no two scores of 6 of the 6 .* 'r0'"):
        opened(scores=opened.scores, ids="x{}")
    with pytest.raises(FileNotFoundError, match="nowhere.parquet': no such file.*keep"):
        opened(scores="nowhere.parquet")


def test_scores_of_other_prompts_of_the_same_names_are_refused(opened):
    with pytest.raises(ValueError, match="no two scores of 6 of the 6"):
        opened(scores=opened.scores, moved=1)


def test_scores_that_a_mixture_lacks_are_counted_by_source(opened):
    parts = {n: {"spec": f"jsonl:{opened.rows}", "weight": 1} for n in ("a", "b")}
    with pytest.raises(ValueError, match="scores of 12 of the 12") as error:
        opened({"data.train": parts}, scores=opened.scores)
    assert "(6 of 'a', 6 of 'b'; the file has no sources)" in str(error.value)
    assert "config.data.eval.seen = '#train'" in str(error.value)
    named = {n: {**part, "spec": f"{part['spec']}#train"} for n, part in parts.items()}
    seen = opened({"data.train": named, "data.eval.seen": "#train"})  # as it advises
    keys = lambda data: (data.ids(len(data)), data.arrays["source"].tolist())
    assert keys(seen.evals["seen"]) == keys(seen.train)
    with pytest.raises(ValueError, match="scores of 6 of the 12") as error:
        opened({"data.train": parts}, scores=opened.scores, source="b")
    assert "(6 of 'a', 0 of 'b'; the file has those of ['b'])" in str(error.value)


@pytest.mark.parametrize("bad", [None, float("nan"), float("inf")])
def test_a_score_that_is_none_is_refused(opened, bad):
    own = [*SCORES[:3], [5.0, bad], *SCORES[4:]]
    with pytest.raises(ValueError, match="a score of 'r3' is not finite"):
        opened(scores=opened.scores, own=own)


def test_a_file_that_is_none_is_refused(opened):
    with pytest.raises(ValueError, match="has response [01] of 'r.' twice"):
        opened(scores=opened.scores, more=1)
    with pytest.raises(ValueError, match="want predictions/NAME.parquet of a run"):
        opened(scores=str(opened.rows))


def test_only_pairs_with_ranks(opened):
    row = json.loads(opened.rows.read_text().splitlines()[0])
    three = {**row, "responses": ["a", "b", "c"], "ranks": [0, 1, 2], "id": "three"}
    opened.rows.write_text(json.dumps(three) + "\n")
    with pytest.raises(ValueError, match="example three has 3 responses"):
        opened(scores=opened.scores)
    none = {**row, "ranks": [None, None], "soft": 0.3, "id": "none"}
    opened.rows.write_text(json.dumps(none) + "\n")
    with pytest.raises(ValueError, match="example none has none"):
        opened(scores=opened.scores)


def test_noise_on_top_is_refused(opened):
    with pytest.raises(ValueError, match="label_noise = 0.1 would turn"):
        opened({"data.label_noise": 0.1}, scores=opened.scores)
    with pytest.raises(ValueError, match="rankings = 'pairs' makes others of them"):
        opened({"data.rankings": "pairs"}, scores=opened.scores)
    with pytest.raises(ValueError, match="denoise.rule = 'hard': known are"):
        opened(scores=opened.scores, rule="hard")
