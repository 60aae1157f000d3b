import subprocess
import sys

import pytest
import torch

from hidistill.seeds import fold_in, normal, shuffled


def test_fold_in_tells_names_numbers_and_orders_apart():
    seeds = [fold_in(0), fold_in(1), fold_in(0, "a"), fold_in(0, "a", 1), fold_in(0, 1, "a"), fold_in(0, "a1")]
    seeds += [fold_in(0, "a", "1"), fold_in(0, 1), fold_in(0, "1")]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_fold_in_is_the_same_in_another_process():
    """Python salts `hash()` anew in each."""
    code = "from hidistill.seeds import fold_in; print(fold_in(7, 'sketch', 3))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(answer.stdout) == fold_in(7, "sketch", 3)


def test_a_row_of_noise_depends_on_its_own_seed_alone():
    together = normal(range(6), (2, 3))
    assert together.shape == (6, 2, 3)
    assert together.dtype == torch.float32
    for seed in range(6):
        assert torch.equal(normal([seed], (2, 3))[0], together[seed])
    assert torch.equal(normal([4, 1], (2, 3)), together[[4, 1]])


def test_noise_leaves_the_default_generator_alone():
    before = torch.get_rng_state()
    normal(range(3), (2,))
    shuffled(10, batch_size=3, step=1, seed=0)
    assert torch.equal(before, torch.get_rng_state())


def test_noise_is_standard_and_independent_between_rows():
    noise = normal(range(400), (100,))
    assert abs(noise.mean()) < 0.025
    assert abs(noise.std() - 1) < 0.02
    neighbors = (noise[:-1] * noise[1:]).mean()
    assert abs(neighbors) < 0.025


def test_no_seeds_give_an_empty_batch():
    assert normal([], (2, 3)).shape == (0, 2, 3)


@pytest.mark.parametrize(("count", "batch_size"), [(10, 3), (7, 7), (5, 8), (3, 20)])
def test_every_pass_visits_every_item_once(count, batch_size):
    steps = 3 * count
    seen = torch.cat([shuffled(count, batch_size=batch_size, step=step, seed=1) for step in range(steps)])
    assert len(seen) == steps * batch_size
    passes = seen[: len(seen) // count * count].reshape(-1, count)
    assert torch.equal(passes.sort(1).values, torch.arange(count).expand_as(passes))


def test_passes_and_seeds_have_orders_of_their_own():
    orders = [shuffled(50, batch_size=50, step=step, seed=seed) for step in (0, 1) for seed in (0, 1)]
    assert not any(torch.equal(a, b) for i, a in enumerate(orders) for b in orders[:i])


@pytest.mark.parametrize(("count", "batch_size"), [(0, 1), (5, 0)])
def test_nothing_to_draw_is_refused(count, batch_size):
    with pytest.raises(ValueError, match="at least 1"):
        shuffled(count, batch_size=batch_size, step=0, seed=0)
