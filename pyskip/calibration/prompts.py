"""What the model is asked to write when it is calibrated on its own text: many kinds, none of them any test's."""

from __future__ import annotations

__all__ = ["PROMPTS"]

PROSE = (
    "Write an encyclopaedia article about a river.",
    "Write an encyclopaedia article about a war of the Middle Ages, with dates and numbers.",
    "Write an encyclopaedia article about a chemical element.",
    "Write a newspaper report about an election in a small country.",
    "Write the first chapter of a novel that is set in a harbour town.",
    "Write a dialogue between a doctor and a patient.",
    "Write a poem in four stanzas about winter.",
    "Write a disappointed review of a washing machine.",
    "Write a biography of a composer.",
    "Summarise the plot of a famous play.",
    "Write a scientific abstract about the climate of the past.",
    "Write a legal contract between a seller and a buyer.",
)
HELP = (
    "Write a formal letter to a landlord.",
    "Write a recipe with a list of ingredients and numbered steps.",
    "Explain step by step how to solve a quadratic equation, with an example.",
    "Explain how a vaccine works.",
    "Write the minutes of a meeting.",
    "Give me tips for a job interview as a Markdown list with bold headings.",
    "Write a table in Markdown that compares five cities.",
    "Ask me ten questions of general knowledge, with the answers.",
)
CODE = (
    "Write a Python module with two classes and docstrings that manages a library.",
    "Write a C program that reads a file and counts words.",
    "Write a JavaScript function that validates a form, and explain it.",
    "Write SQL statements that create and query the tables of a shop.",
    "Write a shell script that makes backups, with comments.",
    "Write an HTML page with a table.",
    "Write a configuration file in YAML for a web service.",
    "Write a JSON document that describes ten books.",
    "Write a manual page for a command-line program that sorts files.",
    "Write unit tests in Java for a bank account.",
)
LANGUAGES = (
    "Schreibe einen Artikel über die Geschichte einer Stadt.",
    "Écris un article de journal sur une découverte scientifique.",
    "Escribe un cuento corto sobre un viaje.",
    "Scrivi una guida per installare un programma.",
    "Напиши рассказ про космос.",
    "写一篇关于历史的文章。",
    "日本の四季について説明してください。",
    "인공지능에 대해 설명해 주세요.",
    "Napisz krótki artykuł o nauce.",
    "Translate a short text about trade into French, German and Russian, sentence by sentence.",
)


def _in_turns(*lists: tuple[str, ...]) -> tuple[str, ...]:
    """Any few in a row are of different kinds."""
    placed = [((i + 0.5) / len(each), prompt) for each in lists for i, prompt in enumerate(each)]
    return tuple(prompt for _, prompt in sorted(placed))


PROMPTS = _in_turns(PROSE, HELP, CODE, LANGUAGES)
