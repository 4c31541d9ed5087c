"""The policy as it was before training. It is sampled for V*, and it scores rollouts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from tinyzero_astar.config import Config, SearchConfig
from tinyzero_astar.distributed import agree, gather, rank, share_of, world_size
from tinyzero_astar.interfaces import Batch, Problem, Reference
from tinyzero_astar.model.fsdp_utils import unsharded
from tinyzero_astar.model.model import Policy
from tinyzero_astar.rollout.generator import Generator
from tinyzero_astar.rollout.records import num_prompt_tokens
from tinyzero_astar.training.advantages import optimal_value
from tinyzero_astar.training.trees import grow_trees, micro_batches, stack

_ITERATION = 1 << 42  # the noise of reference samples, apart from that of training and of evaluations


class ReferencePolicy:
    """Says of each batch what `interfaces.Reference` holds.

    A problem's V* is estimated when the problem first comes up, from independent completions of the reference. After
    that it never changes. `values` is all that a resumed run must be given.

    Args:
        policy: a frozen copy of the first policy, or the trained one, whose adapters are then off.
        generator: decodes with this policy.
        config: of the run.
        depth: most tokens of a completion.
        digest: `digest_of` the frozen copy. It is "" for adapters, whose base stands in every checkpoint.
    """

    def __init__(self, policy: Policy, generator: Generator, config: Config, depth: int, digest: str) -> None:
        self._policy, self._generator, self._config = policy, generator, config
        self.digest = digest
        self._search = sampling(config, depth)
        self.values: dict[int, float] = {}  # V* by problem id

    def of(self, batch: Batch, problems: Sequence[Problem]) -> tuple[Reference, dict[str, float]]:
        """What the reference says of a batch, and what that cost, named as in docs/metrics.md.

        Args:
            batch: the rows, the same on every rank.
            problems: that `batch.problem` counts through.
        """
        new = [problem for problem in problems if problem.id not in self.values]
        with self._in_use():
            num_tokens, num_read = self._estimate(new)
            logp = self._logp(batch)
        values = torch.tensor([self.values[problem.id] for problem in problems], device=logp.device)
        cost = {
            "reference/num_problems": float(len(new)),
            "reference/num_decoded_tokens": float(num_tokens),
            "reference/num_prompt_tokens": float(num_read),
        }
        return Reference(logp, values[batch.problem]), cost

    @contextmanager
    def _in_use(self) -> Iterator[None]:
        with unsharded(self._policy), self._policy.base() if self._policy.has_adapters else nullcontext():
            yield

    def _estimate(self, problems: Sequence[Problem]) -> tuple[int, int]:
        """Fill in V* of new problems, each rank its share of them.

        Returns:
            The tokens that all ranks decoded for it, and those of the prompts that they read.
        """
        decoded, read = 0, 0
        for values, num_tokens, num_read in gather(agree(lambda: self._sampled(share_of(problems)))):
            self.values |= values
            decoded, read = decoded + num_tokens, read + num_read
        return decoded, read

    def _sampled(self, problems: Sequence[Problem]) -> tuple[dict[int, float], int, int]:
        if not problems:
            return {}, 0, 0
        found = self._generator.generate(problems, self._search, seed=self._config.run.seed, iteration=_ITERATION)
        values = optimal_value(found.reward, self._config.train.optimal_value_beta).tolist()
        return (
            {problem.id: value for problem, value in zip(problems, values, strict=True)},
            int(found.rollouts.stats.num_decoded_tokens.sum()),
            num_prompt_tokens(found, self._search),
        )

    @torch.no_grad()
    def _logp(self, batch: Batch) -> Tensor:
        """[B, T] log pi_ref of every token, 0 at padding. Each rank scores its share of the trees."""
        limit, device = self._config.train.micro_batch_tokens, batch.tokens.device
        trees = grow_trees(batch, range(len(batch.tokens)), limit, self._policy.linear_cost)
        own = []
        for group in micro_batches(trees, limit, rank(), world_size()):
            rows, stacked = stack(group, device)
            own.append((rows.cpu(), self._policy.token_scores(stacked).logp.cpu()))
        logp = torch.zeros_like(batch.logp_old)
        for rows, part in (pair for pairs in gather(own) for pair in pairs):
            logp[rows.to(device), : part.shape[1]] = part.to(device, logp.dtype)
        return torch.where(batch.is_token, logp, 0.0)


def sampling(config: Config, depth: int) -> SearchConfig:
    """Independent completions, as many as V* is estimated from."""
    return replace(
        config.search.one_by_one("sample", config.train.num_reference_samples),
        max_search_depth=depth,
        guidance_strength=0.0,
        min_weight=0.0,
    )


def digest_of(policy: Policy) -> str:
    """SHA-256 of the language model's weights, by name, equal for equal weights on any device."""
    digest = hashlib.sha256()
    for name, weight in sorted(policy.language_model.state_dict().items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
