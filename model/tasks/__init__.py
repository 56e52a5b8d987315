"""What a model can be asked for: one object per task, all with the same options, and the model directories they read.

model = VideoModel.load("DIR", device="cuda", dtype=torch.bfloat16)
frames = ImageToVideo(model)(read_image("photo.jpg", size=(1024, 576)), options=model.options(seed=7))
"""

from model.tasks.description import ModelDescription, ModelDirectoryError
from model.tasks.image_to_video import ImageToVideo
from model.tasks.interpolation import Interpolation
from model.tasks.orbit import Orbit
from model.tasks.random_model import tiny_random_model
from model.tasks.sampling import FrameCountWarning, OutOfMemory, SamplingError, SamplingOptions
from model.tasks.text_to_video import TextToVideo
from model.tasks.video_model import VideoModel

__all__ = [
    "FrameCountWarning",
    "ImageToVideo",
    "Interpolation",
    "ModelDescription",
    "ModelDirectoryError",
    "Orbit",
    "OutOfMemory",
    "SamplingError",
    "SamplingOptions",
    "TextToVideo",
    "VideoModel",
    "tiny_random_model",
]
