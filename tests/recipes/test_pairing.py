"""Classes of pictures and classes of a teacher."""

import pytest

from hidistill.recipes.pairing import names_of, paired, renumbered
from hidistill.types import Record, Source

ANIMALS = {0: "cat, kitty", 1: "dog", 2: "Great_bird", 3: "crane", 4: "crane, bird"}


@pytest.mark.parametrize(
    ("given", "known", "classes", "labels", "words"),
    [
        (["a", "b"], {}, 2, (0, 1), ""),
        (["a", "b"], {}, 3, (0, 1), "taken for its first ones"),
        ([str(i) for i in (0, 1, 10, 2, 3, 4, 5, 6, 7, 8, 9)], {}, 11, (0, 1, 10, *range(2, 10)), "by their numbers"),
        (["0", "1"], {0: "x", 1: "y"}, 2, (0, 1), ""),
        (["dog", "great-bird", "kitty"], ANIMALS, 5, (1, 2, 0), "by their names; the source has 3"),
        (["Cat, Kitty", "dog"], ANIMALS, 5, (0, 1), "first ones"),
        (["bird", "cat", "crane", "dog", "great bird"], ANIMALS, 5, (4, 0, 3, 1, 2), "by their names"),
        (["n01", "n02"], {0: "x", 1: "y"}, 2, (0, 1), "in their order"),
        (["1990", "1991"], {}, 2, (0, 1), ""),
    ],
)
def test_a_class_is_the_one_it_is_named_after(given, known, classes, labels, words):
    found = paired(given, known, classes=classes)
    assert found.labels == labels
    assert words in found.note
    assert bool(words) == bool(found.note)


@pytest.mark.parametrize(
    ("given", "known", "classes", "message"),
    [
        (["3", "7"], {}, 10, r"by their numbers .* labels \[3, 7\]"),
        (["0", "00"], {}, 3, "by their numbers"),
        (["bird", "dog"], ANIMALS, 5, r"by their names .* labels \[1, 4\] \(bird 4, dog 1\)"),
        (["cat", "hound"], ANIMALS, 5, "no class 'hound'; its names are cat, kitty; dog; Great_bird"),
        (["n01", "n02"], ANIMALS, 5, "no class 'n01', 'n02'"),
    ],
)
def test_what_would_be_another_class_is_refused(given, known, classes, message):
    with pytest.raises(ValueError, match=message):
        paired(given, known, classes=classes)


def test_names_are_those_of_the_index():
    assert names_of({"id2label": {"1": "dog", "0": "cat"}}) == {1: "dog", 0: "cat"}
    assert names_of({"_class_name": "DiTPipeline"}) == {}


def test_a_source_is_renumbered():
    rows = [Record("a", None, 0), Record("b", None, 1), Record("c", None, 2)]
    source = Source(lambda start: iter(rows[start:]), 3, "digest", ("x", "y", "z"))
    again = renumbered(lambda: source, (2, 0, 1))
    assert again.classes == ["y", "z", "x"]
    assert [(record.key, record.label) for record in again.records(1)] == [("b", 0), ("c", 1)]
    assert again.digest != source.digest
    assert renumbered(lambda: source, (0, 1, 2)) is source
