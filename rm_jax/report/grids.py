"""A table as text, Markdown or LaTeX.

>>> grid = Grid(("loss", "accuracy"), (("bt", "0.71 ± 0.02"), ("a_b", "0.7")))
>>> print(FORMATS["text"](grid))
loss  accuracy
bt    0.71 ± 0.02
a_b   0.7
>>> print(FORMATS["markdown"](grid).splitlines()[1])
| :--- | :--- |
"""

from collections.abc import Callable
from typing import NamedTuple

from rm_jax.report import tex


class Grid(NamedTuple):
    """Headings, rows of as many texts, and a caption or ""."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""


def _text(grid: Grid) -> str:
    whole = [tuple(map(_line, row)) for row in (grid.headings, *grid.rows)]
    widths = [max(map(len, column)) for column in zip(*whole, strict=True)]
    lines = (
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True))
        for row in whole
    )
    head = [grid.caption] if grid.caption else []
    return "\n".join([*head, *(line.rstrip() for line in lines)])


def _markdown(grid: Grid) -> str:
    clean = lambda cell: _line(cell).replace("|", "\\|")
    line = lambda cells: f"| {' | '.join(map(clean, cells))} |"
    marks = [":---"] * len(grid.headings)
    head = [f"**{grid.caption}**", ""] if grid.caption else []
    return "\n".join([*head, *map(line, (grid.headings, marks, *grid.rows))])


def _latex(grid: Grid) -> str:
    """A tabular for the package booktabs, in a table where it has a caption."""
    lines = [
        f"\\begin{{tabular}}{{{'l' * len(grid.headings)}}}",
        "\\toprule",
        _row(grid.headings),
        "\\midrule",
        *map(_row, grid.rows),
        "\\bottomrule",
        "\\end{tabular}",
    ]
    if grid.caption:
        caption = f"\\caption{{{tex.escaped(grid.caption)}}}"
        lines = ["\\begin{table}", caption, *lines, "\\end{table}"]
    return "\n".join(lines)


def _row(cells: tuple[str, ...]) -> str:
    """A row of a tabular; a [ or * that begins it would be an argument of the last."""
    text = " & ".join(tex.escaped(_line(cell)) for cell in cells)
    return f"{'{}' * text.startswith(('[', '*'))}{text} \\\\"


def _line(cell: str) -> str:
    """A cell on one line."""
    return " ".join(cell.split())


FORMATS: dict[str, Callable[[Grid], str]] = {
    "text": _text,
    "markdown": _markdown,
    "latex": _latex,
}
