"""Fine-tune with transformers' own Trainer and keep the factors in every checkpoint.

The callback puts the factors into the model and its config. Each checkpoint then loads in plain transformers with the
same logits. Without a Trainer, `lr.apply(model, scaling)` does the same, and `lr.detach(model)` undoes it.
"""

import tempfile
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

import longrope as lr

model, tokenizer = lr.load("tiny", dtype="float32")
scaling = lr.scheme("yarn", lr.Rope.of(model), 1024)
text = "".join(document.text for document in lr.load_documents("stdlib:unseen")[:4])
samples = torch.tensor(tokenizer(text)["input_ids"][:4096]).view(4, 1024)
dataset: Any = [{"input_ids": sample, "labels": sample} for sample in samples]
folder = tempfile.mkdtemp()
arguments = TrainingArguments(folder, max_steps=2, learning_rate=1e-5, use_cpu=True, report_to="none")
trainer = Trainer(model, arguments, train_dataset=dataset, callbacks=[lr.LongRopeCallback(scaling)])
trainer.train()
with torch.no_grad():
    reloaded = AutoModelForCausalLM.from_pretrained(f"{folder}/checkpoint-2")
    difference = (reloaded(samples).logits - model.eval()(samples).logits).abs().max().item()
print(f"checkpoint-2 of {folder}: its logits differ from the trained model's by at most {difference:.0e}")
assert difference < 1e-3
