"""From the log of an undisturbed run to every point where one can go wrong."""

import collections
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

# What is random in a path, and what stands for it.
RANDOM = (
    (re.compile(r"(/\.[\w.]+?)\.[a-z0-9_]{8}(?=/|$)"), r"\1.*"),  # of tempfile
    (re.compile(r"\.[0-9a-f]{8}\.tmp(?=/|$)"), ".*.tmp"),  # a token cache being made
    (re.compile(r"/d/[0-9a-f]{32}$"), "/d/*"),  # tensorstore's data
    (re.compile(r"/#\d+$"), "/#*"),  # a file that never has a name
    (re.compile(r"tfevents\..*"), "tfevents.*"),
)
LASTING = {  # what goes on failing after the first failure, and of which calls
    "full": ("write", "truncate"),
    "read_only": ("open", "mkdir", "rename", "link", "delete", "chmod"),
}


class Call(NamedTuple):
    """A line of the log.

    Attributes:
      flag: "." or what was done to it: K killed, H half of it, F failed, f a later one.
      call: open, write, fsync, truncate, mkdir, rename, link, delete or chmod.
      size: bytes of a write; of the whole file for fsync and truncate.
      path: what it was about.
      to: the other path of rename and link.
    """

    flag: str
    call: str
    size: int
    path: str
    to: str


class Point(NamedTuple):
    """The n-th call of a kind on a path that fits; `size` is that of the call.

    `pattern` is below the folder that all of the run is in: the same for every worker.
    """

    call: str
    pattern: str
    n: int
    size: int

    def name(self) -> str:
        """What a report calls it."""
        return f"{self.call} {self.pattern} #{self.n}"


class Fault(NamedTuple):
    """A point and what happens there: kill, half, lost, eio, full or read_only."""

    point: Point
    mode: str


def read_log(text: str) -> list[Call]:
    """The calls of a log, in their order."""
    rows = (line.split("\t") for line in text.splitlines())
    return [Call(a, b, int(n), path, to) for a, b, n, path, to in rows]


def fits(path: str) -> str:
    """The path with `*` for what is another one in every run."""
    for random, plain in RANDOM:
        path = random.sub(plain, path)
    return path


def points_of(calls: Iterable[Call], root: str) -> list[Point]:
    """Every point of a run in folder `root`; the order is that of the calls."""
    seen: collections.Counter = collections.Counter()
    points = []
    for call in calls:
        key = call.call, fits(call.path.removeprefix(root))
        seen[key] += 1
        points.append(Point(*key, seen[key], call.size))
    return points


def faults_of(points: Iterable[Point]) -> list[Fault]:
    """Everything that can happen: death before each call, failures, a torn write.

    After each rename also a loss of power: what the name now stands for must be on the
    disk by then. A kill before a sync is left out: it leaves the files that a kill
    before the next call leaves.
    """
    faults, before = [], ""
    for point in points:
        if before == "rename":
            faults.append(Fault(point, "lost"))
        before = point.call
        lasting = [mode for mode, calls in LASTING.items() if point.call in calls]
        half = ["half"] if point.call == "write" and point.size > 1 else []
        kill = ["kill"] if point.call != "fsync" else []
        faults += [Fault(point, mode) for mode in (*kill, *half, "eio", *lasting)]
    return faults


def unsynced(calls: Iterable[Call]) -> dict[str, int]:
    """Files that a loss of power would cut -> the bytes of them that are safe.

    Names are taken to be safe at once, contents only once they are synced: so it is on
    ext4 and xfs.
    """
    safe: dict[str, int] = {}
    hurt: set[str] = set()
    for call in calls:
        if call.flag != ".":
            continue
        if call.call == "write":
            safe.setdefault(call.path, 0)
            hurt.add(call.path)
        elif call.call == "fsync":
            safe[call.path] = call.size
            hurt.discard(call.path)
        elif call.call == "rename":
            for old in [p for p in safe if f"{p}/".startswith(f"{call.path}/")]:
                new = call.to + old.removeprefix(call.path)
                safe[new] = safe.pop(old)
                hurt.discard(new)
                if old in hurt:
                    hurt.remove(old)
                    hurt.add(new)
    return {path: safe[path] for path in sorted(hurt)}


def sample(items: Sequence, n: int) -> list:
    """n of the items, evenly spread; all of them for 0."""
    if not n or n >= len(items):
        return list(items)
    return [items[(2 * i + 1) * len(items) // (2 * n)] for i in range(n)]


def unlogged(calls: Sequence[Call], sizes: dict[str, int]) -> list[str]:
    """Files that hold bytes which no logged call wrote: what the shim did not see.

    Args:
      calls: of an undisturbed run that began with empty folders.
      sizes: path -> bytes of every file that it left.
    """
    written: collections.Counter = collections.Counter()
    made = set()
    for call in calls:
        if call.call in ("open", "mkdir"):
            made.add(call.path)
        elif call.call == "write":
            written[call.path] += call.size
        elif call.call in ("rename", "link"):
            below = [p for p in made if p == call.path or p.startswith(call.path + "/")]
            for old in below:
                new = call.to + old.removeprefix(call.path)
                made.add(new)
                written[new] = written.pop(old, 0)
    return sorted(p for p, n in sizes.items() if p not in made or written[p] < n)
