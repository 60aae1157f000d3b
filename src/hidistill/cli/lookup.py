"""Finds recipes by name, and says of each what its docstring says."""

import importlib
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from hidistill.cli import unknown
from hidistill.train.experiment import Experiment


class Recipe(NamedTuple):
    """A function that returns an `Experiment`, under the name by which it was asked for."""

    name: str
    function: Callable[..., Experiment]


def bundled() -> dict[str, Recipe]:
    """The recipes that come with the package, as `module.function`."""
    shelf = importlib.import_module("hidistill.recipes")
    found: dict[str, Recipe] = {}
    for entry in pkgutil.iter_modules(shelf.__path__):
        module = importlib.import_module(f"hidistill.recipes.{entry.name}")
        for function in getattr(module, "RECIPES", ()):
            name = f"{entry.name}.{function.__name__}"
            found[name] = Recipe(name, function)
    return found


def find(name: str) -> Recipe:
    """The recipe of a name: `module.function` of the package, `FILE.py:function`, or `package.module:function`.

    Raises:
        ValueError: if there is none; names the nearest.
        FileNotFoundError: if the file does not exist.
    """
    if name.endswith(".py"):
        raise ValueError(f"{name}: {offered(Path(name))}")
    if ":" not in name:
        known = bundled()
        if name not in known:
            raise ValueError(unknown("recipe", name, known) + "; your own is FILE.py:FUNCTION or MODULE:FUNCTION")
        return known[name]
    source, _, wanted = name.rpartition(":")
    module = module_of_file(Path(source)) if source.endswith(".py") else module_of_name(source)
    function = getattr(module, wanted, None)
    if not inspect.isfunction(function):
        mine = [each.__name__ for each in own_functions(module) if each.__name__[0] != "_"]
        raise ValueError(f"{source}: " + unknown("function", wanted, mine))
    return Recipe(name, function)


def offered(path: Path) -> str:
    """What to write instead of a file's name alone: one of its functions that say that they return an experiment."""
    functions = own_functions(module_of_file(path))
    returned = {each.__name__: inspect.signature(each).return_annotation for each in functions}
    recipes = [f"{path}:{name}" for name, kind in returned.items() if kind in (Experiment, Experiment.__name__)]
    advice = f"; write {' or '.join(recipes)}" if recipes else ", one that returns an Experiment"
    return f"a recipe is a function of a file, FILE.py:FUNCTION{advice}"


def own_functions(module: ModuleType) -> list[Callable[..., Any]]:
    """The functions that a module defines, without those that it imports."""
    return [each for each in vars(module).values() if inspect.isfunction(each) and each.__module__ == module.__name__]


def module_of_file(path: Path) -> ModuleType:
    """The module that a file is."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; a recipe of your own is FILE.py:FUNCTION")
    name = f"hidistill_recipe_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def module_of_name(name: str) -> ModuleType:
    """The module of a dotted name."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # something that the module itself imports is missing
        raise ValueError(f"no module named {name!r} can be imported; a file is FILE.py:FUNCTION") from error


def summary(recipe: Recipe) -> str:
    """The first line of the recipe's docstring."""
    return (inspect.getdoc(recipe.function) or "").split("\n", 1)[0]


def section(recipe: Recipe, title: str) -> str:
    """What stands under `title:` in the recipe's docstring, in one line; empty if nothing does."""
    lines = (inspect.getdoc(recipe.function) or "").splitlines()
    starts = [index for index, line in enumerate(lines) if line.startswith(f"{title}:")]
    if not starts:
        return ""
    words = [lines[starts[0]].removeprefix(f"{title}:")]
    for line in lines[starts[0] + 1 :]:
        if not line.startswith((" ", "\t")):
            break
        words.append(line)
    return " ".join(" ".join(words).split())
