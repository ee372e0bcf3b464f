"""The numbers of serving engines, each computed in its own interpreter: for ``serving.py``."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import math
import sys
import types
from itertools import accumulate
from pathlib import Path
from typing import Any

CODE = ("exllamav2", "exllamav3", "sglang")  # engines of which only the rotary embedding runs
SEED = 0


def main(engine: str, job: dict[str, Any]) -> dict[str, Any]:
    """Return an engine's version and its numbers by length."""
    version, compute = RUNNERS[engine](job)
    values = {length: compute(length if engine in CODE else job["tokens"][:length]) for length in job["lengths"]}
    return {"version": version, "values": values}


def next_tokens(logits: Any, tokens: Any) -> list[float]:
    """Return the log-probability in nats of every token but the first."""
    return logits[:-1].double().log_softmax(-1).gather(-1, tokens[1:, None])[:, 0].tolist()


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
    """Return a package's version and one of its files, loaded without the other files, which need CUDA.

    The stubs are contents of modules that the file imports, by name with ``__`` for a dot.
    """
    spec: Any = importlib.util.find_spec(package)
    *parents, full_name = accumulate((package, *path[:-1], Path(path[-1]).stem), "{}.{}".format)
    for name in (*parents, *(stub.replace("__", ".") for stub in stubs)):
        sys.modules.setdefault(name, types.ModuleType(name)).__path__ = []
    for name, content in stubs.items():
        vars(sys.modules[name.replace("__", ".")]).update(content)
    file = Path(spec.submodule_search_locations[0], *path)
    loaded: Any = importlib.util.spec_from_file_location(full_name, file)
    module = sys.modules[full_name] = importlib.util.module_from_spec(loaded)
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
    name, job, answer = sys.argv[1:]
    try:
        output = main(name, json.loads(Path(job).read_text()))
    except Exception as error:
        output = {"error": f"{type(error).__name__}: {error}"[:300]}
    Path(answer).write_text(json.dumps(output))
