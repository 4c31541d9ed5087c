"""The training loop."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinyzero_astar.config import SearchConfig
from tinyzero_astar.distributed import agree, from_main, gather, is_main, share_of, world_size
from tinyzero_astar.eval.decoding import compare
from tinyzero_astar.eval.evaluate import evaluate
from tinyzero_astar.files import WriteFailedError, append_jsonl, writing
from tinyzero_astar.interfaces import Problem
from tinyzero_astar.loggers.console import ConsoleLogger
from tinyzero_astar.metrics.alarms import active_alarms, guidance_gate, remembered
from tinyzero_astar.metrics.heuristic import heuristic_quality
from tinyzero_astar.metrics.rollouts import rollout_metrics
from tinyzero_astar.model.fsdp_utils import unsharded
from tinyzero_astar.rollout.generator import guidance_of
from tinyzero_astar.rollout.records import RewardedRollouts, concatenate, on_device
from tinyzero_astar.run.build import Session, optimizers
from tinyzero_astar.run.checkpoint import save_checkpoint
from tinyzero_astar.run.folder import CHECKPOINTS, METRICS, SAMPLES, new_run_folder, remove_partial
from tinyzero_astar.run.stopping import agreed, stop_requests
from tinyzero_astar.run.writing import write_for_all
from tinyzero_astar.search.heuristic import inverse_beta_of
from tinyzero_astar.terminal import FAILED, counted, status_of
from tinyzero_astar.training.batch import make_batch

_NUM_SHOWN = 3  # completions on the console
_NUM_RESIDUALS = 8  # problems whose best leaf is scored anew for the residual


def train(session: Session) -> int:
    """The main loop: problems, rollouts, rewards, batch, update, log, checkpoint, evaluate.

    Returns:
        The exit status: 0 done, 1 failed, 128 plus the number of a signal that asked to stop.
    """
    try:
        return _train(session)
    except WriteFailedError as error:
        session.console.fail(
            f"{error}; what was saved before is kept: make room or raise the limit, then continue with: python"
            f" train.py --resume {session.folder}"
        )
        return FAILED


def _train(session: Session) -> int:
    config, console = session.config, session.console
    first, last = session.first_iteration, config.train.num_iterations
    began = time.perf_counter()
    _begin(session)
    done = first
    with stop_requests() as received, _progress(console, last, first):
        for done in range(first + 1, last + 1):
            try:
                metrics = _train_once(session, done)
            except FloatingPointError as error:
                console.fail(f"iteration {done}: {error}; the last checkpoint is untouched")
                return FAILED
            number = agreed(received)
            is_saved = number > 0 or _is_due(done, config.run.checkpoint_frequency, last)
            if is_saved:  # before the evaluation, which may fail or take long
                _save(session, done, metrics)
            if number == 0 or done == last or not _is_due(done, config.eval.eval_frequency, last):
                _conclude(session, done, metrics)  # else the resumed run does
            number = agreed(received)
            if number and done < last:
                if not is_saved:
                    _save(session, done, metrics)
                console.say(f"stopped after iteration {done}; continue with: python train.py --resume {session.folder}")
                return status_of(number)
    if done > first:
        console.say(f"{counted(done - first, 'iteration')} in {time.perf_counter() - began:.0f} s")
    else:
        console.say(f"nothing to train: this run has finished its {counted(last, 'iteration')}")
    if done > 0:
        console.say(f"evaluate again: python train.py --eval-only --checkpoint {_checkpoint(session, done)}")
    return 0


def _begin(session: Session) -> None:
    """Evaluate the base model, or what a stopped run left to do for its last iteration."""
    if session.first_iteration == 0:
        _log(session, 0, measure(session, 0))
    elif session.pending is not None:
        _conclude(session, session.first_iteration, session.pending)


def _train_once(session: Session, number: int) -> dict[str, Any]:
    """Iteration `number`, counted from 1, and all that is said of it; what there is to log."""
    metrics, rewarded = iterate(session, number - 1)
    session.console.iteration(number, metrics)
    if metrics["train/num_rows"] == 0:
        session.console.warn(
            f"nothing was learned in iteration {number}: every leaf weighed less than search.min_weight"
            f" {session.config.search.min_weight:g} and was dropped; lower it"
        )
    metrics["alarms"] = _sound_alarms(session, metrics)
    session.history.append(remembered(metrics))
    if _is_due(number, session.config.run.sample_frequency, session.config.train.num_iterations):
        _show_samples(session, number, rewarded)
    return metrics


def _conclude(session: Session, number: int, metrics: Mapping[str, Any]) -> None:
    """Evaluate after an iteration if it is time to, and write its record."""
    settings, last = session.config.eval, session.config.train.num_iterations
    if _is_due(number, settings.eval_frequency, last):
        metrics = {**metrics, **measure(session, number, is_whole=number == last)}
    _log(session, number, metrics)


def evaluate_only(session: Session, folder: Path) -> int:
    """Print the evaluation's table and save it in `folder`, or in runs/ where that cannot be written to.

    Returns:
        The exit status: 1 if the results could be saved nowhere.
    """
    measured = _finite(measure(session, session.first_iteration))
    return from_main(_save_evaluation(session, folder, measured) if is_main() else 0)


def _save_evaluation(session: Session, folder: Path, measured: Mapping[str, Any]) -> int:
    places: tuple[Callable[[], Path], ...] = (lambda: folder, lambda: new_run_folder("evaluation", None))
    for place in places:
        try:
            path = _free_name(place())
            with writing(path):
                path.write_text(json.dumps(measured, indent=2) + "\n")
        except (ValueError, WriteFailedError) as error:
            session.console.warn(str(error))
        else:
            session.console.say(f"saved to {path}")
            return 0
    session.console.fail("the results above are saved nowhere")
    return FAILED


def _free_name(folder: Path) -> Path:
    """evaluation.json, evaluation-2.json, …: no earlier result is overwritten."""
    path, number = folder / "evaluation.json", 1
    while path.exists():
        number += 1
        path = folder / f"evaluation-{number}.json"
    return path


def iterate(session: Session, iteration: int) -> tuple[dict[str, Any], RewardedRollouts]:
    """One iteration: search, update, and what there is to log of it; the same on every rank."""
    config, began = session.config, time.perf_counter()
    is_open, reason = guidance_gate(session.history)
    search = session.search if is_open else replace(session.search, guidance_strength=0.0)
    problems = session.task.train_problems(iteration, config.train.problems_per_iteration)
    with unsharded(session.policy):
        rewarded = _search(session, problems, search, iteration)
        searched = time.perf_counter()
        rollouts, weight, accuracy = rewarded.rollouts, rewarded.weight, rewarded.accuracy
        inverse_beta = inverse_beta_of(guidance_of(session.search), torch.logit(rollouts.value[:, 0, 0]))
        residual = _bellman_residual(session, rewarded, inverse_beta)  # before the update, like all measures of h
    batch = make_batch(rewarded)
    metrics: dict[str, Any] = dict(session.updater.update(batch, len(problems), iteration))
    ended = time.perf_counter()
    metrics |= rollout_metrics(
        rollouts, weight, accuracy, rewarded.grade, rewarded.reward, is_weighted=search.mode != "best_first"
    )
    metrics |= heuristic_quality(rollouts, rewarded.grade, weight, inverse_beta)
    metrics["heuristic/bellman_residual"] = residual
    has_leaf = rollouts.length > 0  # a search may end with fewer leaves than were asked for
    metrics |= {
        "guidance/is_open": float(is_open),
        "guidance/reason": reason,
        "rollout/format": float(rewarded.format[has_leaf].mean()),
        "rollout/reward": float(rewarded.reward[has_leaf].mean()),
        "time/search_s": searched - began,
        "time/update_s": ended - searched,
        "time/iteration_s": ended - began,
    }
    # decisions are taken on metrics: not one bit may differ between ranks
    return from_main(_finite(metrics)), rewarded


def _search(session: Session, problems: list[Problem], search: SearchConfig, iteration: int) -> RewardedRollouts:
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


def measure(session: Session, iteration: int, *, is_whole: bool = True) -> dict[str, float]:
    """Evaluate on the held-out problems and print the table; metrics by name.

    Args:
        session: what to evaluate.
        iteration: of the table's title.
        is_whole: all problems, sampled completions too; else greedy ones of the first `eval.num_problems_between`.
    """
    began = time.perf_counter()
    settings = session.config.eval
    problems = session.held_out if is_whole else session.held_out[: settings.num_problems_between]
    with unsharded(session.policy):
        evaluation = evaluate(
            session.generator,
            problems,
            session.search,
            num_samples=settings.num_samples if is_whole else 0,
            max_rows=settings.max_rows,
        )
    rows = [(name.removeprefix("eval/"), str(e)) for name, e in evaluation.estimates.items()]
    rows.append(("time", f"{time.perf_counter() - began:.1f} s"))
    title = f"iteration {iteration}: {evaluation.num_problems} held-out problems, value and 95 % interval"
    session.console.table(title, rows)
    return evaluation.metrics() | _compare_decoding(session, problems)


def _compare_decoding(session: Session, problems: list[Problem]) -> dict[str, float]:
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
            problems,
            session.search,
            beam_width=settings.beam_width,
            max_rows=settings.max_rows,
        )
    rows = []
    for a in arms:  # beam search does not tell what it expanded
        counts = "" if math.isnan(a.expanded) else f", {a.expanded:.1f} expanded, {a.forks:.1f} forks"
        rows.append((a.title, f"{a.accuracy}  {a.tokens:.1f} tokens{counts}"))
    session.console.table("decoding, per problem", rows)
    return {name: number for arm in arms for name, number in arm.metrics().items()}


def _show_samples(session: Session, iteration: int, rewarded: RewardedRollouts) -> None:
    records = [
        {
            "iteration": iteration,
            "problem": problem.text,
            "answer": _in_json(problem.answer),
            "completion": text,
            "accuracy": verdict.accuracy,
            "format": verdict.format,
            "reason": str(verdict.reason),
            **({} if verdict.score is None else {"score": verdict.score}),
            "weight": float(rewarded.weight[i, k]),
            "priority": float(rewarded.rollouts.priority[i, k]),
        }
        for i, problem in enumerate(rewarded.problems)
        for k, (text, verdict) in enumerate(zip(rewarded.texts[i], rewarded.verdicts[i], strict=True))
        if rewarded.rollouts.length[i, k] > 0  # there may be no k-th leaf; its priority, -inf, is no JSON
    ]
    _append(session.folder / SAMPLES, *records)
    for i in range(min(_NUM_SHOWN, len(rewarded.problems))):
        verdict = rewarded.verdicts[i][0]
        session.console.sample(rewarded.problems[i].text, rewarded.texts[i][0], str(verdict.reason))


def _in_json(answer: Any) -> int | str:
    """The right answer of any task: an integer as it is, all else as text."""
    return answer if type(answer) is int else str(answer)


def _sound_alarms(session: Session, metrics: Mapping[str, Any]) -> list[str]:
    """Say what has just become wrong, once, and return the names of everything that is wrong now."""
    tolerance = session.config.train.ratio_tolerance
    before = session.history[-1].get("alarms", []) if session.history else []
    alarms = active_alarms([*session.history, remembered(metrics)], tolerance)
    for name, text in alarms.items():
        if name not in before:
            session.console.warn(text)
    return sorted(alarms)


def _log(session: Session, iteration: int, metrics: Mapping[str, Any]) -> None:
    _append(session.folder / METRICS, {"iteration": iteration} | _finite(metrics) | {"iteration": iteration})


def _append(path: Path, *records: Mapping[str, Any]) -> None:
    write_for_all(path, lambda: append_jsonl(path, *records) if is_main() else None)


def _finite(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no nan: what could not be measured is null."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in metrics.items()}


def _checkpoint(session: Session, iteration: int) -> Path:
    return session.folder / CHECKPOINTS / f"checkpoint_iter_{iteration}"


def _save(session: Session, iteration: int, record: Mapping[str, Any]) -> None:
    """Save a checkpoint; `record` is the iteration's, still without its evaluation."""
    state = {
        "iteration": iteration,
        "num_updates": session.updater.num_updates,
        "config": dataclasses.asdict(session.config),
        "history": session.history,
        "record": {k: v for k, v in record.items() if not k.startswith("time/")},  # equal runs, equal checkpoints
    }
    folder = _checkpoint(session, iteration)
    try:
        own = optimizers(session.updater)
        write_for_all(folder, lambda: save_checkpoint(folder, session.policy, session.tokenizer, own, state))
    except WriteFailedError:
        if is_main():
            with suppress(OSError):
                remove_partial(session.folder)  # it may have filled the disk
        raise


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
