"""Columns that no rule looks at: counted by hand on a few rows, and shown in the report."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pytest

from curation import other_columns as module
from curation import schema
from curation.other_columns import other_columns
from curation.score_table import ScoreTable

WHOLE = {"crop_left": 0.0, "crop_top": 0.0, "crop_right": 1.0, "crop_bottom": 1.0}
WIDE = WHOLE | {"crop_top": 0.1199, "crop_bottom": 0.8801}
PILLARS = WHOLE | {"crop_left": 0.1302, "crop_right": 0.8699}


@contextmanager
def table(rows: list[dict[str, Any]]) -> Iterator[ScoreTable]:
    common = {"source_id": "s", "duration_s": 1.0}
    whole = [common | {"clip_id": f"c{k}"} | row for k, row in enumerate(rows)]
    scores = ScoreTable(pa.Table.from_pylist(whole, schema.CLIPS))
    yield scores
    scores.con.close()


def test_the_commonest_crop_rectangles_come_first_and_whole_frames_are_no_crops() -> None:
    with table([WHOLE, WIDE, PILLARS, WIDE, WIDE | {"crop_top": 0.1203}, {}]) as scores:
        found = other_columns(scores)
    assert found["measured"] == 5
    assert found["cropped"] == 4
    assert found["crops"] == [
        {"crop_left": 0, "crop_top": 12, "crop_right": 100, "crop_bottom": 88, "clips": 3},
        {"crop_left": 13, "crop_top": 0, "crop_right": 87, "crop_bottom": 100, "clips": 1},
    ]


def test_the_cameras_motion_is_told_in_quantiles_that_occur() -> None:
    with table([{"flow_dx": dx} for dx in (3.0, -1.0, 2.0, None)]) as scores:
        found = other_columns(scores)["flow"]
    assert list(found) == ["flow_dx"]  # columns that no clip has are left out
    assert found["flow_dx"]["clips"] == 3
    assert found["flow_dx"]["quantiles"] == {"0": -1, "0.05": -1, "0.25": -1, "0.5": 2, "0.75": 3, "0.95": 3, "1": 3}


def test_embeddings_are_counted_by_model_and_by_error() -> None:
    rows = [{"embedding_model": "clip"}, {"embedding_model": "clip", "embedding_error": "too_small"}, {}]
    with table(rows) as scores:
        assert other_columns(scores)["embedding"] == {
            "models": {"clip": 2},
            "errors": [{"reason": "too_small", "clips": 1}],
        }


def test_of_many_clips_evenly_spaced_ones_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "READ", 4)
    with table([{"flow_dx": float(k)} for k in range(10)]) as scores:
        found = other_columns(scores)
    assert found["read"] == 4
    assert found["flow"]["flow_dx"]["quantiles"]["1"] == 9  # of 0, 3, 6, 9
    assert found["flow"]["flow_dx"]["clips"] == 4
