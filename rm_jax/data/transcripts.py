"""Transcripts of "Human:" and "Assistant:" turns: HH-RLHF, and Nectar's prompts.

>>> transcript_turns({"chosen": "\\n\\nHuman: hi\\n\\nAssistant: hello"}, "chosen",
...                  Place("demo", 1))
[Message(role='user', content='hi'), Message(role='assistant', content='hello')]
"""

import re

from rm_jax.data.rows import Place, Row, text_field
from rm_jax.data.schema import Message, Record, RowError, shown

_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def transcript_turns(row: Row, field: str, place: Place) -> list[Message]:
    """The turns of the transcript in that field; the last is an assistant's.

    Raises:
      RowError: it does not start with "Human:", or has no prompt before that turn.
    """
    text = text_field(row, field, place)
    before, *parts = _TURN.split(text)
    turns = [
        Message(_ROLES[who], content.strip())
        for who, content in zip(parts[::2], parts[1::2], strict=True)
    ]
    if before.strip() or not turns:
        raise RowError(
            str(place), field, f"does not start with 'Human:': {shown(text)}"
        )
    if turns[-1].role != "assistant" or len(turns) == 1:
        raise RowError(
            str(place), field, "wants a prompt and then, last, an 'Assistant:' turn"
        )
    return turns


def hh(row: Row, place: Place) -> list[Record]:
    """Two transcripts; the prompt is their longest common run of whole turns.

    With nothing in common the prompt is the chosen side's and the responses are the
    last turns; that record too is marked as diverging.
    """
    sides = [transcript_turns(row, field, place) for field in ("chosen", "rejected")]
    n = 0
    while n < min(map(len, sides)) - 1 and sides[0][n] == sides[1][n]:
        n += 1
    diverging = any(n != len(turns) - 1 for turns in sides)
    responses = tuple(tuple(turns[n or -1 :]) for turns in sides)
    return [
        Record(
            id=place.id,
            source=place.source,
            prompt=tuple(sides[0][: n or -1]),
            responses=responses,
            ranks=(0, 1),
            meta={"audit": "diverging_prompts"} if diverging else {},
        )
    ]
