"""Files on object storage: the same calls as on a disk, on fsspec's in-memory store."""

import math
import random
import uuid

import pytest

from rm_jax import objects, store


@pytest.fixture
def bucket():
    return f"memory://bucket-{uuid.uuid4().hex}"


def test_round_trips_folders_and_deletes(bucket):
    at = lambda *names: store.join(bucket, *names)
    store.write_text(at("a.txt"), "é\r\n")
    store.write_json(at("b", "c.json"), {"x": 1})
    assert store.read_text(at("a.txt")) == "é\r\n"
    assert store.read_json(at("b", "c.json")) == {"x": 1}
    assert store.is_dir(at("b")) and not store.is_dir(at("a.txt"))
    assert store.listdir(bucket) == ["a.txt", "b"]
    assert store.walk(bucket) == ["a.txt", "b/c.json"]
    with store.open_file(at("a.txt")) as file:
        assert file.read(2) == "é".encode()
    store.copy_tree(at("b"), at("d"))
    store.remove_tree(at("b"))
    assert store.walk(bucket) == ["a.txt", "d/c.json"]
    store.remove(at("a.txt"))
    assert not store.exists(at("a.txt"))
    store.remove_tree(at("d"))
    assert not store.exists(at("d"))
    for read in (store.read_bytes, store.sha256_file, store.listdir, store.remove):
        with pytest.raises(FileNotFoundError, match="gone: cannot"):
            read(at("gone"))


def test_a_growing_file_reads_as_its_lines(bucket):
    path = store.join(bucket, "run", "metrics.jsonl")
    for i in range(3):
        store.append_lines(path, [f"line {i}", "é"])
    assert store.read_text(path) == "".join(f"line {i}\né\n" for i in range(3))
    assert store.exists(path) and store.listdir(f"{bucket}/run") == ["metrics.jsonl"]
    assert not store.is_dir(path)


def test_many_parts_are_merged(bucket):
    path = store.join(bucket, "log")
    lines = [f"{i}" for i in range(3 * objects.MOST_PARTS)]
    for line in lines:
        store.append_lines(path, [line])
    assert store.read_text(path).split() == lines
    fs, name = objects._open(path)
    assert len(objects._parts(fs, name)) <= objects.MOST_PARTS + 1


def test_a_growing_file_costs_no_more_than_n_log_n(bucket, monkeypatch):
    path, line, n = store.join(bucket, "log"), "x" * 99, 3000
    fs, name = objects._open(path)
    real, written = type(fs).pipe_file, []
    counted = lambda fs, to, data, **m: (written.append(len(data)), real(fs, to, data))
    monkeypatch.setattr(type(fs), "pipe_file", counted)
    for _ in range(n):
        store.append_lines(path, [line])
    assert sum(written) < 100 * n * math.log2(n) / 2  # once more whole each: 24 times n
    assert store.read_text(path) == f"{line}\n" * n


def test_covered_parts_that_a_kill_left_are_deleted_later(bucket):
    path = store.join(bucket, "log")
    fs, name = objects._open(path)
    store.append_lines(path, ["x" * 999])
    for at in range(1, 1 + objects.MOST_PARTS):
        fs.pipe_file(objects._part(name, at), b"old")
    store.append_lines(path, ["new"])
    assert store.read_text(path) == "x" * 999 + "\nnew\n"
    assert len(objects._parts(fs, name)) == 2


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 1000])
def test_truncate_keeps_a_prefix_and_appends_go_on(bucket, size):
    path, text = store.join(bucket, "log"), ""
    for i in range(20):
        store.append_lines(path, [f"{i}" * (i % 5)])
        text += f"{i}" * (i % 5) + "\n"
    store.truncate(path, size)
    assert store.read_text(path) == text[:size]
    store.append_lines(path, ["more"])
    assert store.read_text(path) == text[:size] + "more\n"


class Killed(Exception):
    pass


def test_a_kill_at_any_write_or_delete_leaves_a_prefix(bucket, monkeypatch):
    """Appends, merges and cuts, each broken off before its n-th change."""
    monkeypatch.setattr(objects, "MOST_PARTS", 4)
    fs, _ = objects._open(bucket)
    left = [10**9]

    def counted(real):
        def call(*args, **more):
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return real(*args, **more)

        return call

    for name in ("pipe_file", "rm_file"):
        monkeypatch.setattr(type(fs), name, counted(getattr(type(fs), name)))
    rng = random.Random(0)
    for trial in range(300):
        path, want = store.join(bucket, str(trial)), ""
        for _ in range(rng.randrange(12)):
            line = "x" * rng.randrange(4) + str(trial)
            store.append_lines(path, [line])
            want += line + "\n"
        left[0] = rng.randrange(7)
        try:
            if rng.random() < 0.5 and want:
                size = rng.randrange(len(want) + 1)
                low, high = size, want
                store.truncate(path, size)
                want = want[:size]
                low = len(want)
            else:
                low, high = len(want), want + "new\n"
                store.append_lines(path, ["new"])
                low = len(high)
        except Killed:
            pass
        left[0] = 10**9
        found = store.read_text(path) if store.exists(path) else ""
        assert high.startswith(found) and len(found) >= low
        store.append_lines(path, ["after"])
        assert store.read_text(path) == found + "after\n"


def test_a_claim_is_won_once(bucket, tmp_path):
    for folder in (bucket, str(tmp_path)):
        path = store.join(folder, "lease")
        assert store.write_new(path, b"a") and not store.write_new(path, b"b")
        assert store.read_bytes(path) == b"a" and store.listdir(folder) == ["lease"]


def test_folders_for_those_who_know_no_urls(bucket, tmp_path):
    for folder in (bucket, str(tmp_path / "x")):
        path = store.join(folder, "tokenizer")
        with store.new_folder(path) as scratch:
            store.write_text(store.join(scratch, "a"), "1")
            store.makedirs(store.join(scratch, "b"))
            store.write_text(store.join(scratch, "b", "c"), "2")
        with store.local(path) as copy:
            assert store.walk(copy) == ["a", "b/c"]
        assert store.walk(path) == ["a", "b/c"]
        with pytest.raises(KeyError), store.new_folder(f"{folder}/no"):
            raise KeyError
        assert store.listdir(folder) == ["tokenizer"]


def test_an_unknown_scheme_is_named():
    with pytest.raises((ImportError, ValueError), match="nosuch"):
        store.read_bytes("nosuch://bucket/x")


@pytest.mark.parametrize("name", ["gs://", "gs:///x", "gcs://", "s3:///a/b"])
def test_a_url_without_a_bucket_is_refused_at_once(name):
    for call in (store.exists, store.read_bytes):
        with pytest.raises(ValueError, match=f"'{name}' names no bucket: want "):
            call(name)


def test_one_slash_is_no_url_and_no_folder():
    with pytest.raises(ValueError, match="'gs:/x/y': did you mean gs://x/y"):
        objects.check_url("gs:/x/y")
    for name in ("gs://x/y", "x", "/a:/b", "./a:b", "memory://x", "file:///x"):
        objects.check_url(name)


class NoRoute(OSError):
    """Like aiohttp's: it is made of two things, so it cannot be made anew of a line."""

    def __init__(self, key, error):
        super().__init__(error.errno, error.strerror)


NoRoute.__module__ = "aiohttp.client_exceptions"


def test_a_storage_that_does_not_answer_is_named(bucket, monkeypatch):
    fs, _ = objects._open(bucket)

    def unreachable(*_, **__):
        raise NoRoute("storage", OSError(113, "No route to host"))

    for name in ("exists", "isdir", "ls", "cat_file", "pipe_file", "put_file"):
        monkeypatch.setattr(type(fs), name, unreachable)
    path = store.join(bucket, "config.json")
    calls = [
        lambda: store.exists(path),
        lambda: store.is_dir(path),
        lambda: store.listdir(path),
        lambda: store.read_json(path),
        lambda: store.write_text(path, "x"),
        lambda: store.append_lines(path, ["x"]),
        lambda: store.upload(__file__.rpartition("/")[0], path),
    ]
    for call in calls:
        with pytest.raises(ConnectionError) as error:
            call()
        text = str(error.value)
        assert text.startswith(f"{path}: cannot be reached: ") and "No route" in text
        assert text.count(path) == 1
