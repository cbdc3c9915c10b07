"""Reads a ``config.json``: the shape and numerics of a decoder.

Unknown keys are refused, since they may change what the model computes.
"""

from collections.abc import Mapping
from typing import Any

from ftn_jax.core.errors import InputError
from ftn_jax.models.decoder import DecoderConfig
from ftn_jax.models.families import REQUIRED, Family, family_of
from ftn_jax.models.rope import ropes

# Bounds of counts and numbers: beyond the values of any model, and far from overflow.
_MOST = 2**24
_LEAST, _LARGEST = 1e-30, 1e30
_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
# Keys that don't change what a decoder computes from its tokens: they concern text, training, storage or other heads.
_HARMLESS = {
    "architectures", "attention_dropout", "attn_implementation", "attn_pdrop", "auto_map", "bad_words_ids",
    "begin_suppress_tokens", "bos_token_id", "cache_implementation", "chunk_size_feed_forward",
    "decoder_start_token_id", "diversity_penalty", "do_sample", "dtype", "early_stopping", "embd_pdrop",
    "encoder_no_repeat_ngram_size", "eos_token_id", "exponential_decay_length_penalty", "finetuning_task",
    "forced_bos_token_id", "forced_eos_token_id", "gradient_checkpointing", "id2label", "initializer_range",
    "is_decoder", "is_llama_config", "keys_to_ignore_at_inference", "label2id", "length_penalty", "max_length",
    "min_length", "model_type", "n_ctx", "n_special", "name_or_path", "neftune_noise_alpha", "no_repeat_ngram_size",
    "num_beam_groups", "num_beams", "num_labels", "num_return_sequences", "output_attentions", "output_hidden_states",
    "output_past", "output_scores", "pad_token_id", "predict_special_tokens", "prefix", "pretraining_tp",
    "problem_type", "remove_invalid_values", "repetition_penalty", "resid_pdrop", "return_dict",
    "return_dict_in_generate", "sep_token_id", "suppress_tokens", "task_specific_params", "temperature",
    "tf_legacy_loss", "tokenizer_class", "top_k", "top_p", "torch_dtype", "torchscript", "transformers.js_config",
    "transformers_version", "typical_p", "use_bfloat16", "use_cache",
}  # fmt: skip
_HARMLESS_PREFIXES = ("_", "summary_", "unsloth")
# Keys that any config of transformers may have, with the values that change nothing.
_NEUTRAL: dict[str, tuple] = {
    "cross_attention_hidden_size": (None,),
    "is_encoder_decoder": (False,),
    "partial_rotary_factor": (None, 1.0, 1),
    "pruned_heads": (None, {}),
    "quantization_config": (None,),
    "tie_encoder_decoder": (False,),
}


def decoder_config(raw: Any, where: Any, *, dtype: str = "float32", remat: bool = False) -> DecoderConfig:
    """The `DecoderConfig` of a ``config.json``.

    Args:
      raw: its content.
      where: its file or folder, for messages.
      dtype: of the computation.
      remat: gradient checkpointing.

    Raises:
      InputError: an unknown kind of model, or a setting that is missing, unknown or has a value that is not supported.
    """
    if not isinstance(raw, dict):
        raise InputError(f"base {where}: config.json is {type(raw).__name__}, expected an object")
    family, fields = family_of(raw, where), Fields(raw, where)
    own: dict[str, Any] = dict(family.fixed)
    for field, (key, default) in family.keys.items():
        number = fields.number(key, default) if field == "norm_epsilon" else fields.count(key, default)
        if number is not None:
            own[field] = number
    own.setdefault("kv_heads", own["heads"])
    own.setdefault("inner", 4 * own["width"])
    if "head_width" not in own:
        if own["width"] % own["heads"]:
            raise InputError(f"base {where}: a width of {own['width']} can't be divided by {own['heads']} heads")
        own["head_width"] = own["width"] // own["heads"]
    if own["heads"] % own["kv_heads"]:
        raise InputError(
            f"base {where}: {own['heads']} heads can't be divided by {own['kv_heads']} heads of keys and values"
        )
    for key, allowed in (*family.allowed.items(), *_NEUTRAL.items()):
        fields.one_of(key, allowed[0], allowed)
    own["activation"] = _ACTIVATIONS[fields.one_of(*family.activation, tuple(_ACTIVATIONS))]
    biases = list(family.biases)
    for key, roles in family.bias_keys.items():
        biases += roles if fields.one_of(key, False, (False, True)) else ()
    scalar = fields.number(*family.query_scalar) if family.query_scalar else own["head_width"]
    if family.scaled:
        own["embedding_scale"] = own["width"] ** 0.5
    window, local = _local_layers(family, fields, own["layers"])
    if not family.positions:
        own["rope"], own["local_rope"] = ropes(family, fields, own["head_width"], own["positions"])
    fields.refuse_others()
    return DecoderConfig(
        **own,
        linears=tuple(family.linears.items()),
        block=family.named,
        biases=tuple(biases),
        window=window,
        local=local if any(local) else (),
        query_scale=scalar**-0.5,
        tied=raw.get("tie_word_embeddings", family.allowed["tie_word_embeddings"][0]),
        dtype=dtype,
        remat=remat,
    )


class Fields:
    """A ``config.json``, read key by key; keys that were never read are unknown (`refuse_others`)."""

    def __init__(self, raw: Mapping[str, Any], where: Any):
        self._raw, self._where, self._read = raw, where, set[str]()

    def get(self, key: str, default: Any = None) -> Any:
        self._read.add(key)
        return self._raw.get(key, default)

    def has(self, key: str) -> bool:
        return key in self._raw

    def refuse(self, key: str, value: Any, expected: str) -> InputError:
        return InputError(f"base {self._where}: {key} is {value!r}, expected {expected}")

    def count(self, key: str, default: Any) -> int | None:
        value = self.get(key)
        if value is None:
            if default is REQUIRED:
                raise InputError(f"base {self._where}: config.json has no {key!r}")
            return default
        if type(value) is not int or not 0 < value <= _MOST:
            raise self.refuse(key, value, f"a whole number above 0, at most {_MOST}")
        return value

    def number(self, key: str, default: float | None, source: Mapping[str, Any] | None = None) -> float:
        """A number above 0, from the config or from ``source``, a part of it."""
        value: Any = self.get(key) if source is None else source.get(key)
        value = default if value is None else value
        if type(value) not in (int, float) or not _LEAST <= value <= _LARGEST:
            raise self.refuse(key, value, f"a number above 0, at most {_LARGEST:g}")
        return value

    def one_of(self, key: str, default: Any, allowed: tuple) -> Any:
        value = self.get(key, default)
        if not any(value is one or (type(value) is type(one) and value == one) for one in allowed):
            raise self.refuse(key, value, " or ".join(map(repr, allowed)))
        return value

    def refuse_others(self) -> None:
        for key, value in self._raw.items():
            known = key in self._read or key in _HARMLESS or key.startswith(_HARMLESS_PREFIXES)
            if not known and value is not None:
                raise InputError(
                    f"base {self._where}: config.json has {key!r} = {value!r}, which is not known here and may change "
                    "what the model computes"
                )


def _local_layers(family: Family, fields: Fields, layers: int) -> tuple[int, tuple[bool, ...]]:
    """The window in tokens, and for each layer whether it is limited to it, by the family's rule."""
    if family.windows is None:
        return 0, ()
    window = fields.count("sliding_window", None) if fields.has("sliding_window") else 4096
    kinds = fields.get("layer_types")
    every = fields.count("sliding_window_pattern", 6) if family.windows == "sliding_window_pattern" else 0
    full = 0
    if family.windows == "use_sliding_window":
        value = fields.get("max_window_layers", 28)
        if type(value) is not int or value < 0:
            raise fields.refuse("max_window_layers", value, "a whole number")
        full = value
        if not fields.one_of("use_sliding_window", False, (False, True)):
            window = None
    if kinds is None:
        local = tuple(window is not None and (i + 1) % every != 0 if every else i >= full for i in range(layers))
    else:
        names = {"sliding_attention": True, "full_attention": False}
        if not isinstance(kinds, list) or len(kinds) != layers or not all(k in names for k in map(str, kinds)):
            raise fields.refuse("layer_types", kinds, f"a list of {layers} values, each {' or '.join(names)}")
        local = tuple(names[kind] for kind in kinds)
    if window is None:
        if kinds is not None and any(local):
            raise fields.refuse("sliding_window", None, "a whole number, since layer_types has sliding_attention")
        return 0, ()
    return window, local
