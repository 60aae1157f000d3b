"""Class labels by what a person calls them: a name or a number."""

import difflib
from collections.abc import Sequence

MOST_NAMES = 20
"""Names that a message lists at most."""


def label_of(given: str, *, names: Sequence[str], classes: int) -> int:
    """The label that a name or a number means; a name comes first, for a class may be called "7".

    Args:
        given: a name of a class, or a label from 0 on.
        names: of the classes by label; empty if nobody knows them.
        classes: how many there are; 0 if there are none.

    Raises:
        ValueError: if there is no such class; names the nearest.
    """
    if not classes:
        raise ValueError("these weights know no classes")
    if given in names:
        return list(names).index(given)
    if given.removeprefix("-").isdecimal():
        if not 0 <= int(given) < classes:
            raise ValueError(f"labels are 0 to {classes - 1}")
        return int(given)
    if not names:
        raise ValueError(f"these weights know no names of classes; labels are 0 to {classes - 1}")
    folded = {name.casefold(): name for name in names}
    near = difflib.get_close_matches(given.casefold(), folded, n=1, cutoff=0.5)
    hint = f"; did you mean {folded[near[0]]!r}?" if near else "."
    shown = ", ".join(names[:MOST_NAMES]) + (", ..." if len(names) > MOST_NAMES else "")
    raise ValueError(f"no class has this name{hint} Labels are {shown}, or 0 to {classes - 1}")
