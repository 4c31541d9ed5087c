"""Decoding, searches, and how far they are from the trainer's forward, for `benchmarks.gpu`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_bench import LEAVES, Shape
from benchmarks.gpu_shapes import EOS
from benchmarks.gpu_table import RECORDED
from tinyzero_astar.engine.cuda_graphs import CudaGraphs
from tinyzero_astar.engine.decoder import SlotDecoder
from tinyzero_astar.interfaces import Rollouts
from tinyzero_astar.resources.memory import phases
from tinyzero_astar.resources.standing import kv_bytes
from tinyzero_astar.rollout.astar_search import Forest, astar_rollouts
from tinyzero_astar.search.heuristic import Guidance
from tinyzero_astar.training.trees import Tree, micro_batches, stack

FOREST = "forest"  # with the number of problems that share a search behind it
SEARCHES = ("sample", "gumbel", "guided")


class Decoding(Shape):
    """The parts with a number of rows."""

    @contextmanager
    def recorder_of(self, part: str) -> Iterator[None]:
        self.policy.recorder = CudaGraphs() if part.endswith(RECORDED) else None
        try:
            yield
        finally:
            self.policy.recorder = None

    def decode(self, mode: str, rows: int) -> dict[str, float]:
        """Of steps alone, and of everything with prompts and recording, beside what reading weights and slots allows.

        Steps are what a deep search takes longer than a shallow one.
        """
        shallow, deep = self.args.shallow, self.args.depth
        if mode == "generate":
            deep = self.args.generate_depth
            shallow = deep // 3
        work = {depth: partial(self.tokens_of, mode, rows, depth) for depth in (shallow, deep)}
        work[deep]()  # warms up
        self.reset_peak()
        (num_deep, seconds), (num_shallow, least) = self.timed(work[deep]), self.timed(work[shallow])
        step = (seconds - least) / (deep - shallow)
        rate = (num_deep - num_shallow) / max(seconds - least, 1e-9)
        position = self.args.prompt + (shallow + deep) / 2
        limit = self.limit(rows, position)
        found = {
            "rows": rows,
            "step_ms": 1e3 * step,
            "tokens_per_s": rate,
            "whole_tokens_per_s": num_deep / seconds,
            "limit_tokens_per_s": limit,
            "share_of_limit": rate / limit,
        }
        return found if mode in ("generate", "forward") else found | self.memory(self.predicted(mode, rows))

    def limit(self, rows: int, position: float) -> float:
        """Tokens per second if a step did nothing but read weights and the slots that are filled."""
        work = self.work(rows)
        slots = kv_bytes(self.shapes, work, rows) * position / (work.length + 1)
        return rows * self.speed.bytes_per_s / (self.shapes.num_parameters * work.dtype_bytes + slots)

    def tokens_of(self, mode: str, rows: int, depth: int) -> int:
        """Decode, and how many tokens that were."""
        if mode == "generate":
            return self.generate(rows, depth)
        if mode == "forward":
            return self.forward(rows, depth)
        return int(self.search(mode, rows, depth).stats.num_decoded_tokens.sum())

    def search(self, mode: str, rows: int, depth: int) -> Rollouts:
        prompts = self.prompts(rows)
        return astar_rollouts(
            SlotDecoder(self.policy, self.args.depth),
            prompts,
            seeds=torch.arange(len(prompts)),
            num_rollouts=LEAVES,
            beam_width=LEAVES + 1,
            max_search_depth=depth,
            mode="sample" if mode == "sample" else "gumbel",
            guidance=Guidance(inverse_beta=2.0, strength=float(mode == "guided")),
            forest=Forest(int(mode.removeprefix(FOREST)) if mode.startswith(FOREST) else 1),
        )

    @torch.no_grad()
    def forward(self, rows: int, depth: int) -> int:
        """Steps of given tokens without a search, which costs what decoding costs at least."""
        prompts = self.prompts(rows)
        home = torch.arange(len(prompts)).repeat_interleave(LEAVES)
        decoder, recorder = SlotDecoder(self.policy, self.args.depth), self.policy.recorder
        decoder.start(prompts, home)
        slots = torch.arange(rows, device=self.device)
        tokens = torch.randint(2, self.policy.vocab_size, (depth, rows), device=self.device)
        path = torch.zeros(rows, 3, dtype=torch.float64, device=self.device)
        given, length = tokens[0].clone(), torch.zeros_like(slots[0])
        shape, replay = 0, list[Callable[[], Any]]()
        for number in range(depth):
            if recorder is None:
                decoder.step(tokens[number], None, torch.full_like(slots, number), slots, path)
                continue
            if decoder.shape_at(number + 1) != shape:
                shape = decoder.shape_at(number + 1)
                decoder.prepare(shape)
                work = partial(decoder.step_all, given, length, path, shape)
                replay = [recorder.record(work, ("bare", rows, shape))]
            given.copy_(tokens[number])
            length.fill_(number)
            replay[0]()
        return rows * depth

    @torch.no_grad()
    def generate(self, rows: int, depth: int) -> int:
        ids = torch.tensor(self.prompts(rows), device=self.device).repeat_interleave(LEAVES, 0)
        output: Tensor = self.policy.language_model.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            top_k=0,
            top_p=1.0,
            temperature=1.0,
            max_new_tokens=depth,
            pad_token_id=EOS,
        )
        new = output[:, ids.shape[1] :]
        is_end = new == EOS
        return int((is_end.long().cumsum(1) - is_end.long() == 0).sum())

    def prompts(self, rows: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(0)
        shape = (rows // LEAVES, self.args.prompt)
        found: list[list[int]] = torch.randint(2, self.policy.vocab_size, shape, generator=generator).tolist()
        return found

    @torch.no_grad()
    def gap(self, rows: int) -> dict[str, float]:
        """How far the search's log-probabilities of its own tokens are from the trainer's forward, nats."""
        rollouts, prompts = self.search("sample", rows, self.args.depth), self.prompts(rows)
        logp, is_token = rollouts.logp.flatten(0, 1), rollouts.is_token.flatten(0, 1)
        length = rollouts.length.flatten().tolist()
        trees = [Tree() for _ in prompts]
        for row, tokens in enumerate(rollouts.tokens.flatten(0, 1).tolist()):
            trees[row // LEAVES].add(prompts[row // LEAVES], tokens[: length[row]], row)
        gaps = []
        for group in micro_batches(trees, self.args.micro_batch_tokens):
            own, stacked = stack(group, self.device)
            found = self.policy.token_scores(stacked).logp.double()
            own = own.to(logp.device)
            gap = (found.to(logp.device) - logp[own, : found.shape[1]]).abs()
            gaps.append(gap[is_token[own, : found.shape[1]]])
        gap = torch.cat(gaps)
        return {"mean_nats": float(gap.mean()), "max_nats": float(gap.max())}

    def predicted(self, mode: str, rows: int) -> int:
        """Bytes of a search."""
        work = self.work(
            rows,
            mode="sample" if mode == "sample" else "gumbel",
            is_guided=mode == "guided",
            cuda_graphs=self.policy.recorder is not None,
        )
        parts = phases(self.shapes, work)["search"]
        if "updater" not in self.__dict__:  # no optimizer lives here
            value = sum(p.numel() * p.element_size() for p in self.policy.value_model.parameters())
            parts = {name: n for name, n in parts.items() if name not in ("master weights", "Adam moments")}
            parts["value model"] = value
        return sum(parts.values())
