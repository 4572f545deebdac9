"""Text for pdflatex: what comes out is ASCII."""

import pytest

from rm_jax.report import tex


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("a_b & 5 % #1 {x} $", r"a\_b \& 5 \% \#1 \{x\} \$"),
        ("~^\\", r"\textasciitilde{}\textasciicircum{}\textbackslash{}"),
        ("α ≤ Ω", r"\ensuremath{\alpha} \ensuremath{\leq} \ensuremath{\Omega}"),
        ("ς", r"\ensuremath{\varsigma}"),
        ("±√λ", r"\ensuremath{\pm}\ensuremath{\surd}\ensuremath{\lambda}"),
        ("naïve Čech", r"na\"{i}ve \v{C}ech"),
        ("“so” – it’s —", "``so'' -- it's ---"),
        ("中 \x07", "[U+4E2D] [U+0007]"),
        ("e\u0301", r"e[U+0301]"),
        ("<>|", r"\ensuremath{<}\ensuremath{>}\textbar{}"),
    ],
)
def test_what_latex_gets(text, want):
    found = tex.escaped(text)
    assert found == want and found.isascii()
