"""The equations of Appendix D, each against its written-out form in float64."""

import math

import pytest
import torch
from torch import Tensor, nn

from model.conditioning import Conditioning
from model.diffusion import (
    CONDITIONING_AUGMENTATION,
    Denoiser,
    DiffusionLoss,
    EDMPreconditioning,
    EpsPreconditioning,
    LearnedInputScale,
    LogNormal,
    add_noise,
    fold_input_scale,
    karras_sigmas,
    v_target,
    weighting,
)

SIGMAS = torch.tensor([0.002, 0.05, 0.3, 1.0, 2.7, 40.0, 700.0], dtype=torch.float64)


class SmallNetwork(nn.Module):
    """A stand-in network with the contract of VideoUNet: mixes all that it is given, in float64."""

    def __init__(self, channels: int, concat: int = 0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv_in = nn.Conv2d(channels + concat, 8, 3, padding=1, dtype=torch.float64)
        self.out = nn.Conv2d(8, channels, 3, padding=1, dtype=torch.float64)
        self.seen: dict[str, Tensor] = {}

    def forward(self, sample, c_noise, context, vector_ids, *, time_context=None, image_only=None):
        self.seen = {"sample": sample, "c_noise": c_noise, "vector_ids": vector_ids}
        h = self.conv_in(sample.flatten(0, 1)).unflatten(0, sample.shape[:2])
        h = torch.tanh(h + (c_noise + context.mean((1, 2)) + vector_ids.mean(1) / 100).view(-1, 1, 1, 1, 1))
        return self.out(h.flatten(0, 1)).unflatten(0, sample.shape[:2])


def conditioning(batch: int, concat: Tensor | None = None) -> Conditioning:
    return Conditioning(
        context=torch.ones(batch, 2, 4, dtype=torch.float64),
        vector_ids=torch.tensor([[6.0, 127.0, 0.02]], dtype=torch.float64).expand(batch, 3),
        concat=concat,
    )


def test_preconditioning_is_the_published_one():
    p = EDMPreconditioning()
    for sigma in SIGMAS:
        s = sigma.item()
        assert p.c_skip(sigma).item() == pytest.approx(1 / (s * s + 1), rel=1e-14)
        assert p.c_out(sigma).item() == pytest.approx(-s / math.sqrt(s * s + 1), rel=1e-14)
        assert p.c_in(sigma).item() == pytest.approx(1 / math.sqrt(s * s + 1), rel=1e-14)
        assert p.c_noise(sigma).item() == pytest.approx(0.25 * math.log(s), rel=1e-14)
    assert p.c_noise(SIGMAS[0]).item() == pytest.approx(-1.55, abs=0.01)
    assert p.c_noise(SIGMAS[-1]).item() == pytest.approx(1.64, abs=0.01)


def test_network_sees_and_predicts_unit_variance():
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(7, 1, 1, 200, 200, generator=generator, dtype=torch.float64)
    noise = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    p = EDMPreconditioning()
    x = add_noise(x0, noise, SIGMAS)
    inputs = p.c_in(SIGMAS).view(-1, 1, 1, 1, 1) * x
    target = v_target(x0, noise, SIGMAS)
    for values in (inputs, target):
        assert values.flatten(1).var(1).sub(1).abs().max() < 0.03
    # v is what the network must say for the denoiser to return the data.
    c_skip, c_out = (c(SIGMAS).view(-1, 1, 1, 1, 1) for c in (p.c_skip, p.c_out))
    assert (c_skip * x + c_out * target - x0).abs().max() < 1e-9
    # The form without the square root, which some texts print, would not give unit variance.
    no_root = (x0 - c_skip * x) / (-SIGMAS / (SIGMAS**2 + 1)).view(-1, 1, 1, 1, 1)
    assert no_root.flatten(1).var(1).sub(1).abs().max() > 1


def test_loss_weight_cancels_c_out():
    p = EDMPreconditioning()
    assert (weighting(SIGMAS) * p.c_out(SIGMAS) ** 2 - 1).abs().max() < 1e-12


@pytest.mark.parametrize("concat", [0, 3])
def test_v_mse_equals_the_weighted_loss(concat):
    network = SmallNetwork(3, concat)
    denoiser = Denoiser(network)
    generator = torch.Generator().manual_seed(1)
    x0 = torch.randn(7, 4, 3, 8, 8, generator=generator, dtype=torch.float64)
    noise = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    extra = torch.randn(7, 4, concat, 8, 8, generator=generator, dtype=torch.float64) if concat else None
    v_mse = DiffusionLoss()(denoiser, x0, noise, SIGMAS, conditioning(7, extra))
    weighted = DiffusionLoss(weighted=True)(denoiser, x0, noise, SIGMAS, conditioning(7, extra))
    assert v_mse.shape == (7,)
    torch.testing.assert_close(v_mse, weighted, rtol=1e-8, atol=0)
    # Written out once more, without the library: lambda || D - x0 ||^2.
    s = SIGMAS.view(-1, 1, 1, 1, 1)
    x = x0 + s * noise
    sample = x / (s**2 + 1).sqrt()
    sample = sample if extra is None else torch.cat([sample, extra], 2)
    c = conditioning(7)
    f = network(sample, SIGMAS.log() / 4, c.context, c.vector_ids)
    d = x / (s**2 + 1) - s / (s**2 + 1).sqrt() * f
    reference = ((1 + s**2) / s**2 * (d - x0) ** 2).flatten(1).mean(1)
    torch.testing.assert_close(v_mse, reference, rtol=1e-8, atol=0)


def test_gradients_of_both_forms_agree():
    x0 = torch.randn(2, 2, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    gradients = []
    for weighted in (False, True):
        network = SmallNetwork(3)
        loss = DiffusionLoss(weighted)(Denoiser(network), x0, noise, SIGMAS[[1, 5]], conditioning(2)).mean()
        loss.backward()
        gradients.append(network.out.weight.grad)
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


def test_concatenated_channels_are_not_scaled():
    network = SmallNetwork(3, 3)
    extra = torch.randn(1, 2, 3, 8, 8, dtype=torch.float64)
    Denoiser(network)(torch.randn(1, 2, 3, 8, 8, dtype=torch.float64), SIGMAS[-1:], conditioning(1, extra))
    assert torch.equal(network.seen["sample"][:, :, 3:], extra)


def test_sigma_is_one_per_video():
    x0 = torch.zeros(2, 5, 1, 16, 16)
    x = add_noise(x0, torch.ones_like(x0), torch.tensor([1.0, 3.0]))
    assert torch.equal(x[0], torch.ones(5, 1, 16, 16))
    assert torch.equal(x[1], 3 * torch.ones(5, 1, 16, 16))
    with pytest.raises(ValueError, match="one value per video"):
        add_noise(x0, torch.ones_like(x0), torch.ones(10))  # one per frame


@pytest.mark.parametrize(
    ("p_mean", "p_std", "low", "median", "high"),
    [
        (-1.2, 1.0, 0.029, 0.30, 3.1),
        (0.0, 1.0, 0.098, 1.0, 10),
        (0.5, 1.4, 0.064, 1.65, 43),
        (1.0, 1.6, 0.066, 2.7, 112),
    ],
)
def test_noise_distributions_have_the_stages_quantiles(p_mean, p_std, low, median, high):
    distribution = LogNormal(p_mean, p_std)
    drawn = distribution.sample(200_000, generator=torch.Generator().manual_seed(0)).double()
    for q, expected in ((0.01, low), (0.5, median), (0.99, high)):
        assert distribution.quantile(q) == pytest.approx(expected, rel=0.03)
        assert drawn.quantile(q).item() == pytest.approx(expected, rel=0.05)


def test_conditioning_augmentation_is_mild():
    assert CONDITIONING_AUGMENTATION.quantile(0.5) == pytest.approx(0.050, abs=5e-4)
    assert CONDITIONING_AUGMENTATION.quantile(0.99) == pytest.approx(0.159, abs=1e-3)


def test_karras_sigmas_against_the_formula():
    sigmas = karras_sigmas(25)
    assert sigmas.dtype == torch.float64
    assert sigmas[-1] == 0
    for i in range(25):
        root = 700 ** (1 / 7) + i / 24 * (0.002 ** (1 / 7) - 700 ** (1 / 7))
        assert sigmas[i].item() == pytest.approx(root**7, rel=1e-12)
    assert sigmas[0].item() == pytest.approx(700, rel=1e-12)
    assert sigmas[24].item() == pytest.approx(0.002, rel=1e-9)
    for bad in ({"steps": 0}, {"steps": 3, "sigma_min": 0.0}, {"steps": 3, "sigma_max": 0.001}):
        with pytest.raises(ValueError, match="needed"):
            karras_sigmas(**bad)


@pytest.mark.parametrize("kind", ["scale", "function"])
def test_learned_c_in_starts_as_published_and_learns(kind):
    scale = LearnedInputScale(kind).double()
    assert torch.equal(scale(SIGMAS), torch.ones_like(SIGMAS))
    network = SmallNetwork(3)
    x = torch.randn(7, 2, 3, 8, 8, dtype=torch.float64)
    plain = Denoiser(network)(x, SIGMAS, conditioning(7))
    learned = Denoiser(network, input_scale=scale)(x, SIGMAS, conditioning(7))
    assert torch.equal(plain, learned)
    learned.pow(2).mean().backward()
    gradients = [p.grad for p in scale.parameters() if p.grad is not None and p.grad.any()]
    assert gradients
    with torch.no_grad():
        for p in scale.parameters():
            p.add_(0.3)
    factor = scale(SIGMAS)
    assert (factor > 0).all()
    assert (factor != 1).all()
    assert (kind == "scale") == bool((factor == factor[0]).all())
    Denoiser(network, input_scale=scale)(x, SIGMAS, conditioning(7))
    expected = (factor / (SIGMAS**2 + 1).sqrt()).view(-1, 1, 1, 1, 1) * x
    torch.testing.assert_close(network.seen["sample"], expected, rtol=1e-12, atol=0)


def test_learned_constant_folds_into_the_first_convolution():
    network = SmallNetwork(3, 3)
    scale = LearnedInputScale("scale").double()
    with torch.no_grad():
        scale.log_scale.fill_(0.4)
    extra = torch.randn(1, 2, 3, 8, 8, dtype=torch.float64)
    x = torch.randn(1, 2, 3, 8, 8, dtype=torch.float64)
    before = Denoiser(network, input_scale=scale)(x, SIGMAS[3:4], conditioning(1, extra))
    fold_input_scale(network.conv_in, scale, 3)
    after = Denoiser(network)(x, SIGMAS[3:4], conditioning(1, extra))
    torch.testing.assert_close(before, after, rtol=1e-12, atol=1e-14)
    with pytest.raises(ValueError, match="function of sigma"):
        fold_input_scale(network.conv_in, LearnedInputScale("function"), 3)


def test_sd21_preconditioning_denoises_with_a_perfect_noise_prediction():
    """Equations (5)-(8): a network that says the noise gives back the data, and sees SD's integer time steps."""
    p = EpsPreconditioning()
    levels = p.sigmas()
    assert levels[0].item() == pytest.approx(0.0292, abs=1e-4)
    assert levels[-1].item() == pytest.approx(14.61, abs=0.01)
    assert p.c_noise(levels[[0, 500, 999]]).tolist() == [0, 500, 999]
    assert p.c_noise(torch.tensor([1e-4, 700.0])).tolist() == [0, 999]
    x0, noise = torch.randn(2, 1, 1, 4, 4, 4, dtype=torch.float64)
    sigma = torch.tensor([3.0], dtype=torch.float64)

    class Perfect(nn.Module):
        def forward(self, sample, c_noise, *_, **__):
            return noise[None]

    network = Perfect()
    network.register_parameter("dtype", nn.Parameter(torch.zeros(1, dtype=torch.float64)))
    denoised = Denoiser(network, p)(add_noise(x0[None], noise[None], sigma), sigma, conditioning(1))
    torch.testing.assert_close(denoised, x0[None], rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="EDMPreconditioning"):
        DiffusionLoss()(Denoiser(network, p), x0[None], noise[None], sigma, conditioning(1))
