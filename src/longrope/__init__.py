"""LongRoPE as a complete system: find rescale factors, compare them with PI, NTK and YaRN, export the model."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from longrope.data.documents import Document as Document
    from longrope.data.documents import load_documents as load_documents
    from longrope.data.packing import Windows as Windows
    from longrope.data.probes import make_probes as make_probes
    from longrope.data.split import draw as draw
    from longrope.data.split import split as split
    from longrope.embedding import LongRoPE as LongRoPE
    from longrope.errors import LongRopeError as LongRopeError
    from longrope.evaluation.bounded import bound_loss as bound_loss
    from longrope.evaluation.cells import Row as Row
    from longrope.evaluation.items import Item as Item
    from longrope.evaluation.items import mixed as mixed
    from longrope.evaluation.items import needle_items as needle_items
    from longrope.evaluation.items import perplexity_items as perplexity_items
    from longrope.evaluation.loss import token_losses as token_losses
    from longrope.evaluation.objective import ModelObjective as ModelObjective
    from longrope.evaluation.parts import Corpus as Corpus
    from longrope.evaluation.perplexity import compare as compare
    from longrope.evaluation.perplexity import perplexity as perplexity
    from longrope.evaluation.retrieval import score_probes as score_probes
    from longrope.evaluation.side_by_side import Wanted as Wanted
    from longrope.evaluation.side_by_side import side_by_side as side_by_side
    from longrope.evaluation.windows import sliding_losses as sliding_losses
    from longrope.export.check import check_parity as check_parity
    from longrope.export.huggingface import export_huggingface as export_huggingface
    from longrope.extension.factors import find_factors as find_factors
    from longrope.extension.finetune import finetune as finetune
    from longrope.extension.pipeline import extend as extend
    from longrope.extension.plan import Plan as Plan
    from longrope.extension.plan import load_plan as load_plan
    from longrope.extension.run import Run as Run
    from longrope.extension.run import begin as begin
    from longrope.extension.stages import Finetune as Finetune
    from longrope.models.generation import generating as generating
    from longrope.models.load import load as load
    from longrope.models.patch import attach as attach
    from longrope.models.patch import patch as patch
    from longrope.models.spread import spread as spread
    from longrope.reading.factors import load_factors as load_factors
    from longrope.rope import Rope as Rope
    from longrope.scaling import Extension as Extension
    from longrope.scaling import Scaling as Scaling
    from longrope.schemes import SCHEMES as SCHEMES
    from longrope.schemes import attention_factor as attention_factor
    from longrope.schemes import resonance as resonance
    from longrope.schemes import scheme as scheme
    from longrope.search.budget import Budget as Budget
    from longrope.search.methods import METHODS as METHODS
    from longrope.search.space import Space as Space

_HOMES = {
    "data.documents": ("Document", "load_documents"),
    "data.packing": ("Windows",),
    "data.probes": ("make_probes",),
    "data.split": ("draw", "split"),
    "embedding": ("LongRoPE",),
    "errors": ("LongRopeError",),
    "evaluation.bounded": ("bound_loss",),
    "evaluation.cells": ("Row",),
    "evaluation.items": ("Item", "mixed", "needle_items", "perplexity_items"),
    "evaluation.loss": ("token_losses",),
    "evaluation.objective": ("ModelObjective",),
    "evaluation.parts": ("Corpus",),
    "evaluation.perplexity": ("compare", "perplexity"),
    "evaluation.retrieval": ("score_probes",),
    "evaluation.side_by_side": ("Wanted", "side_by_side"),
    "evaluation.windows": ("sliding_losses",),
    "export.check": ("check_parity",),
    "export.huggingface": ("export_huggingface",),
    "extension.factors": ("find_factors",),
    "extension.finetune": ("finetune",),
    "extension.pipeline": ("extend",),
    "extension.plan": ("Plan", "load_plan"),
    "extension.run": ("Run", "begin"),
    "extension.stages": ("Finetune",),
    "models.generation": ("generating",),
    "models.load": ("load",),
    "models.patch": ("attach", "patch"),
    "models.spread": ("spread",),
    "reading.factors": ("load_factors",),
    "rope": ("Rope",),
    "scaling": ("Extension", "Scaling"),
    "schemes": ("SCHEMES", "attention_factor", "resonance", "scheme"),
    "search.budget": ("Budget",),
    "search.methods": ("METHODS",),
    "search.space": ("Space",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__version__ = "0.1.0"
__all__ = sorted(_HOME_OF)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    """Import what is asked for when it is asked for: torch only with the first name that needs it."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'longrope' has no attribute {name!r}")
    return getattr(importlib.import_module(f"longrope.{_HOME_OF[name]}"), name)
