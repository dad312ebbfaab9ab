"""Prompts to make a model talk about many things in many ways: what recipes train on, made without any data set.

They share no text with the questions that decodery is measured on, so a measurement on those is one on unseen prompts.
"""

from __future__ import annotations

import numpy as np

ASKS = (
    "Write a short letter in which someone explains to an old friend how they came to care about {}.",
    "Explain {} to a ten-year-old child in a few sentences.",
    "What are the most common mistakes that people make with {}? Give a list.",
    "Tell me a short story in which {} plays an important part.",
    "Compare {} with {}. What do they have in common and where do they differ?",
    "Give me five practical tips about {}.",
    "Write a Python class with two methods that models {}. Add short comments.",
    "Write a Python function that reads a list of records about {} and prints the three largest.",
    "A shop sells things for {} at 14 euros each and things for {} at 9 euros each. Somebody buys 3 of the first kind and "
    "5 of the second and pays with a note of 100 euros. How much change is there? Think step by step.",
    "Summarise in two sentences what everybody should know about {}.",
    "Is the following sentence true? Many towns owe their wealth to {}. Discuss it.",
    "Write an encyclopedia entry about the history of {}.",
    "Translate into French and then into German: we talked all evening about {} and forgot the time.",
    "Write a dialogue between two neighbours who disagree about {}.",
    "Make a table in Markdown with three columns about {}: name, use, price.",
    "Which questions about {} are still open? Answer like a scientist.",
    "Write an e-mail to a customer who complained about {}.",
    "Passage: the museum shows a collection about {} from nine countries; it opens at ten and closes at five, and on Mondays "
    "it stays shut. A visit costs 6 euros. Question: when can I visit it, and what does it cost?",
    "Write a poem of eight lines about {} and {}.",
    "What would change in daily life if there were no {} any more?",
    "Extract all nouns from this sentence and put each on a line of its own: the woman from the harbour sold {} and {} to "
    "a man with a red hat.",
    "How does {} work? Explain the causes one after another.",
    "Translate German to English: Gestern haben wir auf dem Markt lange mit einer Frau gesprochen, die alles über {} wusste.",
    "Translate German to English: Die Regierung will im nächsten Jahr mehr Geld für {} ausgeben, sagte die Ministerin am "
    "Montag.",
    "Who first wrote about {}, and when?",
    "Where in the world is one most likely to see {}?",
    "Summarize: The town council met on Tuesday evening to decide what should happen with the old hall. Several speakers asked "
    "that it be used for {}. Others wanted {} instead. After three hours the council voted, nine to four, for a trial of two "
    "years. The mayor said that she was content with the result and thanked everybody who had come.\nTL;DR:",
    "Use the passages to answer. Passage 1: interest in {} has doubled within ten years. Passage 2: schools now teach it from "
    "the sixth grade on. Passage 3: experts warn that good teachers are rare. Question: why is it hard to learn more about it?",
    "In one week 48 visitors came to see {}. In the next week half as many came, and in the third week three times as many as "
    "in the second. How many visitors came in the three weeks altogether?",
    "You are a detective in a novel. Describe the room in which you found {} and say whom you suspect.",
    "Write a blog post about a journey on which you learned about {}. Name three things one must see.",
    "Solve step by step: a box holds {}, numbered from 1 to 20. What is the chance that two drawn at random are both even?",
)
TOPICS = (
    "lighthouses", "honey", "tides", "bicycles", "old maps", "volcanoes", "paper", "sourdough bread", "violins", "whales",
    "railways", "clouds", "chess", "vaccines", "copper", "penguins", "tax forms", "cheese", "bridges", "the moon",
    "earthquakes", "tea", "compilers", "dictionaries", "salt", "solar panels", "wolves", "glass", "mathematics", "football",
    "the printing press", "coral reefs", "public libraries", "batteries", "dreams", "pottery", "rivers", "trees in cities",
    "radio", "coffee", "passwords", "mountain rescue", "opera", "elections", "ants", "steel", "photography", "the human eye",
    "swimming", "medieval castles", "sorting algorithms", "gardens", "markets", "ice", "diaries", "robots", "wheat",
    "sailing ships", "probability", "kitchens", "satellites", "insurance", "folk music", "deserts",
    "bees", "the stock exchange", "sleep", "novels", "tomatoes", "airports", "magnets", "vegetable soup", "tunnels",
    "gravity", "cotton", "kings and queens", "the internet", "horses", "islands", "tennis", "evolution", "letters",
    "oil paintings", "dams", "spices", "glaciers", "museums", "the piano", "unemployment", "microscopes", "carpets", "foxes",
    "electric cars", "poetry", "pensions", "rain", "the heart", "theatre", "logic puzzles", "plastic", "owls",
    "trade routes", "marathons", "newspapers", "black holes", "chocolate", "philosophy", "ferries", "bacteria",
    "wooden houses", "calendars", "cinema", "rice", "prisons", "fireworks", "elephants", "statistics", "cathedrals",
    "fishing", "video games", "forests", "the brain", "jazz", "nurses", "clocks", "wine", "public transport", "languages",
)  # fmt: skip


def varied_prompts(count: int, seed: int = 0, kinds: int = len(ASKS), topics: int = len(TOPICS)) -> list[str]:
    """`count` different prompts of the first so many kinds and topics, the same for the same arguments. Raises ValueError where
    there are not so many."""
    kinds, topics = min(kinds, len(ASKS)), min(topics, len(TOPICS))
    if count > kinds * topics:
        raise ValueError(f"there are {kinds * topics} prompts, not {count}")
    generator = np.random.Generator(np.random.Philox(key=seed))
    prompts = []
    for place in generator.permutation(kinds * topics)[:count].tolist():
        ask, topic = ASKS[place % kinds], place // kinds
        others = [TOPICS[(topic + 1 + int(generator.integers(topics - 1))) % topics] for _ in range(2)]
        prompts.append(ask.format(TOPICS[topic], *others))
    return prompts
