"""Real pictures against real pictures with a planted defect: what a discriminator's head can see, and where it looks.

The generator is taken out of the game: "generated" is a real picture of Fashion-MNIST in which one small square, at a
random place, is turned upside down and mirrored. The bundled teacher gives 49 tokens a picture.
"""

import torch
from torch import Tensor
from torch.optim import Adam

from hidistill.codecs import Pixels
from hidistill.data.fashion import bundled
from hidistill.discriminators.adaptive import Adaptive, normalized_entropy
from hidistill.experiments.methods import Method, head_of
from hidistill.objectives.adversarial import Hinge, TellApart
from hidistill.path import interpolate
from hidistill.recipes.fashion import TEACHER
from hidistill.recipes.judging import read_teacher
from hidistill.seeds import fold_in, shuffled
from hidistill.times import Uniform
from hidistill.train.loop import descend
from hidistill.train.stage import Update, WarmupDecay
from hidistill.types import Batch, Loss, Points, Rollout, RolloutObjective

TIMES, BATCH, HELD_OUT = Uniform(0.02, 0.3), 32, 256


class Planted:
    """An objective on data whose generated samples are the data with a defect."""

    def __init__(self, judge: RolloutObjective, side: int) -> None:
        self.judge, self.side = judge, side

    def __call__(self, batch: Batch) -> Loss:
        """Plant the defects, then judge."""
        broken, _ = plant(batch.x, self.side)
        return self.judge(Rollout(batch.x, broken, batch.cond, batch.step))


def plant(x: Points, side: int) -> tuple[Points, Tensor]:
    """Pictures with a square of `side` pixels turned around, and masks (b, 1, h, w) of where; drawn anew each time."""
    broken, mask = x.clone(), torch.zeros_like(x[:, :1], dtype=torch.bool)
    high = x.shape[-1] - side
    for row in range(len(x)):
        # Where there is something to see: the brightest of a few places.
        places = torch.randint(high + 1, (8, 2)).tolist()
        top, left = max(places, key=lambda at: float(x[row, :, at[0] : at[0] + side, at[1] : at[1] + side].std()))
        square = x[row, :, top : top + side, left : left + side]
        broken[row, :, top : top + side, left : left + side] = square.flip(1, 2)
        mask[row, :, top : top + side, left : left + side] = True
    return broken, mask


def measured(method: Method, *, side: int, length: int, seed: int) -> dict[str, float]:
    """Train the head of a method on planted defects, and test it on other pictures.

    `accuracy` counts both kinds; `focus` is the share of the logit's squared gradient at the pixels of the defect,
    over the defect's share of the pixels: 1 is a head that looks everywhere alike.
    """
    torch.manual_seed(fold_in(seed, "head"))
    teacher = read_teacher(TEACHER)
    head = head_of(method, teacher)
    assert head is not None
    objective = Planted(TellApart(teacher, head, TIMES, Hinge()), side)  # type: ignore[arg-type]
    schedule = WarmupDecay(length, min(10, length // 10), length // 2)
    update = Update(objective, Adam(head.parameters(), lr=1e-3, betas=(0.5, 0.99)), schedule=schedule)
    train, test = bundled("train"), bundled("test")
    for step in range(length):
        rows = shuffled(len(train.images), batch_size=BATCH, step=step, seed=seed)
        batch = Batch(Pixels().encode(train.images[rows].float() / 255), train.labels[rows], step)
        descend(update, batch, where=f"planted, step {step}", seed=fold_in(seed, "planted", step))
    torch.manual_seed(fold_in(seed, "test"))
    head.eval().requires_grad_(False)
    x = Pixels().encode(test.images[:HELD_OUT].float() / 255)
    labels = test.labels[:HELD_OUT]
    broken, mask = plant(x, side)
    t, noise = TIMES.sample(x), torch.randn_like(x)
    right, inside = [], []
    for part in torch.arange(HELD_OUT).split(BATCH):
        for pictures, real in ((x, True), (broken, False)):
            pixels = pictures[part].clone().requires_grad_(True)
            features = teacher.features(interpolate(pixels, noise[part], t[part]), t=t[part], cond=labels[part])
            logit = head(features, t=t[part], cond=labels[part]).float().mean(1)
            right.append((logit.detach() > 0) == real)
            if not real:
                (gradient,) = torch.autograd.grad(logit.sum(), pixels)
                energy = gradient.square().sum(1, keepdim=True).flatten(1)
                found = (energy * mask[part].flatten(1)).sum(1) / energy.sum(1).clamp_min(1e-30)
                inside.append(found / mask[part].float().flatten(1).mean(1))
    numbers = {"accuracy": torch.cat(right).float().mean().item(), "focus": torch.cat(inside).mean().item()}
    if isinstance(head, Adaptive):
        with torch.no_grad():
            features = teacher.features(interpolate(broken, noise, t), t=t, cond=labels)
        maps = head.attention(features, t=t, cond=labels)
        numbers["entropy"] = torch.stack([normalized_entropy(layer).mean() for layer in maps]).mean().item()
    return numbers
