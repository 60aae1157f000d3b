"""What a check of a teacher found."""

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Args:
        check: what was looked at.
        found: what was seen, with its numbers.
        verdict: "fail" is a fault that spoils every student; "warn" is worth a look, or could not be told.
        cure: what to do; empty if there is nothing to do.
    """

    check: str
    found: str
    verdict: Verdict
    cure: str = ""
