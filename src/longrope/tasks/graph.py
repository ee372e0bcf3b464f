"""Draft of graph walks: the nodes that lie two steps from a node of a long list of edges."""

from __future__ import annotations

from functools import partial

import numpy as np

from longrope.tasks.needle_task import NeedleDraft
from longrope.tasks.words import letters

HEXADECIMAL = "0123456789abcdef"
CHILDREN = 2  # edges that leave the asked node, and each of the nodes after it
EXAMPLE = """Example of a list of edges:
uvwx -> alke
abcd -> uvwx
abcd -> efgh
efgh -> zuoi
uvwx -> mnop
Question: Which nodes lie exactly two steps from node abcd?
Answer: The nodes are alke, zuoi, mnop

"""
_names = partial(letters, size=10, alphabet=HEXADECIMAL)


def random_edge(rng: np.random.Generator) -> str:
    """Return an edge between two new nodes."""
    return _edge(*_names(rng, 2))


def graph_walks(rng: np.random.Generator, depth: float) -> NeedleDraft:
    """Draft a walk (OpenAI's GraphWalks): a breadth-first search of two steps in a list of edges, in our words.

    Args:
        rng: Generator of the nodes and depths.
        depth: Depth of the first edge.
    """
    root, *nodes = _names(rng, 1 + CHILDREN + CHILDREN**2)
    middle, leaves = nodes[:CHILDREN], nodes[CHILDREN:]
    edges = [(root, node) for node in middle]
    edges += [(middle[i // CHILDREN], leaf) for i, leaf in enumerate(leaves)]
    return NeedleDraft(
        "Below is a list of the edges of a directed graph.\n",
        tuple(_edge(*edge) for edge in edges),
        (depth, *rng.random(len(edges) - 1)),
        f"\nQuestion: Which nodes lie exactly two steps from node {root}?",
        tuple(leaves),
        keys=(root, *nodes),
        prefix="Answer: The nodes are",
        example=EXAMPLE,
    )


def _edge(source: str, target: str) -> str:
    return f"{source} -> {target}\n"
