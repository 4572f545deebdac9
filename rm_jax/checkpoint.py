"""Checkpoints of a run: asynchronous, verified on load, the last and the best kept.

    writer = CheckpointWriter(run + "/checkpoints", keep_last=2, keep_best=1,
                              best_metrics=["valid/accuracy"], best_mode="max")
    with writer as checkpoints:
        if checkpoints.steps():
            state, meta, step = checkpoints.restore(abstract_state)
        ...
        checkpoints.save(step, state, meta, metrics)   # returns at once

A step is one folder, named by its number. Beside the arrays it holds a manifest: the
step, `meta`, `metrics` and, for every array, its shape, type and a digest that was
computed on the devices before anything was written. The manifest ends with its own
SHA-256 and is committed together with the arrays, by one rename of the folder: no step
is ever without digests, and no second file has to follow later.

So damage anywhere shows. In the manifest: its SHA-256. In an array: its digest. In a
file of Orbax: reading fails, or gives bits that the digests refuse, or nothing changes.
What an array should look like is read from the manifest, never from Orbax's metadata,
so damage is not taken for a state of another shape.
"""

import contextlib
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from absl import logging

from rm_jax import arrayfiles, backend, cluster, store
from rm_jax.manifest import (
    CheckpointMismatch,
    DamagedCheckpoint,
    Manifest,
    best,
    check_digests,
    check_match,
    make_manifest,
    named,
    nested,
    read_manifest,
)

PyTree = Any
Event = dict[str, Any]
OnEvent = Callable[[Event], None]
_DAMAGED, _DELETED = ".damaged", ".deleted"


def log_event(event: Event) -> None:
    """Says in the log that a damaged checkpoint was passed over."""
    logging.error("%(event)s: step %(step)d: %(why)s", event)


class Checkpoints:
    """The checkpoints in a folder, to read; it may belong to a run that is going on.

    Args:
      directory: the folder; it need not exist.
    """

    def __init__(self, directory: str):
        self.directory = store.absolute(directory)
        self._damaged: set[int] = set()
        self._sound = False  # whether a step was read

    def steps(self) -> list[int]:
        """Steps whose save was finished, ascending."""
        names = store.listdir(self.directory) if store.exists(self.directory) else []
        steps = sorted(int(name) for name in names if re.fullmatch(r"\d+", name))
        return [s for s in steps if self._finished(s)]

    def latest(self) -> int | None:
        """The last step, or None."""
        return max(self.steps(), default=None)

    def best_step(self, metric: str, mode: str) -> int | None:
        """The step with the best metric, the earlier of equals, or None.

        Args:
          metric: a name in the metrics given to `save`.
          mode: `max` or `min`.
        """
        return next(iter(best(self._manifests(), metric, mode)), None)

    def manifest(self, step: int) -> Manifest:
        """Everything about a step except its arrays, verified.

        Raises:
          FileNotFoundError: no such step; the message lists those there are.
          DamagedCheckpoint: the manifest is missing or is not what was written.
        """
        if not store.is_dir(self._path(step)):
            raise FileNotFoundError(
                f"{self.directory}: no step {step}; there are {self.steps()}"
            )
        return read_manifest(store.join(self._path(step), backend.MANIFEST_FILE), step)

    def restore(
        self,
        abstract: PyTree,
        step: int | None = None,
        on_event: OnEvent = log_event,
    ) -> tuple[PyTree, dict[str, Any], int]:
        """Reads a state and verifies every bit of it.

        Args:
          abstract: the state with a jax.ShapeDtypeStruct for every array. Its shardings
            say where the arrays go, whatever devices they were saved from; without one
            an array goes to the first device.
          step: the step; default the last, or the one before it if that is damaged.
          on_event: told of each damaged step that is passed over, as
            {"event": "damaged_checkpoint", "step": ..., "why": ...}.

        Returns:
          the state, its `meta` and its step.

        Raises:
          CheckpointMismatch: the arrays of the step are not those of `abstract`.
          DamagedCheckpoint: `step` is damaged, or all steps are.
          FileNotFoundError: there is no such step, or none at all.
        """
        read = lambda m: self._load(m.step, m.arrays, abstract)
        return self._first_sound(read, step, on_event)

    def restore_part(
        self,
        part: str,
        like: Mapping[str, Any] | None = None,
        step: int | None = None,
        on_event: OnEvent = log_event,
    ) -> tuple[PyTree, dict[str, Any], int]:
        """Reads one part of a state, e.g. `params`; no other array is read from disk.

        Args:
          part: a field of the state.
          like: name in the part -> jax.ShapeDtypeStruct whose sharding says where an
            array of that shape goes; all others go to the first device.
          step, on_event: as in `restore`.

        Returns:
          the part, the `meta` and the step; raises as `restore`.
        """

        def read(m: Manifest) -> PyTree:
            saved = {k: v for k, v in m.arrays.items() if k.split("/")[0] == part}
            if not saved:
                parts = sorted({k.split("/")[0] for k in m.arrays})
                raise CheckpointMismatch(
                    f"{self._path(m.step)} has no {part!r}; it has {parts}"
                )
            given = {f"{part}/{name}": x for name, x in (like or {}).items()}
            want = {k: _abstract(v, given.get(k)) for k, v in saved.items()}
            return self._load(m.step, saved, nested(want))[part]

        return self._first_sound(read, step, on_event)

    def _first_sound(
        self, read: Callable[[Manifest], PyTree], step: int | None, on_event: OnEvent
    ) -> tuple[PyTree, dict[str, Any], int]:
        if step is not None:
            manifest = self.manifest(step)
            return read(manifest), manifest.meta, step
        tried = []
        for s in reversed(self.steps()):
            try:
                manifest = self.manifest(s)
                state, self._sound = read(manifest), True
                return state, manifest.meta, s
            except DamagedCheckpoint as error:
                self._damaged.add(s)
                tried.append(f"step {s}: {error}")
                on_event({"event": "damaged_checkpoint", "step": s, "why": str(error)})
        if not tried:
            raise FileNotFoundError(f"{self.directory}: no checkpoint here")
        raise DamagedCheckpoint(
            f"{self.directory}: every checkpoint is damaged: " + "; ".join(tried)
        )

    def _load(self, step: int, saved: Mapping[str, Any], abstract: PyTree) -> PyTree:
        path = self._path(step)
        wanted, treedef = named(abstract)
        check_match(path, saved, wanted)
        damage = None
        try:
            arrays = arrayfiles.read(path, wanted)
        except DamagedCheckpoint as error:
            damage = error
        # A process reads its own shards: all must know before the digests, which are
        # computed together.
        if not cluster.everywhere(damage is None):
            other = f"{path} cannot be read by another process of this run"
            raise damage or DamagedCheckpoint(other)
        check_digests(path, saved, arrays)
        return jax.tree.unflatten(treedef, list(arrays.values()))

    def _manifests(self) -> list[Manifest]:
        manifests = []
        for step in self.steps():
            try:
                manifests.append(self.manifest(step))
            except (DamagedCheckpoint, FileNotFoundError):
                continue  # without metrics it cannot be the best; `restore` reports it
        return manifests

    def _finished(self, step: int) -> bool:
        marker = store.join(self._path(step), backend.FINISHED)
        return not store.is_url(self.directory) or store.exists(marker)

    def _path(self, step: int) -> str:
        return store.join(self.directory, str(step))


def _abstract(saved: Mapping[str, Any], like: Any) -> jax.ShapeDtypeStruct:
    """Of a saved array; `like` where it has its shape and type."""
    own = jax.ShapeDtypeStruct(saved["shape"], saved["dtype"])
    same = like is not None and (like.shape, like.dtype) == (own.shape, own.dtype)
    return like if same else own


class CheckpointWriter(Checkpoints, contextlib.AbstractContextManager):
    """The checkpoints of the run that writes them; one writer to a folder.

    Opening it removes what a killed run left unfinished. A step that `restore` passed
    over as damaged is renamed `STEP.damaged` when the next one is saved.

    Args:
      directory: the folder, made when missing.
      keep_last: how many of the last steps to keep, >= 1.
      keep_best: how many of the best steps to keep; a step may be both.
      best_metrics: the metric that says what is best, or one of each of several runs;
        () only with keep_best 0.
      best_mode: `max` or `min`.

    Raises:
      ValueError: one of these is out of range.
    """

    def __init__(
        self,
        directory: str,
        *,
        keep_last: int,
        keep_best: int,
        best_metrics: Sequence[str],
        best_mode: str,
    ):
        super().__init__(directory)
        for name, n, least in ("keep_last", keep_last, 1), ("keep_best", keep_best, 0):
            if n < least:
                raise ValueError(f"{name} is {n}; want at least {least}")
        if keep_best and not best_metrics:
            raise ValueError(f"keep_best is {keep_best}, but there is no best metric")
        self._keep_last, self._keep_best = keep_last, keep_best
        self._metrics, self._mode = best_metrics, best_mode
        self._pending: tuple[int, Callable[[], None]] | None = None
        best([], "", best_mode)  # raises now if the mode is unknown
        store.makedirs(self.directory)
        finished = {str(step) for step in self.steps()}
        if not cluster.first():
            return
        found = store.listdir(self.directory) if store.exists(self.directory) else ()
        for name in found:
            started = re.fullmatch(r"\d+", name) and name not in finished
            left = backend.UNFINISHED in name or name.endswith(
                (_DELETED, arrayfiles.SAVING)
            )
            if started or left:
                store.remove_tree(store.join(self.directory, name))

    def save(
        self,
        step: int,
        state: PyTree,
        meta: Mapping[str, Any],
        metrics: Mapping[str, float],
    ) -> None:
        """Saves in the background; waits first for a save that is still going on.

        Returns when the arrays have left the devices: the state may then be donated.

        Args:
          step: larger than every step that is there.
          state: a tree of jax arrays, in dicts, tuples, NamedTuples or dataclasses.
          meta: a JSON object.
          metrics: name -> value, the best metric among them; {} if none was taken.

        Raises:
          ValueError: the step is not the last, `meta` is not JSON, or the best metric
            is missing.
          TypeError: a leaf of the state is not a jax array.
          OSError: this save, or the one before it, could not be written.
        """
        self.wait()
        self._set_damaged_aside()
        latest = self.latest()
        if latest is not None and step <= latest:
            raise ValueError(
                f"{self.directory}: cannot save step {step} after step {latest}; "
                "use another folder to go back"
            )
        missing = not set(self._metrics) & metrics.keys()
        if metrics and self._keep_best and missing:
            raise ValueError(
                f"none of the best metrics {list(self._metrics)} is measured; there "
                f"are {sorted(metrics)}"
            )
        arrays, _ = named(state)
        manifest = make_manifest(step, arrays, meta, metrics)
        self._pending = (
            step,
            arrayfiles.start(self._path(step), nested(arrays), manifest),
        )

    def improves(self, metrics: Mapping[str, float]) -> bool:
        """Whether a step of these metrics would be kept among the best."""
        self.wait()
        self._set_damaged_aside()
        if not self._keep_best:
            return False
        before = self._manifests()
        for metric in self._metrics:
            value = metrics.get(metric, math.nan)
            new = Manifest(sys.maxsize, {}, {metric: value}, {})
            ranked = best([*before, new], metric, self._mode)
            if math.isfinite(value) and new.step in ranked[: self._keep_best]:
                return True
        return False

    def wait(self) -> None:
        """Waits until the last save is on disk, then deletes what need not be kept.

        Raises:
          OSError: it could not be written; the message names the folder and says why.
        """
        if self._pending is None:
            return
        (step, finish), self._pending = self._pending, None
        try:
            finish()
        except Exception as error:
            raise OSError(f"{self._path(step)}: cannot save: {error}") from error
        # Only now, with the new step on disk, may an older one go.
        cluster.wait(f"saved {step}")
        self._delete_old()
        cluster.wait(f"deleted {step}")  # whoever lists the steps now lists the same

    def close(self) -> None:
        """The same as `wait`; where a step was read, what a kill left is deleted too.

        A run killed between its last save and the deletion after it saves no more.
        """
        self.wait()
        if self._sound and not self._damaged:
            self._delete_old()

    def __exit__(self, *_) -> None:
        self.close()

    def _delete_old(self) -> None:
        for old in set(self.steps()) - self._kept() if cluster.first() else ():
            self._delete(old)

    def _kept(self) -> set[int]:
        manifests = self._manifests()
        sound = [m.step for m in manifests]
        kept = sound[-self._keep_last :]
        for metric in self._metrics if self._keep_best else ():
            kept += best(manifests, metric, self._mode)[: self._keep_best]
        # A step that cannot say whether it is the best is not ours to delete.
        return set(kept) | (set(self.steps()) - set(sound))

    def _set_damaged_aside(self) -> None:
        # Left where it is, it would count among the last and push out a sound one.
        damaged = self._damaged & set(self.steps())
        if damaged:
            cluster.wait(f"damaged {sorted(damaged)}")
        for step in damaged if cluster.first() else ():
            aside = self._path(step) + _DAMAGED
            if store.exists(aside):
                store.remove_tree(aside)
            if store.is_url(self.directory):
                store.copy_tree(self._path(step), aside)
                self._delete(step)
            else:
                store.move(self._path(step), aside)
        if damaged:
            cluster.wait(f"aside {sorted(damaged)}")
        self._damaged.clear()

    def _delete(self, step: int) -> None:
        """Deletes a step so that it is gone at once, however long its files take."""
        if store.is_url(self.directory):
            store.remove(store.join(self._path(step), backend.FINISHED))
            store.remove_tree(self._path(step))
        else:
            trash = self._path(step) + _DELETED
            store.move(self._path(step), trash)
            store.remove_tree(trash)
