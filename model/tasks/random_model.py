"""Tiny models with random weights: they show that everything runs, and nothing else.

No video of theirs means anything, and the directory says so (`random_weights` in clipmill.json). Two autoencoders: the
Haar pyramid, with which frames at least survive encoding and decoding, or a random KL autoencoder, with which an
image-to-video directory has exactly the published layout and opens in diffusers.
"""

from typing import Literal

import torch
from torch import nn

from model.conditioning.haar import HaarAutoencoder
from model.conditioning.image import TransformersImageEncoder
from model.conditioning.latents import KLAutoencoder
from model.conditioning.motion import DEFAULT
from model.conditioning.text import OpenClipTextEncoder
from model.tasks.description import TASKS, ModelDescription
from model.tasks.interpolation_mask import MaskEmbedding
from model.tasks.video_model import VideoModel
from model.unet import VideoUNet
from model.unet_config import UNetConfig

FRAMES = {"text_to_video": 14, "image_to_video": 14, "interpolation": 5, "orbit": 21}
WIDTH = 32
"""Of a context token."""


def tiny_random_model(
    task: str, *, autoencoder: Literal["haar", "kl"] = "haar", frames: int | None = None, seed: int = 0
) -> VideoModel:
    """A model of about a million parameters (plus a token table for text), on the CPU, in float32.

    Raises:
        ValueError: an unknown task or autoencoder.
    """
    if task not in TASKS:
        raise ValueError(f"task {task!r}; known tasks: {', '.join(TASKS)}")
    if autoencoder not in ("haar", "kl"):
        raise ValueError(f"autoencoder {autoencoder!r}: haar or kl")
    frames = frames or FRAMES[task]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        first_stage = HaarAutoencoder(levels=2) if autoencoder == "haar" else _kl_autoencoder()
        c = first_stage.channels
        unet = VideoUNet(
            UNetConfig.tiny(
                in_channels={"text_to_video": c, "interpolation": 2 * c + 1}.get(task, 2 * c),
                out_channels=c,
                num_frames=frames,
                cross_attention_dim=WIDTH,
                projection_class_embeddings_input_dim=32 * (4 if task == "orbit" else 3),
                norm_eps="diffusers",
            )
        )
        for parameter in unet.parameters():  # a fresh network's branches all end in zeros: nothing would show
            if parameter.ndim > 1 and not parameter.any():
                nn.init.normal_(parameter, std=0.02)
        model = VideoModel(
            description=ModelDescription(
                task=task,
                frames=frames,
                width=128,
                height=64,
                steps=10,
                guider="triangle" if task == "orbit" else "constant" if task == "text_to_video" else "linear",
                max_guidance=7.0 if task == "text_to_video" else 2.5,
                motion=DEFAULT,
                random_weights=True,
            ),
            unet=unet.eval().requires_grad_(False),
            autoencoder=first_stage,
            text_encoder=_text_encoder() if task == "text_to_video" else None,
            image_encoder=None if task == "text_to_video" else _image_encoder(),
            mask_embedding=MaskEmbedding(c, 64 // first_stage.factor, 128 // first_stage.factor)
            if task == "interpolation"
            else None,
        )
    for part in model.modules():
        part.requires_grad_(False).eval()
    return model


def _kl_autoencoder() -> KLAutoencoder:
    from curation.compat import ensure_torchvision

    ensure_torchvision()
    from diffusers import AutoencoderKLTemporalDecoder

    blocks = ("DownEncoderBlock2D",) * 4
    return KLAutoencoder(
        AutoencoderKLTemporalDecoder(block_out_channels=(32,) * 4, down_block_types=blocks, layers_per_block=2)
    )


def _image_encoder() -> TransformersImageEncoder:
    from curation.compat import ensure_torchvision

    ensure_torchvision()
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=224,
        patch_size=32,
        projection_dim=WIDTH,
        hidden_act="gelu",
    )
    return TransformersImageEncoder(CLIPVisionModelWithProjection(config))


def _text_encoder() -> OpenClipTextEncoder:
    from curation.compat import ensure_torchvision

    ensure_torchvision()
    from open_clip import CLIP

    config = {
        "embed_dim": WIDTH,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": WIDTH, "heads": 2, "layers": 2},
    }
    return OpenClipTextEncoder(CLIP(**config), config)
