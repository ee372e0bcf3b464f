"""Train a LoRA adapter on an exported folder with PEFT, and merge it into a folder that has the factors, too.

python peft_lora.py extended my-texts/ adapter
longrope export adapter --factors extended -o merged     # merges; or keep the adapter and serve it on `extended`
"""

import sys
from typing import Any

from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
)

import longrope as lr


def train(checkpoint: str, texts: str, output: str, **options: Any) -> None:
    """Train an adapter on texts of up to the checkpoint's length; `options` are of `TrainingArguments`."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    length = lr.load_factors(checkpoint).length
    documents = [document.text for document in lr.load_documents(texts)]
    tokens = tokenizer(documents, truncation=True, max_length=length)["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype="auto")
    adapted = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
    defaults = {"max_steps": 400, "per_device_train_batch_size": 1, "learning_rate": 2e-4}
    Trainer(
        adapted,
        TrainingArguments(output, **defaults | options),
        train_dataset=Dataset.from_dict({"input_ids": tokens}),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    ).train()
    adapted.save_pretrained(output)  # its base is the folder of the checkpoint, whose config has the factors
    tokenizer.save_pretrained(output)


if __name__ == "__main__":
    train(*sys.argv[1:])
