"""The report: one self-contained page out of a run folder."""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from PIL import Image

from hidistill.files import whole
from hidistill.report import speed as pace
from hidistill.report.diagnosis import Finding, diagnose
from hidistill.report.folder import Run, read
from hidistill.report.pictures import KINDS, TILE, attention, comparison, grid, one_of_each, tile_size
from hidistill.report.plots import Plot, costs, guidance, losses, probes
from hidistill.report.scores import generated, of_role
from hidistill.report.words import command, flat, headline, table

WIDE, NARROW = 10, 5
"""Samples beside each other on a desk and on a phone."""
COPIES = 2
"""Samples of each class in the comparison."""
MOST = 40
"""Samples in the comparison at most; the grids show all."""
SIGNS = {"ok": "✓ ok", "watch": "! watch", "problem": "✗ problem", "unmeasured": "? not measured"}


def write(folder: Path) -> Path:
    """Write `report.html` and `pictures/*.png` into a run folder; parts that are missing are named on the page.

    Raises:
        ValueError: if the folder is missing or one of its files is broken.
    """
    run = read(folder)
    pictures = folder / "pictures"
    pictures.mkdir(exist_ok=True)
    evaluation = run.evaluation or {}
    sections = [
        ("samples", "Same noise, same classes", samples(run, pictures)),
        ("numbers", "Numbers", table(evaluation) if evaluation else missing("evaluation.json")),
        ("diagnosis", "Diagnosis", findings(diagnose(evaluation, run.journal))),
        ("cost", "Quality against cost", plots(costs(evaluation) + guidance(evaluation), pictures, "evaluation.json")),
        ("curves", "Curves", plots(probes(run.journal) + losses(run.journal), pictures, "metrics.jsonl")),
        ("speed", "Speed", speed(run, pictures)),
        ("attention", "Where the discriminator looks", looks(run, pictures)),
        ("run", "The run", about(run)),
    ]
    top = f"<h1>{escape(title(run))}</h1><p class='headline'>{headline(evaluation)}</p>" + lacking(run)
    links = "".join(f'<a href="#{name}">{heading}</a>' for name, heading, _ in sections)
    body = "\n".join(
        f'<section id="{name}"><h2>{heading}</h2>{content}</section>' for name, heading, content in sections
    )
    template = Template(files("hidistill.report").joinpath("page.html").read_text(encoding="utf-8"))
    page = template.substitute(title=escape(title(run)), body=f"<header>{top}<nav>{links}</nav></header>\n{body}")
    path = folder / "report.html"
    with whole(path) as partial:
        partial.write_text(page, encoding="utf-8")
    return path


def title(run: Run) -> str:
    """The recipe's name and the folder's."""
    return f"{(run.recipe or {}).get('recipe', 'hidistill')} · {run.path.resolve().name}"


def lacking(run: Run) -> str:
    """One line about everything that is missing or was cut off."""
    rows = generated(run.evaluation or {})
    sentences = list(run.notes)
    if rows:
        absent = [role for role in ("teacher", "sketch", "student") if not of_role(rows, role)]
        if absent:
            sentences.append(f"The evaluation has no {' and no '.join(absent)}.")
    return f'<p class="note">{escape(" ".join(sentences))}</p>' if sentences else ""


def missing(what: str) -> str:
    """A sentence in place of a section."""
    return f'<p class="note">Not available: the run folder has no {escape(what)}.</p>'


def samples(run: Run, pictures: Path) -> str:
    """The comparison, for wide and for narrow screens, and a grid of each kind as a file."""
    found = {kind: run.grids[kind] for kind in KINDS if kind in run.grids} if run.grids else {}
    if not found or run.grids is None:
        return missing("samples/grids.npz")
    labels = [int(label) for label in run.grids["labels"]]
    classes = [str(name) for name in run.grids.get("classes", ())]
    if len(classes) <= max(labels):
        classes = [str(i) for i in range(max(labels) + 1)] if max(labels) else []
    for kind, images in found.items():
        grid(images, columns=WIDE, scale=max(1, tile_size(images)[0] // images.shape[2])).save(pictures / f"{kind}.png")
    chosen = one_of_each(labels, limit=MOST, copies=COPIES if max(labels) else MOST)
    kinds = {kind: images[chosen] for kind, images in found.items()}
    columns = [labels[i] for i in chosen]
    wide = comparison(kinds, columns, classes, columns=min(WIDE, len(set(columns))) if max(labels) else WIDE)
    narrow = comparison(kinds, columns, classes, columns=NARROW, tile=2 * TILE * 2 // 3)
    wide.save(pictures / "comparison.png")
    absent = [kind for kind in KINDS if kind not in found]
    asked = str(run.grids.get("asked", "class"))
    text = f"{len(chosen)} of {len(labels)} samples. A column shows one {asked}"
    text += " and, in the generated rows, one noise." if len(found) > 1 else "."
    text += f" Not in this run: {', '.join(absent)}." if absent else ""
    alt = f"Rows of {', '.join(found)} images; each column one {asked}"
    return (
        f'<figure class="picture"><picture><source media="(max-width: 600px)" srcset="{uri(narrow)}">'
        f'<img src="{uri(wide)}" alt="{escape(alt)}"></picture><figcaption>{escape(text)}</figcaption></figure>'
    )


def speed(run: Run, pictures: Path) -> str:
    """How fast the run went."""
    found = pace.table(run.journal)
    return found + plots(pace.plots(run.journal), pictures, "metrics.jsonl") if found else missing("pace of its steps")


def looks(run: Run, pictures: Path) -> str:
    """Attention over images."""
    if not run.attention:
        return missing("samples/attention.npz")
    image, largest = attention(run.attention["images"], run.attention["weights"])
    image.save(pictures / "attention.png")
    text = (
        "The discriminator's attention over the teacher's tokens, mean over its queries. Dark is 0; the brightest "
        f"token has {largest:.2f} times the weight that average pooling gives to every token."
    )
    alt = "Images, and the attention of each tapped layer over them"
    return f'<figure class="picture"><img src="{uri(image)}" alt="{alt}"><figcaption>{text}</figcaption></figure>'


def plots(drawn: Sequence[Plot], pictures: Path, source: str) -> str:
    """Panels side by side, each saved as a PNG too."""
    if not drawn:
        return missing(f"rows for this in {source}")
    for plot in drawn:
        (pictures / f"{safe(plot.name)}.png").write_bytes(plot.png)
    panels = (
        f"<figure><h3>{escape(plot.title)}</h3>{plot.svg}<figcaption>{escape(plot.caption)}</figcaption></figure>"
        for plot in drawn
    )
    return f'<div class="plots">{"".join(panels)}</div>'


def findings(found: Sequence[Finding]) -> str:
    """The diagnosis, problems first."""
    order = ["problem", "watch", "ok", "unmeasured"]
    items = (
        f'<li class="{finding.severity}"><h3>{escape(finding.name)}<span>{SIGNS[finding.severity]}</span></h3>'
        f"<p>{escape(finding.sentence)}</p></li>"
        for finding in sorted(found, key=lambda finding: order.index(finding.severity))
    )
    return f'<ul class="findings">{"".join(items)}</ul>'


def about(run: Run) -> str:
    """The recipe, the environment, what happened, and the command that repeats it."""
    text = command(run.recipe) if run.recipe else None
    again = f"<p>To reproduce:</p><pre>{escape(text)}</pre>" if text else missing("recipe.json")
    arguments = (run.recipe or {}).get("arguments", {})
    pairs = [("Recipe", arguments), ("Environment", run.environment or {})]
    lists = "".join(f"<div><h3>{name}</h3>{definitions(content)}</div>" for name, content in pairs if content)
    events = [line for line in run.journal if line.get("kind") == "event"]
    told = "".join(f"<li>{escape(happened(line))}</li>" for line in events)
    return (
        again + f'<div class="pairs">{lists}</div>' + (f"<h3>Events</h3><ul class='note'>{told}</ul>" if told else "")
    )


def happened(event: Mapping[str, Any]) -> str:
    """An event in one line."""
    rest = {
        key: content for key, content in event.items() if key not in ("kind", "stage", "global_step", "step", "seconds")
    }
    words = ", ".join(str(content) if key in ("event", "name") else f"{key} {content}" for key, content in rest.items())
    return f"{event.get('stage', '')} step {event.get('global_step', '?')}: {words}".strip()


def definitions(content: Mapping[str, Any]) -> str:
    """Names and values."""
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in flat(content))
    return f"<dl>{items}</dl>"


def uri(image: Image.Image) -> str:
    """A picture as an address that holds it."""
    stream = io.BytesIO()
    image.save(stream, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def safe(name: str) -> str:
    """A name that any file system takes."""
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name)
