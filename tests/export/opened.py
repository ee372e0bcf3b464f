"""What plain transformers, of whatever version runs this script, computes from checkpoints.

``python opened.py ASKED ANSWERED``: ASKED is JSON, ``{"folders": […], "text": …, "tokens": [[…], …]}``; ANSWERED
becomes a safetensors file with ``i.ids``, folder i's tokens of the text, and ``i.j``, its logits of the tokens j. A
folder that does not load has no logits, and its reason on standard output.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer
from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()


@torch.inference_mode()
def answer(asked: dict) -> dict[str, torch.Tensor]:
    answered = {}
    for i, folder in enumerate(asked["folders"]):
        answered[f"{i}.ids"] = torch.tensor(AutoTokenizer.from_pretrained(folder)(asked["text"])["input_ids"])
        try:
            config = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
            loader = AutoModelForImageTextToText if "text_config" in config else AutoModelForCausalLM
            model = loader.from_pretrained(folder).float().eval()
        except ValueError as error:
            print(folder, str(error).splitlines()[0][:120])
            continue
        for j, tokens in enumerate(asked["tokens"]):
            answered[f"{i}.{j}"] = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
    return answered


if __name__ == "__main__":
    torch.set_num_threads(1)
    with open(sys.argv[1], encoding="utf-8") as file:  # noqa: PTH123
        asked = json.load(file)
    save_file(answer(asked), sys.argv[2])
