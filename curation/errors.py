"""The two ways in which an item can fail. Each carries a short stable reason that is stored, counted and shown."""


class CannotDecode(Exception):
    """A source that cannot be read as video. `reason` is a stable slug, the message is for a person."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class CannotScore(Exception):
    """A clip that a measure cannot take. It is stored as an error beside the score, never as a number."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
