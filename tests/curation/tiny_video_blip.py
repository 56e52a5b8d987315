"""A VideoBLIP checkpoint in the published layout with a small random configuration."""

import json
from pathlib import Path
from typing import Any

import torch

from curation.compat import ensure_torchvision


def folder(at: Path, language: str) -> Path:
    """As published: BLIP-2's parameter names, a tokenizer without image token, .bin weights."""
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
    vision = Blip2VisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    qformer = Blip2QFormerConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        encoder_hidden_size=32,
        vocab_size=200,
    )
    text: Any
    if language == "opt":
        text = OPTConfig(
            vocab_size=200,
            hidden_size=32,
            ffn_dim=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            word_embed_proj_dim=32,
        )
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
        vision_config=vision.to_dict(), qformer_config=qformer.to_dict(), text_config=text.to_dict(), num_query_tokens=4
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
    BlipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(at)
    return at
