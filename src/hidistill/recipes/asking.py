"""Prompts from wherever they lie: plain files, GenEval's list, the layout of MJHQ-30K."""

from pathlib import Path

from hidistill.data import prompt_lists, prompts
from hidistill.data.prompt_lists import Asked, PromptList


def prompts_at(path: Path) -> PromptList:
    """The prompts of a folder or a file.

    Raises:
        FileNotFoundError: if nothing lies there.
        ValueError: if it is none of the three; says which line or entry.
    """
    found = prompt_lists.read(path)
    if found is not None:
        return found
    source = prompts.read(path)
    items = [Asked(f"{i:06}", str(record.caption)) for i, record in enumerate(source.records(0))]
    return PromptList(items, "plain", source.digest, source.notes)
