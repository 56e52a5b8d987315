"""What the evaluation says to a person."""


class EvaluationError(Exception):
    """Something cannot be evaluated; the message names the file and says what to do."""
