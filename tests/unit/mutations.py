"""Mutated raw files: what is read of them is right, or they are refused with their place."""

import os
import random
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from millrace.errors import DataError

NUMBER = int(os.environ.get("MILLRACE_MUTATIONS", "100"))
"""Mutations that are tried: more of them in `make fuzz`."""


def try_mutations(
    mutations: Sequence[Callable],
    write: Callable[[Callable, random.Random], Any],
    read: Callable[[], Any],
    fault: Callable[[Any, Callable], str | None],
) -> int:
    """Try mutations in turn, each time with other random numbers; return how many were refused.

    ``write`` makes the raw files and returns the place that a refusal must name, ``read`` reads them with
    millrace, and ``fault`` says what is wrong with what was read, None if nothing is.
    """
    wrong, refused = [], 0
    for number in range(NUMBER):
        mutation = mutations[number % len(mutations)]
        place = write(mutation, random.Random(number))
        try:
            said = fault(read(), mutation)
        except DataError as error:
            refused += 1
            said = None if str(place) in str(error) else f"refused without {place}: {error}"
        except Exception:
            said = traceback.format_exc()
        if said:
            wrong.append(f"{number}, {mutation.__name__}: {said}")
    assert not wrong, f"{len(wrong)} of {NUMBER} mutations\n" + "\n".join(wrong[:20])
    return refused
