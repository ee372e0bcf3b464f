from __future__ import annotations

import io
import json
import math
import re

import pytest
import sample_runs
from reading import Reader
from rich.console import Console

from longrope.errors import LongRopeError
from longrope.evaluation.statistics import wilson_interval
from longrope.report import terminal
from longrope.report.all_figures import SECTIONS, figures
from longrope.report.html import page
from longrope.report.load import read_runs, warnings
from longrope.report.search_history import read_searches
from longrope.report.verdict import answers, headline
from longrope.rope import Rope
from longrope.scaling import Extension
from longrope.schemes import scheme


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return sample_runs.write_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def read(run):
    return read_runs([run])


@pytest.fixture(scope="module")
def shown(read):
    return figures(read)


@pytest.fixture(scope="module")
def html(read, shown):
    return page(read, shown)


def tables_of(runs):
    """What the tables of a page hold, without drawing one; test_page_and_terminal_show_the_same_cells compares them."""
    return {figure.key: [[column.head for column in figure.columns], *figure.written()] for figure in figures(runs)}


def in_terminal(runs, shown, width=400):
    console = Console(file=io.StringIO(), width=width)
    terminal.show(runs, shown, console)
    return console.file.getvalue()


def test_page_and_terminal_show_the_same_cells(read, shown, html):
    tables = Reader(html).tables
    assert list(tables) == [
        "glance",
        "perplexity-0",
        "positions-0",
        *("score-0", "score-1", "choice-0"),
        "sliding",
        "key-tokens",
        "short-context",
        "short-lengths",
        "tasks",
        "differences",
        "paired-retrieval",
        "factors-0",
        "search-0",
        "held-out",
        "documents-0",
        "provenance",
    ]
    printed = in_terminal(read, shown)
    for figure in shown:
        head, *rows = tables[figure.key]
        assert head == [column.head for column in figure.columns]
        assert rows == figure.written()
        for row in rows:
            assert re.search("│ +".join(re.escape(cell) + " *" for cell in row), printed), row


def test_every_number_of_the_results_is_in_a_table(html):
    """Formatted here anew."""
    record, tables = sample_runs.results(), Reader(html).tables

    def lines(key):
        return {" | ".join(row) for row in tables[key]}

    for name, cells in record["perplexity"].items():
        written = [f"{cell['perplexity']:,.2f} ± {cell['standard_error']:.2f}" for cell in cells]
        assert " | ".join([name, *written]) in lines("perplexity-0")
        for number, document in enumerate(record["corpora"][sample_runs.CORPUS]["documents"]):
            losses = [f"{cell['losses'][number]:.4f}" for cell in cells]
            assert " | ".join([name, document, *losses]) in lines("documents-0")
    names = list(record["rows"])
    for place, stretch in enumerate(record["positions"]["pi"]):
        row = tables["positions-0"][1 + place]
        assert row[0] == f"{stretch['start']:,}–{stretch['end'] - 1:,}"
        assert row[1 + names.index("pi")] == f"{stretch['loss']:.2f} ± {stretch['standard_error']:.2f}"
    for name, percent in record["short_context"].items():
        assert f"{name} | {percent:+.1f}%" in lines("short-context")
    for cell in record["retrieval"]["ntk"]:
        key = {"passkey": "score-0", "niah_multikey": "score-1"}[cell["task"]]
        row = next(one for one in tables[key] if one[:2] == ["ntk", f"{cell['depth']:.0%}"])
        place = 2 + sample_runs.LENGTHS.index(cell["length"])
        low, high = wilson_interval(20 * cell["score"], 20)
        assert row[place] == f"{cell['score']:.1%} ({100 * low:.1f}–{high:.1%})"
    last = [cell["score"] for cell in record["retrieval"]["ntk"] if (cell["task"], cell["length"]) == ("passkey", 2048)]
    low, high = wilson_interval(20 * sum(last), 20 * len(last))
    assert f"| {sum(last) / len(last):.1%} ({100 * low:.1f}–{high:.1%})" in "".join(
        line for line in lines("score-0") if line.startswith("ntk | all | ")
    )
    for name, row in record["rows"].items():
        if name in ("yarn", "pi"):
            column = tables["factors-0"][0].index(name)
            found = [one[column] for one in tables["factors-0"][1:]]
            assert found == [f"{value:.3f}" for value in row["factors"]["factors"]]
    assert "local_task | acc | 0.5000 ± 0.0123" in " ".join(lines("tasks"))
    assert f"run | command | {record['provenance']['command']}" in lines("provenance")


def test_the_page_needs_nothing_else(html):
    tags = Reader(html).tags
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in tags}
    for _, attributes in tags:
        assert not [name for name in attributes if name.startswith("on") or name == "src"]
        assert all((value or "").startswith("#") for name, value in attributes.items() if name == "href")
    assert "http" not in html.replace("http://www.w3.org/2000/svg", "").replace("http://www.w3.org/1999/xlink", "")
    assert "url(" not in re.sub(r"url\(#[\w-]+\)", "", html)


def test_ids_are_unique_and_every_reference_has_one(html):
    tags = Reader(html).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"url\(#([\w-]+)\)", html)) <= set(ids)


def test_every_chart_has_marks_and_every_figure_a_table_and_a_name(shown, html):
    parts = html.split("<figure ")[1:]
    assert len(parts) == len(shown)
    for figure, part in zip(shown, parts, strict=True):
        assert f'aria-label="{figure.title}"' in part
        assert "<caption>" in part
        assert 'scope="col"' in part
        assert ("<svg" in part) == (figure.chart is not None)
        if figure.chart is not None:
            titles = re.findall(r"<title>([^<]+)</title>", part)
            assert len(titles) >= len(figure.rows)
    assert {figure.section for figure in shown} == set(SECTIONS)
    charted = [figure.key for figure in shown if figure.chart is not None]
    assert len(charted) == 8


def test_a_tooltip_says_the_number(html):
    cell = sample_runs.results()["perplexity"]["yarn"][2]
    said = f"yarn, 1,024 tokens: {cell['perplexity']:.2f} ± {cell['standard_error']:.2f}"
    assert f"<title>{said}</title>" in html
    assert re.search(r"<title>yarn, pair 12 \(wavelength 198\.\d tokens\): factor 5\.200</title>", html)


@pytest.mark.parametrize("evil", [sample_runs.EVIL, "a&b \"c\" 'd' ünïcode 漢字" + "x" * 300, "\x00\ud800\n[bold]", ""])
def test_strange_names_are_text(tmp_path, evil):
    record = sample_runs.results(("original", "yarn", evil), model=evil)
    record["corpora"] = {evil: record["corpora"].pop(sample_runs.CORPUS)}
    record["provenance"]["command"] = evil
    for cells in record["perplexity"].values():
        for cell in cells:
            cell["corpus"] = evil
    for cell in record["retrieval"][evil]:
        cell["task"] = evil
    read = read_runs([sample_runs.write_run(tmp_path / "run", record)])
    html = page(read, figures(read))
    html.encode()
    assert "script" not in {tag for tag, _ in Reader(html).tags}
    assert "alert(1)" in html or evil != sample_runs.EVIL
    name = "\ufffd\ufffd\ufffd[bold]" if "bold" in evil else evil
    assert [row[0] for row in Reader(html).tables["perplexity-0"]] == ["row", "original", "yarn", name]
    assert name in in_terminal(read, figures(read), width=2000)


def test_answers_follow_from_the_numbers(run, tmp_path):
    record = sample_runs.results()
    value = {row: {c["length"]: c["perplexity"] for c in cells} for row, cells in record["perplexity"].items()}
    works, costs, better = answers(read_runs([run])[0])
    assert works.verdict == "Works"
    assert f"Perplexity {value['extended'][2048]:.2f} ± " in works.why
    assert f"Costs {100 * (value['extended'][256] / value['original'][256] - 1):.1f}%" in costs.verdict
    gap = 100 * (value["extended"][2048] / value["yarn"][2048] - 1)
    assert better.verdict == "Better in perplexity and retrieval than the best closed form, yarn"
    assert f"perplexity {gap:+.1f}% ± " in better.numbers
    assert "of 6 documents" in better.why


def changed(tmp_path, change, names=("original", "yarn", "extended")):
    record = sample_runs.results(names)
    change(record)
    (run,) = read_runs([sample_runs.write_run(tmp_path / "run", record)])
    return run, answers(run)


def test_a_model_that_reads_fluently_and_forgets_does_not_work(tmp_path):
    def forget(record):
        for cell in record["retrieval"]["extended"]:
            cell |= {"score": 0.1, "scores": [1.0] * 2 + [0.0] * 18}

    _, (works, _, _) = changed(tmp_path, forget)
    assert works.verdict == "Works by perplexity, but forgets what is hidden"
    assert "10.0%" in works.why


def test_short_texts_are_shown_with_the_factors_that_they_get(tmp_path):
    """The row of the long factors alone beside the extension's short ones and the original model."""

    def beside(record):
        for name in ("rows", "perplexity", "retrieval"):
            record[name]["alone"] = json.loads(json.dumps(record[name]["yarn"]))
        del record["perplexity"]["alone"][0]
        record["retrieval"]["extended"] = [cell for cell in record["retrieval"]["extended"] if cell["length"] > 256]

    run, _ = changed(tmp_path, beside)
    head, *rows = tables_of([run])["short-lengths"]
    assert head[:4] == ["row", "factors there", "length", "perplexity"]
    record = sample_runs.results(("original", "yarn", "extended"))
    for name, factors in (("original", "as trained"), ("yarn", "long"), ("extended", "short")):
        cell = record["perplexity"][name][0]
        (row,) = (row for row in rows if row[0] == name)
        assert row[:4] == [name, factors, "256", f"{cell['perplexity']:.2f} ± {cell['standard_error']:.2f}"]
        if name != "original":
            gap = next(gap for gap in record["differences"][name] if gap["against"] == "original")
            assert row[4] == f"{gap['percent']:+.1f}% ± {gap['standard_error']:.1f}%"
    shares = {row[0]: row[5:] for row in rows}
    pair = next(pair for pair in record["paired_retrieval"]["yarn"] if pair["length"] == 256)
    assert shares["yarn"][1:] == [f"{pair['points']:+.1f}", f"{pair['p']:.3f}"]
    assert shares["extended"] == ["–"] * 3
    assert shares["original"][1:] == ["–"] * 2
    assert next(row for row in rows if row[0] == "alone")[1:5] == ["long", "256", "–", "–"]


def test_retrieval_that_was_not_measured_is_said_so(tmp_path):
    run, (works, _, _) = changed(tmp_path, lambda record: record.pop("retrieval"))
    assert works.verdict == "Works by perplexity, retrieval not measured"
    assert "retrieval not measured" in headline(run)


def test_retrieval_at_a_shorter_length_says_nothing_of_the_longest(tmp_path):
    def shorter(record):
        for cells in record["retrieval"].values():
            cells[:] = [cell for cell in cells if cell["length"] < 2048]

    _, (works, _, _) = changed(tmp_path, shorter)
    assert works.verdict == "Works by perplexity, retrieval not measured"


def test_a_perplexity_that_is_not_finite_is_named_in_verdict_and_table(tmp_path):
    def burst(record):
        record["perplexity"]["extended"][-1] |= {"perplexity": None, "standard_error": None, "losses": [None] * 6}
        sample_runs.compare(record)

    run, (works, _, better) = changed(tmp_path, burst)
    assert works.verdict == "Cannot be told: perplexity is not finite"
    assert "dtype = float32" in works.why
    assert better.verdict == "Not compared with the best closed form, yarn"
    assert "not finite" in better.why
    tables = Reader(page([run], figures([run]))).tables
    assert tables["perplexity-0"][-1][-1] == "not finite"
    (difference,) = (row for row in tables["differences"] if row[:2] == ["extended", "yarn"] and row[4] == "not finite")
    assert difference[5:] == ["–", "–"]


def test_only_what_an_extension_writes_is_enough(tmp_path):
    def least(record):
        for measure in ("differences", "positions", "sliding", "key_tokens", "retrieval", "tasks", "corpora"):
            del record[measure]
        for cells in record["perplexity"].values():
            for cell in cells:
                del cell["corpus"]

    run, _ = changed(tmp_path, least)
    keys = [figure.key for figure in figures([run])]
    assert keys[:3] == ["glance", "perplexity-0", "short-context"]
    assert tables_of([run])["documents-0"][1][1] == "1"


def test_several_corpora_are_several_figures(tmp_path):
    def more(record):
        for cells in record["perplexity"].values():
            cells += [cell | {"corpus": "books", "perplexity": cell["perplexity"] * 2} for cell in cells]

    run, _ = changed(tmp_path, more)
    titles = [figure.title for figure in figures([run]) if figure.key.startswith("perplexity")]
    assert titles == ["Perplexity by length: stdlib:unseen", "Perplexity by length: books"]


def test_a_task_without_depths_and_with_holes(tmp_path):
    def holes(record):
        record["retrieval"] = {
            "yarn": [{"task": "vt", "length": n, "depth": None, "score": 0.5} for n in (256, 512)],
            "extended": [{"task": "vt", "length": 512, "depth": None, "score": None}],
        }

    run, _ = changed(tmp_path, holes)
    rows = Reader(page([run], figures([run]))).tables["score-0"]
    assert rows[1:] == [["yarn", "any", "50.0%", "50.0%"], ["extended", "any", "–", "not finite"]]


def test_what_each_fine_tuning_cost_and_brought(tmp_path):
    """The second stage's row has the perplexity of its factors, yarn's, before and after; the first left no row."""
    record = sample_runs.results()
    names = list(record["rows"])
    searched, tuned = names[-2], "2k fine-tuned"
    for part in record.values():
        if isinstance(part, dict) and searched in part:
            part[tuned] = part[searched]
    record["rows"] = {**{name: record["rows"][name] for name in names[:-1]}, tuned: record["rows"]["yarn"]}
    record["rows"][tuned] = record["rows"][tuned] | {"weights": "stage-10/model"}
    record["rows"]["extended"] = sample_runs.results()["rows"]["extended"]
    folder = sample_runs.write_run(tmp_path / "run", record)
    settings = {"steps": 9, "lora": 8, "merge": False, "distill": {"weight": 0.5}}
    for stage, seconds in ((2, 90.0), (10, 30.0), ("2-kept", 1.0)):  # the last is a copy that a person made
        training = {"tokens": 4096, "seconds": seconds, "loss": 2.5, "settings": settings}
        (folder / f"stage-{stage}").mkdir()
        (folder / f"stage-{stage}" / "training.json").write_text(json.dumps(training))
    runs = read_runs([folder])
    _, first, second, extended = tables_of(runs)["trainings"]
    told = ["2.50", "lora 8, merge false, distill (weight 0.5)"]
    assert first == ["stage-2/model", "–", "–", "–", "4,096", "1.50", *told]
    last = [record["perplexity"][name][-1] for name in ("yarn", searched, "extended")]
    ends = [f"{cell['perplexity']:.2f} ± {cell['standard_error']:.2f}" for cell in last]
    assert second == [tuned, f"{record['short_context'][searched]:+.1f}%", *ends[:2], "4,096", "0.50", *told]
    assert extended[:4] == ["extended", f"{record['short_context']['extended']:+.1f}%", "–", ends[2]]
    (folder / "stage-2" / "training.json").write_text("{}")
    with pytest.raises(LongRopeError, match=r"training\.json: not the record of a fine-tuning, or damaged"):
        read_runs([folder])


def test_a_search_shows_its_best_loss_so_far(tmp_path):
    path = sample_runs.journal(tmp_path / "run", seed=3)
    (run,) = read_runs([path.parent])
    (search,) = run.searches
    best, passes, waiting, expected = math.inf, 0, [], []
    for line in [json.loads(text) for text in path.read_text().splitlines()[1:-1]]:
        if "loss" in line:
            passes += 3 if "gradient" in line else 1
            waiting = [] if "gradient" in line else [*waiting, line["loss"]]
        if len(waiting) == 2:
            if sum(waiting) / 2 < best:
                best = sum(waiting) / 2
                expected.append((passes, best))
            waiting = []
    assert [(step.passes, step.loss) for step in search.steps] == expected
    assert search.passes == passes
    assert len(expected) > 5


def test_searches_are_in_the_order_of_their_numbers(tmp_path):
    for stage, seed in ((2, 10), (10, 0), (2, 9)):
        sample_runs.journal(tmp_path / f"stage-{stage}" / "search", seed=seed)
    names = [search.name for search in read_searches(tmp_path)]
    assert names == ["stage-2 seed 9", "stage-2 seed 10", "stage-10 seed 0"]


def test_losses_in_frozen_contexts_are_not_those_of_full_passes(tmp_path):
    path = sample_runs.journal(tmp_path / "run", seed=3)
    (before,) = read_runs([path.parent])[0].searches
    head, *lines = path.read_text().splitlines(keepends=True)
    in_context = json.dumps(json.loads(lines[0]) | {"loss": 0.0, "context": "0123456789abcdef"}) + "\n"
    path.write_text("".join([head, in_context, *lines]))
    (after,) = read_runs([path.parent])[0].searches
    assert [(step.passes, step.loss) for step in after.steps] == [(step.passes, step.loss) for step in before.steps]
    assert after.passes == before.passes


def test_a_search_without_an_evaluation_is_shown_and_says_what_to_do(tmp_path):
    (run,) = read_runs([sample_runs.write_search(tmp_path / "search")])
    assert "Run longrope eval tiny" in headline(run)
    assert answers(run) == ()
    tables = Reader(page([run], figures([run]))).tables
    assert list(tables) == ["factors-0", "search-0", "held-out", "provenance"]
    factors = sample_runs.factors_of("extended")
    assert isinstance(factors, Extension)
    assert [row[-1] for row in tables["factors-0"][1:]] == [f"{value:.3f}" for value in factors.long.factors]
    losses = {row[1]: row[2] for row in tables["held-out"][1:]}
    assert losses == {"searched": "3.0123", "yarn": "3.0456", "pi": "4.5000"}


def test_two_runs_of_one_model_are_told_apart_and_not_warned_about(tmp_path):
    runs = read_runs([sample_runs.write_run(tmp_path / name) for name in ("a", "b")])
    names = [row[0] for row in tables_of(runs)["perplexity-0"][1:]]
    assert names == [f"{run}: {row}" for run in "ab" for row in sample_runs.HARD]
    assert warnings(runs) == []


def test_runs_that_cannot_be_compared_are_warned_about(tmp_path):
    other = sample_runs.results(("original", "mine"), model="other")
    other["rope"]["original_length"], other["dtype"] = 512, "torch.bfloat16"
    other["corpora"][sample_runs.CORPUS]["hash"] = "f" * 16
    runs = read_runs([sample_runs.write_run(tmp_path / "a"), sample_runs.write_run(tmp_path / "b", other)])
    told = " ".join(warnings(runs))
    for word in ("models (other, tiny)", "a: 256; b: 512 tokens", "bfloat16, torch.float32", "different documents"):
        assert word in told
    html, printed = page(runs, figures(runs)), in_terminal(runs, figures(runs))
    for one in warnings(runs):
        assert one in html
        assert one in printed
    names = [row[0] for row in Reader(html).tables["perplexity-0"][1:]]
    assert "a: original" in names
    assert "b: original" in names
    assert "mine" in names
    assert {"factors-0", "factors-1"} <= set(Reader(html).tables)  # one for each geometry


def test_folders_of_one_name_are_told_apart(tmp_path):
    places = [sample_runs.write_run(tmp_path / name / "run") for name in "ab"]
    assert [run.name for run in read_runs(places)] == [str(place) for place in places]


def damaged(change):
    record = sample_runs.results(("original", "yarn"))
    change(record)
    return json.dumps(record)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", r"results\.json is damaged: .*Run longrope eval again"),
        ("[]", "not a JSON object"),
        (damaged(lambda record: record.pop("version")), r"version = None, but this longrope reads 1\. .*upgrade"),
        (damaged(lambda record: record.update(version=2)), "version = 2, but this longrope reads 1"),
        (damaged(lambda record: record.pop("rows")), r"rows: Field required\. Run longrope eval again"),
        (damaged(lambda record: record["rows"].pop("yarn")), "yarn were measured but are not described"),
        (damaged(lambda record: record["rope"].pop("dim")), "rope: field missing or unknown: .*'dim'"),
        (damaged(lambda record: record["rope"].update(dim=32)), "32 values for a rope of dim 32"),
        (damaged(lambda record: record["rows"]["yarn"]["factors"].pop("kind")), "not a longrope scaling"),
        (damaged(lambda r: r["corpora"][sample_runs.CORPUS].update(documents=None)), r"corpora\..*documents"),
        (damaged(lambda r: r["perplexity"]["yarn"][0].update(length="x")), r"perplexity\.yarn\.0\.length: .*integer"),
    ],
)
def test_damaged_results_are_refused(tmp_path, text, said):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(LongRopeError, match=said):
        read_runs([tmp_path])


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_file_that_a_shell_of_windows_wrote_is_read(tmp_path, encoding):
    (tmp_path / "results.json").write_text(damaged(lambda record: None), encoding=encoding)
    assert read_runs([tmp_path])[0].results.model == "tiny"


def test_numbers_that_json_does_not_know_are_missing(tmp_path):
    text = damaged(lambda record: record["perplexity"]["yarn"][-1].update(perplexity=math.inf))
    assert "Infinity" in text
    (tmp_path / "results.json").write_text(text)
    (run,) = read_runs([tmp_path])
    assert math.isnan(run.results["perplexity"]["yarn"][-1].perplexity)


def test_a_file_of_factors_is_refused_with_the_commands_that_take_it(tmp_path):
    rope = Rope(dim=16, base=10000.0, original_length=64)
    scaling = scheme("yarn", rope, 128)
    for name, factors in {"both.json": Extension.of(rope, scaling), "one.json": scaling}.items():
        path = tmp_path / name
        path.write_text(factors.to_json())
        inspect, measure = (
            f"longrope inspect MODEL --factors {path} shows",
            f"longrope eval MODEL .* --factors {path} -o",
        )
        with pytest.raises(LongRopeError, match=f"holds factors, and no measurement. {inspect} them, {measure}"):
            read_runs([path])


def test_a_folder_without_results_is_refused_with_a_remedy(tmp_path):
    with pytest.raises(LongRopeError, match=r"has no results\.json\. Run longrope eval … -o "):
        read_runs([tmp_path])
    with pytest.raises(LongRopeError, match="not a folder and not a file"):
        read_runs([tmp_path / "nowhere"])
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(LongRopeError, match=r"Finish the run with --resume\.$"):
        read_runs([tmp_path])
    run_folder = tmp_path / "a run"
    run_folder.mkdir()
    (run_folder / "cells.jsonl").write_text("")
    with pytest.raises(LongRopeError, match=r"Finish the evaluation with --resume\.$"):
        read_runs([run_folder])
    for name in ("run.json", "extension.json"):
        (run_folder / name).write_text("{}")
    with pytest.raises(LongRopeError, match=r"or run longrope eval … --factors '.*/a run' -o eval"):
        read_runs([run_folder])
    run = sample_runs.write_run(tmp_path / "run")
    with pytest.raises(LongRopeError, match="given twice"):
        read_runs([run, tmp_path / "." / "run"])
    (run / "stage-1" / "search" / "search-0.jsonl").write_text("{}\n")
    with pytest.raises(LongRopeError, match="not the journal of a search"):
        read_runs([run])


def test_a_heat_map_is_coloured_in_a_terminal(read, shown):
    console = Console(file=io.StringIO(), width=300, force_terminal=True, color_system="truecolor")
    figure = next(figure for figure in shown if figure.key == "score-0")
    console.print(terminal.table_of(figure))
    assert "48;2;253;231;37" in console.file.getvalue()  # viridis's brightest
