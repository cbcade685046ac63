"""XML of SUMO and of Lanelet2 maps, an element at a time, whatever it declares.

Entities are refused: short ones can stand for gigabytes, and no file of these formats has any.
"""

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from xml.parsers import expat

from millrace.errors import DataError
from millrace.input_files import check_unpacked, in_words, open_file

_LARGEST = 64 << 20  # bytes of an element below the outermost one, and of what stands before that
_DEEPEST = 50  # elements within each other
_PIECE = 1 << 16


def elements(path: Path, *tags: str) -> Iterator[ElementTree.Element]:
    """Elements of an XML file (``.gz`` too), one at a time: earlier elements are not kept in memory.

    Without ``tags`` it is the outermost element alone, without what is in it.

    Raises
    ------
    DataError
        The file is not XML, ends in the middle, declares entities, or has elements that are too large or
        too deep in each other.
    """
    parser: Any = ElementTree.XMLPullParser(events=("start", "end"))
    prolog = expat.ParserCreate()
    entities: list[str] = []
    prolog.EntityDeclHandler = lambda name, *_: entities.append(name)
    outermost: ElementTree.Element | None = None
    depth = held = 0
    try:
        if tags:
            check_unpacked(path)
        with open_file(path, longest_line=None) as file:
            while piece := file.read(_PIECE):
                if outermost is None:
                    # The parser of ElementTree does not tell of entities.
                    with suppress(expat.ExpatError):
                        prolog.Parse(piece, False)
                    if entities:
                        raise _refused(path, f"declares the entity {entities[0][:40]!r}")
                parser.feed(piece)
                held += len(piece)
                for event, element in parser.read_events():
                    if outermost is None:
                        outermost = element
                        if not tags:
                            yield element
                            return
                    depth += 1 if event == "start" else -1
                    if event == "end" and element.tag in tags:
                        yield element
                    if depth == 1 and event == "end":
                        outermost.clear()
                        held = 0
                if held > _LARGEST:
                    raise _refused(path, f"an element of more than {in_words(_LARGEST)}")
                if depth > _DEEPEST:
                    raise _refused(path, f"elements more than {_DEEPEST} deep in each other")
            parser.close()
    except (OSError, ElementTree.ParseError, LookupError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as XML ({error}); write it again") from error


def _refused(path: Path, what: str) -> DataError:
    return DataError(f"{path}: {what}; expected XML as SUMO and Lanelet2 have it, write it again")


def root(path: Path) -> ElementTree.Element:
    """The outermost element of an XML file (``.gz`` too), without what is in it; errors as `elements`."""
    return next(elements(path))


def has_root(path: Path, tag: str) -> bool:
    """Whether a file is XML whose outermost element has a certain tag."""
    try:
        return root(path).tag == tag
    except DataError:
        return False
