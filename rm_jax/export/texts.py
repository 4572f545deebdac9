"""Conversations that golden.jsonl scores: short, unlike one another, made up here."""

PROMPTS = (
    "Hi",
    "What is 2 + 2?",
    "Name a fruit.",
    "¿Qué hora es?",
    "Is the sky green?",
    "Say nothing.",
    "Write x = 1 in C.",
    "你好吗?",
)
RESPONSES = (
    "Yes.",
    "I do not know, sorry.",
    "int x = 1; // ok\n",
    "🙂 4, of course!",
)
CONVERSATIONS = tuple((p, r) for p in PROMPTS for r in RESPONSES)
