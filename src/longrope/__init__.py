"""LongRoPE as a complete system: find rescale factors, compare them with PI, NTK and YaRN, export the model."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from longrope.data.documents import Document as Document
    from longrope.data.documents import load_documents as load_documents
    from longrope.data.training_windows import TrainingWindows as TrainingWindows
    from longrope.data.weighted_text import WeightedText as WeightedText
    from longrope.data.weighted_text import needle_texts as needle_texts
    from longrope.data.weighted_text import perplexity_texts as perplexity_texts
    from longrope.errors import LongRopeError as LongRopeError
    from longrope.evaluation.evaluate import evaluate as evaluate
    from longrope.evaluation.options import EvalOptions as EvalOptions
    from longrope.evaluation.perplexity import perplexity as perplexity
    from longrope.evaluation.registry import MEASUREMENTS as MEASUREMENTS
    from longrope.evaluation.results import EvalResults as EvalResults
    from longrope.export.apply import apply as apply
    from longrope.export.apply import detach as detach
    from longrope.export.exporter import ExportOptions as ExportOptions
    from longrope.export.parity import check_parity as check_parity
    from longrope.export.registry import export as export
    from longrope.export.trainer_callback import LongRopeCallback as LongRopeCallback
    from longrope.formats.load_factors import load_factors as load_factors
    from longrope.longcontext.context_parallel import context_parallel as context_parallel
    from longrope.longcontext.token_losses import token_losses as token_losses
    from longrope.longcontext.training_loss import use_chunked_loss as use_chunked_loss
    from longrope.models.generation import generating as generating
    from longrope.models.load import load as load
    from longrope.models.patch import patch as patch
    from longrope.models.rotary_embedding import LongRoPE as LongRoPE
    from longrope.objectives.model_loss import ModelObjective as ModelObjective
    from longrope.objectives.search_model import search as search
    from longrope.report.report import report as report
    from longrope.rope import Rope as Rope
    from longrope.scaling import Extension as Extension
    from longrope.scaling import Scaling as Scaling
    from longrope.scheme_modifiers import cope as cope
    from longrope.scheme_modifiers import resonance as resonance
    from longrope.schemes import SCHEMES as SCHEMES
    from longrope.schemes import attention_factor as attention_factor
    from longrope.schemes import scheme as scheme
    from longrope.search.budget import Budget as Budget
    from longrope.search.find import find_factors as find_factors
    from longrope.search.method import Method as Method
    from longrope.search.options import SearchOptions as SearchOptions
    from longrope.search.protocol import CandidateBatch as CandidateBatch
    from longrope.search.protocol import FunctionObjective as FunctionObjective
    from longrope.search.registry import METHODS as METHODS
    from longrope.search.run import SearchResult as SearchResult
    from longrope.search.space import Space as Space
    from longrope.stages.begin_run import begin_run as begin_run
    from longrope.stages.finetune import finetune as finetune
    from longrope.stages.pipeline import extend as extend
    from longrope.stages.plan import Plan as Plan
    from longrope.stages.plan import load_plan as load_plan
    from longrope.stages.plan_tables import Finetune as Finetune
    from longrope.stages.run_folder import StagedRun as StagedRun

_HOMES = {
    "data.documents": ("Document", "load_documents"),
    "data.training_windows": ("TrainingWindows",),
    "models.rotary_embedding": ("LongRoPE",),
    "errors": ("LongRopeError",),
    "longcontext.training_loss": ("use_chunked_loss",),
    "data.weighted_text": ("WeightedText", "needle_texts", "perplexity_texts"),
    "longcontext.token_losses": ("token_losses",),
    "objectives.model_loss": ("ModelObjective",),
    "objectives.search_model": ("search",),
    "evaluation.perplexity": ("perplexity",),
    "evaluation.registry": ("MEASUREMENTS",),
    "evaluation.results": ("EvalResults",),
    "evaluation.evaluate": ("evaluate",),
    "evaluation.options": ("EvalOptions",),
    "report.report": ("report",),
    "export.exporter": ("ExportOptions",),
    "export.parity": ("check_parity",),
    "export.apply": ("apply", "detach"),
    "export.registry": ("export",),
    "export.trainer_callback": ("LongRopeCallback",),
    "search.find": ("find_factors",),
    "stages.finetune": ("finetune",),
    "stages.pipeline": ("extend",),
    "stages.plan": ("Plan", "load_plan"),
    "stages.begin_run": ("begin_run",),
    "stages.run_folder": ("StagedRun",),
    "stages.plan_tables": ("Finetune",),
    "models.generation": ("generating",),
    "models.load": ("load",),
    "models.patch": ("patch",),
    "longcontext.context_parallel": ("context_parallel",),
    "formats.load_factors": ("load_factors",),
    "rope": ("Rope",),
    "scaling": ("Extension", "Scaling"),
    "scheme_modifiers": ("cope", "resonance"),
    "schemes": ("SCHEMES", "attention_factor", "scheme"),
    "search.budget": ("Budget",),
    "search.method": ("Method",),
    "search.options": ("SearchOptions",),
    "search.protocol": ("CandidateBatch", "FunctionObjective"),
    "search.registry": ("METHODS",),
    "search.run": ("SearchResult",),
    "search.space": ("Space",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__version__ = "0.1.0"
__all__ = sorted(_HOME_OF)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    """Import a public name at its first use, so that torch is loaded with the first name that needs it."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'longrope' has no attribute {name!r}")
    return getattr(importlib.import_module(f"longrope.{_HOME_OF[name]}"), name)


class _Package(ModuleType):
    """The package itself, in which a function keeps its name where a subpackage has the same one (``export``)."""

    def __setattr__(self, name: str, value: object) -> None:
        if name not in _HOME_OF or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
