"""What each engine computes with an exported checkpoint: which factors it uses, and how far that is from ours.

    python benchmarks/serving.py vllm=PATH/python mlx-lm=PATH/python transformers-4.57=PATH/python \
        exllamav2=PATH/python exllamav3=PATH/python sglang=PATH/python

Each engine is given with the interpreter that it is installed in (docs/serving.md says how to make one on a CPU). The
first three run checkpoints of ``tiny`` and of tiny random models; we compare the log-probability of every next token
with ours, computed with the long factors, the short ones and none. Of the last three, which need CUDA, only the code
that makes the rotary embedding runs. Cells that are there already are kept. Results in
``benchmarks/results/serving.json``.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import json
import math
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "serving.json"
BUILD = Path("build/serving")
RUN = ("transformers-4.57", "vllm", "mlx-lm")
CODE = ("exllamav2", "exllamav3", "sglang")
LAUNCHED = ("vllm", "exllamav2", "exllamav3")  # those whose factors depend on the maximum length
BOTH = ("tiny", "phi3")  # models that are exported in both modes and launched for both lengths
HEADS = {"hidden_size": 256, "head_dim": 64}  # vLLM's attention on CPUs wants heads of 32 or more
SEED, SAME = 0, 0.05  # other factors differ by tenths of a nat


def main() -> None:
    """Every cell that is not there yet."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("engines", nargs="+", help="NAME=INTERPRETER")
    arguments.add_argument("--models", default="", help="by commas; all if not given")
    asked = arguments.parse_args()
    cells: dict[str, Any] = json.loads(RESULTS.read_text())["cells"] if RESULTS.exists() else {}
    wanted = [name for name in asked.models.split(",") if name]
    for model, mode in checkpoints():
        if wanted and model not in wanted:
            continue
        folder = make(model, mode)
        ours = json.loads((folder / "ours.json").read_text())
        for engine, python in (word.split("=", 1) for word in asked.engines):
            if engine in CODE and model not in BOTH:
                continue
            for limit in ours["limits"] if engine in LAUNCHED and model in BOTH else ours["limits"][-1:]:
                key = f"{engine} {model} {mode} {limit}"
                if key not in cells:
                    cells[key] = cell(engine, python, folder, ours, limit)
                    print(key, cells[key], flush=True)
                    save(cells)


def save(cells: dict[str, Any]) -> None:
    """The results file."""
    from longrope.provenance import provenance
    from longrope.storage.atomic import write_json

    made = {**provenance(), "command": "serving.py ENGINE=PYTHON ..."}
    write_json(RESULTS, {"seed": SEED, "cells": dict(sorted(cells.items())), "provenance": made})


def checkpoints() -> list[tuple[str, str]]:
    """Models and modes: ``tiny`` and Phi-3 in both modes, one dual checkpoint of every other family."""
    families = importlib.import_module("families")
    both = [(model, mode) for model in BOTH for mode in ("dual", "static")]
    return both + [(family, "dual") for family in families.FAMILIES if family != "phi3"]


def make(model: str, mode: str) -> Path:
    """A checkpoint and, in ``ours.json``, our log-probabilities with each set of factors."""
    import torch

    from longrope.export.huggingface import export_huggingface
    from longrope.models.load import load
    from longrope.models.patch import patch
    from longrope.rope import Rope
    from longrope.scaling import Extension, Scaling
    from longrope.schemes import heuristic

    families = importlib.import_module("families")
    folder = BUILD / f"{model}-{mode}"
    if (folder / "ours.json").exists():
        return folder
    loaded, tokenizer = load("tiny", dtype="float32") if model == "tiny" else (plain(model), families.tokenizer())
    rope = Rope.of(loaded)
    long = heuristic(rope, 8 * rope.original_length)
    ramp = [1 + i / rope.dim for i in range(rope.dim // 2)]
    short = Scaling(ramp, attention_factor=long.attention_factor, scheme="ramp", length=rope.original_length)
    extension = Extension(rope=rope, short=short, long=long, length=8 * rope.original_length)
    held = export_huggingface(loaded, tokenizer, extension, folder, mode=mode, name=model, overwrite=True)
    generator, size = torch.Generator().manual_seed(SEED), loaded.config.vocab_size
    start = rope.original_length
    lengths = [start - 1, start, start + 1, start + 2, 3 * start]
    tokens = torch.randint(3, size, (lengths[-1],), generator=generator)
    sets: dict[str, Any] = {}
    for name, scaling in {"long": held.long, "short": held.short, "none": None}.items():
        with patch(loaded, scaling), torch.inference_mode():
            logits = [loaded(input_ids=tokens[None, :length], use_cache=False).logits[0] for length in lengths]
        sets[name] = {str(n): next_tokens(one, tokens[:n]) for n, one in zip(lengths, logits, strict=True)}
    scalings = {"long": held.long, "short": held.short, "none": Scaling.identity(rope)}
    record = {
        "tokens": tokens.tolist(),
        "lengths": lengths,
        "limits": [start, extension.length],
        "original_length": start,
        "logprobs": sets,
        "inv_freq": {name: scaling.inv_freq(rope).tolist() for name, scaling in scalings.items()},
        "attention_factor": long.attention_factor,
    }
    (folder / "ours.json").write_text(json.dumps(record))
    return folder


def plain(family: str) -> Any:
    """A tiny random model whose rotary embedding is not scaled."""
    families = importlib.import_module("families")
    fields = {name: size for name, size in HEADS.items() if name in ("hidden_size", *families.FAMILIES[family])}
    return families.build(family, **fields, **({"rope_parameters": None} if family == "phi3" else {}))


def next_tokens(logits: Any, tokens: Any) -> list[float]:
    """Log-probability in nats of every token but the first."""
    return logits[:-1].double().log_softmax(-1).gather(-1, tokens[1:, None])[:, 0].tolist()


def cell(engine: str, python: str, folder: Path, ours: dict[str, Any], limit: int) -> dict[str, Any]:
    """What an engine launched for so many tokens computes at each length, or why it does not."""
    job = {**ours, "folder": str(folder.resolve()), "limit": limit}
    job["lengths"] = [length for length in ours["lengths"] if length < limit]
    (folder / "job.json").write_text(json.dumps(job))
    answer = folder / "answer.json"
    answer.unlink(missing_ok=True)
    command = [python, __file__, "--inside", engine, str(folder / "job.json"), str(answer)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    got: dict[str, Any] = json.loads(answer.read_text()) if answer.exists() else {"error": "no answer"}
    if "error" in got:  # vLLM's process says less than the one that it started
        lines = re.findall(r"\w+Error: .*", done.stdout + done.stderr)
        causes = [line for line in lines if "ngine core" not in line and "EngineCore" not in line]
        return {"error": (causes or [got["error"]])[0][:200]}
    how = "run" if engine in RUN else "code path"
    rows = {length: compare(values, ours, int(length)) for length, values in got["values"].items()}
    return {"version": got["version"], "verified": how, "lengths": rows}


def compare(values: Any, ours: dict[str, Any], length: int) -> dict[str, Any]:
    """The set of factors that explains best what an engine gave, and how far it is from each."""
    extra = {}
    if isinstance(values, dict):
        distance = {name: rms(values["inv_freq"], one, relative=True) for name, one in ours["inv_freq"].items()}
        extra = {name: value for name, value in values.items() if name != "inv_freq"}
    else:
        distance = {name: rms(values, by_length[str(length)]) for name, by_length in ours["logprobs"].items()}
    due = "short" if length <= ours["original_length"] else "long"
    nearest = min(distance, key=lambda name: distance[name])
    nearest = nearest if distance[nearest] < SAME else "other"
    return {"set": nearest, "from ours": distance[due], "from each": distance, **extra}


def rms(ours: list[float], theirs: list[float], *, relative: bool = False) -> float:
    """Root mean square of the difference."""
    pairs = [(a - b) / (b if relative else 1) for a, b in zip(ours, theirs, strict=True)]
    return math.sqrt(sum(one * one for one in pairs) / len(pairs))


def inside(engine: str, job: dict[str, Any]) -> dict[str, Any]:
    """Run in the engine's interpreter: its version and, by length, what it computes."""
    tokens, lengths = job["tokens"], job["lengths"]
    if engine in CODE:
        version, at = {"exllamav2": exllamav2, "exllamav3": exllamav3, "sglang": sglang}[engine](job)
        return {"version": version, "values": {length: at(length) for length in lengths}}
    version, prompt = {"transformers-4.57": transformers, "vllm": vllm, "mlx-lm": mlx_lm}[engine](job)
    return {"version": version, "values": {length: prompt(tokens[:length]) for length in lengths}}


def transformers(job: dict[str, Any]) -> tuple[str, Any]:
    """Plain transformers of whatever version."""
    import torch
    from transformers import AutoModelForCausalLM, __version__

    model = AutoModelForCausalLM.from_pretrained(job["folder"], dtype=torch.float32).eval()

    @torch.inference_mode()
    def prompt(tokens: list[int]) -> list[float]:
        given = torch.tensor(tokens)
        return next_tokens(model(input_ids=given[None], use_cache=False).logits[0], given)

    return __version__, prompt


def vllm(job: dict[str, Any]) -> tuple[str, Any]:
    """Offline, in float32, each prompt in one piece."""
    engine: Any = importlib.import_module("vllm")
    model = engine.LLM(
        job["folder"],
        max_model_len=job["limit"],
        dtype="float32",
        seed=SEED,
        enable_prefix_caching=False,
        max_num_seqs=1,
        max_num_batched_tokens=4096,
        enforce_eager=True,
    )
    wanted = engine.SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)

    def prompt(tokens: list[int]) -> list[float]:
        [done] = model.generate([{"prompt_token_ids": tokens}], wanted, use_tqdm=False)
        return [one[token].logprob for one, token in zip(done.prompt_logprobs[1:], tokens[1:], strict=True)]

    return engine.__version__, prompt


def mlx_lm(job: dict[str, Any]) -> tuple[str, Any]:
    """mlx-lm in float32."""
    mx: Any = importlib.import_module("mlx.core")
    model, _ = importlib.import_module("mlx_lm.utils").load_model(Path(job["folder"]))
    model.set_dtype(mx.float32)

    def prompt(tokens: list[int]) -> list[float]:
        logits = model(mx.array(tokens)[None])[0, :-1]
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        return mx.take_along_axis(logprobs, mx.array(tokens[1:])[:, None], axis=-1)[:, 0].tolist()

    return importlib.metadata.version("mlx-lm"), prompt


def read(job: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], int]:
    """The config of the checkpoint, its ``rope_scaling`` and the dimensions of a head that are rotated."""
    config = json.loads((Path(job["folder"]) / "config.json").read_text())
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return config, config["rope_scaling"], int(head * config.get("partial_rotary_factor", 1.0))


def alone(package: str, *path: str, **stubs: Any) -> tuple[str, Any]:
    """The version of a package, and one of its files loaded without the rest of it, which needs CUDA."""
    for name, content in stubs.items():
        full = name.replace("__", ".")
        sys.modules[full] = types.ModuleType(full)
        vars(sys.modules[full]).update(content)
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    file = Path(spec.submodule_search_locations[0], *path)
    name = ".".join((package, *path)).removesuffix(".py")
    for end in range(1, len(path) + 1):
        parent = ".".join((package, *path[: end - 1]))
        sys.modules.setdefault(parent, types.ModuleType(parent)).__path__ = []
    loaded = importlib.util.spec_from_file_location(name, file)
    assert loaded is not None
    assert loaded.loader is not None
    module = importlib.util.module_from_spec(loaded)
    sys.modules[name] = module
    loaded.loader.exec_module(module)
    return importlib.metadata.version(package), module


def exllamav2(job: dict[str, Any]) -> tuple[str, Any]:
    """``exllamav2/rope.py`` with the fields that ``exllamav2/config.py`` fills in."""
    version, module = alone("exllamav2", "rope.py")
    config, scaling, dim = read(job)
    fields = types.SimpleNamespace(
        head_dim=dim,
        partial_rotary_factor=1.0,
        scale_alpha_value=1.0,
        max_seq_len=job["limit"],
        original_max_seq_len=config["original_max_position_embeddings"],
        scale_long_factor=scaling["long_factor"],
        scale_short_factor=scaling["short_factor"],
        alt_rope_method="su",
        arch=types.SimpleNamespace(lm=types.SimpleNamespace(rope_freq_half=False)),
    )
    inv_freq, attention = module.get_rope_params("cpu", fields, config["rope_theta"])
    return version, lambda length: {"inv_freq": inv_freq.tolist(), "attention_factor": attention}


def exllamav3(job: dict[str, Any]) -> tuple[str, Any]:
    """``exllamav3/util/rope.py``; of our models, only Phi-3's class hands the launched length on."""
    version, module = alone("exllamav3", "util", "rope.py", exllamav3__ext={"exllamav3_ext": None})
    config, scaling, dim = read(job)
    settings = module.RopeSettings(
        head_dim=dim,
        rope_theta=config["rope_theta"],
        rope_scaling=scaling,
        max_position_embeddings=config["max_position_embeddings"],
        original_max_position_embeddings=config["original_max_position_embeddings"],
        override_max_position_embeddings=job["limit"] if config["model_type"] == "phi3" else None,
    )
    rope = module.RoPE("cpu", settings)
    return version, lambda length: {"inv_freq": rope.inv_freq.tolist(), "attention_factor": rope.attn_factor}


def sglang(job: dict[str, Any]) -> tuple[str, Any]:
    """``Phi3LongRoPEScaledRotaryEmbedding``: the angles at position 1, and whether the last position has them too."""
    import torch

    no = {"get_device": lambda: "cpu", "cpu_has_amx_support": lambda: False}
    no |= dict.fromkeys(("is_cuda", "is_hip", "is_npu"), lambda: False)
    inner = "sglang__srt__layers__rotary_embedding__"
    rotate = {"rotate_neox": lambda x: torch.cat((-x.chunk(2, -1)[1], x.chunk(2, -1)[0]), -1)}
    names = ("_extend_yarn_cache", "yarn_find_correction_range", "yarn_get_mscale", "yarn_linear_ramp_mask")
    stubs = {
        "sglang__kernels__fused_op": {"BaseFusedOp": object},
        f"{inner}base": {"RotaryEmbedding": torch.nn.Module},
        f"{inner}utils": {**rotate, "apply_rotary_pos_emb_native": None, "rotate_gptj": None},
        f"{inner}yarn": dict.fromkeys(names),
        "sglang__srt__utils": no,
    }
    version, module = alone("sglang", "srt", "layers", "rotary_embedding", "rope_variant.py", **stubs)
    config, scaling, dim = read(job)
    rope = module.Phi3LongRoPEScaledRotaryEmbedding(
        dim,
        dim,
        config["max_position_embeddings"],
        config["original_max_position_embeddings"],
        config["rope_theta"],
        True,
        torch.float64,
        scaling["short_factor"],
        scaling["long_factor"],
        **{key: scaling[key] for key in ("short_mscale", "long_mscale") if key in scaling},
    )

    def at(length: int) -> dict[str, Any]:
        query = torch.cat((torch.ones(length, dim // 2), torch.zeros(length, dim // 2)), -1).double()
        cos, sin = rope(torch.arange(length), query, query)[0].chunk(2, -1)
        first, last = torch.atan2(sin, cos)[[1, -1]]
        turn = (last - first * (length - 1)) / (2 * math.pi)
        same = bool((turn - turn.round()).abs().max() < 1e-3)
        attention = float((cos[1] ** 2 + sin[1] ** 2).sqrt().mean())
        return {"inv_freq": first.tolist(), "attention_factor": attention, "last position": "same" if same else "other"}

    return version, at


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        name, job, answer = sys.argv[2:]
        try:
            found = inside(name, json.loads(Path(job).read_text()))
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {error}"[:300]}
        Path(answer).write_text(json.dumps(found))
    else:
        sys.path.append(str(Path(__file__).parent.parent / "tests"))
        main()
