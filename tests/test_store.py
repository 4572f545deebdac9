import hashlib
import os
import pathlib

import pytest

from rm_jax import store


def test_bytes_text_and_lines_round_trip(tmp_path):
    path = store.join(tmp_path, "a.txt")
    store.write_bytes(path, b"\x00\r\n")
    assert store.read_bytes(path) == b"\x00\r\n"
    store.write_text(path, "é\r\nz\n")
    assert store.read_text(path) == "é\r\nz\n"
    assert pathlib.Path(path).read_bytes() == b"\xc3\xa9\r\nz\n"


def test_json_is_sorted_indented_and_ends_with_a_newline(tmp_path):
    path = store.join(tmp_path, "a.json")
    store.write_json(path, {"b": [1], "a": "é"})
    assert store.read_text(path) == '{\n "a": "é",\n "b": [\n  1\n ]\n}\n'
    assert store.read_json(path) == {"a": "é", "b": [1]}


@pytest.mark.parametrize("value", [float("nan"), [float("inf")]])
def test_json_refuses_what_is_not_json_and_keeps_the_old_file(tmp_path, value):
    path = store.join(tmp_path, "a.json")
    store.write_json(path, 1)
    with pytest.raises(ValueError, match="a.json"):
        store.write_json(path, value)
    assert store.read_json(path) == 1


def test_damaged_text_and_json_name_the_file(tmp_path):
    path = store.join(tmp_path, "a.json")
    store.write_bytes(path, b"{")
    with pytest.raises(ValueError, match="a.json: not JSON.*line 1"):
        store.read_json(path)
    store.write_bytes(path, b"\xff")
    with pytest.raises(ValueError, match="a.json: not UTF-8"):
        store.read_text(path)


def test_append_lines(tmp_path):
    path = store.join(tmp_path, "a.jsonl")
    store.append_lines(path, ["a", "é"])
    store.append_lines(path, [])
    store.append_lines(path, iter(["b"]))
    assert store.read_text(path) == "a\né\nb\n"
    with pytest.raises(ValueError, match="line break"):
        store.append_lines(path, ["c", "d\ne"])
    assert store.read_text(path) == "a\né\nb\n"


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = store.join(tmp_path, "a.txt")
    store.write_text(path, "old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="a.txt: cannot write: No space left"):
        store.write_text(path, "new")
    assert store.read_text(path) == "old"
    assert store.listdir(str(tmp_path)) == ["a.txt"]


def test_written_files_have_ordinary_permissions(tmp_path):
    plain = tmp_path / "plain"
    plain.write_text("")
    store.write_text(store.join(tmp_path, "a"), "")
    assert (tmp_path / "a").stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize(
    "f",
    [
        store.read_bytes,
        store.read_text,
        store.read_json,
        store.listdir,
        store.remove,
        store.remove_tree,
        store.sha256_file,
        lambda path: store.move(path, path + ".to"),
        lambda path: store.write_text(path + "/b", ""),
        lambda path: store.append_lines(path + "/b", ["x"]),
    ],
)
def test_missing_names_the_path(tmp_path, f):
    path = store.join(tmp_path, "missing")
    with pytest.raises(FileNotFoundError, match="missing.*: cannot .*: no "):
        f(path)


def test_a_file_in_the_way_is_named(tmp_path):
    path = store.join(tmp_path, "file")
    store.write_text(path, "")
    for f in (store.makedirs, lambda p: store.write_text(p + "/x", "")):
        with pytest.raises(OSError, match="/file.*: cannot "):
            f(path)


def test_folders(tmp_path):
    root = store.join(tmp_path, "r")
    store.makedirs(store.join(root, "b", "c"))
    store.makedirs(root)
    store.write_text(store.join(root, "b", "c", "y"), "")
    store.write_text(store.join(root, "a"), "")
    store.write_text(store.join(root, "b", "x"), "")
    assert store.is_dir(root) and not store.is_dir(store.join(root, "a"))
    assert store.listdir(root) == ["a", "b"]
    assert store.walk(root) == ["a", "b/c/y", "b/x"]
    store.move(store.join(root, "b"), store.join(root, "d"))
    with pytest.raises(FileExistsError, match="exists"):
        store.move(store.join(root, "a"), store.join(root, "d"))
    store.remove(store.join(root, "a"))
    assert store.walk(root) == ["d/c/y", "d/x"]
    store.remove_tree(root)
    assert not store.exists(root)


def test_sha256_of_a_file_larger_than_a_block(tmp_path):
    data = os.urandom((1 << 20) + 7)
    path = store.join(tmp_path, "a")
    store.write_bytes(path, data)
    assert store.sha256_file(path) == hashlib.sha256(data).hexdigest()
