"""Texts for language models: captions, and words in their context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

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


def count_letters(texts: Sequence[Text]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Count the words and the letters and digits of what counts of each text.

    Returns
    -------
    dict
        `counts`, shape (texts, 1, 2): a text is one token.
    torch.Tensor
        Which tokens count: all, shape (texts, 1).
    """
    counts = []
    for text in texts:
        own = text.text[text.start :]
        counts.append([[len(own.split()), sum(character.isalnum() for character in own)]])
    return {"counts": torch.tensor(counts, dtype=torch.float32)}, torch.ones(
        len(texts), 1, dtype=torch.bool
    )


class WordCounts(nn.Module):
    """Surface of texts, to be told from their meaning.

    Layers, one unit each: `words`, the number of words (1 for each of a table of words, which a
    resampling that sums turns into their rate), and `letters`, that of letters and digits.
    """

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Identity()
        self.letters = nn.Identity()

    def forward(self, counts: torch.Tensor) -> torch.Tensor:
        """Letters; the hooks read both layers."""
        self.words(counts[..., :1])
        return self.letters(counts[..., 1:])
