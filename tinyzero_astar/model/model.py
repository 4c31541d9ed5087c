"""The policy, a Hugging Face causal language model with a value model on its last hidden state.

Completions are scored as trees of prefixes. A prefix that completions of a problem share goes through the model once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tinyzero_astar.engine.cuda_graphs import Recorder
from tinyzero_astar.engine.decoder import HiddenFn, Scores
from tinyzero_astar.engine.fast_decode import FastDecode, is_supported
from tinyzero_astar.engine.fused_decode import Forward, FusedDecode, can_fuse
from tinyzero_astar.engine.slot_cache import SlotCache, Visible
from tinyzero_astar.interfaces import ChildTerms, PrefixTrees
from tinyzero_astar.model.adapters import has_adapters, without_adapters
from tinyzero_astar.model.decoder_layers import decoder_layers, recomputed
from tinyzero_astar.model.fsdp_utils import Sharding, like, shard, whole
from tinyzero_astar.model.token_logp import CHUNK_ELEMENTS, Head, next_logits, token_logp
from tinyzero_astar.rollout.value_model import ValueModel, path_before
from tinyzero_astar.search.heuristic import f_score, soft_value, tilt_of


class Visited(NamedTuple):
    """What the value model needs to know of E prefixes and of a token after each. Nothing in it has a gradient."""

    hidden: Tensor  # [E, D] the policy's last hidden state
    path: Tensor  # [E, 3] see `interfaces.Decoder.step`
    token: Tensor  # [E] that follows
    logp: Tensor  # [E] log pi of that token
    scored: Tensor  # [B, T] which of the E each token of a completion is, see `interfaces.PrefixTrees`


class TokenScores(NamedTuple):
    """Per generated token, [B, T] each. See the alignment rule in `interfaces`."""

    logp: Tensor  # natural log-probability of the token
    entropy: Tensor  # nats, of the distribution that the token was drawn from
    visited: Visited  # the prefixes before the tokens


class ValueScores(NamedTuple):
    """Per generated token, [B, T] each."""

    value_logit: Tensor  # accuracy, of the prefix before the token
    baseline: Tensor
    child_logit: Tensor  # accuracy, of the prefix with the token


class OwnDecode:
    """Decoding by the model's own forward. Implements `engine.decoder.HiddenFn`."""

    reads_lengths = False

    def __init__(self, forward: Forward) -> None:
        self._forward = forward

    def __call__(self, ids: Tensor, position_ids: Tensor, seen: Tensor | Visible, cache: SlotCache) -> Tensor:
        """See `engine.decoder.HiddenFn`."""
        if isinstance(seen, Visible):
            shape = len(ids), 1, 1, cache.get_seq_length()
            mask = seen.mask(shape[-1])
            # No mask would mean a causal one, which takes the first row's length for everybody's.
            seen = torch.ones(shape, dtype=torch.bool, device=ids.device) if mask is None else mask
        return self._forward(ids, position_ids, seen, cache)


class Policy(nn.Module):
    """pi and its value model. Implements `engine.decoder.Network`.

    Args:
        language_model: any Hugging Face causal language model with full attention.
        eos_ids: the tokens that end a completion. The first of them pads.
        value_hidden_size: width of the value model's MLP.
        textless: ids that stand for no text, such as rows that pad an embedding. They are never generated.
    """

    def __init__(
        self,
        language_model: PreTrainedModel,
        eos_ids: tuple[int, ...],
        value_hidden_size: int,
        textless: Collection[int] = (),
    ) -> None:
        super().__init__()
        self.language_model = language_model
        self.eos_ids = eos_ids
        self.dtype = language_model.dtype  # of weights and activations, shards hold float32
        self.recorder: Recorder | None = None  # of decode steps
        # transformers 5.24 renamed the argument. The old name warns there, and older versions do not know the new one.
        is_renamed = "cache" in signature(language_model.base_model.forward).parameters
        self._cache_argument = "cache" if is_renamed else "past_key_values"
        self.gradient_checkpointing = False  # whether `token_scores` with gradients recomputes the decoder layers
        config = language_model.config.get_text_config()
        self.num_layers: int = config.num_hidden_layers
        num_rows = language_model.get_output_embeddings().weight.shape[0]
        self.vocab_size = max(set(range(num_rows)).difference(textless)) + 1  # what lies beyond is not even scored
        never = torch.tensor(sorted(x for x in textless if x < self.vocab_size), dtype=torch.int64, device="cpu")
        self._never: Tensor
        self.register_buffer("_never", never, persistent=False)
        self._logit_cap: float | None = getattr(config, "final_logit_softcapping", None)  # Gemma 2's
        self.value_model = ValueModel(config.hidden_size, value_hidden_size, self.vocab_size)

    @property
    def textless(self) -> list[int]:
        """Ids of the language model that are never generated."""
        num_rows = self.language_model.get_output_embeddings().weight.shape[0]
        return [*self._never.tolist(), *range(self.vocab_size, num_rows)]

    @property
    def linear_cost(self) -> float:
        """Operations of a layer's matrices at one position, over those of its attention between two positions."""
        layer = sum(p.numel() for p in decoder_layers(self.language_model)[0].parameters())
        width: int = self.language_model.config.get_text_config().hidden_size
        return layer / (2 * width)

    @property
    def device(self) -> torch.device:
        """Where the language model's weights live."""
        weight: Tensor = self.language_model.get_input_embeddings().weight
        return weight.device

    def hidden(self, ids: Tensor, position_ids: Tensor, attention_mask: Tensor | None, cache: Any) -> Tensor:
        """Last hidden states [N, Q, D]. The mask is [N, 1, Q, L], boolean or added to scores. None means causal."""
        output = self.language_model.base_model(
            input_ids=ids,
            position_ids=position_ids,
            attention_mask=attention_mask,
            use_cache=cache is not None,
            **{self._cache_argument: cache},
        )
        hidden: Tensor = output.last_hidden_state
        return hidden

    def decoding_fn(self, num_positions: int) -> HiddenFn:
        """See `engine.decoder.Network.decoding_fn`. It is a fast path where that is known to be equal."""
        model = self.language_model
        if can_fuse(model):
            from tinyzero_astar.engine import decode_kernels  # needs Triton

            return FusedDecode(model, num_positions, self.hidden, decode_kernels)
        return FastDecode(model, num_positions) if is_supported(model) else OwnDecode(self.hidden)

    def score(self, hidden: Tensor, path: Tensor) -> Scores:
        """Next-token logits and values, at least float32, see `engine.decoder.Network.score`."""
        value = self.value_model(hidden, path)
        accuracy, baseline = _at_least_float32(value.accuracy), _at_least_float32(value.baseline)
        return Scores(next_logits(hidden, self._head), accuracy, baseline, value.features)

    def score_children(self, scores: Scores, logp: Tensor) -> Tensor:
        """Value logits of all children, [N, V], at least float32, see `engine.decoder.Network.score_children`."""
        value_logit = scores.value_logit.to(scores.features.dtype)
        return _at_least_float32(self.value_model.child_logits(scores.features, value_logit, logp))

    def score_child_terms(self, scores: Scores) -> ChildTerms:
        """See `engine.decoder.Network.score_child_terms`. At least float32."""
        terms = self.value_model.child_terms(scores.features, scores.value_logit)
        return ChildTerms(*(_at_least_float32(x) for x in terms))

    def score_child(self, scores: Scores, row: Tensor, token: Tensor, logp: Tensor) -> Tensor:
        """See `engine.decoder.Network.score_child`. At least float32."""
        features = scores.features[row]
        value_logit = torch.take(scores.value_logit, row).to(features.dtype)
        return _at_least_float32(self.value_model.child_logit_of(features, value_logit, token, logp))

    def forward(self, trees: PrefixTrees) -> TokenScores:
        """`token_scores` for training. Sharding gathers its weights for `forward`."""
        return self.token_scores(trees)

    @property
    def has_adapters(self) -> bool:
        """Whether adapters are trained, and the language model is frozen."""
        return has_adapters(self.language_model)

    @contextmanager
    def base(self) -> Iterator[None]:
        """Inside, the policy is the reference, which is its base without adapters. Only where there are adapters."""
        assert self.has_adapters
        with without_adapters(self.language_model):
            yield

    def token_scores(self, trees: PrefixTrees) -> TokenScores:
        """Scores of generated tokens by one forward over trees of prefixes."""
        before = self._visited(trees)
        logp, entropy = token_logp(before, self._head, trees.token)
        of_tokens, constant = trees.by_completion(logp), logp.detach()
        path = path_before(trees.by_completion(constant)).flatten(0, 1).index_select(0, trees.cell)
        visited = Visited(before.detach(), path, trees.token, constant, trees.scored)
        return TokenScores(of_tokens, trees.by_completion(entropy), visited)

    def value_scores(self, visited: Visited) -> ValueScores:
        """What the value model says of prefixes that were visited."""
        value = self.value_model(visited.hidden, visited.path)
        child = self.value_model.child_logit_of(value.features, value.accuracy, visited.token, visited.logp)
        return ValueScores(*(x[visited.scored] for x in (value.accuracy, value.baseline, child)))

    @torch.no_grad()
    def begin_value_at(self, logit: float) -> None:
        """Make the value model predict this success wherever it has learned nothing. All ranks call it."""
        bias = self.value_model.output.bias
        start = whole(bias).clone()
        start[0] = logit
        bias.copy_(like(bias, start))

    @torch.no_grad()
    def kl_to_base(self, trees: PrefixTrees) -> Tensor:
        """The divergence from the base at the prefix s before each generated token, [B, T], nats.

            sum_a pi(a|s) (log pi(a|s) - log base(a|s))

        It is exact, a sum over the whole vocabulary. It costs a forward of each model.
        """
        own = self._visited(trees)
        with self.base():
            base = self._visited(trees)
        size = max(1, CHUNK_ELEMENTS // self.vocab_size)
        pairs = zip(own.split(size), base.split(size), strict=True)
        found = [_kl_divergence(next_logits(p, self._head), next_logits(q, self._head)) for p, q in pairs]
        return trees.by_completion(torch.cat(found))

    @torch.no_grad()
    def bellman_residual(self, ids: Tensor, prompt_length: int, length: int, inverse_beta: Tensor) -> Tensor:
        """Residual of the Bellman equation at every prefix of one completion, [length], nats.

            delta_t = log sum_a pi(a|s_t) e^h(s_t a) - h(s_t)

        It is zero everywhere for an exact h (P3 of docs/algorithm.md). The logarithm of a weight drifts by its sum.

        Args:
            ids: [1, L] prompt and completion.
            prompt_length: tokens before the completion.
            length: tokens of the completion.
            inverse_beta: scalar, 1/beta of the problem.
        """
        position = torch.arange(ids.shape[1], device=ids.device)[None]
        hidden = self.hidden(ids, position, None, None)[0, prompt_length - 1 : prompt_length - 1 + length]
        logp = torch.log_softmax(next_logits(hidden, self._head), -1)
        taken = logp.gather(-1, ids[0, prompt_length : prompt_length + length, None])[:, 0]
        scores = self.score(hidden, path_before(taken))
        tilt = tilt_of(inverse_beta)
        child_h = soft_value(self.score_children(scores, logp), tilt)
        flow = torch.logsumexp(f_score(logp, child_h), -1)
        return flow - soft_value(scores.value_logit, tilt)

    def shard(self, sharding: Sharding) -> None:
        """Split all weights over the process group, decoder layer by decoder layer. Call it before optimizers exist."""
        if self.dtype == torch.bfloat16:
            for p in self.language_model.parameters():
                if p.requires_grad:  # these shards are masters, and frozen ones stay as small as they are
                    p.data = p.data.float()
        layers = decoder_layers(self.language_model)
        shard(self, layers, [self.value_model], dtype=self.dtype, sharding=sharding)

    def _visited(self, trees: PrefixTrees) -> Tensor:
        """Hidden states [E, D] at the prefix before each scored token, by one forward."""
        is_recomputed = self.gradient_checkpointing and torch.is_grad_enabled()
        # The attention adds its mask to scores, so a boolean one would be converted, and kept, in every layer.
        # It has the dtype of scores. With another one PyTorch's attention on a CPU may give nonsense without an error.
        dtype = self.language_model.get_input_embeddings().weight.dtype
        mask = torch.zeros(trees.is_seen.shape, dtype=dtype, device=trees.ids.device)
        mask.masked_fill_(~trees.is_seen, -torch.inf)
        with recomputed(decoder_layers(self.language_model)) if is_recomputed else nullcontext():
            hidden = self.hidden(trees.ids, trees.position, mask, None)
        return hidden.flatten(0, 1).index_select(0, trees.parent)

    @property
    def _head(self) -> Head:
        module = self.language_model.get_output_embeddings()
        bias: Tensor | None = getattr(module, "bias", None)
        return Head(module.weight, bias, self._logit_cap, self.vocab_size, self._never)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _kl_divergence(logits: Tensor, base_logits: Tensor) -> Tensor:
    """Of softmax distributions [N, V]. The result is [N]."""
    logp, base = (torch.log_softmax(x, -1).clamp(min=-1e4) for x in (logits, base_logits))  # not -inf - -inf
    return (logp.exp() * (logp - base)).sum(-1)
