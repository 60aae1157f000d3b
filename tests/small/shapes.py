"""Small pictures with captions: a disc or a box of some color at some place, on white."""

import json

import numpy as np
from PIL import Image, ImageDraw

COLORS = {"red": (220, 30, 40), "green": (40, 170, 60), "blue": (40, 80, 220), "black": (20, 20, 20)}
FORMS = ("disc", "box", "left half")
SENTENCES = tuple(f"{color} {form}" for color in COLORS for form in FORMS)


def draw_shapes(folder, *, count, size):
    """Write pictures and `metadata.jsonl`; gives the folder."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(count):
        color, form = list(COLORS)[i % len(COLORS)], FORMS[i // len(COLORS) % len(FORMS)]
        picture = Image.new("RGB", (size, size), "white")
        left, top = rng.integers(0, size // 3, 2).tolist()
        right, bottom = rng.integers(2 * size // 3, size, 2).tolist()
        draw = ImageDraw.Draw(picture)
        if form == "disc":
            draw.ellipse((left, top, right, bottom), fill=COLORS[color])
        elif form == "box":
            draw.rectangle((left, top, right, bottom), fill=COLORS[color])
        else:
            draw.rectangle((0, 0, size // 2 - 1, size), fill=COLORS[color])
        picture.save(folder / f"{i:03}.png")
        rows.append({"file_name": f"{i:03}.png", "text": f"{color} {form}"})
    (folder / "metadata.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder
