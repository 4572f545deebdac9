"""experiments/frozen_features.py: the optimum of each fold, which stays unseen."""

import json

import numpy as np
import pytest
import scipy.optimize
import scipy.special
import tinymodel

from rm_jax import config as config_module
from rm_jax.data import vectors
from rm_jax.data.schema import record_to_dict
from rm_jax.data.world import make_world


@pytest.fixture(scope="module")
def program(root):
    return config_module.module_of(str(root / "experiments" / "frozen_features.py"))


@pytest.fixture
def of(program, toy_set):
    """Thirty prompts of 2 to 4 responses, of which the first is best, in 3 folds."""
    rng = np.random.default_rng(0)
    sizes = [(4, [5] * int(k)) for k in rng.integers(2, 5, 30)]
    ranks = [(0, *[1] * (len(own) - 1)) for _, own in sizes]
    fields = [{"weight": 2.0 if i % 3 else 1.0} for i in range(30)]
    return program.labelled(toy_set(sizes, ranks=ranks, fields=fields), 3, seed=1)


def drawn(of, seed=0, d=6):
    """Features in which the first response of a prompt is a little apart."""
    first = np.zeros(len(of.of_responses(of.fold)))
    first[np.unique(of.better)] = 1
    x = np.random.default_rng(seed).standard_normal((len(first), d))
    x[:, 0] += first
    return (x / x.std(0)).astype(np.float32)


def test_the_head_is_the_least_of_the_loss(program, of, monkeypatch):
    """By scipy's BFGS on the loss as it is written down, pair by pair."""
    monkeypatch.setattr(program, "TOLERANCE", 1e-6)
    x = drawn(of)
    trained = np.array([[True, True, False], [False, True, True], [True, True, True]])
    found = program.bradley_terry(x, of, trained)
    assert found.shape == (len(program.PENALTIES), 3, 6)
    fold, n = of.fold[of.pairs.example], np.bincount(of.pairs.example)
    weights = of.data.arrays["weight"]
    for p, penalty in enumerate(program.PENALTIES):
        for m, folds in enumerate(trained):

            def loss(w, folds=folds, penalty=penalty):
                total = count = 0.0
                for i, j, e, f in zip(
                    of.better, of.worse, of.pairs.example, fold, strict=True
                ):
                    if folds[f]:
                        delta = (x[i] - x[j]) @ w
                        total += weights[e] / n[e] * np.logaddexp(0, -delta)
                for e in np.unique(of.pairs.example):
                    count += weights[e] * folds[of.fold[e]]
                return total / count + penalty / 2 * w @ w

            want = scipy.optimize.minimize(loss, np.zeros(6), tol=1e-9)
            np.testing.assert_allclose(found[p, m], want.x, rtol=1e-3, atol=1e-3)


def test_a_held_out_fold_changes_no_choice(program, of, tmp_path):
    """Its labels turned round: the heads of others and what they chose stay."""

    def sets():
        out = {}
        for layer in (1, 2):
            meta = {"dtype": "float32", "d_model": 6, "width": 6, "steps": False}
            x, at = drawn(of, layer), 0
            folder = tmp_path / f"{layer}"
            if not folder.exists():
                with vectors.writer(folder, meta) as put:
                    for k in of.data.counts(np.arange(len(of.data))):
                        put(x[at : at + k])
                        at += k
            out[layer] = vectors.open_features(folder, of.data)
        return out

    got = program.nested(sets(), of, 3)
    held = of.fold[of.pairs.example] == 0
    turned = of._replace(
        better=np.where(held, of.worse, of.better),
        worse=np.where(held, of.better, of.worse),
    )
    other = program.nested(sets(), turned, 3)
    own = of.of_responses(of.fold) == 0
    assert got.chosen[0] == other.chosen[0]
    np.testing.assert_allclose(got.scores[own], other.scores[own], rtol=1e-5)
    assert not np.allclose(got.scores[~own], other.scores[~own], rtol=1e-5)
    assert got.by_layer.keys() == {1, 2} and len(got.chosen) == 3
    right = of.credits(got.scores).mean()
    assert right == pytest.approx(
        np.average(
            got.scores[of.better] > got.scores[of.worse], weights=of.pairs.weight
        )
    )


def test_prompts_are_on_one_side_and_count_once(program, toy_set):
    data = toy_set([(4, [3, 3, 3]), (4, [3, 3]), (4, [3])] * 4)
    found = program.labelled(data, 4, seed=0)
    assert sorted(np.bincount(found.fold)) == [3, 3, 3, 3]
    each = np.bincount(found.pairs.example, found.pairs.weight, len(data))
    assert each.tolist() == [1, 1, 0] * 4
    part = found.of_folds([2])
    assert set(found.fold[part.pairs.example]) == {2}


def test_the_words_find_what_is_in_them(program, toy_set):
    sklearn = pytest.importorskip("sklearn")
    assert sklearn.__version__
    data = toy_set([(4, [3, 3])] * 40)
    of = program.labelled(data, 4, seed=0)
    texts = ["it is a fine day", "it is an odd night"] * 40
    assert of.credits(program.words(of, texts, 4)).mean() == 1
    same = ["it is a fine day"] * 80
    assert of.credits(program.words(of, same, 4)).mean() == 0.5


def test_the_program_from_end_to_end(
    program, tmp_path, monkeypatch, capsys, one_device
):
    pytest.importorskip("sklearn")
    world = make_world({"train": 24, "valid": 1, "test": 1})
    rows = [record_to_dict(r) for r in world.records("train")]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    words = [
        "x", "--weights", tinymodel.write(tmp_path / "model"),
        "--data", f"jsonl:{tmp_path}/x.jsonl", "--layers", "1,3", "--folds", "3",
        "--workdir", str(tmp_path / "run"), "--config", "contract.tokenizer=byte",
        "--config", f"data.cache_dir={tmp_path}/cache",
        "--config", "train.duration=2 steps", "--config", "train.report=False",
        "--config", "batch.examples=8", "--config", "train.compile_cache=",
        "--config", "contract.max_length=512", "--config", "contract.max_response=256",
    ]  # fmt: skip
    monkeypatch.setattr("sys.argv", words)
    code = program.main()
    out, err = capsys.readouterr()
    assert "24 prompts, 24 pairs, 3 folds" in out and "layer 3" in out
    assert "through the first 3 layers" in err
    assert ("NO" in out) == bool(code)
    assert (tmp_path / "run" / "checkpoints" / "2").is_dir()
    words[words.index(str(tmp_path / "run"))] = str(tmp_path / "again")
    monkeypatch.setattr(program, "words", None)
    assert program.main() == code
    again, err = capsys.readouterr()
    assert "through the first" not in err
    assert again.splitlines()[:-1] == out.splitlines()[:-1]
