"""Workarounds for packages that do not fit together, each with the condition under which it can be deleted."""

import sys
from types import ModuleType
from typing import Any

_torchvision_ops: list[Any] = []  # a torch Library unregisters its operators when it is garbage-collected


def ensure_torchvision() -> ModuleType:
    """Import torchvision, also where its compiled operators do not load (a CUDA wheel beside the CPU build of torch).

    Call it before the first import of anything that imports torchvision (open_clip, easyocr, timm, lpips, peft).
    Python code of torchvision works then; `torchvision.ops.nms`, `roi_align` and the JPEG functions do not.
    Delete it when torchvision publishes a CPU wheel of the release pinned in `deploy/constraints-cpu.txt`.
    """
    try:
        import torchvision

        return torchvision
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    import torch

    for name in [name for name in sys.modules if name == "torchvision" or name.startswith("torchvision.")]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _torchvision_ops.append(library)
    import torchvision

    return torchvision
