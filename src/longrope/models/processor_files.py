"""The files of a checkpoint that prepare images, video and sound for a model, which factors do not change."""

from __future__ import annotations

import shutil
from pathlib import Path

from transformers import PreTrainedConfig

from longrope.formats.checkpoint_file import find_file

FILES = (
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "audio_tokenizer_config.json",
    "chat_template.json",
    "chat_template.jinja",
)


def copy_processor(config: PreTrainedConfig, folder: Path) -> None:
    """Copy the files of a model's processor beside its weights. Text models have none, and existing files stay.

    Args:
        config: Config of the model, which knows the folder or hub id that it came from.
        folder: Folder to complete.
    """
    if config.get_text_config() is config or not config.name_or_path:
        return
    for name in FILES:
        path = find_file(config.name_or_path, name)
        if path is not None and not (folder / name).exists():
            shutil.copyfile(path, folder / name)
