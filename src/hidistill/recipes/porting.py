"""A teacher of ours in an architecture that stock diffusers has: a plain DiT learns its velocity."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hidistill.conventions import Diffusion, Table
from hidistill.foreign.folder import library, read_json
from hidistill.foreign.identity import SCALE, identity_autoencoder
from hidistill.foreign.network import Network
from hidistill.objectives.flow_matching import FlowMatching
from hidistill.recipes.images import batches
from hidistill.rescaling import Rescaled
from hidistill.seeds import fold_in
from hidistill.teachers import diffusers_dit
from hidistill.teachers.dit import DiT
from hidistill.times import Arcsine, LogitNormal
from hidistill.train.ema import Average
from hidistill.train.experiment import Experiment
from hidistill.train.loop import quickest
from hidistill.train.stage import Stage, Update, WarmupDecay
from hidistill.types import Batch, Cond, Points, Split, TimeLaw, Times

SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "clip_sample": False,
    "timestep_spacing": "trailing",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
}
"""DDIM on the linear schedule of arXiv 2006.11239, brought to end in pure noise (arXiv 2305.08891, algorithm 1)."""
CLASSES = 1000
"""Of the new network: diffusers' pipeline takes label 1000 for the null class, however many classes there are."""
DROP = 0.1


@dataclass(frozen=True)
class Narrowed:
    """A field asked by labels of which all from `classes` on are its null class.

    Args:
        field: whose null class is `classes`.
        classes: number of its classes.
    """

    field: DiT
    classes: int

    def velocity(self, x_t: Points, *, t: Times, cond: Cond) -> Points:
        """See `VelocityField.velocity`."""
        assert isinstance(cond, torch.Tensor)
        return self.field.velocity(x_t, t=t, cond=cond.clamp(max=self.classes))


def stock_dit(teacher: DiT, *, patch: int, width: int, depth: int, heads: int) -> Network:
    """A fresh `DiTTransformer2DModel` for a teacher's pictures, which begins at zero (arXiv 2212.09748, adaLN-zero).

    Raises:
        ValueError: if the sizes do not fit each other.
    """
    side = int(teacher.config["image_size"])
    if min(patch, width, depth, heads) < 1 or side % patch or width % heads:
        raise ValueError(
            f"patch={patch}, width={width}, depth={depth}, heads={heads}: all are at least 1, the patch divides {side} "
            "pixels and the heads divide the width; patch 2, width 128, depth 4 and 4 heads suit 28 pixels"
        )
    net = library().DiTTransformer2DModel(
        num_attention_heads=heads, attention_head_dim=width // heads, in_channels=teacher.channels,
        out_channels=teacher.channels, num_layers=depth, sample_size=side, patch_size=patch,
        num_embeds_ada_norm=CLASSES, activation_fn="linear-silu",
    )  # fmt: skip
    for layer in (*(block.norm1.linear for block in net.transformer_blocks), net.proj_out_1, net.proj_out_2):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    scheduler = library().DDIMScheduler(**SCHEDULER)
    return Network(net.eval(), diffusers_dit.FAMILY, Diffusion("v_prediction", Table.of(scheduler.alphas_cumprod)))


def lesson(
    name: str,
    network: Network,
    teacher: DiT,
    times: TimeLaw,
    *,
    steps: int,
    lr: float,
    decay: float,
    rates: WarmupDecay,
) -> Stage:
    """A stage in which the network learns the teacher's velocity on data of unit size."""
    field = Rescaled(Narrowed(teacher, teacher.classes), 1 / teacher.data_std)
    objective = FlowMatching(network, times, network.null, DROP, field)
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=0.0)
    return Stage(
        name, {"network": Update(objective, optimizer, schedule=rates)}, steps, {"network": Average(network, decay)}
    )


def lessons(network: Network, teacher: DiT, *, steps: int, polish_steps: int, lr: float) -> list[Stage]:
    """First at times in the middle, then often near the ends, as the image teachers learn."""
    warmup = min(200, steps // 4)
    rates = WarmupDecay(steps, warmup, steps // 4)
    stages = [lesson("port", network, teacher, LogitNormal(0.0, 1.2), steps=steps, lr=lr, decay=0.998, rates=rates)]
    if polish_steps:
        warmup = min(20, polish_steps // 4)
        rates = WarmupDecay(polish_steps, warmup, polish_steps - warmup)
        stages.append(
            lesson("polish", network, teacher, Arcsine(), steps=polish_steps, lr=lr / 2, decay=0.99, rates=rates)
        )
    return stages


@dataclass(frozen=True)
class Folded:
    """Writes the finished network as a pipeline that stock diffusers loads.

    Args:
        network: the network.
        data_std: root mean square of the data: latents are pixels over it.
        names: of the classes.
        license: of the weights that were learned from.
    """

    network: Network
    data_std: float
    names: tuple[str, ...]
    license: str

    def __call__(self, folder: Path) -> None:
        """Write RUN/pipeline."""
        diffusers, root = library(), folder / "pipeline"
        net: Any = self.network.net.cpu()
        # The pipeline divides latents by this number before it decodes them.
        autoencoder = identity_autoencoder(int(net.config.in_channels))
        autoencoder.register_to_config(scaling_factor=SCALE / self.data_std)
        diffusers.DiTPipeline(net, autoencoder, diffusers.DDIMScheduler(**SCHEDULER)).save_pretrained(root)
        # Names of classes are read from here, and not written.
        path = root / "model_index.json"
        index = read_json(path) | {"id2label": {str(label): name for label, name in enumerate(self.names)}}
        path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        card = f"---\nlicense: {self.license}\n---\nA DiT that learned the velocity of a teacher of hidistill's.\n"
        (root / "README.md").write_text(card, encoding="utf-8")


def port(
    teacher: DiT,
    split: Split,
    *,
    patch: int,
    width: int,
    depth: int,
    heads: int,
    steps: int,
    polish_steps: int,
    batch_size: int,
    lr: float,
    license: str,
    seed: int,
) -> Experiment:
    """The experiment of `pipelines.port`."""
    teacher.eval().requires_grad_(False)
    torch.manual_seed(fold_in(seed, "weights"))
    network = stock_dit(teacher, patch=patch, width=width, depth=depth, heads=heads)
    pixels = batches(split, batch_size=batch_size, seed=seed)

    def batch_at(step: int) -> Batch:
        batch = pixels(step)
        return Batch(batch.x / teacher.data_std, batch.cond, step)

    return Experiment(
        stages=lessons(network, teacher, steps=steps, polish_steps=polish_steps, lr=lr),
        modules={"network": network},
        batch_at=batch_at,
        seed=seed,
        precision=quickest(),
        frozen={"teacher": teacher},
        finish=Folded(network, teacher.data_std, tuple(split.classes), license),
    )
