"""A margin that grows with the strength of the preference (Llama 2).

    rm-jax sweep --experiment experiments/margin.py --root runs/margin

Annotators of the world choose by chance where two responses are close and grade their
preference 1 to 4. The small margins are {0, 1/3, 2/3, 1}, the large ones {0, 1, 2, 3};
both beside none, on labels as given and with a quarter of them turned round.
"""

from typing import Any

from ml_collections import ConfigDict

from rm_jax.config import load
from rm_jax.experiment import Rule, Verdict, above
from rm_jax.hyper import chainit, fixed, product, zipit
from rm_jax.hyper import sweep as values
from rm_jax.report.compare import Difference, difference

QUESTION = "Does a margin by strength help on clear pairs, and what does it cost?"
SEEDS = ("init_seed", "data_seed")
SMALL, LARGE = 1 / 3, 1.0  # of the margin for each grade
NOISE = (0.0, 0.25)
CLEAR = "test/strength/4/accuracy"
EXPECTED = {
    "clear": {
        "value": 0.016,
        "what": "80.7 - 79.1 with large margins (80.4 with small ones), significantly "
        "better pairs of the helpful test set",
        "source": "Llama 2 (Touvron 2023), table 28",
    },
    "all_pairs": {
        "value": 0.004,
        "what": "62.9 - 62.5 (63.0 with small ones), mean over the test set",
        "source": "Llama 2 (Touvron 2023), table 28",
    },
    "spread": {
        "value": None,
        "what": "scores are pushed to two extremes; a figure, no number",
        "source": "Llama 2 (Touvron 2023), figure 27",
    },
}


def get_config(arg: str = "") -> ConfigDict:
    """Bradley-Terry with a margin, on a test set that has 1,000 clear pairs or more."""
    if arg:
        raise ValueError(f"margin takes no argument, got {arg!r}")
    c = load("rm_jax:small")
    c.name = "margin"
    c.data.world.test = 4000
    c.loss = ConfigDict({"name": "margin_bt", "regularizers": {}})
    c.loss.margin = 0.0
    c.loss.margin_strength = 0.0
    return c


def sweep():
    """No, small and large margins x noise x 5 seeds; all of them in one program."""
    return product([_margins(), values("data.label_noise", NOISE), _seeds()])


def null():
    """Two worlds, in which the claims are false.

    Where every label is a coin, a margin helps nowhere; where every grade is 1, the
    margins are all 0.
    """
    coins = fixed("data.world.noise", 0.5)
    one = fixed("data.world.strength_levels", 1)
    noise = fixed("data.label_noise", 0.0)
    return product([chainit([coins, one]), _margins(), noise, _seeds()])


def _margins():
    steps = [0.0, SMALL, LARGE]  # less one step: the grades begin at 1
    less = values("loss.margin", [0.0, -SMALL, -LARGE])
    return zipit([values("loss.margin_strength", steps), less])


def _seeds():
    return zipit([values("init_seed", range(5)), values("data_seed", range(5))])


def clear(table: Any) -> Verdict:
    """Accuracy on the clearest pairs rises by half a point with large margins."""
    small = _effect(_coins(table), CLEAR, SMALL)
    found = _effect(_coins(table), CLEAR, LARGE)
    verdict = above(found, text=f"small margins {small}; large ones")
    holds = False if verdict.holds and found.mean < 0.005 else verdict.holds
    return verdict._replace(holds=holds)


def all_pairs(table: Any) -> Verdict:
    """Accuracy on all pairs rises with large margins."""
    return above(_effect(_coins(table), "test/accuracy", LARGE))


def spread(table: Any) -> Verdict:
    """The standard deviation of the scores grows with the margins."""
    rows = _graded_alike(table)
    small = _effect(rows, "test/score_std", SMALL)
    found = _effect(rows, "test/score_std", LARGE)
    verdict = above(found, text=f"small margins {small}; large ones")
    grows = 0 < small.mean < found.mean
    return verdict._replace(holds=False if not grows else verdict.holds)


def calibration(table: Any) -> Verdict:
    """The calibration error grows with large margins."""
    return above(_effect(_graded_alike(table), "test/ece", LARGE))


def noisy_clear(table: Any) -> Verdict:
    """`clear`, where a quarter of the training labels are turned round."""
    rows = table if table["null"].all() else _noisy(table)
    return above(_effect(_coins(rows), CLEAR, LARGE))


def noisy_calibration(table: Any) -> Verdict:
    """`calibration`, where a quarter of the training labels are turned round."""
    rows = table if table["null"].all() else _noisy(table)
    return above(_effect(_graded_alike(rows), "test/ece", LARGE))


def _effect(table: Any, metric: str, step: float) -> Difference:
    noise = table["data.label_noise"].iloc[0]
    rows = table[table["data.label_noise"] == noise]
    key = "loss.margin_strength"
    return difference(rows, metric, {key: 0.0}, {key: step}, SEEDS)


def _noisy(table: Any) -> Any:
    return table[table["data.label_noise"] == max(NOISE)]


def _coins(table: Any) -> Any:
    """Of the null world the part of coins; else all."""
    return table[table["data.world.noise"] == 0.5] if table["null"].all() else table


def _graded_alike(table: Any) -> Any:
    """Of the null world the part in which all grades are 1; else all."""
    one = "data.world.strength_levels"
    return table[table[one] == 1] if table["null"].all() else table


LLAMA = "Llama 2 (Touvron 2023), section 3.2.2"
RULES = (
    Rule(
        "clear",
        "large margins add half a point of accuracy or more on the clearest pairs",
        LLAMA,
        clear,
    ),
    Rule("all_pairs", "large margins add to accuracy on all pairs", LLAMA, all_pairs),
    Rule("spread", "margins spread the scores, large ones more", LLAMA, spread),
    Rule(
        "calibration",
        "large margins make the calibration error larger",
        "follows from the loss: a margin asks for more than the log-odds",
        calibration,
    ),
    Rule(
        "noisy_clear",
        "large margins add to accuracy on the clearest pairs under label noise",
        LLAMA,
        noisy_clear,
    ),
    Rule(
        "noisy_calibration",
        "large margins make the calibration error larger under label noise",
        "follows from the loss: a margin asks for more than the log-odds",
        noisy_calibration,
    ),
)
