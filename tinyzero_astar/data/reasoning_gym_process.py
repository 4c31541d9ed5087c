"""What runs in the process that holds reasoning-gym, `python -m tinyzero_astar.data.reasoning_gym_process NAME`.

It knows nothing of the package but the protocol of `scoring_process`. The library stays in here with its questions.

    greeting  {} or {"error": "..."}
    request   {"seed": 7, "index": 3}                     reply  {"question": "...", "answer": "..."}
    request   {"seed": 7, "index": 3, "text": "42"}       reply  {"score": 1.0} or {"fault": "..."}

A question is the `index`-th of the data set that reasoning-gym makes with `seed` and `CHUNK` questions. While a scorer
works, no code that was made from text may run, since an answer is text.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import signal
import sys
from functools import lru_cache
from typing import Any, TextIO

from tinyzero_astar.data.scoring_process import MISHAPS

CHUNK = 500  # questions of one seed, since some data sets make all of them at once
_LIFETIME_S = 600  # of a request, after which the process ends by itself, as its parent may be gone


class Watch:
    """Forbids code made from text while `is_on`, and remembers that it had to."""

    def __init__(self) -> None:
        self.is_on = self.has_seen_code = False
        sys.addaudithook(self._look)

    def _look(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.is_on and event == "exec" and _is_from_text(arguments[0]):
            self.has_seen_code = True
            raise RuntimeError("code made from text")


class Gym:
    """One data set of reasoning-gym, in as many seeds as are asked for."""

    def __init__(self, name: str, watch: Watch) -> None:
        self._name, self._watch = name, watch
        self._dataset = lru_cache(maxsize=256)(self._make)
        self._entry = lru_cache(maxsize=4096)(lambda seed, index: self._dataset(seed)[index])

    def _make(self, seed: int) -> Any:
        from reasoning_gym import create_dataset

        return create_dataset(self._name, size=CHUNK, seed=seed)

    def reply(self, request: dict[str, Any]) -> dict[str, object]:
        """The reply to a request."""
        entry = self._entry(request["seed"], request["index"])
        if "text" not in request:
            return {"question": entry["question"], "answer": entry["answer"]}
        return self._scored(self._dataset(request["seed"]), entry, request["text"])

    def _scored(self, dataset: Any, entry: Any, text: str) -> dict[str, object]:
        self._watch.is_on, self._watch.has_seen_code = True, False
        try:
            score = dataset.score_answer(answer=text, entry=entry)
        except MISHAPS as error:
            return {"fault": f"its scorer failed on it ({type(error).__name__})"}
        finally:
            self._watch.is_on = False
        if self._watch.has_seen_code:  # a scorer may have caught that, and gone on
            return {"fault": "its scorer tried to run it as code"}
        return _checked(score)


def main(name: str) -> None:
    """Greet, then reply to each request until there are no more."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)  # what the library prints
    error = _error_of(name)
    _write(replies, {"error": error} if error else {})
    os.dup2(nowhere, 2)
    gym = Gym(name, Watch())
    for line in sys.stdin:
        signal.alarm(_LIFETIME_S)
        _write(replies, gym.reply(json.loads(line)))
        signal.alarm(0)


def _error_of(name: str) -> str | None:
    """Why there is no data set of that name, in words."""
    try:
        from reasoning_gym.factory import DATASETS, create_dataset
    except ModuleNotFoundError as error:
        return (
            f"reasoning_gym:{name} needs the package {error.name}, which is not installed: pip install -e"
            " '.[reasoning-gym]'"
        )
    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, n=3) or sorted(DATASETS)
        return f"reasoning-gym has no data set {name!r}; it has {', '.join(near)}"
    try:
        create_dataset(name, size=1, seed=0)
    except MISHAPS as error:
        return f"reasoning-gym makes no data set {name!r} without further settings ({error}); choose another"
    return None


def _is_from_text(code: Any) -> bool:
    """Whether code comes from no file, as that of eval and exec. Frozen modules are Python's own."""
    name = str(getattr(code, "co_filename", ""))
    return name.startswith("<") and not name.startswith("<frozen ")


def _checked(score: object) -> dict[str, object]:
    if isinstance(score, bool) or not isinstance(score, (int, float)):
        return {"fault": f"its scorer gave no number but a {type(score).__name__}"}
    if not (math.isfinite(score) and 0 <= score <= 1):
        return {"fault": f"its scorer gave {score:g}, which is not in [0, 1]"}
    return {"score": float(score)}


def _write(stream: TextIO, reply: dict[str, object]) -> None:
    stream.write(json.dumps(reply) + "\n")
    stream.flush()


if __name__ == "__main__":
    main(sys.argv[1])
