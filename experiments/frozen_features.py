"""Is a frozen trunk worth more than the words, and which layer of it?

    python experiments/frozen_features.py \\
        --weights gguf:SmolLM2-135M-Instruct.Q4_1.gguf \\
        --data truthfulqa_judge:finetune_truth.jsonl.gz --workdir runs/truth

Nested cross-validation; all examples of a prompt are on one side. For each outer fold a
linear Bradley-Terry head is trained on the other folds, on the features of the layer
and with the penalty that did best in a cross-validation among these other folds alone.
Beside it, on the same folds, a Bradley-Terry model of TF-IDF words and length, whose
penalty the outer folds themselves may choose: that favours it. Printed: accuracy of
both and their difference, with 95 % intervals (prompts are resampled), and of each
layer. Then a head on all of the data is trained into --workdir, by `rm-jax train` at
the layer that was chosen most: to be scored with, or exported.

Features are the mean over the answer's tokens; --pooling last is what can be exported.
Each is divided by its spread over all answers, into which no label goes.
They, and the scores of the words, are computed once: a second start finds them in
config.data.cache_dir. Needs rm_jax[test], which has scikit-learn.
"""

import argparse
import collections
import hashlib
import sys
from typing import NamedTuple

import numpy as np
import scipy.sparse
import scipy.special

import rm_jax
from rm_jax import compiles, features, store
from rm_jax.data import datasets, vectors
from rm_jax.data.cache import TokenSet
from rm_jax.data.contract import Encoder
from rm_jax.evals.accuracy import accuracy
from rm_jax.evals.intervals import Sample, intervals
from rm_jax.evals.run import texts
from rm_jax.evals.score import table_of
from rm_jax.evals.table import Pairs, pairs

# Of accuracy over TF-IDF, at least. SmolLM2-135M on TruthfulQA's judgements: .827 (.816
# to .839), words .783 (.771 to .795), difference .044 (.035 to .054), layer 20 in every
# fold; 9 minutes on 2 CPU cores, 28 s when the features and words are there.
EXPECTED = 0.03
LAYERS = "8,12,16,20,24"
PENALTIES = (0.1, 0.03, 0.01)  # λ of `bradley_terry`
STRENGTHS = (0.1, 1.0, 10.0)  # scikit-learn's C
NGRAMS = (1, 2)  # words
STEPS, TOLERANCE = 100, 1e-3  # of the gradient's largest entry


class Labelled(NamedTuple):
    """Responses one after the other, and the ordered pairs among them.

    Attributes:
      data: the token set.
      pairs: of its examples; their weights are as the loss has them.
      better, worse: of each pair, numbers of responses.
      fold: of each example.
    """

    data: TokenSet
    pairs: Pairs
    better: np.ndarray
    worse: np.ndarray
    fold: np.ndarray

    def of_responses(self, values: np.ndarray) -> np.ndarray:
        """A value an example as one a response."""
        return np.repeat(values, self.data.counts(np.arange(len(self.data))))

    def of_folds(self, folds: list[int]) -> "Labelled":
        """The pairs of some folds."""
        kept = np.isin(self.fold[self.pairs.example], folds)
        own = Pairs(*(x[kept] for x in self.pairs))
        return self._replace(
            pairs=own, better=self.better[kept], worse=self.worse[kept]
        )

    def credits(self, scores: np.ndarray) -> Sample:
        """What the scores of all responses get for each pair."""
        delta = scores[self.better] - scores[self.worse]
        return accuracy(self.pairs._replace(delta=delta))


def labelled(data: TokenSet, folds: int, seed: int) -> Labelled:
    """Pairs and folds of a token set; a prompt's examples are in one fold."""
    n = len(data)
    start = np.concatenate([[0], np.cumsum(data.counts(np.arange(n)))])
    flat = np.full((n, data.max_responses), np.nan, np.float32)
    flat[np.arange(data.max_responses) < np.diff(start)[:, None]] = 0
    found = pairs(table_of(data, flat))
    kept = Pairs(*(x[~found.tie] for x in found))
    weight = data.arrays["weight"][kept.example]
    weight = weight / np.bincount(kept.example, minlength=n)[kept.example]
    kept = kept._replace(weight=weight)
    prompts, which = np.unique(data.arrays["prompt_hash"], return_inverse=True)
    fold = np.random.default_rng(seed).permutation(len(prompts))[which] % folds
    at = lambda column: start[kept.example] + column
    return Labelled(data, kept, at(kept.better), at(kept.worse), fold)


def bradley_terry(x: np.ndarray, of: Labelled, trained: np.ndarray) -> np.ndarray:
    """Weights [penalty, m, d] of least loss on each of m sets of folds.

        mean over examples of mean over their pairs of softplus(-(s_i - s_j))
            + λ / 2 |w|^2,   s = w . x

    Every step minimises an upper bound: Newton's, with 1/4 for the curvature of the
    logistic (Böhning and Lindsay 1988), accelerated with restarts (Nesterov 1983;
    O'Donoghue and Candès 2015). The bound's Hessian is a sum over folds.

    Args:
      x: [responses, d], each feature of std 1.
      of: their pairs.
      trained: [m, folds], which folds each set has.
    """
    n, d = x.shape
    count, m = len(of.better), len(trained)
    columns = np.stack([of.better, of.worse], 1).ravel()
    signs = np.tile(np.float32([1, -1]), count)
    of_pair = np.arange(0, 2 * count + 1, 2)
    apart = scipy.sparse.csr_matrix((signs, columns, of_pair), (count, n))
    back = apart.T.tocsr()
    fold = of.fold[of.pairs.example]
    weight = np.where(trained[:, fold], of.pairs.weight, 0)
    total = weight.sum(1)
    weight = (weight / total[:, None]).T.astype(np.float32)
    curvature = np.stack([_curvature(x, apart, of, fold == f) for f in _folds(trained)])
    bound = np.tensordot(trained / total[:, None], curvature, 1)
    bound += max(PENALTIES) * np.eye(d)  # so it is one for all of them
    inverse = np.linalg.inv(bound.astype(np.float32))
    w, out = np.zeros((d, m), np.float32), []
    for penalty in PENALTIES:
        ahead, t = w, np.ones(m)
        for _ in range(STEPS):
            wrong = weight * scipy.special.expit(-(apart @ (x @ ahead)))
            slope = penalty * ahead - x.T @ (back @ wrong)
            if np.abs(slope).max() < TOLERANCE:
                break
            new = ahead - (inverse @ slope.T[..., None])[..., 0].T
            later = (1 + np.sqrt(1 + 4 * t**2)) / 2
            restart = np.sum(slope * (new - w), axis=0) > 0
            push = np.where(restart, 0, (t - 1) / later).astype(np.float32)
            t, ahead, w = np.where(restart, 1, later), new + push * (new - w), new
        else:
            raise RuntimeError(
                f"penalty {penalty}: after {STEPS} steps the gradient still has an "
                f"entry of {np.abs(slope).max():.2e} (TOLERANCE = {TOLERANCE})"
            )
        w = ahead
        out.append(w.T)
    return np.stack(out)


def _folds(trained: np.ndarray) -> range:
    return range(trained.shape[1])


def _curvature(x, apart, of: Labelled, here: np.ndarray) -> np.ndarray:
    """Σ over the pairs of a fold of weight / 4 (x_i - x_j)(x_i - x_j)^T."""
    own = apart[here]
    used = np.unique(own.indices)
    own = own[:, used]
    graph = own.T @ own.multiply(of.pairs.weight[here, None]).tocsr()
    return x[used].T @ (graph @ x[used]) / 4


class Nested(NamedTuple):
    """What nested cross-validation gives.

    Attributes:
      scores: of every response, by the head that has not seen its fold.
      chosen: layer and penalty of each outer fold.
      by_layer: layer -> scores as if it were the only one.
    """

    scores: np.ndarray
    chosen: list[tuple[int, float]]
    by_layer: dict[int, np.ndarray]


def nested(found: dict[int, vectors.FeatureSet], of: Labelled, folds: int) -> Nested:
    """Nested cross-validation over layers and penalties."""
    others = [[i for i in range(folds) if i != o] for o in range(folds)]
    left_out = [[o] for o in range(folds)]
    left_out += [[o, i] for o in range(folds) for i in others[o]]
    trained = np.array([[f not in out for f in range(folds)] for out in left_out])
    held = [of.of_folds([out[-1]]) for out in left_out[folds:]]
    fold, scores, inner = of.of_responses(of.fold), {}, {}
    for layer, features_of in found.items():
        x = np.concatenate(features_of.read(np.arange(len(of.data))))
        x = x.astype(np.float32)
        x = (x - x.mean(0)) / np.maximum(x.std(0), 1e-6)
        for penalty, w in zip(PENALTIES, bradley_terry(x, of, trained), strict=True):
            s = x @ w.T
            scores[layer, penalty] = s[np.arange(len(x)), fold]
            each = [h.credits(s[:, folds + j]).mean() for j, h in enumerate(held)]
            inner[layer, penalty] = np.reshape(each, (folds, -1)).mean(1)

    def best(choices) -> tuple[list, np.ndarray]:
        choices = list(choices)
        chosen = [max(choices, key=lambda c, o=o: inner[c][o]) for o in range(folds)]
        return chosen, np.choose(fold, [scores[c] for c in chosen])

    chosen, mixed = best(scores)
    each = {n: best(c for c in scores if c[0] == n)[1] for n in found}
    return Nested(mixed, chosen, each)


def words(of: Labelled, answers: list[str], folds: int) -> np.ndarray:
    """Held-out scores by TF-IDF of one and two words, and length; the best penalty."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    fold, pair_fold = of.of_responses(of.fold), of.fold[of.pairs.example]
    length = np.log1p([len(text.split()) for text in answers])[:, None]
    out = {c: np.zeros(len(answers)) for c in STRENGTHS}
    for f in range(folds):
        tfidf = TfidfVectorizer(ngram_range=NGRAMS, sublinear_tf=True)
        tfidf.fit([t for t, own in zip(answers, fold, strict=True) if own != f])
        x = scipy.sparse.hstack([tfidf.transform(answers), length]).tocsr()
        train = np.flatnonzero(pair_fold != f)
        sign = np.where(np.arange(len(train)) % 2, 1.0, -1.0)
        gap = x[of.better[train]] - x[of.worse[train]]
        gap = gap.multiply(sign[:, None]).tocsr()
        weight = of.pairs.weight[train] / of.pairs.weight[train].mean()
        for c in STRENGTHS:
            model = LogisticRegression(C=c, fit_intercept=False, solver="liblinear")
            model.fit(gap, sign, sample_weight=weight)
            out[c][fold == f] = x[fold == f] @ model.coef_[0]
    return max(out.values(), key=lambda s: of.credits(s).mean())


def kept_words(of: Labelled, config, encoder: Encoder, args) -> np.ndarray:
    """`words`, found once for a set and its folds."""
    digest = hashlib.sha256()
    for part in (of.pairs.weight, of.better, of.worse, of.fold):
        digest.update(np.ascontiguousarray(part))
    about = {"labels": digest.hexdigest(), "strengths": STRENGTHS, "n": NGRAMS}
    path = datasets.cache_root(config.data) / "words" / vectors.key(of.data, about)
    if not path.exists():
        _, each = texts(of.data, len(of.data), encoder)
        found = words(of, [text for own in each for text in own], args.folds)
        path.parent.mkdir(parents=True, exist_ok=True)
        store.write_bytes(str(path), found.astype(np.float64).tobytes())
    return np.frombuffer(path.read_bytes())


def main() -> int:
    """Prints the comparison and trains the head; 1 where the claim does not hold."""
    args = _arguments().parse_args()
    say = lambda line: print(line, file=sys.stderr, flush=True)
    config = rm_jax.config.load("rm_jax:smollm2:features")
    config.model.init, config.data.train = args.weights, args.data
    config.data.eval, config.train.keep_best = {}, 0  # the folds are what is held out
    config.contract.pooling = args.pooling
    config.loss.tie_weight = 0.0  # as in the folds
    for key, value in args.knobs:
        rm_jax.config.override(config, key, value)
    compiles.use_cache(config.train.compile_cache)
    layers = [int(n) for n in args.layers.split(",")]
    data, found = features.of_config(config, layers, say)
    of = labelled(data.train, args.folds, args.seed)
    got = nested(found["train"], of, args.folds)
    say("words: TF-IDF and length")
    encoder = Encoder(data.contract, data.tokenizer)
    credits = {
        "features": of.credits(got.scores),
        "words": of.credits(kept_words(of, config, encoder, args)),
    }
    gap = credits["features"].values - credits["words"].values
    credits["difference"] = credits["words"]._replace(values=gap)
    credits |= {f"layer {n}": of.credits(s) for n, s in got.by_layer.items()}
    bounds = intervals(credits, args.seed)
    print(f"{len(of.data)} prompts, {len(of.better)} pairs, {args.folds} folds")
    for name, sample in credits.items():
        low, high = bounds[name]
        print(f"{name:12s} {sample.mean():+.4f} [{low:+.4f}, {high:+.4f}]")
    shown = ", ".join(f"{n} (penalty {p})" for n, p in got.chosen)
    print(f"chosen by the inner folds: {shown}")
    holds = credits["difference"].mean() >= EXPECTED
    print(f"at least {EXPECTED} above the words: {'yes' if holds else 'NO'}")
    if args.workdir:
        counted = collections.Counter(n for n, _ in got.chosen)
        config.model.features = counted.most_common(1)[0][0]
        rm_jax.train(config, args.workdir)
        print(f"{args.workdir}: a head on layer {config.model.features}")
    return int(not holds)


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", required=True, help="as of config.model.init")
    parser.add_argument("--data", required=True, help="SPEC")
    parser.add_argument("--workdir", default="", help="of the head on all of the data")
    parser.add_argument("--pooling", default="mean", help="as of config.contract")
    parser.add_argument("--layers", default=LAYERS, help=f"default {LAYERS}")
    parser.add_argument("--folds", type=int, default=5, help="outer ones")
    parser.add_argument("--seed", type=int, default=0, help="of folds and intervals")
    parser.add_argument(
        "--config",
        dest="knobs",
        default=[],
        action="append",
        type=lambda text: text.split("=", 1),
        metavar="KEY=VALUE",
        help="changes a knob of configs/base.py, e.g. data.cache_dir=DIR",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
