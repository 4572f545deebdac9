"""The phrases of the synthetic world, as tables indexed by integers.

A response is one row of OPENINGS and some of SENTENCES, joined as they stand:

>>> OPENINGS[opening(claim=0, true=1, mode=AGREE, wording=0)]
'Yes, copper conducts electricity well.'
>>> SENTENCES[sentence(fact(topic=1, index=2), MARKERS.index("bold"))]
' **Young** bees hatch from tiny eggs.'
"""

import functools
import re

import numpy as np
from jaxtyping import Int

from rm_jax.data.schema import ROLES

# topic -> (facts, each naming the topic; claims as (true, false) of equal length)
TOPICS = {
    "metals": (
        (
            "Wet air makes many metals rust.",
            "Metals carry heat very well.",
            "Some metals melt over a small fire.",
            "Heavy metals sink in water.",
            "Most metals shine when polished.",
            "Mixed metals are called alloys.",
        ),
        (
            ("copper conducts electricity well", "copper conducts electricity badly"),
            ("mercury is liquid in a warm room", "mercury is solid in a warm room"),
            ("gold is heavier than iron", "gold is lighter than iron"),
            ("aluminium is a light metal", "aluminium is a heavy metal"),
        ),
    ),
    "bees": (
        (
            "Bees collect nectar from flowers.",
            "Working bees dance to show a path.",
            "Young bees hatch from tiny eggs.",
            "In winter bees keep each other warm.",
            "Wild bees nest in the ground.",
            "Smoke calms angry bees.",
        ),
        (
            ("worker bees are female", "worker bees are male"),
            ("bees can see blue flowers", "bees cannot see blue flowers"),
            ("honey bees live in large groups", "honey bees live in small pairs"),
            ("a bee has six legs", "a bee has eight legs"),
        ),
    ),
    "bread": (
        (
            "Yeast makes bread rise.",
            "Salt gives bread more taste.",
            "Bread needs a hot oven.",
            "Old bread makes fine toast.",
            "Fresh bread has a crisp crust.",
            "Good bread needs time to rest.",
        ),
        (
            ("yeast works faster in warm dough", "yeast works slower in warm dough"),
            ("strong flour has more protein", "strong flour has less protein"),
            ("whole grain bread has more fibre", "whole grain bread has less fibre"),
            ("steam helps the crust", "steam harms the crust"),
        ),
    ),
    "rivers": (
        (
            "Rivers carry sand to the sea.",
            "Rain and snow feed most rivers.",
            "Old rivers bend across the plain.",
            "Dams make rivers store energy.",
            "Flooding rivers leave rich soil.",
            "Many towns began beside rivers.",
        ),
        (
            ("rivers flow from high ground", "rivers flow from low ground"),
            (
                "fresh water freezes before salt water",
                "fresh water freezes after salt water",
            ),
            ("the inner bend flows slower", "the inner bend flows faster"),
            ("most rivers end in the sea", "most rivers begin in the sea"),
        ),
    ),
    "stars": (
        (
            "Stars turn hydrogen into helium.",
            "Blue stars are very hot.",
            "Dust clouds give birth to stars.",
            "Large stars die in explosions.",
            "Sailors once found their way by stars.",
            "Many stars have planets around them.",
        ),
        (
            ("red stars are cooler than blue", "red stars are hotter than blue"),
            ("the sun is a star", "the sun is a planet"),
            ("heavy stars live shorter lives", "heavy stars live longer lives"),
            ("the moon reflects light", "the moon produces light"),
        ),
    ),
    "music": (
        (
            "Steady beats give music its rhythm.",
            "Slow music sounds calm.",
            "Written music uses five lines.",
            "Loud music can harm the ears.",
            "Music has high and low notes.",
            "Chords add colour to music.",
        ),
        (
            ("a violin has four strings", "a violin has six strings"),
            (
                "a cello sounds lower than a violin",
                "a cello sounds higher than a violin",
            ),
            ("an octave doubles the frequency", "an octave triples the frequency"),
            ("a flute is a wind instrument", "a flute is a string instrument"),
        ),
    ),
    "gardens": (
        (
            "Gardens need water and warm soil.",
            "Compost feeds most gardens.",
            "Worms bring air into gardens.",
            "Birds eat insects in gardens.",
            "Walls keep small gardens warm.",
            "Beans give gardens more nitrogen.",
        ),
        (
            ("tomatoes need a lot of sun", "tomatoes need a lot of shade"),
            ("leaves make sugar from light", "roots make sugar from light"),
            ("a cactus needs little water", "a cactus needs much water"),
            ("frost harms young plants", "frost helps young plants"),
        ),
    ),
    "bicycles": (
        (
            "A chain drives most bicycles.",
            "Low gears help bicycles on hills.",
            "Bicycles need good brakes.",
            "Light bicycles are easier to lift.",
            "Soft tyres slow bicycles down.",
            "Moving bicycles balance by steering.",
        ),
        (
            ("a bicycle has two wheels", "a bicycle has four wheels"),
            (
                "oil reduces friction in the chain",
                "oil increases friction in the chain",
            ),
            ("a low gear makes climbing easier", "a low gear makes climbing harder"),
            ("wide tyres grip better on sand", "wide tyres grip worse on sand"),
        ),
    ),
}
FACTS, CLAIMS = 6, 4  # of each topic
FILLERS = (
    "I hope that this helps you.",
    "Please ask me again at any time.",
    "There is always more to say.",
    "It is good that you asked this.",
    "Many people wonder about such things.",
    "Let us look at it together.",
    "That is what I can tell you.",
    "Thank you for your nice question.",
)
MARKERS = ("none", "list", "bold", "hedge")

# Mode of an opening -> its wordings; wording i has the same length in every mode.
AGREE, DISAGREE, NEUTRAL = 0, 1, 2
_WORDINGS = (
    ("Yes, {}.", "You are right, {}.", "I agree that {}."),
    ("No, {}.", "You are mistaken, {}.", "I disagree, since {}."),
    ("Briefly, {}.", "In short words, {}.", "It seems that {}."),
)
N_WORDINGS = 3
QUESTIONS = (
    "What should I know about {}?",
    "Can you tell me about {}?",
    "Please explain {} to me.",
    "What is worth knowing about {}?",
)
STANCES = (
    "I am sure that {}.",
    "I believe that {}.",
    "Everyone says that {}.",
    "My teacher told me that {}.",
)
FIRST, LAST, CITY = (
    names.split()
    for names in (
        "Ada Ben Cleo Dan Eva Finn Gus Hana Ida Jon Kim Leo Mia Ned Ola Pia Quin Rosa "
        "Sam Tess Uma Vera Will Xenia Yan Zoe Abel Bea Carl Dora Emil Faye",
        "Abbott Baker Carter Dixon Ellis Fisher Grant Hale Irwin Jones Keller Lowe "
        "Mason Nolan Owens Parker Quill Reed Stone Turner Usher Vance Walsh Xu Young "
        "Zeller Archer Brook Cole Drake Eaton Frost",
        "Athens Berlin Cairo Delhi Essen Fargo Geneva Havana Izmir Jakarta Kyoto "
        "Lisbon Madrid Nairobi Oslo Paris Quito Rome Seoul Tunis Utrecht Vienna Warsaw "
        "Xian York Zurich Accra Bergen Cork Dakar Espoo Fes",
    )
)
PEOPLE = 32  # names in each of the three lists


def words(text: str) -> int:
    """Words of a text: runs of letters and digits, punctuation not counted."""
    return len(re.findall(r"\w+", text))


def fact(topic: int, index: int) -> int:
    """Statement number of a topic's fact; fillers follow after all topics."""
    return topic * FACTS + index


def sentence(statement: int, marker: int) -> int:
    """Row of SENTENCES for a statement with a style marker."""
    return statement * len(MARKERS) + marker


def opening(claim: int, true: int, mode: int, wording: int) -> int:
    """Row of OPENINGS: states the claim's true or false side in a mode."""
    return ((claim * 2 + true) * len(_WORDINGS) + mode) * N_WORDINGS + wording


def opening_kind(row: Int[np.ndarray, "*n"]) -> tuple[np.ndarray, np.ndarray]:
    """(true, mode) of rows of OPENINGS."""
    row = row // N_WORDINGS
    return row // len(_WORDINGS) % 2, row % len(_WORDINGS)


def _marked(text: str) -> tuple[str, ...]:
    first, rest = text.split(" ", 1)
    return (
        f" {text}",
        f"\n- {text}",
        f" **{first}** {rest}",
        f" Perhaps {text[0].lower()}{text[1:]}",
    )


def _count(texts: tuple[str, ...]) -> Int[np.ndarray, "rows"]:
    return np.array([words(text) for text in texts])


_FACTS = [text for facts, _ in TOPICS.values() for text in facts]
_CLAIMS = [claim for _, claims in TOPICS.values() for claim in claims]
# The last row of SENTENCES is "no sentence": index -1 adds nothing to a text.
SENTENCES = (*(s for text in (*_FACTS, *FILLERS) for s in _marked(text)), "")
SENTENCE_WORDS = _count(SENTENCES)
OPENINGS = tuple(
    wording.format(claim)
    for true_false in _CLAIMS
    for claim in reversed(true_false)
    for wordings in _WORDINGS
    for wording in wordings
)
OPENING_WORDS = _count(OPENINGS)
# How the user states a belief: [claim][true][wording].
STATED = [
    [[s.format(claim) for s in STANCES] for claim in reversed(true_false)]
    for true_false in _CLAIMS
]
ASKED = [[q.format(topic) for q in QUESTIONS] for topic in TOPICS]  # [topic][wording]


def greeting(first: int, last: int, city: int) -> str:
    """First sentence of a prompt: who is asking."""
    return f"{FIRST[first]} {LAST[last]} from {CITY[city]} here."


@functools.cache
def _vocabulary() -> tuple[str, ...]:
    stated = [text for true in STATED for texts in true for text in texts]
    asked = [text for texts in ASKED for text in texts]
    people = [greeting(i, i, i) for i in range(PEOPLE)]
    texts = [*SENTENCES, *OPENINGS, *stated, *asked, *people, *ROLES]
    return tuple(sorted({w for t in texts for w in re.findall(r"\w+|[^\w\s]", t)}))


def vocabulary() -> list[str]:
    r"""Every token the world can emit, and the chat roles, sorted, case-sensitive.

    Tokens are what the pattern ``\w+|[^\w\s]`` finds: words and single marks.
    """
    return list(_vocabulary())
