"""Scores from a run directory: the same contract, model and programs as in training.

model = rm_jax.load("runs/quickstart")
model.score("What is 2 + 2?", ["4", "5"])        # array of two rewards
"""

import contextlib
import dataclasses
import pathlib
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from rm_jax import config as config_module
from rm_jax import features, losses, models, rundir, sharding, store, together
from rm_jax.checkpoint import Checkpoints
from rm_jax.data import cache, datasets, pack
from rm_jax.data.contract import Contract, Encoder
from rm_jax.data.loader import Loader
from rm_jax.data.order import Order
from rm_jax.data.schema import Record, record_from_dict
from rm_jax.data.tokenizers import load_tokenizer
from rm_jax.evals import reducers
from rm_jax.evals.score import Scored, score_table
from rm_jax.evals.table import ScoreTable
from rm_jax.manifest import DamagedCheckpoint
from rm_jax.members import Members, take
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
      reducer: how the scores of members become one, e.g. "min" or "mean_minus_var:0.5"
        (evals/reducers.py); default the run's config.members.reducer. One that needs
        centred members warns on stderr where nothing in the training centred them.
      dtype: that it computes in; default the run's config.model.dtype.

    Attributes:
      run: the run directory.
      contract: how text becomes tokens and a score a reward.
      arch: of the model.
      config: of the run.
      step: of the checkpoint.
      members: what the parameters are of; None for a single model.
      reducer: text of the reducer.

    Raises:
      FileNotFoundError: no run directory, or no such step.
      ValueError: an unknown reducer, a damaged checkpoint, or the best step is not
        known.
    """

    def __init__(
        self,
        run: str,
        step: int | str | None = None,
        reducer: str | None = None,
        dtype: str | None = None,
    ):
        if reducer is not None:
            reducers.parse(reducer)
        if not store.exists(store.join(run, "config.json")):
            raise FileNotFoundError(
                f"{run} is no run directory: it has no config.json; give the --workdir "
                "of `rm-jax train`"
            )
        self.run = run
        self.config = config_module.validate(config_module.load(run))
        choice = reducers.parse(reducer or self.config.members.reducer)
        self.reducer = str(choice)
        part = "ema" if self.config.train.ema else "params"
        at = together.place(run)
        checkpoints = Checkpoints(at.folder)
        self._choice = " (last sound)" if step is None else ""
        if step == "best":
            self._choice = f" (best by {self.config.train.best_metric})"
            step = _best_step(checkpoints, at, self.config.train)
        params, meta, self.step = checkpoints.restore_part(
            part, step=step, on_event=_warn
        )
        alone = at.member is None  # else one of the runs that trained in one program
        self.params = params if alone else take(params, "none", at.member)
        self.contract = Contract.from_json(meta["contract"])
        self.arch = arch_module.from_json(meta["arch"])
        if dtype is not None:
            self.arch = dataclasses.replace(self.arch, dtype=dtype)
        self.tokenizer = load_tokenizer(store.join(run, "tokenizer"))
        of = meta.get("members")  # checkpoints of single models had no such word
        self.members = Members(of["count"], of["share"]) if of else None
        _, apply = models.functions(self.arch)
        self.mesh = sharding.make_mesh(
            dict.fromkeys(sharding.AXES, 1), jax.devices()[:1]
        )
        if self.config.model.features:
            self._add_trunk()
        one = jax.tree.map(lambda _: sharding.replicated(self.mesh), self.params)
        self._head = models.heads.find(self.arch.head)
        self._of_steps = bool(self._head.steps)
        make = make_step_scores if self._of_steps else make_score
        self._score = make(apply, self.mesh, one, self.members)
        level = choice.reducer.needs_centred and not losses.centred(self.config.loss)
        if self.members and level:
            _say(
                f"WARNING: reducer {self.reducer} compares the levels of the "
                f"{self.members.count} members, and {run} was trained on pairs, which "
                "leave them open: train with config.loss.regularizers.center, or use "
                'the reducer "mean"'
            )

    def _add_trunk(self) -> None:
        """What was trained is a head on features: the trunk is in model.init."""
        sha256 = rundir.weights_sha256(self.run)
        self.params = features.whole(
            self.config, self.arch, self.params, self.mesh, sha256
        )
        if self.members:
            self.members = self.members._replace(share="trunk")

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
        """Lays out a token set as the run did.

        Raises:
          ValueError: the head cannot score it; says what it lacks.
        """
        sets = {data.directory.name: data}
        datasets.check_rows(sets, self._head.rivals, self._head.of_logp)
        b, steps = self.config.batch, self._of_steps
        packed = b.layout == "packed"
        shapes = pack.roomy(data, self.shapes(), packed, steps, _say)
        return Loader(data, shapes, b.examples, order, b.layout, steps=steps)

    def put(self, batch: PackedBatch, labels: Labels) -> tuple[PackedBatch, Labels]:
        """A chunk on the device."""
        batch = PackedBatch(*(sharding.put_whole(self.mesh, x) for x in batch))
        return batch, Labels(*(sharding.put_whole(self.mesh, x) for x in labels))

    def score_chunk(
        self, batch: PackedBatch, labels: Labels
    ) -> Float[np.ndarray, "*m e k"] | Scored:
        """Raw scores of one chunk: of each member, with those of steps."""
        found = self._score(self.params, *self.put(batch, labels))
        return jax.tree.map(np.asarray, found)

    def score_records(self, records: Iterable[Record]) -> Float[np.ndarray, "n k"]:
        """Rewards of every response of every record; NaN where there is none.

        An empty response is one, too: the template's tokens around it are scored.
        Members are reduced first and then normalised, so that an evaluation, which
        does not normalise, orders responses as this does.

        Raises:
          ValueError: a record that the contract refuses, or none at all.
        """
        return self.score_table(records).scores

    def score_members(self, records: Iterable[Record]) -> Float[np.ndarray, "m n k"]:
        """`score_records` of each member; of a single model m is 1."""
        table = self.score_table(records)
        return table.scores[None] if table.members is None else table.members

    def score_table(self, records: Iterable[Record]) -> ScoreTable:
        """`score_records` and `score_members` in one, beside the records' labels.

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
            loader = self.loader(data)
            table = score_table(self.score_chunk, loader, reducer=self.reducer)
        n = self.contract.normalisation
        reward = lambda x: None if x is None else (x - n.mean) / n.std
        return table._replace(
            scores=reward(table.scores), members=reward(table.members)
        )

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


def load(run: str, step: int | str | None = None, reducer: str | None = None) -> Scorer:
    """The model of a run directory: `Scorer`, which says what the others may be."""
    return Scorer(run, step, reducer)


def _best_step(checkpoints: Checkpoints, at: together.Place, train: Any) -> int:
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
    best = checkpoints.best_step(at.metric(train.best_metric), train.best_mode)
    if best is None:
        raise ValueError(
            f'step "best": no checkpoint in {checkpoints.directory} has the metric '
            f"{train.best_metric!r} of config.train.best_metric: give one of {steps}"
        )
    return best


def _warn(event: Mapping[str, Any]) -> None:
    _say(
        "WARNING: a damaged checkpoint is passed over, the checkpoint before it is "
        f"tried: {' '.join(event['why'].split()):.240}"
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
