"""Best-of-n against one reward model, and against ensembles that doubt (Coste 2023).

    rm-jax sweep --experiment experiments/ensemble_uncertainty.py --root runs/ensembles

500 pairs, a quarter of them turned round, are few enough to be hacked. Five members,
full models, adapters or heads on one trunk, choose the best of up to 256 responses by
one member alone, by their mean, their least (WCO) or mean - .5 variance (UWO); gold is
in standard deviations of it. All start from a model of the world's language, which has
seen no preference.
"""

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from rm_jax.config import load
from rm_jax.experiment import Rule, Verdict, above, after
from rm_jax.hyper import chainit
from rm_jax.report.compare import Difference, level

QUESTION = "Do ensembles keep best-of-n from hacking the reward model, and which ones?"
SEEDS = ("data.world.seed",)
WORLDS, PAIRS, NOISE, MEMBERS = range(5), 500, 0.25, 5
N = 256
SHARES = {"none": "full models", "adapters": "adapters", "trunk": "heads on one trunk"}
NAMES = {"none": "full", "adapters": "adapters", "trunk": "heads"}
HOW = {"mean": "mean", "min": "WCO", "mean_minus_var": "UWO"}
COSTE = "Coste 2023 (2310.02743), best-of-n with 25 % label noise, 44M models"
EXPECTED = {
    "full_mean": {
        "value": 57.8,
        "what": "% of comparisons won against the single model, at n = 12,500",
        "source": COSTE,
    },
    "full_min": {"value": 58.3, "what": "% won, WCO", "source": COSTE},
    "full_mean_minus_var": {"value": 58.2, "what": "% won, UWO", "source": COSTE},
}


def get_config(arg: str = "") -> ConfigDict:
    """Pairs whose labels follow gold, and a pool of 48 prompts to choose from."""
    if arg:
        raise ValueError(f"ensemble_uncertainty takes no argument, got {arg!r}")
    c = load("rm_jax:small")
    c.name = "ensemble_uncertainty"
    c.data.world.train = PAIRS
    c.data.world.test = 1000
    for knob in ("length_bias", "sycophancy_bias"):
        c.data.world[knob] = 0.0
    c.data.world.temperature = 0.01  # the better response wins, if only by little
    c.data.eval = ConfigDict(
        {"test": "world:noise=0#test", "pool": f"world:responses={N},test=48#test"}
    )
    c.model.lm_head = "tied"
    c.loss.regularizers = ConfigDict({"center": {"weight": 0.01}})
    c.train.duration = "100 steps"  # six epochs
    c.train.best_metric = "eval/test/nll"
    return c


def sweep():
    """In each of 5 worlds: a trunk of its language, and 3 kinds of ensembles on it."""
    trunks = [_trunk(seed) for seed in WORLDS]
    return chainit([trunks, *(_ensembles(NOISE, seed) for seed in WORLDS)])


def null():
    """Worlds in which every label is a coin: no way to choose knows more than any."""
    return chainit(_ensembles(0.5, seed) for seed in WORLDS[:3])


def _trunk(seed: int):
    """Of texts of another world, trained on all of them; its labels are coins."""
    return {
        "data.world.seed": 1000 + seed,
        "data.world.noise": 0.5,
        "data.world.train": 4000,
        "loss.regularizers.grm_sft.weight": 100.0,
        "train.duration": "300 steps",
    }


def _ensembles(noise: float, seed: int):
    members = {
        "data.world.noise": noise,
        "data.world.seed": seed,
        "model.init": after(_trunk(seed)),
        "model.head.init": "normal",
        "members.count": MEMBERS,
    }
    return [
        {**members, "members.share": "none", "members.own_order": True},
        {**members, "members.share": "adapters", "members.own_order": True,
         "model.lora.rank": 8},
        {**members, "members.share": "trunk", "data.bootstrap": "poisson"},
    ]  # fmt: skip


def _gold(way: str, n: int = N) -> str:
    """Gold of the best of n by a reducer, or by "members": the mean of each alone."""
    where = way if way == "members" else f"reducer/{way}"
    return f"pool/{where}/best_of_{n}/gold"


def _over(table: Any, share: str, more: str, less: str) -> Difference:
    """Of two figures of one unit, over the worlds."""
    rows = table[table["members.share"] == share]
    rows = rows.assign(**{"pool/difference": rows[more] - rows[less]})
    return level(rows, "pool/difference", {"members.share": share}, SEEDS)


def better(share: str, way: str, than: str) -> Callable[[Any], Verdict]:
    """Gold of the best of N by one way minus by another is above 0."""
    return lambda table: above(_over(table, share, _gold(way), _gold(than)))


def hacked(table: Any) -> Verdict:
    """By one full member gold rises to n = 16 and then falls by .2 or more to N."""
    rise = above(_over(table, "none", _gold("members", 16), _gold("members", 1)))
    fall = above(_over(table, "none", _gold("members", 16), _gold("members")), 0.2)
    text = f"rise {rise.text}; fall {fall.text}"
    both = (rise.holds, fall.holds)
    holds = False if False in both else None if None in both else True
    return fall._replace(holds=holds, text=text)


def holds_on(way: str) -> Callable[[Any], Verdict]:
    """Gold falls less from n = 16 to N by an ensemble of full models than by one."""

    def decide(table: Any) -> Verdict:
        fall = lambda w: table[_gold(w, 16)] - table[_gold(w)]
        rows = table.assign(**{"pool/one": fall("members"), "pool/all": fall(way)})
        return above(_over(rows, "none", "pool/one", "pool/all"))

    return decide


RULES = (
    Rule(
        "hacked",
        "the best of many by one model has less gold than the best of few",
        "Gao 2022 (2210.10760)",
        hacked,
    ),
    *(
        Rule(
            f"{name}_{way}",
            f"{HOW[way]} over {SHARES[share]} chooses better than one member",
            COSTE,
            better(share, way, "members"),
        )
        for share, name in NAMES.items()
        for way in HOW
    ),
    *(
        Rule(
            f"{way}_over_mean",
            f"{HOW[way]} over full models chooses better than their mean",
            COSTE,
            better("none", way, "mean"),
        )
        for way in ("min", "mean_minus_var")
    ),
    *(
        Rule(
            f"{way}_falls_less",
            f"with {HOW[way]} gold falls less from the best of 16 on than with one",
            COSTE,
            holds_on(way),
        )
        for way in ("min", "mean_minus_var")
    ),
)
