"""Data that a loss cannot use: refused before anything compiles, with its source."""

import io
import json

import pytest
import tiny

import rm_jax
from rm_jax import build

PAIR = {"prompt": "Hi?", "responses": ["yes yes", "no"], "ranks": [0, 1]}
ONE = {"prompt": "Hi?", "responses": ["yes"], "ranks": [0]}


@pytest.fixture
def config(make, tmp_path):
    """Makes a config of sources (name -> rows) and a loss."""

    def write(name, rows):
        text = [json.dumps(row | {"id": str(i)}) for i, row in enumerate(rows)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(text))
        return f"jsonl:{tmp_path}/{name}.jsonl"

    def config(loss, sources, **changes):
        specs = {name: write(name, rows) for name, rows in sources.items()}
        train = json.dumps({n: {"spec": s, "weight": 1.0} for n, s in specs.items()})
        if len(sources) == 1:
            (train,) = specs.values()
        policy = {f"data__audit__{kind}": "keep" for kind in ("unlabelled", "tied")}
        return make(
            data__train=train, loss__name=loss, contract__tokenizer="byte",
            **tiny.NO_EVAL, **policy, **changes,
        )  # fmt: skip

    return config


@pytest.fixture(autouse=True)
def nothing_compiles(monkeypatch):
    """The check comes before any program is made."""

    def made(*_, **__):
        raise AssertionError("a step was made")

    monkeypatch.setattr(build, "make_step", made)


STRONG = PAIR | {"strength": 2.0}
CASES = [
    ("scaled_bt", {"train": [PAIR] * 3}, "config.data.train = ", "`strength`"),
    ("scaled_bt", {"a": [STRONG], "b": [PAIR] * 3}, "config.data.train.b = ",
     "`strength`"),
    ("bt", {"train": [ONE] * 3}, "config.data.train = ", "two responses that are rank"),
    ("plackett_luce", {"a": [PAIR], "b": [ONE] * 3}, "config.data.train.b = ",
     "two responses"),
    ("binary", {"train": [PAIR] * 3}, "config.data.train = ", "`ratings`"),
    ("prm_soft", {"train": [PAIR] * 3}, "config.data.train = ", "labelled `steps`"),
    ("implicit_prm_ce", {"train": [PAIR | {"ratings": {"right": [1, 0]}}] * 3},
     "config.data.train = ", "`reference_logp`"),
]  # fmt: skip


HEAD = {
    "prm_soft": {"model__head__name": "steps"},
    "implicit_prm_ce": {"model__head__name": "implicit", "model__lm_head": "tied"},
}


@pytest.mark.parametrize("loss, sources, where, field", CASES)
def test_a_source_without_the_label_is_named(
    config, tmp_path, loss, sources, where, field
):
    with pytest.raises(ValueError) as error:
        tiny.train(config(loss, sources, **HEAD.get(loss, {})), tmp_path / "run")
    text = str(error.value)
    assert text.startswith(where) and f"none of its 3 examples has {field}" in text
    assert f"loss {loss} needs" in text
    assert not (tmp_path / "run").exists()


# A loss and a model that do not fit, and what is said: without a look at the data.
UNFIT = [
    ("bt", {"model__head__name": "attribute"}, "head.name = 'attribute'; known"),
    ("bt", {"model__head__name": "implicit"}, "log p.token.*lm_head is 'none'"),
    ("prm_soft", {}, "loss prm_soft needs the output 'steps'.*'linear'.*'steps'"),
    ("bt", {"model__head__name": "steps", "contract__pooling": "mean"}, "'last'"),
    ("bt", {"model__head__name": "affine"}, "'affine' has an intercept.*'linear'"),
]


@pytest.mark.parametrize("loss, changes, words", UNFIT)
def test_a_model_that_does_not_fit_the_loss(make, tmp_path, loss, changes, words):
    made = make(data__train="jsonl:no-such-file.jsonl", loss__name=loss, **changes)
    with pytest.raises(ValueError, match=words):
        tiny.train(made, tmp_path / "run")


def test_a_head_that_compares_needs_two_responses(config, tmp_path):
    pair = {"model__head__name": "pair", "model__head__init": "normal"}
    made = config("bt", {"train": [PAIR, PAIR, ONE]}, **pair)
    with pytest.raises(ValueError, match="'train': 1 of its 3 .*'2', have one respons"):
        tiny.train(made, tmp_path / "run")


def test_an_implicit_reward_needs_every_reference(config, tmp_path):
    half = PAIR | {"reference_logp": [-3.0, None]}
    rows = [PAIR | {"reference_logp": [-3.0, -4.0]}, half, half]
    made = config("bt", {"train": rows}, **HEAD["implicit_prm_ce"])
    with pytest.raises(
        ValueError, match="2 of its 3 .*'1', have a response without re"
    ):
        tiny.train(made, tmp_path / "run")
    made = config("bt", {"train": rows[:1]}, **HEAD["implicit_prm_ce"])
    with pytest.raises(AssertionError, match="a step was made"):
        tiny.train(made, tmp_path / "run")


def test_a_knob_that_needs_a_label(config, tmp_path):
    made = config("margin_bt", {"train": [PAIR] * 3})
    made.loss.margin_strength = 1.0
    with pytest.raises(ValueError, match="`strength`.*margin_bt with margin_strength"):
        tiny.train(made, tmp_path / "run")


RATED = PAIR | {"ratings": {"good": [1, 0]}}
OUTSIDE = [
    ("binary", RATED | {"ratings": {"good": [1, 3]}}, "ratings 3", r"\[0, 1\]"),
    ("ordinal", RATED | {"ratings": {"good": [5, None]}}, "ratings 5",
     r"\[0, 4\], 1 apart"),
    ("ordinal", RATED | {"ratings": {"good": [None, 2.5]}}, "ratings 2.5",
     r"\[0, 4\], 1 apart"),
    ("scaled_bt", STRONG | {"strength": -0.5}, "strength -0.5", r"\[0, inf\)"),
]  # fmt: skip


@pytest.mark.parametrize("loss, bad, value, limit", OUTSIDE)
def test_a_label_that_a_loss_cannot_use_is_named(
    config, tmp_path, loss, bad, value, limit
):
    good = STRONG if "strength" in bad else RATED
    head = {"model__head__name": "attributes"} if loss == "ordinal" else {}
    sources = {"a": [good] * 2, "b": [good, good, bad]}
    words = f"^config.data.train.b = .*example .2. has {value}, .*{loss}.*in {limit}"
    with pytest.raises(ValueError, match=words):
        tiny.train(config(loss, sources, **head), tmp_path / "run")
    with pytest.raises(AssertionError, match="a step was made"):
        tiny.train(config(loss, {"a": [good] * 2}, **head), tmp_path / "run")


def test_some_rows_without_the_label_are_counted_by_source(config, tmp_path):
    made = config("scaled_bt", {"a": [STRONG] * 2, "b": [STRONG, PAIR, PAIR, PAIR]})
    stream = io.StringIO()
    with pytest.raises(AssertionError, match="a step was made"):
        rm_jax.train(made, str(tmp_path / "run"), stream=stream)
    (line,) = [x for x in stream.getvalue().splitlines() if "WARNING" in x]
    assert line.startswith("WARNING config.data.train.b = ")
    assert "3 of its 4 examples lack `strength`" in line
