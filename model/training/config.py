"""What a training run is made of: typed, with a sentence under every field. `clipmill train template` prints them.

A run is a chain of stages, each starting from the weights of the last. The stages of the paper are presets
(presets.py); a configuration file names a preset and changes what it wants (config_file.py).
"""

from __future__ import annotations

from dataclasses import field
from typing import Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

STRICT = ConfigDict(extra="forbid", use_attribute_docstrings=True)

Task = Literal["text_to_video", "image_to_video", "interpolation", "orbit"]


@dataclass(config=STRICT, kw_only=True, frozen=True)
class LoraConfig:
    """Low-rank adapters in the temporal attention instead of full weights (paper, Appendix D: camera motion)."""

    rank: int = 16
    """Rank of each adapter."""
    alpha: float = 16.0
    """The adapter's output is scaled by alpha / rank."""


@dataclass(config=STRICT, kw_only=True, frozen=True)
class StageConfig:
    """One stage of training: what is learned, from which samples, for how long."""

    name: str
    """Names the stage's folder in the output."""
    task: Task = "image_to_video"
    """What the model is conditioned on."""
    frames: int = 14
    """Frames per clip; 1 trains on single images (frames of clips count as images), without the temporal layers."""
    height: int = 576
    """Height in pixels."""
    width: int = 1024
    """Width in pixels."""
    steps: int = 1000
    """Updates."""
    global_batch: int = 768
    """Samples per update, over all ranks and accumulation steps."""
    learning_rate: float = 1e-4
    """Of AdamW, after warm-up."""
    warmup_steps: int = 1000
    """Updates over which the learning rate grows linearly to its value. The paper does not say; Vista uses 1000."""
    beta1: float = 0.9
    """AdamW's decay of the mean gradient. Not published."""
    beta2: float = 0.999
    """AdamW's decay of the squared gradient. Not published."""
    weight_decay: float = 0.01
    """AdamW's decoupled weight decay. Not published."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm. Not published."""
    p_mean: float = 1.0
    """Mean of ln sigma."""
    p_std: float = 1.6
    """Standard deviation of ln sigma."""
    drop_context: float = 0.1
    """Probability that text or image tokens are left out, for guidance. Published for text: 0.15."""
    drop_concat: float = 0.1
    """Probability that the conditioning latent is left out, for guidance. Not published."""
    augmentation_mean: float = -3.0
    """Mean of ln sigma of the noise on the conditioning frame (Appendix D)."""
    augmentation_std: float = 0.5
    """Standard deviation of the same."""
    ema_decay: float = 0.9999
    """Decay of the averaged weights; 0 keeps none. Warms up as min(decay, (1 + n) / (10 + n))."""
    fps: tuple[float, float] = (3.0, 30.0)
    """Least and greatest rate at which frames are taken from a clip; the rate taken is what the model is told."""
    crop: Literal["random", "center"] = "random"
    """Where a clip of another shape is cropped, after scaling it to cover the size."""
    aspect_buckets: bool = False
    """Batches of other aspect ratios and the same area, so that little is cropped."""
    camera: tuple[str, ...] = ()
    """Only clips with one of these camera labels (for LoRAs); empty: all."""
    image_share: float = 0.0
    """Share of the steps that train on single images beside the clips (joint image-video training)."""
    caption_weights: dict[str, float] = field(
        default_factory=lambda: {"spatial": 0.5, "temporal": 0.25, "merged": 0.25}
    )
    """Probability of each kind of caption, among those a clip has (Appendix C: CoCa, V-BLIP, LLM)."""
    trainable: str = ".*"
    """Regular expression of the parameters that are trained; the rest is frozen."""
    lora: LoraConfig | None = None
    """Train adapters and freeze everything else."""
    learned_c_in: Literal["scale", "function"] | None = None
    """Learn a factor on c_in instead of using the published one alone. Later stages train it on."""


@dataclass(config=STRICT, kw_only=True, frozen=True)
class DataConfig:
    """Where the samples are."""

    shards: tuple[str, ...]
    """Shards written by `clipmill export` (or any WebDataset tars): files, folders or globs, local or fsspec URLs."""
    images: tuple[str, ...] = ()
    """Shards of images for joint training; empty: frames of the clips serve as images."""
    validation: tuple[str, ...] = ()
    """Shards of clips that are sampled as validation; empty: the first clips of `shards`, which are trained on too."""
    workers: int = 2
    """Decoding processes per rank; 0 decodes in the training process. Does not change any result."""
    prefetch: int = 4
    """Micro-batches prepared ahead by each of them."""
    window_shards: int = 16
    """Shards whose samples are mixed with each other."""
    bad_sample: Literal["stop", "replace"] = "stop"
    """A clip that cannot be decoded stops the run, or another (the same in every run) takes its place, counted."""


@dataclass(config=STRICT, kw_only=True, frozen=True)
class ModelConfig:
    """What is trained, and the frozen networks around it."""

    start: str = "random"
    """Weights of the first stage: `random`, a model directory, a generative-models file such as svd_xt.safetensors, or
    Stable Diffusion 2.1 in diffusers layout."""
    size: Literal["svd", "tiny"] = "svd"
    """Size of the network where `start` does not bring one."""
    channels: tuple[int, ...] | None = None
    """Channels per level instead of those of the size (each a multiple of 32)."""
    autoencoder: str = "from start"
    """`haar` (invertible wavelet, no weights: 48 channels at a quarter of the size), `haar-1` (12 channels at half the
    size: what a network of 32 channels can learn), a directory with `vae/`, or the one in `start`."""
    text_encoder: str = "from start"
    """`untrained` (a small frozen random network: text acts as a label), a directory with `text_encoder/`, or the
    one in `start`."""
    image_encoder: str = "from start"
    """`untrained` (a small frozen random network), a directory with `image_encoder/`, or as in `start`."""


@dataclass(config=STRICT, kw_only=True, frozen=True)
class ComputeConfig:
    """How the work is laid out on the machines. Nothing here changes what is learned, beyond rounding."""

    micro_batch: int = 1
    """Samples per forward pass of a rank; gradients are accumulated up to the global batch."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Of forward and backward passes; weights, reductions, optimizer and averages are float32 in both."""
    replicate: int = 1
    """Groups of ranks that hold a whole model each; the model is sharded over world / replicate ranks."""
    reshard_after_forward: bool = True
    """Free gathered weights between forward and backward (less memory, more communication)."""
    checkpointing: Literal["none", "selective", "full"] = "full"
    """Activation checkpointing of residual blocks and transformers, spatial and temporal: recompute everything, or
    (`selective`) all but matrix products, convolutions and attention."""
    compile: bool = False
    """torch.compile of each repeated block."""
    exact: bool | None = None
    """Add gradients in the order of the samples, whatever the number of ranks, so that the result is the same to the
    last bit. Unset: on CPUs yes, on GPUs no."""
    threads: int = 1
    """CPU threads of each rank; the number of threads changes rounding. 0 leaves it to torch."""
    encode_chunk: int = 16
    """Frames the frozen autoencoder encodes at a time."""


@dataclass(config=STRICT, kw_only=True, frozen=True)
class SavingConfig:
    """Checkpoints, validation and logs."""

    every: int = 500
    """Steps between checkpoints; the last step is always saved."""
    keep: int = 3
    """Newest checkpoints that are kept."""
    asynchronous: bool = True
    """Write in the background while training goes on."""
    validate_every: int = 1000
    """Steps between validation samples; 0: none."""
    validation_clips: int = 2
    """Clips sampled each time, at least one per rank."""
    validation_steps: int = 25
    """Sampling steps of each."""
    log_every: int = 10
    """Steps between lines on the console; the log file and TensorBoard get every step."""
    peak_tflops: float | None = None
    """Dense bf16 peak of one device, for MFU; unset: known for common GPUs, else MFU is left out."""


@dataclass(config=STRICT, kw_only=True, frozen=True)
class TrainConfig:
    """A run: everything that `clipmill train` reads."""

    output: str
    """Folder of the run: checkpoints, logs, samples, exported models."""
    data: DataConfig
    """The samples."""
    stages: tuple[StageConfig, ...]
    """What is trained, one after the other."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """What is trained, and from where it starts."""
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    """How the work is laid out."""
    saving: SavingConfig = field(default_factory=SavingConfig)
    """What is written on the way."""
    seed: int = 0
    """Of order, crops, captions, dropout, sigma and noise, and of fresh weights."""
