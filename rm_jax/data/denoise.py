"""Training labels corrected by the scores of other models (Secrets of RLHF II).

μ is the score of the response that the label prefers minus the score of the other one,
by an ensemble that was trained on these labels: it is low, or below 0, where a label is
wrong. Wang et al. 2024 (arXiv:2401.06080) turn labels of low μ round, make labels soft,
or ask for a margin of μ.
"""

import dataclasses
import hashlib
import io
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Int
from scipy.special import expit

from rm_jax import store
from rm_jax.data.cache import TokenSet

RULES = ("soft", "flip", "strength")


def denoise(data: TokenSet, scores: str, rule: str, share: float) -> TokenSet:
    """A training set of pairs with other labels; the tokens are the same.

    Args:
      data: every example has two responses, both ranked.
      scores: predictions/NAME.parquet of an evaluation of the same examples; "" leaves
        the labels as they are.
      rule: "soft": the label `soft` becomes σ(μ) for the preferred response;
        "flip": the pairs of lowest μ are turned round; "strength": the label
        `strength` becomes μ, as the loss adaptive_margin wants it. A tie has μ = 0.
      share: of the untied pairs that "flip" turns, lowest μ first.

    Raises:
      ValueError: an example of other than two ranked responses, or one that the file
        has no two finite scores of under its id, source and prompt; names it.
      FileNotFoundError: no such file.
    """
    if not scores:
        return data
    ranks = _ranks(data)
    try:
        content = store.read_bytes(scores)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"config.data.denoise.scores = {scores!r}: no such file: it is data of the "
            "run, which train, inspect and --uncertainty laplace read again: keep it "
            "where it is, or bring it back (run.json has its sha256)"
        ) from error
    mu = _margins(ranks, _scores(data, content, scores))
    new: dict[str, np.ndarray] = {}
    if rule == "soft":
        new["soft"] = expit(np.where(ranks[:, 0] <= ranks[:, 1], mu, -mu))
    elif rule == "strength":
        new["strength"] = mu
    else:
        new = _turned(data, ranks, mu, share)
    arrays = {name: np.asarray(x, data.arrays[name].dtype) for name, x in new.items()}
    sha = hashlib.sha256(content).hexdigest()
    note = {"scores": scores, "sha256": sha, "rule": rule, "share": share}
    return dataclasses.replace(
        data, arrays={**data.arrays, **arrays}, meta=_noted(data, note)
    )


def _ranks(data: TokenSet) -> Int[np.ndarray, "e 2"]:
    counts = data.counts(np.arange(len(data)))
    if (counts != 2).any():
        i = int(np.flatnonzero(counts != 2)[0])
        raise ValueError(
            f"config.data.denoise is for pairs: example {data.id(i)} has {counts[i]} "
            "responses"
        )
    ranks = np.asarray(data.arrays["ranks"]).reshape(-1, 2)
    if (ranks < 0).any():
        i = int(np.flatnonzero((ranks < 0).any(1))[0])
        raise ValueError(
            f"config.data.denoise holds scores against ranks: example {data.id(i)} has "
            "none"
        )
    return ranks


def _scores(data: TokenSet, content: bytes, path: str) -> Float[np.ndarray, "e 2"]:
    """Of every example, in its own order of the responses."""
    found = _read(content, path)
    names, n = data.sources or ("",), len(data)
    of = np.asarray(data.arrays["source"])
    hashes = np.asarray(data.arrays["prompt_hash"]).tolist()
    keys = list(zip((names[i] for i in of), data.ids(n), hashes, strict=True))
    where = f"config.data.denoise.scores = {path!r}"
    if lost := [key for key in keys if found.get(key, {}).keys() != {0, 1}]:
        raise ValueError(
            f"{where} has no two scores of {len(lost)} of the {n} training examples, "
            f"such as {lost[0][1]!r}{_by_source(data, lost, found)}: want the "
            "predictions of an evaluation of the same examples: a run with this "
            "config.data.train (each SPEC with its split, as SPEC#train) and with "
            "config.data.eval.seen = '#train' has them in predictions/seen.parquet"
        )
    scores = np.array([[found[key][0], found[key][1]] for key in keys], np.float64)
    if not np.isfinite(scores).all():
        i = int(np.flatnonzero(~np.isfinite(scores).all(1))[0])
        raise ValueError(f"{where}: a score of {keys[i][1]!r} is not finite")
    return scores


def _by_source(data: TokenSet, lost: list[tuple], found: Iterable[tuple]) -> str:
    """How many each source of a mixture lacks, and the sources that have scores."""
    if not data.sources:
        return ""
    counts = Counter(source for source, _, _ in lost)
    each = ", ".join(f"{counts[name]} of {name!r}" for name in data.sources)
    has = sorted({source for source, _, _ in found} - {""})
    return f" ({each}; the file has {f'those of {has}' if has else 'no sources'})"


def _read(content: bytes, path: str) -> dict[tuple, dict[int, float]]:
    """(source, id, prompt hash) -> response -> score.

    Raises:
      ValueError: no predictions, or a response twice in them.
    """
    columns = ["source", "id", "prompt", "response", "score"]
    where = f"config.data.denoise.scores = {path!r}"
    try:
        table = pq.read_table(io.BytesIO(content), columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"{where}: want predictions/NAME.parquet of a run: {error}"
        ) from None
    found: dict[tuple, dict[int, float]] = {}
    rows = zip(*(table[name].to_pylist() for name in columns), strict=True)
    for source, id, prompt, response, score in rows:
        own = found.setdefault((source or "", id, prompt), {})
        if response in own:
            raise ValueError(f"{where} has response {response} of {id!r} twice")
        own[response] = np.nan if score is None else score
    return found


def _margins(
    ranks: Int[np.ndarray, "e 2"], scores: Float[np.ndarray, "e 2"]
) -> Float[np.ndarray, "e"]:
    return np.sign(ranks[:, 1] - ranks[:, 0]) * (scores[:, 0] - scores[:, 1])


def _turned(
    data: TokenSet,
    ranks: Int[np.ndarray, "e 2"],
    mu: Float[np.ndarray, "e"],
    share: float,
) -> dict[str, np.ndarray]:
    untied = np.flatnonzero(ranks[:, 0] != ranks[:, 1])
    order = untied[np.argsort(mu[untied], kind="stable")]
    lowest = order[: round(share * len(order))]
    ranks, soft = ranks.copy(), np.array(data.arrays["soft"])
    ranks[lowest], soft[lowest] = ranks[lowest, ::-1], 1 - soft[lowest]
    return {"ranks": ranks.ravel(), "soft": soft}


def _noted(data: TokenSet, note: dict[str, Any]) -> dict[str, Any]:
    """meta with the new labels counted, under another fingerprint."""
    source = dict(data.meta["source"])
    parts = {name: dict(source[name]) for name in data.sources} or {"": source}
    for name, part in parts.items():
        text = f"{part['fingerprint']} {note['sha256']} {note['rule']} {note['share']}"
        part["fingerprint"] = hashlib.sha256(text.encode()).hexdigest()
        part["denoise"] = note
        if name and note["rule"] != "flip":
            part["given"] = {**part["given"], note["rule"]: part["examples"]}
    meta = {**data.meta, "source": {**source, **parts} if data.sources else source}
    if note["rule"] != "flip":
        meta["given"] = {**data.meta["given"], note["rule"]: data.meta["examples"]}
    return meta
