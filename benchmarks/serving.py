"""The factors that each engine uses with an exported checkpoint, and how far its numbers are from ours.

    python benchmarks/serving.py vllm=PATH/python mlx-lm=PATH/python transformers-4.57=PATH/python \
        exllamav2=PATH/python exllamav3=PATH/python sglang=PATH/python

Each engine is named with the interpreter that it is installed in (docs/serving.md shows how to make one on a CPU). The
first three run checkpoints of ``tiny`` and of tiny random models. The log-probability of every next token is compared
with ours, computed with the long factors, the short ones and none. The last three need CUDA, so only their code for the
rotary embedding runs. Measurements in ``benchmarks/results/serving.json`` are not repeated.
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
CODE = ("exllamav2", "exllamav3", "sglang")  # engines of which only the rotary embedding runs
LAUNCHED = ("vllm", "exllamav2", "exllamav3")  # engines whose factors depend on the maximum length
BOTH = ("tiny", "phi3")  # models that are exported in both modes and launched for both lengths
HEADS = {"hidden_size": 256, "head_dim": 64}  # vLLM's attention on CPUs needs heads of 32 or more
SEED = 0
TOLERANCE = 0.05  # nats, or relative for frequencies; other factors differ by tenths


def main() -> None:
    """Measure what is not in the results yet."""
    parser = argparse.ArgumentParser()
    parser.add_argument("engines", nargs="+", help="NAME=INTERPRETER")
    parser.add_argument("--models", default="", help="Models by commas (default: all).")
    arguments = parser.parse_args()
    measurements: dict[str, Any] = json.loads(RESULTS.read_text())["cells"] if RESULTS.exists() else {}
    models = [name for name in arguments.models.split(",") if name]
    for model, mode in checkpoints():
        if models and model not in models:
            continue
        folder = export_checkpoint(model, mode)
        reference = json.loads((folder / "reference.json").read_text())
        for engine, python in (word.split("=", 1) for word in arguments.engines):
            if engine in CODE and model not in BOTH:
                continue
            limits = reference["limits"]
            for limit in limits if engine in LAUNCHED and model in BOTH else limits[-1:]:
                key = f"{engine} {model} {mode} {limit}"
                if key not in measurements:
                    measurements[key] = measure(engine, python, folder, reference, limit)
                    print(key, measurements[key], flush=True)
                    save(measurements)


def save(measurements: dict[str, Any]) -> None:
    """Write the results file."""
    from longrope.provenance import provenance
    from longrope.storage.atomic import write_json

    source = {**provenance(), "command": "serving.py ENGINE=PYTHON ..."}
    write_json(RESULTS, {"seed": SEED, "cells": dict(sorted(measurements.items())), "provenance": source})


def checkpoints() -> list[tuple[str, str]]:
    """Return models and modes: ``tiny`` and Phi-3 in both modes, and one dual checkpoint of every other family."""
    families = importlib.import_module("families")
    both = [(model, mode) for model in BOTH for mode in ("dual", "static")]
    return both + [(family, "dual") for family in families.FAMILIES if family != "phi3"]


def export_checkpoint(name: str, mode: str) -> Path:
    """Export a model and write ``reference.json``: our log-probabilities with each set of factors."""
    from longrope import ExportOptions, Extension, Rope, Scaling, export, load, scheme

    families = importlib.import_module("families")
    folder = BUILD / f"{name}-{mode}"
    if (folder / "reference.json").exists():
        return folder
    model, tokenizer = load("tiny", dtype="float32") if name == "tiny" else (plain_model(name), families.tokenizer())
    rope = Rope.of(model)
    long = scheme("heuristic", rope, 8 * rope.original_length)
    ramp = [1 + i / rope.dim for i in range(rope.dim // 2)]
    short = Scaling(ramp, attention_factor=long.attention_factor, scheme="ramp", length=rope.original_length)
    extension = Extension(rope=rope, short=short, long=long, length=8 * rope.original_length)
    written = export(model, tokenizer, extension, folder, mode=mode, options=ExportOptions(overwrite=True))
    (folder / "reference.json").write_text(json.dumps(reference_of(model, written)))
    return folder


def reference_of(model: Any, extension: Any) -> dict[str, Any]:
    """Return our log-probabilities and frequencies with the long factors, the short ones and none."""
    import torch

    from longrope import Scaling, patch

    rope, start = extension.rope, extension.rope.original_length
    lengths = [start - 1, start, start + 1, start + 2, 3 * start]
    generator = torch.Generator().manual_seed(SEED)
    tokens = torch.randint(3, model.config.vocab_size, (lengths[-1],), generator=generator)
    logprobs: dict[str, Any] = {}
    for name, scaling in {"long": extension.long, "short": extension.short, "none": None}.items():
        with patch(model, scaling), torch.inference_mode():
            logits = [model(input_ids=tokens[None, :length], use_cache=False).logits[0] for length in lengths]
        logprobs[name] = {str(n): next_tokens(values, tokens[:n]) for n, values in zip(lengths, logits, strict=True)}
    scalings = {"long": extension.long, "short": extension.short, "none": Scaling.identity(rope)}
    return {
        "tokens": tokens.tolist(),
        "lengths": lengths,
        "limits": [start, extension.length],
        "original_length": start,
        "logprobs": logprobs,
        "inv_freq": {name: scaling.inv_freq(rope).tolist() for name, scaling in scalings.items()},
        "attention_factor": extension.long.attention_factor,
    }


def plain_model(family: str) -> Any:
    """Build a tiny random model whose rotary embedding is not scaled."""
    families = importlib.import_module("families")
    fields = {name: size for name, size in HEADS.items() if name in ("hidden_size", *families.FAMILIES[family])}
    return families.build(family, **fields, **({"rope_parameters": None} if family == "phi3" else {}))


def next_tokens(logits: Any, tokens: Any) -> list[float]:
    """Return the log-probability in nats of every token but the first."""
    return logits[:-1].double().log_softmax(-1).gather(-1, tokens[1:, None])[:, 0].tolist()


def measure(engine: str, python: str, folder: Path, reference: dict[str, Any], limit: int) -> dict[str, Any]:
    """Launch an engine for a maximum length and compare its numbers at each length, or return its error."""
    job = {**reference, "folder": str(folder.resolve()), "limit": limit}
    job["lengths"] = [length for length in reference["lengths"] if length < limit]
    (folder / "job.json").write_text(json.dumps(job))
    answer = folder / "answer.json"
    answer.unlink(missing_ok=True)
    command = [python, __file__, "--inside", engine, str(folder / "job.json"), str(answer)]
    completed = subprocess.run(command, capture_output=True, text=True, timeout=900)
    output: dict[str, Any] = json.loads(answer.read_text()) if answer.exists() else {"error": "no answer"}
    if "error" in output:  # vLLM's process says less than the one that it started
        lines = re.findall(r"\w+Error: .*", completed.stdout + completed.stderr)
        causes = [line for line in lines if "ngine core" not in line and "EngineCore" not in line]
        return {"error": (causes or [output["error"]])[0][:200]}
    verified = "code path" if engine in CODE else "run"
    comparisons = {length: compare(values, reference, int(length)) for length, values in output["values"].items()}
    return {"version": output["version"], "verified": verified, "lengths": comparisons}


def compare(values: Any, reference: dict[str, Any], length: int) -> dict[str, Any]:
    """Return the set of factors that is nearest to an engine's numbers, and the distance from each set."""
    extra = {}
    if isinstance(values, dict):
        sets = reference["inv_freq"]
        distance = {name: rms(values["inv_freq"], inv_freq, relative=True) for name, inv_freq in sets.items()}
        extra = {name: value for name, value in values.items() if name != "inv_freq"}
    else:
        distance = {name: rms(values, by_length[str(length)]) for name, by_length in reference["logprobs"].items()}
    due = "short" if length <= reference["original_length"] else "long"
    nearest = min(distance, key=lambda name: distance[name])
    nearest = nearest if distance[nearest] < TOLERANCE else "other"
    return {"set": nearest, "from ours": distance[due], "from each": distance, **extra}


def rms(values: list[float], references: list[float], *, relative: bool = False) -> float:
    """Return the root mean square of the difference."""
    pairs = zip(values, references, strict=True)
    differences = [(value - reference) / (reference if relative else 1) for value, reference in pairs]
    return math.sqrt(sum(difference**2 for difference in differences) / len(differences))


def inside(engine: str, job: dict[str, Any]) -> dict[str, Any]:
    """Return an engine's version and its numbers by length; this runs in the engine's interpreter."""
    tokens, lengths = job["tokens"], job["lengths"]
    version, compute = RUNNERS[engine](job)
    values = {length: compute(length if engine in CODE else tokens[:length]) for length in lengths}
    return {"version": version, "values": values}


def transformers(job: dict[str, Any]) -> tuple[str, Any]:
    """Run plain transformers of any version."""
    import torch
    from transformers import AutoModelForCausalLM, __version__

    model = AutoModelForCausalLM.from_pretrained(job["folder"], dtype=torch.float32).eval()

    @torch.inference_mode()
    def prompt(tokens: list[int]) -> list[float]:
        input_ids = torch.tensor(tokens)
        return next_tokens(model(input_ids=input_ids[None], use_cache=False).logits[0], input_ids)

    return __version__, prompt


def vllm(job: dict[str, Any]) -> tuple[str, Any]:
    """Run vLLM offline in float32, each prompt in one chunk."""
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
    sampling = engine.SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)

    def prompt(tokens: list[int]) -> list[float]:
        [output] = model.generate([{"prompt_token_ids": tokens}], sampling, use_tqdm=False)
        candidates = zip(output.prompt_logprobs[1:], tokens[1:], strict=True)
        return [logprobs[token].logprob for logprobs, token in candidates]

    return engine.__version__, prompt


def mlx_lm(job: dict[str, Any]) -> tuple[str, Any]:
    """Run mlx-lm in float32."""
    mx: Any = importlib.import_module("mlx.core")
    model, _ = importlib.import_module("mlx_lm.utils").load_model(Path(job["folder"]))
    model.set_dtype(mx.float32)

    def prompt(tokens: list[int]) -> list[float]:
        logits = model(mx.array(tokens)[None])[0, :-1]
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        return mx.take_along_axis(logprobs, mx.array(tokens[1:])[:, None], axis=-1)[:, 0].tolist()

    return importlib.metadata.version("mlx-lm"), prompt


def read_config(job: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], int]:
    """Return a checkpoint's config, its ``rope_scaling`` and the number of rotated dimensions of a head."""
    config = json.loads((Path(job["folder"]) / "config.json").read_text())
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return config, config["rope_scaling"], int(head * config.get("partial_rotary_factor", 1.0))


def load_module(package: str, *path: str, **stubs: Any) -> tuple[str, Any]:
    """Return a package's version and one of its files, loaded without the other files, which need CUDA."""
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
    """Run ``exllamav2/rope.py`` with the fields that ``exllamav2/config.py`` fills in."""
    version, module = load_module("exllamav2", "rope.py")
    config, scaling, dim = read_config(job)
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
    """Run ``exllamav3/util/rope.py``; of our models, only Phi-3's class passes the launched length to it."""
    version, module = load_module("exllamav3", "util", "rope.py", exllamav3__ext={"exllamav3_ext": None})
    config, scaling, dim = read_config(job)
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
    """Run ``Phi3LongRoPEScaledRotaryEmbedding``: the angles at position 1, and whether the last one has the same."""
    import torch

    on_cpu = {"get_device": lambda: "cpu", "cpu_has_amx_support": lambda: False}
    on_cpu |= dict.fromkeys(("is_cuda", "is_hip", "is_npu"), lambda: False)
    inner = "sglang__srt__layers__rotary_embedding__"
    rotate = {"rotate_neox": lambda x: torch.cat((-x.chunk(2, -1)[1], x.chunk(2, -1)[0]), -1)}
    names = ("_extend_yarn_cache", "yarn_find_correction_range", "yarn_get_mscale", "yarn_linear_ramp_mask")
    stubs = {
        "sglang__kernels__fused_op": {"BaseFusedOp": object},
        f"{inner}base": {"RotaryEmbedding": torch.nn.Module},
        f"{inner}utils": {**rotate, "apply_rotary_pos_emb_native": None, "rotate_gptj": None},
        f"{inner}yarn": dict.fromkeys(names),
        "sglang__srt__utils": on_cpu,
    }
    version, module = load_module("sglang", "srt", "layers", "rotary_embedding", "rope_variant.py", **stubs)
    config, scaling, dim = read_config(job)
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

    def angles(length: int) -> dict[str, Any]:
        query = torch.cat((torch.ones(length, dim // 2), torch.zeros(length, dim // 2)), -1).double()
        cos, sin = rope(torch.arange(length), query, query)[0].chunk(2, -1)
        first, last = torch.atan2(sin, cos)[[1, -1]]
        turn = (last - first * (length - 1)) / (2 * math.pi)
        same = bool((turn - turn.round()).abs().max() < 1e-3)
        attention = float((cos[1] ** 2 + sin[1] ** 2).sqrt().mean())
        return {"inv_freq": first.tolist(), "attention_factor": attention, "last position": "same" if same else "other"}

    return version, angles


RUNNERS = {
    "transformers-4.57": transformers,
    "vllm": vllm,
    "mlx-lm": mlx_lm,
    "exllamav2": exllamav2,
    "exllamav3": exllamav3,
    "sglang": sglang,
}

if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        name, job, answer = sys.argv[2:]
        try:
            output = inside(name, json.loads(Path(job).read_text()))
        except Exception as error:
            output = {"error": f"{type(error).__name__}: {error}"[:300]}
        Path(answer).write_text(json.dumps(output))
    else:
        sys.path.append(str(Path(__file__).parent.parent / "tests"))
        main()
