"""The serving engines, each with its launch and its rules, read in the source of a version (see docs/serving.md)."""

from __future__ import annotations

from longrope.engines.rules import (
    Engine,
    Rule,
    YarnRule,
    always,
    by_context,
    by_launch,
    by_position,
    by_sequence,
    formula,
    launched,
    mscale,
    own,
    unscaled,
    yarn_by_factor,
    yarn_by_launch,
    yarn_by_length,
)

FAMILIES = (
    "cohere gemma2 gemma3_text glm gpt_neox granite llama mistral mixtral nemotron olmo2 olmo3 phi phi3 qwen2 "
    "qwen2_moe qwen3 smollm3 stablelm starcoder2"
)
IMAGES = "gemma3 mistral3 qwen2_5_vl qwen3_vl"  # factors are in their text_config
LATENT = "deepseek_v2 deepseek_v3 minicpm3"


def _models(*rules: tuple[str, Rule | str]) -> dict[str, Rule | str]:
    """Return the rule of each model type; a later pair of model types and rule overrules an earlier one."""
    return {kind: rule for kinds, rule in rules for kind in kinds.split()}


GROWS = (
    "a batch takes the set of its longest row, and a sequence that grows past L0 keeps keys of the short factors "
    "in its cache"
)
BATCH = "a batch takes the set of its longest row; a sequence that grows past L0 is recomputed from its start"
CHUNKS = f"{GROWS}; a prompt that is read in pieces takes a set for each piece"
PAIRS = "stops: its longrope rotates halves of a head, and this architecture rotates pairs side by side"
QWEN = "stops: 'longrope' is not a position embedding type of its Qwen models"
SLOTS = "with -np N and without --kv-unified, a slot has 1/N of -c, and its set goes by that"
AXES = "stops: its longrope takes one position for a token, and this architecture has three"
FOURFOLD = "takes 4·L0 for L0 in the YaRN of this architecture: other factors than the checkpoint's"
AS_YARN = "takes any scaling of this architecture for YaRN and reads its factor alone: wrong beyond L0"
HALVES = "rotates halves of a head by longrope, where this architecture rotates neighbours: wrong with any factors"
ABSENT = "has no such architecture"
UNREAD = "ignores the factors of this architecture, so that longrope writes no GGUF of it"
OUTSIDE = "stops: it looks for original_max_position_embeddings beside text_config, where it is not"
INSIDE = "stops: it looks for the fields of the text model beside text_config, where transformers 5 does not write them"

PLAIN = Rule(always("none"), unscaled)  # ignores the factors silently
TRANSFORMERS = Rule(by_sequence, own, GROWS)


def _handed_on(options: str) -> Rule:
    """Return the rule of transformers' code within another engine, which cannot compile its choice of the set."""
    return Rule(by_sequence, own, CHUNKS, options)


VLLM = Rule(by_launch, mscale)
SGLANG = Rule(
    by_position,
    mscale,
    CHUNKS,
    slip="it rotates the token at position L0 as if it stood at position 0, unless a later one is in its batch",
)
LONG = Rule(always("long"), formula)

LLAMA_CPP_YARN = (  # options that every architecture obeys, whatever keys the file has
    "-c {length} --rope-scaling yarn --rope-scale {factor:.7g} --yarn-orig-ctx {original} "
    "--yarn-beta-fast {beta_fast:.7g} --yarn-beta-slow {beta_slow:.7g} --yarn-attn-factor 1{attention}"
)
GGUF_NAMES = {  # model type -> llama.cpp's architecture, where the names differ
    "cohere": "command-r",
    "deepseek_v2": "deepseek2",
    "deepseek_v3": "deepseek2",
    "gemma3_text": "gemma3",
    "glm": "chatglm",
    "glm4_moe": "glm4moe",
    "gpt_neox": "gptneox",
    "gpt_oss": "gpt-oss",
    "mistral": "llama",
    "mixtral": "llama",
    "olmo3": "olmo2",
    "phi": "phi2",
    "qwen2_5_vl": "qwen2vl",
    "qwen2_moe": "qwen2moe",
    "qwen3_moe": "qwen3moe",
    "qwen3_vl": "qwen3vl",
}


def llama_cpp_attention(model_type: str, ratio: float) -> str:
    """Return the option by which llama.cpp multiplies YaRN's attention factor, 0.1·ln factor + 1; empty for 1.

    Since December 2025 llama.cpp computes this factor whatever ``--yarn-attn-factor`` says (``src/llama-context.cpp``,
    pull request 17945), and multiplies it by a key of the file.

    Args:
        model_type: Model type of the config, or llama.cpp's architecture.
        ratio: Attention factor divided by the formula's.
    """
    if ratio == 1:
        return ""
    return f" --override-kv {GGUF_NAMES.get(model_type, model_type)}.rope.scaling.attn_factor=float:{ratio:.7g}"


CONVERTED_YARN = (
    f"python convert_hf_to_gguf.py {{folder}} --outfile {{file}} && llama-server -m {{file}} {LLAMA_CPP_YARN}"
)
OPEN = """\
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained({folder}, dtype="auto", device_map="auto")
tokenizer = AutoTokenizer.from_pretrained({folder})"""
EXLLAMAV2 = """\
from exllamav2 import ExLlamaV2, ExLlamaV2Config
config = ExLlamaV2Config({folder})
config.max_seq_len = {length}  # the attention factor follows this number
model = ExLlamaV2(config)"""
EXLLAMAV3 = """\
from exllamav3 import Cache, Config, Model
config = Config.from_directory({folder})
model = Model.from_config(config)
cache = Cache(model, max_num_tokens={length})
model.load()"""

ENGINES: dict[str, Engine] = {
    "transformers": Engine(
        version="5.23.0",
        models=_models(
            (f"{FAMILIES} {IMAGES} {LATENT}", TRANSFORMERS),
            ("phi3", Rule(by_sequence, own, BATCH)),
            ("phimoe", Rule(always("short"), mscale)),
        ),
        takes_limit=False,
        launch=OPEN,
        in_python=True,
    ),
    "transformers-4.57": Engine(
        version="4.57.6",
        models=_models(
            (f"{FAMILIES} {IMAGES} deepseek_v2 deepseek_v3", TRANSFORMERS),
            ("phi3", Rule(by_sequence, own, BATCH)),
            ("minicpm3", ABSENT),
            ("nemotron", PLAIN),
            ("olmo2", "stops: its config takes a rope_scaling of two fields only"),
        ),
        fields=("rope_scaling",),
        takes_limit=False,
        launch=OPEN,
        in_python=True,
    ),
    "vllm": Engine(
        version="0.32.0",
        models=_models(
            (f"{FAMILIES} phimoe gemma3 mistral3 minicpm3", VLLM),
            ("qwen2_5_vl qwen3_vl", AXES),
            ("deepseek_v2 deepseek_v3", AS_YARN),
            ("glm olmo2 phi smollm3 starcoder2", _handed_on("--enforce-eager")),
            ("olmo3", "stops at the second long sequence: transformers 5.19, which it asks for, has a fault there"),
            ("gpt_neox", "gave wrong logits for a random model of this architecture, with factors and without"),
            ("cohere", PAIRS),
        ),
        beyond="refuse",
        launch="vllm serve {folder} --max-model-len {length}",
        note="Without `--max-model-len` it starts for {original:,} tokens, whatever the checkpoint is made for.",
        yarn=YarnRule(models=_models(("cohere olmo3 qwen3_vl", VLLM), ("qwen2_5_vl", FOURFOLD))),
    ),
    "sglang": Engine(
        version="0.5.23",
        models=_models(
            (f"{FAMILIES} phimoe mistral3 minicpm3", SGLANG),
            ("qwen2_5_vl qwen3_vl", AXES),
            ("deepseek_v2 deepseek_v3", AS_YARN),
            ("gemma2 mixtral phi stablelm starcoder2", PLAIN),
            ("gemma3 gemma3_text", Rule(always("short"), own)),
            ("glm gpt_neox nemotron smollm3", _handed_on("--disable-cuda-graph")),
            ("cohere", PAIRS),
        ),
        beyond="refuse",
        launch="python -m sglang.launch_server --model-path {folder} --context-length {length}",
        yarn=YarnRule(models=_models(("cohere qwen2_5_vl qwen3_vl", SGLANG))),
    ),
    "mlx-lm": Engine(
        version="0.32.2",
        models=_models(
            (f"{FAMILIES} {IMAGES} minicpm3", LONG),
            ("phimoe", Rule(always("long"), mscale)),
            ("deepseek_v2", AS_YARN),
            ("deepseek_v3", HALVES),
            ("cohere gemma2 mixtral phi stablelm starcoder2", PLAIN),
            ("nemotron qwen2_moe", "stops: it takes linear scaling only for this architecture"),
            ("glm", "rotates whole heads of this architecture, which rotates halves: wrong with any factors"),
            ("gpt_neox", "stops: it wants rotary_emb_base and rotary_pct, which transformers 5 does not write"),
        ),
        fields=("rope_scaling",),
        takes_limit=False,
        launch='mlx_lm.generate --model {folder} --max-tokens 256 --prompt "Hello"',
        note="It takes prompts of any length: keep below {length:,} tokens.",
        yarn=YarnRule(
            yarn_by_factor,
            models=_models(("minicpm3", "reads no YaRN in this architecture: plain RoPE")),
            note="It takes prompts of any length: keep below {length:,} tokens.",
        ),
    ),
    "exllamav2": Engine(
        version="0.3.2",
        models=_models(
            (f"{FAMILIES} {IMAGES} {LATENT}", ABSENT),
            (
                "cohere gemma2 granite llama mistral mixtral phi3 qwen2 qwen3 starcoder2",
                Rule(by_launch, launched),
            ),
            ("gemma3 mistral3 qwen2_5_vl", OUTSIDE),
        ),
        fields=("rope_scaling",),
        launch=EXLLAMAV2,
        in_python=True,
        note="Launched for another length, it computes another attention factor.",
        yarn=YarnRule(yarn_by_launch, models=_models(("gemma3 mistral3 qwen2_5_vl", Rule(by_launch, launched)))),
    ),
    "exllamav3": Engine(
        version="1.6.5",
        models=_models(
            (f"{FAMILIES} {IMAGES} {LATENT}", ABSENT),
            ("cohere gemma2 gemma3_text llama mistral mixtral olmo3 qwen2 qwen3 smollm3", LONG),
            ("gemma3 mistral3 qwen3_vl deepseek_v3", LONG),
            ("phi3", Rule(by_launch, formula)),
            ("qwen2_5_vl", INSIDE),
        ),
        launch=EXLLAMAV3,
        in_python=True,
        note="It takes prompts of any length that the cache holds: keep below {length:,} tokens.",
        yarn=YarnRule(
            yarn_by_length, note="It takes prompts of any length that the cache holds: keep below {length:,} tokens."
        ),
    ),
    "tensorrt-llm": Engine(
        version="the main branch of 2026",
        models=_models(
            (f"{FAMILIES} deepseek_v2 minicpm3", ABSENT),
            ("llama mistral mistral3 mixtral nemotron starcoder2", LONG),
            ("phi3", Rule(by_launch, formula)),
            ("gemma3 gemma3_text qwen2_5_vl qwen3_vl", PLAIN),
            ("qwen2 qwen2_moe qwen3", QWEN),
        ),
        beyond="cut",
        launch="trtllm-serve {folder} --max_seq_len {length}",
        note="This is read in its source, not run.",
        yarn=YarnRule(
            yarn_by_factor,
            models=_models(("qwen2 qwen2_moe qwen3", LONG)),
            note="This is read in its source, not run.",
        ),
    ),
    "llama.cpp": Engine(
        version="that reads what longrope export --to gguf wrote",
        models=_models(
            (f"{FAMILIES} {IMAGES} deepseek_v2 deepseek_v3", UNREAD),
            ("mistral3 minicpm3", "reads the factors of this architecture, of which longrope writes no GGUF"),
            ("llama mistral phi3", Rule(by_context, own, SLOTS)),
        ),
        launch="longrope export {folder} --to gguf -o {file} && llama-server -m {file} -c {length}",
        yarn=YarnRule(models=_models((FAMILIES, TRANSFORMERS)), launch=CONVERTED_YARN),
    ),
}
