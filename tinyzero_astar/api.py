"""For Python and notebooks: load a model, search a prompt, train step by step.

    import tinyzero_astar as tz

    model = tz.load()
    tree = model.search(model.ask("12*34"))

docs/python.md shows more. Everything here has the settings of a run, by the same names as on the command line.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from tinyzero_astar.config import Config
from tinyzero_astar.config_checks import check_whole
from tinyzero_astar.config_file import named_config
from tinyzero_astar.config_json import from_dict, with_options
from tinyzero_astar.data.tasks import make_problems, make_task, pinned
from tinyzero_astar.data.text import continued, prompt_tokens, room_after, text_fault
from tinyzero_astar.data.trl_reward import multiplication_reward as multiplication_reward
from tinyzero_astar.engine.host_decoder import make_decoder
from tinyzero_astar.files import replace_text, writing
from tinyzero_astar.interfaces import Problem, Rollouts, Task, Trace, Verdict
from tinyzero_astar.loggers.console import ConsoleLogger
from tinyzero_astar.metrics.alarms import guidance_gate, remembered
from tinyzero_astar.model.custom_generate import astar_generate as astar_generate
from tinyzero_astar.model.model import Policy
from tinyzero_astar.modes import SearchMode
from tinyzero_astar.report.tree import Node, outline
from tinyzero_astar.rollout.astar_search import astar_rollouts
from tinyzero_astar.rollout.generator import guidance_of
from tinyzero_astar.run.build import Loaded, Session, build, first_policy, load_model, optimizers
from tinyzero_astar.run.checkpoint import check_files, load_trainer, read_state, remembered_by, save_checkpoint
from tinyzero_astar.run.checkpoint_folders import TRAINER_STATE, checkpoint_at
from tinyzero_astar.run.loop import iterate
from tinyzero_astar.run.measure import finite, measure, sample_records
from tinyzero_astar.run.model_card import CARD, model_card
from tinyzero_astar.run.saving import state_of
from tinyzero_astar.run.traces import described
from tinyzero_astar.terminal import shortened
from tinyzero_astar.training.algorithms import make_algorithm


class Leaf(NamedTuple):
    """A completion that a search found."""

    text: str  # without its end token
    weight: float | None  # inclusion weight, whose sums over leaves estimate means over the policy, None for best_first
    logp: float  # log-probability under the policy, nats
    success: float  # the value model's guess before the last token, in [0, 1]
    is_finished: bool  # by an end token, not by the depth limit
    tokens: list[int]  # with the end token, where there is one
    verdict: Verdict | None  # None where the prompt is no problem of the task


@dataclass(frozen=True)
class Tree:
    """What a search found. `print` draws it."""

    prompt: str
    mode: SearchMode
    leaves: list[Leaf]  # the best first
    nodes: list[Node]  # see docs/trace.md
    stats: dict[str, int]  # counts, see docs/trace.md
    tokenizer: PreTrainedTokenizerBase = field(repr=False)

    def __str__(self) -> str:
        """A line for each stretch without a fork. What is known of a leaf follows its text."""
        leaves = {tuple(leaf.tokens): leaf for leaf in self.leaves}
        return outline(self.nodes, self.tokenizer.decode, lambda tokens: _note(leaves.get(tuple(tokens))))


def _note(leaf: Leaf | None) -> str:
    if leaf is None:  # best_first goes on until it has K
        return "(not among the best)"
    weight = "" if leaf.weight is None else f"weight {leaf.weight:.3f}, "
    verdict = "" if leaf.verdict is None else f", {leaf.verdict.reason}"
    return f"({weight}log-probability {leaf.logp:.1f}{verdict})"


class Model:
    """A policy with its value model, its task and its settings, made by `load`.

    Attributes:
        config: all settings.
        policy: language model and value model.
        tokenizer: of the language model.
        task: problems and their verifier.
        history: what the gate of the guidance knows of the iterations trained so far.
        samples: every leaf of the last trained iteration with what the verifier said, problem by problem.
    """

    def __init__(self, config: Config, loaded: Loaded, console: ConsoleLogger, history: list[dict[str, Any]]) -> None:
        self.config = config
        self.policy: Policy = loaded.policy
        self.tokenizer: PreTrainedTokenizerBase = loaded.tokenizer
        self.task: Task = make_task(replace(config.data, num_problems=1), config.run.seed)
        self.history = history
        self.samples: list[list[dict[str, Any]]] = []
        self._console, self._num_trained = console, 0
        self._record: dict[str, Any] = {}

    def __repr__(self) -> str:
        """Which model, and how far it was trained here."""
        return f"Model({self.config.model.model_name!r}, trained for {self._num_trained} iterations here)"

    def ask(self, question: str) -> Problem:
        """A problem of the task, as `search` takes it, such as "12*34" for multiplication.

        Raises:
            ValueError: says how to write one.
        """
        return self.task.ask(question)

    def search(
        self,
        prompt: str | Problem,
        num_leaves: int = 8,
        *,
        mode: SearchMode | None = None,
        is_guided: bool | None = None,
        seed: int = 0,
    ) -> Tree:
        """Search completions of a prompt.

        Args:
            prompt: any text, or a problem of the task, whose completions are then judged.
            num_leaves: K, completions to find, 1 to 1024.
            mode: gumbel, sample or best_first. None means `search.mode`.
            is_guided: whether the value model guides the search. None means as in training, if its rankings were good
                in the last iterations.
            seed: of the search noise, 0 to 2**62.

        Raises:
            ValueError: an argument is out of range, or there is no room after the prompt.
        """
        check_whole("num_leaves", num_leaves, "search.num_rollouts_per_problem")
        check_whole("seed", seed, "run.seed")
        settings = replace(self.config.search, mode=mode or self.config.search.mode)
        problem = prompt if isinstance(prompt, Problem) else None
        text = prompt.prompt if isinstance(prompt, Problem) else prompt
        if not isinstance(text, str):
            raise ValueError(f"prompt is {shortened(text)}, which is neither a text nor a problem of the task")
        if (fault := text_fault(self.tokenizer, [text])) is not None:
            raise ValueError(f"the {fault}")
        ids = prompt_tokens(self.tokenizer, [text])
        depth = room_after(len(ids[0]), self.config.model.max_seq_length, settings.max_search_depth)
        if is_guided is None:
            is_guided = guidance_gate(self.history)[0]
        trace = Trace(1)
        rollouts = astar_rollouts(
            make_decoder(self.policy, depth),
            ids,
            seeds=torch.tensor([seed], device="cpu"),
            num_rollouts=num_leaves,
            beam_width=max(settings.beam_width, num_leaves + 1),
            max_search_depth=depth,
            mode=settings.mode,
            guidance=guidance_of(settings if is_guided else replace(settings, guidance_strength=0.0)),
            trace=trace,
        )
        shown = continued(self.tokenizer, text)
        return Tree(
            prompt=shown,
            mode=settings.mode,
            leaves=[self._leaf(rollouts, k, problem) for k in range(num_leaves) if rollouts.length[0, k] > 0],
            nodes=described(trace.nodes, shown, self.tokenizer),
            stats={f.name: int(getattr(rollouts.stats, f.name)[0]) for f in dataclasses.fields(rollouts.stats)},
            tokenizer=self.tokenizer,
        )

    def _leaf(self, rollouts: Rollouts, k: int, problem: Problem | None) -> Leaf:
        length, is_finished = int(rollouts.length[0, k]), bool(rollouts.is_finished[0, k])
        tokens = rollouts.tokens[0, k, :length].tolist()
        text = self.tokenizer.decode(tokens[: length - is_finished])
        weight = float(rollouts.weight[0, k])
        return Leaf(
            text=text,
            weight=None if math.isnan(weight) else weight,
            logp=float(rollouts.logp[0, k].sum()),
            success=float(rollouts.value[0, k, length - 1]),
            is_finished=is_finished,
            tokens=tokens,
            verdict=None if problem is None else self.task.verify(problem, text, is_finished),
        )

    def train(self, num_iterations: int = 1) -> list[dict[str, Any]]:
        """Search, verify and update so many times, and return the metrics of each iteration (docs/metrics.md).

        The first call makes optimizers and problems. The learning rate follows the schedule of `train.num_iterations`.

        Raises:
            ValueError: the settings do not go together, or the schedule ends before.
            FloatingPointError: a number is NaN or infinite. Nothing was updated.
        """
        last = self.config.train.num_iterations
        check_whole("num_iterations", num_iterations, "train.num_iterations")
        if self._num_trained + num_iterations > last:
            raise ValueError(
                f"the learning rate is 0 after {last} iterations, and {self._num_trained} of them are done: load the"
                ' model with a larger options={"train.num_iterations": …}'
            )
        records = []
        for _ in range(num_iterations):
            metrics, rewarded = iterate(self._session, self._num_trained)
            self.history.append(remembered(metrics))
            self._num_trained += 1
            self._record = {"iteration": self._num_trained, **metrics}
            self.samples = sample_records(rewarded)
            records.append(self._record)
        return records

    def evaluate(self) -> dict[str, Any]:
        """Measure on the held-out problems, as a run does at its end, by the names of docs/metrics.md."""
        return finite(measure(self._session, self._num_trained).metrics)

    def save(self, folder: str | Path) -> Path:
        """Write a checkpoint, which `load`, `tinyzero` and transformers read.

        Raises:
            ValueError: the folder is there and is no checkpoint.
            WriteFailedError: it cannot be written.
        """
        path = Path(folder)
        if os.path.exists(path) and not os.path.isfile(path / TRAINER_STATE):
            raise ValueError(f"{path} exists and is no checkpoint: it is not replaced; name another folder")
        state = state_of(self._session, len(self.history), self._record)
        with writing(path):
            save_checkpoint(path, self.policy, self.tokenizer, optimizers(self._session.updater), state)
            prompt = continued(self.tokenizer, self._session.held_out[0].prompt)
            replace_text(path / CARD, model_card(self.config, state["iteration"], [], prompt))
        return path

    @cached_property
    def _session(self) -> Session:
        config = self.config
        first = first_policy(config, self._console)
        source = config.model.model_name
        loaded = Loaded(self.policy, self.tokenizer)
        session = build(config, make_problems(config), Path(), source, self._console, 0, first, loaded)
        return replace(session, history=self.history)


def load(
    model: str | Path | None = None,
    config: str | Config | None = None,
    options: Mapping[str, Any] | None = None,
    *,
    is_quiet: bool = False,
) -> Model:
    """A model ready to be searched and trained.

    Like a run, it sets PyTorch's number of threads and its random state. A checkpoint gives policy and value model.
    Training then begins anew from them. To continue a run to the bit, use `tinyzero train --resume`.

    Args:
        model: "embedded", a name on the hub, a folder, a .gguf file, a checkpoint, or a run for its newest one. None
            means what `config` says.
        config: a preset, a TOML file or a `Config`. None means that of the checkpoint, or preset "tiny".
        options: single fields, as in {"search.beam_width": 12}.
        is_quiet: print nothing.

    Raises:
        ValueError: one of them cannot be used. One sentence says why.
    """
    checkpoint = None if model is None else checkpoint_at(str(model))
    if checkpoint is not None:
        check_files(checkpoint)
    state = {} if checkpoint is None else read_state(checkpoint)
    if config is None and checkpoint is not None:
        own = from_dict(state["config"], f"checkpoint {checkpoint}")
        # model.safetensors has the adapters in it
        own = replace(own, model=replace(own.model, lora_rank=0, liger=False))
    else:
        own = config if isinstance(config, Config) else named_config("tiny" if config is None else config)
    if model is not None:
        own = replace(own, model=replace(own.model, model_name=str(checkpoint or model)))
    own = with_options(own, options or {})
    own = replace(own, data=pinned(own.data))
    make_algorithm(own)  # or it refuses
    console = ConsoleLogger(is_silent=is_quiet)
    loaded = load_model(own, own.model.model_name, console)
    if checkpoint is None:
        return Model(own, loaded, console, [])
    load_trainer(checkpoint, loaded.policy, {})
    return Model(own, loaded, console, list(remembered_by(checkpoint, state)[0]))
