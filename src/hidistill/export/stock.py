"""How a pipeline of diffusers takes the one step `x_0 = noise z + answer F(scale z)`, without code of ours.

Pipelines that accept `DDIMScheduler` take it for any two numbers: a DDIM step (arXiv 2010.02502) from the last time of
a schedule is

    epsilon:       x_0 = (z - sigma F) / alpha
    v_prediction:  x_0 = alpha z - sigma F,

and the schedule's last alpha is free, as is a factor in the network's last layer. The schedule is given two times only:
a pipeline that is asked for its usual 20 or 50 steps then says that there are not so many, instead of taking them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hidistill.export.fold import OneStep, scale_answer, scale_input
from hidistill.foreign.folder import library

STEP, GUIDE = "num_inference_steps=1", "guidance_scale=1.0"


@dataclass(frozen=True)
class Stock:
    """A pipeline that can take one step.

    Args:
        call: arguments of a call for a picture.
        takes: which scheduler it takes: ddim, flow, trigonometric or consistency.
        parts: the parts of its folder beside network and scheduler that it cannot do without.
        labels: whether its call takes class labels.
    """

    call: str
    takes: str = "ddim"
    parts: tuple[str, ...] = ()
    labels: bool = False


PROMPT, TEXT = f'"a red fox", {STEP}, {GUIDE}', ("vae", "text_encoder", "tokenizer")
PIPELINES: Mapping[str, Stock] = {
    "DiTPipeline": Stock(f"class_labels=[1], {STEP}, {GUIDE}", parts=("vae",), labels=True),
    "PixArtAlphaPipeline": Stock(PROMPT, parts=TEXT),
    "PixArtSigmaPipeline": Stock(PROMPT, parts=TEXT),
    "StableDiffusionPipeline": Stock(PROMPT, parts=TEXT),
    "StableDiffusionXLPipeline": Stock(PROMPT, parts=(*TEXT, "text_encoder_2", "tokenizer_2")),
    "SanaPipeline": Stock(PROMPT, takes="flow", parts=TEXT),
    "SanaSprintPipeline": Stock(f'"a red fox", {STEP}, intermediate_timesteps=None', takes="trigonometric", parts=TEXT),
    "StableDiffusion3Pipeline": Stock(PROMPT, takes="flow", parts=("vae",)),
    "FluxPipeline": Stock(PROMPT, takes="flow", parts=("vae",)),
    "DDPMPipeline": Stock(STEP),
    "DDIMPipeline": Stock(STEP),
    "ConsistencyModelPipeline": Stock(f"class_labels=1, {STEP}", takes="consistency", labels=True),
}
"""Pipelines that were seen to take the step exactly, by class name."""


def pipeline_for(student: OneStep, teachers: str) -> str:
    """The class name of the pipeline: the teacher's own where it can run the student.

    Raises:
        ValueError: if no pipeline can.
    """
    family = student.family
    classes = family.classes(student.net)
    fits = [name for name in (teachers, *family.pipelines) if name in PIPELINES]
    if type(student.net).__name__ == "UNet2DModel":
        # DDPMPipeline and DDIMPipeline have no argument for labels.
        fits = [*fits, "DDPMPipeline", "ConsistencyModelPipeline"]
    fits = [name for name in fits if not classes or PIPELINES[name].labels]
    if not fits:
        raise ValueError(
            f"the teacher's pipeline is a {teachers or 'network alone'}, and no pipeline of diffusers is known that "
            f"runs a {family.name} in one step; known are {', '.join(PIPELINES)}: export to onnx or safetensors instead"
        )
    return fits[0]


def adapt(student: OneStep, pipeline: str, scheduler: Mapping[str, Any]) -> Any:  # noqa: ANN401 -- diffusers' own
    """The scheduler with which a pipeline takes a student's step; factors are written into the student's network.

    Args:
        student: changed in place.
        pipeline: class name, one of `PIPELINES`.
        scheduler: configuration of the teacher's scheduler.

    Raises:
        ValueError: if the pipeline cannot take this step.
    """
    takes = PIPELINES[pipeline].takes
    if takes in ("ddim", "consistency"):
        chosen = ddim(student) if takes == "ddim" else consistency(student)
        if getattr(student.net.config, "time_embedding_type", "") == "fourier":  # UNet2DModel divides by its time then
            chosen.set_timesteps(1)
            fed = float(chosen.timesteps[0])
            scale_answer(student, fed / student.time)
            student.answer, student.time = student.answer * fed / student.time, fed
        return chosen
    if (student.noise, abs(student.answer), student.scale) != (1.0, 1.0, 1.0):
        raise ValueError(
            f"a {pipeline} takes steps of flows, x_0 = z - F; this student's is x_0 = {student.noise:.6g} z "
            f"{student.answer:+.6g} F: export to onnx or safetensors instead"
        )
    answer_with(student, -1.0)
    if takes == "flow":
        return library().FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0)
    return library().SCMScheduler.from_config(dict(scheduler))


def answer_with(student: OneStep, share: float) -> None:
    """Make `share` the answer's share in the sample."""
    factor = student.answer / share
    if abs(factor - 1) > 1e-6:
        scale_answer(student, factor)


def input_with(student: OneStep, scale: float) -> None:
    """Make `scale` the scale of the network's input."""
    factor = student.scale / scale
    if factor != 1:
        scale_input(student, factor)


def ddim(student: OneStep) -> Any:  # noqa: ANN401 -- diffusers' own
    """DDIM with a schedule of two times whose last is the student's."""
    noise = student.noise if abs(student.noise) > 1e-9 else 0.0
    if noise < 0:
        raise ValueError(
            f"the student's sample has {noise:.6g} of the noise, and no schedule has a negative share of signal: "
            "export to onnx or safetensors instead"
        )
    prediction = "epsilon" if noise > 1 - 1e-9 else "v_prediction"
    if noise == 0 and student.answer > 0:
        prediction = "sample"
    input_with(student, 1.0)
    two = betas(min(1 / noise**2, 1 - 2.0**-20) if prediction == "epsilon" else noise**2)
    signal = float(np.prod(1 - np.array(two, np.float32)))
    sigma = math.sqrt(1 - signal)
    answer_with(
        student,
        1.0 if prediction == "sample" else -sigma if prediction == "v_prediction" else -sigma / math.sqrt(signal),
    )
    return library().DDIMScheduler(
        num_train_timesteps=2,
        trained_betas=two,
        prediction_type=prediction,
        timestep_spacing="trailing",
        set_alpha_to_one=True,
        clip_sample=False,
        thresholding=False,
        steps_offset=1,  # of no effect here; Stable Diffusion's pipelines complain of any other
    )


def betas(kept: float) -> list[float]:
    """Two betas whose schedule ends with this squared share of the signal.

    diffusers takes betas in float32, whose numbers below 1 are 2^-24 apart: one beta near 1 would leave only a few
    digits of a small share. The first gets near it from above, the second goes the rest of the way.
    """
    first = math.ceil(kept * 2**24) / 2**24
    return [1 - first, 1 - kept / first if first else 0.0]


def consistency(student: OneStep) -> Any:  # noqa: ANN401 -- diffusers' own
    """The scheduler of consistency models (arXiv 2303.01469), for networks of pixels with class labels.

    Its step from sigma, on z sigma, is `x_0 = c_skip sigma z + c_out F(c_in sigma z)` with the coefficients of arXiv
    2206.00364. With q = s / sqrt(sigma^2 + s^2), s the data's size, the share of z is `q s sqrt(1 - q^2)` and that of F
    is `s sqrt(1 - q^2)`; both are met by s and by a factor in the network's last layer, and c_in by one in its first.
    """
    noise, answer = max(student.noise, 1e-6), abs(student.answer)
    q = noise / answer if 1e-3 < noise / answer < 0.9 else math.sqrt(0.5) if noise > 1e-3 else 1e-3
    into = math.sqrt(1 - q**2)
    std = noise / (q * into)
    sigma = std * into / q
    input_with(student, into)
    answer_with(student, std * into)
    return library().CMStochasticIterativeScheduler(
        num_train_timesteps=2, sigma_min=0.0, sigma_max=sigma, sigma_data=std, clip_denoised=False
    )
