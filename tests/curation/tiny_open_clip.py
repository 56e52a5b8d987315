"""Checkpoints in open_clip's published layout with small random configurations, for tests of loading and numbers."""

import json
from pathlib import Path
from typing import Any

import torch

from curation.compat import ensure_torchvision

PREPROCESS = {
    "mean": [0.48145466, 0.4578275, 0.40821073],
    "std": [0.26862954, 0.26130258, 0.27577711],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
CLIP = {
    "embed_dim": 48,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
COCA = {
    "embed_dim": 48,
    "vision_cfg": {
        "image_size": 64,
        "layers": 2,
        "width": 64,
        "head_width": 32,
        "patch_size": 16,
        "attentional_pool": True,
        "attn_pooler_heads": 4,
        "output_tokens": True,
    },
    "text_cfg": {
        "context_length": 76,
        "vocab_size": 49408,
        "width": 48,
        "heads": 2,
        "layers": 2,
        "embed_cls": True,
        "output_tokens": True,
    },
    "multimodal_cfg": {
        "context_length": 76,
        "vocab_size": 49408,
        "width": 48,
        "heads": 2,
        "layers": 2,
        "attn_pooler_heads": 4,
    },
    "custom_text": True,
}


def folder(at: Path, model: dict[str, Any], *, safe: bool = True) -> Path:
    """A folder as on the hub: configuration and weights. Random, but the same every time."""
    ensure_torchvision()
    import open_clip
    from safetensors.torch import save_file

    at.mkdir(parents=True, exist_ok=True)
    (at / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": PREPROCESS}))
    torch.manual_seed(0)
    made = open_clip.create_model(f"local-dir:{at}", load_weights=False)
    for parameter in made.parameters():
        if parameter.ndim >= 2:  # some start at zero, and would give every token the same logit
            torch.nn.init.normal_(parameter, std=0.1)
    state = {name: value.clone().contiguous() for name, value in made.state_dict().items()}
    if safe:
        save_file(state, at / "open_clip_model.safetensors")
    else:
        torch.save(state, at / "open_clip_pytorch_model.bin")
    return at
