"""Which of a teacher's classes each class of a source of pictures is."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from hidistill.types import Record, Source


class Pairing(NamedTuple):
    """The teacher's label of each class of a source, in the source's order, and what a person should know of it."""

    labels: tuple[int, ...]
    note: str = ""


def names_of(index: Mapping[str, Any]) -> dict[int, str]:
    """The classes' names that a pipeline's `model_index.json` gives, by label; empty if it gives none."""
    named = index.get("id2label")
    return {int(label): str(name) for label, name in named.items()} if isinstance(named, Mapping) else {}


def paired(given: Sequence[str], known: Mapping[int, str], *, classes: int) -> Pairing:
    """Match classes by number or by name; in order where neither says anything.

    Args:
        given: the source's classes, usually its sub-folders.
        known: the teacher's names by label; one may list several, separated by commas. Empty if it tells none.
        classes: of the teacher, at least as many as are given.

    Raises:
        ValueError: if a class would stand for another one of the teacher's, or the first of them are not all given.
    """
    in_order = tuple(range(len(given)))
    few = len(given) < classes
    if all(name.isdecimal() and int(name) < classes for name in given):
        labels = tuple(int(name) for name in given)
        how = "numbers"
    elif known:
        places = places_by_name(known)
        matched = [places.get(plain(name)) for name in given]
        lost = [name for name, label in zip(given, matched, strict=True) if label is None]
        if len(lost) == len(given) and not few:
            return Pairing(
                in_order,
                f"no class of the source has a name that the teacher knows ({given[0]!r}; the teacher's label 0 is "
                f"{known.get(0, '')!r}): they are taken in their order",
            )
        if lost:
            raise ValueError(
                f"the teacher knows no class {', '.join(map(repr, lost[:5]))}{' ...' if len(lost) > 5 else ''}; its "
                f"names are {shown(known)}: name the sub-folders so, or by the teacher's labels, 0 to {classes - 1}"
            )
        labels = tuple(label for label in matched if label is not None)
        how = "names"
    else:
        note = f"the source has {len(given)} classes and the teacher {classes}: they are taken for its first ones"
        return Pairing(in_order, note if few else "")
    if sorted(labels) != list(in_order):
        pairs = ", ".join(f"{name} {label}" for name, label in list(zip(given, labels, strict=True))[:5])
        raise ValueError(
            f"by their {how} the {len(given)} classes are the teacher's labels {sorted(labels)} ({pairs}); give "
            f"pictures of its first classes, labels 0 to {len(given) - 1}, or of all {classes}, one sub-folder each"
        )
    note = f"classes are matched by their {how}" if labels != in_order else ""
    if few:
        note += f"{'; ' if note else ''}the source has {len(given)} of the teacher's {classes}, its first ones"
    return Pairing(labels, note)


def places_by_name(known: Mapping[int, str]) -> dict[str, int]:
    """Labels by whole names and by each of several; what would mean two labels is left out."""
    whole = {plain(name): label for label, name in known.items()}
    several: dict[str, set[int]] = {}
    for label, name in known.items():
        for each in name.split(","):
            several.setdefault(plain(each), set()).add(label)
    return {name: next(iter(labels)) for name, labels in several.items() if len(labels) == 1} | whole


def plain(name: str) -> str:
    """A name without the differences that writing it as a folder makes."""
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())


def shown(known: Mapping[int, str], most: int = 5) -> str:
    """The first names."""
    first = [known[label] for label in sorted(known)[:most]]
    return "; ".join(first) + (" ..." if len(known) > most else "")


def renumbered(read: Callable[[], Source], labels: Sequence[int]) -> Source:
    """The source whose classes are those labels of the teacher's, in its order."""
    source = read()
    if list(labels) == list(range(len(labels))):
        return source
    classes = [name for _, name in sorted(zip(labels, source.classes, strict=True))]
    digest = hashlib.sha256(f"{source.digest} as {list(labels)}".encode()).hexdigest()

    def records(start: int) -> Iterator[Record]:
        for record in source.records(start):
            yield record if record.label is None else record._replace(label=labels[record.label])

    return replace(source, records=records, classes=classes, digest=digest)
