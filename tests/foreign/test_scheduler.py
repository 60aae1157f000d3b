"""Conventions read from the configurations of real schedulers, against what those schedulers do themselves."""

import json

import diffusers
import pytest
import torch

from hidistill.conventions import Diffusion, Flow, LogSigma, Sigma, Table
from hidistill.foreign.scheduler import EDM, FLOWS, OTHERS, SCHEDULES, built, convention_of

EXACT = torch.float64
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # diffusers under numpy 2
NEEDS_MORE = {"DPMSolverSDEScheduler": "torchsde"}
"""Schedulers that diffusers builds only beside another package."""


def saved(tmp_path, name, **options):
    """The configuration as it is found in a folder."""
    built({"_class_name": name, **options}).save_pretrained(tmp_path)
    return json.loads((tmp_path / "scheduler_config.json").read_text())


def velocity(convention, x_t, t, answer):
    """What the convention makes of a network's answer, and the network's input and time."""
    time, scale, skip, gain = convention.at(t)
    column = [value[:, None] for value in (scale, skip, gain)]
    return column[1] * x_t + column[2] * answer, column[0] * x_t, time


BETAS = {
    "linear": {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"},
    "scaled": {"beta_start": 0.0085, "beta_end": 0.12, "beta_schedule": "scaled_linear", "num_train_timesteps": 100},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "trained": {"trained_betas": torch.linspace(1e-3, 0.1, 50).tolist(), "num_train_timesteps": 50},
}


LEVELS = [*((name, "scaled") for name in SCHEDULES), *(("DDIMScheduler", betas) for betas in BETAS)]


@pytest.mark.parametrize(("name", "betas"), LEVELS)
def test_noise_levels_are_the_scheduler_s_own(tmp_path, name, betas):
    if name in NEEDS_MORE:
        pytest.importorskip(NEEDS_MORE[name])
    config = saved(tmp_path, name, **BETAS[betas], prediction_type="v_prediction")
    kept = built(config).alphas_cumprod
    assert len(kept) == config["num_train_timesteps"]
    convention = convention_of(config)
    assert convention == Diffusion("v_prediction", Table.of(kept))
    alpha, sigma = kept.double().sqrt(), (1 - kept.double()).sqrt()
    time = convention.at(sigma / (alpha + sigma)).time
    torch.testing.assert_close(time, torch.arange(len(kept), dtype=EXACT), rtol=0, atol=1e-6)


EXPLODING = ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "LMSDiscreteScheduler", *EDM[:1])
"""Those whose samples are `x_0 + sigma noise`; the others' are `alpha x_0 + sigma noise`."""
STEPS = [
    *(
        (name, answer)
        for name in ("DDIMScheduler", "DDPMScheduler", *EXPLODING)
        for answer in ("epsilon", "v_prediction")
    ),
    *((name, "sample") for name in ("DDIMScheduler", "DDPMScheduler", "EulerDiscreteScheduler")),
]


@pytest.mark.parametrize(("name", "answer"), STEPS)
def test_the_data_is_what_the_scheduler_reads_from_the_answer(tmp_path, name, answer):
    """Of EDM too: its scheduler's preconditioning, input and time of the network included."""
    options = {"clip_sample": False} if name in ("DDIMScheduler", "DDPMScheduler") else {}
    config = saved(tmp_path, name, prediction_type=answer, **options)
    convention, scheduler = convention_of(config), built(config)
    scheduler.set_timesteps(5)
    torch.manual_seed(0)
    for index, time in enumerate(scheduler.timesteps):
        if name in EXPLODING:
            noise = scheduler.sigmas[index].double()
            signal = torch.ones_like(noise)
        else:
            kept = scheduler.alphas_cumprod[time].double()
            signal, noise = kept.sqrt(), (1 - kept).sqrt()
        sample, output = torch.randn(1, 3, dtype=EXACT), torch.randn(1, 3, dtype=EXACT)
        given = scheduler.scale_model_input(sample, time)
        expected = scheduler.step(output, time, sample).pred_original_sample
        t = (noise / (signal + noise))[None]
        x_t = sample / (signal + noise)
        speed, own, own_time = velocity(convention, x_t, t, output)
        torch.testing.assert_close(x_t - t * speed, expected, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(own, given, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(own_time, time[None].double(), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("answer", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", EDM)
def test_edm_is_the_scheduler_s_preconditioning(tmp_path, name, answer):
    config = saved(tmp_path, name, sigma_data=0.7, sigma_min=0.01, sigma_max=50.0, prediction_type=answer)
    convention, scheduler = convention_of(config), built(config)
    assert convention == Diffusion("edm" if answer == "epsilon" else answer, LogSigma(0.01, 50.0, 0.7), 0.7)
    sigma = torch.tensor([0.01, 0.1, 0.7, 3.0, 50.0], dtype=EXACT)
    sample, output, t = torch.randn(5, 3, dtype=EXACT), torch.randn(5, 3, dtype=EXACT), sigma / (1 + sigma)
    x_t = sample / (1 + sigma)[:, None]
    speed, own, time = velocity(convention, x_t, t, output)
    expected = scheduler.precondition_outputs(sample, output, sigma[:, None])
    torch.testing.assert_close(x_t - t[:, None] * speed, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(own, scheduler.precondition_inputs(sample, sigma[:, None]), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(time, scheduler.precondition_noise(sigma), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("scale", [1000.0, 500.0])
def test_flows_take_the_step_of_the_scheduler(tmp_path, name, scale):
    config = saved(tmp_path, name, num_train_timesteps=int(scale), shift=3.0)
    convention, scheduler = convention_of(config), built(config)
    assert convention == Flow(unit=scale)
    scheduler.set_timesteps(4)
    sample, output = torch.randn(1, 3), torch.randn(1, 3)
    first, second = scheduler.sigmas.unique().flip(0)[:2].double()
    speed, own, time = velocity(convention, sample, first[None], output)
    assert torch.equal(own, sample.double())
    torch.testing.assert_close(time, scheduler.timesteps[:1].double())
    if name in ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"):
        moved = scheduler.step(output, scheduler.timesteps[0], sample).prev_sample
        torch.testing.assert_close((sample - (first - second) * speed).float(), moved)


def test_inverted_sigmas_run_from_noise_to_data(tmp_path):
    config = saved(tmp_path, "FlowMatchEulerDiscreteScheduler", invert_sigmas=True)
    convention, scheduler = convention_of(config), built(config)
    assert convention == Flow(unit=1000.0, reversed=True)
    scheduler.set_timesteps(4)
    first, second = (1 - scheduler.sigmas[:2]).double()
    sample, output = torch.randn(1, 3), torch.randn(1, 3)
    speed, _, time = velocity(convention, sample, first[None], output)
    assert first > second
    torch.testing.assert_close(time, scheduler.timesteps[:1].double())
    moved = scheduler.step(output, scheduler.timesteps[0], sample).prev_sample
    torch.testing.assert_close((sample - (first - second) * speed).float(), moved)


SOLVERS = [name for name in SCHEDULES if name.startswith(("DPMSolverM", "DPMSolverSi", "UniPC", "DEIS", "SASolver"))]


@pytest.mark.parametrize("name", SOLVERS)
def test_solvers_of_both_paths_are_flows_when_set_so(tmp_path, name):
    """As SANA's: `flow_prediction` on `use_flow_sigmas`."""
    config = saved(tmp_path, name, prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    assert convention_of(config) == Flow(unit=1000.0)
    with pytest.raises(ValueError, match=f"{name} has use_flow_sigmas and prediction_type 'epsilon'"):
        convention_of(config | {"prediction_type": "epsilon"})


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler"])
def test_a_schedule_that_ends_in_pure_noise_needs_another_answer_than_the_noise(tmp_path, name):
    """One holds exactly 0 at its end, the other 2^-24, so that its sigma is not infinite."""
    config = saved(tmp_path, name, rescale_betas_zero_snr=True, prediction_type="epsilon")
    with pytest.raises(ValueError, match=r"terminal signal-to-noise 0.*'v_prediction' or 'sample'"):
        convention_of(config)
    convention = convention_of(config | {"prediction_type": "v_prediction"})
    assert convention.last == 1.0
    one = torch.ones(1, dtype=EXACT)
    answer, x_t = torch.randn(1, 3, dtype=EXACT), torch.randn(1, 3, dtype=EXACT)
    speed, own, time = velocity(convention, x_t, one, answer)
    assert time.item() == 999
    torch.testing.assert_close(own, x_t)
    torch.testing.assert_close(x_t - speed, -answer)  # v = 1 * x_0 * -1 + 0 * noise at the end


def test_continuous_times_of_euler_are_those_of_edm(tmp_path):
    options = {"timestep_type": "continuous", "prediction_type": "v_prediction", "use_karras_sigmas": True}
    config = saved(tmp_path, "EulerDiscreteScheduler", **options, sigma_min=0.002, sigma_max=700.0)
    convention, scheduler = convention_of(config), built(config)
    assert convention == Diffusion("v_prediction", LogSigma(0.002, 700.0, 1.0))
    scheduler.set_timesteps(6)
    sigma = scheduler.sigmas[:-1].double()
    torch.testing.assert_close(convention.at(sigma / (1 + sigma)).time, scheduler.timesteps.double(), rtol=0, atol=1e-5)


def test_exploding_variance_gives_the_score_of_the_sample(tmp_path):
    config = saved(tmp_path, "ScoreSdeVeScheduler", sigma_max=100.0)
    convention = convention_of(config)
    assert convention == Diffusion("score", Sigma(0.01, 100.0))
    sigma = built(config).sigmas.double()[[0, 500, -1]]
    sample, noise = torch.randn(3, 4, dtype=EXACT), torch.randn(3, 4, dtype=EXACT)
    x = sample + sigma[:, None] * noise
    speed, own, time = velocity(convention, x / (1 + sigma)[:, None], sigma / (1 + sigma), -noise / sigma[:, None])
    torch.testing.assert_close(own, x, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(time, sigma, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(speed, noise - sample, rtol=1e-5, atol=1e-5)


def test_networks_of_sana_sprint_are_on_the_linear_path(tmp_path):
    assert convention_of(saved(tmp_path, "SCMScheduler")) == Flow(unit=1.0)


def test_unknown_schedulers_and_answers_are_named():
    with pytest.raises(ValueError, match=r"the scheduler is 'DDPMWuerstchenScheduler'.*supported are FlowMatch.*TCD"):
        convention_of({"_class_name": "DDPMWuerstchenScheduler"})
    with pytest.raises(ValueError, match="the scheduler is None, whose convention is not known"):
        convention_of({"beta_start": 1e-4})
    with pytest.raises(ValueError, match="the DDIMScheduler has prediction_type 'noise'; supported are epsilon"):
        convention_of({"_class_name": "DDIMScheduler", "prediction_type": "noise"})
    with pytest.raises(ValueError, match="the EDMEulerScheduler has prediction_type 'sample'; supported are eps"):
        convention_of({"_class_name": "EDMEulerScheduler", "prediction_type": "sample"})


def test_every_scheduler_that_is_named_exists():
    assert all(hasattr(diffusers, name) for name in (*FLOWS, *SCHEDULES, *EDM, *OTHERS))
