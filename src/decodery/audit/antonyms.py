"""Words and their opposites: the control of obstinate words, which substitutes by meaning alone."""

from __future__ import annotations

PAIRS = """
able unable, above below, absent present, accept refuse, active passive, afraid brave, alive dead, always never, angry calm,
ashamed proud, asleep awake, bad good, beautiful ugly, begin end, best worst, better worse, big small, bitter sweet,
bored excited, boring interesting, bright dark, broken whole, buy sell, careful careless, cheap expensive, cheerful gloomy,
clean dirty, clever stupid, cold warm, correct wrong, cruel kind, cry laugh, dangerous safe, deep shallow,
delighted disappointed, different same, difficult easy, dry wet, dull exciting, early late, empty full, enemy friend,
fail succeed, false true, famous unknown, far near, fast slow, fat thin, fearless frightened, find lose, first last,
fresh stale, friendly hostile, generous selfish, gentle rough, glad sorry, great terrible, guilty innocent, happy sad,
hard soft, hate love, healthy sick, heavy light, high low, honest dishonest, hopeful hopeless, hot cold, huge tiny,
joyful miserable, late early, lazy busy, less more, like dislike, long short, loud quiet, lucky unlucky, mean kind,
natural artificial, nervous relaxed, new old, nice nasty, noisy silent, open closed, perfect flawed, pleasant unpleasant,
polite rude, poor rich, popular unpopular, possible impossible, public private, rare common, right wrong, scared brave,
serious funny, sharp blunt, simple complex, smart foolish, smooth rough, sour sweet, start stop, strange normal,
strong weak, terrified fearless, tidy messy, tired rested, unhappy happy, useful useless, visible invisible, weak strong,
well badly, wide narrow, win lose, wise foolish, wonderful awful, worried relaxed, young old, lonely loved
"""

ANTONYMS: dict[str, str] = {}
"""Of each word one opposite, in lower case; of a pair both ways, the first pair that names a word counting."""
for _pair in PAIRS.replace("\n", " ").split(","):
    _one, _other = _pair.split()
    ANTONYMS.setdefault(_one, _other)
    ANTONYMS.setdefault(_other, _one)
