"""Runs that train in one program: what may differ in them, where they are saved.

Their checkpoints are one, with a leading axis over the runs; member.json in each run
directory says where it is and which of them the run is. So a folder of such runs can be
moved as a whole, and everything that reads a run reads these.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from rm_jax import schemas, store
from rm_jax.config import ConfigError, flatten

VARY = (
    "name",
    "init_seed",
    "data_seed",
    "dropout_seed",
    "data.label_noise",
    "data.noise_seed",
    "data.bootstrap_seed",
    "optim.learning_rate",
    "optim.weight_decay",
    "optim.b1",
    "optim.b2",
    "optim.eps",
    "optim.clip_norm",
)
FOLDER = ".together"


class Place(NamedTuple):
    """Where the checkpoints of a run are.

    Attributes:
      folder: of the checkpoints.
      member: index of the run in their arrays; None where they are its own.
    """

    folder: str
    member: int | None

    def metric(self, name: str) -> str:
        """A metric of the run, as the manifests of its checkpoints call it."""
        return name if self.member is None else f"{self.member}/{name}"


def varies(key: str, value: Any) -> bool:
    """Whether runs of one program may differ in a key of this value: in numbers."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return key in VARY or (key.startswith("loss.") and number)


def check(configs: Sequence[Any], workdirs: Sequence[str]) -> None:
    """Refuses runs that cannot be one program.

    Raises:
      ConfigError: naming the key and its values, or the directory.
    """
    if len(set(map(store.absolute, workdirs))) < len(workdirs):
        raise ConfigError(f"runs that train together share a workdir: {workdirs}")
    first = flatten(configs[0].to_dict())
    for config in configs[1:]:
        own = flatten(config.to_dict())
        for key in sorted(first.keys() | own.keys()):
            a, b = first.get(key), own.get(key)
            if a != b and not (varies(key, a) and varies(key, b)):
                raise ConfigError(
                    f"config.{key} = {a!r} and {b!r}: runs that train together differ "
                    f"in numbers only: loss.* and {VARY}"
                )
    for workdir in workdirs:
        there = place(workdir)
        if there.member is not None and there.folder != folder(workdirs):
            raise ConfigError(
                f"{workdir} trains together with other runs (its member.json names "
                "them): continue it with the same list of them"
            )
    if len(configs) > 1 and configs[0].members.count > 1:
        raise ConfigError("config.members.count: ensembles cannot train together")
    if len(configs) > 1 and configs[0].train.resume:
        raise ConfigError(
            "config.train.resume: runs that train together cannot have it"
        )


def place(run: str) -> Place:
    """Where the checkpoints of a run directory are."""
    path = store.join(run, "member.json")
    if not store.exists(path):
        return Place(store.join(run, "checkpoints"), None)
    value = schemas.checked("member.json", store.read_json(path), path)
    return Place(
        store.join(_parent(run), value["folder"], "checkpoints"), value["member"]
    )


def join(workdirs: Sequence[str]) -> None:
    """Writes member.json of each run; its own checkpoints need none."""
    if len(workdirs) == 1:
        return
    folder = store.join(FOLDER, _key(workdirs))
    for i, workdir in enumerate(workdirs):
        value = {"folder": folder, "member": i, "runs": [*map(_name, workdirs)]}
        path = store.join(workdir, "member.json")
        store.write_sealed(path, schemas.stamped("member.json", value))


def folder(workdirs: Sequence[str]) -> str:
    """Folder of the checkpoints of runs; of several, beside the first of them.

    Raises:
      ConfigError: they are not in one folder.
    """
    if len(workdirs) == 1:
        return store.join(workdirs[0], "checkpoints")
    parents = sorted({_parent(w) for w in workdirs})
    if len(parents) > 1:
        raise ConfigError(f"runs that train together are in one folder, not {parents}")
    return store.join(parents[0], FOLDER, _key(workdirs), "checkpoints")


def _key(workdirs: Sequence[str]) -> str:
    names = "\n".join(map(_name, workdirs))
    return hashlib.sha256(names.encode()).hexdigest()[:10]


def _name(workdir: str) -> str:
    return store.absolute(workdir).rsplit("/", 1)[1]


def _parent(workdir: str) -> str:
    return store.absolute(workdir).rsplit("/", 1)[0]
