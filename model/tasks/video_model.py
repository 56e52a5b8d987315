"""A model that can be sampled: the network with its autoencoder and encoders, as read from a directory by `load`."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from model.conditioning.conditioning import Conditioning
from model.conditioning.image import ImageEncoder
from model.conditioning.latents import Autoencoder, decode_video
from model.conditioning.text import TextEncoder
from model.diffusion.preconditioning import Denoiser, LearnedInputScale, network_dtype
from model.tasks.description import ModelDescription, ModelDirectoryError
from model.tasks.interpolation_mask import MaskEmbedding
from model.tasks.sampling import Progress, SamplingOptions, explain_out_of_memory, placed, sample_latents
from model.unet import VideoUNet


@dataclass
class VideoModel:
    """The parts of a model. Encoders a task does not need are None."""

    description: ModelDescription
    unet: VideoUNet
    autoencoder: Autoencoder
    image_encoder: ImageEncoder | None = None
    text_encoder: TextEncoder | None = None
    input_scale: LearnedInputScale | None = None
    mask_embedding: MaskEmbedding | None = None
    device: torch.device | str = "cpu"
    """Where sampling happens; with SamplingOptions.offload the parts wait on the CPU."""
    offloaded: bool = False
    """Loaded to wait on the CPU: then `options()` has offload on."""

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        offload: bool = False,
        allow_pickle: bool = False,
    ) -> "VideoModel":
        """Read a model directory (one written by `save`, or a published diffusers directory of SVD), or a whole
        generative-models checkpoint file such as svd.safetensors.

        Args:
            offload: leave the weights on the CPU until they are needed.
            allow_pickle: also read pickled weights, which can run code when opened.

        Raises:
            ModelDirectoryError, CheckpointError: something is missing or contradictory; the message names the file.
            OutOfMemory: the device cannot hold the weights.
        """
        from model.tasks.model_directory import load_model
        from model.tasks.sgm_checkpoint import load_sgm_model

        read = load_sgm_model if Path(path).is_file() else load_model
        with explain_out_of_memory(SamplingOptions(offload=offload), dtype=dtype, loading=True):
            return read(Path(path), device=device, dtype=dtype, offload=offload, allow_pickle=allow_pickle)

    def save(self, path: str | Path) -> None:
        """Write a directory; where all parts are diffusers', it opens as a StableVideoDiffusionPipeline. A path that
        ends in .safetensors becomes one generative-models checkpoint (image-to-video only)."""
        from model.tasks.model_directory import save_model
        from model.tasks.sgm_checkpoint import save_sgm_model

        (save_sgm_model if Path(path).suffix == ".safetensors" else save_model)(self, Path(path))

    def settle(self) -> None:
        """Fix all weights for sampling and bring them where they belong: what loading ends with."""
        for part in self.modules():
            part.requires_grad_(False).eval()
            if not self.offloaded or part in (self.input_scale, self.mask_embedding):
                part.to(self.device)

    @property
    def denoiser(self) -> Denoiser:
        """D_theta around the network."""
        return Denoiser(self.unet, input_scale=self.input_scale)

    @property
    def size_multiple(self) -> int:
        """Width and height in pixels must be multiples of this."""
        return self.autoencoder.factor * self.unet.config.size_multiple

    @property
    def dtype(self) -> torch.dtype:
        """The dtype the network computes in."""
        return network_dtype(self.unet)

    def modules(self) -> list[nn.Module]:
        """The parts that hold weights."""
        parts = (
            self.unet,
            self.autoencoder,
            self.image_encoder,
            self.text_encoder,
            self.input_scale,
            self.mask_embedding,
        )
        return [part for part in parts if isinstance(part, nn.Module)]

    def require(self, task: str) -> None:
        """Refuse a model made for another task.

        Raises:
            ModelDirectoryError: names both tasks, or the encoder the task lacks.
        """
        if self.description.task != task:
            raise ModelDirectoryError(
                f"this model is for {self.description.task.replace('_', ' ')}, not for {task.replace('_', ' ')}"
            )
        needed = "text_encoder" if task == "text_to_video" else "image_encoder"
        if getattr(self, needed) is None:
            raise ModelDirectoryError(
                f"{task.replace('_', ' ')} needs {'a text' if needed == 'text_encoder' else 'an image'} encoder; "
                "this model has none"
            )
        if self.unet.config.out_channels != self.autoencoder.channels:
            raise ModelDirectoryError(
                f"unet/config.json: out_channels {self.unet.config.out_channels}, but the autoencoder has "
                f"{self.autoencoder.channels} latent channels"
            )
        concat = {"text_to_video": 0, "interpolation": self.autoencoder.channels + 1}.get(
            task, self.autoencoder.channels
        )
        if self.unet.config.in_channels != self.autoencoder.channels + concat:
            raise ModelDirectoryError(
                f"unet/config.json: in_channels {self.unet.config.in_channels}; {task.replace('_', ' ')} with this "
                f"autoencoder needs {self.autoencoder.channels + concat}"
            )
        scalars = 4 if task == "orbit" else 3
        if self.unet.config.num_vector_ids != scalars:
            raise ModelDirectoryError(
                f"unet/config.json: projection_class_embeddings_input_dim holds {self.unet.config.num_vector_ids} "
                f"scalars; {task.replace('_', ' ')} has {scalars}"
            )
        encoder = getattr(self, needed)
        if encoder.dim != self.unet.config.cross_attention_dim:
            raise ModelDirectoryError(
                f"unet/config.json: cross_attention_dim {self.unet.config.cross_attention_dim}, but the "
                f"{needed.replace('_', ' ')} gives {encoder.dim}"
            )

    def options(self, **changes: object) -> SamplingOptions:
        """The model's own sampling defaults, with changes by field name."""
        description = self.description
        defaults = SamplingOptions(
            steps=description.steps,
            guider=description.default_guider(),
            sigma_min=description.sigma_min,
            sigma_max=description.sigma_max,
            offload=self.offloaded,
        )
        return replace(defaults, **changes)  # type: ignore[arg-type]

    def image_tokens(self, images: Tensor, options: SamplingOptions) -> Tensor:
        """Images (N, 3, H, W) on [-1, 1] -> embeddings (N, D), float32."""
        assert self.image_encoder is not None
        with placed(self.image_encoder, self.device, offload=options.offload):
            return self.image_encoder(images.to(self.device)).float()

    def text_tokens(self, prompts: list[str], options: SamplingOptions) -> Tensor:
        """N prompts -> tokens (N, S, D), float32."""
        assert self.text_encoder is not None
        with placed(self.text_encoder, self.device, offload=options.offload):
            return self.text_encoder(prompts).float()

    def encode_images(self, images: Tensor, options: SamplingOptions) -> Tensor:
        """Conditioning frames (N, 3, H, W) on [-1, 1] -> the mode of the posterior, unscaled (N, C, h, w), float32."""
        with placed(self.autoencoder, self.device, offload=options.offload):
            return self.autoencoder.encode(images.to(self.device)).float()

    def sample_latents(
        self,
        conditioning: Conditioning,
        videos: int,
        frames: int,
        size: tuple[int, int],
        options: SamplingOptions,
        *,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        unconditional: Conditioning | None = None,
        progress: Progress | None = None,
    ) -> Tensor:
        """Latents (B, T, C, h, w) of `videos` videos of `size` (width, height) px; see `sampling.sample_latents`."""
        width, height = (side // self.autoencoder.factor for side in size)
        with placed(self.unet, self.device, offload=options.offload):
            return sample_latents(
                self.denoiser,
                conditioning,
                (videos, frames, self.autoencoder.channels, height, width),
                options,
                device=self.device,
                generator=generator,
                noise=noise,
                unconditional=unconditional,
                progress=progress,
            )

    def decode(self, latents: Tensor, options: SamplingOptions) -> Tensor:
        """Scaled latents (B, T, C, h, w) -> frames (B, T, 3, H, W) on [-1, 1], on the CPU, in chunks."""
        with (
            explain_out_of_memory(options, dtype=self.dtype),
            placed(self.autoencoder, self.device, offload=options.offload),
            torch.no_grad(),
        ):
            return decode_video(self.autoencoder, latents, chunk=options.decode_chunk)
