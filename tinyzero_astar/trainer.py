"""The training loop."""

from __future__ import annotations

import dataclasses
import json
import math
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from tinyzero_astar.eval.evaluate import evaluate
from tinyzero_astar.eval.test_time import compare
from tinyzero_astar.interfaces import Problem
from tinyzero_astar.loggers.alarms import active_alarms, guidance_gate
from tinyzero_astar.loggers.console import ConsoleLogger
from tinyzero_astar.model.checkpoint import save_checkpoint
from tinyzero_astar.model.fsdp_utils import agree, from_main, gather, is_any, is_main, share_of, unsharded, world_size
from tinyzero_astar.rollout.generator import RewardedRollouts, SearchSettings, concatenate, make_batch, on_device
from tinyzero_astar.rollout.heuristic import Guidance, inverse_beta_of
from tinyzero_astar.rollout.quality import heuristic_quality
from tinyzero_astar.rollout.statistics import rollout_metrics
from tinyzero_astar.run_folder import (
    CHECKPOINTS,
    METRICS,
    SAMPLES,
    append_jsonl,
)
from tinyzero_astar.session import Session, optimizers

_NUM_SHOWN = 3  # completions on the console
_NUM_RESIDUALS = 8  # problems whose best leaf is scored anew for the residual
_UNGUIDED = Guidance(strength=0.0)
INTERRUPTED = 130


def train(session: Session) -> int:
    """The main loop: problems, rollouts, rewards, batch, update, log, evaluate, checkpoint."""
    config, console = session.config, session.console
    last, done = config.train.num_iterations, session.first_iteration
    began = time.perf_counter()
    if done == 0:
        _log(session, 0, measure(session, 0))
    with _interruption() as interrupted, _progress(console, last, done):
        for iteration in range(done, last):
            try:
                metrics, rewarded = iterate(session, iteration)
            except FloatingPointError as error:
                console.say(f"error: iteration {iteration + 1}: {error}; the last checkpoint is untouched")
                return 1
            done = iteration + 1
            console.iteration(done, metrics)
            metrics["alarms"] = _sound_alarms(session, metrics)
            session.history.append(metrics)
            if _is_due(done, config.run.sample_frequency, last):
                _show_samples(session, done, rewarded)
            if _is_due(done, config.eval.eval_frequency, last):  # also when interrupted: a resumed run won't repeat it
                metrics = metrics | measure(session, done)
            _log(session, done, metrics)
            is_interrupted = is_any(bool(interrupted))
            if _is_due(done, config.run.checkpoint_frequency, last) or is_interrupted:
                _save(session, done)
            if is_interrupted:
                break
    if done < last:
        console.say(f"stopped after iteration {done}; continue with: python train.py --resume {session.folder}")
        return INTERRUPTED
    console.say(f"{last - session.first_iteration} iterations in {time.perf_counter() - began:.0f} s")
    if _checkpoint(session, done).exists():  # not after 0 iterations
        console.say(f"evaluate again: python train.py --eval-only --checkpoint {_checkpoint(session, done)}")
    return 0


def evaluate_only(session: Session, folder: Path) -> int:
    """Print the evaluation's table and save it as evaluation.json in `folder`."""
    measured = _finite(measure(session, session.first_iteration))
    if is_main():
        (folder / "evaluation.json").write_text(json.dumps(measured, indent=2) + "\n")
    session.console.say(f"saved to {folder / 'evaluation.json'}")
    return 0


def iterate(session: Session, iteration: int) -> tuple[dict[str, Any], RewardedRollouts]:
    """One iteration: search, update, and what there is to log of it; the same on every rank."""
    config, began = session.config, time.perf_counter()
    is_open, reason = guidance_gate(session.history)
    search = session.search if is_open else replace(session.search, guidance=_UNGUIDED)
    problems = session.task.train_problems(iteration, config.train.problems_per_iteration)
    with unsharded(session.policy):
        rewarded = _search(session, problems, search, iteration)
        searched = time.perf_counter()
        rollouts, weight, accuracy = rewarded.rollouts, rewarded.weight, rewarded.accuracy
        inverse_beta = inverse_beta_of(session.search.guidance, torch.logit(rollouts.value[:, 0, 0]))
        residual = _bellman_residual(session, rewarded, inverse_beta)  # before the update, like all measures of h
    batch = make_batch(rewarded, session.policy.eos_ids[0])
    metrics: dict[str, Any] = dict(session.updater.update(batch, len(problems), iteration))
    ended = time.perf_counter()
    metrics |= rollout_metrics(rollouts, weight, accuracy, rewarded.reward)
    metrics |= heuristic_quality(rollouts, accuracy, weight, inverse_beta)
    metrics["heuristic/bellman_residual"] = residual
    has_leaf = rollouts.length > 0  # a search may end with fewer leaves than were asked for
    metrics |= {
        "guidance/is_open": float(is_open),
        "guidance/reason": reason,
        "train/num_rows": float(len(batch.ids)),
        "train/num_tokens": float(batch.is_token.sum() + batch.prompt_length.sum()),
        "rollout/format": float(rewarded.format[has_leaf].mean()),
        "rollout/reward": float(rewarded.reward[has_leaf].mean()),
        "time/search_s": searched - began,
        "time/update_s": ended - searched,
        "time/iteration_s": ended - began,
    }
    return from_main(metrics), rewarded  # decisions are taken on metrics: not one bit may differ between ranks


def _search(session: Session, problems: list[Problem], search: SearchSettings, iteration: int) -> RewardedRollouts:
    """Rollouts of all problems; each rank searches its share of them."""
    seed, policy = session.config.run.seed, session.policy
    own = agree(lambda: session.generator.generate(share_of(problems), search, seed=seed, iteration=iteration))
    if world_size() == 1:
        return own
    parts = gather(on_device(own, torch.device("cpu")))
    return on_device(concatenate(parts, policy.eos_ids[0]), policy.device)


def _bellman_residual(session: Session, rewarded: RewardedRollouts, inverse_beta: Tensor) -> float:
    """Mean |sum of residuals| over the best leaves of a few problems, nats; 0 for an exact heuristic."""
    totals = []
    for i, prompt in enumerate(rewarded.prompts[:_NUM_RESIDUALS]):
        length = int(rewarded.rollouts.length[i, 0])
        if length == 0:
            continue
        ids = torch.tensor([[*prompt, *rewarded.rollouts.tokens[i, 0, :length].tolist()]], device=session.policy.device)
        delta = session.policy.bellman_residual(ids, len(prompt), length, inverse_beta[i].to(torch.float32))
        totals.append(abs(float(delta.sum())))
    return sum(totals) / len(totals) if totals else math.nan


def measure(session: Session, iteration: int) -> dict[str, float]:
    """Evaluate on the held-out problems and print the table; metrics by name."""
    began = time.perf_counter()
    settings = session.config.eval
    with unsharded(session.policy):
        evaluation = evaluate(
            session.generator,
            session.held_out,
            session.search,
            num_samples=settings.num_samples,
            max_rows=settings.max_rows,
        )
    rows = [(name.removeprefix("eval/"), str(e)) for name, e in evaluation.estimates.items()]
    rows.append(("time", f"{time.perf_counter() - began:.1f} s"))
    title = f"iteration {iteration}: {evaluation.num_problems} held-out problems, value and 95 % interval"
    session.console.table(title, rows)
    return evaluation.metrics() | _compare_decoding(session)


def _compare_decoding(session: Session) -> dict[str, float]:
    """A* at test time against other ways of decoding, when `eval.search` asks for it."""
    settings = session.config.eval
    if settings.search != "best_first":
        return {}
    with unsharded(session.policy):  # every rank decodes everything: the beams' width depends on all problems
        arms = compare(
            session.policy,
            session.tokenizer,
            session.task,
            session.generator,
            session.held_out,
            session.search,
            beam_width=settings.beam_width,
            max_rows=settings.max_rows,
        )
    rows = []
    for a in arms:  # beam search does not tell what it expanded
        counts = "" if math.isnan(a.expanded) else f", {a.expanded:.1f} expanded, {a.forks:.1f} forks"
        rows.append((a.name, f"{a.accuracy}  {a.tokens:.1f} tokens{counts}"))
    session.console.table("decoding, per problem", rows)
    flat: dict[str, float] = {}
    for name, arm in zip(("greedy", "best_first", "best_of_n", "beam_search"), arms, strict=True):
        flat |= {
            f"decode/{name}_accuracy": arm.accuracy.value,
            f"decode/{name}_accuracy_low": arm.accuracy.low,
            f"decode/{name}_accuracy_high": arm.accuracy.high,
            f"decode/{name}_tokens": arm.tokens,
            f"decode/{name}_expanded": arm.expanded,
            f"decode/{name}_forks": arm.forks,
        }
    return flat


def _show_samples(session: Session, iteration: int, rewarded: RewardedRollouts) -> None:
    if not is_main():
        return
    for i, problem in enumerate(rewarded.problems):
        for k, (text, verdict) in enumerate(zip(rewarded.texts[i], rewarded.verdicts[i], strict=True)):
            if rewarded.rollouts.length[i, k] == 0:  # no k-th leaf; its priority, -inf, is no JSON
                continue
            append_jsonl(
                session.folder / SAMPLES,
                {
                    "iteration": iteration,
                    "problem": problem.text,
                    "answer": problem.answer,
                    "completion": text,
                    "accuracy": verdict.accuracy,
                    "format": verdict.format,
                    "reason": str(verdict.reason),
                    "weight": float(rewarded.weight[i, k]),
                    "priority": float(rewarded.rollouts.priority[i, k]),
                },
            )
    for i in range(min(_NUM_SHOWN, len(rewarded.problems))):
        verdict = rewarded.verdicts[i][0]
        session.console.sample(rewarded.problems[i].text, rewarded.texts[i][0], str(verdict.reason))


def _sound_alarms(session: Session, metrics: Mapping[str, Any]) -> list[str]:
    """Say what has just become wrong, once, and return the names of everything that is wrong now."""
    tolerance = session.config.train.ratio_tolerance
    before = session.history[-1].get("alarms", []) if session.history else []
    alarms = active_alarms([*session.history, metrics], tolerance)
    for name, text in alarms.items():
        if name not in before:
            session.console.warn(text)
    return sorted(alarms)


def _log(session: Session, iteration: int, metrics: Mapping[str, Any]) -> None:
    if is_main():
        append_jsonl(session.folder / METRICS, {"iteration": iteration, **_finite(metrics)})


def _finite(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no nan: what could not be measured is null."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in metrics.items()}


def _checkpoint(session: Session, iteration: int) -> Path:
    return session.folder / CHECKPOINTS / f"checkpoint_iter_{iteration}"


def _save(session: Session, iteration: int) -> None:
    state = {
        "iteration": iteration,
        "num_updates": session.updater.num_updates,
        "config": dataclasses.asdict(session.config),
    }
    folder = _checkpoint(session, iteration)
    save_checkpoint(folder, session.policy, session.tokenizer, optimizers(session.updater), state)


def _is_due(done: int, frequency: int, last: int) -> bool:
    return done % frequency == 0 or done == last


@contextmanager
def _progress(console: ConsoleLogger, num_iterations: int, done: int) -> Iterator[None]:
    """The progress bar; it goes however the block ends, or the terminal would stay without a cursor."""
    console.start(num_iterations, done)
    try:
        yield
    finally:
        console.stop()


@contextmanager
def _interruption() -> Iterator[list[int]]:
    """A list that is non-empty once Ctrl-C was pressed; a second press stops at once."""
    pressed: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)
        if is_main():
            print("\nfinishing this iteration, then saving; press Ctrl-C again to stop at once", flush=True)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)
