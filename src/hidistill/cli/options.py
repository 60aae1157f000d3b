"""Turns a function's keyword arguments into a command's options."""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, fields, make_dataclass
from typing import Annotated, Any, get_type_hints

import tyro

REQUIRED = inspect.Parameter.empty


def parse(
    function: Callable[..., object],
    argv: Sequence[str],
    *,
    prog: str,
    extra: Mapping[str, tuple[Any, Any, str]] | None = None,
    positional: str | None = None,
) -> dict[str, Any]:
    """The arguments that `argv` gives to a function, which is not called; help comes from its docstring.

    Args:
        function: its keyword arguments are the options.
        argv: words of the command line.
        prog: how the command is called.
        extra: further options by name: type, default (or `REQUIRED`), and help.
        positional: the argument that is given without its name.

    Raises:
        ValueError: if an extra option has the name of one of the function's, an argument has no type, or a seed is
            negative.
    """
    hints, parameters = get_type_hints(function, include_extras=True), inspect.signature(function).parameters
    options, lines = [], []
    for name, (kind, default, meaning) in (extra or {}).items():
        if name in parameters:
            raise ValueError(
                f"{prog}: the recipe has an argument {name!r}, which is an option of the command; rename it"
            )
        options.append(option(name, kind, default))
        lines.append(f"    {name}: {meaning}\n")
    for name, parameter in parameters.items():
        if name not in hints:
            raise ValueError(f"{prog}: argument {name!r} has no type; write {name}: int, say, to make it an option")
        kind = Annotated[hints[name], tyro.conf.Positional] if name == positional else hints[name]
        options.append(option(name, kind, parameter.default))
    doc = with_arguments(inspect.getdoc(function) or "", "".join(lines))
    record = make_dataclass("Options", options, namespace={"__doc__": doc}, kw_only=True)
    found = vars(tyro.cli(record, args=argv, prog=prog))
    if "seed" in found:  # before anything is built, which may take long
        from hidistill.seeds import refuse_seed

        refuse_seed(found["seed"])
    return found


def option(name: str, kind: Any, default: Any) -> tuple[str, Any, Any]:  # noqa: ANN401 -- any type, any default
    """One field of the record of options."""
    return name, kind, field() if default is REQUIRED else field(default_factory=lambda: default)


def with_arguments(doc: str, lines: str) -> str:
    """A Google docstring with further lines in its section of arguments."""
    if "\nArgs:\n" in doc:
        return doc.replace("\nArgs:\n", f"\nArgs:\n{lines}", 1)
    return f"{doc}\n\nArgs:\n{lines}"


def settings_options(settings: type) -> dict[str, tuple[Any, Any, str]]:
    """The fields of a record as options: type, default, and help from its docstring."""
    lines = (inspect.getdoc(settings) or "").partition("Args:\n")[2]
    helps = dict(re.findall(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", lines, re.MULTILINE))
    kinds = get_type_hints(settings)
    return {
        each.name: (kinds[each.name], each.default, " ".join(helps[each.name].split())) for each in fields(settings)
    }
