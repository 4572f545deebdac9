"""Rankings as one batch element each, or as pairs shuffled apart (InstructGPT).

    rm-jax sweep --experiment experiments/kwise.py --root runs/kwise

1,000 prompts with 6 ranked responses each. The pairs of a prompt stand in one example,
or each is an example of its own among all the others, so that every response is in five
steps of one pass. Every step has 120 pairs; test NLL after one pass and after four.
"""

from typing import Any

from ml_collections import ConfigDict

from rm_jax.config import load
from rm_jax.experiment import Rule, Verdict, above, below
from rm_jax.hyper import chainit, fixed, product, zipit
from rm_jax.hyper import sweep as values
from rm_jax.report.compare import difference

QUESTION = "Do all comparisons of a prompt belong into one batch element?"
SEEDS = ("init_seed", "data_seed")
K, PROMPTS, PAIRS = 6, 1000, 120
ONE, FOUR = "1 epochs", "4 epochs"
RISE, GAP = 0.02, 0.03  # nats a pair
EXPECTED = {
    "overfits": {
        "value": None,
        "what": "shuffled pairs overfit in a single pass; no number is given",
        "source": "InstructGPT (Ouyang 2022), section 3.4",
    },
    "plackett_luce": {
        "value": None,
        "what": "better than pairs for rankings of 7; no number of that alone",
        "source": "Starling (Zhu 2023, 2301.11270), read in a summary",
    },
}


def get_config(arg: str = "") -> ConfigDict:
    """Rankings of 6, evaluated once, at the end."""
    if arg:
        raise ValueError(f"kwise takes no argument, got {arg!r}")
    c = load("rm_jax:small")
    c.name = "kwise"
    c.data.world.train = PROMPTS
    c.data.world.responses = K
    c.train.duration = ONE
    c.train.eval_every = FOUR
    c.train.save_every = FOUR
    return c


def sweep():
    """Grouped (all pairs, Plackett-Luce) and shuffled x 1 and 4 passes x 3 seeds."""
    return product([_ways(K), values("train.duration", [ONE, FOUR]), _seeds()])


def null():
    """As many pairs, each with a prompt of its own: there is nothing to group."""
    pairs = zipit(
        [fixed("data.world.responses", 2), fixed("data.world.train", PROMPTS * 15)]
    )
    return product([pairs, _ways(2), values("train.duration", [ONE, FOUR]), _seeds()])


def _ways(k: int):
    prompts = PAIRS // (k * (k - 1) // 2)
    grouped = product(
        [
            values("loss.name", ["bt_kwise", "plackett_luce"]),
            fixed("data.rankings", "whole"),
            fixed("batch.examples", prompts),
        ]
    )
    shuffled = {
        "loss.name": "bt",
        "data.rankings": "pairs",
        "batch.examples": PAIRS,
    }
    return chainit([grouped, [shuffled]])


def _seeds():
    return zipit([values("init_seed", range(3)), values("data_seed", range(3))])


def overfits(table: Any) -> Verdict:
    """From one pass to four NLL rises by RISE more with pairs apart than grouped."""
    of = lambda duration: table[table["train.duration"] == duration]
    rows = of(FOUR).merge(of(ONE), on=["loss.name", *SEEDS], suffixes=("", "/one"))
    rows["test/rise"] = rows["test/nll"] - rows["test/nll/one"]
    names = ({"loss.name": name} for name in ("bt_kwise", "bt"))
    return above(difference(rows, "test/rise", *names, SEEDS), RISE)


def grouped_is_better(table: Any) -> Verdict:
    """After one pass, NLL of grouped rankings minus shuffled pairs is below -GAP."""
    return below(_difference(table, ONE, "bt", "bt_kwise"), -GAP)


def plackett_luce_is_better(table: Any) -> Verdict:
    """After one pass, NLL of Plackett-Luce minus all pairs of a ranking is below 0."""
    return below(_difference(table, ONE, "bt_kwise", "plackett_luce"))


def _difference(table: Any, duration: str, a: str, b: str) -> Any:
    rows = table[table["train.duration"] == duration]
    name = "loss.name"
    return difference(rows, "test/nll", {name: a}, {name: b}, SEEDS)


OUYANG = "InstructGPT (Ouyang 2022), section 3.4"
RULES = (
    Rule(
        "overfits",
        f"further passes raise the test NLL {RISE} more with pairs shuffled apart",
        OUYANG,
        overfits,
    ),
    Rule(
        "grouped",
        f"after one pass, grouped pairs have a test NLL that is {GAP} lower",
        OUYANG,
        grouped_is_better,
    ),
    Rule(
        "plackett_luce",
        "Plackett-Luce gives a lower test NLL than all pairs of the ranking",
        "Starling (Zhu 2023, 2301.11270)",
        plackett_luce_is_better,
    ),
)
