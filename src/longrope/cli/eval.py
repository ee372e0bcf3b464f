"""``longrope eval``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longrope.cli import distributed, eval_output, options
from longrope.cli.eval_inputs import (
    check_rows,
    claim_results,
    compared_rows,
    harness_parts,
    parse_depths,
    read_corpora,
    read_probes,
)
from longrope.cli.progress import parts_bar
from longrope.errors import LongRopeError
from longrope.units import parse_length, parse_lengths

if TYPE_CHECKING:
    from longrope.evaluation.runner import SampleStore


def run(
    model: options.Model,
    lengths: Annotated[str, typer.Option(help="Lengths by commas: 8k,16k; schemes aim at the longest.")],
    scaling: Annotated[
        list[str] | None, typer.Option(help="Factors file or run folder (with its weights); may be repeated.")
    ] = None,
    checkpoint: Annotated[
        list[str] | None, typer.Option(help="Another model, as it is: its own rope scaling; may be repeated.")
    ] = None,
    schemes: Annotated[str, typer.Option(help="Schemes by commas, or none.")] = "pi,ntk,yarn,heuristic",
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Folder for results.json and cells.jsonl.")] = (
        None
    ),
    data: Annotated[list[str] | None, typer.Option(help="As of search; may be repeated: several corpora.")] = None,
    documents: Annotated[int, typer.Option(min=1, help="Test documents of each corpus.")] = 4,
    data_seed: options.Seed = 0,
    stride: Annotated[
        str | None, typer.Option(help="Also perplexity in windows of each length that move by so many tokens.")
    ] = None,
    key_tokens: Annotated[
        str | None,
        typer.Option(help="Also perplexity of key tokens (LongPPL), picked by this row, such as original."),
    ] = None,
    retrieval: Annotated[
        str | None, typer.Option(help="Tasks by commas (recall,passkey,niah_single_1 …), or all.")
    ] = None,
    retrieval_lengths: Annotated[str | None, typer.Option(help="Of the tasks; the lengths if not given.")] = None,
    trials: Annotated[int, typer.Option(min=1, help="Texts of each task at each length.")] = 20,
    depths: Annotated[str, typer.Option(help="Where needles lie, from 0 (beginning) to 1 (end), in turn.")] = (
        "0,0.25,0.5,0.75,1"
    ),
    tasks: Annotated[
        str | None, typer.Option(help="Tasks of lm-evaluation-harness by commas ('longrope[lm-eval]').")
    ] = None,
    task_folder: Annotated[Path | None, typer.Option(help="Folder of tasks of your own for it (YAML).")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Most documents of each of --tasks.")] = None,
    batch: options.Batch = 1,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    cache: options.Cache = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue; rows may be added.")] = False,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Compare schemes, factors and checkpoints on test documents: perplexity, retrieval, benchmark tasks.

    No search that was given the same --data and --data-seed has seen them. longrope report makes a page of it.
    Started by torchrun, all processes run each pass together.
    """
    wanted, step = parse_lengths(lengths), None if stride is None else parse_length(stride, "stride")
    if first := distributed.first():
        claim_results(output, resume=resume, overwrite=overwrite)
    if tasks is not None and distributed.count() > 1:
        raise LongRopeError("tasks: lm-evaluation-harness runs in one process; leave --tasks out of this launch")

    from longrope.evaluation.evaluate import EvalSpec, evaluate
    from longrope.evaluation.runner import JOURNAL
    from longrope.models.load import load_config, load_tokenizer
    from longrope.provenance import provenance
    from longrope.rope import Rope
    from longrope.storage.atomic import write_json

    rope, tokenizer = Rope.of(load_config(model)), load_tokenizer(model)
    rows = compared_rows(model, rope, wanted[-1], schemes, scaling or [], checkpoint or [])
    on = options.choose_device(device)
    distributed.take_device(on)
    check_memory = partial(check_rows, rows, tokenizer, wanted[-1], batch=batch, device=on)
    recorded = options.recorded_dtype(output / JOURNAL) if output is not None and resume else None
    dtype = options.choose_dtype(dtype, model, on, lambda dtype: check_memory(dtype=dtype), recorded=recorded)
    check_memory(dtype=dtype)
    if key_tokens is not None and key_tokens not in rows:
        raise LongRopeError(f"key_tokens = {key_tokens!r} is no row; choose one of {', '.join(rows)}")
    sources = data or [options.default_data(model, None)]
    corpora = read_corpora(sources, tokenizer, wanted[-1], documents, data_seed, cache)
    at = parse_lengths(retrieval_lengths, "retrieval_lengths") if retrieval_lengths else wanted
    if at[-1] > wanted[-1]:
        raise LongRopeError(f"retrieval_lengths = {at[-1]} is above the longest of lengths, {wanted[-1]}; add it there")
    how = {"trials": trials, "depths": parse_depths(depths), "seed": data_seed}
    probes = read_probes(retrieval, at, tokenizer, corpora[0].tokens, **how)
    what = EvalSpec(wanted, stride=step, key_tokens=key_tokens, retrieval=probes, batch=batch)
    more = harness_parts(tasks, task_folder, limit=limit, batch=batch, length=wanted[-1])
    settings: dict[str, Any] = {"model": model, "dtype": dtype, "data": {one.name: one.hash for one in corpora}}
    settings |= {"lengths": wanted, "stride": step, "key_tokens": key_tokens, "depths": how["depths"]}
    settings |= {"seed": data_seed, "task_folder": task_folder and str(task_folder), "limit": limit}
    where, silent = output if first else None, as_json or not first
    read = settings | {"factors": {name: row.as_record() for name, row in rows.items()}, "batch": batch}
    read |= {"documents": documents, "trials": trials, "retrieval": [(*key, len(one)) for key, one in probes.items()]}
    with distributed.joined(on), kept(where, settings, resume=resume) as cells, parts_bar(quiet=silent) as tell:
        distributed.agree(read)
        record = evaluate(
            rows,
            corpora,
            what,
            rope=rope,
            open_model=partial(distributed.open_model, dtype=dtype, device=on),
            cells=cells,
            more=more,
            tell=partial(tell, "eval"),
        )
        record = {"model": model, "dtype": dtype, **record, "provenance": provenance(on) | distributed.told()}
        if where is not None:
            write_json(where / "results.json", record)
    if first:
        options.tell(record, as_json=as_json, text=lambda: eval_output.describe(record, rope, output))


@contextmanager
def kept(output: Path | None, settings: dict[str, Any], *, resume: bool) -> Iterator[SampleStore]:
    """The cells that a folder holds, which no other process may use meanwhile; without a folder, none.

    Of processes that evaluate together, all get those that the first one has.
    """
    from longrope.evaluation.runner import JOURNAL, SampleStore
    from longrope.storage.jsonl import JsonlFile
    from longrope.storage.lock import locked

    if output is None:
        found = distributed.same([])
        if found is None:  # and the first one says why
            raise typer.Exit(2)
        yield SampleStore(found=found)
        return
    with ExitStack() as opened:
        try:
            opened.enter_context(locked(output))
            for name in () if resume else (JOURNAL, "results.json"):
                (output / name).unlink(missing_ok=True)
            lines = JsonlFile(output / JOURNAL, settings, of="an evaluation", resume=resume)
            opened.enter_context(closing(lines))
            cells = SampleStore(lines)
        except LongRopeError:
            distributed.same(None)
            raise
        distributed.same(lines.found)
        yield cells
