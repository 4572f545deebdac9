"""A table as text, Markdown or LaTeX.

>>> grid = Grid(("loss", "accuracy"), (("bt", "0.71 ± 0.02"), ("a_b", "0.7")))
>>> print(FORMATS["text"](grid))
loss  accuracy
bt    0.71 ± 0.02
a_b   0.7
>>> print(FORMATS["markdown"](grid).splitlines()[1])
| :--- | :--- |
"""

import re
from collections.abc import Callable
from typing import NamedTuple

# Characters that LaTeX takes for its own.
_TEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "±": r"$\pm$", "−": "$-$", "–": "--", "—": "---", "×": r"$\times$", "<": "$<$",
    ">": "$>$", **{c: f"\\{c}" for c in "&%$#_{}"},
}  # fmt: skip


class Grid(NamedTuple):
    """Headings, and rows of as many texts."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def _text(grid: Grid) -> str:
    whole = (grid.headings, *grid.rows)
    widths = [max(map(len, column)) for column in zip(*whole, strict=True)]
    lines = (
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True))
        for row in whole
    )
    return "\n".join(line.rstrip() for line in lines)


def _markdown(grid: Grid) -> str:
    line = lambda cells: (
        f"| {' | '.join(c.replace('|', chr(92) + '|') for c in cells)} |"
    )
    marks = [":---"] * len(grid.headings)
    return "\n".join(map(line, (grid.headings, marks, *grid.rows)))


def _latex(grid: Grid) -> str:
    """A tabular for the package booktabs."""
    clean = lambda cell: re.sub(r"[^\w\s]|_", lambda m: _TEX.get(m[0], m[0]), cell)
    line = lambda cells: f"{' & '.join(map(clean, cells))} \\\\"
    return "\n".join(
        [
            f"\\begin{{tabular}}{{{'l' * len(grid.headings)}}}",
            "\\toprule",
            line(grid.headings),
            "\\midrule",
            *map(line, grid.rows),
            "\\bottomrule",
            "\\end{tabular}",
        ]
    )


FORMATS: dict[str, Callable[[Grid], str]] = {
    "text": _text,
    "markdown": _markdown,
    "latex": _latex,
}
