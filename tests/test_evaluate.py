from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from hidistill.codecs import Pixels
from hidistill.data.fashion import bundled
from hidistill.evaluate import (
    Contestant,
    Given,
    balanced_labels,
    balanced_subset,
    draw,
    evaluate,
    groups_of,
    left_out,
    seeds_of,
    uniform_labels,
)
from hidistill.metrics.diversity import IntraClassDiversity
from hidistill.metrics.endpoint import EndDistance
from hidistill.metrics.frechet import FrechetDistance
from hidistill.metrics.neighbors import Neighbors
from hidistill.metrics.sharpness import HighFrequencyRatio
from hidistill.sampling import jump
from hidistill.scores import Evaluation, Row, jackknife_error
from hidistill.seeds import normal
from hidistill.teachers.dit import DiT
from hidistill.types import Gallery, Samples, Split

N, SEED, SHAPE = 100, 5, (1, 28, 28)


@dataclass(frozen=True)
class Thumbnails:
    """Pixels averaged over squares of 7."""

    name: str = "thumbnails"

    def __call__(self, images):
        return torch.nn.functional.avg_pool2d(images, 7).flatten(1)


METRICS = (FrechetDistance(Thumbnails()), Neighbors(Thumbnails(), 3), IntraClassDiversity(), HighFrequencyRatio())


@dataclass
class Lookup:
    """The sampler whose answer is known: noise number i becomes picture number i."""

    images: torch.Tensor
    change: float = 0.0
    drawn: int = 0

    def __call__(self, noise, cond):
        marks = normal(seeds_of(len(self.images), SEED), SHAPE).flatten(1)[:, 0]
        index = (noise.flatten(1)[:, :1] == marks).int().argmax(1)
        assert torch.equal(cond, index % 10)
        self.drawn += len(noise)
        return Pixels().encode(self.images[index]) + self.change


@pytest.fixture(scope="module")
def held_out():
    return balanced_subset(bundled("test"), N)


def run(contestants, real, **settings):
    settings = {"n": N, "seed": SEED, "codec": Pixels(), "shape": SHAPE, "metrics": METRICS} | settings
    return evaluate(contestants, real=Gallery.of(real), **settings)


def one(name, sample, **settings):
    return Contestant(name, sample, **({"nfe": 1, "steps": 1} | settings))


def test_a_sampler_that_gives_back_the_real_images_is_perfect(held_out):
    real = Gallery.of(held_out)
    found = run([one("oracle", Lookup(real.images))], held_out, batch_size=7).rows[0]
    assert found.metrics["fd/thumbnails"] == pytest.approx(0, abs=1e-5)
    assert found.metrics["recall/thumbnails"] == found.metrics["precision/thumbnails"] == 1
    assert found.metrics["diversity"] == pytest.approx(1)
    assert found.metrics["high_frequency"] == pytest.approx(1)
    assert found.n == N
    assert found.seconds_per_image > 0


def test_noise_is_worse_than_the_floor(held_out):
    floor = Given("real train", Gallery.of(balanced_subset(bundled("train"), N)))
    found = run([floor, one("noise", lambda noise, cond: noise)], held_out)
    assert found.rows[0].metrics == found.floor
    assert (found.rows[0].kind, found.rows[0].nfe) == ("real", None)
    noise = found.rows[1].metrics
    assert noise["fd/thumbnails"] > 2 * found.floor["fd/thumbnails"]
    assert noise["high_frequency"] > 5 * found.floor["high_frequency"]
    assert noise["recall/thumbnails"] == 0


def test_ends_are_the_references_images_drawn_once(held_out):
    images = (held_out.images // 2).float() / 255
    teacher, student = Lookup(images), Lookup(images, change=2 * 51 / 255)  # the codec halves it
    found = run(
        [
            one("student", student),
            one("teacher", teacher, kind="teacher", scale=1.5, nfe=100, steps=50),
            Given("real", Gallery.of(held_out)),
        ],
        held_out,
        metrics=[EndDistance()],
        reference="teacher",
    )
    distances = [row.metrics.get("end_distance") for row in found.rows]
    assert distances == [pytest.approx(51 / 255, rel=1e-5), 0, None]
    assert (teacher.drawn, student.drawn) == (N, N)
    assert (found.rows[1].kind, found.rows[1].scale, found.rows[1].nfe, found.rows[1].steps) == (
        "teacher",
        1.5,
        100,
        50,
    )


def test_the_batch_size_does_not_change_an_image():
    net = DiT(image_size=8, channels=1, classes=10, patch=2, size="mini").student()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    settings = {"seeds": seeds_of(33, 0), "cond": balanced_labels(33, 10), "shape": (1, 8, 8), "codec": Pixels()}
    seen = []
    whole = draw(lambda x, c: jump(net, x, cond=c), **settings, batch_size=33).images
    parts = draw(lambda x, c: jump(net, x, cond=c), **settings, batch_size=8, on_batch=seen.append).images
    assert whole.std() > 0.1
    assert (whole * 255 - parts * 255).abs().max() < 1.01
    assert (whole == parts).double().mean() > 0.999
    assert seen == [8, 16, 24, 32, 33]
    torch.testing.assert_close(whole * 255, (whole * 255).round())


def test_conditions_may_be_a_mapping():
    cond = {"level": torch.linspace(-1, 1, 6)}
    flat = draw(
        lambda x, c: torch.ones_like(x) * c["level"][:, None, None, None],
        seeds=range(6), cond=cond, shape=(1, 2, 2), codec=Pixels(), batch_size=4,
    )  # fmt: skip
    assert flat.images[:, 0, 0, 0].mul(255).tolist() == pytest.approx([0, 51, 102, 153, 204, 255])


def test_an_interrupted_evaluation_goes_on(held_out, tmp_path):
    images, path = Gallery.of(held_out).images, tmp_path / "evaluation.json"
    settings = {"metrics": [*METRICS, EndDistance()], "reference": "teacher", "features": {"thumbnails": "4 x 4"}}

    def cast():
        return [
            one("teacher", Lookup(images), kind="teacher"),
            Given("real", Gallery.of(held_out)),
            one("blurred", Lookup(images.mean((2, 3), keepdim=True).expand_as(images))),
            one("brighter", Lookup(images / 2 + 0.25)),
        ]

    def save_and_stop(evaluation):
        evaluation.save(path)
        if len(evaluation.rows) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(cast(), held_out, **settings, on_row=save_and_stop)
    again, told = cast(), []
    found = run(again, held_out, **settings, done=Evaluation.load(path), on_progress=lambda *news: told.append(news))
    whole = run(cast(), held_out, **settings)
    assert [row.name for row in found.rows] == ["teacher", "real", "blurred", "brighter"]
    assert [row.metrics for row in found.rows] == [row.metrics for row in whole.rows]
    assert again[2].sample.drawn == 0
    assert [name for name, drawn, n in told if drawn == n] == ["teacher", "brighter"]
    assert {name for name, _, _ in told} == {"teacher", "brighter"}
    complete = cast()
    assert run(complete, held_out, **settings, done=found) == found
    assert complete[0].sample.drawn == 0


def test_rows_without_a_contestant_are_kept(held_out):
    images = Gallery.of(held_out).images
    first = run([one("a", Lookup(images)), one("b", Lookup(images))], held_out)
    found = run([one("c", Lookup(images)), one("a", Lookup(images))], held_out, done=first)
    assert [row.name for row in found.rows] == ["c", "a", "b"]


def test_refuses_to_mix_evaluations(held_out):
    def same(**settings):
        return one("a", Lookup(Gallery.of(held_out).images), **settings)

    done = run([same()], held_out)
    other = replace(held_out, images=255 - held_out.images)
    for settings, real, contestant, message in (
        ({"seed": 6}, held_out, same(), "seed = 5, this one 6"),
        ({"n": 50}, held_out, same(), "n = 100, this one 50"),
        ({"metrics": METRICS[:2]}, held_out, same(), "judges = "),
        ({}, other, same(), "real = "),
        ({}, held_out, same(steps=2, nfe=2), "the row 'a' was made as"),
    ):
        with pytest.raises(ValueError, match=message):
            run([contestant], real, done=done, **settings)


def test_refuses_names_that_repeat_and_references_that_do_not_draw(held_out):
    a, floor = one("a", lambda noise, cond: noise), Given("floor", Gallery.of(held_out))
    with pytest.raises(ValueError, match=r"contestants share the names \['a'\]"):
        run([a, a], held_out)
    with pytest.raises(ValueError, match=r"metrics share the names \['diversity'\]"):
        run([a], held_out, metrics=[IntraClassDiversity(), IntraClassDiversity()])
    with pytest.raises(ValueError, match="'floor' does not draw here"):
        run([a, floor], held_out, reference="floor")
    with pytest.raises(ValueError, match="kind 'sketch' is unknown"):
        one("a", a.sample, kind="sketch")
    with pytest.raises(ValueError, match="must be at least 1"):
        one("a", a.sample, steps=0)


def test_refuses_broken_images_and_empty_draws():
    settings = {"cond": torch.tensor([0, 1, 2, 7]), "shape": (1, 2, 2), "codec": Pixels()}

    def broken(noise, cond):
        return torch.where((cond == 7)[:, None, None, None], torch.nan, noise)

    with pytest.raises(ValueError, match=r"images \[3\] are not finite"):
        draw(broken, seeds=range(4), batch_size=2, **settings)
    with pytest.raises(ValueError, match="cannot draw 0 images"):
        draw(broken, seeds=[], **settings)


def test_labels_and_subsets_are_balanced():
    assert balanced_labels(5, 3).tolist() == [0, 1, 2, 0, 1]
    assert balanced_labels(3, 0).tolist() == [0, 0, 0]
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 0, 1, 2])
    split = Split(torch.arange(9).byte()[:, None, None, None], labels, "abc")
    taken = balanced_subset(split, 5)
    assert taken.labels.tolist() == [0, 0, 1, 1, 2]
    assert taken.images.flatten().tolist() == [0, 1, 3, 4, 5]
    unlabelled = Split(split.images, torch.zeros(9, dtype=torch.int64), ())
    assert balanced_subset(unlabelled, 4).images.flatten().tolist() == [0, 1, 2, 3]


class Mean:
    name = "mean"

    def __call__(self, samples):
        return {"mean": samples.generated.images.double().mean().item()}


def test_the_jackknife_of_a_mean_is_its_standard_error():
    values = torch.rand(40, dtype=torch.float64)
    gallery = Gallery(values[:, None, None, None], torch.zeros(40, dtype=torch.long))
    without = left_out(Samples(gallery, gallery), [Mean()], 40, "x")["mean"]
    row = Row("x", "student", 40, metrics={"mean": values.mean().item()}, left_out={"mean": without})
    assert row.error("mean") == pytest.approx(values.std().item() / 40**0.5, rel=1e-9)
    assert row.error("other") is None
    assert jackknife_error([1.0, 1.0]) == 0


def test_every_number_is_taken_without_each_group_and_ends_go_along(held_out):
    images = held_out.images.float() / 255
    settings = {"n": N, "seed": SEED, "codec": Pixels(), "shape": SHAPE, "real": Gallery.of(held_out)}
    metrics = [*METRICS, EndDistance()]
    rows = [one("same", Lookup(images)), one("teacher", Lookup(images), kind="teacher")]
    found = evaluate(rows, metrics=metrics, reference="teacher", groups=4, latency=False, **settings)
    for row in found.rows:
        assert set(row.left_out) == set(row.metrics)
        assert all(len(values) == 4 for values in row.left_out.values())
        assert row.left_out["end_distance"] == [0, 0, 0, 0]
        assert np.allclose(row.left_out["precision/thumbnails"], 1)
    few = evaluate(rows[:1], metrics=metrics, groups=4, grouped=[Mean()], **settings)
    assert set(few.rows[0].left_out) == {"mean"}


def test_what_is_kept_comes_back(tmp_path, held_out):
    settings = {"n": N, "seed": SEED, "codec": Pixels(), "shape": SHAPE, "real": Gallery.of(held_out)}
    contestant = one("timed", lambda noise, cond: noise)
    found = evaluate([contestant], metrics=[Mean()], groups=2, latency=True, notes=["few"], **settings)
    assert 0 < found.rows[0].latency_seconds < 1
    found.save(tmp_path / "evaluation.json")
    back = Evaluation.load(tmp_path / "evaluation.json")
    assert [row.left_out for row in back.rows] == [row.left_out for row in found.rows]
    assert (list(back.notes), back.labels) == (["few"], "in turn")


def test_labels_that_are_drawn_are_said_to_be():
    labels = uniform_labels(1000, 10, seed=3)
    assert torch.equal(labels, uniform_labels(1000, 10, seed=3))
    counts = torch.bincount(labels, minlength=10)
    assert counts.min() > 60
    assert counts.max() < 140
    assert counts.unique().numel() > 1
    seen = []

    def remember(noise, cond):
        seen.append(cond)
        return noise

    settings = {"seed": 0, "codec": Pixels(), "shape": SHAPE, "metrics": [Mean()]}
    real = Gallery.of(balanced_subset(bundled("test"), 20))
    found = evaluate([one("x", remember)], n=20, labels=labels[:20], real=real, **settings)
    assert found.labels == "uniform"
    assert torch.equal(torch.cat(seen), labels[:20])
    with pytest.raises(ValueError, match="has labels = uniform, this one in turn"):
        evaluate([one("x", remember)], n=20, real=real, done=found, **settings)


@pytest.mark.parametrize("groups", [1, 11])
def test_groups_out_of_range(groups):
    real = Gallery.of(balanced_subset(bundled("test"), 20))
    settings = {"seed": 0, "codec": Pixels(), "shape": SHAPE, "metrics": [Mean()]}
    with pytest.raises(ValueError, match=f"{groups} groups of 20 images: intervals need 2 groups of 2"):
        evaluate([one("x", lambda noise, cond: noise)], n=20, real=real, groups=groups, **settings)


@pytest.mark.parametrize(
    "labels",
    [torch.arange(60) % 6, torch.arange(60) // 10, torch.zeros(60, dtype=torch.long)],
    ids=["turn", "sorted", "-"],
)
def test_groups_to_leave_out_have_every_class_alike(labels):
    dealt = groups_of(labels, 5)
    assert torch.equal(dealt, groups_of(labels, 5))
    for group in range(5):
        inside = labels[dealt == group]
        assert len(inside) == 12
        assert len(set(torch.bincount(inside).tolist())) == 1
    assert not torch.equal(dealt, torch.arange(60) % 5)
