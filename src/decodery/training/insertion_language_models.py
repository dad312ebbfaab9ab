"""Draft."""
from __future__ import annotations
import random
from decodery.evaluation.planning.star_graphs import SIZES, StarGraphs
from decodery.evaluation.planning.words import *
from decodery.training.masking import Row

def rows(seed, sizes, plan, kind, pool_rows):
    """plan: pools -> shares."""
    words = vocabulary(sizes_words(sizes))
    def pool(number):
        generator = random.Random(f"{seed} {number}")
        shares = next(s for until, s in plan if number < until)
        found=[]
        for _ in range(pool_rows):
            name = generator.choices(list(shares), list(shares.values()))[0]
            p = SIZES[name].draw(generator)
            found.append(row(p, words, kind))
        return found
    return pool

def sizes_words(sizes):
    return SIZES["easy"].words

def row(p, words, kind, room=0):
    prompt=[words[CLASS], *(words[w] for w in p.prompt), words[BEGIN]]
    body=[words[w] for w in p.answer]
    if kind!="insertions":
        body.append(words[END])
    body += [words[END]]*(room-len(body))
    return len(prompt), [*prompt, *body]
