"""``longrope eval``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longrope.cli import distributed, eval_output, eval_server, options
from longrope.cli.eval_given import check_given, given_options
from longrope.cli.eval_inputs import (
    compared_candidates,
    harness_tasks,
    parse_depths,
    read_corpora,
    read_prompts,
    tell_searched,
)
from longrope.cli.eval_request import EvalRequest, check_candidates, claim_results
from longrope.cli.probe import Timeout
from longrope.cli.progress import parts_bar
from longrope.cli.table_names import listed
from longrope.errors import LongRopeError
from longrope.units import parse_length, parse_lengths

if TYPE_CHECKING:
    from longrope.evaluation.results import EvalResults
    from longrope.evaluation.runner import EvalContext
    from longrope.evaluation.sample_store import SampleStore

TASK_NAMES = listed("longrope.tasks.registry", "TASKS")
QUICK_TRIALS = 10


def run(
    context: typer.Context,
    model: options.Model,
    lengths: Annotated[str, typer.Option(help="Lengths by commas: 8k,16k; schemes aim at the longest.")],
    factors: Annotated[
        list[str] | None, typer.Option(help="Factors file or run folder (with its weights); may be repeated.")
    ] = None,
    checkpoint: Annotated[
        list[str] | None, typer.Option(help="Another model with its own rope scaling; may be repeated.")
    ] = None,
    schemes: Annotated[str, typer.Option(help="Schemes by commas, or none.")] = options.COMPARED_NAMES,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Folder for results.json and cells.jsonl.")] = (
        None
    ),
    data: Annotated[
        list[str] | None, typer.Option(help="Source of documents, as in search; may be repeated: several corpora.")
    ] = None,
    text_key: options.TextKey = None,
    documents: Annotated[int, typer.Option(min=1, help="Test documents of each corpus.")] = 4,
    data_seed: options.SplitSeed = 0,
    stride: Annotated[
        str | None, typer.Option(help="Also perplexity in overlapping windows of each length, this many tokens apart.")
    ] = None,
    key_tokens: Annotated[
        str | None,
        typer.Option(help="Also perplexity of key tokens (LongPPL), chosen by this candidate, such as original."),
    ] = None,
    retrieval: Annotated[str | None, typer.Option(help=f"Retrieval tasks by commas, ruler, all: {TASK_NAMES}.")] = None,
    retrieval_lengths: Annotated[
        str | None, typer.Option(help="Lengths for retrieval tasks (default: --lengths).")
    ] = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="Questions of each retrieval task at each length (default: 50).")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Ten questions of each retrieval task: a first look, not a claim.")
    ] = False,
    questions: Annotated[
        int, typer.Option(min=1, help="Questions that each text is asked; one pass over the text serves them all.")
    ] = 1,
    depths: Annotated[
        str | None,
        typer.Option(help="Depths of the needles, from 0 (beginning) to 1 (end), in turn (default: RULER draws them)."),
    ] = None,
    chat: Annotated[
        str, typer.Option(help="Retrieval prompts in the tokenizer's chat template: auto (if there is one), on or off.")
    ] = "auto",
    ruler_data: Annotated[
        str | None,
        typer.Option(help="Folder of RULER's essays and questions, or hub; without it --data is the haystack."),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(help=r'Tasks of lm-evaluation-harness by commas (pip install "longrope\[lm-eval]").'),
    ] = None,
    task_folder: Annotated[Path | None, typer.Option(help="Folder of your own tasks for the harness (YAML).")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Maximum number of documents of each of --tasks.")] = None,
    measure: Annotated[
        list[str] | None, typer.Option(help="Also this measurement of yours (a row of MEASUREMENTS); may be repeated.")
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(help="Run the retrieval tasks on this server, which speaks OpenAI's protocol, and no model here."),
    ] = None,
    server_model: Annotated[
        str | None, typer.Option(help="Name of the model on --server (default: its only one).")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests to --server at a time.")] = 4,
    timeout: Timeout = 600.0,
    original_length: options.OriginalLength = None,
    batch: options.Batch = 1,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    cache: options.Cache = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue; candidates may be added.")] = False,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Compare schemes, factors and checkpoints on test documents: perplexity, retrieval, benchmark tasks.

    A search with the same --data and --data-seed has not seen these documents. longrope report makes a page of the
    results. If torchrun starts the command, all processes run each pass together. With --server, only the retrieval
    tasks run, on the server: MODEL is then the checkpoint that it serves, whose tokenizer makes the prompts.
    """
    tokens, window_step = parse_lengths(lengths), None if stride is None else parse_length(stride, "stride")
    decided = options.decided_length(original_length)
    chosen_depths = None if depths is None else parse_depths(depths)
    check_given(given_options(context))
    if distributed.first():
        claim_results(output, resume=resume, overwrite=overwrite)
    harness = harness_tasks(tasks, task_folder, limit=limit, batch=batch, length=tokens[-1])

    from longrope.data.stdlib import default_data
    from longrope.evaluation.measurement import EvalSpec
    from longrope.evaluation.registry import check_spec
    from longrope.models.load import load_tokenizer
    from longrope.rope import Rope

    served = eval_server.connect_server(server, server_model, retrieval, timeout=timeout)
    config, tokenizer = options.read_config(model, decided), load_tokenizer(model)
    rope = Rope.of(config)
    if served is not None:
        candidates, device, dtype = eval_server.candidates_of(served), "cpu", ""
    else:
        candidates = compared_candidates(model, rope, tokens, schemes, factors or [], checkpoint or [])
        device = options.choose_device(device)
        distributed.take_device(device)
        journal = output if resume else None
        dtype = check_candidates(
            candidates, config, tokenizer, tokens[-1], batch=batch, dtype=dtype, device=device, journal=journal
        )
    corpora = read_corpora(data or [default_data(model)], tokenizer, tokens[-1], documents, data_seed, cache, text_key)
    tell_searched(factors or [], corpora, data_seed)
    prompts = read_prompts(
        retrieval,
        retrieval_lengths,
        tokens,
        tokenizer,
        corpora[0].tokens,
        trials=trials or (QUICK_TRIALS if quick else eval_output.CLAIM_TRIALS),
        questions=questions,
        depths=chosen_depths,
        seed=data_seed,
        chat=chat,
        ruler_data=ruler_data,
    )
    spec = EvalSpec(
        tokens,
        stride=window_step,
        key_tokens=key_tokens,
        retrieval=prompts,
        questions=questions,
        harness=harness,
        measurements=measure or [],
        batch=batch,
    )
    check_spec(spec, candidates)
    settings = {"depths": chosen_depths, "seed": data_seed, "task_folder": task_folder and str(task_folder)}
    settings |= {"limit": limit, "chat": chat, "ruler_data": ruler_data, **eval_server.settings_of(served)}
    request = EvalRequest(model, dtype, device, rope, candidates, corpora, spec, settings, decided)
    run = None if served is None else eval_server.runner(served, tokenizer, concurrency)
    results = evaluate_request(request, output, resume=resume, quiet=as_json, run=run)
    if distributed.first():
        options.tell(results.to_json(), as_json=as_json, text=lambda: eval_output.describe(results, output))


def evaluate_request(
    request: EvalRequest,
    output: Path | None,
    *,
    resume: bool,
    quiet: bool,
    run: Callable[[EvalContext], EvalResults] | None = None,
) -> EvalResults:
    """Evaluate, together with the other processes of the launch; the first one writes the results.

    Args:
        request: What to evaluate.
        output: Folder for journal and results; None keeps nothing.
        resume: Whether the folder's journal is continued.
        quiet: Whether to show no progress.
        run: Function that measures and sums up; `run_evaluation` if None.
    """
    from dataclasses import replace

    from longrope.evaluation.runner import EvalContext, run_evaluation
    from longrope.provenance import provenance

    first, device = distributed.first(), request.device
    folder = output if first else None
    with (
        distributed.joined(device),
        open_samples(folder, request.settings, resume=resume) as store,
        parts_bar(quiet=quiet or not first) as on_progress,
    ):
        distributed.agree(request.shared)
        evaluation = EvalContext(
            request.candidates,
            request.corpora,
            request.spec,
            request.rope,
            request.open_model,
            store,
            partial(on_progress, "eval"),
        )
        results = (run or run_evaluation)(evaluation)
        source = provenance(device) | distributed.provenance()
        results = replace(results, model=request.model, dtype=request.dtype, provenance=source)
        if folder is not None:
            results.save(folder / "results.json")
    return results


@contextmanager
def open_samples(output: Path | None, settings: dict[str, Any], *, resume: bool) -> Iterator[SampleStore]:
    """Yield the samples that a folder holds, and lock the folder meanwhile; without a folder, an empty store.

    Of processes that evaluate together, all get the samples of the first one.
    """
    from longrope.evaluation.sample_store import JOURNAL, SampleStore
    from longrope.storage.jsonl import JsonlFile, read_settings
    from longrope.storage.lock import locked

    if output is None:
        lines = distributed.same([])
        if lines is None:  # the first process failed, and says why
            raise typer.Exit(2)
        yield SampleStore(lines=lines)
        return
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(output))
            for name in () if resume else (JOURNAL, "results.json"):
                (output / name).unlink(missing_ok=True)
            written = read_settings(output / JOURNAL)
            if written and "prompts_from" not in written:  # of an earlier version
                settings = {key: value for key, value in settings.items() if key != "prompts_from"}
            journal = JsonlFile(output / JOURNAL, settings, subject="an evaluation", resume=resume)
            stack.enter_context(closing(journal))
            store = SampleStore(journal)
        except LongRopeError:
            distributed.same(None)
            raise
        distributed.same(journal.lines)
        yield store
