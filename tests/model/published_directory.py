"""A directory in the layout of the published SVD, saved by the libraries that read it, with random weights."""

from pathlib import Path
from typing import Any

import torch


def save(directory: Path, *, unet: dict[str, Any], vae: dict[str, Any], vision: dict[str, Any]) -> dict[str, int]:
    """Make each part from its configuration, with the published scheduler. Returns the parts' numbers of parameters."""
    from diffusers import (
        AutoencoderKLTemporalDecoder,
        EulerDiscreteScheduler,
        StableVideoDiffusionPipeline,
        UNetSpatioTemporalConditionModel,
    )
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    parts = {
        "unet": UNetSpatioTemporalConditionModel(**unet).eval(),
        "vae": AutoencoderKLTemporalDecoder(down_block_types=("DownEncoderBlock2D",) * 4, **vae).eval(),
        "image_encoder": CLIPVisionModelWithProjection(CLIPVisionConfig(**vision)).eval(),
    }
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        use_karras_sigmas=True,
        sigma_min=0.002,
        sigma_max=700.0,
        timestep_spacing="leading",
        timestep_type="continuous",
        steps_offset=1,
    )
    pipeline = StableVideoDiffusionPipeline(scheduler=scheduler, feature_extractor=CLIPImageProcessor(), **parts)
    pipeline.save_pretrained(directory)
    return {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
