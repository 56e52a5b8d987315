"""Clips: from cuts to spans (`plan`), and from spans to mp4 files (`cut_clips`).

    planned = plan(info, cuts)                       # spans, and where the other seconds went
    for clip in cut_clips(info, planned.spans):      # streamed, in order
        ...

Three modes. `smart` copies whole groups of pictures and re-encodes only the frames at the edges; `keyframe` copies and
gives up what lies before the first key frame of a shot (arXiv 2311.15127, appendix C); `exact` re-encodes everything.
"""

from curation.clips.clip import MODES, Clip, ClipFailure, ClipSpan, Mode
from curation.clips.cut import cut_clips
from curation.clips.plan import Plan, plan

__all__ = ["MODES", "Clip", "ClipFailure", "ClipSpan", "Mode", "Plan", "cut_clips", "plan"]
