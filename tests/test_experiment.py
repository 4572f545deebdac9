"""Experiment files: what load gives, and what it refuses by name."""

import pytest

from rm_jax import experiment
from rm_jax.config import ConfigError
from rm_jax.report.compare import Difference

GOOD = """
from rm_jax import config, hyper
from rm_jax.experiment import Rule

QUESTION = "Does it matter?"
SEEDS = ("init_seed",)
EXPECTED = {}

def get_config(arg=""):
    base = config.load("rm_jax:base")
    base.name = arg or "none"
    return base

def sweep():
    return hyper.sweep("init_seed", [0, 1])

def null():
    return []

RULES = (Rule("gain", "it does", "a paper", lambda table: None),)
"""


@pytest.fixture
def write(tmp_path):
    """An experiment file with a part of GOOD replaced."""

    def write(old="", new=""):
        assert old in GOOD
        (tmp_path / "x.py").write_text(GOOD.replace(old, new))
        return str(tmp_path / "x.py")

    return write


def test_an_experiment_is_loaded_with_its_argument(write):
    found = experiment.load(write() + ":small")
    assert found.question == "Does it matter?" and found.seeds == ("init_seed",)
    assert found.units == ({"init_seed": 0}, {"init_seed": 1}) and found.null == ()
    assert found.base.name == "small" and found.rules[0].name == "gain"
    assert len(found.sha256) == 64


@pytest.mark.parametrize(
    "old, new, parts",
    [
        ('QUESTION = "Does it matter?"', "", ["has no QUESTION", "SEEDS"]),
        ('"Does it matter?"', '"a\\nb"', ["QUESTION", "a line"]),
        ('("init_seed",)', '"init_seed"', ["SEEDS", "'init_seed'"]),
        ('("init_seed",)', '("data_seed",)', ["'data_seed'", "no unit sets"]),
        ("EXPECTED = {}", "EXPECTED = []", ["EXPECTED", "want a dict"]),
        ("return base", "return {}", ["get_config", "ConfigDict"]),
        (
            "return base",
            "from rm_jax.experiment import after\n"
            "    base.model.init = after({})\n    return base",
            ["get_config uses after(...)", "changes of units"],
        ),
        ("base.name = arg", "base.nam.e = arg", ["x.py:11", "nam"]),
        ("[0, 1]", "[]", ["sweep", "at least one"]),
        ("hyper.sweep(", "print(", ["sweep()", "None"]),
        ("return []", "return [{}, {}]", ["units 0 and 1 of null()", "the same"]),
        ("return []", "return sweep()", ["null()", "sweep()"]),
        ("return []", "return [3]", ["unit 0 of null()", "3"]),
        ("RULES = (Rule", "RULES = () and (Rule", ["RULES", "at least one"]),
        ("None),)", "None), 1)", ["RULES has 1", "Rule(name"]),
        ('"gain"', "1", ["RULES", "text"]),
        ("lambda table: None", "None", ["'gain'", "decide"]),
        ("None),)", "None),) * 2", ["'gain' twice"]),
    ],
    ids=lambda x: x[:25] if isinstance(x, str) else "",
)
def test_a_bad_part_is_named(old, new, parts, write):
    with pytest.raises(ConfigError) as error:
        experiment.load(write(old, new))
    for part in ["x.py", *parts]:
        assert part in str(error.value)


def test_no_experiment(tmp_path):
    with pytest.raises(ConfigError, match="no experiment 'rm_jax:nothing'; known: "):
        experiment.load("rm_jax:nothing")
    with pytest.raises(ConfigError, match="give FILE.py"):
        experiment.load(str(tmp_path / "x.py"))


@pytest.mark.parametrize(
    "low, high, more, less",
    [
        (0.2, 0.4, True, False),
        (-0.4, 0.1, False, True),  # touching the limit is not above it
        (0.0, 0.3, None, None),
        (float("nan"), float("nan"), None, None),
    ],
)
def test_a_claim_holds_by_the_whole_interval(low, high, more, less):
    found = Difference((low + high) / 2, low, high, 3, 0.5, 0.1)
    over, under = experiment.above(found, 0.1), experiment.below(found, 0.15)
    assert over.holds is more and under.holds is less
    if low == low:
        assert over[1:4] == under[1:4] == ((low + high) / 2, low, high)
    assert experiment.above(found, text="large").text.startswith("large: ")
