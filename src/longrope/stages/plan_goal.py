"""The conditions of a plan that is chosen by hours: model, device, documents, length and time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from longrope.cost.device_speed import DeviceSpeed
from longrope.cost.model_shape import ModelShape
from longrope.rope import Rope
from longrope.stages.plan import Plan
from longrope.stages.plan_cost import part_costs
from longrope.stages.plan_tables import Data

USED = 0.8  # of the time that the estimate may fill; the rest is for export, and for an estimate that is too low
OVERHEAD = 15.0  # seconds of every run: loading documents and models, the report
MEMORY = 0.9  # of the free memory


@dataclass(frozen=True)
class Machine:
    """A model on a device, as far as costs depend on it.

    Args:
        shape: The model's sizes, in the dtype of searches and evaluations.
        speeds: Speeds of the device by dtype.
        memory: Free bytes on the device; None if unknown.
        main_memory: Free bytes of main memory; None if unknown.
        train_dtype: Dtype of the products in fine-tuning.
        sparse: Whether the model trains on sparse windows.
        lora: Whether LoRA can be used (the package ``peft``).
        weights: ``plain``; or quantised, and then an adapter can be trained beside them (``adapted``) or nothing
            (``fixed``), and no checkpoint of them is written.
    """

    shape: ModelShape
    speeds: Mapping[str, DeviceSpeed]
    memory: int | None = None
    main_memory: int | None = None
    train_dtype: Literal["bfloat16", "float32"] = "float32"
    sparse: bool = True
    lora: bool = True
    weights: Literal["plain", "adapted", "fixed"] = "plain"


@dataclass(frozen=True)
class Texts:
    """The documents that there are.

    Args:
        test: Number of test documents of the target length.
        search: Number of documents of the target length to search on, and of as many others that choose.
        questions: Most questions of retrieval that one text of the target length has room for.
        training_tokens: Tokens of the training documents.
        recovery: Whether there are documents for the search for short factors, beside those of the training.
    """

    test: int = 8
    search: int = 4
    questions: int = 20
    training_tokens: float = float("inf")
    recovery: bool = True


@dataclass(frozen=True)
class Goal:
    """What a plan is chosen for.

    Args:
        rope: Geometry of the model.
        length: Target length in tokens.
        seconds: Time that the run may take.
        machine: The model on its device.
        start: Closed form to start from.
        texts: Numbers of documents.
        data: Table of the documents.
        spent: Seconds of that time which have passed.
        original_length: L0 in tokens that the plan names; None if it is the checkpoint's own.
    """

    rope: Rope
    length: int
    seconds: float
    machine: Machine
    start: str = "yarn"
    texts: Texts = field(default_factory=Texts)
    data: Data = field(default_factory=Data)
    spent: float = 0.0
    original_length: int | None = None

    @property
    def budget(self) -> float:
        """Seconds that the steps of a plan may take by their estimate."""
        return USED * (self.seconds - self.spent) - OVERHEAD

    def cost(self, plan: Plan, step: str = "") -> float:
        """Return the estimated seconds of a plan's steps, or of one of them by its name."""
        steps = part_costs(plan, self.machine.shape, self.rope)
        return sum(each.seconds(self.machine.speeds) for each in steps if step in ("", each.name))

    def has_memory(self, plan: Plan) -> bool:
        """Return whether each step of a plan fits into the memory."""
        device, main = self.machine.memory, self.machine.main_memory
        return all(
            (device is None or step.memory <= MEMORY * device) and (main is None or step.main_memory <= MEMORY * main)
            for step in part_costs(plan, self.machine.shape, self.rope)
        )
