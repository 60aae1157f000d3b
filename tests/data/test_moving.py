import pytest
import torch

from hidistill.data.moving import Motion, bounced, clips, ways
from hidistill.types import Split

MOTION = Motion(frames=7, side=6, fastest=2)
"""Of pictures of 2 x 2 pixels: places are 0 to 4."""


def pictures(n=12, classes=3, first=0):
    """Different pictures without a black pixel, by whose corner they are known."""
    images = torch.full((n, 1, 2, 2), 200, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(first, first + n) + 1
    return Split(images, torch.arange(n) % classes, tuple("abc"[:classes]))


def where(pixels):
    """Row and column of the first pixel that is not black, of each frame, and the picture there."""
    n, frames = pixels.shape[:2]
    lit = pixels[:, :, 0] > 0
    rows, columns = lit.any(3).int().argmax(2), lit.any(2).int().argmax(2)
    assert (lit.sum((2, 3)) == 4).all()
    corner = pixels[torch.arange(n)[:, None], torch.arange(frames), 0, rows, columns]
    return rows, columns, (corner * 255).round().int()


def test_a_place_that_runs_into_a_side_comes_back():
    def walk(place, speed):
        """A frame at a time: what goes beyond a side is turned round, and the speed with it."""
        yield place
        for _ in range(9):
            place += speed
            if place < 0:
                place, speed = -place, -speed
            if place > 4:
                place, speed = 8 - place, -speed
            yield place

    for place in range(5):
        for speed in range(-3, 4):
            found = bounced(torch.tensor([place]), torch.tensor([speed]), 10, 4)
            assert found[0].tolist() == list(walk(place, speed))
    assert bounced(torch.tensor([3]), torch.tensor([2]), 5, 4).tolist() == [[3, 3, 1, 1, 3]]


def test_every_frame_shows_the_same_picture_on_one_of_the_ways():
    split = pictures()
    found = clips(split, range(300), MOTION, seed=0)
    assert found.pixels.shape == (300, 7, 1, 6, 6)
    rows, columns, corner = where(found.pixels)
    assert (corner == corner[:, :1]).all()
    assert torch.equal(split.labels[corner[:, 0] - 1], found.labels)
    assert torch.equal(found.labels, torch.arange(300) % 3)
    allowed = {tuple(way) for way in ways(MOTION, 2).tolist()}
    assert {tuple(way) for way in rows.tolist() + columns.tolist()} <= allowed
    assert ((rows != rows[:, :1]).any(1) | (columns != columns[:, :1]).any(1)).all()


def test_all_pictures_places_and_speeds_come():
    found = clips(pictures(), range(3000), MOTION, seed=0)
    rows, columns, corner = where(found.pixels)
    assert set(corner.flatten().tolist()) == set(range(1, 13))
    for axis in (rows, columns):
        assert {tuple(way) for way in axis.tolist()} == {tuple(way) for way in ways(MOTION, 2).tolist()}
        assert (torch.bincount(axis[:, 0]) - 600).abs().max() < 100
    steps = torch.stack([rows, columns], 2).diff(dim=1)[:, 0]
    inside = ((rows[:, 0] == 2) & (columns[:, 0] == 2)).nonzero().flatten()
    assert len(steps[inside].unique(dim=0)) == 24


def test_a_clip_depends_on_its_index_and_the_seed_alone():
    split = pictures()
    many = clips(split, range(40), MOTION, seed=3)
    few = clips(split, [7, 39, 7], MOTION, seed=3)
    assert torch.equal(few.pixels, many.pixels[[7, 39, 7]])
    assert torch.equal(few.labels, many.labels[[7, 39, 7]])
    other = clips(split, range(40), MOTION, seed=4)
    assert (other.pixels != many.pixels).flatten(1).any(1).float().mean() > 0.9


def test_parts_are_as_disjoint_as_their_pictures():
    corners = [set(where(clips(s, range(200), MOTION, seed=0).pixels)[2].flatten().tolist())
               for s in (pictures(first=0), pictures(first=12))]  # fmt: skip
    assert corners == [set(range(1, 13)), set(range(13, 25))]


def test_digits_move_whole():
    pytest.importorskip("sklearn")
    from hidistill.data.digits import digits

    split = digits("train")
    found = clips(split, range(30), Motion(), seed=0)
    known = split.images.flatten(1).sum(1)
    assert found.pixels.shape == (30, 8, 1, 16, 16)
    ink = (found.pixels * 255).round().long().sum((2, 3, 4))
    assert (ink == ink[:, :1]).all()
    for total, label in zip(ink[:, 0], found.labels, strict=True):
        assert label in split.labels[known == total]


@pytest.mark.parametrize(
    "motion", [Motion(frames=1, side=6), Motion(side=2), Motion(side=6, fastest=0), Motion(side=6, fastest=5)]
)
def test_where_nothing_can_move_is_refused(motion):
    with pytest.raises(ValueError, match=r"motion needs 2 frames or more.*give more frames or a larger side"):
        clips(pictures(), [0], motion, seed=0)


def test_other_pictures_are_refused():
    with pytest.raises(ValueError, match="pictures of 2 x 3 pixels"):
        clips(Split(torch.ones(1, 1, 2, 3, dtype=torch.uint8), torch.zeros(1, dtype=torch.long), ()), [0], MOTION,
              seed=0)  # fmt: skip
    split = pictures()
    with pytest.raises(ValueError, match="no picture of d"):
        clips(Split(split.images, split.labels, tuple("abcd")), [0], MOTION, seed=0)
