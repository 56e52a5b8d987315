"""Stable Video Diffusion's latent video diffusion model: network, diffusion, sampling and training."""
