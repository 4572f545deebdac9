"""Wrong labels found by an ensemble, and what to do about them (Secrets of RLHF II).

    rm-jax sweep --experiment experiments/label_noise.py --root runs/label_noise

Every label of the world follows gold, and a quarter is turned round. Ten models are
trained on them; μ, their mean margin for the stated preference, is low where a label is
wrong. A second model learns from labels that μ has softened, turned back, or given a
margin. No model sees which labels were turned.
"""

from typing import Any

from ml_collections import ConfigDict

from rm_jax.config import load
from rm_jax.experiment import Rule, Verdict, above, after
from rm_jax.hyper import chainit
from rm_jax.report.compare import difference, level

QUESTION = "Can an ensemble find wrong labels, and does mending them help?"
SEEDS = ("data.world.seed",)
WORLDS, NOISE, MEMBERS = range(5), 0.25, 10
GAIN = 0.02
METRIC = "test/gold_accuracy"
SOURCE = "Secrets of RLHF II (Wang 2024, 2401.06080)"
EXPECTED = {
    "found": {
        "value": None,
        "what": "of the fifth with the lowest margin most labels are wrong; a figure",
        "source": SOURCE,
    },
}


def get_config(arg: str = "") -> ConfigDict:
    """2,048 pairs of a world without biases; the labels of the test set are right."""
    if arg:
        raise ValueError(f"label_noise takes no argument, got {arg!r}")
    c = load("rm_jax:small")
    c.name = "label_noise"
    for knob in ("length_bias", "sycophancy_bias"):
        c.data.world[knob] = 0.0
    c.data.world.temperature = 0.01  # the better response wins, if only by little
    c.data.eval = ConfigDict({"valid": "#valid", "test": "world:noise=0#test"})
    return c


def sweep():
    """An ensemble, a plain model and four remedies in each of 5 worlds."""
    return chainit(_world(NOISE, seed) for seed in WORLDS)


def null():
    """Worlds in which every label is a coin: there is no right one to come back to."""
    return chainit(_world(0.5, seed) for seed in WORLDS[:3])


def _world(noise: float, seed: int):
    here = {"data.world.noise": noise, "data.world.seed": seed}
    ensemble = {
        **here,
        "members.count": MEMBERS,
        "members.own_order": True,
        "data.eval.seen": "world:#train",
    }
    scores = {"data.denoise.scores": after(ensemble, "predictions/seen.parquet")}
    remedies = [
        {"loss.name": "bt"},
        {"loss.name": "label_smooth", "loss.flips": 0.1},
        {"loss.name": "bt", "data.denoise.rule": "flip", **scores},
        {"loss.name": "soft_label", "data.denoise.rule": "soft", **scores},
        {"loss.name": "adaptive_margin", "data.denoise.rule": "strength", **scores},
    ]
    return [ensemble, *({**here, **remedy} for remedy in remedies)]


def found(table: Any) -> Verdict:
    """A label against gold has the lower margin with a probability above .75."""
    return above(_of_ensemble(table, "seen/against_gold/auroc"), 0.75)


def lowest_fifth(table: Any) -> Verdict:
    """Of the fifth of the pairs with the lowest margin more than half are wrong."""
    return above(_of_ensemble(table, "seen/against_gold/lowest_fifth"), 0.5)


def flip(table: Any) -> Verdict:
    """Turning the lowest fifth back gains GAIN or more over the labels as they are."""
    return above(_gain(table, "flip"), GAIN)


def soft(table: Any) -> Verdict:
    """Labels σ(μ) gain GAIN or more."""
    return above(_gain(table, "soft"), GAIN)


def margin(table: Any) -> Verdict:
    """The margin μ gains GAIN or more."""
    return above(_gain(table, "strength"), GAIN)


def smooth(table: Any) -> Verdict:
    """Smoothing every label by .1 gains something, without an ensemble."""
    a, b = {"loss.name": "bt"}, {"loss.name": "label_smooth"}
    return above(difference(table[_plain(table)], METRIC, a, b, SEEDS))


def _of_ensemble(table: Any, metric: str) -> Any:
    return level(table, metric, {"members.count": MEMBERS}, SEEDS)


def _gain(table: Any, rule: str) -> Any:
    """Of a remedy over plain Bradley-Terry."""
    plain = _plain(table) & (table["loss.name"] == "bt")
    mended = _mended(table) & (table["data.denoise.rule"] == rule)
    rows = table.assign(mended=mended)[plain | mended]
    return difference(rows, METRIC, {"mended": False}, {"mended": True}, SEEDS)


def _mended(table: Any) -> Any:
    """Units that learn from labels of an ensemble."""
    return table["data.denoise.scores"].astype(str).str.startswith("after")


def _plain(table: Any) -> Any:
    """Single models on the labels as they are."""
    return (table["members.count"] == 1) & ~_mended(table)


RULES = (
    Rule("found", "the margin of an ensemble finds wrong labels", SOURCE, found),
    Rule(
        "lowest_fifth",
        "most labels of the fifth with the lowest margin are wrong",
        SOURCE,
        lowest_fifth,
    ),
    Rule("flip", f"turning that fifth back gains {GAIN}", SOURCE, flip),
    Rule("soft", f"soft labels of the ensemble gain {GAIN}", SOURCE, soft),
    Rule("margin", f"the ensemble's margin gains {GAIN}", SOURCE, margin),
    Rule("smooth", "smoothing every label gains", "Mitchell 2023 (cDPO)", smooth),
)
