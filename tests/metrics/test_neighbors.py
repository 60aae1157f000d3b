from dataclasses import dataclass

import pytest
import torch

from hidistill.metrics.neighbors import BLOCK, Copying, Neighbors, center_of, nearest, radii, tiles
from hidistill.types import Gallery, Samples


@dataclass(frozen=True)
class Flat:
    name: str = "flat"

    def __call__(self, images):
        return images.flatten(1)


def gallery(points):
    rows = torch.as_tensor(points, dtype=torch.float32).reshape(len(points), -1)
    return Gallery(rows[:, None, None], torch.zeros(len(rows), dtype=torch.int64))


def numbers(real, generated, k):
    found = Neighbors(Flat(), k)(Samples(gallery(generated), gallery(real)))
    return tuple(found[f"{key}/flat"] for key in ("precision", "recall", "density", "coverage"))


def test_on_a_line_by_hand():
    # radii of the real points: 1, 1, 1, 8, 1, 1; of the generated ones: 1, 1, 2, 1, 1
    real, generated = [0, 1, 2, 10, 50, 51], [0.5, 1.5, 3.5, 30, 31]
    assert numbers(real, generated, k=1) == pytest.approx((3 / 5, 3 / 6, (2 + 2 + 1) / 5, 4 / 6))


def test_two_neighbors_on_a_line_by_hand():
    # radii of the real points: 2, 1, 2, 9; of the generated ones: 8, 7, 8
    assert numbers([0, 1, 2, 10], [3, 4, 11], k=2) == pytest.approx((1, 1, (2 + 2 + 1) / (2 * 3), 2 / 4))


def test_a_set_against_itself():
    x = torch.randn(40, 3)
    # a ball of k neighbors holds k + 1 points, its center included
    assert numbers(x, x, k=4) == pytest.approx((1, 1, 5 / 4, 1))


def test_sets_far_apart_share_nothing():
    x = torch.randn(20, 2)
    assert numbers(x, x + 1000, k=3) == (0, 0, 0, 0)


def test_collapse_keeps_precision_and_loses_recall():
    x = torch.randn(60, 2)
    precision, recall, _, coverage = numbers(x, x[:1].expand(60, 2), k=3)
    assert precision == 1
    assert recall <= 1 / 60
    assert coverage < 0.2


def test_blocks_do_not_show():
    n = BLOCK + 76
    real, generated = torch.randn(n, 2), 1.5 * torch.randn(n - 10, 2)
    direct = (real[:, None].double() - generated.double()).norm(dim=2)
    reach_real = (real[:, None].double() - real.double()).norm(dim=2).sort(1).values[:, 3]
    reach_generated = (generated[:, None].double() - generated.double()).norm(dim=2).sort(1).values[:, 3]
    whole = torch.full_like(direct, torch.nan)
    for rows, columns, squared, _ in tiles(real, generated, center=center_of(real)):
        whole[rows, columns] = squared.sqrt()
    torch.testing.assert_close(whole, direct)
    torch.testing.assert_close(radii(real, 3), reach_real)
    torch.testing.assert_close(nearest(real, generated), direct.amin(1))
    inside = direct <= reach_real[:, None]
    expected = (
        inside.any(0).double().mean().item(),
        (direct <= reach_generated).any(1).double().mean().item(),
        inside.double().sum().item() / (3 * len(generated)),
        inside.any(1).double().mean().item(),
    )
    assert numbers(real, generated, k=3) == pytest.approx(expected, abs=2e-3)


def test_shifting_all_images_far_away_changes_nothing():
    # float32 products of such features would lose the distances
    real, generated = torch.randint(0, 2048, (2, 50, 2)).float() / 2048
    assert numbers(real + 4096, generated + 4096, k=3) == numbers(real, generated, k=3)


def test_copies_of_training_images_are_at_distance_zero():
    training, real = gallery([0, 10, 20]), gallery([1, 12, 23])
    copying = Copying(Flat(), training)
    # held-out images are 1, 2 and 3 away from the training images
    assert copying(Samples(training, real)) == {"nearest/flat": pytest.approx(0, abs=1e-9)}
    assert copying(Samples(real, real)) == {"nearest/flat": pytest.approx(1)}
    assert copying(Samples(gallery([4, 15, 19]), real)) == {"nearest/flat": pytest.approx((4 + 5 + 1) / 6)}


def test_copies_are_at_distance_zero_whatever_their_size():
    x = 1000 + torch.randn(6, 300)
    assert radii(torch.cat([x, x, x]), 2).max() == 0
    # every real image is there twice, so its nearest neighbor is itself, and only copies are inside
    near = x + 1e-3
    assert numbers(torch.cat([x, x]), torch.cat([x, x]), k=1) == (1, 1, 2, 1)
    assert numbers(torch.cat([x, x]), torch.cat([near, near]), k=1)[0] == 0


@pytest.mark.parametrize("block", [BLOCK, 64, 7])
def test_a_copy_lies_on_the_border_of_the_balls_that_reach_to_its_original(block, monkeypatch):
    """Against distances pair by pair, of which equal ones are equal to the last bit."""
    monkeypatch.setattr("hidistill.metrics.neighbors.BLOCK", block)
    generator = torch.Generator().manual_seed(0)
    real = 3 + torch.randn(150, 200, generator=generator)
    generated = torch.cat([2.9 + torch.randn(50, 200, generator=generator), real[torch.arange(120, 20, -1)]])

    def distances(a, b):
        return torch.cdist(a.double(), b.double(), compute_mode="donot_use_mm_for_euclid_dist")

    direct, k = distances(real, generated), 3
    inside = direct <= distances(real, real).sort(1).values[:, k, None]
    on_the_border = direct == distances(real, real).sort(1).values[:, k, None]
    assert on_the_border.sum() >= 50
    expected = (
        inside.any(0).double().mean().item(),
        (direct <= distances(generated, generated).sort(1).values[:, k]).any(1).double().mean().item(),
        inside.double().sum().item() / (k * len(generated)),
        inside.any(1).double().mean().item(),
    )
    assert numbers(real, generated, k) == pytest.approx(expected, abs=1e-12)


def test_as_many_references_as_asked_for_are_looked_at():
    real, generated = torch.randn(50, 3), torch.randn(20, 3)
    chosen = real[torch.linspace(0, 49, 10).round().long()]
    few = Neighbors(Flat(), 3, references=10)
    assert few(Samples(gallery(generated), gallery(real))) == Neighbors(Flat(), 3)(
        Samples(gallery(generated), gallery(chosen))
    )
    assert few.name == "neighbors-3 of 10/flat"
    all_of_them = Neighbors(Flat(), 3, references=10_000)(Samples(gallery(generated), gallery(real)))
    assert all_of_them == Neighbors(Flat(), 3)(Samples(gallery(generated), gallery(real)))


def test_refuses_what_it_cannot_count():
    with pytest.raises(ValueError, match="references=3: 3 neighbors need more"):
        Neighbors(Flat(), 3, references=3)
    with pytest.raises(ValueError, match="5 images came; 5 neighbors of each need at least 6"):
        numbers(torch.randn(9, 2), torch.randn(5, 2), k=5)
    with pytest.raises(ValueError, match="k=0"):
        Neighbors(Flat(), 0)
    same = gallery([1, 2])
    with pytest.raises(ValueError, match="use another split"):
        Copying(Flat(), same)(Samples(same, same))
