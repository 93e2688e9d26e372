"""Texts for language models: captions, and words in their context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from isocortex.bids import Word


class Text(NamedTuple):
    """One text for a language model.

    `start` is the character from which on it counts: 0 for captions, that is all of it; for a
    word in its context, where the word starts. A sample's activation is that of the tokens from
    there on.
    """

    text: str
    start: int = 0


def word_texts(words: Sequence[Word], context: int) -> list[Text]:
    """Give each word the text that a model reads: up to `context` words before it, and itself.

    Parameters
    ----------
    words
        In the order in which they were heard or read.
    context
        Number of words before it; 0: the word alone.
    """
    texts = []
    for index, word in enumerate(words):
        before = " ".join(w.word for w in words[max(0, index - context) : index])
        # Tokenizers of the GPT family take the space before a word as part of its token, so
        # that the word counts from the space on.
        texts.append(Text(f"{before} {word.word}" if before else word.word, len(before)))
    return texts
