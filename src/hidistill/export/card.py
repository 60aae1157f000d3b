"""The README.md of an exported folder: what it is, how it is called, what was measured, and whose license it has."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

UNSTATED = "not stated by the teacher's folder"
FRONT = ("license", "license_name", "license_link")
"""What a card's front matter says of the license."""


@dataclass(frozen=True)
class Card:
    """What only the caller knows of a student.

    Args:
        teacher: how the teacher is called.
        lines: of the run: recipe, stage, steps, seed.
        metrics: one row per contestant of an evaluation: column -> what is printed.
        notes: further sentences, e.g. where the exported network differs from the student, and by how much.
        license: see `license_of`.
        call: further arguments that a call of the pipeline needs to be the student, as code.
    """

    teacher: str
    lines: Mapping[str, str] = field(default_factory=dict)
    metrics: Sequence[Mapping[str, str]] = ()
    notes: Sequence[str] = ()
    license: Mapping[str, str] = field(default_factory=dict)
    call: str = ""


def license_of(folder: Path) -> dict[str, str]:
    """What the front matter of a folder's README.md says of its license; empty if it says nothing."""
    path = folder / "README.md"
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    if not lines or lines[0].strip() != "---":
        return {}
    end = next((number for number, line in enumerate(lines[1:], 1) if line.strip() == "---"), 0)
    pairs = (line.partition(":") for line in lines[1:end])
    # Nested keys are indented, so that "license:" at the start of a line is the card's own.
    return {key: value.strip().strip("\"'") for key, _, value in pairs if key in FRONT and value.strip()}


def readme(card: Card, *, title: str, usage: str) -> str:
    """The text of README.md.

    Args:
        card: what the caller knows.
        title: of the page.
        usage: lines of Python that make a picture.
    """
    license = card.license
    front = ["---", "library_name: diffusers", *(f"{key}: {value}" for key, value in license.items())]
    front += ["tags:", "- one-step", "- hidistill", "---"]
    stated = plain(license.get("license_name") or license.get("license") or UNSTATED)
    link = f" ({plain(license['license_link'])})" if "license_link" in license else ""
    parts = [
        "\n".join(front),
        f"# {plain(title)}",
        f"Distilled from {plain(card.teacher)} into a generator of one step, with hidistill.",
        f"```python\n{usage}\n```",
        *card.notes,
    ]
    if card.metrics:
        parts += ["## Measured", table(card.metrics)]
    if card.lines:
        parts += ["## Made by", "\n".join(f"- {plain(key)}: {plain(value)}" for key, value in card.lines.items())]
    parts += ["## License", f"As the teacher's: {stated}{link}."]
    return "\n\n".join(parts) + "\n"


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows as a table in Markdown; what a row does not have stays empty."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[plain(row.get(column, "")) for column in columns] for row in rows]
    lines = [[plain(column) for column in columns], ["---"] * len(columns), *cells]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def plain(text: str) -> str:
    """Text of others as one line of Markdown that is shown as it is: no tag, no link, no cell of its own."""
    line = " ".join(escape(str(text), quote=False).split())
    return "".join(f"\\{letter}" if letter in "\\`|[]<>" else letter for letter in line)
