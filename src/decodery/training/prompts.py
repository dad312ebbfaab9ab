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
    "Imagine that you are an old teacher who has seen everything. Tell your class what you think of {}.",
    "Write a product description for a new kind of {}. Mention price, size and colour.",
    "Rewrite this politely: your report on {} is too long and nobody understands it.",
    "Answer in JSON with the keys name, place and year: in 1921 a society for {} was founded in Lisbon by Maria Alves.",
    "How did {} influence economy and society in the nineteenth century?",
    "Write a Python program that simulates {} with random numbers, and explain every line.",
    "Write the HTML and CSS of a small web page about {} with a heading, a picture and a button.",
    "A farmer had 84 sheep. He sold a third of them to buy {} and then bought 9 more. How many sheep has he now?",
    "Anna reads 12 pages about {} on each day of the week and 30 pages on Sundays. How many pages does she read in 4 weeks?",
    "Tom earns 18 dollars an hour with {}. Last week he worked 35 hours and paid 20 percent of it in taxes. What was left?",
    "Who discovered the most important facts about {}?",
    "What is the difference between {} and {}?",
    "Why are {} important for the environment?",
    "Translate German to English: Viele Menschen wissen nicht, dass {} schon vor mehr als hundert Jahren bekannt waren, und "
    "wundern sich darüber, wenn sie es hören.",
    "Summarize: Police said on Friday that a man of 34 was arrested after a fire in a warehouse that held {}. No one was hurt, "
    "but the damage is thought to be more than two million pounds. Neighbours told reporters that they had seen two men leave "
    "the building shortly before midnight. A spokeswoman said that the inquiry continues and asked witnesses to come forward."
    "\nTL;DR:",
    "Use the passage to answer. Passage: {} were first described in 1874 by a Danish doctor, who travelled for six years and "
    "wrote three books. The second book became famous, since it held more than two hundred drawings. He died in 1911 in "
    "Copenhagen. Question: why did the second book become famous?",
    "Give me a plan for one week in which I learn the basics of {}.",
    "What are the advantages and the disadvantages of {}? End with a recommendation.",
    "Write an outline of a talk about {} for the local council, with an opening and a conclusion.",
    "Find the mistake: since all {} are useful and some useful things are expensive, some {} are expensive.",
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
    "hotels", "the Roman Empire", "dogs", "weddings", "mirrors", "hospitals", "sugar", "neural networks", "climate change",
    "shoes", "the French Revolution", "banks", "cats", "yoga", "helicopters", "soap", "famous speeches", "camels", "databases",
    "the ocean floor", "birthdays", "oranges", "refugees", "the violin concerto", "thunderstorms", "stamps", "apples",
    "artificial intelligence", "monks", "roundabouts", "crosswords", "butterflies", "human rights", "noodles", "comets",
    "skyscrapers", "allergies", "puppets", "the Olympic Games", "water mills", "genes", "spiders", "mobile phones", "inflation",
    "bread ovens", "ghost stories", "pirates", "school uniforms", "oil", "running shoes", "the Renaissance", "vitamins",
    "blankets", "the human voice", "search engines", "cherries", "recycling", "embroidery", "ski resorts", "taxis",
    "the periodic table", "lemons", "basketball", "constitutions", "umbrellas", "perfume", "giraffes", "street art",
    "dinosaurs", "headaches", "candles", "cricket", "quantum physics", "potatoes", "lakes", "office work", "submarines",
    "breakfast", "fashion", "credit cards", "the Silk Road", "roses", "rockets", "family trees", "sheep", "toothpaste",
    "wind turbines", "handwriting", "cities of the future", "pets", "mushrooms", "diplomacy",
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
