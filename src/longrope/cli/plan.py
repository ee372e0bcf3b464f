"""``longrope plan``."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longrope.cli import options, plan_output
from longrope.cli.layer_notes import check_layers
from longrope.cost.bfloat16_speed import is_bfloat16_slow
from longrope.errors import LongRopeError
from longrope.units import parse_length

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from longrope.stages.plan import Plan
    from longrope.stages.plan_tables import Data

COUNT_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}


def run(
    model: options.Model,
    to: Annotated[str | None, typer.Option(help="Target length in tokens, such as 2m, of a new plan.")] = None,
    plan: Annotated[
        str | None, typer.Option(help="Print only the costs of this plan: a file, or the name of a ready-made one.")
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write the plan to this file.")] = None,
    data: options.Data = None,
    text_key: options.TextKey = None,
    train: Annotated[str | None, typer.Option(help="Documents to train on (default: those of --data).")] = None,
    original_length: options.OriginalLength = None,
    original_tokens: Annotated[
        str | None, typer.Option(help="Tokens that the model was trained on: 300b, 2t (default: 20 a parameter).")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure/--no-measure", help="Time this device for some seconds, to estimate hours.")
    ] = True,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Propose a plan for longrope extend, with its costs (tokens, FLOPs, memory, time) and its pitfalls.

    The plan is for you to edit. It goes to standard output unless -o is given; the costs go to standard error then.
    """
    from longrope.storage.atomic import write_text

    length = None if to is None else parse_length(to, "to")
    tokens = None if original_tokens is None else parse_count(original_tokens)
    decided = options.decided_length(original_length)
    new = {
        "--to": to,
        "-o": output,
        "--overwrite": overwrite or None,
        "--data": data,
        "--text-key": text_key,
        "--train": train,
        "--original-length": original_length,
        "--original-tokens": original_tokens,
    }
    check_options([name for name, value in new.items() if value is not None], plan)
    options.claim_file(output, overwrite=overwrite)

    from longrope.rope import Rope
    from longrope.stages.plan import load_plan
    from longrope.stages.plan_cost import check_plan_memory
    from longrope.stages.plan_tables import Data

    existing = None if plan is None else load_plan(plan)
    config = options.read_config(model, decided if existing is None else existing.original_length)
    rope, device = Rope.of(config), options.choose_device(device)
    if existing is not None:
        proposed, text = existing, None
    else:
        assert length is not None
        train = train or ("stdlib" if model == "tiny" and data is None else None)
        documents = Data(source=data, text_key=text_key, train=train)
        proposed = new_plan(config, length, documents, original_tokens=tokens, device=device)
        proposed = proposed.model_copy(update={"original_length": decided})
        text = heading(model, rope.original_length, proposed, output) + proposed.to_toml()
    proposed.check_fits(rope)
    check_layers(config, proposed.length)
    dtype = options.choose_dtype(
        dtype, config, device, lambda dtype: check_plan_memory(proposed, config, dtype=dtype, device=device)
    )
    report = plan_output.report(proposed, config, device, dtype=dtype, measure=measure)
    if output is not None and text is not None:
        write_text(output, text)
        typer.echo(f"Plan: {output}", err=True)
    printed = text if output is None else None
    title = f"{model}: {rope.original_length:,} to {proposed.length:,} tokens on {device}"
    record = {"model": model, "device": device, "plan": proposed.model_dump(mode="json")}
    record |= plan_output.as_record(report)
    options.tell(record, as_json=as_json, text=lambda: show(printed, report, title))


def show(plan: str | None, report: plan_output.Report, title: str) -> None:
    """Print the file of a plan on standard output and its costs on standard error; only costs if there is no file."""
    if plan is not None:
        typer.echo(plan, nl=False)
    plan_output.show(report, title, err=plan is not None)


def new_plan(
    config: PreTrainedConfig, length: int, documents: Data, *, original_tokens: float | None, device: str
) -> Plan:
    """Propose a plan for a model, in the number format that trains fast on the device.

    Args:
        config: Config of the model.
        length: Target length in tokens.
        documents: Documents of the plan.
        original_tokens: Tokens that the model was trained on; None if they are not known.
        device: Name of the device.
    """
    from longrope.cost.model_shape import ModelShape
    from longrope.longcontext.sparse_attention import why_not_sparse
    from longrope.rope import Rope
    from longrope.stages.plan_advice import propose

    return propose(
        Rope.of(config),
        length,
        parameters=ModelShape.of(config).parameters,
        original_tokens=original_tokens,
        data=documents,
        dtype="float32" if is_bfloat16_slow(device) else "bfloat16",
        sparse=why_not_sparse(config) is None,
    )


def check_options(options_of_new: list[str], plan: str | None) -> None:
    """Check that the command has either a target or a plan, and no option that the plan's file decides.

    Args:
        options_of_new: The options of a new plan that are given, such as --to.
        plan: The plan to cost; None for a new one.

    Raises:
        LongRopeError: If it does not.
    """
    if plan is None and "--to" not in options_of_new:
        raise LongRopeError("to is missing: give --to LENGTH, such as --to 2m, or --plan for the costs of a plan")
    if plan is not None and options_of_new:
        raise LongRopeError(f"plan = {plan!r} says all itself: drop {', '.join(options_of_new)}, or edit the file")


def parse_count(text: str) -> float:
    """Parse the number of tokens of a whole training; k, m, b and t are powers of 1000 here.

    >>> parse_count("2t"), parse_count("1.5B"), parse_count("17000000")
    (2000000000000.0, 1500000000.0, 17000000.0)
    """
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?)([kmbt]?)", text.strip().lower())
    count = float(match[1]) * COUNT_UNITS[match[2]] if match else 0.0
    if not count:
        raise LongRopeError(f"original_tokens = {text!r} is not a number of tokens; write 300b, 2t or 17000000")
    return count


def heading(model: str, original_length: int, plan: Plan, file: Path | None) -> str:
    """Return the comment at the top of a plan's file; without a file, the command in it has a placeholder."""
    estimated = "taken to be 20 a parameter (change it with --original-tokens)"
    source = estimated if plan.original_tokens is None else "as given"
    return (
        f"# {options.command_line()}\n"
        f"# From {original_length} to {plan.length} tokens ({plan.length / original_length:g}x). Edit, then:\n"
        f"# {shlex.join(['longrope', 'extend', model, 'THIS_FILE' if file is None else str(file)])}\n"
        f"# Each stage that fine-tunes trains on 5% of the model's original tokens, {source}, at most 1g.\n"
        "# Lengths and tokens: k is 1024, m is 1024^2, g is 1024^3.\n"
    )
