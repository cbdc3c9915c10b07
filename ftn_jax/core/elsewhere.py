"""Names that settings have in TRL, PEFT and transformers, for messages about a setting that does not exist."""

import difflib
from collections.abc import Iterable

_NONE = {
    "lora_alpha": "an adapter has no scale of its own; set config.optimizer.learning_rate",
    "lora_dropout": "adapters have no dropout",
    "load_in_4bit": "a base is not kept quantized; a quantized GGUF file is read and dequantized (config.base)",
    "load_in_8bit": "a base is not kept quantized; a quantized GGUF file is read and dequantized (config.base)",
    "num_train_epochs": "training counts steps; set config.stream.steps, those of each task",
    "eval_dataset": "validation examples are a share of each task's own; set config.stream.validation",
}
"""Names of what there is not -> what to do instead."""

_HERE = {
    "batch_size": "stream.batch",
    "bf16": "model.dtype",
    "gradient_checkpointing": "model.remat",
    "lora_r": "pool.rank",
    "lr": "optimizer.learning_rate",
    "max_seq_length": "stream.max_length",
    "max_steps": "stream.steps",
    "model_name_or_path": "base",
    "optim": "optimizer.name",
    "per_device_train_batch_size": "stream.batch",
    "r": "pool.rank",
    "target_modules": "pool.modules",
    "torch_dtype": "model.dtype",
    "train_dataset": "stream.files",
    "warmup_ratio": "optimizer.warmup_steps",
}
"""Names of what is here under another one -> the setting."""


def what_is_known(name: str, known: Iterable[str]) -> str:
    """The end of a message about a setting that does not exist: what stands for it, is written alike, or all there are.

    Args:
      name: the full name, such as ``config.optimizer.lr``.
      known: the full names of the settings that exist.
    """
    known, last = list(known), name.rpartition(".")[2]
    if last in _NONE:
        return _NONE[last]
    meant = f"config.{_HERE.get(last)}"
    found = [meant] if meant in known else difflib.get_close_matches(name, known, 1)
    return f"known: {', '.join(found or known)}"
