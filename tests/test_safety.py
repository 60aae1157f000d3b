"""Nothing that a run opens can run code: the source is read for calls that could, and planted pickles stay unrun."""

import ast
import os
import pickle
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

import hidistill

SOURCE = Path(hidistill.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
FORBIDDEN = {
    "eval", "exec", "compile", "__import__",
    "pickle.load", "pickle.loads", "pickle.Unpickler", "dill.load", "dill.loads", "joblib.load", "cloudpickle.load",
    "cloudpickle.loads", "marshal.load", "marshal.loads", "shelve.open", "yaml.load", "yaml.unsafe_load",
    "yaml.full_load", "os.system", "os.popen", "torch.hub.load", "pandas.read_pickle", "torch.jit.load",
}  # fmt: skip
MUST_SAY = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
}
CODE_OF_FOLDERS = {"cli/stock.py"}
"""Where code in a folder may be run: after it was compared with the file that this version writes."""
CODE_OF_USERS = {"cli/lookup.py"}
"""Where a file is run because a person named it as a recipe."""
BEHIND_A_SUM = {"metrics/inception/reading.py": "torch.jit.load"}
"""Where a program of tensors is opened: after its bytes were found to be the ones that are known."""
JOINED = {"train/distributed/joining.py": "socket", "train/distributed/watch.py": "socket", "view/app.py": "gradio"}
"""Where a server's module is used for another thing: a machine's name, the parts of a page that server.py binds."""
SERVERS = {"socket", "socketserver", "http.server", "asyncio", "xmlrpc.server", "wsgiref", "uvicorn", "gradio", "flask"}


def name_of(node):
    """A dotted name; empty if a call is of something else."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def calls(text):
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call):
            yield name_of(node.func), {k.arg: getattr(k.value, "value", None) for k in node.keywords}, node.lineno


def offences(text, place):
    """What in a source could run what it reads."""
    found = []
    for name, given, line in calls(text):
        if name in FORBIDDEN and BEHIND_A_SUM.get(place) != name:
            found.append(f"{place}:{line} calls {name}")
        if name in MUST_SAY and given.get(MUST_SAY[name][0]) is not MUST_SAY[name][1]:
            found.append(f"{place}:{line}: {name} without {MUST_SAY[name][0]}={MUST_SAY[name][1]}")
        if given.get("shell") is True:
            found.append(f"{place}:{line}: a shell")
        if given.get("trust_remote_code") is True and place not in CODE_OF_FOLDERS:
            found.append(f"{place}:{line} trusts remote code")
        if name.endswith("exec_module") and place not in CODE_OF_USERS:
            found.append(f"{place}:{line} runs a file")
    return found


def listening(text):
    """The modules of servers that a source imports, unless it keeps to loopback."""
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    loopback = "127.0.0.1" in text and "0.0.0.0" not in text
    return set() if loopback else names & SERVERS


def test_no_source_calls_what_could_run_what_it_reads():
    assert len(FILES) > 100
    found = [each for path in FILES for each in offences(path.read_text(), path.relative_to(SOURCE).as_posix())]
    assert not found, "\n".join(found)


def test_no_source_opens_a_port_but_on_loopback():
    found = {path.relative_to(SOURCE).as_posix(): listening(path.read_text()) for path in FILES}
    assert not {place: names for place, names in found.items() if names - {JOINED.get(place)}}


@pytest.mark.parametrize(
    "text",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "np.load(path)",
        "pickle.load(file)",
        "eval(text)",
        "kind.from_pretrained(root, trust_remote_code=True)",
        "subprocess.run(words, shell=True)",
        "spec.loader.exec_module(module)",
    ],
)
def test_the_search_finds_what_it_looks_for(text):
    assert offences(text, "x.py")


def test_the_search_finds_servers():
    assert listening("import http.server") == {"http.server"}
    assert listening("from socketserver import TCPServer\nhost = '0.0.0.0'") == {"socketserver"}
    assert not listening("import http.server\nhost = '127.0.0.1'")


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def by_weights(path):
    from hidistill import weights

    weights.read(path)


def by_folder(path):
    from hidistill.foreign.folder import read_tensors

    read_tensors(path, allow_pickle=True)


def by_original(path):
    from hidistill.teachers.original import contents

    contents(path, allow_pickle=True)


def by_report(path):
    from hidistill.report.folder import arrays

    arrays(path)


@pytest.mark.parametrize("form", ["torch", "legacy", "pickle", "npz"])
@pytest.mark.parametrize("load", [by_weights, by_folder, by_original, by_report])
def test_a_planted_pickle_is_not_run(load, form, tmp_path):
    marker, path = tmp_path / "run", tmp_path / ("planted.npz" if load is by_report else "planted.pt")
    if form == "pickle":
        path.write_bytes(pickle.dumps(Trap(marker)))
    elif form == "npz":
        with path.open("wb") as file:
            np.savez(file, images=np.array([Trap(marker)], dtype=object))
    else:
        torch.save({"weights": Trap(marker)}, path, _use_new_zipfile_serialization=form == "torch")
    with pytest.raises(Exception):  # noqa: B017, PT011 -- each loader has an error of its own; none may pass
        load(path)
    assert not marker.exists()


def test_the_trap_works(tmp_path):
    pickle.loads(pickle.dumps(Trap(tmp_path / "run")))
    assert (tmp_path / "run").exists()


def test_a_planted_optimizer_is_not_run(tmp_path):
    """A checkpoint whose sums were made to fit, too."""
    import json

    from small_run import carry_out

    from hidistill.files import facts

    def stop(event):
        if event.kind == "step" and event.global_step == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        carry_out(tmp_path / "run", checkpoint_every=2, on_event=stop)
    marker, newest = tmp_path / "ran", max((tmp_path / "run" / "checkpoints").iterdir())
    planted = newest / "optimizer-student.pt"
    assert planted.is_file()
    torch.save({"state": Trap(marker)}, planted)
    manifest = next(path for path in newest.iterdir() if "manifest" in path.name.lower())
    listed = json.loads(manifest.read_text())
    text = json.dumps(listed)
    for table in (listed, listed.get("files", {})):
        if planted.name in table:
            table[planted.name] = facts(planted)
    assert json.dumps(listed) != text
    manifest.write_text(json.dumps(listed))
    with pytest.raises(ValueError, match="of another experiment"):
        carry_out(tmp_path / "run")
    assert not marker.exists()


class Tags(HTMLParser):
    """Names of the tags of a page, and of their attributes."""

    def __init__(self):
        super().__init__()
        self.tags, self.attributes = [], set()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}


BAD = "<script>alert(1)</script>"
ATTRIBUTE = "\" onload='alert(1)' x=\""


def test_a_page_shows_what_a_run_holds_and_runs_none_of_it(tmp_path):
    import json

    from made_up import full_evaluation, full_journal, write_run

    from hidistill.report.page import write

    generator = torch.Generator().manual_seed(0)
    kinds = {kind: torch.rand(6, 1, 28, 28, generator=generator) for kind in ("real", "student")}
    benign = Tags()
    (tmp_path / "a" / "samples").mkdir(parents=True)
    write_run(tmp_path / "a", kinds, generator)
    benign.feed(write(tmp_path / "a").read_text())
    folder = tmp_path / f"{ATTRIBUTE.replace('/', '')}<script>"
    (folder / "samples").mkdir(parents=True)
    write_run(folder, kinds, generator)
    evaluation, journal = full_evaluation(), full_journal(steps=20)
    for row in evaluation["rows"]:
        row["name"] = f"{row['name']}, {BAD}{ATTRIBUTE}"
        row["metrics"] |= {f"fd/{BAD}": 1.0, f"{ATTRIBUTE}/x": 2.0}
    evaluation |= {"seed": BAD, "features": {"cnn": BAD, BAD: ATTRIBUTE}}
    journal[-1] |= {"event": BAD, "message": ATTRIBUTE, "stage": BAD}
    for line in journal[:10]:
        line |= {f"student/{BAD}": 1.0, "stage": f"sketch{BAD}"}
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in journal))
    recipe = {"recipe": BAD, "arguments": {BAD: ATTRIBUTE, "prompt": BAD, "list": [BAD]}, "version": "0"}
    (folder / "recipe.json").write_text(json.dumps(recipe))
    (folder / "environment.json").write_text(json.dumps({BAD: ATTRIBUTE, "git": {"commit": BAD}}))
    page, found = write(folder).read_text(), Tags()
    found.feed(page)
    assert found.tags.count("script") == benign.tags.count("script")
    assert not {name for name in found.attributes if name.startswith("on")}
    assert "alert(1)" in page, "what was given is shown, as text"


def test_a_model_card_shows_names_as_they_are():
    from hidistill.export.card import Card, readme

    card = Card(
        teacher=BAD,
        lines={BAD: f"{BAD}\n# not a heading"},
        metrics=[{"name": f"a | b {BAD}", BAD: "[x](javascript:alert(1))"}],
        license={"license": "mit", "license_name": BAD, "license_link": "[a](javascript:b)"},
    )
    text = readme(card, title=f"x {BAD}", usage="pipe()")
    body = text.split("---\n", 2)[2]
    assert "<script" not in body
    assert "\n# not a heading" not in body
    assert not re.search(r"(?<!\\)\]\(", body)
    (row,) = [line for line in body.splitlines() if "a \\| b" in line]
    assert row.replace("\\|", "").count("|") == 3
