"""Does the loss matter to a model that has learnt nothing? Units of a second.

The argument is a folder for its files, perhaps with ",steps" behind it.
"""

import pathlib

import tiny

from rm_jax import hyper
from rm_jax.experiment import Rule, Verdict
from rm_jax.report import compare

QUESTION = "Does the loss matter in three steps?"
SEEDS = ("init_seed",)
EXPECTED = {"gain": {"value": 0.5, "source": "nobody"}}
LOSSES = ("bradley_terry", "hinge")


def get_config(arg=""):
    folder, _, steps = arg.partition(",")
    changes = {"train.duration": f"{steps or 3} steps", "train.save_every": "1 steps"}
    return tiny.maker(pathlib.Path(folder))(**changes)


def sweep():
    return hyper.product(
        [hyper.sweep("loss.name", LOSSES), hyper.sweep("init_seed", [0, 1])]
    )


def null():
    world = hyper.fixed("data.world.seed", 7)
    return hyper.product([world, hyper.sweep("init_seed", [0, 1])])


def decide(table):
    if "loss.name" not in table or set(table["loss.name"]) != set(LOSSES):
        return Verdict(None, float("nan"), float("nan"), float("nan"), "one loss only")
    a, b = ({"loss.name": name} for name in LOSSES)
    found = compare.paired(table, "valid/accuracy", a, b, SEEDS)
    return Verdict(found.low > 0, found.mean, found.low, found.high, str(found))


RULES = (Rule("gain", "the hinge is better", "nobody, table 2", decide),)
