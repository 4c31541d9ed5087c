"""What the processes of tests/test_distributed.py run, `python -m torch.distributed.run … distributed_worker.py JOB`.

A job is a JSON file with command lines of train.py to be run one after another in one process group, the status that
all must end with if it is not 0, and where to put what was seen. As in test_run.py a hash of the text replaces the
verifier. Models may be raised to float64, so that a difference between one process and several is no rounding.
"""

from __future__ import annotations

import json
import os
import sys
import time
import zlib
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP

from tinyzero_astar import distributed
from tinyzero_astar.cli.train import main
from tinyzero_astar.data.generation import Multiplication
from tinyzero_astar.interfaces import Verdict
from tinyzero_astar.model import fsdp_utils
from tinyzero_astar.run import build as session
from tinyzero_astar.run import loop as trainer
from tinyzero_astar.terminal import end_process


def judge(self, problem, completion, is_finished):
    number = zlib.crc32(f"{problem.text} {completion}".encode())
    is_right = number % 3 == 0
    return Verdict(is_right, is_right or number % 2 == 0, None, "by a hash")


@contextmanager
def planted(is_double):
    """The verifier by a hash, guidance from the third iteration on, float64."""
    load = session.load_policy

    def load_double(*args, **kwargs):
        policy, tokenizer = load(*args, **kwargs | ({"dtype": torch.float64} if is_double else {}))
        return (policy.double() if is_double else policy), tokenizer

    def make_double(*args):
        batch = make_batch(*args)
        wider = {k: v.double() for k, v in vars(batch).items() if torch.is_tensor(v) and v.is_floating_point()}
        return replace(batch, **wider)

    make_batch = trainer.make_batch
    with pytest.MonkeyPatch.context() as patch:
        if is_double:
            patch.setattr(trainer, "make_batch", make_double)
        patch.setattr(Multiplication, "verify", judge)
        patch.setattr(trainer, "guidance_gate", lambda history: (len(history) >= 2, "early"))
        patch.setattr(session, "load_policy", load_double)
        yield patch


class CountCollectives(TorchDispatchMode):
    """How many operators of torch.distributed ran."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.namespace in ("c10d", "_c10d_functional")
        return func(*args, **(kwargs or {}))


def watch(patch, seen, num_more):
    """Count collectives and forwards, search `num_more` times more, and note what this rank holds."""
    generate, update = session.Generator.generate, session.Updater.update

    def watched_generate(self, *args, **kwargs):
        with CountCollectives() as mode:
            for _ in range(num_more):
                generate(self, *args, **kwargs)
            found = generate(self, *args, **kwargs)
        seen["in_search"].append(mode.count)
        return found

    def watched_update(self, *args, **kwargs):
        with CountCollectives() as mode:
            metrics = update(self, *args, **kwargs)
        seen["in_update"].append(mode.count)
        optimizers = (self.policy_optimizer, self.value.optimizer)
        slots = [s for o in optimizers for own in o.adamw.state.values() for k, s in own.items() if k != "step"]
        seen["num_parameters"] = sum(p.numel() for p in self.policy.parameters())
        seen["num_trained"] = sum(p.numel() for p in self.policy.parameters() if p.requires_grad)
        seen["num_local"] = [sum(map(fsdp_utils.num_local, tensors)) for tensors in (self.policy.parameters(), slots)]
        seen["local_bytes"] = [
            sum(fsdp_utils.num_local(x) * x.element_size() for x in tensors)
            for tensors in (self.policy.parameters(), slots)
        ]
        return metrics

    def watched_mlp(self, x):
        seen["forwards_with_gradients"] += torch.is_grad_enabled()
        return mlp(self, x)

    mlp = Qwen2MLP.forward
    patch.setattr(Qwen2MLP, "forward", watched_mlp)
    patch.setattr(session.Generator, "generate", watched_generate)
    patch.setattr(session.Updater, "update", watched_update)


def fail(patch, kind):
    """Rank 1 fails in its second update's first forward, between two collectives."""
    step, calls = session.Updater._step, []

    def failing(self, *args):
        calls.append(1)
        if distributed.rank() == 1 and len(calls) == 2:
            if kind == "exit":
                os.kill(os.getpid(), 9)
            if kind == "sleep":
                time.sleep(100_000)
            raise RuntimeError("planted")
        return step(self, *args)

    def broken_search(self, *args, **kwargs):
        if distributed.rank() == 1:
            raise FloatingPointError("planted nan")
        return search(self, *args, **kwargs)

    search = session.Generator.generate
    patch.setattr(session.Updater, "_step", failing)
    if kind == "nan":
        patch.setattr(session.Generator, "generate", broken_search)


def work(job):
    set_up, tear_down = distributed.set_up, distributed.tear_down
    status, left = 0, []
    os.environ |= job.get("environment", {})
    with planted(job["is_double"]) as patch:
        if len(job["commands"]) > 1:  # one process group for all of them
            patch.setattr(distributed, "set_up", lambda *a: None if dist.is_initialized() else set_up(*a))
            patch.setattr(distributed, "tear_down", lambda: left.append(1))
        if job.get("fail"):
            fail(patch, job["fail"])
        for number, command in enumerate(job["commands"]):
            seen = {"in_search": [], "in_update": [], "forwards_with_gradients": 0}
            left.clear()
            with pytest.MonkeyPatch.context() as inner:
                if job.get("seen"):
                    is_alone = number == 0 and os.environ["RANK"] == "1"  # the others must not be needed
                    watch(inner, seen, 3 if is_alone else 0)
                found = status or main([*command, "--distributed"])
            seen |= {"status": found, "num_left": len(left)}
            status = 0 if found == job.get("status", 0) else 1
            if job.get("seen"):
                Path(f"{job['seen']}.{number}.{os.environ['RANK']}.json").write_text(json.dumps(seen))
    tear_down()
    return status


if __name__ == "__main__":
    torch.set_num_threads(1)
    end_process(work(json.loads(Path(sys.argv[1]).read_text())))
