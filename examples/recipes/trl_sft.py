"""Fine-tune an exported folder with TRL: the callback keeps the factors, and `extension.json`, in every checkpoint.

python trl_sft.py extended my-texts/ trained
longrope export trained -o trained-extended     # adds the fields that engines other than transformers 5 read
"""

import sys
from typing import Any

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportMissingImports]

import longrope as lr


def train(checkpoint: str, texts: str, output: str, **options: Any) -> None:
    """Fine-tune a checkpoint on texts of up to its own length; `options` are of `SFTConfig`."""
    extension = lr.load_factors(checkpoint)
    defaults = {
        "max_length": extension.length,
        "max_steps": 400,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 32,
        "learning_rate": 2e-5,
        "lr_scheduler_type": "linear",
    }
    trainer = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(checkpoint, dtype="auto"),
        SFTConfig(output, **defaults | options),
        train_dataset=Dataset.from_list([{"text": document.text} for document in lr.load_documents(texts)]),
        processing_class=AutoTokenizer.from_pretrained(checkpoint),
        callbacks=[lr.LongRopeCallback(extension)],
    )
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    train(*sys.argv[1:])
