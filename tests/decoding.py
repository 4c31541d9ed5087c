"""What every policy must pass. Decoding through the slot cache gives the scores of one full forward."""

from __future__ import annotations

from functools import partial

import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from tests.oracles import homes
from tests.trees import scores_of, trees_of
from tinyzero_astar.engine.decoder import SlotDecoder
from tinyzero_astar.interfaces import StepOutput
from tinyzero_astar.rollout.astar_search import Guidance, astar_rollouts


class NoWaiting(TorchDispatchMode):
    """Refuses what makes the CPU wait for a GPU, and so cannot be part of a CUDA graph."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket not in WAITING, f"{func} waits for the GPU"
        is_masked = func.overloadpacket in _INDEXING and any(x is not None and x.dtype == torch.bool for x in args[1])
        assert not is_masked, f"{func} by a mask counts its elements"
        return func(*args, **(kwargs or {}))


class Tape:
    """A recorder for CPUs. It repeats the operations of a work on the tensors that they were done on.

    It is as strict as a CUDA graph. Python does not run in a replay, a tensor made anew for a later step is not seen,
    and nothing may wait for a result.
    """

    def __init__(self):
        self.num_recorded = self.num_replayed = 0

    def record(self, work, kind):
        held = Held(work)
        with NoWaiting():  # the work is done once, as before a capture. More could step past the end of what it fills
            played = make_fx(lambda: _tensors_in(held.first_result()))()
        self.num_recorded += 1

        def replay():
            self.num_replayed += 1
            return held.filled(played())

        return replay


class Held:
    """Results of a work in memory of their own, which every replay writes over, as one of a CUDA graph does."""

    def __init__(self, work):
        self._work, self._result = work, None

    def first_result(self):
        self._result = self._work()
        return self._result

    def filled(self, tensors):
        if not hasattr(self, "_own"):
            self._own = [x.clone() for x in tensors]
            self._result = _with_tensors(self._result, iter(self._own))
        for own, new in zip(self._own, tensors, strict=True):
            own.copy_(new)
        return self._result


class Rerun:
    """A recorder that runs the work anew. It shows whether recording changes what is computed."""

    num_replayed = 0

    def record(self, work, kind):
        held = Held(work)
        held.first_result()

        def replay():
            self.num_replayed += 1
            return held.filled(_tensors_in(work()))

        return replay


def _tensors_in(x):
    """Those of a result, in nested tuples and in the arguments of functions."""
    if isinstance(x, partial):
        x = x.args
    if isinstance(x, tuple):
        return [y for part in x for y in _tensors_in(part)]
    return [x] if isinstance(x, torch.Tensor) else []


def _with_tensors(x, tensors):
    """The same result with other tensors."""
    if isinstance(x, partial):
        return partial(x.func, *_with_tensors(x.args, tensors))
    if isinstance(x, tuple):
        parts = [_with_tensors(part, tensors) for part in x]
        return type(x)(*parts) if hasattr(x, "_fields") else type(x)(parts)
    return next(tensors) if isinstance(x, torch.Tensor) else x


WAITING = {torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.masked_select}
_INDEXING = {torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_}
PROMPTS = [[3, 4, 5], [7, 8, 9, 10, 11, 12], [5], [9, 9, 2, 1]]
LED = [[13, 14, 15, 13, *prompt] for prompt in PROMPTS]  # as worked examples lead
ATOL = 1e-4  # of logits of standard deviation 1 to 3, after some layers in float32. A shaken value model adds to it
COARSE = 0.05  # the same in bfloat16, which keeps 8 bits of every number on the way


def shake_value_model(policy, std=0.5):
    """Zero-initialised outputs would hide a mix-up of rows."""
    for p in policy.value_model.parameters():
        torch.nn.init.normal_(p, std=std)
    return policy


def near(policy, factor=1):
    """How close scores of the policy must be, so many times the tolerance of logits."""
    is_coarse = policy.dtype == torch.bfloat16
    return {"atol": factor * (COARSE if is_coarse else ATOL), "rtol": 0.02 if is_coarse else 1e-4}


@torch.no_grad()
def path_of(policy, prefix, num_prompt):
    """log pi of the last token, of all after the prompt, and of the least likely one."""
    ids = torch.tensor([prefix], device=policy.device)
    logp = policy.language_model(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1)
    own = [float(logp[t - 1, prefix[t]]) for t in range(num_prompt, len(prefix))]
    return (own[-1], sum(own), min(own)) if own else (0.0, 0.0, 0.0)


@torch.no_grad()
def full_forward(policy, prefix, num_prompt):
    """Scores after a prefix by the language model itself, without any cache and with its own head."""
    ids = torch.tensor([prefix], device=policy.device)
    output = policy.language_model(input_ids=ids, use_cache=False, output_hidden_states=True)
    path = torch.tensor([path_of(policy, prefix, num_prompt)], dtype=torch.float64, device=policy.device)
    scores = policy.score(output.hidden_states[-1][:, -1], path)
    children = partial(policy.score_children, scores)
    logits = output.logits[:, -1].to(scores.logits.dtype)
    return StepOutput(logits, scores.value_logit, children, scores.baseline)


def assert_equals_full_forward(policy, output, prefixes):
    """Of pairs of a prompt and what follows it."""
    logp = output.logits.log_softmax(-1)
    every = (output.logits, output.value_logit, output.child_logit(logp), output.baseline)
    rows = torch.arange(len(prefixes), device=policy.device)
    taken = output.taken(rows.flip(0), rows, logp)  # rows in any order
    assert not any(x.requires_grad for x in (*every, taken))
    for row, (prompt, generated) in enumerate(prefixes):
        prefix = [*prompt, *generated]
        full = full_forward(policy, prefix, len(prompt))
        children = full.child_logit(full.logits.log_softmax(-1))
        wanted = (full.logits, full.value_logit, children, full.baseline)
        for name, got, want in zip(output._fields[:4], every, wanted, strict=True):
            torch.testing.assert_close(
                got[row], want[0], **near(policy, 3), msg=lambda m, what=f"{name} of {prefix}": f"{what}: {m}"
            )
        token = len(prefixes) - 1 - row
        torch.testing.assert_close(taken[token], children[0, token], **near(policy, 3))


def step(policy, decoder, content, rows, prompt_of):
    """Rows (token, source, length, target). `content` tracks generated tokens of every slot, which holds a prompt.

    Returns what the decoder says, and the prompt and what follows it of every row.
    """
    held = {target: (*content[source][:length], token) for token, source, length, target in rows}
    pairs = [(prompt_of(target), held[target]) for _, _, _, target in rows]
    path = torch.tensor([path_of(policy, [*a, *b], len(a)) for a, b in pairs], dtype=torch.float64)
    columns = (torch.tensor(x, device=policy.device) for x in zip(*rows, strict=True))
    output = decoder.step(*columns, path.to(policy.device))
    content.update(held)
    return output, pairs


def assert_forks_swaps_and_uneven_lengths_equal_recomputation(policy, prompts=PROMPTS):
    decoder = SlotDecoder(policy, 12)
    assert_equals_full_forward(policy, decoder.start(prompts, homes(len(prompts), 3)), [(p, ()) for p in prompts])
    content = {3 * i: () for i in range(4)}
    plan = [
        [(5, 0, 0, 0), (6, 0, 0, 1), (7, 3, 0, 3), (8, 9, 0, 11)],  # a fork beside an extension
        [(9, 0, 1, 1), (10, 1, 1, 0)],  # two slots swap their prefixes
        [(11, 3, 1, 3)],  # one problem runs ahead
        [(12, 3, 2, 3)],
        [(13, 3, 1, 4), (14, 3, 3, 3), (15, 11, 1, 11)],  # fork from the middle, uneven lengths
        [(16, 4, 2, 4), (17, 1, 2, 2), (18, 3, 4, 3), (19, 11, 2, 9)],
        [(20, 3, 1, 3)],  # a slot goes back to an earlier prefix and on from there
        [(21, 4, 3, 4), (22, 3, 2, 3), (1, 9, 3, 10)],
    ]
    for rows in plan:
        output, prefixes = step(policy, decoder, content, rows, lambda slot: prompts[slot // 3])
        assert_equals_full_forward(policy, output, prefixes)


def assert_recorded_scores_equal_one_full_forward(policy, mode, prompts=PROMPTS):
    rollouts = astar_rollouts(
        SlotDecoder(policy, 10),
        prompts,
        seeds=torch.arange(4),
        num_rollouts=3,
        beam_width=5,
        max_search_depth=10,
        mode=mode,
        guidance=Guidance(inverse_beta=1.0, cap=None),
    )
    assert (rollouts.length > 0).all()
    for i, prompt in enumerate(prompts):
        for k in range(3):
            n = int(rollouts.length[i, k])
            tokens = rollouts.tokens[i, k, :n]
            ids = torch.tensor([[*prompt, *tokens.tolist()]], device=policy.device)
            scores = scores_of(policy, trees_of([prompt], [[tokens.tolist()]], policy.device))
            torch.testing.assert_close(rollouts.logp[i, k, :n].float(), scores.logp[0], **near(policy))
            for got, want in (
                (rollouts.value, torch.sigmoid(scores.value_logit)),
                (rollouts.baseline, scores.baseline),
                (rollouts.child_value, torch.sigmoid(scores.child_logit)),
            ):
                torch.testing.assert_close(got[i, k, :n].float(), want[0], **near(policy))
            own = policy.language_model(input_ids=ids).logits.float().log_softmax(-1)[0, len(prompt) - 1 : -1]
            torch.testing.assert_close(scores.logp[0], own.gather(-1, tokens[:, None])[:, 0], **near(policy))
    return rollouts
