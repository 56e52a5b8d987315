"""The bookkeeping of beam search that open_clip's `CoCa.generate` takes from transformers, which dropped it in 5.0.

open_clip runs the network and picks the candidates; this keeps the hypotheses that have ended and chooses the best one.
It does what transformers 4 did with the settings of open_clip: a hypothesis scores its sum divided by its length, and a
picture is finished when no running beam can still beat the worst of its kept hypotheses. Groups of beams work apart
from each other. (open_clip adds up logits, not log probabilities: that is how the published captions are made.)
"""

from collections.abc import Sequence
from typing import Any

import torch


class _Hypotheses:
    """The best ended hypotheses of one group of one picture."""

    def __init__(self, size: int) -> None:
        self._size = size
        self.kept: list[tuple[float, torch.Tensor]] = []

    def add(self, tokens: torch.Tensor, total: float, length: int) -> None:
        """Keep a hypothesis if it is among the best."""
        score = total / length
        if len(self.kept) < self._size or score > self.kept[self._worst()][0]:
            self.kept.append((score, tokens))
            if len(self.kept) > self._size:
                del self.kept[self._worst()]

    def is_final(self, best_total: float, length: int) -> bool:
        """Whether no running beam, of which the best has this total, is better than what is kept."""
        return len(self.kept) >= self._size and self.kept[self._worst()][0] >= best_total / length

    def _worst(self) -> int:
        return min(range(len(self.kept)), key=lambda k: self.kept[k][0])


class BeamSearchScorer:
    """What `open_clip.coca_model` calls by this name; arguments as there."""

    def __init__(self, batch_size: int, num_beams: int, device: Any, num_beam_groups: int = 1) -> None:
        self.num_beams = num_beams
        self.num_beam_groups = num_beam_groups
        self._group_size = num_beams // num_beam_groups
        self._beam_hyps = [_Hypotheses(self._group_size) for _ in range(batch_size * num_beam_groups)]
        self._final = [False] * len(self._beam_hyps)

    @property
    def is_done(self) -> bool:
        """Whether every picture is finished."""
        return all(self._final)

    def process(
        self,
        input_ids: torch.Tensor,
        next_scores: torch.Tensor,
        next_tokens: torch.Tensor,
        next_indices: torch.Tensor,
        *,
        pad_token_id: Any,
        eos_token_id: Any,
        beam_indices: Any = None,
        group_index: int = 0,
    ) -> dict[str, torch.Tensor]:
        """Take the candidates of one group apart: those that end are hypotheses, the best others run on.

        Args:
            input_ids: (pictures * beams, length) tokens so far.
            next_scores, next_tokens, next_indices: (pictures, 2 * beams), best first: totals, tokens, and beams that
                they continue.
        """
        size, end = self._group_size, int(eos_token_id)
        length = input_ids.shape[-1] + 1
        scores, tokens, beams = (torch.zeros_like(each[:, :size]) for each in (next_scores, next_tokens, next_indices))
        for picture in range(len(next_scores)):
            group = picture * self.num_beam_groups + group_index
            if self._final[group]:
                tokens[picture] = 0 if pad_token_id is None else int(pad_token_id)
                continue
            running = 0
            for rank, (score, token, beam) in enumerate(
                zip(next_scores[picture], next_tokens[picture], next_indices[picture], strict=True)
            ):
                row = picture * size + int(beam)
                if int(token) != end:
                    scores[picture, running], tokens[picture, running], beams[picture, running] = score, token, row
                    running += 1
                elif rank < size:  # an ending that is not among the best continuations does not count
                    self._beam_hyps[group].add(input_ids[row].clone(), float(score), length)
                if running == size:
                    break
            self._final[group] = self._beam_hyps[group].is_final(float(next_scores[picture].max()), length)
        return {
            "next_beam_scores": scores.view(-1),
            "next_beam_tokens": tokens.view(-1),
            "next_beam_indices": beams.view(-1),
        }

    def finalize(
        self,
        input_ids: torch.Tensor,
        final_beam_scores: torch.Tensor,
        final_beam_tokens: torch.Tensor,
        final_beam_indices: torch.Tensor,
        *,
        max_length: int,
        pad_token_id: Any,
        eos_token_id: Any,
        beam_indices: Any = None,
    ) -> dict[str, torch.Tensor]:
        """The best hypothesis of each picture, running beams included: `sequences` (pictures, length), ended and
        padded."""
        for group, hypotheses in enumerate(self._beam_hyps):
            if not self._final[group]:
                for row in range(group * self._group_size, (group + 1) * self._group_size):
                    hypotheses.add(input_ids[row], float(final_beam_scores[row]), input_ids.shape[-1])
        groups = self.num_beam_groups
        best = [
            _best([each for group in self._beam_hyps[at : at + groups] for each in group.kept])
            for at in range(0, len(self._beam_hyps), groups)
        ]
        longest = min(max(map(len, best)) + 1, max_length)
        sequences = input_ids.new_full((len(best), longest), 0 if pad_token_id is None else int(pad_token_id))
        for picture, tokens in enumerate(best):
            sequences[picture, : len(tokens)] = tokens
            if len(tokens) < longest:
                sequences[picture, len(tokens)] = int(eos_token_id)
        return {"sequences": sequences}


def _best(kept: Sequence[tuple[float, torch.Tensor]]) -> torch.Tensor:
    """Of equals the last one, as sorting and taking the last does."""
    return sorted(kept, key=lambda each: each[0])[-1][1]
