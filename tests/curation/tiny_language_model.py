"""A language model's folder in the layout of transformers, with a small random configuration or one of a real size."""

from collections.abc import Mapping
from pathlib import Path

import torch

from curation.compat import ensure_torchvision

QWEN_1_5B = {"vocab_size": 151936, "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28}
QWEN_1_5B |= {"num_attention_heads": 12, "num_key_value_heads": 2, "max_position_embeddings": 4096}
"""Sizes of Qwen2.5-1.5B, which this Llama of the same shape costs as much as."""


def folder(at: Path, sizes: Mapping[str, int] | None = None) -> Path:
    ensure_torchvision()
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {word: k for k, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *[f"w{k}" for k in range(60)]])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.save_pretrained(at)
    torch.manual_seed(0)
    small = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    small |= {"num_attention_heads": 2, "max_position_embeddings": 512}
    LlamaForCausalLM(LlamaConfig(**small | (sizes or {}))).save_pretrained(at)
    return at
