"""Train with your own Trainer: every checkpoint keeps the factors. Outside of one, use `lr.apply(model, scaling)`."""

import tempfile
from typing import Any

from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

import longrope as lr

model, tokenizer = lr.load("tiny", dtype="float32")
tokens = tokenizer(lr.load_documents(tempfile.__file__)[0].text)["input_ids"][:1024]
dataset: Any = [{"input_ids": tokens, "labels": tokens}]
callback = lr.LongRopeCallback(lr.scheme("yarn", lr.Rope.of(model), 1024))
arguments = TrainingArguments(tempfile.mkdtemp(), max_steps=2, use_cpu=True, report_to="none")
Trainer(model, arguments, train_dataset=dataset, callbacks=[callback]).train()
reloaded: Any = AutoModelForCausalLM.from_pretrained(f"{arguments.output_dir}/checkpoint-2")
trained, saved = (lr.perplexity(each, [tokens], lengths=[1024])[0].perplexity for each in (model, reloaded))
print(f"checkpoint-2 has perplexity {saved:.3f}, the trained model {trained:.3f}")
assert abs(saved / trained - 1) < 1e-4
