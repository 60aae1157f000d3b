import importlib.util
import io
import json
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from hidistill.data.captioned import read

RED, GREEN, BLUE, CLEAR = (255, 0, 0, 255), (0, 255, 0, 255), (0, 0, 255, 255), (0, 0, 0, 0)


@pytest.fixture(scope="module")
def script():
    path = Path(__file__).parents[2] / "scripts" / "build_emoji.py"
    spec = importlib.util.spec_from_file_location("build_emoji", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def solid(color, size=(8, 8)):
    return Image.new("RGBA", size, color)


def file_of(tmp_path, emoji):
    """The file of names that the npm package holds, for a few emoji."""
    path = tmp_path / "names.json"
    path.write_text(json.dumps({text: {"name": name, "group": group} for text, name, group in emoji}))
    return path


def write_font(path, pictures, characters, ligatures):
    """A font whose glyphs are PNG files; `ligatures` in the language of feature files."""
    from fontTools.feaLib.builder import addOpenTypeFeaturesFromString
    from fontTools.fontBuilder import FontBuilder
    from fontTools.misc import sstruct
    from fontTools.ttLib import newTable
    from fontTools.ttLib.tables import C_B_D_T_, E_B_L_C_, BitmapGlyphMetrics

    def fill(record, layout, **values):
        for name in sstruct.getformat(layout)[1]:
            setattr(record, name, values.get(name, 0))
        return record

    glyphs = list(dict.fromkeys([".notdef", *characters.values(), *pictures]))
    builder = FontBuilder(128, isTTF=False)
    builder.setupGlyphOrder(glyphs)
    builder.setupCharacterMap(characters)
    builder.setupHorizontalMetrics(dict.fromkeys(glyphs, (128, 0)))
    builder.setupHorizontalHeader()
    builder.setupMaxp()
    addOpenTypeFeaturesFromString(builder.font, ligatures)

    drawn = [name for name in glyphs if name in pictures]
    metrics = fill(
        BitmapGlyphMetrics.SmallGlyphMetrics(), BitmapGlyphMetrics.smallGlyphMetricsFormat, height=8, width=8
    )
    data, places = newTable("CBDT"), newTable("CBLC")
    data.version = places.version = 3.0
    data.strikeData = [{}]
    for name in drawn:
        content = io.BytesIO()
        pictures[name].save(content, "png")
        bitmap = C_B_D_T_.cbdt_bitmap_format_17(b"", builder.font)
        bitmap.metrics, bitmap.imageData = metrics, content.getvalue()
        data.strikeData[0][name] = bitmap
    strike = E_B_L_C_.Strike()
    size = fill(strike.bitmapSizeTable, E_B_L_C_.bitmapSizeTableFormatPart1)
    fill(size, E_B_L_C_.bitmapSizeTableFormatPart2, ppemX=8, ppemY=8, bitDepth=32)
    size.hori = size.vert = fill(E_B_L_C_.SbitLineMetrics(), E_B_L_C_.sbitLineMetricsFormat)
    index = E_B_L_C_.eblc_index_sub_table_1(b"", builder.font)
    index.names, index.indexFormat, index.imageFormat = drawn, 1, 17
    strike.indexSubTables = [index]
    places.strikes = [strike]
    builder.font["CBDT"], builder.font["CBLC"] = data, places
    builder.save(path)
    return path


def test_names_are_in_ascii_and_flags_are_asked_for(script, tmp_path):
    emoji = [
        ("\U0001f9be", "robot\u2019s \u201carm\u201d", "People"),
        ("\U0001f1e6\U0001f1e9", "flag Andorra", "Flags"),
        ("\U0001f6a9", "triangular flag", "Flags"),
    ]
    path = file_of(tmp_path, emoji)
    few = script.read_things(path, flags=False)
    assert [thing.name for thing in few.values()] == ['robot\'s "arm"', "triangular flag"]
    more = script.read_things(path, flags=True)
    assert more["1f1e6-1f1e9"] == script.Thing("flag of Andorra", "1f1e6-1f1e9", "Flags")


@pytest.mark.parametrize("written", ["0023-fe0f-20e3", "23-20e3", "0023_FE0F_20E3"])
def test_one_emoji_has_one_key(script, written):
    assert script.plain(written) == "23-20e3"


def test_a_font_draws_characters_and_their_sequences(script, tmp_path):
    font = write_font(
        tmp_path / "font.ttf",
        {"man": solid(RED), "man_rocket": solid(GREEN), "tone": solid(BLUE)},
        {0x1F468: "man", 0x200D: "joiner", 0x1F680: "rocket", 0x1F3FB: "tone"},
        "feature liga { sub man joiner rocket by man_rocket; } liga;",
    )
    emoji = [
        ("\U0001f468\u200d\U0001f680", "man astronaut", "People"),
        ("\U0001f468", "man", "People"),
        ("\U0001f680", "rocket", "Travel"),
    ]
    things = script.read_things(file_of(tmp_path, emoji), flags=False)
    drawn = dict(script.noto(font, things))
    assert {key: picture.getpixel((3, 3)) for key, picture in drawn.items()} == {
        "1f468-200d-1f680": GREEN,
        "1f468": RED,
    }


def test_files_are_found_by_code_points(script, tmp_path):
    folder = tmp_path / "assets"
    folder.mkdir()
    for name, color in (("0023-fe0f-20e3", RED), ("23-20e3", BLUE), ("1f468-1f3fb", GREEN)):
        solid(color).save(folder / f"{name}.webp", lossless=True)
    things = {"23-20e3": script.Thing("keycap #", "23-fe0f-20e3", "Symbols")}
    [(key, picture)] = script.named_files(folder, things)
    assert (key, picture.getpixel((3, 3))) == ("23-20e3", RED)


def test_a_picture_lies_in_the_middle_of_a_white_square(script):
    picture = solid(CLEAR, (12, 8))
    picture.paste(RED, (0, 0, 6, 8))
    pixels = np.asarray(script.on_white(picture))
    assert pixels.shape == (12, 12, 3)
    assert (pixels[2:10, :6] == RED[:3]).all()
    assert (pixels[:2] == 255).all()
    assert (pixels[10:] == 255).all()
    assert (pixels[:, 6:] == 255).all()


def shares(script, styles):
    return {name: {style: script.split(name, style, styles) for style in styles} for name in map(str, range(4000))}


def test_a_tenth_of_the_names_is_new_and_a_twentieth_new_in_a_style(script):
    kinds = Counter("+".join(sorted(where.values())) for where in shares(script, ("noto", "fluent-3d")).values())
    assert set(kinds) == {"train+train", "test+test", "train+valid"}
    # Four standard deviations of a binomial of 4,000.
    assert kinds["test+test"] == pytest.approx(400, abs=76)
    assert kinds["train+valid"] == pytest.approx(200, abs=56)


def test_every_style_is_held_out_about_equally_often(script):
    held = [where for where in shares(script, ("noto", "fluent-3d")).values() if "valid" in where.values()]
    assert sum(where["noto"] == "train" for where in held) == pytest.approx(len(held) / 2, abs=2 * len(held) ** 0.5)


def test_a_third_style_moves_no_unseen_name(script):
    two, three = shares(script, ("noto", "fluent-3d")), shares(script, ("openmoji", "fluent-3d", "noto"))
    assert all((two[name]["noto"] == "test") == (three[name]["noto"] == "test") for name in two)


@pytest.fixture
def drawings(script):
    """Two styles of 60 things, each picture of a color of its own, but for one that repeats another."""
    things = {f"{i:x}": script.Thing(f"thing {i}", f"{i:x}", "Things") for i in range(1, 61)}
    drawn = {
        style: {key: solid((level, i, 0, 255)) for i, key in enumerate(things)}
        for style, level in (("noto", 50), ("fluent-3d", 200))
    }
    drawn["noto"]["2"] = drawn["noto"]["1"]
    del drawn["fluent-3d"]["3"]
    return SimpleNamespace(things=things, drawn=drawn)


def test_the_folders_are_captioned_sources(script, drawings, tmp_path):
    rows = script.write(tmp_path, drawings.drawn, drawings.things, size=4)
    assert len(rows) == 2 * 60 - 2
    assert not [row for row in rows if (row["style"], row["name"]) in {("noto", "thing 2"), ("fluent-3d", "thing 3")}]
    for part in script.SPLITS:
        source = read(tmp_path / part, size=4)
        inside = {row["file_name"]: row for row in rows if row["split"] == part}
        assert source.count == len(inside) > 0
        for record in source.records(0):
            row = inside[record.key]
            assert record.caption == row["text"]
            color = drawings.drawn[row["style"]][row["codepoints"]].getpixel((0, 0))[:3]
            assert tuple(record.image[:, 2, 2].tolist()) == color


def test_a_caption_names_thing_and_style(script, drawings, tmp_path):
    rows = script.write(tmp_path, drawings.drawn, drawings.things, size=4)
    captions = {row["text"] for row in rows if row["name"] == "thing 1"}
    assert captions == {"thing 1, flat drawing", "thing 1, 3D render"}


def test_no_unseen_name_is_trained_on(script, drawings, tmp_path):
    rows = script.write(tmp_path, drawings.drawn, drawings.things, size=4)
    names = {part: {row["name"] for row in rows if row["split"] == part} for part in script.SPLITS}
    assert names["test"]
    assert not names["test"] & (names["train"] | names["valid"])
    assert names["valid"] <= names["train"]


def test_the_same_bytes_twice(script, drawings, tmp_path):
    for name in ("one", "two"):
        script.write(tmp_path / name, drawings.drawn, drawings.things, size=4)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert len(files) == 118 + 3
    assert all((tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes() for file in files)


def test_a_missing_client_is_named(script, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match="npm is needed"):
        script.fetch(tmp_path / "packages", openmoji=False)


def test_an_existing_folder_is_left_alone(script, tmp_path):
    with pytest.raises(SystemExit, match="remove it or give another"):
        script.main(tmp_path)
