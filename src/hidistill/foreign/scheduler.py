"""The convention of a network, read from the configuration of the scheduler that diffusers samples it with.

A scheduler's configuration says two things: on which path the network was trained and what it answers, which are the
convention, and how its pipeline walks along that path (spacing, shift, clipping, thresholding), which is not.
"""

import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch

from hidistill.conventions import Convention, Diffusion, Flow, LogSigma, Prediction, Sigma, Table
from hidistill.foreign.folder import library

FLOWS = (
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "FlowMatchLCMScheduler",
    "FlowMapEulerDiscreteScheduler",
)
"""Schedulers of the linear path alone."""
SCHEDULES = (
    "DDPMScheduler",
    "DDPMParallelScheduler",
    "DDIMScheduler",
    "DDIMParallelScheduler",
    "DDIMInverseScheduler",
    "PNDMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "LMSDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverMultistepInverseScheduler",
    "DPMSolverSinglestepScheduler",
    "DPMSolverSDEScheduler",
    "UniPCMultistepScheduler",
    "DEISMultistepScheduler",
    "SASolverScheduler",
    "LCMScheduler",
    "TCDScheduler",
)
"""Schedulers that hold `alphas_cumprod`, one noise level for each of the network's times."""
EDM = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
"""Schedulers of networks that are preconditioned as in arXiv 2206.00364."""
OTHERS = ("SCMScheduler", "ScoreSdeVeScheduler")


def convention_of(config: Mapping[str, Any]) -> Convention:
    """The convention that belongs to a scheduler's configuration, as `scheduler_config.json` holds it.

    Raises:
        ValueError: if the scheduler, or what it says of the network, is not known.
    """
    name = config.get("_class_name")
    if name in EDM:
        return preconditioned(config)
    if name in FLOWS or name in SCHEDULES:
        return flow(config) if name in FLOWS or is_flow(config) else schedule(config)
    if name == "SCMScheduler":
        # Its trigonometric path is its pipeline's; networks of SANA-Sprint are given and answer the linear path's.
        return Flow(unit=1.0)
    if name == "ScoreSdeVeScheduler":
        full = built(config).config
        return Diffusion("score", Sigma(float(full["sigma_min"]), float(full["sigma_max"])))
    raise ValueError(
        f"the scheduler is {name!r}, whose convention is not known; supported are "
        f"{', '.join((*FLOWS, *SCHEDULES, *EDM, *OTHERS))}: give the configuration of one of them that samples the "
        "same network, or build the network's Flow or Diffusion yourself (hidistill.conventions)"
    )


def built(config: Mapping[str, Any]) -> Any:  # noqa: ANN401 -- a class of a library that may not be installed
    """The scheduler itself, which completes its configuration and computes its noise levels."""
    with warnings.catch_warnings():
        # Five schedulers take numpy arrays of tensors at construction, whose protocol of numpy 1 numpy 2 deprecates.
        warnings.filterwarnings("ignore", message="__array_", category=DeprecationWarning)
        return getattr(library(), config["_class_name"]).from_config(dict(config))


def is_flow(config: Mapping[str, Any]) -> bool:
    """Whether a scheduler that knows both kinds of path is set to the linear one.

    Raises:
        ValueError: if it is, and the network does not answer with a velocity.
    """
    prediction = config.get("prediction_type", "epsilon")
    if config.get("use_flow_sigmas") and prediction != "flow_prediction":
        raise ValueError(
            f"the {config['_class_name']} has use_flow_sigmas and prediction_type {prediction!r}; on the linear path "
            "networks that answer with the velocity are supported, prediction_type 'flow_prediction': check both"
        )
    return prediction == "flow_prediction"


def flow(config: Mapping[str, Any]) -> Flow:
    """The linear path; times run to `num_train_timesteps`, from noise to data where sigmas are inverted."""
    full = built(config).config
    return Flow(unit=float(full["num_train_timesteps"]), reversed=bool(full.get("invert_sigmas", False)))


def schedule(config: Mapping[str, Any]) -> Diffusion:
    """A variance-preserving path with the noise levels that the scheduler itself computes.

    Raises:
        ValueError: if the network predicts the noise and the schedule ends in nothing else.
    """
    scheduler = built(config)
    full, kept = scheduler.config, scheduler.alphas_cumprod.double()
    if full.get("rescale_betas_zero_snr", False):
        # Four schedulers hold 2^-24 there, so that no sigma of theirs is infinite.
        kept = torch.cat([kept[:-1], kept.new_zeros(1)])
    prediction, table = known(full["prediction_type"], config), Table.of(kept)
    if full.get("timestep_type") == "continuous" and prediction == "v_prediction":
        low, high = (math.exp(end) for end in table.ends)
        return Diffusion(prediction, LogSigma(float(full["sigma_min"] or low), float(full["sigma_max"] or high), 1.0))
    return Diffusion(prediction, table)


def known(prediction: str, config: Mapping[str, Any]) -> Prediction:
    """What the network answers, in this package's word for it.

    Raises:
        ValueError: if it is something else.
    """
    words: dict[str, Prediction] = {
        "epsilon": "epsilon",
        "v_prediction": "v_prediction",
        "sample": "sample",
        "original_sample": "sample",
    }
    if prediction not in words:
        raise ValueError(
            f"the {config['_class_name']} has prediction_type {prediction!r}; supported are epsilon, v_prediction and "
            "sample, and flow_prediction with use_flow_sigmas: check scheduler_config.json"
        )
    return words[prediction]


def preconditioned(config: Mapping[str, Any]) -> Diffusion:
    """The preconditioning of arXiv 2206.00364: in these schedulers "epsilon" is the F of its eq. 7, "v" minus that.

    Raises:
        ValueError: if the network answers something else.
    """
    full = built(config).config
    answers: dict[str, Prediction] = {"epsilon": "edm", "v_prediction": "v_prediction"}
    if full["prediction_type"] not in answers:
        raise ValueError(
            f"the {config['_class_name']} has prediction_type {full['prediction_type']!r}; supported are "
            f"{' and '.join(answers)}: check scheduler_config.json"
        )
    low, high, std = (float(full[key]) for key in ("sigma_min", "sigma_max", "sigma_data"))
    return Diffusion(answers[full["prediction_type"]], LogSigma(low, high, std), std)
