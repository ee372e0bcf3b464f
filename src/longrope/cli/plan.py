"""``longrope plan``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longrope.cli import options
from longrope.cli import plan_output as printed
from longrope.cost.bfloat16_speed import is_bfloat16_slow
from longrope.errors import LongRopeError
from longrope.units import parse_length

if TYPE_CHECKING:
    from longrope.stages.plan import Plan

UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}


def run(
    model: options.Model,
    to: Annotated[str | None, typer.Option(help="Target length in tokens, such as 2m: a new plan for it.")] = None,
    plan: Annotated[
        str | None, typer.Option(help="Or only the costs of this plan: a file, or the name of a ready-made one.")
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write the plan to this file.")] = None,
    data: options.Data = None,
    train: Annotated[str | None, typer.Option(help="Documents to train on (default: of --data).")] = None,
    original_tokens: Annotated[
        str | None, typer.Option(help="Tokens that the model was trained on: 300b, 2t (default: 20 a parameter).")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure/--no-measure", help="Time this device for some seconds, to tell hours.")
    ] = True,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """A plan for longrope extend that fits the model, and what it costs: tokens, FLOPs, memory, time; and its pitfalls.

    The plan is for you to edit. It goes to standard output unless -o is given; the costs go beside it.
    """
    from longrope.storage.atomic import write_text
    from longrope.storage.lock import claim_output

    wanted = None if to is None else parse_length(to, "to")
    tokens = None if original_tokens is None else parse_count(original_tokens)
    given = {"--to": to, "-o": output, "--data": data, "--train": train, "--original-tokens": original_tokens}
    only_costs([name for name, value in given.items() if value is not None], plan)
    if output is not None:
        claim_output(output, overwrite=overwrite)

    from longrope.cost.model_shape import ModelShape
    from longrope.cost.plan_cost import check_plan_memory
    from longrope.models.load import load_config
    from longrope.rope import Rope
    from longrope.stages.plan import load_plan
    from longrope.stages.plan_advice import propose
    from longrope.stages.plan_tables import Data

    old, config = None if plan is None else load_plan(plan), load_config(model)
    rope, place = Rope.of(config), options.choose_device(device)
    if old is None:
        assert wanted is not None
        documents = Data(source=data, train=train or ("stdlib" if model == "tiny" and data is None else None))
        parameters = ModelShape.of(config).parameters
        tuned_in = "float32" if place == "cpu" and is_bfloat16_slow() else "bfloat16"
        new = propose(rope, wanted, parameters=parameters, original_tokens=tokens, data=documents, dtype=tuned_in)
        text = heading(rope.original_length, new) + new.to_toml()
    else:
        new, text = old, None
    new.fits(rope)
    dtype = options.choose_dtype(
        dtype, model, place, lambda dtype: check_plan_memory(new, config, dtype=dtype, device=place)
    )
    report = printed.report(new, config, place, dtype=dtype, measure=measure)
    if output is not None and text is not None:
        write_text(output, text)
        typer.echo(f"Plan: {output}", err=True)

    def show() -> None:
        shown = text is not None and output is None
        if shown:
            typer.echo(text, nl=False)
        printed.show(report, f"{model}: {rope.original_length:,} to {new.length:,} tokens on {place}", err=shown)

    record = {"model": model, "device": place, "plan": new.model_dump(mode="json"), **printed.as_record(report)}
    options.tell(record, as_json=as_json, text=show)


def only_costs(given: list[str], plan: str | None) -> None:
    """See that there is either a target or a plan, and nothing that a plan says itself.

    Raises:
        LongRopeError: if not.
    """
    if plan is None and "--to" not in given:
        raise LongRopeError("to is missing: give --to LENGTH, such as --to 2m, or --plan for the costs of a plan")
    if plan is not None and given:
        raise LongRopeError(f"plan = {plan!r} says all itself: drop {', '.join(given)}, or edit the file")


def parse_count(text: str) -> float:
    """A number of tokens of a whole training: k, m, b and t are powers of 1000 here.

    >>> parse_count("2t"), parse_count("1.5B"), parse_count("17000000")
    (2000000000000.0, 1500000000.0, 17000000.0)
    """
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?)([kmbt]?)", text.strip().lower())
    count = float(match[1]) * UNITS[match[2]] if match else 0.0
    if not count:
        raise LongRopeError(f"original_tokens = {text!r} is no number of tokens; write 300b, 2t or 17000000")
    return count


def heading(original_length: int, plan: Plan) -> str:
    """What the file says of itself."""
    told = "taken to be 20 a parameter (--original-tokens tells)" if plan.original_tokens is None else "as told"
    return (
        f"# {options.command_line()}\n"
        f"# From {original_length} to {plan.length} tokens ({plan.length / original_length:g}x). Edit, then:\n"
        "# longrope extend MODEL THIS_FILE -o RUN\n"
        f"# Each stage that fine-tunes trains on about 5% of the model's original tokens, {told}.\n"
        "# Lengths and tokens: k is 1024, m is 1024^2, g is 1024^3.\n"
    )
