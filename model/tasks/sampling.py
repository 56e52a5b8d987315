"""The sampling loop that every task shares: noise in, guided denoising, latents out; and its options."""

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from model.conditioning.conditioning import Conditioning
from model.diffusion.guidance import Guider, LinearPredictionGuider, guide, per_video_scales
from model.diffusion.preconditioning import DenoiseFunction, Denoiser
from model.diffusion.samplers import SAMPLERS, Churn
from model.diffusion.sigmas import RHO, SIGMA_MAX, SIGMA_MIN, karras_sigmas

Progress = Callable[[int, int, Tensor], None]
"""(step, steps, denoised latents (B, T, C, h, w)): called once a step."""


class SamplingError(RuntimeError):
    """Sampling failed; the message says what to change."""


class OutOfMemory(SamplingError):
    """Out of memory; the message lists what can still be turned on."""


class FrameCountWarning(UserWarning):
    """The number of frames is not the one the weights were trained for."""


@dataclass(frozen=True)
class SamplingOptions:
    """How to sample; every task takes one. The defaults are those of the released image-to-video model."""

    steps: int = 25
    sampler: str = "euler"
    """`euler` or `heun` (two evaluations a step)."""
    guider: Guider = field(default_factory=lambda: LinearPredictionGuider(max_scale=2.5, min_scale=1.0))
    seed: int = 23
    """Noise is drawn on the CPU, in float32: one seed gives the same noise on every device."""
    sigma_min: float = SIGMA_MIN
    sigma_max: float = SIGMA_MAX
    rho: float = RHO
    churn: Churn = field(default_factory=Churn)
    two_pass: bool = False
    """Run the two sides of guidance one after the other: half the activations, the same result up to rounding."""
    decode_chunk: int | None = 14
    """Frames decoded at a time; None: all."""
    offload: bool = False
    """Keep every part on the CPU and move it to the device only while it works."""

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise ValueError(f"sampler {self.sampler!r}: {' or '.join(SAMPLERS)}")
        if self.decode_chunk is not None and self.decode_chunk < 1:
            raise ValueError(f"decode_chunk {self.decode_chunk}: at least 1 frame")

    def generator(self) -> torch.Generator:
        """A fresh random generator of the seed, on the CPU."""
        return torch.Generator().manual_seed(self.seed)


def guided(
    denoiser: Denoiser, conditioning: Conditioning, unconditional: Conditioning, scales: Tensor, *, two_pass: bool
) -> DenoiseFunction:
    """Equation (4) as a denoise function. `scales` (B, T); where all are 1, the unconditional side is not computed."""
    if bool((scales == 1).all()):
        return lambda x, sigma: denoiser(x, sigma, conditioning)
    if two_pass:
        return lambda x, sigma: guide(denoiser(x, sigma, unconditional), denoiser(x, sigma, conditioning), scales)
    both = unconditional.join(conditioning)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        uncond, cond = denoiser(torch.cat([x, x]), torch.cat([sigma, sigma]), both).chunk(2)
        return guide(uncond, cond, scales)

    return denoise


@torch.no_grad()
def sample_latents(
    denoiser: Denoiser,
    conditioning: Conditioning,
    shape: tuple[int, int, int, int, int],
    options: SamplingOptions,
    *,
    device: torch.device | str = "cpu",
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
    unconditional: Conditioning | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Latents (B, T, C, h, w) from noise, float32 on `device`, scaled by the autoencoder's scaling factor.

    Args:
        shape: (B, T, C, h, w).
        generator: source of the initial noise (and of churn); default: a fresh one of options.seed.
        noise: unit-variance initial noise instead of drawing it, of that shape.
        unconditional: the other side of guidance; default: conditioning.null().

    Raises:
        ConditioningError: the conditioning holds NaN or infinity.
        SamplingError: the network produced NaN.
    """
    conditioning = conditioning.check().to(device)
    unconditional = (conditioning.null() if unconditional is None else unconditional.check()).to(device)
    generator = options.generator() if generator is None else generator
    if noise is None:
        noise = torch.randn(shape, generator=generator)
    elif tuple(noise.shape) != tuple(shape):
        raise ValueError(f"noise has shape {tuple(noise.shape)}, {tuple(shape)} is needed")
    sigmas = karras_sigmas(options.steps, sigma_min=options.sigma_min, sigma_max=options.sigma_max, rho=options.rho)
    scales = per_video_scales(options.guider, shape[0], shape[1]).to(device)
    denoise = guided(denoiser, conditioning, unconditional, scales, two_pass=options.two_pass)

    def callback(step: int, sigma: float, denoised: Tensor) -> None:
        if not torch.isfinite(denoised).all():
            raise SamplingError(
                f"the network produced NaN or infinity at step {step} (sigma {sigma:.3g}): use float32 or bfloat16, "
                "and check that the weights are finite"
            )
        if progress is not None:
            progress(step + 1, options.steps, denoised)

    # Data of unit variance plus noise of sigma_max: not sigma_max alone, as the released samplers also have it.
    x = noise.to(device) * math.sqrt(1 + options.sigma_max**2)
    sampler = SAMPLERS[options.sampler]
    return sampler(denoise, x, sigmas, churn=options.churn, generator=generator, callback=callback)


@contextmanager
def placed(part: object, device: torch.device | str, *, offload: bool) -> Iterator[None]:
    """Run with a part on the device; with `offload` it is brought there and taken back to the CPU afterwards."""
    if not (offload and isinstance(part, nn.Module)):
        yield
        return
    part.to(device)
    try:
        yield
    finally:
        part.to("cpu")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@contextmanager
def explain_out_of_memory(options: SamplingOptions, *, dtype: torch.dtype, loading: bool = False) -> Iterator[None]:
    """Turn an allocator's error into OutOfMemory, which says what has not been turned on yet.

    Args:
        loading: only the weights are in memory; what saves activations is of no use.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error).lower()
        signs = ("alloc", "out of memory", "could not create a memory object")  # the last one is oneDNN's
        if not isinstance(error, torch.OutOfMemoryError) and not any(sign in text for sign in signs):
            raise
        advice = []
        if not loading and not options.two_pass:
            advice.append("two_pass (--two-pass)")
        if not loading and (options.decode_chunk is None or options.decode_chunk > 1):
            advice.append("decode_chunk=1 (--decode-chunk 1)")
        if not options.offload:
            advice.append("offload (--offload)")
        if dtype == torch.float32:
            advice.append("bfloat16 (--dtype bfloat16)")
        advice.append("a device with more memory" if loading else "fewer frames or a smaller size")
        raise OutOfMemory(f"out of memory ({str(error).splitlines()[0]}); use: {', '.join(advice)}") from error


def check_frames(asked: int, trained: int) -> None:
    """Warn where a clip length was asked for that the weights have not seen (it runs: frame indices are sinusoids).

    Raises:
        ValueError: fewer than 2 frames.
    """
    if asked < 2:
        raise ValueError(f"frames is {asked}: a video has at least 2")
    if asked != trained:
        warnings.warn(
            f"{asked} frames asked for, but this model was trained for {trained}: expect lower quality",
            FrameCountWarning,
            stacklevel=3,
        )


def check_size(width: int, height: int, multiple: int) -> None:
    """Refuse sizes the network cannot halve often enough.

    Raises:
        ValueError: names the multiple and the nearest size that fits.
    """
    if width < multiple or height < multiple or width % multiple or height % multiple:
        fits = [max(multiple, round(side / multiple) * multiple) for side in (width, height)]
        raise ValueError(
            f"size {width} x {height}: width and height must be multiples of {multiple} for this model; "
            f"the nearest is {fits[0]} x {fits[1]}"
        )
