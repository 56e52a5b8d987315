"""Every size of the video UNet, as one frozen dataclass whose fields are those of diffusers' `config.json`.

Sizes of the published models: SVD (arXiv 2311.15127) appendix D on top of Stable Diffusion 2.1.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

DIFFUSERS_CLASS = "UNetSpatioTemporalConditionModel"
ATTENTION_DOWN = "CrossAttnDownBlockSpatioTemporal"
PLAIN_DOWN = "DownBlockSpatioTemporal"
ATTENTION_UP = "CrossAttnUpBlockSpatioTemporal"
PLAIN_UP = "UpBlockSpatioTemporal"


@dataclass(frozen=True)
class UNetConfig:
    """Shape of a `model.unet.VideoUNet`. Levels are listed from the finest to the coarsest."""

    in_channels: int = 8
    """4 for text-to-video, 8 for image-to-video (noisy latent + conditioning latent), 9 for interpolation (+ mask)."""
    out_channels: int = 4
    down_block_types: tuple[str, ...] = (ATTENTION_DOWN, ATTENTION_DOWN, ATTENTION_DOWN, PLAIN_DOWN)
    """Which levels have transformers on the way down (the middle always has one)."""
    up_block_types: tuple[str, ...] = (PLAIN_UP, ATTENTION_UP, ATTENTION_UP, ATTENTION_UP)
    """The same on the way up, from the coarsest level to the finest."""
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    """Channels per level; each a multiple of 32 (group normalisation) and of its number of heads."""
    layers_per_block: int = 2
    """Residual blocks per level on the way down; one more on the way up."""
    cross_attention_dim: int = 1024
    """Width of a context token (OpenCLIP ViT-H/14)."""
    num_attention_heads: tuple[int, ...] = (5, 10, 20, 20)
    transformer_layers_per_block: int = 1
    addition_time_embed_dim: int = 256
    """Width of the sinusoid of each scalar condition."""
    projection_class_embeddings_input_dim: int = 768
    """Width of all of them together: 3 x 256 for frame rate, motion and augmentation; 4 x 256 with elevation."""
    num_frames: int = 14
    """Clip length the weights were trained for. Documentation only: other lengths run."""
    sample_size: int | None = 96
    """Latent size as diffusers writes it. Documentation only."""
    norm_eps: Literal["diffusers", "sgm"] = "diffusers"
    """Epsilon of the residual blocks' group norms. The published SVD was trained with 1e-5 everywhere (`sgm`, as
    was Stable Diffusion 2.1); diffusers runs it with 1e-6 in all up blocks and in down blocks with attention."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type == "int" and not (isinstance(value, int) and value > 0):
                raise ValueError(f"UNetConfig.{field.name} is {value!r}; a whole number of at least 1 is needed")
        for name in ("block_out_channels", "num_attention_heads"):
            value = getattr(self, name)
            if not isinstance(value, tuple) or not all(isinstance(each, int) and each > 0 for each in value):
                raise ValueError(f"UNetConfig.{name} is {value!r}; a list of whole numbers of at least 1 is needed")
        levels = len(self.block_out_channels)
        for name in ("down_block_types", "up_block_types", "num_attention_heads"):
            if len(getattr(self, name)) != levels:
                raise ValueError(
                    f"UNetConfig.{name} has {len(getattr(self, name))} entries; expected one per level: {levels}"
                )
        for name, allowed in (
            ("down_block_types", (ATTENTION_DOWN, PLAIN_DOWN)),
            ("up_block_types", (ATTENTION_UP, PLAIN_UP)),
        ):
            for block in getattr(self, name):
                if block not in allowed:
                    raise ValueError(f"UNetConfig.{name}: unknown block {block!r}; choose from {', '.join(allowed)}")
        for channels, heads in zip(self.block_out_channels, self.num_attention_heads, strict=True):
            if channels % 32 or channels % heads:
                raise ValueError(
                    f"UNetConfig.block_out_channels: {channels} channels with {heads} heads; "
                    "channels must be a multiple of 32 and of the number of heads"
                )
        if self.projection_class_embeddings_input_dim % self.addition_time_embed_dim:
            raise ValueError(
                f"UNetConfig.projection_class_embeddings_input_dim = {self.projection_class_embeddings_input_dim} "
                f"must be a multiple of addition_time_embed_dim = {self.addition_time_embed_dim}"
            )
        if self.norm_eps not in ("diffusers", "sgm"):
            raise ValueError(f"UNetConfig.norm_eps is {self.norm_eps!r}; choose 'diffusers' or 'sgm'")

    @property
    def num_vector_ids(self) -> int:
        """How many scalar conditions a sample has (K of `vector_ids`)."""
        return self.projection_class_embeddings_input_dim // self.addition_time_embed_dim

    @property
    def size_multiple(self) -> int:
        """Height and width of the latent must be multiples of this."""
        return 2 ** (len(self.block_out_channels) - 1)

    def group_norm_eps(self, block_type: str | None) -> float:
        """Epsilon of the residual blocks in a block of this type (None: the middle block)."""
        return 1e-5 if self.norm_eps == "sgm" or block_type in (PLAIN_DOWN, None) else 1e-6

    def replace(self, **changes: Any) -> UNetConfig:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    # ---- presets -------------------------------------------------------------------------------------------------

    @classmethod
    def svd(cls, **changes: Any) -> UNetConfig:
        """Image-to-video, 14 frames: 1,524,623,082 parameters."""
        return cls(**changes)

    @classmethod
    def svd_xt(cls, **changes: Any) -> UNetConfig:
        """Image-to-video, 25 frames: the same network."""
        return cls(**{"num_frames": 25, **changes})

    @classmethod
    def base_text_to_video(cls, **changes: Any) -> UNetConfig:
        """The base model before image-to-video finetuning: 4 input channels, 77 text tokens as context."""
        return cls(**{"in_channels": 4, **changes})

    @classmethod
    def interpolation(cls, **changes: Any) -> UNetConfig:
        """Frame interpolation: latent, conditioning latent and mask (4 + 4 + 1 channels), 5 frames (appendix D.5)."""
        return cls(**{"in_channels": 9, "num_frames": 5, **changes})

    @classmethod
    def multi_view(cls, **changes: Any) -> UNetConfig:
        """Orbits: 21 views, with the elevation as a fourth scalar condition (appendix D.6)."""
        return cls(**{"projection_class_embeddings_input_dim": 1024, "num_frames": 21, **changes})

    @classmethod
    def tiny(cls, **changes: Any) -> UNetConfig:
        """Two levels, under a million parameters: the whole system on two CPU cores. Any field can be overridden."""
        tiny: dict[str, Any] = {
            "block_out_channels": (32, 64),
            "down_block_types": (ATTENTION_DOWN, PLAIN_DOWN),
            "up_block_types": (PLAIN_UP, ATTENTION_UP),
            "num_attention_heads": (2, 4),
            "layers_per_block": 1,
            "cross_attention_dim": 32,
            "addition_time_embed_dim": 32,
            "projection_class_embeddings_input_dim": 96,
            "sample_size": None,
        }
        return cls(**{**tiny, **changes})

    # ---- diffusers' config.json ----------------------------------------------------------------------------------

    @classmethod
    def from_diffusers(cls, config: dict[str, Any]) -> UNetConfig:
        """Read a parsed `unet/config.json`.

        Fields the file leaves out take diffusers' defaults (which are those of the published model with 25 frames).

        Raises:
            ValueError: the file describes another kind of network.
        """
        if not isinstance(config, dict):
            raise ValueError(f"config.json holds a {type(config).__name__}; expected an object")
        name = config.get("_class_name", DIFFUSERS_CLASS)
        if name != DIFFUSERS_CLASS:
            raise ValueError(f"config.json describes a {name}; expected {DIFFUSERS_CLASS}")
        fields = {field.name for field in dataclasses.fields(cls)}
        known = {key: tuple(v) if isinstance(v, list) else v for key, v in config.items() if key in fields}
        values: dict[str, Any] = {"num_frames": 25, "sample_size": None, **known}
        levels = len(values.get("block_out_channels", cls.block_out_channels))
        if isinstance(values.get("num_attention_heads"), int):
            values["num_attention_heads"] = (values["num_attention_heads"],) * levels
        for key in ("layers_per_block", "cross_attention_dim", "transformer_layers_per_block"):
            value = values.get(key)
            if isinstance(value, tuple):
                if len(set(value)) != 1:
                    raise ValueError(f"config.json: {key} = {list(value)}; only one value for all levels is supported")
                values[key] = value[0]
        return cls(**values)

    def to_diffusers(self) -> dict[str, Any]:
        """The dictionary for `unet/config.json`, which diffusers' `from_pretrained` reads."""
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}
        if self.norm_eps == "diffusers":
            del values["norm_eps"]
        return {"_class_name": DIFFUSERS_CLASS, "_diffusers_version": "0.35.0", **values}
