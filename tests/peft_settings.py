"""The settings of an adapter that PEFT knows."""

_OBJECT = {"some": 1}

# Every setting of `peft.LoraConfig` 0.21.2: values that change nothing for an adapter of rank 6 of all of GPT-2's
# modules, and values that are refused. parity/test_peft_parity.py checks that none is missing.
SETTINGS: dict[str, tuple[list, list]] = {
    "alora_invocation_tokens": ([None], [[5, 3], [], True]),
    "alpha_pattern": ([None, {}, {"none.such": 3}], [[], 3, {"c_fc": None}, {"c_fc": "1"}, {"(": 1}, {"c_fc": True}]),
    "arrow_config": ([None], [_OBJECT]),
    "auto_mapping": ([None, {"base_model_class": "GPT2LMHeadModel"}], []),
    "base_model_name_or_path": ([None, "", "org/toy", "other/toy"], ["gpt2", 3, ["org/toy"], {}]),
    "bias": ([None, "none"], ["all", "lora_only", False]),
    "corda_config": ([None, _OBJECT], []),
    "ensure_weight_tying": ([None, False, True], []),
    "eva_config": ([None, _OBJECT], []),
    "exclude_modules": ([None, [], "", ["c_attn2", "fc"]], [["c_fc"], r".*\.1\.attn.*", 3, {}, [3], "("]),
    "fan_in_fan_out": ([None, False, True], []),
    "inference_mode": ([None, False, True], []),
    "init_lora_weights": (
        [None, True, False, "gaussian", "eva", "orthogonal", "mica"],
        ["pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga", 1, "?"],
    ),
    "kasa_config": ([None], [{"beta": 1e-4, "gamma": 1e-3}]),
    "layer_replication": ([None], [[[0, 2], [1, 2]]]),
    "layers_pattern": ([None, "h", ["h"]], []),
    "layers_to_transform": ([None, [], [0, 1]], [0, [1], "0", [0.0, 1.0], {}, True]),
    "loftq_config": ([None, {}, _OBJECT], []),
    "lora_alpha": ([6, 6.0], [None, "6", True, [6], float("nan"), float("inf"), 10**400, -(10**31)]),
    "lora_bias": ([None, False], [True, 0]),
    "lora_dropout": ([None, 0.0, 0.5], []),
    "lora_ga_config": ([None, _OBJECT], []),
    "megatron_config": ([None], [_OBJECT]),
    "megatron_core": ([None, "megatron.core"], []),
    "modules_to_save": ([None, []], [["lm_head"], "lm_head", {}, 3, [3]]),
    "monteclora_config": ([None], [_OBJECT]),
    "peft_type": (["LORA"], [None, "IA3", "ADALORA", "lora", ["LORA"]]),
    "peft_version": ([None, "0.21.2"], []),
    "qalora_group_size": ([None, 16], []),
    "r": ([6], [None, 0, -6, 5, 6.0, "6", True, 10**400]),
    "rank_pattern": ([None, {}, {"no": 3}], [[], 3, {"c_fc": 6.0}, {"c_fc": 0}, {"a{99999999999999999999}": 6}]),
    "revision": ([None, "main"], []),
    "runtime_config": ([None, {"ephemeral_gpu_offload": True}], []),
    "target_modules": (
        [None, "all-linear", ["c_attn", "c_proj", "c_fc"], r".*\.(attn|mlp)\.c_.*"],
        [[], ["c_attn"], "attn", 3, {}, [3], "(" * 5000],
    ),
    "target_parameters": ([None, []], [["mlp.experts"]]),
    "task_type": ([None, "CAUSAL_LM", "SEQ_CLS"], []),
    "trainable_token_indices": ([None], [[1], {"wte": [1]}]),
    "use_bdlora": ([None], [_OBJECT]),
    "use_dora": ([None, False], [True, 1]),
    "use_qalora": ([None, False], [True]),
    "use_rslora": ([None, False], [1, "yes"]),  # true scales: see above
    "velora_config": ([None], [_OBJECT]),
}
