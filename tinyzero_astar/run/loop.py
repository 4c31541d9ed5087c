"""The training loop."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from tinyzero_astar.config import SearchConfig
from tinyzero_astar.distributed import agree, from_main, gather, share_of, world_size
from tinyzero_astar.files import WriteFailedError
from tinyzero_astar.interfaces import Batch, Problem, Trace
from tinyzero_astar.metrics.alarms import active_alarms, guidance_gate, remembered, root_gate, sibling_ranking
from tinyzero_astar.model.fsdp_utils import unsharded
from tinyzero_astar.rollout.records import RewardedRollouts, concatenate, on_device
from tinyzero_astar.run.build import Session
from tinyzero_astar.run.launching import resume_command
from tinyzero_astar.run.measure import (
    bellman_residual,
    cost_metrics,
    finite,
    measure,
    reward_metrics,
    sample_records,
    search_metrics,
)
from tinyzero_astar.run.model_card import CARD
from tinyzero_astar.run.non_finite import NonFiniteError, check_weights, explained
from tinyzero_astar.run.processes import note_process
from tinyzero_astar.run.saving import checkpoint_of, prune, records_of, save, write_card
from tinyzero_astar.run.stopping import agreed, stop_requests
from tinyzero_astar.run.summary import say_goodbye
from tinyzero_astar.run.traces import iteration_record, new_trace
from tinyzero_astar.terminal import FAILED, status_of
from tinyzero_astar.training.batch import make_batch


def train(session: Session) -> int:
    """The main loop of problems, rollouts, rewards, batch, update, log, checkpoint and evaluation.

    Returns:
        The exit status. 0 means done, 1 failed, 128 plus the number of a signal that asked to stop.
    """
    try:
        with session.held:
            return _train(session)
    except WriteFailedError as error:
        session.console.fail(
            f"{error}; what was saved before is kept: make room or raise the limit, then continue with:"
            f" {resume_command(session.folder)}"
        )
        return FAILED


def _train(session: Session) -> int:
    first, last, began = session.first_iteration, session.config.train.num_iterations, time.perf_counter()
    with _reported(session):
        if first == 0 or first < last:  # else there is nothing left to do
            note_process(session)
        with stop_requests() as received:
            _begin(session)
            if (stopped_by := agreed(received)) and first < last:
                _say_how_to_continue(session, first)
                return status_of(stopped_by)
            for number in range(first + 1, last + 1):
                try:
                    metrics = _train_once(session, number)
                except FloatingPointError as error:
                    session.console.fail(explained(session, number, error))
                    return FAILED
                stopped_by = _save_and_evaluate(session, number, metrics, received)
                if stopped_by:
                    return status_of(stopped_by)
    say_goodbye(session, records_of(session), time.perf_counter() - began, checkpoint_of(session, last) / CARD)
    return 0


@contextmanager
def _reported(session: Session) -> Iterator[None]:
    """The loggers end however the block does, or the terminal would stay without a cursor."""
    try:
        session.log.begin(
            dataclasses.asdict(session.config), session.folder, session.first_iteration, records_of(session)
        )
        yield
    finally:
        session.log.end()


def _begin(session: Session) -> None:
    """Evaluate the base model, or what a stopped run left to do for its last iteration."""
    if session.first_iteration == 0:
        session.log.record(0, _evaluate(session, 0))
    elif session.pending is not None:
        _conclude(session, session.first_iteration, session.pending)
    else:
        prune(session)  # which the process before may not have come to


def _train_once(session: Session, number: int) -> dict[str, Any]:
    """Iteration `number`, counted from 1, and what is reported of it at once. Returns what there is to record."""
    ranking = sibling_ranking(session.history)
    is_shown = number == 1 or _is_due(number, session.config.run.sample_frequency, session.config.train.num_iterations)
    trace = new_trace(session.search) if is_shown else None
    metrics, rewarded = iterate(session, number - 1, trace)
    alarms = active_alarms([*session.history, remembered(metrics)], session.config.train.ratio_tolerance)
    metrics["alarms"] = sorted(alarms)
    session.log.iteration(number, metrics, ranking)
    for text in [*_nothing_learned(session, number, metrics), *_new(session, alarms)]:
        session.log.alarm(number, text)
    session.history.append(remembered(metrics))
    if trace is not None:
        session.log.samples(number, sample_records(rewarded))
        session.log.trace(number, iteration_record(trace, rewarded, session.search, session.tokenizer))
    return metrics


def iterate(session: Session, iteration: int, trace: Trace | None = None) -> tuple[dict[str, Any], RewardedRollouts]:
    """One iteration, counted from 0, of problems, rollouts, rewards, batch and update.

    Metrics are the same on every rank.

    `trace` receives nodes of the searches of this rank.
    """
    began, used = time.perf_counter(), time.process_time()
    search, gates = _guided(session)
    problems = session.task.train_problems(iteration, session.config.train.problems_per_iteration)
    with unsharded(session.policy):
        rewarded = _search(session, problems, search, iteration, trace)
        searched = time.perf_counter()
        residual = bellman_residual(session, rewarded)  # before the update, like all measures of h
    batch, cost = _referred(session, make_batch(rewarded).to(session.policy.device), problems)
    try:
        updated = session.updater.update(batch, len(problems), iteration)
        check_weights(session.policy)
    except FloatingPointError as error:
        raise NonFiniteError(str(error), batch, problems) from error
    ended = time.perf_counter()
    metrics = {
        **cost,
        **updated,
        **search_metrics(session, rewarded),
        "heuristic/bellman_residual": residual,
        **gates,
        **reward_metrics(rewarded),
        **_counted(session, rewarded),
        **cost_metrics(session, search, rewarded, {**cost, **updated}),
        "time/search_s": searched - began,
        "time/update_s": ended - searched,
        "time/iteration_s": ended - began,
        "time/cpu_s": time.process_time() - used,
    }
    # Decisions are taken on metrics, so not one bit may differ between ranks.
    return from_main(finite(metrics)), rewarded


def _guided(session: Session) -> tuple[SearchConfig, dict[str, Any]]:
    """The search as far as the value model may guide it, and why."""
    if session.updater.algorithm.has_critic:
        is_open, reason = guidance_gate(session.history)
        is_root_open, root_reason = root_gate(session.history)
    else:
        is_open = is_root_open = False
        reason = root_reason = f"algorithm {session.config.train.algorithm} trains no value model"
    search = session.search
    search = search if is_open else replace(search, guidance_strength=0.0)
    search = search if is_root_open else replace(search, root_tilt=0.0)
    return search, {
        "guidance/is_open": float(is_open),
        "guidance/reason": reason,
        "guidance/is_root_open": float(is_root_open),
        "guidance/root_reason": root_reason,
    }


def _counted(session: Session, rewarded: RewardedRollouts) -> dict[str, float]:
    """Counts the problems that have a leaf. Returns the shares without one in this iteration and in all so far."""
    has_leaf = (rewarded.rollouts.length > 0).any(1).tolist()
    for problem, is_searched in zip(rewarded.problems, has_leaf, strict=True):
        session.searched[problem.id] = session.searched.get(problem.id, 0) + is_searched
    counts = session.searched.values()
    return {
        "search/unsearched_fraction": 1 - sum(has_leaf) / len(has_leaf),
        "search/never_searched_fraction": sum(count == 0 for count in counts) / len(counts),
    }


def _referred(session: Session, batch: Batch, problems: list[Problem]) -> tuple[Batch, dict[str, float]]:
    """The batch with what the reference says of it, if the algorithm needs one, and what that cost."""
    if session.reference is None:
        return batch, {}
    reference, cost = session.reference.of(batch, problems)
    return replace(batch, reference=reference), cost


def _search(
    session: Session, problems: list[Problem], search: SearchConfig, iteration: int, trace: Trace | None
) -> RewardedRollouts:
    """Rewarded rollouts of all problems. Each rank searches its share of them."""
    seed, policy = session.config.run.seed, session.policy
    own = agree(
        lambda: session.generator.generate(share_of(problems), search, seed=seed, iteration=iteration, trace=trace)
    )
    if world_size() == 1:
        return own
    parts = gather(on_device(own, torch.device("cpu")))
    return on_device(concatenate(parts, policy.eos_ids[0]), policy.device)


def _nothing_learned(session: Session, number: int, metrics: Mapping[str, Any]) -> list[str]:
    if metrics["train/num_rows"] > 0:
        return []
    return [
        f"nothing was learned in iteration {number}: every leaf weighed less than search.min_weight"
        f" {session.config.search.min_weight:g} and was dropped; lower it"
    ]


def _new(session: Session, alarms: Mapping[str, str]) -> list[str]:
    """What has just become wrong is said once."""
    before = session.history[-1].get("alarms", []) if session.history else []
    return [text for name, text in alarms.items() if name not in before]


def _save_and_evaluate(session: Session, number: int, metrics: Mapping[str, Any], received: list[int]) -> int:
    """What follows an iteration. Returns the number of the signal on which the run stops here, 0 for none."""
    config, last = session.config, session.config.train.num_iterations
    signal = agreed(received)
    is_saved = signal > 0 or _is_due(number, config.run.checkpoint_frequency, last)
    if is_saved:  # before the evaluation, which may fail or take long
        save(session, number, metrics)
    if signal == 0 or number == last or not _is_due(number, config.eval.eval_frequency, last):
        _conclude(session, number, metrics)  # else the resumed run does
    signal = agreed(received)
    if signal == 0 or number == last:
        return 0
    if not is_saved:
        save(session, number, metrics)
    _say_how_to_continue(session, number)
    return signal


def _say_how_to_continue(session: Session, done: int) -> None:
    session.console.say(f"stopped after iteration {done}. Continue with: {resume_command(session.folder)}")


def _conclude(session: Session, number: int, metrics: Mapping[str, Any]) -> None:
    """Evaluate after an iteration if it is time to, and record it."""
    last = session.config.train.num_iterations
    if _is_due(number, session.config.eval.eval_frequency, last):
        metrics = {**metrics, **_evaluate(session, number, is_whole=number == last)}
    session.log.record(number, metrics)
    write_card(session, number)  # anew, where there is a checkpoint, since now it can say how good it is
    prune(session)


def _evaluate(session: Session, number: int, is_whole: bool = True) -> dict[str, Any]:
    metrics, tables = measure(session, number, is_whole=is_whole)
    session.log.evaluation(number, finite(metrics), tables)
    return finite(metrics)


def _is_due(done: int, frequency: int, last: int) -> bool:
    return done % frequency == 0 or done == last
