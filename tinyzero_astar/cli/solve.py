"""Ask a trained model one question and see the search tree, by `tinyzero solve "37*84"`.

The question can be any of the task that the checkpoint was trained on. The search is the literal A* (best_first), which
extends the open prefix with the largest f = g + h first.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from tinyzero_astar.config import DECODING_INVERSE_BETA, WITH_CRITIC, Config, EvalConfig, Range
from tinyzero_astar.config_checks import check_section
from tinyzero_astar.config_json import from_dict, with_files_moved
from tinyzero_astar.files import replace_text
from tinyzero_astar.presets import PRESETS
from tinyzero_astar.run.checkpoint_folders import resolve_checkpoint
from tinyzero_astar.terminal import FAILED, complain, counted, printable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tinyzero_astar.interfaces import Problem, Rollouts, Task, Trace, Verdict
    from tinyzero_astar.model.model import Policy


@dataclass(frozen=True)
class Solve:
    """Answer one question and show how it was found."""

    problem: tyro.conf.Positional[str]
    """A question as the task writes it. For multiplication, two positive integers of at most 6 digits, as in 37*84."""
    checkpoint: Path | None = None
    """Checkpoint or run folder. By default the embedded base, whose value model is untrained."""
    task: Annotated[str | None, tyro.conf.arg(name="data.task")] = None
    """Task of the question without a checkpoint. With one, where the file of its task lies if it has moved."""
    reward_function: Annotated[str | None, tyro.conf.arg(name="data.reward-function")] = None
    """The same for the function that judges a table."""
    beam_width: Annotated[int, Range(1, 4096)] = EvalConfig.beam_width
    """Size of the open list."""
    inverse_beta: Annotated[float, Range(0, 20)] = DECODING_INVERSE_BETA
    """1/beta, nats per unit of success. How much the value counts beside the log-probability."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """auto is a CUDA GPU if there is one, mps an Apple GPU."""
    max_nodes: Annotated[int, Range(1, 10**9)] = 60
    """Most prefixes drawn. The best by f are kept, with the path to the answer."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the whole trace as JSON (docs/trace.md) instead."""
    html: Path | None = None
    """Also write a page to this file, on which the search can be looked at step by step."""


def solve_main(argv: Sequence[str]) -> int:
    """Run the command line, and return the exit status."""
    try:
        options = tyro.cli(Solve, prog="tinyzero solve", args=list(argv))
        check_section("solve", options)
        folder = None if options.checkpoint is None else resolve_checkpoint(options.checkpoint, "tiny")
        config = _config(options, folder)
        with redirect_stdout(sys.stderr):  # a task of the user's own may print, and stdout may be JSON
            trace, record, tokenizer = _solve(options, config, folder)
        if options.html is not None:
            has_value = folder is not None and config.train.algorithm in WITH_CRITIC
            _write_page(options.html, trace, record, has_value)
    except ValueError as error:
        return complain(error)
    except FloatingPointError as error:
        return complain(f"{folder or 'embedded'}: {error}; its weights are damaged, use another checkpoint", FAILED)
    if options.json:
        print(json.dumps(trace, indent=1))  # in ASCII, which is exact in any encoding of the output
        return 0
    _show(trace, tokenizer, options.max_nodes, _note(options, config, folder))
    return 0


def _note(options: Solve, config: Config, folder: Path | None) -> str | None:
    """A note on a value model that was never trained, or nothing where it is not asked."""
    if options.inverse_beta == 0:
        return None
    if folder is None:
        return "its guesses of success say nothing yet. Give a trained one with --checkpoint."
    if config.train.algorithm not in WITH_CRITIC:
        return (
            f"its guesses of success say nothing, as algorithm {config.train.algorithm} does without it."
            " --inverse-beta 0 leaves them out."
        )
    return None


def _write_page(path: Path, trace: dict[str, Any], record: dict[str, Any], has_value: bool) -> None:
    from tinyzero_astar.report.page import solve_page

    told = [
        ("Question", trace["problem"]),
        ("Answer", "none" if trace["answer"] is None else str(trace["answer"])),
        ("Verdict", trace["verdict"]),
        ("Cost", counted(trace["stats"]["num_decoded_tokens"], "token") + " decoded"),
    ]
    try:
        replace_text(path, solve_page(record, told, has_value=has_value, inverse_beta=trace["inverse_beta"]))
    except OSError as error:
        raise ValueError(f"--html {path} cannot be written ({error.strerror}); name another file") from None
    print(f"page: {printable(str(path))}", file=sys.stderr)  # stdout may be JSON


def _solve(
    options: Solve, config: Config, folder: Path | None
) -> tuple[dict[str, Any], dict[str, Any], PreTrainedTokenizerBase]:
    """The trace of `--json`, a record as of trace.jsonl, and the tokenizer."""
    import torch

    from tinyzero_astar.data.tasks import make_task, pinned
    from tinyzero_astar.interfaces import Trace
    from tinyzero_astar.run.traces import described, told, trace_record
    from tinyzero_astar.training.reward import WeightedReward

    torch.set_num_threads(1)  # one problem, where threads would only wait for each other
    task = make_task(replace(pinned(config.data), num_problems=1), config.run.seed)  # none are trained on
    problem = task.ask(options.problem)
    policy, tokenizer = _load(config, folder, options.device)
    prompt, depth = _encode(config, folder, problem, tokenizer)
    searched = Trace(1)
    rollouts = _search(options, policy, prompt, depth, searched)
    trace, verdict = _trace(options, problem, task, tokenizer, rollouts)
    leaf = {"reason": trace["verdict"], "reward": WeightedReward(config.reward)(verdict), "weight": None}
    record = trace_record(
        searched.nodes,
        [told(problem, float(rollouts.kappa[0]), tokenizer)],
        {(0, tuple(rollouts.tokens[0, 0, : rollouts.length[0, 0]].tolist())): leaf | {"accuracy": verdict.accuracy}},
        tokenizer,
        mode="best_first",
        beam_width=options.beam_width,
        problems_per_search=1,
    )
    return trace | {"nodes": described(searched.nodes, trace["prompt"], tokenizer)}, record, tokenizer


def _config(options: Solve, folder: Path | None) -> Config:
    """That of the checkpoint, or of the preset that the base belongs to."""
    from tinyzero_astar.run.checkpoint import check_files, read_state

    given = {name: getattr(options, name) for name in ("task", "reward_function")}
    given = {name: value for name, value in given.items() if value is not None}
    base = PRESETS["tiny"]
    told = replace(base, data=replace(base.data, **given))
    if folder is None:
        return told
    check_files(folder)
    saved = from_dict(read_state(folder)["config"], f"checkpoint {folder}")
    return with_files_moved(saved, told, [f"data.{name}" for name in given])


def _load(config: Config, folder: Path | None, device: str) -> tuple[Policy, PreTrainedTokenizerBase]:
    import torch
    from transformers.utils import logging as transformers_logging

    from tinyzero_astar.model.policy_loading import load_policy
    from tinyzero_astar.resources.machine import choose_device
    from tinyzero_astar.run.checkpoint import load_trainer

    transformers_logging.disable_progress_bar()
    policy, tokenizer = load_policy(
        config.model.model_name if folder is None else str(folder),
        dtype=getattr(torch, config.model.dtype),
        device=choose_device(device),
        value_hidden_size=config.value.hidden_size,
        max_length=config.model.max_seq_length,
        say=lambda text: print(printable(text), file=sys.stderr),  # stdout may be JSON
    )
    if folder is not None:
        load_trainer(folder, policy, {})
    return policy, tokenizer


def _encode(
    config: Config, folder: Path | None, problem: Problem, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], int]:
    """The prompt as tokens, and how many more there is room for."""
    from tinyzero_astar.data.text import prompt_tokens, room_after, text_fault

    source = config.model.model_name if folder is None else folder
    if (fault := text_fault(tokenizer, [problem.prompt])) is not None:
        raise ValueError(f"{source}: the {fault}")
    prompt = prompt_tokens(tokenizer, [problem.prompt])[0]
    try:
        return prompt, room_after(len(prompt), config.model.max_seq_length, config.search.max_search_depth)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def _search(options: Solve, policy: Policy, prompt: list[int], depth: int, trace: Trace) -> Rollouts:
    import torch

    from tinyzero_astar.engine.host_decoder import make_decoder
    from tinyzero_astar.rollout.astar_search import astar_rollouts
    from tinyzero_astar.search.heuristic import Guidance

    return astar_rollouts(
        make_decoder(policy, depth),
        [prompt],
        seeds=torch.zeros(1, dtype=torch.int64),
        num_rollouts=1,
        beam_width=options.beam_width,
        max_search_depth=depth,
        mode="best_first",
        guidance=Guidance(inverse_beta=options.inverse_beta, cap=None),
        trace=trace,
    )


def _trace(
    options: Solve, problem: Problem, task: Task, tokenizer: PreTrainedTokenizerBase, rollouts: Rollouts
) -> tuple[dict[str, Any], Verdict]:
    from tinyzero_astar.data.text import continued
    from tinyzero_astar.run.traces import VERSION

    is_finished = bool(rollouts.is_finished[0, 0])
    length = int(rollouts.length[0, 0]) - int(is_finished)
    completion = tokenizer.decode(rollouts.tokens[0, 0, :length])
    verdict = task.verify(problem, completion, is_finished)
    trace = {
        "version": VERSION,
        "problem": problem.text,
        "prompt": continued(tokenizer, problem.prompt),
        "mode": "best_first",
        "beam_width": options.beam_width,
        "inverse_beta": options.inverse_beta,
        "completion": completion,
        "is_finished": is_finished,
        "answer": verdict.answer,
        "correct": verdict.accuracy,
        "verdict": str(verdict.reason),
        "stats": {f.name: int(getattr(rollouts.stats, f.name)[0]) for f in dataclasses.fields(rollouts.stats)},
    }
    return trace, verdict


def _legend(inverse_beta: float) -> str:
    """What the words and numbers of the tree mean."""
    text = "The search tree. f is the log-probability, and the largest f is extended first."
    if inverse_beta:
        text = (
            "The search tree. success is the value model's guess. f is the log-probability plus h, where h rises from 0"
            f" at success 0 % to {inverse_beta:g} at 100 %. So f may be positive. The largest f is extended first."
        )
    return f"{text} What is still open at the end has a smaller f than the answer."


def _show(trace: dict[str, Any], tokenizer: PreTrainedTokenizerBase, max_nodes: int, note: str | None) -> None:
    from tinyzero_astar.loggers.console import Terminal, safe
    from tinyzero_astar.loggers.text import broken
    from tinyzero_astar.report.tree import drawn_tree

    console = Terminal(highlight=False, soft_wrap=True)

    def say(text: str) -> None:
        console.print(safe(broken(text, console.width, "  ")))

    inverse_beta, colour = trace["inverse_beta"], "green" if trace["correct"] else "yellow"
    lines, num_drawn = drawn_tree(trace["nodes"], tokenizer.decode, max_nodes, inverse_beta, console.width)
    if note is not None:
        say(f"the value model is untrained: {note}")
    console.print(f"[bold]{safe(trace['problem'])}[/]")
    console.print(safe(trace["completion"]))
    answer = "no answer" if trace["answer"] is None else f"answer [bold {colour}]{safe(str(trace['answer']))}[/]"
    console.print(f"{answer}  ({safe(trace['verdict'])})\n")
    say(_legend(inverse_beta))
    for line in lines:
        text = f"[bold {colour}]{safe(line.text)}[/]" if line.is_answer else safe(line.text)
        console.print(f"{line.indent}{text}  [dim]{safe(line.note)}[/]")
    stats, hidden = trace["stats"], sum(n["status"] != "dropped" for n in trace["nodes"]) - num_drawn
    say(
        f"{stats['num_expanded']:,} prefixes extended,"
        f" {counted(stats['num_decoded_tokens'], 'token')} decoded. {stats['num_pruned']:,} more had a smaller f and"
        f" were left out, as the open list has room for {trace['beam_width']} (--beam-width)"
        + (f". {hidden:,} prefixes are not drawn (--max-nodes)" if hidden else "")
    )
