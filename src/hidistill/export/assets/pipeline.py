# ruff: noqa: ANN001, ANN002, ANN003, ANN201, ANN202, ANN204, ARG001, ARG002, ARG005, D102, SIM102
# pyright: reportArgumentType=false, reportIncompatibleMethodOverride=false, reportAttributeAccessIssue=false
"""A flow map in as many steps as one likes, up to those in steps.safetensors.

`x_r = x_t - (t - r) u(x_t, r, t)` with `u = skip x_t + gain F(scale x_t)`, over n equal steps from t = 1 (noise) to 0.
The network's embeddings of time are those of each step's two times; steps.safetensors has them, and the three numbers.
Everything else is the stock pipeline's. Needs diffusers 0.39 or newer.
"""

import inspect
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from diffusers import DiTPipeline, FlowMapEulerDiscreteScheduler
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from safetensors.torch import load_file

FILE = "steps.safetensors"


class Steps(FlowMapEulerDiscreteScheduler):
    """Equal steps, for pipelines that know other schedulers' arguments."""

    init_noise_sigma = 1.0

    def set_timesteps(self, num_inference_steps=None, device=None, sigmas=None, timesteps=None, mu=None):
        super().set_timesteps(num_inference_steps or len(timesteps if sigmas is None else sigmas), device=device)
        self.timesteps = self.timesteps.float()
        if timesteps is not None or (
            sigmas is not None and abs(self.sigmas[:-1].cpu() - torch.tensor(sigmas)).max() > 1e-6
        ):
            raise ValueError("times of your own came; this folder knows equal steps: give num_inference_steps alone")

    def step(self, model_output, timestep, sample, generator=None, return_dict=True, **unused):
        (x,) = super().step(model_output, timestep, sample, return_dict=False)
        return DDIMSchedulerOutput(prev_sample=x, pred_original_sample=x) if return_dict else (x, x)


class FlowMapPipeline(DiTPipeline):
    """The stock pipeline, whose network is told of both ends of every step."""

    def __call__(self, *args, num_inference_steps=1, **kwargs):
        if "guidance_scale" in inspect.signature(super().__call__).parameters:
            if kwargs.setdefault("guidance_scale", 1.0) != 1.0:
                raise ValueError(f"guidance_scale={kwargs['guidance_scale']}: guidance is built in; leave it at 1.0")
        with self.stepping(num_inference_steps):
            return super().__call__(*args, num_inference_steps=num_inference_steps, **kwargs)

    @contextmanager
    def stepping(self, count):
        """Within, the network is the flow map's at the scheduler's step of `count`."""
        net = getattr(self, "transformer", None) or self.unet
        table = self.table()
        if f"{count}.numbers" not in table:
            known = sorted({int(key.partition(".")[0]) for key in table})
            raise ValueError(f"num_inference_steps={count}: this folder knows {', '.join(map(str, known))} steps")
        stock, steps = self.scheduler, Steps()
        names = [name for name, _ in net.named_modules() if f"{count}.{name}" in table]

        def now(key):
            return table[f"{count}.{key}"][steps.step_index or 0]

        def enter(module, args, kwargs):
            key = next((key for key in ("hidden_states", "sample") if key in kwargs), None)
            given = kwargs[key] if key else args[0]
            scaled = given * float(now("numbers")[0])
            module.given = given
            return ((), {**kwargs, key: scaled}) if key else ((scaled, *args[1:]), kwargs)

        def leave(module, args, answer):
            first, x = answer[0], module.given
            _, skip, gain = now("numbers").tolist()
            first[:, : x.shape[1]] = skip * x + gain * first[:, : x.shape[1]]
            return answer

        def embed(name):
            return lambda module, args, own: now(name).to(own).expand_as(own)

        with ExitStack() as hooks:
            hooks.callback(net.register_forward_pre_hook(enter, with_kwargs=True).remove)
            hooks.callback(net.register_forward_hook(leave).remove)
            for name in names:
                hooks.callback(net.get_submodule(name).register_forward_hook(embed(name)).remove)
            hooks.callback(setattr, self, "scheduler", stock)
            self.scheduler = steps
            yield

    def table(self):
        """The embeddings and numbers of every step."""
        folder = self.config._name_or_path
        if not Path(folder).is_dir():
            from huggingface_hub import hf_hub_download

            return load_file(hf_hub_download(folder, FILE))
        return load_file(Path(folder) / FILE)
