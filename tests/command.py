"""Command lines and what they print, for the tests of main and of arguments."""

import json

ROW = {"prompt": "Two and two?", "responses": ["Four.", "Five."], "ranks": [0, 1]}


def rows(path, *lines):
    """A jsonl file of rows, or of lines of text as they are."""
    text = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text("".join(f"{line}\n" for line in text))
    return path


def assert_one_line(code, err, *parts):
    """The last line is the error, the only one, and has all the parts."""
    assert code == 1
    *before, last = err.splitlines()
    assert last.startswith("rm-jax: ") and "Traceback" not in err
    assert not any(line.startswith("rm-jax: ") for line in before)
    for part in parts:
        assert part in last
    return before


def never(*_):
    raise AssertionError("the model is loaded")
