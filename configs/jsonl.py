"""Your own tasks: one JSONL file each, learned one after another on a frozen language model (docs/your_own_tasks.md).

    python -m ftn_jax.main --config=configs/jsonl.py --config.stream.files="('support.jsonl','legal.jsonl')"

A line is {"prompt": ..., "completion": ...} or {"text": ...}. One seed and one method; all other settings have their
defaults (docs/settings.md): a task is as small as an adapter of rank 16 on all linear modules. For components as in the
paper, add --config.pool.rank=4 --config.configurer.k=72 --config.pool.modules="('qkv',)" and
--config.optimizer.learning_rate=5e-4.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "methods": ("lora_ftn_reserve",),  # each task owns its components; or "lora_ftn_gradient", "lora_bank", ...
            "stream": {
                "name": "jsonl",
                "files": ("examples/spoken.jsonl", "examples/headline.jsonl"),  # one task each, in this order
            },
            "pool": {"name": "lora"},  # 576 components: room for 72 disjoint tasks of k = 8
            "variants": {
                "lora_ftn_gradient": {  # as in configs/lora.py
                    "method": "lora_ftn",
                    "recovery_lateral_steps": 2,
                    "b_std": 0.02,
                    "configurer": {"proposal": "gradient", "steps": 40, "start": 0.05},
                },
            },
        }
    )
