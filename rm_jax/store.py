"""All file I/O of the package: paths are strings, local or URLs, writes are atomic.

A URL (gs://bucket/run) goes to `objects`; what is different there is said there.

>>> write_json("/tmp/rm_jax_store_demo.json", {"b": 1, "a": 2})
>>> read_json("/tmp/rm_jax_store_demo.json")
{'a': 2, 'b': 1}
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any

from rm_jax import objects, seal
from rm_jax.objects import is_url

_BLOCK = 1 << 20


def join(*parts: str | os.PathLike[str]) -> str:
    """One path out of its parts; a later absolute part replaces the earlier ones."""
    return os.path.join(*map(os.fspath, parts))


def absolute(path: str) -> str:
    """The path from the root; a URL as it is, without a slash at its end."""
    return path.rstrip("/") if is_url(path) else os.path.abspath(path)


def exists(path: str) -> bool:
    """Whether there is a file or a folder at `path`."""
    return objects.exists(path) if is_url(path) else os.path.exists(path)


def is_dir(path: str) -> bool:
    """Whether there is a folder at `path`."""
    return objects.is_dir(path) if is_url(path) else os.path.isdir(path)


def listdir(path: str) -> list[str]:
    """Names in the folder, sorted.

    Raises:
      FileNotFoundError: no folder at `path`.
    """
    with _clear(path, "list"):
        if is_url(path):
            return objects.listdir(path)
        return sorted(os.listdir(path))


def walk(path: str) -> list[str]:
    """Paths of every file under the folder, relative to it with `/`, sorted.

    Raises:
      FileNotFoundError: no folder at `path`.
    """
    found = []
    for name in listdir(path):
        child = join(path, name)
        if is_dir(child):
            found += [f"{name}/{below}" for below in walk(child)]
        else:
            found.append(name)
    return sorted(found)


def makedirs(path: str) -> None:
    """Makes the folder and those above it; fine when it is there already."""
    with _clear(path, "make the folder"):
        if is_url(path):
            return objects.makedirs(path)
        os.makedirs(path, exist_ok=True)


def read_bytes(path: str) -> bytes:
    """Content of the file.

    Raises:
      FileNotFoundError: no file at `path`.
      OSError: it cannot be read; the message says why.
    """
    with _clear(path, "read"):
        if is_url(path):
            return objects.read_bytes(path)
        with open(path, "rb") as file:
            return file.read()


def open_file(path: str) -> IO[bytes]:
    """The file as a stream of bytes; raises as `read_bytes`."""
    with _clear(path, "read"):
        return objects.open_file(path) if is_url(path) else open(path, "rb")


def read_text(path: str) -> str:
    """Content of a UTF-8 file, line ends untouched; raises as `read_bytes`.

    Raises:
      ValueError: the file is not UTF-8.
    """
    try:
        return read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text: {error}") from None


def read_json(path: str) -> Any:
    """The JSON value in the file, without its seal; raises as `read_text`.

    Raises:
      ValueError: not JSON, with the line where it breaks; or the seal is broken.
    """
    text = read_text(path)
    try:
        return seal.opened(json.loads(text))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def write_bytes(path: str, data: bytes) -> None:
    """Writes the file so that a reader sees the old content or the new, never a part.

    The data goes to a temporary file in the same folder, is flushed to disk, then
    renamed. The folder above must exist.

    Raises:
      OSError: it cannot be written; the message names the path and says why.
    """
    folder, name = os.path.split(os.path.abspath(path))
    with _clear(path, "write"):
        if is_url(path):
            return objects.write_bytes(path, data)
        handle, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
        try:
            with os.fdopen(handle, "wb") as file:
                # mkstemp makes private files; give it what open() would have given.
                os.fchmod(file.fileno(), 0o666 & ~_umask())
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
        _sync(folder)  # or the rename itself can be lost when the machine stops


def write_new(path: str, data: bytes) -> bool:
    """Writes the file if there is none, and says whether it did: a claim.

    Of any number of callers exactly one gets True, and nobody sees a part of it.

    Raises:
      OSError: it cannot be written; the message names the path and says why.
    """
    if is_url(path):
        with _clear(path, "write"):
            return objects.write_new(path, data)
    scratch = f"{path}.{uuid.uuid4().hex[:12]}"
    write_bytes(scratch, data)
    try:
        os.link(scratch, path)
        return True
    except FileExistsError:
        return False
    finally:
        os.unlink(scratch)


def write_text(path: str, text: str) -> None:
    """Writes a UTF-8 file as `write_bytes` does."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str, value: Any) -> None:
    """Writes JSON with sorted keys, indent 1 and a newline, as `write_bytes` does.

    NaN and infinity are not JSON and are refused.

    Raises:
      ValueError: the value holds NaN or infinity.
    """
    try:
        text = json.dumps(
            value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False
        )
    except ValueError as error:
        raise ValueError(f"{path}: cannot be written as JSON: {error}") from None
    write_text(path, text + "\n")


def write_sealed(path: str, value: Mapping[str, Any]) -> None:
    """`write_json` with a seal, so that `read_json` notices damage."""
    try:
        value = seal.sealed(value)
    except ValueError as error:
        raise ValueError(f"{path}: cannot be written as JSON: {error}") from None
    write_json(path, value)


def append_lines(path: str, lines: Iterable[str]) -> None:
    """Adds lines to the end of a UTF-8 file, made when missing, and to the disk.

    Raises:
      ValueError: a line holds a line break.
      OSError: it cannot be written; the message names the path and says why.
    """
    lines = list(lines)
    for line in lines:
        if "\n" in line:
            raise ValueError(f"{path}: one line holds a line break: {line!r:.80}")
    data = "".join(line + "\n" for line in lines).encode("utf-8")
    with _clear(path, "write"):
        if is_url(path):
            return objects.append(path, data) if data else None
        with open(path, "ab") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())


@contextlib.contextmanager
def new_file(path: str) -> Iterator[IO[bytes]]:
    """A stream to write; the file appears at `path` when the block ends without error.

    Raises:
      OSError: it cannot be written; the message names the path and says why.
    """
    above = tempfile.gettempdir() if is_url(path) else os.path.dirname(absolute(path))
    with _clear(path, "write"):
        handle, scratch = tempfile.mkstemp(prefix=".rm_jax.", dir=above)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        with _clear(path, "write"):
            if is_url(path):
                objects.upload_file(scratch, path)
            else:
                os.chmod(scratch, 0o666 & ~_umask())
                os.replace(scratch, path)
                _sync(above)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(scratch)


def truncate(path: str, size: int) -> None:
    """Keeps the first `size` bytes of a file that `append_lines` made.

    A crash leaves the old content or the new (on object storage: some prefix of the old
    that is no shorter than the new).
    """
    if is_url(path):
        with _clear(path, "cut"):
            return objects.truncate(path, size)
    write_bytes(path, read_bytes(path)[:size])


def remove(path: str) -> None:
    """Deletes the file.

    Raises:
      FileNotFoundError: no file at `path`.
    """
    with _clear(path, "delete"):
        objects.remove(path) if is_url(path) else os.unlink(path)


def move(path: str, to: str) -> None:
    """Renames a local file or folder; `to` must not exist.

    Raises:
      FileExistsError: there is something at `to`.
      FileNotFoundError: nothing at `path`.
    """
    if exists(to):
        raise FileExistsError(f"{to}: exists; cannot move {path} there")
    with _clear(path, f"move to {to}"):
        os.rename(path, to)
        _sync(os.path.dirname(absolute(to)))


def copy_tree(path: str, to: str) -> None:
    """Copies a folder on object storage, where nothing can be renamed.

    Raises:
      FileNotFoundError: nothing at `path`.
    """
    with _clear(path, f"copy to {to}"):
        objects.copy_tree(path, to)


def remove_tree(path: str) -> None:
    """Deletes the folder and everything in it; links are deleted, not followed.

    Raises:
      FileNotFoundError: no folder at `path`.
    """
    with _clear(path, "delete"):
        objects.remove_tree(path) if is_url(path) else shutil.rmtree(path)


def upload(folder: str, to: str) -> None:
    """Copies a local folder to one on object storage, over what is there."""
    with _clear(to, "write"):
        objects.upload(folder, to)


def fetch(path: str, to: str) -> None:
    """Copies a folder on object storage to a local one; raises as `read_bytes`."""
    with _clear(path, "read"):
        objects.fetch(path, to)


@contextlib.contextmanager
def local(path: str) -> Iterator[str]:
    """A local path of the file or folder: a URL is copied, and the copy deleted.

    For readers that know no URLs: tokenizers, array_record.
    """
    if not is_url(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="rm_jax.") as folder:
        copy = os.path.join(folder, os.path.basename(path.rstrip("/")))
        with _clear(path, "read"):
            objects.fetch(path, copy)
        yield copy


@contextlib.contextmanager
def new_folder(path: str) -> Iterator[str]:
    """A local folder to fill; it appears at `path` when the block ends without error.

    For writers that know no URLs. Local: whole or not at all. A URL gets file by file.
    """
    above = tempfile.gettempdir() if is_url(path) else os.path.dirname(absolute(path))
    with _clear(path, "write"):
        os.makedirs(above, exist_ok=True)
        scratch = tempfile.mkdtemp(prefix=f".{os.path.basename(path)}.", dir=above)
    try:
        yield scratch
        with _clear(path, "write"):
            if is_url(path):
                objects.upload(scratch, path)
            else:
                os.chmod(scratch, 0o777 & ~_umask())
                sync(scratch)
                os.rename(scratch, path)
                _sync(above)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def sha256_file(path: str) -> str:
    """SHA-256 of the file's content, in hexadecimal; raises as `read_bytes`."""
    digest = hashlib.sha256()
    with _clear(path, "read"), open_file(path) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def _clear(path: str, what: str) -> Iterator[None]:
    """Re-raises OS errors with a line that names the path and what was wanted."""
    try:
        yield
    except objects.Unreachable:
        raise
    except FileNotFoundError as error:
        folder = os.path.dirname(absolute(path))
        there = is_url(path) or os.path.isdir(folder)
        why = "no such path" if there else f"no folder {folder}"
        raise FileNotFoundError(f"{path}: cannot {what}: {why}") from error
    except OSError as error:
        why = error.strerror or error
        raise type(error)(f"{path}: cannot {what}: {why}") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sync(path: str) -> None:
    """Returns when everything in a local folder would survive a loss of power."""
    with _clear(path, "write"):
        for folder, _, names in os.walk(path):
            for name in names:
                _sync(join(folder, name))
            _sync(folder)


def _sync(path: str) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
