"""Choosing an objective: knobs, errors that name things, plug-ins, terms."""

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rm_jax import losses
from rm_jax.losses import LOSSES, Needs, Range, Regularizer, check_terms, choose
from rm_jax.losses.checks import SAID
from rm_jax.losses.regularize import WeightKnobs
from rm_jax.types import Labels, RewardOutput

KEY = jax.random.key(0)
# What heads give beside the scores, for one attribute: shapes after [e k].
SHAPES = {
    "attributes": (1,), "log_std": (1,), "quantiles": (1, 5), "steps": (4,),
    "log_ratio": (),
}  # fmt: skip


class ShiftKnobs(NamedTuple):
    shift: Annotated[float, Range(-1.0, 1.0)]
    by_rating: Annotated[float, Needs("ratings")] = 0.0


def shifted(out, labels, hparams: ShiftKnobs, key):
    return out.scores[:, 0] + hparams.shift


def no_knobs(out, labels, hparams, key):
    return out.scores[:, 0]


def token_loss(out, labels, hparams, key):
    return out.token_logp[:, 0]


token_loss.needs = ("token_logp", "strength")


class TwoKnobs(NamedTuple):
    weight: float = 1.0
    power: float = 2.0


def norm(params, hparams: TwoKnobs):
    return sum(jnp.sum(jnp.abs(p) ** hparams.power) for p in jax.tree.leaves(params))


def other_sums(out, labels, hparams: ShiftKnobs):
    return jnp.sum(out.scores)


NORM = Regularizer(params=norm)


def make_batch():
    scores = jnp.asarray([[2.0, 1.0], [0.0, 3.0]])
    labels = Labels(
        ranks=jnp.asarray([[0, 1], [0, 1]]),
        present=jnp.ones((2, 2), int),
        soft=jnp.full(2, jnp.nan),
        strength=jnp.full(2, jnp.nan),
        weight=jnp.ones(2),
        ratings=jnp.full((2, 2, 1), jnp.nan),
        steps=jnp.full((2, 2, 1), -1),
        lengths=jnp.asarray([[3, 5], [7, 9]]),
        ids=jnp.arange(2),
        source=jnp.zeros(2, int),
        reference_logp=jnp.full((2, 2), jnp.nan),
    )
    return RewardOutput(scores, {}, None), labels


def test_knobs_become_float32_arrays_with_their_defaults():
    objective = choose(
        {
            "name": "bradley_terry",
            "margin": 1,
            "regularizers": {"center": {"weight": 0.5}},
        }
    )
    assert set(objective.hparams) == {"loss", "center"}
    knobs = objective.hparams["loss"]
    assert (float(knobs.margin), float(knobs.tie_weight)) == (1.0, 1.0)
    for leaf in jax.tree.leaves(objective.hparams):
        assert isinstance(leaf, np.ndarray)
        assert (leaf.dtype, leaf.shape) == (np.float32, ())


@pytest.mark.parametrize(
    "config, words",
    [
        ({}, ["no name", "bradley_terry"]),
        ({"name": "bradley_tery"}, ["bradley_tery", "did you mean 'bradley_terry'"]),
        ({"name": "bradley_terry", "margn": 1.0}, ["margn", "'margin'", "[0, inf)"]),
        (
            {"name": "bradley_terry", "tie_weight": -1.0},
            ["tie_weight = -1.0", "[0, inf)"],
        ),
        ({"name": "bradley_terry", "margin": np.nan}, ["margin = nan", "finite"]),
        ({"name": "bradley_terry", "margin": 1e300}, ["margin = 1e+300", "finite"]),
        ({"name": "bradley_terry", "margin": "1"}, ["margin = '1'", "number"]),
        ({"name": "bradley_terry", "margin": True}, ["margin = True", "number"]),
        ({"name": "bradley_terry", "margin": np.ones(2)}, ["margin", "one finite"]),
        ({"name": "bradley_terry", "label_smoothing": 0.5}, ["= 0.5", "[0, 0.5)"]),
        (
            {"name": "bradley_terry", "regularizers": {"centre": {}}},
            ["regularizer 'centre'", "did you mean 'center'", "length_correlation"],
        ),
        (
            {"name": "bradley_terry", "regularizers": {"center": {"weight": -1}}},
            ["regularizer center: weight = -1"],
        ),
        (
            {"name": "bradley_terry", "regularizers": {f"{__name__}:shifted": {}}},
            ["test_loss_choice:shifted", "want an rm_jax.losses.Regularizer"],
        ),
        (
            {"name": "bradley_terry", "regularizers": {"center": 0.01}},
            ["regularizer center = 0.01", "weight"],
        ),
    ],
)
def test_errors_name_the_thing_and_the_limit(config, words):
    with pytest.raises(ValueError) as e:
        choose(config)
    for word in words:
        assert word in str(e.value)


def test_a_function_of_a_module_is_imported():
    objective = choose({"name": f"{__name__}:shifted", "shift": 0.5})
    out, labels = make_batch()
    got = objective.loss(out, labels, objective.hparams["loss"], KEY)
    np.testing.assert_allclose(got, [2.5, 0.5])


def test_a_function_passed_in_python():
    objective = choose({"name": "mine", "shift": 0.5}, {**LOSSES, "mine": shifted})
    assert objective.loss is shifted


@pytest.mark.parametrize(
    "name, values, words",
    [
        ("shifted", {}, ["'shift' has no default"]),
        ("shifted", {"shift": 1.0}, ["shift = 1.0", "[-1, 1)"]),
        ("no_knobs", {"shift": 1.0}, ["no knob 'shift'", "it has no knobs"]),
        ("shiftd", {}, ["no 'shiftd'", "did you mean 'shifted'"]),
        ("KEY", {}, ["want a function"]),
        ("make_batch", {}, ["parameter named 'hparams'"]),
    ],
)
def test_errors_of_a_plug_in(name, values, words):
    with pytest.raises(ValueError) as e:
        choose({"name": f"{__name__}:{name}", **values})
    for word in words:
        assert word in str(e.value)


def test_a_module_that_cannot_be_imported():
    with pytest.raises(
        ValueError, match="cannot import .no_such_module.: ModuleNotFound.*PYTHONPATH"
    ):
        choose({"name": "no_such_module:f"})


def test_no_annotation_means_no_knobs():
    assert choose({"name": f"{__name__}:no_knobs"}).hparams["loss"] == ()


ONE = {"config.data.train = 'hh'": {"examples": 5, "pairs": 5, "strength": 5}}


def test_needs_of_a_knob_and_of_a_function():
    plain = choose({"name": "bradley_terry"})
    assert plain.needs == {"pairs": "loss bradley_terry"}
    objective = choose({"name": "bradley_terry", "margin_strength": 0.5})
    assert losses.check_labels(objective, ONE) == []
    without = {"config.data.train = 'hh'": {"examples": 5, "pairs": 5, "soft": 2}}
    assert losses.check_labels(plain, without) == []
    with pytest.raises(ValueError) as error:
        losses.check_labels(objective, without)
    for words in ("config.data.train = 'hh': none of its 5 examples has `strength`",
                  "bradley_terry with margin_strength = 0.5 needs",
                  "they have ['pairs', 'soft']"):  # fmt: skip
        assert words in str(error.value)
    objective = choose({"name": f"{__name__}:token_loss"})
    assert objective.needs_token_logp
    assert losses.check_labels(objective, ONE) == []
    with pytest.raises(ValueError, match="`strength`"):
        losses.check_labels(objective, without)


def test_the_source_of_a_mixture_that_lacks_a_label_is_named():
    objective = choose({"name": "scaled_bt"})
    of = lambda **given: {"examples": 8, **given}
    full, some = of(pairs=8, strength=8), of(pairs=8, strength=5)
    (line,) = losses.check_labels(objective, {"a": full, "b": some})
    assert line.startswith("b: 3 of its 8 examples lack `strength`")
    assert "loss scaled_bt needs" in line
    with pytest.raises(ValueError, match="^c: none of its 8 examples has `strength`"):
        losses.check_labels(objective, {"a": full, "b": some, "c": of(pairs=8)})


# What a loss cannot do without, and a set that has all the rest.
LACKS = [
    *((name, "pairs", "two responses") for name in sorted(LOSSES)
      if "pairs" in getattr(LOSSES[name], "needs", ())),
    ("scaled_bt", "strength", "`strength`"),
    ("adaptive_margin", "strength", "`strength`"),
    ("soft_label", "soft", "`soft`"),
    *((name, "ratings", "`ratings`") for name in (
        "regress", "ordinal", "binary", "quantile", "gaussian_mle", "gaussian_reparam",
        "implicit_prm_ce")),
    *((name, "steps", "labelled `steps`") for name in (
        "prm_bce", "prm_hard", "prm_soft")),
    ("implicit_prm_ce", "reference_logp", "`reference_logp`"),
]  # fmt: skip


@pytest.mark.parametrize("name, field, said", LACKS)
def test_each_loss_says_what_it_lacks(name, field, said):
    given = dict.fromkeys(("examples", *SAID), 4)
    objective = choose({"name": name})
    assert losses.check_labels(objective, {"s": given}) == []
    with pytest.raises(ValueError, match=f"s: none of its 4 .*{said}.*loss {name} "):
        losses.check_labels(objective, {"s": given | {field: 0}})


def test_every_loss_needs_labels():
    for name in LOSSES:
        assert set(choose({"name": name}).needs) & set(SAID), name


def test_need_of_an_unknown_label():
    def loss(out, labels, hparams, key): ...

    loss.needs = ("strengths",)
    with pytest.raises(ValueError, match="mine needs 'strengths'.*'strength'"):
        choose({"name": "mine"}, {"mine": loss})


def test_terms_are_weighted_and_named():
    objective = choose(
        {
            "name": "bradley_terry",
            "regularizers": {
                "center": {"weight": 0.5},
                "length_correlation": {"weight": 0.25},
                "norm": {"weight": 0.1},
            },
        },
        regularizers={**losses.REGULARIZERS, "norm": NORM},
    )
    out, labels = make_batch()
    h = objective.hparams
    terms = losses.example_terms(objective, out, labels, h, KEY)
    assert list(terms) == ["loss", "center"]
    np.testing.assert_allclose(terms["loss"], np.log1p(np.exp([-1, 3])), rtol=1e-6)
    np.testing.assert_allclose(terms["center"], [4.5, 4.5])
    totals = losses.sums(objective, out, labels, h)
    assert list(totals) == ["length_correlation"]
    terms = losses.global_terms(objective, totals, h)
    terms |= losses.parameter_terms(objective, {"w": jnp.asarray([1.0, 2.0])}, h)
    rho = np.corrcoef([2, 1, 0, 3], [3, 5, 7, 9])[0, 1]
    np.testing.assert_allclose(terms["length_correlation"], 0.25 * abs(rho), rtol=1e-5)
    np.testing.assert_allclose(terms["norm"], 0.1 * 5, rtol=1e-6)


def test_weights_are_read_from_the_state_not_from_the_choice():
    objective = choose({"name": "bradley_terry", "regularizers": {"center": {}}})
    out, labels = make_batch()
    doubled = jax.tree.map(lambda h: 2 * h, objective.hparams)
    one = losses.example_terms(objective, out, labels, objective.hparams, KEY)
    two = losses.example_terms(objective, out, labels, doubled, KEY)
    np.testing.assert_allclose(two["center"], 2 * one["center"])


@pytest.mark.parametrize(
    "regularizer, words",
    [
        (Regularizer(), "want per_example"),
        (Regularizer(per_example=shifted, params=norm), "want per_example"),
        (Regularizer(stats=other_sums), "stats and value"),
        (Regularizer(stats=other_sums, value=norm), "same class"),
        (Regularizer(per_example=shifted), "lack 'weight'"),
    ],
)
def test_regularizers_that_are_put_together_wrongly(regularizer, words):
    with pytest.raises(ValueError, match=words):
        choose(
            {"name": "bradley_terry", "regularizers": {"mine": {}}},
            regularizers={"mine": regularizer},
        )


def test_every_loss_and_regularizer_can_be_chosen():
    for name in LOSSES:
        choose({"name": name, "regularizers": {r: {} for r in losses.REGULARIZERS}})


def column(out, labels, hparams, key):
    return jnp.zeros((*labels.weight.shape, 1))


def mean(out, labels, hparams, key):
    return jnp.mean(out.scores)


def whole(out, labels, hparams, key):
    return jnp.argmax(out.scores, axis=1)


def nothing(out, labels, hparams, key):
    return None


def branching(out, labels, hparams, key):
    return out.scores[:, 0] if out.scores[0, 0] > 0 else out.scores[:, 1]


@pytest.mark.parametrize(
    "fn, words",
    [
        (column, ("test_loss_choice:column", "(3, 1)", "want one float")),
        (mean, ("mean, returns float32 of shape ()", "(3,)")),
        (whole, ("int32 of shape (3,)",)),
        (nothing, ("returns None",)),
        (branching, ("branching, fails: TracerBoolConversionError",)),
    ],
)
def test_what_is_not_one_float_an_example_is_refused(fn, words):
    as_loss = choose({"name": "mine"}, losses={"mine": fn})
    with pytest.raises(ValueError) as error:
        check_terms(as_loss, 0, {})
    assert all(word in str(error.value) for word in ("the loss", *words))

    def term(out, labels, hparams: WeightKnobs, key):
        return fn(out, labels, hparams, key)

    term.__qualname__, term.__module__ = fn.__qualname__, fn.__module__
    known = {"mine": Regularizer(per_example=term)}
    beside = choose({"name": "bradley_terry", "regularizers": {"mine": {}}},
                    regularizers=known)  # fmt: skip
    with pytest.raises(ValueError, match="regularizer mine"):
        check_terms(beside, 0, {})


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_every_loss_has_terms_that_are_right(name):
    objective = choose({"name": name, "regularizers": {"center": {}}})
    check_terms(objective, 1, {n: SHAPES[n] for n in objective.outputs})


WEIGHTS = {
    "center": 0.01, "score_l2": 0.001, "odin": 1.0, "odin_orthogonal": 1.0,
    "grm_sft": 0.01 / 0.99, "grm_dpo": 0.01 / 0.99,
}  # fmt: skip


@pytest.mark.parametrize("name, weight", WEIGHTS.items())
def test_a_weight_that_is_not_given_is_the_papers(name, weight):
    objective = choose({"name": "bt", "regularizers": {name: {}}})
    assert objective.hparams[name].weight == pytest.approx(weight)


def test_a_module_that_exits_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "leaving.py").write_text("raise SystemExit(0)")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="loss leaving:f: cannot import .*SystemExit"):
        choose({"name": "leaving:f"})
