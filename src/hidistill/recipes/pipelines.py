"""Teachers in folders of diffusers: distilled from a cache of latents and conditions into a one-step student."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from hidistill.conventions import Convention, Diffusion
from hidistill.data.cache import Cache
from hidistill.data.fashion import bundled
from hidistill.discriminators.adaptive import QUERY_STD
from hidistill.foreign.lora import low_rank, merged
from hidistill.foreign.network import FlowMap, Network
from hidistill.path import interpolate, rows_of
from hidistill.recipes import porting
from hidistill.recipes.fashion import TEACHER
from hidistill.recipes.images import load as read
from hidistill.recipes.images import refuse_training, weights_of
from hidistill.recipes.inspecting import refuse_wrong, self_test
from hidistill.recipes.judging import Jury, read_teacher, refuse_count
from hidistill.recipes.material import Material, from_cache, from_prompts, judges_of, refuse_unfit
from hidistill.recipes.originals import Where, where_of
from hidistill.recipes.students import FLOW_MAP, student_config
from hidistill.recipes.teachers import Loaded, has_null, load
from hidistill.recipes.two_stages import Cast, Matching, Plan, both_stages, settings
from hidistill.seeds import fold_in, normal
from hidistill.teachers.original import Kind
from hidistill.train.experiment import Experiment
from hidistill.types import Batch, PerSample, Teacher, Times

FAKE, DISCRIMINATOR, REFINED, GRADIENT = 1.0, 1.5, 0.3, 0.03
"""Learning rates of fake score, discriminator and refined student in units of the sketch's, and the size of the
adversarial gradient: what the image recipes found."""
DEGREE = 24
"""Of the polynomials that a student's embedding of time is read from; see `foreign.clock.Curve`."""


def distill(
    *,
    teacher: Path,
    cache: Path,
    sketch_steps: int = 500,
    refine_steps: int = 400,
    batch_size: int = 32,
    guidance: float | None = None,
    embedded: float | None = None,
    discriminator: Literal["adaptive", "pooled", "convolutional", "per_token", "none"] = "adaptive",
    query_std: float = QUERY_STD,
    matching: Matching = "dmd",
    derivative: Literal["forward", "central"] = "forward",
    trajectory_weight: float = 0.02,
    lr: float = 1e-3,
    time: Literal["smooth", "teacher"] = "smooth",
    lora_rank: int = 0,
    evaluate_samples: int = 500,
    classifier: Path | None = None,
    kind: Kind | None = None,
    autoencoder: Where | None = None,
    allow_pickle: bool = False,
    seed: int = 0,
) -> Experiment:
    """Distill a diffusers pipeline into a one-step student: sketch, then refine, then evaluation.

    Needs: the pipeline's folder, and a cache that `hidistill cache` wrote for it.
    Reaches: what its teacher allows.

    Args:
        teacher: folder of the pipeline, or a checkpoint of DiT or SiT; nothing is written into it.
        cache: latents and conditions, from `hidistill cache`.
        sketch_steps: steps of MeanFlow distillation; 0 leaves the stage out.
        refine_steps: steps of distribution matching; 0 leaves the stage out.
        batch_size: samples per step.
        guidance: scale of the teacher's classifier-free guidance that is distilled, 1 is none; None is 1.5, and 1 for
            teachers that embed their guidance or know no null condition.
        embedded: guidance scale for teachers that embed one; None is their pipeline's default.
        discriminator: the head on the teacher's features; none is distribution matching alone.
        query_std: size of the adaptive head's queries at the start; 0.02 begins, and for long stays, as an average over
            tokens, 1 weighs them apart at once.
        matching: by what refine matches distributions: dmd with the head; dmd2, whose head reads the fake score's
            features; gan, the head alone; or dmd with a distance of features and no head: energy, energy_tokens,
            sliced, moments, drift.
        derivative: how the sketch takes du/dt: forward mode, or central differences.
        trajectory_weight: of the sketch's loss, kept in refine beside DMD; 0 leaves it out, as does no sketch.
        lr: learning rate of the sketch, in whose unit refine has its own; 1e-3 suits networks of a few million weights,
            1e-5 to 1e-4 larger ones.
        time: the student's embedding of time: smooth reads it from polynomials, so that derivatives along t do not grow
            a thousandfold; teacher keeps the teacher's own.
        lora_rank: rank of low-rank adapters as student and fake score, which then share the teacher's weights; 0 trains
            all weights.
        evaluate_samples: images per row of the final table, at least 10 and two of each class; more than there are test
            pictures (about a tenth) are cut to these.
        classifier: weights of a judge of the classes; None trains one on the cache's pictures.
        kind: which repository's a checkpoint is, dit or sit.
        autoencoder: of a checkpoint: its folder, or pixels if there is none.
        allow_pickle: whether weights in a pickle may be read, tensors alone.
        seed: of everything.
    """
    stored = Cache.open(cache)
    loaded = load(teacher, embedded=embedded, kind=kind, autoencoder=autoencoder, allow_pickle=allow_pickle)
    refuse_unfit(loaded, stored)
    scale = scale_of(loaded, guidance)
    material = material_of(loaded, stored, batch_size=batch_size, guidance=scale, seed=seed)
    most = len(material.test.split.images)
    refuse_count(material.test.split, min(evaluate_samples, most))
    judges = judges_of(loaded, material, classifier=classifier, beside=stored.root)
    plan = Plan(
        sketch_steps=sketch_steps,
        refine_steps=refine_steps,
        batch_size=batch_size,
        guidance=scale,
        discriminator=discriminator,
        query_std=query_std,
        matching=matching,
        derivative=derivative,
        trajectory_weight=trajectory_weight,
        evaluate_samples=min(evaluate_samples, most),
        seed=seed,
        scales=(1.0,) if scale != 1.0 else (),
        sketch={"lr": lr},
        refine={
            "lr": REFINED * lr, "lr_fake": FAKE * lr, "lr_discriminator": DISCRIMINATOR * lr,
            "feature_gradient": GRADIENT, "fake_weight": weight_of(loaded.network.convention),
        },
    )  # fmt: skip
    first = material.batch_at(0)
    findings = self_test(loaded.network, first.x, first.cond, seed=seed, codec=loaded.codec)
    refuse_wrong(findings)
    cast, said = cast_of(loaded, first, smooth=time == "smooth", rank=lora_rank, seed=seed)
    cast = replace(cast, config={**cast.config, "prompts": asked_with(stored)})
    experiment = both_stages(cast, plan, batch_at=material.batch_at, judges=judges)
    warned = tuple(f"{one.check}: {one.found}" for one in findings if one.verdict == "warn")
    fewer = (
        (f"{most} images a row of the final table: there are no more test pictures",) if evaluate_samples > most else ()
    )
    return replace(experiment, notes=(*material.notes, *said, *warned, *fewer))


@dataclass(frozen=True)
class OwnUnit:
    """The weight that turns a squared error of the velocity into one of the network's own answer: `1 / gain^2`.

    A network that predicts the noise has a gain of 1 / (1 - t), up to 157 on DiT's schedule: without this weight nearly
    all of its loss comes from times at which nobody asks it.

    Args:
        convention: of the network.
    """

    convention: Convention

    def __call__(self, t: Times) -> PerSample:
        """One weight per time."""
        return self.convention.at(t).gain.square().reciprocal().to(t.dtype)


def weight_of(convention: Convention) -> OwnUnit | None:
    """How a fake score's errors count: as the network's own where a velocity magnifies them, otherwise alike."""
    magnified = isinstance(convention, Diffusion) and convention.prediction in ("epsilon", "score")
    return OwnUnit(convention) if magnified else None


def scale_of(loaded: Loaded, given: float | None) -> float:
    """The guidance scale that is distilled: what was asked for, or the usual one."""
    if given is not None:
        return given
    embeds = loaded.network.net.config.get("guidance_embeds", False)  # type: ignore[union-attr]
    return 1.5 if has_null(loaded.network) and not embeds else 1.0


def material_of(loaded: Loaded, stored: Cache, *, batch_size: int, guidance: float, seed: int) -> Material:
    """What is learned from: the cache's latents, or the teacher's own samples where it has none."""
    if stored.has_latents:
        return from_cache(loaded, stored, batch_size=batch_size, seed=seed)
    return from_prompts(loaded, stored, batch_size=batch_size, guidance=guidance, seed=seed)


def cast_of(loaded: Loaded, batch: Batch, *, smooth: bool, rank: int, seed: int) -> tuple[Cast, tuple[str, ...]]:
    """Teacher, student and fake score, and what to know of them.

    Raises:
        ValueError: if the rank is negative.
    """
    if rank < 0:
        raise ValueError(f"lora_rank={rank}: a rank is 1 or more; 0 trains all weights")
    network, degree = loaded.network, DEGREE if smooth else None
    torch.manual_seed(fold_in(seed, "student"))
    if rank:
        student, fake = FlowMap(low_rank(network, rank=rank), degree=degree), low_rank(network, rank=rank)
    else:
        # Weights that move are in float32 whatever the folder's are: in bfloat16 most steps would change nothing.
        student, fake = network.student(degree=degree).float(), deepcopy(network).float()
    config = student_config(loaded, student, batch.x.shape[1:]) | {"lora_rank": rank}
    stand_in = merged(student).float() if rank else None
    cast = Cast(network, student, fake, FLOW_MAP, config, step=1e-3 if smooth else 1e-4, stand_in=stand_in)
    weights = sum(parameter.numel() for parameter in student.parameters())
    held = f"{weights:,} weights of the student move" + (f", adapters of rank {rank}" if rank else "")
    said = (f"{network.family.name}, {network.convention.words}", held)
    return cast, (*said, *smoothness(network, student, batch))


def asked_with(stored: Cache) -> dict[str, Any]:
    """How the cache's prompts became tensors, for whoever samples from the student."""
    made = stored.made_from
    if not made["text"]:
        return {}
    instruction, length = list(made["text instruction"]), int(made["text length"])
    return {"length": length or None, "instruction": instruction}


@torch.no_grad()
def smoothness(network: Network, student: FlowMap, batch: Batch) -> tuple[str, ...]:
    """How far a student with smooth times begins from its teacher."""
    if student.curve is None:
        return ()
    x, cond = batch.x[:8], rows_of(batch.cond, slice(0, 8))
    t = torch.linspace(0.07, 0.97, len(x))
    x_t = interpolate(x, normal(range(len(x)), x.shape[1:]), t)
    own = network.velocity(x_t, t=t, cond=cond)
    change = (student.mean_velocity(x_t, t=t, r=t, cond=cond) - own).norm() / own.norm()
    return (
        f"smooth times: polynomials of degree {student.curve.degree} leave out {student.curve.residual:.1%} of the "
        f"embeddings' variation, which moves the student's velocity by {float(change):.1%} at start",
    )


def port(
    *,
    teacher: Path | None = None,
    images: Path | None = None,
    patch: int = 2,
    width: int = 128,
    depth: int = 4,
    heads: int = 4,
    steps: int = 3000,
    polish_steps: int = 1000,
    batch_size: int = 32,
    lr: float = 1e-3,
    license: str = "apache-2.0",
    seed: int = 0,
) -> Experiment:
    """Move a teacher of ours into a pipeline of stock diffusers: a plain DiT learns its velocity.

    A teacher with convolutions around its blocks, as the bundled one, has no place in diffusers' own architectures.

    Needs: the pictures that the teacher was trained on; about an hour on one core at 28 pixels.
    Reaches: what a plain DiT of this size can follow; RUN/pipeline is the folder.

    Args:
        teacher: run folder of images.teacher, or its weights; None is the bundled teacher of Fashion-MNIST.
        images: the folder of pictures that it was trained on; None is the bundled part of Fashion-MNIST.
        patch: side of a patch of the new network.
        width: its channels.
        depth: its blocks.
        heads: its attention heads.
        steps: length of the lesson.
        polish_steps: further steps at times near the ends.
        batch_size: pictures per step.
        lr: learning rate of AdamW.
        license: of the teacher's weights, for the card of the new ones.
        seed: of weights, data order, noise and dropped labels.
    """
    if (teacher is None) != (images is None):
        raise ValueError(f"teacher={teacher}, images={images}: give both, or neither for the bundled ones")
    refuse_training(lr=lr, steps=steps, batch_size=batch_size)
    net = read_teacher(weights_of(teacher) if teacher else TEACHER)
    split = read(images, int(net.config["image_size"])).split("train") if images else bundled("train")
    return porting.port(
        net, split, patch=patch, width=width, depth=depth, heads=heads, steps=steps, polish_steps=polish_steps,
        batch_size=batch_size, lr=lr, license=license, seed=seed,
    )  # fmt: skip


def bench(run: Path, arguments: Mapping[str, Any]) -> tuple[Jury, Teacher, dict[str, Any]]:
    """What `hidistill evaluate` needs to know of a run of `distill`."""
    del run
    loaded = load(
        Path(arguments["teacher"]),
        embedded=arguments.get("embedded"),
        kind=arguments.get("kind"),
        autoencoder=where_of(arguments.get("autoencoder")),
        allow_pickle=bool(arguments.get("allow_pickle")),
    )
    stored = Cache.open(Path(arguments["cache"]))
    refuse_unfit(loaded, stored)
    guidance = scale_of(loaded, arguments["guidance"])
    material = material_of(loaded, stored, batch_size=1, guidance=guidance, seed=int(arguments["seed"]))
    given = arguments.get("classifier")
    judges = judges_of(loaded, material, classifier=Path(given) if given else None, beside=stored.root)
    return judges, loaded.network, settings({**arguments, "guidance": guidance})


RECIPES = (distill, port)
