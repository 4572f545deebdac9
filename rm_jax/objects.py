"""The same operations as `store` on object storage: gs:// and any URL of fsspec.

An object is written whole or not at all, but there is no append, no rename and no
folder. So

- a file that grows is a row of parts, PATH.parts/OFFSET, each named by where its bytes
  begin. A reader takes the parts in order and skips one that begins before the end of
  what it has: after any crash what is read is a prefix of what was written;
- a folder is a prefix of names; `move` copies and then deletes, and is not atomic.

`store` is what to call; it comes here for every path with "://" in it.
"""

import functools
import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any

PARTS = ".parts"
MOST_PARTS = 64  # when there are more, the last are merged
BUCKETS = ("gs", "gcs", "s3")  # schemes whose URLs begin with a bucket
# Packages whose errors are about the way to the storage, not about an object.
NETWORK = ("aiohttp", "gcsfs", "google", "requests", "urllib3")


class Unreachable(ConnectionError):
    """The storage does not answer, or does not let us in; names the URL."""


def is_url(path: str | os.PathLike) -> bool:
    """Whether a path is a URL, not a local file."""
    return "://" in os.fspath(path)


def check_url(path: str) -> None:
    """Refuses what was meant as a URL and is none.

    Raises:
      ValueError: one slash after the scheme, or no bucket.
    """
    if re.match(r"\w+:/(?!/)", path):
        raise ValueError(f"{path!r}: did you mean {path.replace(':/', '://', 1)}")
    scheme, _, rest = path.partition("://")
    if scheme in BUCKETS and is_url(path) and rest[:1] in ("", "/"):
        raise ValueError(f"{path!r} names no bucket: want {scheme}://BUCKET/PATH")


def _reached(call: Callable[..., Any]) -> Callable[..., Any]:
    """The call, whose errors of the network are Unreachable."""

    @functools.wraps(call)
    def named(*args: Any, **more: Any) -> Any:
        try:
            return call(*args, **more)
        except Exception as error:
            package = type(error).__module__.partition(".")[0]
            if package not in NETWORK and not isinstance(error, TimeoutError):
                raise
            url = next(arg for arg in args if is_url(arg))
            why = " ".join(str(error).split()) or type(error).__name__
            raise Unreachable(f"{url}: cannot be reached: {why:.500}") from error

    return named


def _open(path: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it.

    Raises:
      ImportError: naming the package that reads such URLs.
      ValueError: a scheme that nobody knows, or no bucket.
    """
    check_url(path)
    import fsspec  # half a second that local runs spare

    # No listing is taken from a cache: other hosts write, too. By the settings, because
    # Orbax opens file systems of its own in its threads.
    for scheme in BUCKETS:
        settings = fsspec.config.conf.setdefault(scheme, {})
        settings.setdefault("use_listings_cache", False)
    try:
        return fsspec.core.url_to_fs(path)
    except ImportError as error:
        raise ImportError(
            f"{path}: {error}; for gs:// pip install 'rm_jax[gcs]'"
        ) from error


@_reached
def exists(path: str) -> bool:
    """Whether there is an object, a growing file or a folder of this name."""
    fs, name = _open(path)
    return fs.exists(name) or fs.exists(name + PARTS)


@_reached
def is_dir(path: str) -> bool:
    """Whether there is anything below this name; a growing file is no folder."""
    fs, name = _open(path)
    return fs.isdir(name)


@_reached
def listdir(path: str) -> list[str]:
    """Names in the folder, sorted; a growing file by its own name."""
    fs, name = _open(path)
    found = {os.path.basename(p.rstrip("/")) for p in fs.ls(name, detail=False)}
    return sorted({n.removesuffix(PARTS) for n in found if n})


@_reached
def makedirs(path: str) -> None:
    """Checks that the bucket is there; folders are only prefixes."""
    fs, name = _open(path)
    bucket = name.strip("/").partition("/")[0]
    if fs.protocol != "memory" and bucket and not fs.exists(bucket):
        raise FileNotFoundError(2, f"no bucket {bucket}", path)


@_reached
def read_bytes(path: str) -> bytes:
    """Content of the object, or of the parts of a growing file."""
    fs, name = _open(path)
    parts = _parts(fs, name)
    if not parts:
        return fs.cat_file(name)
    return b"".join(fs.cat_file(_part(name, at)) for at, _ in _in_order(parts))


@_reached
def open_file(path: str) -> IO[bytes]:
    """The object as a stream."""
    fs, name = _open(path)
    return fs.open(name, "rb")


@_reached
def write_bytes(path: str, data: bytes) -> None:
    """Writes the object in place of an older one."""
    fs, name = _open(path)
    fs.pipe_file(name, data)


@_reached
def write_new(path: str, data: bytes) -> bool:
    """Writes the object if there is none; whether it did. Atomic (generation match)."""
    fs, name = _open(path)
    try:
        fs.pipe_file(name, data, mode="create")
    except FileExistsError:
        return False
    return True


@_reached
def append(path: str, data: bytes) -> None:
    """Adds a part to a growing file; merges the last parts when they are many.

    Each part that a merge leaves is longer than all that follow. So n lines are at most
    MOST_PARTS + 1 parts, and each of their bytes is written about log2(n) times.
    """
    fs, name = _open(path)
    parts = _parts(fs, name)
    live = list(_in_order(parts))
    end = sum(size for _, size in live)
    fs.pipe_file(_part(name, end), data)
    if len(parts) < MOST_PARTS:
        return
    live.append((end, len(data)))
    total = end + len(data)
    first = next((at for at, size in live if size <= total - at - size), end)
    # One write replaces a part by itself and all after it; these are then covered,
    # whether or not they are ever deleted.
    merged = b"".join(fs.cat_file(_part(name, at)) for at, _ in live if at >= first)
    fs.pipe_file(_part(name, first), merged)
    keep = {at for at, _ in live if at <= first}
    for offset in sorted({at for at, _ in [*parts, *live]} - keep, reverse=True):
        fs.rm_file(_part(name, offset))


@_reached
def truncate(path: str, size: int) -> None:
    """Keeps the first `size` bytes of a growing file; from the end, so any crash
    leaves a prefix.
    """
    fs, name = _open(path)
    head = read_bytes(path)[:size]
    parts = _parts(fs, name)
    for offset, _ in reversed(parts):
        if offset >= max(size, 1):
            fs.rm_file(_part(name, offset))
    for offset, n in _in_order(parts):
        if offset < size < offset + n or size == 0 == offset:
            fs.pipe_file(_part(name, offset), head[offset:])


@_reached
def remove(path: str) -> None:
    """Deletes the object."""
    fs, name = _open(path)
    fs.rm_file(name)


@_reached
def copy_tree(path: str, to: str) -> None:
    """Copies everything below a name to below another."""
    fs, name = _open(path)
    fs.copy(name, _open(to)[1], recursive=True)


@_reached
def remove_tree(path: str) -> None:
    """Deletes everything below this name."""
    fs, name = _open(path)
    fs.rm(name, recursive=True)


@_reached
def fetch(path: str, to: str) -> None:
    """Copies an object or a folder to a local path."""
    fs, name = _open(path)
    fs.get(name, to, recursive=fs.isdir(name))


@_reached
def upload_file(path: str, to: str) -> None:
    """Copies a local file to an object."""
    fs, name = _open(to)
    fs.put_file(path, name)


@_reached
def upload(path: str, to: str) -> None:
    """Copies a local folder to a folder of this name."""
    fs, name = _open(to)
    for folder, _, files in os.walk(path):
        below = os.path.relpath(folder, path)
        for file in sorted(files):
            there = "/".join(p for p in (name.rstrip("/"), below, file) if p != ".")
            fs.put_file(os.path.join(folder, file), there)


def _part(name: str, offset: int) -> str:
    return f"{name}{PARTS}/{offset:015d}"


def _in_order(parts: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The parts that make up the file; one that begins earlier is in a merged part."""
    end = 0
    for offset, size in parts:
        if offset == end:
            yield offset, size
            end += size


def _parts(fs: Any, name: str) -> list[tuple[int, int]]:
    """(offset, size) of each part, ascending."""
    try:
        found = fs.ls(name + PARTS, detail=True)
    except FileNotFoundError:
        return []
    return sorted((int(os.path.basename(f["name"])), f["size"]) for f in found)
