"""Elo ratings of models from pairwise votes (paper, appendix E.1: start 1000, K = 1, a win counts 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

START, K, SCALE, ROUNDS = 1000.0, 1.0, 400.0, 1000


@dataclass(frozen=True)
class Rating:
    """A model's Elo rating, with the interval that holds it in 95 % of the bootstraps."""

    elo: float
    low: float
    high: float
    wins: int
    losses: int


def ratings(votes: Sequence[tuple[int, int]], models: int, *, seed: int = 0) -> list[Rating]:
    """Ratings from votes (winner, loser) between models 0 ... models - 1.

    Elo depends on the order of votes, so a rating is the mean over 1000 shuffles of them. The interval is that of 1000
    sets drawn from the votes with replacement.
    """
    pairs = np.asarray(votes, dtype=np.int64).reshape(-1, 2)
    random = np.random.default_rng(seed)
    whole = np.tile(np.arange(len(pairs)), (ROUNDS, 1))
    mean = _played(pairs[random.permuted(whole, axis=1)], models).mean(0)
    drawn = _played(pairs[random.integers(len(pairs), size=whole.shape) if len(pairs) else whole], models)
    low, high = np.quantile(drawn, (0.025, 0.975), axis=0)
    wins, losses = (np.bincount(pairs[:, side], minlength=models) for side in (0, 1))
    return [Rating(float(mean[k]), float(low[k]), float(high[k]), int(wins[k]), int(losses[k])) for k in range(models)]


def _played(votes: np.ndarray, models: int) -> np.ndarray:
    """Final ratings (rounds, models) of votes (rounds, n, 2), each round in its own order."""
    found, rounds = np.full((len(votes), models), START), np.arange(len(votes))
    for winners, losers in votes.transpose(1, 2, 0):
        ahead = found[rounds, losers] - found[rounds, winners]
        gained = K * (1 - 1 / (1 + 10 ** (ahead / SCALE)))
        found[rounds, winners] += gained
        found[rounds, losers] -= gained
    return found
