"""Text-to-video (paper section 4.2, App. D.3), with temporal prompting (App. E.5.4, Fig. 22).

With temporal prompting the temporal attention reads a prompt of its own. Spatial layers say what is in the frames,
temporal layers how it moves: prompting them apart ("a dog" and "zooming in") controls motion without touching the
content.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from model.conditioning.conditioning import Conditioning
from model.conditioning.text import warn_of_cut_prompts
from model.conditioning.vector import Scalars, vector_ids
from model.tasks.sampling import (
    Progress,
    SamplingOptions,
    check_frames,
    check_size,
    explain_out_of_memory,
)
from model.tasks.video_model import VideoModel


def conditioning(
    tokens: Tensor, *, fps: Scalars, motion_bucket: Scalars, temporal_tokens: Tensor | None = None
) -> Conditioning:
    """The same for training and sampling: text tokens (B, S, D), optionally others for the temporal attention."""
    ids = vector_ids(len(tokens), fps=fps, motion_bucket=motion_bucket)
    return Conditioning(context=tokens, vector_ids=ids.to(tokens.device), time_context=temporal_tokens)


class TextToVideo:
    """`TextToVideo(model)(["a dog"])` -> frames (B, T, 3, H, W) on [-1, 1], on the CPU.

    Raises:
        ModelDirectoryError: the model is not for this task.
    """

    def __init__(self, model: VideoModel) -> None:
        model.require("text_to_video")
        self.model = model

    def __call__(
        self,
        prompts: str | Sequence[str],
        *,
        temporal_prompt: str | None = None,
        negative_prompt: str | None = None,
        frames: int | None = None,
        width: int | None = None,
        height: int | None = None,
        fps: float | None = None,
        motion_bucket: float = 127,
        options: SamplingOptions | None = None,
        noise: Tensor | None = None,
        progress: Progress | None = None,
    ) -> Tensor:
        """Sample one video per prompt.

        Args:
            temporal_prompt: what the temporal attention reads instead of the prompt.
            negative_prompt: guide away from this text instead of from no text (zero tokens).
            noise: unit-variance initial noise (B, T, C, h, w) instead of the seed's.

        Raises:
            ValueError: sizes or frame counts that cannot be.
            SamplingError: out of memory, or the network produced NaN.
        """
        model, given = self.model, self.model.description
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        options = options or model.options()
        frames = given.frames if frames is None else frames
        width, height = given.width if width is None else width, given.height if height is None else height
        fps = given.fps if fps is None else fps
        check_frames(frames, given.frames)
        check_size(width, height, model.size_multiple)
        warn_of_cut_prompts([*prompts, temporal_prompt or "", negative_prompt or ""])
        with explain_out_of_memory(options, dtype=model.dtype), torch.no_grad():
            sides = [conditioning_side(model, prompts, temporal_prompt, fps, motion_bucket, options)]
            if negative_prompt is not None:
                away = [negative_prompt] * len(prompts)
                temporal = None if temporal_prompt is None else negative_prompt
                sides.append(conditioning_side(model, away, temporal, fps, motion_bucket, options))
            latents = model.sample_latents(
                sides[0],
                len(prompts),
                frames,
                (width, height),
                options,
                noise=noise,
                unconditional=sides[1] if len(sides) > 1 else None,
                progress=progress,
            )
        return model.decode(latents, options)


def conditioning_side(
    model: VideoModel,
    prompts: list[str],
    temporal_prompt: str | None,
    fps: float,
    motion_bucket: float,
    options: SamplingOptions,
) -> Conditioning:
    """One side of guidance: the prompts' tokens, and the temporal prompt's for the temporal attention."""
    tokens = model.text_tokens(prompts, options)
    temporal = None if temporal_prompt is None else model.text_tokens([temporal_prompt] * len(prompts), options)
    return conditioning(tokens, fps=fps, motion_bucket=motion_bucket, temporal_tokens=temporal)
