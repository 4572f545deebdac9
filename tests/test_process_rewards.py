"""Process rewards end to end: losses on steps train, a run of steps, its figures."""

import dataclasses
import json
import random

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny
from test_step import SGD, start

import rm_jax as package
from rm_jax.data import pack
from rm_jax.data.loader import Loader
from rm_jax.data.order import of_one
from rm_jax.data.schema import record_from_dict
from rm_jax.losses import LOSSES, choose
from rm_jax.models import ArchConfig, functions
from rm_jax.models.arch import frozen
from rm_jax.step import run_step

SHAPES = pack.shapes((32,), 128, 4)
ARCH = ArchConfig(
    vocab_size=97, d_model=16, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=8,
    d_ff=24, attention_block=16, head_init="normal", lm_head="tied", head="steps",
    head_knobs=frozen({"reduce": "min"}),
)  # fmt: skip


@pytest.fixture
def data(toy_set):
    """Eight examples of two responses: labelled steps, a rating, a reference log p."""
    rng = np.random.default_rng(0)
    label = lambda: [1.0, 0.0, 0.25, None][rng.integers(4)]
    steps = [[[(2, label()), (4, label()), (6, 1.0)], [(1, 0.0)]] for _ in range(8)]
    fields = [
        {"ratings": {"right": (1.0, 0.0)}, "reference_logp": (-30.0, -12.0)}
    ] * 8  # fmt: skip
    return toy_set([(4, [8, 4])] * 8, steps=steps, fields=fields)


@pytest.mark.parametrize("name", ["prm_bce", "prm_hard", "prm_soft", "implicit_prm_ce"])
def test_a_loss_on_steps_falls(data, fresh_params, name):
    assert name in LOSSES and SGD["name"] == "sgd"
    arch = ARCH
    if "log_ratio" in choose({"name": name}).outputs:
        knobs = frozen({"beta": 0.05})
        arch = dataclasses.replace(ARCH, head="implicit", head_knobs=knobs)
    run = start(
        functions(arch)[1], lambda: fresh_params(arch), {"name": name},
        learning_rate=0.3, clip_norm=1.0,
    )  # fmt: skip
    loader, losses = Loader(data, SHAPES, 8, of_one(8, 0), steps=True), []
    chunks = [loader.batch_at(0)] * 12
    state = run.state
    for batch in chunks:
        put = [jax.device_put(chunk) for chunk in batch.chunks]
        state, metrics = run_step(run.step, state, put, batch.weight)
        losses.append(float(metrics["loss"]))
    assert np.isfinite(losses).all() and losses[-1] < 0.9 * losses[0]


def sums(n, seed):
    """Rows of solutions in two steps; a wrong step says so with a number too high."""
    draw = random.Random(seed)
    rows = []
    for i in range(n):
        a, b, wrong = draw.randrange(4), draw.randrange(4), draw.randrange(3)
        steps = [f"{a}+{b}={a + b + 5 * (wrong == 1)}.", f"Ok {'no' * (wrong == 2)}!"]
        labels = [int(wrong != 1), int(wrong != 2)]
        rows.append({
            "id": f"{seed}-{i}", "prompt": f"{a}+{b}?", "responses": ["\n".join(steps)],
            "steps": [[{"text": t, "label": y} for t, y in zip(steps, labels,
                                                             strict=True)]],
        })  # fmt: skip
    return rows


PROCESS = {
    "contract__tokenizer": "byte",
    "contract__max_length": 32,
    "contract__max_response": 24,
    "batch__row_lengths": "(32,)",
    "batch__chunk_tokens": 256,
    "batch__tokens_per_slot": 8,
    "loss__name": "prm_bce",
    "model__head__name": "steps",
    "train__best_metric": "eval/valid/step_accuracy",
    "train__best_mode": "max",
}


@pytest.fixture
def process(make, tmp_path):
    """Makes a config of a run on steps."""

    def config(**changes):
        for name, n in (("train", 48), ("valid", 12)):
            text = "".join(json.dumps(row) + "\n" for row in sums(n, len(name)))
            (tmp_path / f"{name}.jsonl").write_text(text)
        c = make(data__train=f"jsonl:{tmp_path}/train.jsonl", **(PROCESS | changes))
        c.data.eval = {"valid": f"jsonl:{tmp_path}/valid.jsonl"}
        return c

    return config


def test_a_run_on_steps_learns_and_says_so(process, tmp_path):
    at = tmp_path / "run"
    config = process(train__duration="24 steps", train__eval_every="12 steps")
    _, said = tiny.train(config, at)
    losses = [x["train/loss"] for x in tiny.lines(at) if "train/loss" in x]
    assert losses[-1] < 0.8 * losses[0]
    assert "valid: steps right" in said and "n = 24 steps" in said
    evals = json.loads((at / "evals.json").read_text())["sets"]["valid"]
    assert evals["step_accuracy"] > evals["step_right_share"]
    assert any("eval/valid/step_accuracy" in line for line in tiny.lines(at))
    table = pq.read_table(at / "predictions" / "valid.parquet")
    # The reducer is the least of the steps.
    np.testing.assert_allclose(
        table["score"].to_numpy(),
        [min(s) for s in table["step_scores"].to_pylist()],
        rtol=1e-5,
    )


def test_members_of_steps_are_evaluated_and_reduced(process, tmp_path):
    at = tmp_path / "run"
    changes = {"model__head__init": "normal", "members__count": 2}
    tiny.train(process(train__duration="2 steps", **changes), at)
    evals = json.loads((at / "evals.json").read_text())["sets"]["valid"]
    assert evals["n_steps"] == 24 and 0 <= evals["step_accuracy"] <= 1
    table = pq.read_table(at / "predictions" / "valid.parquet")
    assert {len(x) for x in table["members"].to_pylist()} == {2}
    steps = [x for x in table["step_scores"].to_pylist() if x]
    assert len(steps) == len(table) and np.isfinite(np.concatenate(steps)).all()


@pytest.mark.slow
def test_a_model_of_steps_is_loaded_and_evaluated(process, tmp_path):
    import rm_jax
    from rm_jax.serve.evaluation import evaluate_run

    at = tmp_path / "run"
    done, _ = tiny.train(process(), at)
    again = evaluate_run(str(at), f"jsonl:{tmp_path}/valid.jsonl", str(tmp_path / "e"))
    evals = json.loads((at / "evals.json").read_text())["sets"]["valid"]
    assert again["step_accuracy"] == evals["step_accuracy"]
    record = record_from_dict(sums(1, 3)[0] | {"source": "s"})
    assert np.isfinite(rm_jax.load(str(at)).score_records([record])).all()


def test_an_implicit_reward_is_trained_evaluated_inspected_and_scored(
    process, rm_jax, tmp_path
):
    """The score moves by beta for every nat that the reference is moved by."""
    changes = {"loss__name": "implicit_prm_ce", "model__lm_head": "tied"}
    head = {"model__head__name": "implicit", "train__best_metric": "eval/valid/nll"}
    config = process(**changes, **head, train__duration="2 steps")
    config.train.best_mode = "min"
    for name in ("train", "valid"):
        rows = [
            {"id": f"{name}-{i}", "prompt": f"{i}+1?", "responses": [f"{i + 1}", "no"],
             "ranks": [0, 1], "ratings": {"right": [1, 0]},
             "reference_logp": [-4.0, -6.0]}
            for i in range(12)
        ]  # fmt: skip
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text)
    found, _ = tiny.train(config, tmp_path / "run")
    assert 0.0 <= found["valid"]["accuracy"] <= 1.0
    code, said, error = rm_jax("inspect", tmp_path / "run", "--step", "0")
    assert code == 0 and "response 0: rank 0" in said, error
    model = package.load(str(tmp_path / "run"))
    row = {"prompt": "1+1?", "responses": ["2", "3"], "reference_logp": [-4.0, -4.0]}
    other = row | {"reference_logp": [-4.0, -9.0]}
    records = [record_from_dict(r, "row") for r in (row, other)]
    one, two = model.score_records(records)
    np.testing.assert_allclose(two - one, [0.0, 0.05 * 5.0], atol=1e-6)
    with pytest.raises(ValueError, match="a response without reference_logp"):
        model.score("1+1?", ["2", "3"])


def test_a_row_with_too_few_slots_is_said_before_training(process, tmp_path):
    config = process(batch__tokens_per_slot=16)
    with pytest.raises(ValueError, match="lower config.batch.tokens_per_slot to 10"):
        tiny.train(config, tmp_path / "run")
