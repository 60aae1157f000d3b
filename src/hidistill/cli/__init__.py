"""The command line: one file in `commands/` per command, imported when it is called.

Nothing here imports torch before a command needs it, so that help comes at once.
"""

import difflib
import logging
import os
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hidistill import __version__

COMMANDS = {
    "demo": "distill the bundled teacher into a one-step student, and show how good it is",
    "inspect": "describe a teacher, and test whether it answers as its folder says",
    "cache": "encode pictures and captions once, as a teacher in a diffusers folder sees them",
    "train": "run a recipe: hidistill train RECIPE --out DIR",
    "experiment": "put a question to a grid of runs over seeds: hidistill experiment NAME",
    "sample": "draw images from a run or a weights file",
    "draw": "draw thousands of images, over hours and processes; also for GenEval and the ADM evaluator",
    "evaluate": "measure a finished run again, with other numbers of samples and steps",
    "compare": "which differences between evaluated runs are resolved",
    "score": "judge pictures that are there already: folders and .npz batches, against a reference",
    "report": "write a run's report.html and pictures again",
    "view": "a page in the browser: teacher and student side by side, a blind test, runs with their curves",
    "export": "write a student as a diffusers folder, or as one safetensors or ONNX file",
    "list": "the recipes: what each needs, and the number it reaches",
    "doctor": "what this machine has, and what a run here would cost",
    "data": "fetch a full data set",
}
USER_ERRORS = (ValueError, TypeError, OSError, ArithmeticError)
"""What bad input raises; everything else is a defect of the program and keeps its traceback."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after the program's name; by default those that the process was called with.

    Returns:
        The exit status: 0 done, 2 bad input, 130 interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words or os.environ.get("HIDISTILL_DEBUG") == "1"
    words = [word for word in words if word != "--debug"]
    if not words or words[0] in ("-h", "--help", "help"):
        overview()
        return 0
    if words[0] == "--version":
        Console().print(f"hidistill {__version__}", highlight=False)
        return 0
    logger = logging.getLogger("hidistill")
    announcer, level = Announcer(), logger.level
    logger.addHandler(announcer)
    logger.setLevel(logging.INFO)
    try:
        if words[0] not in COMMANDS:
            raise ValueError(unknown("command", words[0], COMMANDS))
        return import_module(f"hidistill.cli.commands.{words[0]}").command(words[1:])
    except SystemExit as leave:  # how tyro leaves, after help (0) or after naming a wrong option (2)
        return leave.code if isinstance(leave.code, int) else 2
    except KeyboardInterrupt:
        complain("stopped")
        return 130
    except USER_ERRORS as error:
        if debug:
            raise
        complain(described(error))
        return 2
    finally:
        logger.removeHandler(announcer)
        logger.setLevel(level)


class Announcer(logging.Handler):
    """Prints what the package has to say while it works, such as a recipe's choices, above a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message."""
        Console().print(self.format(record), markup=False, highlight=False, soft_wrap=True)


def overview() -> None:
    """Print what commands there are."""
    table = Table(box=None, show_header=False, padding=(0, 2))
    for name, meaning in COMMANDS.items():
        table.add_row(Text(name, style="bold"), meaning)
    console = Console()
    console.print("usage: hidistill COMMAND [OPTIONS]\n", markup=False)
    console.print(table)
    console.print("\nhidistill COMMAND --help shows a command's options; --debug shows tracebacks.", markup=False)


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """The message for a name that is not known, with the nearest one that is."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return f"unknown {kind} {name!r}{hint} Known are: {', '.join(names) or 'none'}"


def described(error: BaseException) -> str:
    """An error in one message: what the system said, and of which file."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    words = str(error) or type(error).__name__
    return (
        words if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {words} (--debug shows where)"
    )


def complain(message: str) -> None:
    """One message in red on stderr."""
    console = Console(stderr=True)
    console.print(Text(message, style="red"), soft_wrap=True)
