"""Beginnings of very short stories for small children: who, where, what and what for are drawn at random.

TinyStories (arXiv 2305.07759) asks a large model for stories built around a few random words, so that they differ. A small
model follows such a request badly but goes on well with a story that has begun, so here the words stand in its first
sentences, and the request says only what kind of text is wanted.
"""

from __future__ import annotations

import numpy as np

ASKS = (
    "Write a very short story for a small child, in simple words and short sentences.",
    "Tell a very short and simple bedtime story for a small child. Use easy words.",
    "Write a short and simple story in six short sentences for a child of four.",
    "Write one short paragraph: a simple story for small children, with a good end.",
)
BEGINNINGS = (
    "Once upon a time there was {who}. {He} lived {place}.",
    "Once upon a time there was {who} who wanted to {wish}.",
    "Once upon a time, {who} found {thing} {place}.",
    "Once upon a time there lived {who}. One day {he} wanted to {wish}.",
    "Once upon a time there was {who}. {He} was very {feeling}, because",
    "Once upon a time, {place}, there was {who}. {He} had {thing}.",
    "Once upon a time {who} met {friend} {place}.",
    "One day {who} went out to {wish}.",
    "One day {who} saw {thing} {place}.",
    "One day {who} lost {thing} {place}. {He} was {feeling}.",
    "One morning {who} woke up and felt {feeling}.",
    "One morning {who} found {thing} {place}. {He} said,",
    "There was once {who} who was always {feeling}.",
    "There was once {who} who had {thing}.",
    "It was a cold day. {Who} was {place}.",
    "It was raining. {Who} sat {place} with {friend}.",
    "It was a sunny day. {Who} wanted to {wish}.",
    "{Who} was {feeling}. {He} wanted to {wish}.",
    "{Who} and {friend} were playing {place}. Then they saw {thing}.",
    "{Who} and {friend} wanted to {wish}.",
    "{Who} had {thing}. {He} took it with {him} and went",
    "{Who} lived {place}. {He} liked to {wish}.",
    '{Who} asked {friend}, "Do you want to {wish} with me?"',
    "Last night {who} could not sleep, because",
)
GIRLS = (
    "Lily", "Mia", "Anna", "Lucy", "Emma", "Sara", "Rosie", "Ella", "Nora", "Amy", "Kate", "Zoe", "Molly", "Ruby", "Ivy",
    "Maya", "Clara", "Nina", "Sue", "Yuki", "Grace",
)  # fmt: skip
BOYS = (
    "Tom", "Ben", "Sam", "Max", "Leo", "Tim", "Jack", "Finn", "Oscar", "Paul", "Peter", "Billy", "Dan", "Hugo", "Joe",
    "Theo", "Ali", "Carlos", "Omar", "Jim",
)  # fmt: skip
ANIMALS = (
    "cat", "dog", "rabbit", "bear", "mouse", "duck", "fox", "frog", "owl", "pig", "horse", "cow", "sheep", "hen", "bird",
    "turtle", "squirrel", "hedgehog", "elephant", "lion", "monkey", "penguin", "fish", "bee", "goat", "snail", "butterfly",
    "puppy", "kitten", "wolf", "deer", "whale", "tiger", "ant", "goose",
)  # fmt: skip
KINDS = (
    "little",
    "small",
    "brave",
    "shy",
    "lazy",
    "clever",
    "hungry",
    "old",
    "funny",
    "brown",
    "white",
    "kind",
    "quick",
)
PLACES = (
    "in the garden", "in the park", "at the lake", "in the forest", "on the farm", "at school", "in the kitchen", "by the sea",
    "in the snow", "on a hill", "at the market", "in the barn", "near the river", "in the attic", "under a big tree",
    "at grandma's house", "on the playground", "in the rain", "in the city", "on a boat", "in the field", "in a cave",
    "at the zoo", "in the bedroom", "on the beach", "in the library", "on the bus", "under the bed", "on the roof",
)  # fmt: skip
THINGS = (
    "a red ball", "a blue kite", "a big box", "a cake", "an apple", "a hat", "a toy train", "a book", "a small key", "a lamp",
    "a warm coat", "a bell", "a balloon", "a drum", "a pair of boots", "a flower", "an egg", "a shiny stone", "a letter",
    "a blanket", "a bucket", "a cookie", "a doll", "a bike", "a pot of soup", "a feather", "a nest", "a boat of paper",
    "a carrot", "a jar of honey", "a ladder", "a clock", "a puzzle", "a pumpkin", "a map", "an umbrella", "a shell",
    "a rope", "a pencil", "a swing", "a mirror", "a wagon", "a scarf", "a pie", "a basket",
)  # fmt: skip
FEELINGS = (
    "sad", "happy", "afraid", "angry", "tired", "proud", "lonely", "surprised", "hungry", "curious", "cold", "excited",
    "sleepy", "worried", "shy", "jealous", "brave",
)  # fmt: skip
WISHES = (
    "make a new friend", "climb a tree", "learn to swim", "bake bread", "build a house", "fly", "find the way home", "sleep",
    "plant a seed", "help mother", "catch a fish", "win a race", "sing a song", "paint a picture", "see the moon",
    "play hide and seek", "fix a broken toy", "share lunch", "find a treasure", "cross the river", "give a present",
    "make a snowman", "ride a bike", "stay dry", "read a story", "wash the dog", "jump very high", "pick berries",
)  # fmt: skip


def story_beginnings(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """`count` pairs (request, first words of the answer), all beginnings different, the same for the same seed.

    The first pairs of a longer list are those of a shorter one.
    """
    generator = np.random.Generator(np.random.Philox(key=[seed, 1]))

    def one_of(phrases: tuple[str, ...]) -> str:
        return phrases[int(generator.integers(len(phrases)))]

    def somebody() -> tuple[str, bool]:
        girl = generator.random() < 0.5
        name = one_of(GIRLS if girl else BOYS)
        animal = f"{one_of(KINDS)} {one_of(ANIMALS)}"
        article = "an" if animal[0] in "aeiou" else "a"
        child = f"a {one_of(('little', 'small', 'brave', 'shy', 'kind'))} {'girl' if girl else 'boy'}"
        forms = (f"{child} called {name}", f"{article} {animal} called {name}", f"{article} {animal}", name)
        return forms[int(generator.integers(len(forms)))], girl

    pairs: list[tuple[str, str]] = []
    seen: set[str] = set()
    while len(pairs) < count:
        (who, girl), (friend, _) = somebody(), somebody()
        phrases = {
            "who": who,
            "friend": friend,
            "he": "she" if girl else "he",
            "him": "her" if girl else "him",
            "place": one_of(PLACES),
            "thing": one_of(THINGS),
            "feeling": one_of(FEELINGS),
            "wish": one_of(WISHES),
        }
        capitals = {name.capitalize(): phrase[0].upper() + phrase[1:] for name, phrase in phrases.items()}
        beginning = one_of(BEGINNINGS).format(**phrases, **capitals)
        request = one_of(ASKS)
        if beginning not in seen:
            seen.add(beginning)
            pairs.append((request, beginning))
    return pairs
