"""Generation from given words only: a language model that may arrange them, but not bring in others.

A language model of 135 million parameters merges two captions fluently and adds a beach to every table. Held to the
words of the captions, and to small words that join them, it can only arrange what is there; and it may end only when
enough of it has been said. Used as `prefix_allowed_tokens_fn` of transformers' `generate`.
"""

import re
from collections.abc import Callable, Collection, Iterable
from typing import Any

JOINING = frozenset(
    re.findall(
        r"\w+",
        "a an and are as at by from in into is near of off on onto out over the their to up while with",
    )
)

_Trie = dict[Any, Any]  # token -> trie; None: a word ends here


class GivenWords:
    """The next tokens that keep a text within the given words.

    Args:
        tokenizer: of the model.
        texts: one per row of the batch, whose words may be used, as often as they like.
        may_end: says of each row, given the text so far, whether it may end there.
        start: tokens of the prompt, the same number for every row (padded on the left).
    """

    def __init__(
        self, tokenizer: Any, texts: Iterable[str], may_end: Callable[[int, str], bool], *, start: int
    ) -> None:
        self._tokenizer = tokenizer
        self._may_end = may_end
        self._start = start
        self._tries: list[tuple[_Trie, _Trie]] = []  # of the first word, and of those with a space before them
        for text in texts:
            words = sorted(set(re.findall(r"[\w'-]+", text)) | JOINING)
            self._tries.append((self._trie(words), self._trie(f" {word}" for word in words)))
        new_line = tokenizer("\n", add_special_tokens=False)["input_ids"]
        self._ends = [tokenizer.eos_token_id, *new_line[-1:]]

    def __call__(self, row: int, tokens: Any) -> Collection[int]:
        """Tokens that may follow `tokens` (prompt and text so far) in this row of the batch."""
        node, later = self._tries[row]
        text = tokens[self._start :].tolist()
        for token in text:
            if token in node:
                node = node[token]
            elif None in node and token in later:
                node = later[token]
            else:
                return self._ends  # it has ended; what follows is padding
        allowed = {token for token in node if token is not None}
        if None in node:
            allowed |= later.keys() - {None}
            if self._may_end(row, self._tokenizer.decode(text)):
                allowed |= set(self._ends)
        return sorted(allowed)

    def _trie(self, words: Iterable[str]) -> _Trie:
        root: _Trie = {}
        for word in words:
            node = root
            for token in self._tokenizer(word, add_special_tokens=False)["input_ids"]:
                node = node.setdefault(token, {})
            node[None] = None
        return root
