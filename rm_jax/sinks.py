"""Where the lines of a run go besides its own files: TensorBoard, W&B, trackio.

metrics.jsonl is the record, written first; a sink shows it elsewhere and may lack the
last seconds before a kill. What was sent once is not sent again when a run continues:

  TensorBoard  is told the restored step and hides what came after it
  W&B, trackio get no number again that metrics.jsonl held before it was cut: they
               would keep both, and a step done again has the same numbers

A sink that is turned on later, or failed and opens again, is first sent what it lacks
of metrics.jsonl and timing.jsonl. Histograms go to TensorBoard only, events to none;
they are not sent later.
"""

import contextlib
import importlib.util
import math
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from rm_jax import schemas, store
from rm_jax.eventfile import EventFile

# In the run directory: service -> the run's id in it; and under LACKS sink -> bytes of
# metrics.jsonl that it was sent, of those that were not sent all.
IDS = "sinks.json"
LACKS = "lacks_from"


class Opening(NamedTuple):
    """What a sink is opened with.

    Attributes:
      workdir: the run directory.
      step: the last one that it has and that stays; -1 of none.
      project: where W&B or trackio file the run.
      config: of the run, plain values.
      sent: step -> names of metrics of it, to be logged again, that it has already.
      timed: last step of timing.jsonl that it has, -1 of none.
    """

    workdir: str
    step: int
    project: str
    config: Mapping[str, Any]
    sent: Mapping[int, set[str]]
    timed: int


class Sink:
    """Takes everything and does nothing; each sink overrides what it wants."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """The numbers of a step."""

    def timing(self, step: int, values: Mapping[str, float]) -> None:
        """Wall-clock numbers."""

    def histogram(self, step: int, name: str, values: np.ndarray) -> None:
        """The values of a distribution."""

    def flush(self) -> None:
        """Called before a save."""

    def close(self, failed: bool) -> None:
        """Called once, at the end of this process's part; `failed` by an error."""


class _TensorBoard(Sink):
    """Scalars and histograms; TensorBoard hides what was logged past the restart."""

    def __init__(self, opening: Opening):
        with _extra(*PACKAGES["tensorboard"]):
            import tensorboardX  # noqa: F401  EventFile wants it
        self._folder = store.join(opening.workdir, "tensorboard")
        self._local = self._folder
        if store.is_url(self._folder):  # event files only grow: copied when flushed
            self._local = tempfile.mkdtemp(prefix="rm_jax.tensorboard.")
        store.makedirs(self._local)
        self._writer = EventFile(self._local, opening.step + 1)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def timing(self, step: int, values: Mapping[str, float]) -> None:
        self.metrics(step, {f"timing/{name}": v for name, v in values.items()})

    def histogram(self, step: int, name: str, values: np.ndarray) -> None:
        finite = values[np.isfinite(values)]
        if finite.size:
            self._writer.add_histogram(name, finite, step)
        if finite.size < values.size:
            self._writer.add_scalar(
                f"{name}/nonfinite", values.size - finite.size, step
            )

    def flush(self) -> None:
        self._writer.flush()
        self._copy()

    def close(self, failed: bool) -> None:
        self._writer.close()
        self._copy()
        if self._local != self._folder:
            shutil.rmtree(self._local, ignore_errors=True)

    def _copy(self) -> None:
        if self._local != self._folder:
            store.upload(self._local, self._folder)


class _Service(Sink):
    """A service that keeps runs by id and every line it is sent."""

    def __init__(self, opening: Opening):
        self._sent, self._timed = opening.sent, opening.timed
        self._open(opening)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        sent = self._sent.get(step, set())
        new = {name: v for name, v in values.items() if name not in sent}
        if new:
            self._run.log(new, step=step)

    def timing(self, step: int, values: Mapping[str, float]) -> None:
        if step > self._timed:
            self._run.log({f"timing/{k}": v for k, v in values.items()}, step=step)


class _WandB(_Service):
    """A run of Weights & Biases; WANDB_MODE, WANDB_API_KEY and others are respected.

    Online a restart resumes the run. Offline W&B cannot: each start leaves a folder of
    its own with the same id, for `wandb sync --append`.
    """

    def _open(self, opening: Opening) -> None:
        with _extra(*PACKAGES["wandb"]):
            import wandb
        folder = None if store.is_url(opening.workdir) else opening.workdir
        self._run = wandb.init(
            project=opening.project,
            name=_name(opening.workdir),
            id=_id("wandb", opening.workdir),
            resume="allow",
            config=dict(opening.config),
            dir=os.environ.get("WANDB_DIR", folder),
            reinit="create_new",  # a notebook's own run goes on beside it
            settings=wandb.Settings(console="off"),
        )

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class _Trackio(_Service):
    """A run of trackio, local or of TRACKIO_SPACE_ID; TRACKIO_DIR is respected.

    trackio tells runs apart by name, so the name ends in the id.
    """

    def _open(self, opening: Opening) -> None:
        with _extra(*PACKAGES["trackio"]):
            import trackio
        self._run = trackio.init(
            project=opening.project,
            name=f"{_name(opening.workdir)}-{_id('trackio', opening.workdir)}",
            resume="allow",
            config=dict(opening.config),
            embed=False,
        )

    def close(self, failed: bool) -> None:
        self._run.finish()


# Knob of config.train -> package that it needs, the knob turned off, the pip extra.
PACKAGES = {
    "tensorboard": ("tensorboardX", "train.tensorboard=False", "report"),
    "wandb": ("wandb", "train.wandb=", "wandb"),
    "trackio": ("trackio", "train.trackio=", "trackio"),
}

# Knob of config.train -> its sink; each is off where the knob is False or "".
SINKS: dict[str, type[Sink]] = {
    "tensorboard": _TensorBoard,
    "wandb": _WandB,
    "trackio": _Trackio,
}


def check_installed(knobs: Mapping[str, Any]) -> None:
    """Refuses a sink without its package, before anything is tokenised.

    Args:
      knobs: config.train.

    Raises:
      ImportError: names the knob and the extra.
    """
    for name, (package, off, extra) in PACKAGES.items():
        if knobs[name] and not importlib.util.find_spec(package):
            with _extra(package, off, extra):
                raise ImportError(package)


def had(name: str, workdir: str) -> float:
    """Bytes of metrics.jsonl that a sink was sent by earlier starts; inf is all."""
    kept = _read(workdir)
    there = name in kept or (
        name == "tensorboard" and store.exists(store.join(workdir, name))
    )
    return kept.get(LACKS, {}).get(name, math.inf if there else 0)


def note_had(name: str, workdir: str, size: float) -> None:
    """Keeps what `had` says of a sink to the next start."""
    kept = _read(workdir)
    before = kept.pop(LACKS, {})
    lacks = {k: v for k, v in before.items() if k != name}
    if size < math.inf:
        lacks[name] = int(size)
    if lacks != before:
        more = {LACKS: lacks} if lacks else {}
        store.write_json(store.join(workdir, IDS), kept | more)


def _read(workdir: str) -> dict[str, Any]:
    path = store.join(workdir, IDS)
    kept = store.read_json(path) if store.exists(path) else {}
    if isinstance(kept, dict):  # the first files of this kind had no version
        kept = {schemas.KEY: 1} | kept
    return schemas.checked(IDS, kept, path)


def _name(workdir: str) -> str:
    return os.path.basename(store.absolute(workdir))


def _id(service: str, workdir: str) -> str:
    """The run's id, made once: a restart goes on with the same."""
    kept = _read(workdir)
    if service not in kept:
        kept[service] = uuid.uuid4().hex[:8]
        kept[LACKS] = kept.get(LACKS, {}) | {service: 0}  # until it is open
        store.write_json(store.join(workdir, IDS), kept)
    return kept[service]


@contextlib.contextmanager
def _extra(name: str, off: str, extra: str) -> Iterator[None]:
    """An import that fails says what to install, or how to do without."""
    try:
        yield
    except ImportError as error:
        knob = off.partition("=")[0]
        raise ImportError(
            f"config.{knob} needs {name}: pip install 'rm_jax[{extra}]', or "
            f"--config.{off}"
        ) from error
