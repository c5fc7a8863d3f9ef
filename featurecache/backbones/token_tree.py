"""Several continuations of one text as a tree of tokens: what they begin with alike is there, and computed, once.

Questions after the same video, or all lists of activities that an answer may be, run as one sequence whose tokens see
their own branch alone. That equals running each continuation by itself, and needs no padding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenTree:
    """Nodes in an order in which each stands after its parent.

    Attributes:
        tokens: Token id of each node.
        parents: Each node's parent; -1 directly behind what is continued.
        ends: The node at which each of the sequences ends.
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    ends: tuple[int, ...]

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]]) -> "TokenTree":
        """The tree of non-empty sequences of token ids."""
        tokens: list[int] = []
        parents: list[int] = []
        node_of: dict[tuple[int, int], int] = {}
        ends = []
        for sequence in sequences:
            at = -1
            for token in sequence:
                if (at, token) not in node_of:
                    node_of[at, token] = len(tokens)
                    tokens.append(token)
                    parents.append(at)
                at = node_of[at, token]
            ends.append(at)
        return cls(tuple(tokens), tuple(parents), tuple(ends))

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """Nodes above each node."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(0 if parent < 0 else depths[parent] + 1)
        return tuple(depths)

    @cached_property
    def visible(self) -> Tensor:
        """Which nodes each node sees: itself and those above it, shape (nodes, nodes), bool."""
        seen = torch.eye(len(self.tokens), dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                seen[node] |= seen[parent]
        return seen

    @cached_property
    def children(self) -> Tensor:
        """Children of each node, shape (nodes, most children), filled up by -1."""
        found: list[list[int]] = [[] for _ in self.tokens]
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                found[parent].append(node)
        most = max(1, *map(len, found))
        return torch.tensor([own + [-1] * (most - len(own)) for own in found])

    def path(self, sequence: int) -> list[int]:
        """Nodes of a sequence from the first to the one at which it ends."""
        nodes, at = [], self.ends[sequence]
        while at >= 0:
            nodes.append(at)
            at = self.parents[at]
        return nodes[::-1]
