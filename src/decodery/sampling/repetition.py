"""Which tokens would continue a repetition of a text's end, and how long a one."""

from __future__ import annotations

from collections.abc import Sequence

from decodery._lazy import np


def repetitions(text: Sequence[int], longest: int) -> dict[int, int]:
    """Token -> of how many last tokens of `text` it has followed an earlier occurrence; at most `longest`, and at least one.

    In 1 2 3 7 8 2 3 the end "2 3" stood before 7: {7: 2}. Tokens that never followed the last one are not there.
    """
    ids = np.fromiter(text, np.int64, len(text))
    last = len(ids) - 1
    found: dict[int, int] = {}
    if last < 1:
        return found
    places = np.flatnonzero(ids[:last] == ids[last])  # of the last token, before
    for length in range(1, longest + 1):
        found.update(dict.fromkeys(ids[places + 1].tolist(), length))
        places = places[places >= length]
        places = places[ids[places - length] == ids[last - length]]
        if not len(places):
            break
    return found
