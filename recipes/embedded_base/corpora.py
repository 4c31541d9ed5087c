"""The texts that base models are made from, by the name of what the model is for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from recipes.embedded_base import corpus, countdown_corpus
from tinyzero_astar.config import DataConfig, SearchConfig


@dataclass(frozen=True)
class Corpus:
    """A stream of documents, a search for held-out questions in them, and what the finished model is measured on."""

    documents: Callable[[int, float], Iterator[str]]  # of seed and worked_share
    held_out_leaks: Callable[[str], list[Any]]  # the held-out questions that a document gives away
    data: DataConfig
    depth: int = SearchConfig().max_search_depth  # tokens that a completion may have when it is measured


CORPORA = {
    "multiplication": Corpus(corpus.documents, corpus.held_out_leaks, DataConfig()),
    "easy": Corpus(
        partial(corpus.documents, digits=1),
        partial(corpus.held_out_leaks, digits=1),
        DataConfig(second_min_digits=1, second_max_digits=1),
    ),
    "long": Corpus(
        partial(corpus.documents, digits=3),
        partial(corpus.held_out_leaks, digits=3),
        DataConfig(min_digits=3, max_digits=3, second_min_digits=2, second_max_digits=2),
    ),
    "longer": Corpus(
        partial(corpus.documents, digits=3, second=3),
        partial(corpus.held_out_leaks, digits=3),
        DataConfig(min_digits=3, max_digits=3),
        depth=100,
    ),
    "countdown": Corpus(
        countdown_corpus.documents,
        countdown_corpus.held_out_leaks,
        DataConfig(
            task="countdown",
            min_numbers=countdown_corpus.NUM_NUMBERS,
            max_numbers=countdown_corpus.NUM_NUMBERS,
            max_number=countdown_corpus.MAX_NUMBER,
            max_target=countdown_corpus.MAX_TARGET,
        ),
    ),
}
