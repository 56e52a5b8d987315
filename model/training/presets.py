"""The stages of the paper, each with its numbers (Stable Video Diffusion, Appendix D), and small ones for two cores.

Published: task, size, frames, updates, batch, learning rate, P_mean, P_std, dropout of text, EMA where given. Not
published, and chosen here: batch and learning rate of the image stages (those of the first video stage), dropout of
images, warm-up, AdamW's betas and weight decay, clipping. Noise of orbit and camera stages: that of image-to-video.
"""

from __future__ import annotations

from dataclasses import replace

from model.training.config import LoraConfig, StageConfig

_TEXT = {"task": "text_to_video", "drop_context": 0.15, "drop_concat": 0.0}
_EMA_OFF = {"ema_decay": 0.0}  # given for the high-resolution stages only


def _stage(name: str, **fields: object) -> StageConfig:
    return StageConfig(name=name, **fields)  # type: ignore[arg-type]


PRESETS: dict[str, StageConfig] = {
    stage.name: stage
    for stage in (
        # Stage I: image pretraining. The discrete noise schedule of SD 2.1 becomes a continuous one.
        _stage("image-noise-schedule", **_TEXT, frames=1, height=512, width=512, steps=1000, global_batch=1536,
               p_mean=-1.2, p_std=1.0, trainable=r"time_embedding\..*", warmup_steps=100, **_EMA_OFF),
        _stage("image-finetune", **_TEXT, frames=1, height=256, width=384, steps=30_000, global_batch=1536,
               p_mean=-1.2, p_std=1.0, **_EMA_OFF),
        # Stage II: video pretraining. The second one is the paper's base model.
        _stage("joint-image-video", **_TEXT, height=256, width=384, steps=150_000, global_batch=1536,
               p_mean=-1.2, p_std=1.0, image_share=0.2, **_EMA_OFF),
        _stage("video-256", **_TEXT, height=256, width=384, steps=150_000, global_batch=1536,
               p_mean=-1.2, p_std=1.0, **_EMA_OFF),
        _stage("video-320", **_TEXT, height=320, width=576, steps=100_000, p_mean=0.0, p_std=1.0, **_EMA_OFF),
        # Stage III: high-quality finetuning.
        _stage("text-to-video-576", **_TEXT, steps=50_000, learning_rate=3e-5, p_mean=0.5, p_std=1.4),
        # Image-to-video, from the base model: low resolution first.
        _stage("image-to-video-320", height=320, width=576, steps=50_000, learning_rate=3e-5, p_mean=0.7, p_std=1.6,
               **_EMA_OFF),
        _stage("image-to-video-576", steps=50_000, learning_rate=3e-5, p_mean=1.0, p_std=1.6),
        _stage("image-to-video-576-25", frames=25, steps=50_000, learning_rate=3e-5, p_mean=1.0, p_std=1.6),
        # Models built on it.
        _stage("interpolation", task="interpolation", frames=5, steps=10_000, global_batch=256, learning_rate=1e-4,
               p_mean=1.0, p_std=1.2),
        _stage("multi-view", task="orbit", frames=21, height=576, width=576, steps=12_000, global_batch=16,
               learning_rate=1e-5, crop="center", warmup_steps=100),
        _stage("camera-horizontal", steps=5000, global_batch=64, lora=LoraConfig(), camera=("horizontal",)),
        _stage("camera-zooming", steps=5000, global_batch=64, lora=LoraConfig(), camera=("zooming",)),
        _stage("camera-static", steps=5000, global_batch=64, lora=LoraConfig(), camera=("static",)),
    )
}  # fmt: skip

DOCS: dict[str, str] = {
    "image-noise-schedule": "stage I a: only the time embedding, to a continuous noise schedule",
    "image-finetune": "stage I b: all layers, images",
    "joint-image-video": "stage II with a share of image batches (not in the paper, which the architecture allows)",
    "video-256": "stage II a: video pretraining, 256x384",
    "video-320": "stage II b: video pretraining, 320x576: the base model",
    "text-to-video-576": "stage III: high-quality finetuning, 576x1024",
    "image-to-video-320": "image-to-video, 320x576",
    "image-to-video-576": "image-to-video, 14 frames, 576x1024",
    "image-to-video-576-25": "image-to-video, 25 frames, 576x1024",
    "interpolation": "three frames between two",
    "multi-view": "21 views around an object; shards need `elevation_deg`",
    "camera-horizontal": "camera LoRA on clips labelled horizontal",
    "camera-zooming": "camera LoRA on clips labelled zooming",
    "camera-static": "camera LoRA on clips labelled static",
}


def preset(name: str, *, tiny: bool = False) -> StageConfig:
    """A stage by name.

    Raises:
        KeyError: no such preset; the message lists them.
    """
    if name not in PRESETS:
        raise KeyError(f"no preset is called {name!r}; known: {', '.join(PRESETS)}")
    return tiny_variant(PRESETS[name]) if tiny else PRESETS[name]


def tiny_variant(stage: StageConfig) -> StageConfig:
    """The same stage for the tiny network on two CPU cores: about a minute.

    Dropout, task and what is trained stay the stage's; size, frames, updates, batch and learning rate do not. Noise is
    at most what a picture this small needs to be lost in it: with the paper's, made for 320x576 and more, a minute of
    training teaches next to nothing.
    """
    frames = {1: 1, 5: 5}.get(stage.frames, 4)
    return replace(
        stage,
        frames=frames,
        height=24,
        width=24 if stage.height == stage.width else 32,
        steps=240,
        global_batch=8 if frames == 1 else 4,
        learning_rate=1e-3,
        warmup_steps=20,
        ema_decay=0.98,
        p_mean=min(stage.p_mean, 0.0),
        p_std=min(stage.p_std, 1.4),
        lora=None if stage.lora is None else replace(stage.lora, rank=4, alpha=4.0),
    )
