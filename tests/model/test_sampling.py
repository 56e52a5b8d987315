"""Samplers and guidance: known answers, and every step against a written-out reference."""

import itertools
import math

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from model.conditioning import Conditioning
from model.diffusion import (
    Denoiser,
    LinearPredictionGuider,
    TrianglePredictionGuider,
    VanillaCFG,
    karras_sigmas,
    sample_euler,
    sample_heun,
)
from model.diffusion.guidance import guide, per_video_scales
from model.diffusion.samplers import Churn
from model.tasks.sampling import SamplingError, SamplingOptions, guided, sample_latents

MEAN, STD = 1.5, 0.6
MODES = ((0.3, -2.0, 0.3), (0.7, 1.5, 0.5))  # weight, mean, standard deviation


def gaussian_denoiser(x: Tensor, sigma: Tensor) -> Tensor:
    """E[x0 | x] for data N(MEAN, STD^2)."""
    s2 = sigma.view(-1, *[1] * (x.ndim - 1)) ** 2
    return (STD**2 * x + s2 * MEAN) / (STD**2 + s2)


def mixture_denoiser(x: Tensor, sigma: Tensor) -> Tensor:
    """E[x0 | x] for the two-mode mixture."""
    s2 = sigma.view(-1, *[1] * (x.ndim - 1)) ** 2
    logs = torch.stack(
        [math.log(w) - 0.5 * torch.log(d**2 + s2) - (x - m) ** 2 / (2 * (d**2 + s2)) for w, m, d in MODES]
    )
    means = torch.stack([(d**2 * x + s2 * m) / (d**2 + s2) for _, m, d in MODES])
    return (logs.softmax(0) * means).sum(0)


def start(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * math.sqrt(1 + 700**2)


def mixture_cdf(x):
    return sum(w * stats.norm.cdf(x, m, d) for w, m, d in MODES)


@pytest.mark.parametrize(("sampler", "steps"), [(sample_euler, 300), (sample_heun, 100)])
def test_sampler_recovers_a_gaussian(sampler, steps):
    x = sampler(gaussian_denoiser, start(20_000), karras_sigmas(steps)).numpy()
    assert stats.kstest(x, stats.norm(MEAN, STD).cdf).pvalue > 1e-3
    # The test has the power to fail: distributions as near as these are told apart.
    assert stats.kstest(x, stats.norm(MEAN, STD * 1.06).cdf).pvalue < 1e-3
    assert stats.kstest(x, stats.norm(MEAN + 0.03, STD).cdf).pvalue < 1e-3


@pytest.mark.parametrize(("sampler", "steps"), [(sample_euler, 300), (sample_heun, 60)])
def test_sampler_recovers_two_modes(sampler, steps):
    x = sampler(mixture_denoiser, start(5_000, seed=3), karras_sigmas(steps)).numpy()
    assert stats.kstest(x, mixture_cdf).pvalue > 1e-3
    left = (x < 0).mean()
    assert abs(left - mixture_cdf(0.0)) < 4 * math.sqrt(0.3 * 0.7 / len(x))
    assert stats.kstest(x, lambda v: mixture_cdf(v - 0.06)).pvalue < 1e-3


def test_churn_keeps_the_distribution_and_is_reproducible():
    churn = Churn(s_churn=20, s_min=0.01, s_max=50)
    draws = [
        sample_heun(
            gaussian_denoiser, start(20_000), karras_sigmas(60), churn=churn, generator=torch.Generator().manual_seed(1)
        )
        for _ in range(2)
    ]
    assert torch.equal(*draws)
    assert not torch.equal(draws[0], sample_heun(gaussian_denoiser, start(20_000), karras_sigmas(60)))
    assert stats.kstest(draws[0].numpy(), stats.norm(MEAN, STD).cdf).pvalue > 1e-3


@pytest.mark.parametrize(("sampler", "order"), [(sample_euler, 1), (sample_heun, 2)])
def test_samplers_converge_with_their_order(sampler, order):
    """The ODE of a Gaussian has a closed solution: x(0) = mean + (x(s) - mean) STD / sqrt(STD^2 + s^2)."""
    x = start(50)
    exact = MEAN + (x - MEAN) * STD / math.sqrt(STD**2 + 700**2)
    errors = [(sampler(gaussian_denoiser, x, karras_sigmas(n)) - exact).abs().max().item() for n in (100, 200, 400)]
    for coarse, fine in itertools.pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize("heun", [False, True])
def test_every_step_against_the_written_out_algorithm(heun):
    """EDM Algorithm 1 in plain Python floats, against each intermediate state in float64."""
    sigmas = karras_sigmas(9)
    levels = sigmas.tolist()

    def denoise(x: float, sigma: float) -> float:
        return mixture_denoiser(
            torch.tensor([x], dtype=torch.float64), torch.tensor([sigma], dtype=torch.float64)
        ).item()

    for x_start in (-900.0, 3.0, 777.7):
        seen: list[tuple[float, float]] = []
        x = torch.tensor([x_start], dtype=torch.float64)
        sampler = sample_heun if heun else sample_euler
        result = sampler(
            mixture_denoiser, x, sigmas, callback=lambda i, s, d, seen=seen: seen.append((s, d.item()))
        ).item()
        reference = x_start
        for i in range(9):
            t, t_next = levels[i], levels[i + 1]
            denoised = denoise(reference, t)
            assert seen[i] == pytest.approx((t, denoised), rel=1e-12)
            d = (reference - denoised) / t
            step = reference + (t_next - t) * d
            if heun and t_next != 0:
                d2 = (step - denoise(step, t_next)) / t_next
                step = reference + (t_next - t) * (0.5 * d + 0.5 * d2)
            reference = step
        assert result == pytest.approx(reference, rel=1e-11)


def test_evaluations_are_counted():
    calls = []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        calls.append(sigma)
        return x * 0

    sample_euler(denoise, torch.ones(2), karras_sigmas(7))
    assert len(calls) == 7
    assert all(sigma.shape == (2,) for sigma in calls)
    calls.clear()
    sample_heun(denoise, torch.ones(2), karras_sigmas(7))
    assert len(calls) == 2 * 7 - 1
    with pytest.raises(ValueError, match="end in 0"):
        sample_euler(denoise, torch.ones(2), torch.tensor([2.0, 1.0]))


class GaussianNetwork(nn.Module):
    """F_theta of an analytic Gaussian whose mean is the context's first number: what a perfect network would say."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.batches: list[int] = []

    def forward(self, sample, c_noise, context, vector_ids, *, time_context=None, image_only=None):
        self.batches.append(len(sample))
        sigma = (4 * c_noise.double()).exp().view(-1, 1, 1, 1, 1)
        x = sample.double() * (sigma**2 + 1).sqrt()
        mean = context[:, 0, 0].double().view(-1, 1, 1, 1, 1)
        d = (STD**2 * x + sigma**2 * mean) / (STD**2 + sigma**2)
        return ((d - x / (sigma**2 + 1)) / (-sigma / (sigma**2 + 1).sqrt())).to(sample.dtype)


def gaussian_conditioning(batch: int) -> Conditioning:
    return Conditioning(context=torch.full((batch, 1, 1), MEAN), vector_ids=torch.zeros(batch, 3))


def test_the_whole_loop_recovers_a_gaussian_through_the_network():
    """Preconditioning, initial noise, sigmas and sampler together, in the float32 that sampling uses."""
    options = SamplingOptions(steps=60, sampler="heun", guider=VanillaCFG(1.0), seed=5)
    latents = sample_latents(Denoiser(GaussianNetwork()), gaussian_conditioning(4), (4, 5, 4, 16, 16), options)
    assert latents.dtype == torch.float32
    assert stats.kstest(latents.flatten().numpy(), stats.norm(MEAN, STD).cdf).pvalue > 1e-3


def test_guidance_of_gaussians_has_a_known_answer():
    """Two Gaussians that differ in mean: guided, the mean is mean_u + w (mean_c - mean_u), frame by frame."""
    guider = LinearPredictionGuider(max_scale=2.5, min_scale=1.0)
    options = SamplingOptions(steps=30, sampler="heun", guider=guider)
    latents = sample_latents(Denoiser(GaussianNetwork()), gaussian_conditioning(2), (2, 4, 4, 20, 20), options)
    means = latents.mean((0, 2, 3, 4))
    for frame, w in enumerate([1.0, 1.5, 2.0, 2.5]):
        assert means[frame].item() == pytest.approx(w * MEAN, abs=5 * STD / math.sqrt(2 * 4 * 400))


def test_linear_guider_worked_example():
    """8 latents = 2 videos of 4 frames, scales from 1.0 to 2.0."""
    guider = LinearPredictionGuider(max_scale=2.0, min_scale=1.0)
    scales = per_video_scales(guider, 2, 4)
    assert scales.shape == (2, 4)
    expected = torch.tensor([1.0, 4 / 3, 5 / 3, 2.0])
    torch.testing.assert_close(scales, expected.expand(2, 4))
    uncond, cond = torch.randn(2, 8, 4, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    flat = guide(uncond, cond, scales)
    for i in range(8):
        w = expected[i % 4].item()
        torch.testing.assert_close(flat[i], w * cond[i] - (w - 1) * uncond[i], rtol=1e-6, atol=1e-6)
    video = guide(uncond.unflatten(0, (2, 4)), cond.unflatten(0, (2, 4)), scales)
    assert torch.equal(video.flatten(0, 1), flat)


def test_guider_schedules():
    assert VanillaCFG(7.0).scales(3).tolist() == [7.0, 7.0, 7.0]
    triangle = TrianglePredictionGuider(max_scale=2.5, min_scale=1.0).scales(21)
    assert triangle[0] == 1.0
    assert triangle[10] == 2.5
    assert triangle[20] == 1.0
    torch.testing.assert_close(triangle, triangle.flip(0))
    assert (triangle[:11].diff() > 0).all()
    two = TrianglePredictionGuider(max_scale=2.0, min_scale=1.0, period=0.5).scales(21)
    assert two[[0, 5, 10, 15, 20]].tolist() == pytest.approx([1.0, 2.0, 1.0, 2.0, 1.0])
    assert LinearPredictionGuider(2.5, 1.0).scales(14)[[0, -1]].tolist() == [1.0, 2.5]


def test_guidance_refuses_scales_that_do_not_fit():
    with pytest.raises(ValueError, match="no whole number of videos"):
        guide(torch.zeros(7, 1, 2, 2), torch.zeros(7, 1, 2, 2), torch.ones(4))
    with pytest.raises(ValueError, match="do not fit"):
        guide(torch.zeros(2, 5, 1, 2, 2), torch.zeros(2, 5, 1, 2, 2), torch.ones(2, 4))


def test_two_passes_equal_one_of_twice_the_batch():
    x = torch.randn(2, 3, 1, 4, 4)
    scales = LinearPredictionGuider(3.0, 1.0).scales(3).expand(2, 3)
    cond = gaussian_conditioning(2)
    results, batches = [], []
    for two_pass in (False, True):
        network = GaussianNetwork()
        denoise = guided(Denoiser(network), cond, cond.null(), scales, two_pass=two_pass)
        results.append(denoise(x, torch.tensor([2.0, 5.0])))
        batches.append(network.batches)
    torch.testing.assert_close(*results)
    assert batches == [[4], [2, 2]]


def test_scale_one_costs_no_unconditional_pass():
    network = GaussianNetwork()
    options = SamplingOptions(steps=3, guider=VanillaCFG(1.0))
    sample_latents(Denoiser(network), gaussian_conditioning(2), (2, 3, 1, 4, 4), options)
    assert network.batches == [2, 2, 2]


def test_seed_reproduces_bit_for_bit():
    def run(seed: int) -> Tensor:
        options = SamplingOptions(steps=4, seed=seed)
        return sample_latents(Denoiser(GaussianNetwork()), gaussian_conditioning(1), (1, 3, 1, 4, 4), options)

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


def test_nan_from_the_network_is_an_error():
    class Broken(GaussianNetwork):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs) * float("nan")

    with pytest.raises(SamplingError, match=r"NaN or infinity at step 0 .* use float32 or bfloat16"):
        sample_latents(Denoiser(Broken()), gaussian_conditioning(1), (1, 3, 1, 4, 4), SamplingOptions(steps=2))


def test_given_noise_must_have_the_videos_shape():
    with pytest.raises(ValueError, match="noise has shape"):
        sample_latents(
            Denoiser(GaussianNetwork()),
            gaussian_conditioning(1),
            (1, 3, 1, 4, 4),
            SamplingOptions(steps=2),
            noise=torch.zeros(1, 2, 1, 4, 4),
        )
