"""A whole evaluation of one data set: figures, alarms, swap check, predictions."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float

from rm_jax import store
from rm_jax.data.cache import TokenSet
from rm_jax.data.contract import Encoder
from rm_jax.data.loader import Loader
from rm_jax.data.mixture import WorldSet
from rm_jax.data.world import make_world
from rm_jax.evals.alarms import alarms
from rm_jax.evals.bias import swap_check
from rm_jax.evals.calibration import reliability
from rm_jax.evals.predictions import to_arrow
from rm_jax.evals.probes import world_probes
from rm_jax.evals.score import ScoreFn, reversed_scores, score_table
from rm_jax.evals.summary import by_source, evaluate, histograms
from rm_jax.evals.table import ScoreTable, pairs

SWAPPED = 256  # examples of the swap check
PROBES = 512  # of each kind


def evaluate_set(
    name: str,
    world: WorldSet | None,
    score_fn: ScoreFn,
    loader: Loader,
    encoder: Encoder,
    out: str | None,
    seed: int,
    temperature: float = 1.0,
    too_good: float = 0.97,
    probes: bool = True,
    poll: Callable[[], Any] = lambda: None,
    reducer: str = "mean",
    steady: ScoreFn | None = None,
    covariance: Callable[[Loader], Float[np.ndarray, "e k k"]] | None = None,
) -> dict[str, Any]:
    """Evaluates one set and writes predictions/NAME.parquet.

    Args:
      name: of the set.
      world: what world it is of, for its ceiling and bias probes; None of any other
        set.
      score_fn: the model.
      loader: of the set.
      encoder: of the model's contract, to decode texts and encode probes.
      out: directory that predictions/ goes to; None writes none.
      seed: of the bootstrap.
      temperature: of the contract.
      too_good: accuracy on human labels that is suspicious.
      probes: whether a world's bias probes are scored too.
      poll: called after every block of examples.
      reducer: how members become one score.
      steady: the model without chance, for the swap check and the probes, where
        `score_fn` draws at random.
      covariance: of the scores, by a posterior.

    Returns:
      the figures of `evaluate`, and reliability, histograms, swap, alarms; for a
      mixture the figures of each of its `sources`; for the world ceiling and probes.
    """
    table = score_table(score_fn, loader, poll=poll, reducer=reducer)
    if covariance is not None:
        table = table._replace(covariance=covariance(loader))
    how = {"seed": seed, "temperature": temperature}
    values: dict[str, Any] = dict(evaluate(table, **how))
    if of_sources := by_source(table, **how):
        values["sources"] = of_sources
    if values["n_pairs"] + values["n_ties"]:
        found = reliability(pairs(table), temperature)
        points = (x.tolist() for x in (found.confidence, found.share, found.n))
        values["reliability"] = [list(point) for point in zip(*points, strict=True)]
    for kind, histogram in histograms(table).items():
        values[f"{kind}_histogram"] = {
            "edges": histogram.edges.tolist(),
            "counts": histogram.counts.tolist(),
        }
    first, own_fn = table.scores[:SWAPPED], steady or score_fn
    if steady is not None:
        first = score_table(steady, loader, SWAPPED, reducer=reducer).scores
    reverse = reversed_scores(own_fn, loader, SWAPPED, reducer)
    values["swap"] = swap_check(first, reverse)
    of_world = world is not None
    values["alarms"] = alarms(table, human=not of_world, too_good=too_good)
    flipped = values["swap"]["flipped_share"]
    if flipped > 0.01:  # fewer are ties up to rounding
        values["alarms"].append(
            f"swap: {flipped:.1%} of the pairs change order when the responses are "
            "given in reverse: a score depends on its neighbours"
        )
    if of_world and world.split:
        ceiling = make_world(world.knobs).ceiling(world.split)
        values["ceiling"] = ceiling.agreement
    if of_world and probes:

        def score(data: TokenSet):
            own = loader.of(data)
            return score_table(own_fn, own, poll=poll, reducer=reducer).scores

        values["probes"] = world_probes(world.knobs, encoder, score, PROBES, seed)
    if out is not None:
        write_predictions(out, name, table, loader.data, encoder)
    return values


def write_predictions(
    out: str, name: str, table: ScoreTable, data: TokenSet, encoder: Encoder
) -> None:
    """predictions/NAME.parquet: one row a response, with the text that was scored."""
    prompts, responses = texts(data, len(table.ids), encoder)
    folder = store.join(out, "predictions")
    store.makedirs(folder)
    path = store.join(folder, f"{name}.parquet")
    file = pa.BufferOutputStream()
    pq.write_table(to_arrow(table, prompts, responses), file)
    store.write_bytes(path, file.getvalue().to_pybytes())  # in place of an older one


def texts(
    data: TokenSet, n: int, encoder: Encoder
) -> tuple[list[str], list[list[str]]]:
    """Decoded prompts and responses of the first n examples."""
    decode = lambda ids: encoder.decode(ids, skip_special=True)
    prompts = [decode(data.branch(i, 0)) for i in range(n)]
    return prompts, [
        [decode(data.branch(i, j + 1)) for j in range(data.count(i))] for i in range(n)
    ]


def summary_lines(evals: Mapping[str, Mapping[str, Any]]) -> Iterable[str]:
    """What is printed at the end: each accuracy and what to hold it against."""
    for name, v in evals.items():
        if "accuracy" in v:
            line = f"{name}: accuracy {_with_interval(v, 'accuracy')}"
            if "ceiling" in v:
                share = v["accuracy"] / v["ceiling"]
                line += f", {share:.1%} of the ceiling {v['ceiling']:.3f}"
            yield f"{line}; length alone gives {v['length_baseline']:.3f}; " + (
                f"n = {v['n_pairs']:.0f} pairs, {v['n_prompts']:.0f} prompts"
            )
        for source, own in v.get("sources", {}).items():
            if "accuracy" in own:
                yield (
                    f"  of {source}: accuracy {_with_interval(own, 'accuracy')}; "
                    f"length alone gives {own['length_baseline']:.3f}; "
                    f"NLL {own['nll']:.3f}, n = {own['n_pairs']:.0f} pairs"
                )
        if "step_accuracy" in v:
            line = f"{name}: steps right {_with_interval(v, 'step_accuracy')}"
            if "step_auroc" in v:
                line += f", AUROC {v['step_auroc']:.3f}"
            yield (
                f"{line}; calling all right gives {v['step_right_share']:.3f}; first "
                f"error {_with_interval(v, 'first_error_accuracy')}; "
                f"n = {v['n_steps']:.0f} steps"
            )
        if "nll" in v:
            yield from _of_pairs(v)
        for kind, probe in v.get("probes", {}).items():
            yield (
                f"  {kind} bias: measured {_with_interval(probe, 'model_bias')}, "
                f"injected {probe['annotator_bias']:+.3f} nats (worth "
                f"{probe['model_effect']:+.2f} to the model, "
                f"{probe['annotator_effect']:+.2f} to annotators, "
                f"{probe['gold_effect']:+.2f} in truth)"
            )
        for alarm in v.get("alarms", ()):
            yield f"  ALARM {alarm}"


def _doubt_lines(v: Mapping[str, Any]) -> Iterable[str]:
    """What members or a posterior say of their own errors, and what reducers make."""
    if "uncertainty/auroc" in v:
        yield (
            f"  std of the margin {v['uncertainty/margin_std']:.3f}; it tells wrong "
            f"pairs from right ones with AUROC {v['uncertainty/auroc']:.3f}; corrected "
            f"for it NLL {v['uncertainty/nll']:.3f}, ECE {v['uncertainty/ece']:.3f}"
        )
    if "members/accuracy" in v:
        found = [
            f"{key.split('/')[1]} {value:.3f}"
            for key, value in v.items()
            if key.startswith("reducer/") and key.endswith("/accuracy")
        ]
        yield (
            f"  accuracy of one member {v['members/accuracy']:.3f}, by reducer: "
            f"{', '.join(found)}"
        )


def _of_pairs(v: Mapping[str, Any]) -> Iterable[str]:
    """What is printed beside the accuracy of a set with labelled pairs."""
    rest = [f"NLL {v['nll']:.3f}", f"ECE {v['ece']:.3f}", f"Brier {v['brier']:.3f}"]
    if "length_matched_accuracy" in v:
        rest.append(
            f"length-matched {_with_interval(v, 'length_matched_accuracy')} "
            f"(n = {v['length_matched_n']:.0f})"
        )
    if "gold_accuracy" in v:
        rest.append(f"gold accuracy {_with_interval(v, 'gold_accuracy')}")
    if "best_of_k" in v:
        rest.append(f"best of K {_with_interval(v, 'best_of_k')}")
    yield f"  {', '.join(rest)}"
    yield from _doubt_lines(v)
    yield (
        f"  responses given in reverse: scores change by at most "
        f"{v['swap']['max_difference']:.1e}, {v['swap']['flipped_share']:.1%} of "
        "the pairs change order"
    )


def _with_interval(values: Mapping[str, Any], key: str) -> str:
    text = f"{values[key]:.3f}"
    if f"{key}_low" in values:
        text += f" [{values[f'{key}_low']:.3f}, {values[f'{key}_high']:.3f}]"
    return text
