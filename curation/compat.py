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


def ensure_coca_generation() -> None:
    """Give open_clip's CoCa the names that it imports from transformers, one of which version 5 has no longer.

    open_clip imports them together, and goes without any when `BeamSearchScorer` fails. Delete it, and
    `curation.beam_scorer`, when open_clip's `generate` works with the pinned transformers.
    """
    ensure_torchvision()
    import transformers
    from open_clip import coca_model

    from curation.beam_scorer import BeamSearchScorer

    if coca_model._has_transformers:
        return
    for name in (
        "LogitsProcessorList",
        "MinLengthLogitsProcessor",
        "RepetitionPenaltyLogitsProcessor",
        "StoppingCriteriaList",
        "MaxLengthCriteria",
    ):
        setattr(coca_model, name, getattr(transformers, name))
    coca_model.BeamSearchScorer = BeamSearchScorer
    coca_model._has_transformers = True
