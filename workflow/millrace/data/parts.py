"""Extraction in parts: which units each part takes."""


def part_of(units: int, part: int, parts: int, together: int = 1) -> range:
    """Units of a part, which counts from 0.

    All parts but the last have the same number of them, a multiple of ``together``; the last ones may be
    empty.
    """
    length = -(-units // (parts * together)) * together
    return range(min(part * length, units), min((part + 1) * length, units))
