"""Scores from a run directory: the same contract, model and programs as in training.

model = rm_jax.load("runs/quickstart")
model.score("What is 2 + 2?", ["4", "5"])        # array of two rewards
"""

import contextlib
import pathlib
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from rm_jax import config as config_module
from rm_jax import models, sharding, store
from rm_jax.checkpoint import Checkpoints
from rm_jax.data import cache, pack
from rm_jax.data.contract import Contract, Encoder
from rm_jax.data.loader import Loader
from rm_jax.data.order import Order
from rm_jax.data.schema import Record, record_from_dict
from rm_jax.data.tokenizers import load_tokenizer
from rm_jax.evals.score import Scored, score_table
from rm_jax.manifest import DamagedCheckpoint
from rm_jax.models import arch as arch_module
from rm_jax.step import make_score
from rm_jax.stepscores import make_step_scores
from rm_jax.types import Labels, PackedBatch


class Scorer:
    """A trained reward model; as text, its run, step and how that was chosen.

    Args:
      run: a run directory.
      step: of the checkpoint; "best" is the best by the run's config.train.best_metric;
        default the last sound one, with a warning on stderr where that is not the last.

    Attributes:
      run: the run directory.
      contract: how text becomes tokens and a score a reward.
      arch: of the model.
      config: of the run.
      step: of the checkpoint.

    Raises:
      FileNotFoundError: no run directory, or no such step.
      ValueError: a damaged checkpoint, or the best step is not known.
    """

    def __init__(self, run: str, step: int | str | None = None):
        if not store.exists(store.join(run, "config.json")):
            raise FileNotFoundError(
                f"{run} is no run directory: it has no config.json; give the --workdir "
                "of `rm-jax train`"
            )
        self.run = run
        self.config = config_module.validate(config_module.load(run))
        part = "ema" if self.config.train.ema else "params"
        checkpoints = Checkpoints(store.join(run, "checkpoints"))
        self._choice = " (last sound)" if step is None else ""
        if step == "best":
            self._choice = f" (best by {self.config.train.best_metric})"
            step = _best_step(checkpoints, self.config.train)
        self.params, meta, self.step = checkpoints.restore_part(
            part, step=step, on_event=_warn
        )
        self.contract = Contract.from_json(meta["contract"])
        self.arch = arch_module.from_json(meta["arch"])
        self.tokenizer = load_tokenizer(store.join(run, "tokenizer"))
        _, apply = models.functions(self.arch)
        self.mesh = sharding.make_mesh(
            dict.fromkeys(sharding.AXES, 1), jax.devices()[:1]
        )
        one = jax.tree.map(lambda _: sharding.replicated(self.mesh), self.params)
        self._of_steps = bool(models.heads.find(self.arch.head).steps)
        make = make_step_scores if self._of_steps else make_score
        self._score = make(apply, self.mesh, one)

    def __str__(self) -> str:
        return f"{self.run} step {self.step}{self._choice}"

    def encoder(self) -> Encoder:
        """A fresh encoder of the contract; its counts start at 0."""
        return Encoder(self.contract, self.tokenizer)

    def shapes(self) -> tuple[pack.Shape, ...]:
        """The chunk shapes of the run."""
        b = self.config.batch
        return pack.shapes(b.row_lengths, b.chunk_tokens, b.tokens_per_slot)

    def loader(self, data: cache.TokenSet, order: Order | None = None) -> Loader:
        """Lays out a token set as the run did."""
        b = self.config.batch
        steps = self._of_steps
        return Loader(data, self.shapes(), b.examples, order, b.layout, steps=steps)

    def score_chunk(self, batch: PackedBatch, labels: Labels) -> np.ndarray | Scored:
        """Raw scores [e k] of one chunk, with those of steps where the head has any."""
        batch = PackedBatch(*(sharding.put_whole(self.mesh, x) for x in batch))
        labels = Labels(*(sharding.put_whole(self.mesh, x) for x in labels))
        return jax.tree.map(np.asarray, self._score(self.params, batch, labels))

    def score_records(self, records: Iterable[Record]) -> Float[np.ndarray, "n k"]:
        """Rewards of every response of every record; NaN where there is none.

        An empty response is one, too: the template's tokens around it are scored.

        Raises:
          ValueError: a record that the contract refuses, or none at all.
        """
        encoder = self.encoder()
        with tempfile.TemporaryDirectory() as folder:
            where = pathlib.Path(folder) / "tokens"
            data = cache.build(records, encoder, where, {}, {})
            dropped = encoder.counts["dropped"]
            if dropped:
                raise ValueError(
                    f"{dropped} records are longer than the contract's max_length = "
                    f"{self.contract.max_length}, which says over_long = 'drop'"
                )
            table = score_table(self.score_chunk, self.loader(data))
        n = self.contract.normalisation
        return (table.scores - n.mean) / n.std

    def score(
        self,
        prompt: str | Sequence[Mapping[str, Any]],
        responses: Sequence[str | Sequence[Mapping[str, Any]]] | str,
    ) -> Float[np.ndarray, "k"] | float:
        """Rewards of responses to one prompt; one number for one text.

        Args:
          prompt: text of a user message, or messages {role, content}.
          responses: texts, or lists of messages.
        """
        one = isinstance(responses, str)
        record = record_from_dict(
            {"prompt": prompt, "responses": [responses] if one else list(responses)},
            "score()",
        )
        scores = self.score_records([record])[0]
        return float(scores[0]) if one else scores


def load(run: str, step: int | str | None = None) -> Scorer:
    """The model of a run directory: `Scorer`, which says what `step` may be."""
    return Scorer(run, step)


def _best_step(checkpoints: Checkpoints, train: Any) -> int:
    steps = checkpoints.steps()
    try:
        for step in steps:
            # One that is damaged may have been the best; one that a run deletes
            # meanwhile is none of the best.
            with contextlib.suppress(FileNotFoundError):
                checkpoints.manifest(step)
    except DamagedCheckpoint as error:
        raise ValueError(
            f'step "best": cannot compare them all: {error}: give one of {steps}'
        ) from error
    best = checkpoints.best_step(train.best_metric, train.best_mode)
    if best is None:
        raise ValueError(
            f'step "best": no checkpoint in {checkpoints.directory} has the metric '
            f"{train.best_metric!r} of config.train.best_metric: give one of {steps}"
        )
    return best


def _warn(event: Mapping[str, Any]) -> None:
    print(
        "WARNING: a damaged checkpoint is passed over, the checkpoint before it is "
        f"tried: {' '.join(event['why'].split()):.240}",
        file=sys.stderr,
        flush=True,
    )
