"""Where the steps of a response end in its text.

The steps are the response, cut into pieces: their words in their order, with nothing
but white space between them. So an end is found by lengths, never by a separator.

>>> ends(["So 2 + 2 = 4.\\n\\nIt is 4."], ["So 2 + 2 = 4.", "It is 4."])
[(0, 13), (0, 23)]
"""

from collections.abc import Sequence


class StepError(ValueError):
    """Steps that are not the response; `step` is the first that is wrong."""

    def __init__(self, step: int, why: str):
        super().__init__(why)
        self.step = step


def ends(texts: Sequence[str], steps: Sequence[str]) -> list[tuple[int, int]]:
    """(message, characters up to its end) of each step; white space goes to the next.

    Args:
      texts: content of each message of a response.
      steps: text of each step; white space around it does not count.

    Raises:
      StepError: a step is blank, is not what comes next, or something is left over.
    """
    found, message, at = [], 0, 0
    for j, step in enumerate(steps):
        words = step.strip()
        if not words:
            raise StepError(j, "a step without words")
        while message < len(texts) - 1 and not texts[message][at:].strip():
            message, at = message + 1, 0
        rest = texts[message][at:].lstrip()
        if not rest.startswith(words):
            raise StepError(
                j,
                f"the steps must be the response in its order: it goes on with "
                f"{rest[:40]!r}, the step is {words[:40]!r}",
            )
        at = len(texts[message]) - len(rest) + len(words)
        found.append((message, at))
    left = " ".join([texts[message][at:], *texts[message + 1 :]]).strip()
    if steps and left:
        raise StepError(
            len(steps) - 1, f"{left[:40]!r} of the response is in none of its steps"
        )
    return found
