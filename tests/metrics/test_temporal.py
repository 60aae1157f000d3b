import pytest
import torch

from hidistill.metrics.temporal import appearance_change, centered, centroids, motion_error

WAYS = torch.tensor([[2, 2, 2, 2], [0, 1, 2, 3], [3, 2, 1, 0], [1, 2, 3, 2]])


def dots(rows, columns, size=9):
    """Clips (n, frames) of one bright pixel."""
    n, frames = rows.shape
    clips = torch.zeros(n, frames, 1, size, size)
    clips[torch.arange(n)[:, None], torch.arange(frames), 0, rows, columns] = 1
    return clips


def shown(pictures, places, size=12):
    """Pictures (n, frames, h, w) at places (n, frames, 2) on a canvas."""
    n, frames, h, w = pictures.shape
    clips = torch.zeros(n, frames, 1, size, size)
    for i in range(n):
        for k in range(frames):
            y, x = places[i, k].tolist()
            clips[i, k, 0, y : y + h, x : x + w] = pictures[i, k]
    return clips


def test_the_centroid_of_two_pixels_lies_between_them_by_their_squares():
    clip = torch.zeros(1, 2, 1, 5, 7)
    clip[0, 0, 0, 1, 2], clip[0, 0, 0, 3, 6] = 0.6, 0.8
    found = centroids(clip)
    expected = 0.36 * torch.tensor([1.0, 2.0]) + 0.64 * torch.tensor([3.0, 6.0])
    torch.testing.assert_close(found[0, 0], expected.double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(found[0, 1], torch.tensor([2.0, 3.0]).double())  # black: the middle


def test_an_allowed_motion_has_no_error_wherever_it_is():
    rows, columns = WAYS[[1, 3, 0]] + torch.tensor([[4], [0], [2]]), WAYS[[2, 0, 3]]
    assert motion_error(dots(rows, columns), WAYS) == pytest.approx(0, abs=1e-6)


def test_a_motion_between_the_allowed_ones_has_the_distance_to_the_closest():
    rows = torch.tensor([[0, 1, 2, 5]])  # way 0, 1, 2, 3 with residuals (0, 0, 0, 2) - 1/2: mean square 3/4
    found = motion_error(dots(rows, WAYS[[2]]), WAYS)
    assert found == pytest.approx(0.75**0.5, abs=1e-6)


def test_standing_still_is_no_motion():
    """The closest that moves is way 1, 2, 3, 2, at mean squared distance 1/2 from its own mean."""
    still = torch.full((1, 4), 3)
    assert motion_error(dots(still, still), WAYS) == pytest.approx(0.5**0.5, abs=1e-6)


def test_errors_are_means_over_clips():
    rows, columns = torch.tensor([[0, 1, 2, 5], [0, 1, 2, 3]]), WAYS[[2, 2]]
    assert motion_error(dots(rows, columns), WAYS) == pytest.approx((0.75 / 2) ** 0.5, abs=1e-6)


def test_a_centered_frame_is_the_frame_moved():
    picture = torch.zeros(1, 1, 3, 3)
    picture[0, 0] = torch.tensor([[0.1, 0.2, 0.1], [0.2, 0.9, 0.2], [0.1, 0.2, 0.1]])
    away = shown(picture, torch.tensor([[[0, 5]]]), size=9)
    middle = shown(picture, torch.tensor([[[3, 3]]]), size=9)
    torch.testing.assert_close(centered(away), middle.double(), atol=1e-6, rtol=0)
    beside = centered(away[..., :8])  # the middle of 8 columns lies between two pixels
    expected = torch.zeros(9, 8, dtype=torch.float64)
    expected[3:6, 2:5] += picture[0, 0] / 2
    expected[3:6, 3:6] += picture[0, 0] / 2
    torch.testing.assert_close(beside[0, 0, 0], expected, atol=1e-6, rtol=0)


@pytest.fixture
def real():
    """Clips of pictures that stay what they are, and their places and labels."""
    pictures = torch.rand(60, 1, 5, 5).expand(-1, 4, -1, -1)
    places = torch.randint(0, 8, (60, 4, 2))
    return shown(pictures, places), torch.arange(60) % 3


def test_a_rigid_thing_does_not_change_however_it_moves(real):
    clips, labels = real
    assert appearance_change(clips, real=clips, labels=labels) == pytest.approx(0, abs=1e-6)


def test_another_thing_of_its_class_in_each_frame_is_one(real):
    clips, labels = real
    others = torch.cat([clips[labels == k][torch.stack([torch.randperm(20) for _ in range(4)], 1), 0]
                        for k in range(3)])  # fmt: skip
    assert appearance_change(others, real=clips, labels=labels) == pytest.approx(1, abs=0.06)


def test_change_is_counted_in_the_unit_of_its_class(real):
    """Two things that take turns: the root of their mean squared difference over that of the class."""
    first, second = torch.zeros(2, 3, 3)
    first[1, 1], second[1, 1] = 0.8, 0.2
    pair = torch.stack([first, second])
    still = torch.zeros(2, 2, 2, dtype=torch.long) + 3
    references = shown(pair[:, None], still[:, :1], size=9)
    turns = shown(torch.stack([first, second])[None], still[:1], size=9)
    labels = torch.zeros(2, dtype=torch.long)
    # two clips: squared difference 0.36, and twice their unbiased variance is the same
    assert appearance_change(turns, real=references, labels=labels) == pytest.approx(1, abs=1e-5)
    halved = shown(torch.stack([first, first - 0.5 * (first - second)])[None], still[:1], size=9)
    assert appearance_change(halved, real=references, labels=labels) == pytest.approx(0.5, abs=1e-5)


def test_what_cannot_be_judged_is_refused(real):
    clips, labels = real
    with pytest.raises(ValueError, match="ways of 4 frames came for clips of 3"):
        motion_error(clips[:, :3], WAYS)
    with pytest.raises(ValueError, match="no way among the allowed ones moves"):
        motion_error(clips, WAYS[:1])
    with pytest.raises(ValueError, match="no class has two different real clips"):
        appearance_change(clips, real=clips[:3], labels=labels[:3])
