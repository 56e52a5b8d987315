"""Logs as one JSON object a line, for machines that collect them.

The service always writes them; `clipmill curate` and the actors where $CLIPMILL_LOG is `json`: a line for
every source that is done and every segment that is stored, with the ids of the job, the source and the clips.
"""

import json
import logging
import os
import sys
from datetime import UTC, datetime
from typing import Any


class JsonLines(logging.Formatter):
    """time, level, logger, message; whatever a call gave as `extra={"ids": {...}}`; a traceback where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        data: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        data |= getattr(record, "ids", {})
        if record.exc_info:
            data["traceback"] = self.formatException(record.exc_info)
        return json.dumps(data, ensure_ascii=False)


VARIABLE = "CLIPMILL_LOG"


def log_if_asked() -> None:
    """`log_to_stderr` where the environment asks for it."""
    if os.environ.get(VARIABLE) == "json":
        log_to_stderr()


def log_to_stderr(level: int = logging.INFO) -> None:
    """Send what clipmill says about itself to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logger = logging.getLogger("clipmill")
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    logger.propagate = False
