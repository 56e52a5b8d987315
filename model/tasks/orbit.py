"""Multi-view orbits (paper section 4.5, App. D.6): 21 views around an object from one image and its elevation.

SVD-MV is image-to-video with one more scalar, the elevation of the camera in degrees, appended to the vector. View k of
n looks from azimuth 360 k / n at that elevation; view 0 is the given image.
"""

from torch import Tensor

from model.tasks.image_to_video import ImageToVideo
from model.tasks.sampling import Progress, SamplingOptions

VIEWS = 21


def azimuths(views: int = VIEWS) -> list[float]:
    """Degrees of each view, from 0, evenly around."""
    return [360.0 * k / views for k in range(views)]


class Orbit(ImageToVideo):
    """`Orbit(model)(image, elevation=10)` -> views (B, 21, 3, H, W) on [-1, 1], on the CPU."""

    task = "orbit"

    def __call__(  # type: ignore[override]
        self,
        images: Tensor,
        *,
        elevation: float = 0.0,
        frames: int | None = None,
        fps: float | None = None,
        motion_bucket: float = 127,
        augmentation: float | None = None,
        options: SamplingOptions | None = None,
        noise: Tensor | None = None,
        progress: Progress | None = None,
    ) -> Tensor:
        """As ImageToVideo, with the elevation in degrees (-90 to 90).

        Raises:
            ValueError: also for an elevation that is no angle between -90 and 90.
        """
        if not -90 <= elevation <= 90:
            raise ValueError(f"elevation {elevation}: degrees between -90 and 90")
        return self._sample(images, frames, fps, motion_bucket, augmentation, elevation, options, noise, progress)
