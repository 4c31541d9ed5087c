"""Floating-point operations of an iteration, counted from what it did. They tell a budget that no machine changes.

A multiplication and an addition count as two. Only matrix products are counted, as in the customary 2 N a token forward
and 4 N backward (Kaplan et al. 2020, section 2.1).
"""

from __future__ import annotations

from dataclasses import dataclass

from tinyzero_astar.resources.workload import Shapes
from tinyzero_astar.rollout.value_model import CHILD_RANK, PATH_SIZE


@dataclass(frozen=True)
class Operations:
    """Of a language model and its value model.

    Args:
        shapes: of the language model.
        value_hidden_size: of the value model, None where the algorithm trains none.
    """

    shapes: Shapes
    value_hidden_size: int | None

    def forward(self, num_tokens: float, context: float) -> float:
        """Of the language model, num_tokens (2 N + 4 L D c).

        N are the parameters of the layers and of the head, L the layers, D the width of all query heads, and c is how
        many positions a token attends to, on average.
        """
        shapes = self.shapes
        matrices = shapes.num_layers * shapes.layer_parameters + shapes.embedding_parameters
        return num_tokens * (2 * matrices + 4 * shapes.num_layers * shapes.query_size * context)

    def value_forward(self, num_tokens: float, *, all_children: bool = False) -> float:
        """Of the value model. A guided search scores all children of a prefix, everything else one of them."""
        if self.value_hidden_size is None:
            return 0.0
        size = self.value_hidden_size
        children = self.shapes.vocab_size if all_children else 1
        trunk = (self.shapes.hidden_size + PATH_SIZE) * (size + CHILD_RANK)
        return 2 * num_tokens * (trunk + 3 * size + CHILD_RANK * children)

    def search(self, num_tokens: float, context: float, *, is_guided: bool) -> float:
        """Of a search that put so many tokens through the model, prompts included."""
        return self.forward(num_tokens, context) + self.value_forward(num_tokens, all_children=is_guided)

    def update(
        self, num_tokens: float, num_generated: float, context: float, *, value_steps: int, passes: int
    ) -> float:
        """Of an update.

        Args:
            num_tokens: trained on, prompts included, once for each epoch.
            num_generated: those without prompts, which the value model is trained on.
            context: positions that a token attends to, on average.
            value_steps: gradient steps of the value model on all of them.
            passes: forwards that forward and backward are worth, 3 if all weights are trained.
        """
        return passes * self.forward(num_tokens, context) + 3 * value_steps * self.value_forward(num_generated)
