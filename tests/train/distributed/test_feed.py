"""Samples of a cache, read by several processes and threads, across an interruption."""

from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from nursery import together

from hidistill.codecs import Pixels
from hidistill.data.cache import Cache, Plan, write
from hidistill.share import Drawn
from hidistill.train.distributed.feed import Feed, own_rows
from hidistill.train.distributed.ranks import Ranks
from hidistill.types import Batch, Record, Source

COUNT, SIDE, BATCH, PROCESSES = 60, 4, 6, 3


def source():
    def records(start):
        for i in range(start, COUNT):
            pixels = torch.from_numpy(np.random.default_rng(i).integers(0, 256, (3, SIDE, SIDE), dtype=np.uint8))
            yield Record(f"{i:04d}.png", pixels, 0, part="train")

    return Source(records, COUNT, "numbers")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    root = tmp_path_factory.mktemp("cache")
    write(root, source, Plan(codec=Pixels(), codec_digest="pixels", prompts=None, size=SIDE, rows=16))
    return root


@pytest.mark.slow
def test_every_sample_comes_once_an_epoch_across_an_interruption(cache, tmp_path):
    epochs, steps = 3, 3 * COUNT // BATCH
    run = {"folder": tmp_path / "run", "what": "reading", "steps": steps, "count": PROCESSES, "workers": 2}
    run |= {"cache": cache, "log": tmp_path / "log", "rows": BATCH, "checkpoint_every": 4}
    # The thread that reads step 17 kills its process while training is at step 15 or so.
    first, again = together([run | {"happens": "die", "to": 1, "at": 17}, run])
    assert first[1]["status"] == -9
    assert [end["status"] for end in again] == [0] * PROCESSES, again
    seen = {}
    for rank in range(PROCESSES):
        for line in (tmp_path / f"log-{rank}").read_text().splitlines():
            step, sample = line.split()
            seen.setdefault(int(step), set()).add((rank, sample))
    assert sorted(seen) == list(range(steps))
    assert all(len(each) == BATCH for each in seen.values())  # steps that were taken again had the same rows
    stored = Cache.open(cache)
    everything = {f"{x.double().sum().item():.9f}" for x in stored.gathered("train", "x", torch.arange(COUNT))}
    assert len(everything) == COUNT
    for epoch in range(epochs):
        own = range(epoch * COUNT // BATCH, (epoch + 1) * COUNT // BATCH)
        counted = Counter(sample for step in own for _, sample in seen[step])
        assert counted == dict.fromkeys(everything, 1)


def test_a_process_reads_its_own_rows_alone():
    read = []

    def take(rows, step):
        read.append((step, rows.tolist()))
        return Batch(rows.float()[:, None], rows, step)

    drawn = Drawn(lambda step: torch.arange(8) + 8 * step, take)
    plain = partial(Drawn.__call__, drawn)
    for rank in range(4):
        mine, sliced = (own_rows(each, 2, Ranks(rank, 4), passes=2) for each in (drawn, plain))
        assert mine.x.flatten().tolist() == sliced.x.flatten().tolist() == [16.0 + rank, 20.0 + rank]
    assert [rows for _, rows in read if len(rows) == 2] == [[16 + rank, 20 + rank] for rank in range(4)]
    with pytest.raises(
        ValueError, match=r"a batch of 8 cannot be split over 3 processes; use a multiple of 3, e\.g\. 6 or"
    ):
        own_rows(drawn, 0, Ranks(0, 3), passes=1)


def test_threads_read_ahead_and_errors_come_at_their_step():
    def batch_at(step):
        if step == 5:
            raise OSError("a file of step 5 is gone")
        return Batch(torch.full((2, 1), float(step)), torch.zeros(2))

    feed = Feed(batch_at, Ranks(), passes=1, device="cpu", workers=3)
    assert [feed(step).x[0].item() for step in (0, 1, 2, 3, 2, 4)] == [0.0, 1.0, 2.0, 3.0, 2.0, 4.0]
    with pytest.raises(OSError, match="step 5 is gone"):
        feed(5)
    feed.close()
    with pytest.raises(ValueError, match="workers=-1"):
        Feed(batch_at, Ranks(), passes=1, device="cpu", workers=-1)
