"""How long iterations and evaluations of a run take, estimated from a machine's measured speed.

Every completion is taken to be as long as it may become.
"""

from __future__ import annotations

from tinyzero_astar.config import Config
from tinyzero_astar.engine.shared_prompt import length_read_apart
from tinyzero_astar.resources.machine import Speed
from tinyzero_astar.resources.prediction import PlannedRun
from tinyzero_astar.resources.standing import kv_bytes
from tinyzero_astar.resources.workload import Shapes, Work


def iteration_seconds(run: PlannedRun, speed: Speed) -> dict[str, float]:
    """Estimated seconds of one iteration's parts.

    2 operations per parameter and token forward, 4 backward (2 for frozen weights), 2 more where layers run again.
    """
    work, n = run.work, run.model.shapes.num_parameters
    own = work.num_problems * (work.prompt_length - work.shared_length) + work.num_rows * work.depth
    # completions share their prompts, and trees of a micro-batch's size what all prompts begin with
    tokens = own + work.shared_length * min(work.num_problems, -(-own // work.micro_batch_tokens))
    per_token = (4 if work.lora_rank else 6) + 2 * work.gradient_checkpointing
    return {
        "search": _decoding(run.model.shapes, work, work.num_problems, work.num_leaves, speed),
        # samples of problems that are all new, and a forward
        **(
            {
                "reference": _decoding(
                    run.model.shapes, work, work.num_problems, work.num_problems * work.num_reference_samples, speed
                )
                + 2 * n * tokens / speed.flops_per_s
            }
            if work.num_reference_samples
            else {}
        ),
        "update": run.config.train.num_epochs * per_token * n * tokens / speed.flops_per_s,
        # divergence of the policy from its base, which only adapters have, a forward of each
        **({"divergence": 4 * n * tokens / speed.flops_per_s} if work.lora_rank else {}),
    }


def evaluation_seconds(run: PlannedRun, speed: Speed, is_whole: bool) -> float:
    """Estimated seconds of one evaluation, see `EvalConfig`.

    What `eval.search` best_first adds is not counted, since it depends on the policy.
    """
    work, shapes, total = run.work, run.model.shapes, 0.0
    problems = work.eval_problems if is_whole else min(work.eval_problems, run.config.eval.num_problems_between)
    for samples in (1, work.eval_samples) if is_whole else (1,):
        at_once = max(1, work.eval_rows // samples)
        whole, rest = divmod(problems, at_once)
        total += whole * _decoding(shapes, work, at_once, at_once * samples, speed)
        total += _decoding(shapes, work, rest, rest * samples, speed) if rest else 0.0
    return total


def num_evaluations(config: Config) -> int:
    """Before the first iteration, every `eval_frequency`, and at the end."""
    last, frequency = config.train.num_iterations, config.eval.eval_frequency
    return len({0, last, *range(frequency, last + 1, frequency)})


def _decoding(shapes: Shapes, work: Work, num_problems: int, rows: int, speed: Speed) -> float:
    """Seconds for a prompt per problem and so many completions of them.

    Each step reads all weights and the slots so far, or is bound by arithmetic.
    """
    n = shapes.num_parameters
    slots = kv_bytes(shapes, work, rows) * (work.prompt_length + work.depth / 2) / (work.length + 1)
    read = (n * work.dtype_bytes + slots) / speed.bytes_per_s
    apart = length_read_apart(work.shared_length, num_problems)
    positions = apart + num_problems * (work.prompt_length - apart)
    prompts = 2 * n * positions / speed.flops_per_s
    return prompts + work.depth * max(read, 2 * n * rows / speed.flops_per_s)
