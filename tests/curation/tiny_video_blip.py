"""A VideoBLIP checkpoint in the published layout with a small random configuration, or one of the published size."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from curation.compat import ensure_torchvision

PUBLISHED: dict[str, dict[str, int]] = {  # kpyu/video-blip-opt-2.7b-ego4d
    "vision": {"hidden_size": 1408, "intermediate_size": 6144, "num_hidden_layers": 39, "num_attention_heads": 16}
    | {"image_size": 224, "patch_size": 14},
    "qformer": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    | {"encoder_hidden_size": 1408},
    "text": {"vocab_size": 50272, "hidden_size": 2560, "ffn_dim": 10240, "num_hidden_layers": 32}
    | {"num_attention_heads": 32, "word_embed_proj_dim": 2560},
    "queries": {"num_query_tokens": 32},
}
"""Sizes to be given to `folder`, for OPT."""


def folder(at: Path, language: str, sizes: Mapping[str, Mapping[str, int]] | None = None) -> Path:
    """As published: BLIP-2's parameter names, a tokenizer without image token, .bin weights.

    `sizes` replaces the small ones, per part: vision, qformer, text, queries.
    """
    sizes = sizes or {}
    ensure_torchvision()
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        Blip2Config,
        Blip2ForConditionalGeneration,
        Blip2QFormerConfig,
        Blip2VisionConfig,
        BlipImageProcessor,
        OPTConfig,
        PreTrainedTokenizerFast,
        T5Config,
    )

    prompt = ["Question", ":", "What", "is", "happening", "in", "the", "video", "?", "Answer"]
    words = ["<pad>", "<s>", "</s>", "<unk>", *prompt]
    words += [f"w{k}" for k in range(200 - len(words))]
    tokenizer = Tokenizer(models.WordLevel({word: k for k, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(at)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = Blip2VisionConfig(**small | {"image_size": 32, "patch_size": 8} | sizes.get("vision", {}))
    qformer = Blip2QFormerConfig(**small | {"encoder_hidden_size": 32, "vocab_size": 200} | sizes.get("qformer", {}))
    text: Any
    if language == "opt":
        opt = {"vocab_size": 200, "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        text = OPTConfig(**opt | {"word_embed_proj_dim": 32} | sizes.get("text", {}))
    else:
        text = T5Config(
            vocab_size=200,
            d_model=32,
            d_kv=16,
            d_ff=64,
            num_layers=2,
            num_heads=2,
            decoder_start_token_id=0,
            pad_token_id=0,
        )
    config = Blip2Config(
        vision_config=vision.to_dict(),
        qformer_config=qformer.to_dict(),
        text_config=text.to_dict(),
        **{"num_query_tokens": 4} | sizes.get("queries", {}),
    )
    torch.manual_seed(0)
    model = Blip2ForConditionalGeneration(config).eval()
    torch.nn.init.normal_(model.query_tokens)  # zero in a fresh model, never in a trained one
    for name, parameter in model.named_parameters():
        if "language_model" not in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.config.save_pretrained(at)
    settings = json.loads((at / "config.json").read_text())
    settings["architectures"] = ["VideoBlipForConditionalGeneration"]
    settings.pop("image_token_index", None)
    (at / "config.json").write_text(json.dumps(settings))
    torch.save(model.state_dict(), at / "pytorch_model.bin")
    BlipImageProcessor(size={"height": vision.image_size, "width": vision.image_size}).save_pretrained(at)
    return at
