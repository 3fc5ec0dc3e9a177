"""What the model is asked to write when it is calibrated on its own text: many kinds, none of them any test's."""

from __future__ import annotations

import random

__all__ = ["PROMPTS", "many_prompts"]

N_MANY = 800

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

# For distillation, which has room for more: any of these about any of those.
FORMS = (
    "Explain {} to a beginner.",
    "What are the advantages and disadvantages of {}?",
    "Write a short story in which {} matters.",
    "Give me five facts about {}, with numbers.",
    "I am anxious about {}. What would you tell me?",
    "Write an e-mail to a colleague about {}.",
    "Compare {} with something similar, in a table.",
    "How has {} changed over the last hundred years?",
    "Invent a riddle about {} and solve it step by step.",
    "Pretend to be an expert in {} and answer three questions from the audience.",
    "Write the outline of a talk about {}.",
    "Make up a word problem about {} with three numbers, and compute the answer.",
    "Write a Python function that has to do with {}, and explain it.",
    "What do people often get wrong about {}?",
    "Write a limerick about {}.",
    "Plan a week around {}, day by day.",
    "List the words one needs to speak about {}, each with a definition.",
    "Write a news headline and two paragraphs about {}.",
    "Write JSON that describes {}, then what each field means.",
    "Argue for and against {} as two friends would in a conversation.",
    "What causes {}, and what follows from it?",
    "Ask me questions about {} until you know what I need, then recommend something.",
    "Tell a child of six about {}.",
    "Criticise this opinion: {} is overrated.",
)
TOPICS = (
    "bicycles", "the moon", "inflation", "bread", "chess", "glaciers", "the human heart", "railways", "sorting a list",
    "electric cars", "the Roman Empire", "photosynthesis", "small talk", "earthquakes", "public libraries", "coffee",
    "prime numbers", "migratory birds", "a broken promise", "football", "black holes", "learning a language",
    "house plants", "elections", "databases", "the violin", "moving to another city", "antibiotics", "deserts", "tax",
    "sleep", "the printing press", "a lost key", "wind power", "probability", "dogs", "film directors", "the deep sea",
    "friendship", "bridges", "a first day at work", "regular expressions", "volcanoes", "fashion", "cryptography",
    "the Silk Road", "cooking for eight people", "robots", "mushrooms", "apologies", "maps", "DNA", "gardens in winter",
    "unit tests", "the Olympic Games", "saving money", "rainbows", "medieval towns", "a noisy neighbour", "magnets",
    "jazz", "satellites", "the metric system", "stage fright", "web servers",
)  # fmt: skip


def many_prompts(seed: int) -> tuple[str, ...]:
    """PROMPTS, and as many again of other kinds as a large text needs so as not to repeat itself."""
    pairs = [form.format(topic) for form in FORMS for topic in TOPICS]
    return PROMPTS + tuple(random.Random(seed).sample(pairs, N_MANY))
