"""Parts of the page as HTML: every word from outside is escaped, every picture lies in the page and has its words."""

from collections.abc import Sequence
from html import escape

from PIL import Image

from hidistill.report.page import uri
from hidistill.report.pictures import grid, picture, quantized
from hidistill.types import Images
from hidistill.view.flow import Frames
from hidistill.view.pairs import Pair, Side
from hidistill.view.wishes import Wish

SMALL = 64
"""Pictures below this side are enlarged pixel by pixel; larger ones smoothly."""


def problem(error: Exception) -> str:
    """What went wrong, announced to who cannot see it."""
    return f'<p class="hd-problem" role="alert">{escape(str(error))}</p>'


def note(text: str) -> str:
    """A sentence, announced when it changes."""
    return f'<p class="hd-note" role="status">{escape(text)}</p>' if text else ""


def image_of(pixels: Images) -> Image.Image:
    """One image (1, c, h, w)."""
    return picture(quantized(pixels)[0])


def img(source: Image.Image, alt: str) -> str:
    """A picture with its words."""
    kind = ' class="hd-pixels"' if max(source.size) <= SMALL else ""
    return f'<img{kind} src="{uri(source)}" alt="{escape(alt, quote=True)}">'


def legend(side: Side, place: str) -> str:
    """Who stands where, and what it took."""
    return f"<div><dt>{escape(place)}: {escape(side.name)}</dt><dd>{escape(side.cost)}</dd></div>"


def compared(pair: Pair, made: Wish) -> str:
    """Teacher on the left and student on the right, a card for each noise."""
    cards = []
    for i, asked in enumerate(pair.asked):
        what = f"{asked}, seed {made.seed}, image {i}" if asked else f"seed {made.seed}, image {i}"
        both = "".join(
            img(image_of(side.images[i : i + 1]), f"{side.name}: {what}") for side in (pair.teacher, pair.student)
        )
        words = f"{asked} · {i}" if asked else str(i)
        cards.append(f'<figure class="hd-pair"><div>{both}</div><figcaption>{escape(words)}</figcaption></figure>')
    sides = legend(pair.teacher, "left") + legend(pair.student, "right")
    faster = pair.teacher.seconds / pair.student.seconds
    said = f"Same noise and condition in each pair. The student took {ratio(faster)} of the teacher's time."
    return f'<dl class="hd-legend">{sides}</dl><div class="hd-pairs">{"".join(cards)}</div>{note(said)}'


def ratio(faster: float) -> str:
    """A share of a time in words: 1/25, or 120 %."""
    return f"1/{faster:.0f}" if faster >= 1.5 else f"{100 / faster:.0f} %"


def slider(found: Frames, student: str, made: Wish) -> str:
    """Both ways from noise to image, with a native slider that shows one time of all of them."""
    count = len(found.times)
    rows = []
    for i, asked in enumerate(found.asked):
        strips = []
        for name, images in ((f"teacher, {found.teacher_steps} steps", found.teacher), (student, found.student)):
            strip = grid(quantized(images[:, i]), columns=count, gap=0)
            kind = "hd-pixels" if max(images.shape[-2:]) <= SMALL else ""
            alt = f"{name}, from noise to image: {asked or 'image'} {i}, seed {made.seed}"
            strips.append(
                f'<span class="hd-frame" style="aspect-ratio:{images.shape[-1]}/{images.shape[-2]}">'
                f'<img class="{kind}" style="width:{count * 100}%" src="{uri(strip)}" alt="{escape(alt)}"></span>'
            )
        words = f"{asked} · {i}" if asked else str(i)
        rows.append(
            f'<figure class="hd-pair"><div>{"".join(strips)}</div><figcaption>{escape(words)}</figcaption></figure>'
        )
    act = (
        "const box=this.closest('.hd-flow'),r=(1-this.value/this.max).toFixed(2);"
        "box.style.setProperty('--frame',this.value);this.setAttribute('aria-valuetext','time '+r);"
        "box.querySelector('output').textContent='t = '+r"
    )
    return (
        f'<div class="hd-flow" style="--frame:0;--frames:{count}"><label>From noise (t = 1) to image (t = 0)'
        f'<input type="range" min="0" max="{count - 1}" value="0" step="1" aria-valuetext="time 1.00" '
        f'oninput="{escape(act)}"></label><output>t = 1.00</output><div class="hd-pairs">{"".join(rows)}</div>'
        f'<p class="hd-note">Left: the teacher along its trajectory, {found.teacher_steps} steps, guidance '
        f"{made.scale:g}. Right: where one jump of {escape(student)} lands at that time.</p></div>"
    )


def attended(looks: Sequence[tuple[str, Image.Image, float]], t: float) -> str:
    """Attention over the pictures of each side."""
    parts = [
        f'<figure class="hd-looks"><h3>{escape(name)}</h3>{img(image, f"Attention over pictures of {name}")}'
        f"<figcaption>The brightest token has {largest:.2f} times the weight of average pooling.</figcaption></figure>"
        for name, image, largest in looks
    ]
    said = (
        f"AWD attention at t = {t:g} over the teacher's tokens, mean over the queries: a row per picture, a column per "
        "tapped layer; dark is 0, on one scale for each side."
    )
    return f'<div class="hd-columns">{"".join(parts)}</div>{note(said)}'


def blind(left: Images, right: Images, asked: str) -> str:
    """Two pictures that do not say who drew them."""
    both = "".join(
        f"<figure>{img(image_of(pixels), f'{place} picture: {asked}')}<figcaption>{place}</figcaption></figure>"
        for place, pixels in (("Left", left), ("Right", right))
    )
    return f'<p class="hd-asked">Which is the better picture{of(asked)}?</p><div class="hd-blind">{both}</div>'


def of(asked: str) -> str:
    """What was asked for, as part of a question."""
    return f" of <b>{escape(asked)}</b>" if asked else ""
