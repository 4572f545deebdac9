r"""Free text for pdflatex: ASCII alone comes out.

>>> print(escaped("λ ≤ 5 % of a_b, naïve"))
\ensuremath{\lambda} \ensuremath{\leq} 5 \% of a\_b, na\"{i}ve
"""

import unicodedata

# Characters that LaTeX takes for its own, and signs of text.
_TEXT = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "–": "--", "—": "---", "…": r"\ldots{}", "‘": "`", "’": "'", "“": "``", "”": "''",
    '"': "''", "|": r"\textbar{}", "ß": r"\ss{}", "ø": r"\o{}", "Ø": r"\O{}",
    "æ": r"\ae{}", "Æ": r"\AE{}", "ł": r"\l{}", "Ł": r"\L{}", "§": r"\S{}",
    "\u00a0": "~", **{c: f"\\{c}" for c in "&%$#_{}"},
}  # fmt: skip
_MATH = {
    "<": "<", ">": ">", "±": r"\pm", "−": "-", "×": r"\times", "·": r"\cdot",
    "≤": r"\leq", "≥": r"\geq", "≠": r"\neq", "≈": r"\approx", "∼": r"\sim",
    "√": r"\surd", "∞": r"\infty", "∑": r"\sum", "∈": r"\in",
    "→": r"\to", "←": r"\leftarrow", "°": r"^{\circ}", "µ": r"\mu", "∂": r"\partial",
    "²": "^{2}", "³": "^{3}", "‖": r"\|", "ϵ": r"\epsilon",
}  # fmt: skip
_GREEK = {
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "varepsilon",
    "ζ": "zeta", "η": "eta", "θ": "theta", "ι": "iota", "κ": "kappa", "λ": "lambda",
    "μ": "mu", "ν": "nu", "ξ": "xi", "π": "pi", "ρ": "rho", "ς": "varsigma",
    "σ": "sigma", "τ": "tau", "υ": "upsilon", "φ": "varphi", "χ": "chi", "ψ": "psi",
    "ω": "omega", "Γ": "Gamma", "Δ": "Delta", "Θ": "Theta", "Λ": "Lambda", "Ξ": "Xi",
    "Π": "Pi", "Σ": "Sigma", "Υ": "Upsilon", "Φ": "Phi", "Ψ": "Psi", "Ω": "Omega",
}  # fmt: skip
_MATH |= {letter: f"\\{name}" for letter, name in _GREEK.items()}
_ACCENTS = {
    "\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0304": "=",
    "\u0306": "u", "\u0307": ".", "\u0308": '"', "\u030a": "r", "\u030b": "H",
    "\u030c": "v", "\u0327": "c",
}  # fmt: skip


def escaped(text: str) -> str:
    """The text as pdflatex takes it, in its default encoding and without packages.

    Greek and signs of mathematics become commands, accented letters \\'{e}. What has no
    command becomes its number, [U+4E2D]: it is seen to be missing, nothing stops.
    """
    return "".join(map(_one, text))


def _one(char: str) -> str:
    if char in _TEXT:
        return _TEXT[char]
    if char in _MATH:
        return f"\\ensuremath{{{_MATH[char]}}}"
    if " " <= char <= "~":
        return char
    base, *marks = unicodedata.normalize("NFD", char)
    if len(marks) == 1 and marks[0] in _ACCENTS and base.isascii() and base.isalpha():
        return f"\\{_ACCENTS[marks[0]]}{{{base}}}"
    return f"[U+{ord(char):04X}]"
