"""What a run works with, made from a configuration, which is task, policy, generator and update."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from tinyzero_astar.config import Config, SearchConfig, root_tilt_of, search_size
from tinyzero_astar.data.answers import THINK_END
from tinyzero_astar.data.questions import overlap
from tinyzero_astar.data.tasks import Problems
from tinyzero_astar.data.text import text_fault
from tinyzero_astar.distributed import agree, is_distributed, world_size
from tinyzero_astar.engine.cuda_graphs import CudaGraphs
from tinyzero_astar.engine.host_decoder import make_decoder
from tinyzero_astar.interfaces import Logger, Problem, Task
from tinyzero_astar.loggers.console import ConsoleLogger
from tinyzero_astar.model.adapters import unadapted
from tinyzero_astar.model.model import Policy
from tinyzero_astar.model.policy_loading import load_policy
from tinyzero_astar.resources.allocator import keep_freed_memory
from tinyzero_astar.resources.machine import choose_device, idle_cores, num_cores
from tinyzero_astar.resources.model import check_options
from tinyzero_astar.resources.operations import Operations
from tinyzero_astar.resources.shapes import shapes_of
from tinyzero_astar.rollout.generator import Generator
from tinyzero_astar.run.reporting import AllLoggers
from tinyzero_astar.terminal import counted
from tinyzero_astar.training.algorithms import make_algorithm
from tinyzero_astar.training.astar_po import AStarPO
from tinyzero_astar.training.optimizer import MasterAdamW
from tinyzero_astar.training.reference import ReferencePolicy, digest_of
from tinyzero_astar.training.reward import WeightedReward
from tinyzero_astar.training.update import Updater

_NEARLY_IDLE = 0.25  # of a core in use now and then. Below this share the core counts as idle


@dataclass(frozen=True)
class Session:
    """Everything that a run works with, ready to go."""

    config: Config
    folder: Path
    policy: Policy
    tokenizer: PreTrainedTokenizerBase
    task: Task
    held_out: list[Problem]
    generator: Generator
    search: SearchConfig  # with the depth that the longest prompt allows
    updater: Updater
    operations: Operations
    reference: ReferencePolicy | None  # of an algorithm that needs one, in training
    console: ConsoleLogger
    log: Logger  # all of them, the console included
    first_iteration: int  # iterations already trained
    history: list[dict[str, Any]]  # what gate and alarms remember of the iterations trained so far
    searched: dict[int, int]  # by the id of each problem that came up, in how many iterations it had a leaf
    pending: dict[str, Any] | None = None  # record of the last of them, if still to be evaluated and written
    held: ExitStack = field(default_factory=ExitStack)  # given back when the run ends, such as the lock on its folder


class Loaded(NamedTuple):
    """A policy and its tokenizer."""

    policy: Policy
    tokenizer: PreTrainedTokenizerBase


class First(NamedTuple):
    """A frozen copy of the policy that a run begins with."""

    policy: Policy
    digest: str  # of its weights


def build(
    config: Config,
    problems: Problems,
    folder: Path,
    model_source: str,
    console: ConsoleLogger,
    first_iteration: int,
    first: First | None = None,
    loaded: Loaded | None = None,
) -> Session:
    """Everything a run needs.

    Args:
        config: of the run.
        problems: of its task.
        folder: where it writes.
        model_source: the model name or a checkpoint folder.
        console: what is worth saying goes there.
        first_iteration: iterations already trained.
        first: see `first_policy`.
        loaded: what `load_model` gave, if it was called before.

    Raises:
        ValueError: the model cannot be had, this machine cannot do what is asked of it, or things do not go together,
            such as the problems and the model's tokenizer, or the algorithm and the search.
    """
    algorithm = make_algorithm(config)
    policy, tokenizer = loaded or load_model(config, model_source, console)
    console.fact(
        "task",
        f"{config.data.task}, {len(problems.train):,} training problems, {len(problems.held_out):,} held out,"
        f" {overlap(problems.train, problems.held_out)} on both sides",
    )
    if config.search.mode == "best_first" and isinstance(algorithm, AStarPO):
        console.warn("mode best_first trains on modes with uniform weights: its gradient is biased")
    if (fault := text_fault(tokenizer, [*problems.prompts, *problems.examples])) is not None:
        raise ValueError(f"the {fault}")

    generator = _generator(config, problems, policy, tokenizer)
    # or it refuses the prompts
    _, depth = generator.encode([*problems.train, *problems.held_out], config.search.max_search_depth)
    _warn_of_depth(config, depth, *_example_lengths(problems, tokenizer), console)
    reference = None
    if algorithm.needs_reference and (first is not None or policy.has_adapters):
        network, digest = first or First(policy, "")
        own = _generator(config, problems, network, tokenizer)
        reference = ReferencePolicy(network, own, config, depth, digest)
    return Session(
        config=config,
        folder=folder,
        policy=policy,
        tokenizer=tokenizer,
        task=problems.task,
        held_out=problems.held_out,
        generator=generator,
        search=_search(config, depth),
        updater=Updater(policy, algorithm, config.train, config.value),
        operations=Operations(
            shapes_of(policy.language_model.config), config.value.hidden_size if algorithm.has_critic else None
        ),
        reference=reference,
        console=console,
        log=AllLoggers(console, config.run.loggers),
        first_iteration=first_iteration,
        history=[],
        searched={},
    )


def load_model(config: Config, source: str, console: ConsoleLogger) -> Loaded:
    """The policy on its device and its tokenizer, with adapters if any, sharded if there are several processes.

    It sets PyTorch's threads and its random state, from which the value model is drawn.

    Raises:
        ValueError: it cannot be had, or this machine cannot do what is asked of it.
    """
    transformers_logging.disable_progress_bar()
    torch.manual_seed(config.run.seed)
    threads = _set_threads(config.run.num_threads, console)
    model = config.model
    policy, tokenizer = _loaded(config, source, model.lora_rank, console)
    console.fact(
        "model",
        f"{model.model_name}, {policy.language_model.num_parameters():,} parameters, {model.dtype},"
        f" on {policy.device}, {counted(threads, 'CPU thread')}",
    )
    if policy.has_adapters:
        trained = sum(p.numel() for p in policy.language_model.parameters() if p.requires_grad)
        console.fact("adapters", f"of rank {model.lora_rank}, {trained:,} of these parameters are trained")
        if (text := unadapted(policy.language_model)) is not None:
            console.warn(text)
    policy.gradient_checkpointing = config.train.gradient_checkpointing
    if is_distributed():
        policy.shard(config.train.sharding)
        console.fact("processes", f"{world_size()}, sharding {config.train.sharding}")
    return Loaded(policy, tokenizer)


def first_policy(config: Config, console: ConsoleLogger) -> First | None:
    """The policy that a run began with, frozen. None where nothing asks for it, or adapters can be left off instead.

    Raises:
        ValueError: it cannot be had.
    """
    if not make_algorithm(config).needs_reference or config.model.lora_rank:
        return None
    try:
        policy, _ = _loaded(config, config.model.model_name, 0, console)
    except ValueError as error:
        raise ValueError(
            f"algorithm {config.train.algorithm} needs the model that the run began with: {error}"
        ) from error
    policy.requires_grad_(False)
    found = First(policy, digest_of(policy))
    if is_distributed():
        policy.shard(config.train.sharding)
    return found


def _loaded(
    config: Config, source: str, lora_rank: int, console: ConsoleLogger
) -> tuple[Policy, PreTrainedTokenizerBase]:
    model, device = config.model, choose_device(config.model.device)
    check_options(config, device)
    if device.type == "cpu":
        keep_freed_memory()
    policy, tokenizer = agree(
        lambda: load_policy(
            source,
            dtype=getattr(torch, model.dtype),
            device=device,
            value_hidden_size=config.value.hidden_size,
            max_length=model.max_seq_length,
            lora_rank=lora_rank,
            liger=model.liger,
            say=console.say,
        )
    )
    # NCCL's own thread may ask for events during a recording, which was never tried.
    is_recorded = model.cuda_graphs and device.type == "cuda" and not is_distributed()
    policy.recorder = CudaGraphs() if is_recorded else None
    return policy, tokenizer


def _generator(config: Config, problems: Problems, network: Policy, tokenizer: PreTrainedTokenizerBase) -> Generator:
    """What searches with a network and judges by the task."""
    reward, limit = WeightedReward(config.reward), config.model.max_seq_length
    return Generator(partial(make_decoder, network), tokenizer, problems.task, reward, limit)


def _search(config: Config, depth: int) -> SearchConfig:
    """The search of every iteration, with one depth for the run, because rollouts must not depend on their batch."""
    is_weighted = config.search.mode == "gumbel"  # else all leaves of a problem weigh the same
    return replace(
        config.search,
        max_search_depth=depth,
        min_weight=config.search.min_weight if is_weighted else 0.0,
        problems_per_search=search_size(config),
        root_tilt=root_tilt_of(config),
    )


def _example_lengths(problems: Problems, tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """Tokens of the worked example with the shortest answer, and of its end, from </think> to the end token.

    Without </think> all of it counts as the answer.
    """
    answers = [example[max(0, example.rfind(THINK_END)) :] for example in problems.examples]
    both = (tokenizer(texts, add_special_tokens=False)["input_ids"] for texts in (problems.examples, answers))
    answer, example = min((len(a) + 1, len(e) + 1) for e, a in zip(*both, strict=True))
    return example, answer


def _warn_of_depth(config: Config, depth: int, example: int, answer: int, console: ConsoleLogger) -> None:
    """Say when completions of at most `depth` tokens are fewer than asked for, or cannot be right.

    Args:
        config: of the run.
        depth: tokens that the longest prompt leaves.
        example: tokens of a worked example.
        answer: how many of these are its answer, from </think> on.
        console: where to say it.
    """
    if depth < config.search.max_search_depth:
        console.warn(
            f"max_seq_length {config.model.max_seq_length} leaves {counted(depth, 'token')} after the longest prompt,"
            f" less than max_search_depth {config.search.max_search_depth}"
        )
    if depth < answer:
        console.warn(
            f"completions of at most {counted(depth, 'token')} cannot be right: a worked example of the task has"
            f" {counted(example, 'token')}, {answer} of them for the answer; raise max_search_depth or max_seq_length"
        )


def _set_threads(wanted: int, console: ConsoleLogger) -> int:
    threads = choose_num_threads(wanted)
    torch.set_num_threads(threads)
    if threads < wanted:
        console.warn(f"run.num_threads {wanted} is more than this machine's cores: {threads} are used")
    return threads


def choose_num_threads(wanted: int) -> int:
    """CPU threads as wanted, at most one per core. 0 takes one per idle core, shared by the processes here.

    Threads that wait for each other by spinning are many times slower when another program holds a core.
    """
    if wanted > 0:
        return min(wanted, num_cores())
    num_idle = int(idle_cores() + _NEARLY_IDLE)
    return max(1, num_idle // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def optimizers(updater: Updater) -> dict[str, MasterAdamW]:
    """The optimizers that step, under the names that checkpoints use."""
    own = {"policy_optimizer": updater.policy_optimizer}
    return own | ({"value_optimizer": updater.value.optimizer} if updater.value is not None else {})
