"""Size at which RIFE's flow runs: error on known warps of real frames against CPU time, beside Farneback.

python tests/benchmarks/learned_flow.py
"""

import time

import cv2
import numpy as np
import torch
from motion_resolution import cases, measure

from curation.motion import farneback
from curation.rife import RifeMotion


def main() -> None:
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    made = cases()[::3]
    print(f"{len(made)} pairs; end-point error in px of the 16-px field")
    rife = RifeMotion()

    def flow(before: np.ndarray, after: np.ndarray) -> np.ndarray:
        pair = [torch.from_numpy(f)[None, None].expand(1, 3, -1, -1).float() for f in (before, after)]
        with torch.inference_mode():
            return rife._flow(*pair)[0].permute(1, 2, 0).numpy()

    flow(made[0][1][:64, :64], made[0][2][:64, :64])
    for short_side in (64, 96, 128, 160, 192, 256):
        measure(f"RIFE at {short_side} px", made, short_side, flow)
    measure("peer: curation.motion.farneback, 64", made, 64, farneback)
    print(f"{time.process_time():.0f} CPU s in all")


if __name__ == "__main__":
    main()
