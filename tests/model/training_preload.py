"""Imported once by the fork server of the rank tests, so that a rank starts in milliseconds instead of ten seconds."""

import torch

import model.training.run  # noqa: F401
from model.tasks.random_model import _image_encoder

torch.set_num_threads(1)
_image_encoder()
