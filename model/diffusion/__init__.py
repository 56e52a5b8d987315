"""EDM diffusion as the paper uses it: preconditioning, noise, loss, noise levels, samplers, guidance.

Read beside Appendix D of Stable Video Diffusion (arXiv 2311.15127). Where its equations live:

    (1)       probability-flow ODE           samplers.py
    (2)       denoising score matching       loss.py, noise.py
    (3)       D_theta in terms of F_theta    preconditioning.py
    (4)       classifier-free guidance       guidance.py
    (5)-(8)   preconditioning of SD 2.1      preconditioning.py
    (10)-(13) preconditioning of the paper   preconditioning.py

The numbers are those of the PDF, which has no (9); HTML renderings of the paper count one more from (2) on.
"EDM" below is Karras et al. 2022 (arXiv 2206.00364), whose Algorithms 1 and 2 are the samplers.
"""

from model.diffusion.guidance import Guider, LinearPredictionGuider, TrianglePredictionGuider, VanillaCFG
from model.diffusion.loss import DiffusionLoss, v_target, weighting
from model.diffusion.noise import CONDITIONING_AUGMENTATION, LogNormal, add_noise
from model.diffusion.preconditioning import (
    Denoiser,
    EDMPreconditioning,
    EpsPreconditioning,
    LearnedInputScale,
    fold_input_scale,
)
from model.diffusion.samplers import SAMPLERS, sample_euler, sample_heun
from model.diffusion.sigmas import karras_sigmas

__all__ = [
    "CONDITIONING_AUGMENTATION",
    "SAMPLERS",
    "Denoiser",
    "DiffusionLoss",
    "EDMPreconditioning",
    "EpsPreconditioning",
    "Guider",
    "LearnedInputScale",
    "LinearPredictionGuider",
    "LogNormal",
    "TrianglePredictionGuider",
    "VanillaCFG",
    "add_noise",
    "fold_input_scale",
    "karras_sigmas",
    "sample_euler",
    "sample_heun",
    "v_target",
    "weighting",
]
