"""What a run measures of itself, which is metrics of an iteration's search, samples, and evaluations."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tinyzero_astar.config import SearchConfig
from tinyzero_astar.eval.decoding import Arm, compare
from tinyzero_astar.eval.evaluate import evaluate
from tinyzero_astar.interfaces import Problem, Table
from tinyzero_astar.metrics.heuristic import MEASURES, heuristic_quality
from tinyzero_astar.metrics.rollouts import rollout_metrics
from tinyzero_astar.model.fsdp_utils import unsharded
from tinyzero_astar.rollout.generator import guidance_of
from tinyzero_astar.rollout.records import RewardedRollouts, num_prompt_tokens
from tinyzero_astar.run.build import Session
from tinyzero_astar.search.heuristic import inverse_beta_of

_NUM_RESIDUALS = 8  # problems whose best leaf is scored anew for the residual


def finite(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no nan, so what could not be measured is null."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in metrics.items()}


# ---------------------------------------------------------------------------------------------------- the search


def search_metrics(session: Session, rewarded: RewardedRollouts) -> dict[str, Any]:
    """Diversity, weights and cost of an iteration's rollouts, and how well its heuristic ranked them.

    Nothing is known of a value model that the algorithm does not train.
    """
    rollouts, weight, grade = rewarded.rollouts, rewarded.weight, rewarded.grade
    metrics = rollout_metrics(
        rollouts,
        weight,
        rewarded.accuracy,
        grade,
        rewarded.reward,
        mode=session.search.mode,
        group_size=session.search.problems_per_search,
    )
    if not session.updater.algorithm.has_critic:
        return metrics | dict.fromkeys((*MEASURES, "weight/variance_ratio"))
    return metrics | heuristic_quality(rollouts, grade, weight, _inverse_beta(session, rewarded))


def cost_metrics(
    session: Session, search: SearchConfig, rewarded: RewardedRollouts, spent: Mapping[str, float]
) -> dict[str, float]:
    """Tokens that went through the model for an iteration's rollouts, and its floating-point operations.

    Args:
        session: of the run.
        search: of the iteration, as far as it was guided.
        rewarded: what it found.
        spent: metrics of the reference and of the update.
    """
    train = session.config.train
    read = num_prompt_tokens(rewarded, search)
    reference = spent.get("reference/num_decoded_tokens", 0) + spent.get("reference/num_prompt_tokens", 0)
    num_tokens = read + int(rewarded.rollouts.stats.num_decoded_tokens.sum()) + reference
    trained, rows = spent["train/num_tokens"], spent["train/num_rows"]
    prompts = sum(len(prompt) for prompt in rewarded.prompts) / len(rewarded.prompts)
    length = rewarded.rollouts.length
    context = (prompts + float(length[length > 0].double().mean())) / 2
    update = session.operations.update(
        train.num_epochs * trained,
        train.num_epochs * max(trained - rows * prompts, 0.0),
        context,
        value_steps=session.config.value.num_steps,
        passes=(2 if session.policy.has_adapters else 3)
        + train.gradient_checkpointing,  # frozen weights need no gradient
    )
    scored = session.operations.forward(trained, context) if session.reference is not None else 0.0
    is_guided = search.mode != "sample" and search.guidance_strength > 0
    return {
        "search/num_prompt_tokens": read,
        "cost/tokens": num_tokens,
        "cost/search_flops": session.operations.search(num_tokens, context, is_guided=is_guided),
        "cost/update_flops": update + scored,
    }


def reward_metrics(rewarded: RewardedRollouts) -> dict[str, float]:
    """Means over the leaves that there are, since a search may end with fewer than were asked for."""
    has_leaf = rewarded.rollouts.length > 0
    return {
        "rollout/format": float(rewarded.format[has_leaf].mean()),
        "rollout/reward": float(rewarded.reward[has_leaf].mean()),
    }


def bellman_residual(session: Session, rewarded: RewardedRollouts) -> float:
    """Mean |sum of residuals| over the best leaves of a few problems, nats.

    It is 0 for an exact heuristic, nan for none.
    """
    if not session.updater.algorithm.has_critic:
        return math.nan
    totals, inverse_beta = [], _inverse_beta(session, rewarded).to(torch.float32)
    lengths = rewarded.rollouts.length[:, 0].tolist()
    for i in [i for i, length in enumerate(lengths) if length > 0][:_NUM_RESIDUALS]:
        prompt, length = rewarded.prompts[i], lengths[i]
        ids = torch.tensor([[*prompt, *rewarded.rollouts.tokens[i, 0, :length].tolist()]], device=session.policy.device)
        delta = session.policy.bellman_residual(ids, len(prompt), length, inverse_beta[i])
        totals.append(abs(float(delta.sum())))
    return sum(totals) / len(totals) if totals else math.nan


def _inverse_beta(session: Session, rewarded: RewardedRollouts) -> Tensor:
    """[P] 1/beta of the heuristic, from the value of the prompts."""
    return inverse_beta_of(guidance_of(session.search), torch.logit(rewarded.rollouts.value[:, 0, 0]))


def sample_records(rewarded: RewardedRollouts) -> list[list[dict[str, Any]]]:
    """Every leaf with what the verifier said of it, problem by problem."""
    return [list(_leaves(rewarded, i)) for i in range(len(rewarded.problems))]


def _leaves(rewarded: RewardedRollouts, i: int) -> Iterator[dict[str, Any]]:
    problem = rewarded.problems[i]
    for k, (text, verdict) in enumerate(zip(rewarded.texts[i], rewarded.verdicts[i], strict=True)):
        if rewarded.rollouts.length[i, k] > 0:  # there may be no k-th leaf, and its priority, -inf, is no JSON
            yield {
                "problem": problem.text,
                "answer": in_json(problem.answer),
                "completion": text,
                "accuracy": verdict.accuracy,
                "format": verdict.format,
                "reason": str(verdict.reason),
                **({} if verdict.score is None else {"score": verdict.score}),
                "weight": float(rewarded.weight[i, k]),
                "priority": float(rewarded.rollouts.priority[i, k]),
            }


def in_json(answer: Any) -> int | str:
    """The right answer of any task, an integer as it is and all else as text."""
    return answer if type(answer) is int else str(answer)


# ---------------------------------------------------------------------------------------------------- evaluation


class Measured(NamedTuple):
    """An evaluation on held-out problems."""

    metrics: dict[str, float]  # by the names of docs/metrics.md
    tables: list[Table]  # the same for people


def measure(session: Session, iteration: int, *, is_whole: bool = True) -> Measured:
    """Evaluate on the held-out problems.

    Args:
        session: what to evaluate.
        iteration: of the table's title.
        is_whole: all problems, sampled completions too. Otherwise greedy ones of the first `eval.num_problems_between`.
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
    rows = [(_title(name), str(e)) for name, e in evaluation.estimates.items()]
    rows.append(("time", f"{time.perf_counter() - began:.1f} s"))
    title = f"iteration {iteration}: {evaluation.num_problems} held-out problems, value and 95 % interval"
    found = Measured(evaluation.metrics(), [Table(title, rows)])
    if settings.search != "best_first":
        return found
    arms = _compare_decoding(session, problems)
    metrics = {name: number for arm in arms for name, number in arm.metrics(arms[0]).items()}
    return Measured(found.metrics | metrics, [*found.tables, _decoding_table(arms)])


def _title(name: str) -> str:
    """The name of a metric for people, such as sampled pass@4 for eval/pass_at_4."""
    return name.removeprefix("eval/").replace("pass_at_", "sampled pass@").replace("_", " ")


def _compare_decoding(session: Session, problems: list[Problem]) -> list[Arm]:
    """A* at test time against other ways of decoding."""
    with unsharded(session.policy):  # every rank decodes everything, since the beams' width depends on all problems
        return compare(
            session.policy,
            session.tokenizer,
            session.task,
            session.generator,
            problems,
            session.search,
            beam_width=session.config.eval.beam_width,
            max_rows=session.config.eval.max_rows,
        )


def _decoding_table(arms: list[Arm]) -> Table:
    rows = []
    for a in arms:  # beam search and power sampling do not tell their forks
        counts = "" if math.isnan(a.forks) else f", {a.forks:.1f} forks"
        gain = "" if a is arms[0] else f"  {a.gain(arms[0]).in_points()} over greedy"
        rows.append((a.title, f"{a.accuracy}{gain}  {a.tokens:.1f} tokens{counts}"))
    return Table("decoding, per problem", rows)
