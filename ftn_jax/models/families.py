"""Families of language models as data: how to read a ``config.json`` and the weights beside it.

A family is one record for each ``model_type`` of Hugging Face. What a config says and nothing here knows is refused,
since it may change what the model computes.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ftn_jax.errors import InputError
from ftn_jax.models.decoder import DecoderConfig, Rope

# What a config's counts and numbers may be: far from where they overflow, and beyond what any model has.
_MOST = 2**24
_LEAST, _LARGEST = 1e-30, 1e30
_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
_REQUIRED = object()


class Family(NamedTuple):
    """How the models of one ``model_type`` are written down. Names are Hugging Face's."""

    keys: Mapping[str, tuple[str, Any]]  # field of `DecoderConfig` -> (key of config.json, default; None: derived)
    fixed: Mapping[str, Any]  # fields that are the same for all models of the family
    activation: tuple[str, str]  # its key, and the default
    linears: Mapping[str, str]  # role -> module of a block
    norms: dict[str, str]  # our name -> norm of a block
    embed: str
    norm: str  # the final one
    blocks: str  # prefix of a block's names, with its number
    prefix: str  # of all of these names in a language model, where a bare decoder has none
    named: str  # a block's full name, to choose modules by
    positions: str | None = None  # the table of learned ones
    transposed: bool = True  # whether kernels are stored [d_out, d_in]
    biases: tuple[str, ...] = ()  # roles with a bias, whatever the config says
    bias_keys: Mapping[str, tuple[str, ...]] = {}  # switch of config.json -> roles that have a bias where it is on
    windows: str | None = None  # key of the rule that says which layers see a window: see `_local_layers`
    theta: float = 1e4  # default of RoPE's base
    local_theta: tuple[str, float] | None = None  # key and default; of layers with a window
    query_scalar: tuple[str, float] | None = None  # key and default; else the head's width
    scaled: bool = False  # whether embeddings are multiplied by the root of the width
    allowed: Mapping[str, tuple] = {}  # further keys -> what they may be; the first is the default
    start: str = "tokenizer"  # what stands before a document: what the tokenizer puts there, "bos", or "end" (of text)

    def tensors(self, config: DecoderConfig) -> dict[tuple[str, ...], tuple[str, bool]]:
        """Path in our parameters -> (tensor's name without `prefix`, whether it is transposed).

        Names of a block's tensors have {} in place of the layer's number; ours begin with "h".
        """
        found: dict[tuple[str, ...], tuple[str, bool]] = {("embed",): (f"{self.embed}.weight", False)}
        if self.positions:
            found["positions",] = f"{self.positions}.weight", False
        leaves = {"weight": "scale"} | ({"bias": "bias"} if config.norm == "layer" else {})
        for theirs, ours in leaves.items():
            found["norm", ours] = f"{self.norm}.{theirs}", False
            for name, module in self.norms.items():
                found["h", name, ours] = f"{self.blocks}.{module}.{theirs}", False
        for role, module in config.linears:
            found["h", role, "kernel"] = f"{self.blocks}.{module}.weight", self.transposed
            if role in config.biases:
                found["h", role, "bias"] = f"{self.blocks}.{module}.bias", False
        return found


_LLAMA_KEYS: dict[str, tuple[str, Any]] = {
    "vocabulary": ("vocab_size", _REQUIRED),
    "positions": ("max_position_embeddings", 2048),
    "width": ("hidden_size", _REQUIRED),
    "layers": ("num_hidden_layers", _REQUIRED),
    "heads": ("num_attention_heads", _REQUIRED),
    "kv_heads": ("num_key_value_heads", None),
    "head_width": ("head_dim", None),
    "inner": ("intermediate_size", _REQUIRED),
    "norm_epsilon": ("rms_norm_eps", 1e-6),
}
_LLAMA_LINEARS = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
_LLAMA = Family(
    keys=_LLAMA_KEYS,
    fixed={"norm": "rms"},
    activation=("hidden_act", "silu"),
    linears=_LLAMA_LINEARS,
    norms={"attn_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"},
    embed="embed_tokens",
    norm="norm",
    blocks="layers.{}",
    prefix="model.",
    named="model.layers.{}",
    bias_keys={"attention_bias": ("q", "k", "v", "o"), "mlp_bias": ("gate", "up", "down")},
    start="bos",
    allowed={"tie_word_embeddings": (False, True), "rope_interleaved": (False,)},
)
_QK_NORMS = {"q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"}

FAMILIES: dict[str, Family] = {
    "gpt2": Family(
        keys={
            "vocabulary": ("vocab_size", _REQUIRED),
            "positions": ("n_positions", _REQUIRED),
            "width": ("n_embd", _REQUIRED),
            "layers": ("n_layer", _REQUIRED),
            "heads": ("n_head", _REQUIRED),
            "inner": ("n_inner", None),
            "norm_epsilon": ("layer_norm_epsilon", 1e-5),
        },
        fixed={"norm": "layer"},
        activation=("activation_function", "gelu_new"),
        linears={"qkv": "attn.c_attn", "o": "attn.c_proj", "up": "mlp.c_fc", "down": "mlp.c_proj"},
        norms={"attn_norm": "ln_1", "mlp_norm": "ln_2"},
        embed="wte",
        norm="ln_f",
        blocks="h.{}",
        prefix="transformer.",
        named="h.{}",
        positions="wpe",
        transposed=False,
        biases=("qkv", "o", "up", "down"),
        allowed={
            "tie_word_embeddings": (True,),
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
            "reorder_and_upcast_attn": (False, True),  # an order of the same operations
            "add_cross_attention": (False,),
        },
        start="end",
    ),
    "llama": _LLAMA,
    "mistral": _LLAMA._replace(
        keys=_LLAMA_KEYS | {"positions": ("max_position_embeddings", 4096 * 32)},
        bias_keys={},
        windows="sliding_window",
        allowed={"tie_word_embeddings": (False, True)},
    ),
    "qwen2": _LLAMA._replace(
        keys=_LLAMA_KEYS | {"positions": ("max_position_embeddings", 32768)},
        biases=("q", "k", "v"),
        bias_keys={},
        start="tokenizer",
        windows="use_sliding_window",
        allowed={"tie_word_embeddings": (False, True), "use_mrope": (False,)},
    ),
    "qwen3": _LLAMA._replace(
        keys=_LLAMA_KEYS | {"positions": ("max_position_embeddings", 32768), "head_width": ("head_dim", 128)},
        fixed={"norm": "rms", "qk_norm": True},
        norms=_LLAMA.norms | _QK_NORMS,
        bias_keys={"attention_bias": ("q", "k", "v", "o")},
        start="tokenizer",
        windows="use_sliding_window",
        allowed={"tie_word_embeddings": (False, True)},
    ),
    "gemma3_text": _LLAMA._replace(
        keys=_LLAMA_KEYS | {"positions": ("max_position_embeddings", 131072), "head_width": ("head_dim", 256)},
        fixed={"norm": "rms", "norm_offset": 1.0, "qk_norm": True, "post_norms": True},
        activation=("hidden_activation", "gelu_pytorch_tanh"),
        norms={
            "attn_norm": "input_layernorm",
            "attn_post_norm": "post_attention_layernorm",
            "mlp_norm": "pre_feedforward_layernorm",
            "mlp_post_norm": "post_feedforward_layernorm",
        }
        | _QK_NORMS,
        bias_keys={"attention_bias": ("q", "k", "v", "o")},
        windows="sliding_window_pattern",
        theta=1e6,
        local_theta=("rope_local_base_freq", 1e4),
        query_scalar=("query_pre_attn_scalar", 256),
        scaled=True,
        allowed={
            "tie_word_embeddings": (True, False),
            "attn_logit_softcapping": (None,),
            "final_logit_softcapping": (None,),
            "use_bidirectional_attention": (False, None),
            "hidden_act": (None, "gelu_pytorch_tanh"),
        },
    ),
}
"""The families by ``model_type``."""

# Keys that change nothing of what a decoder computes from its tokens: tokens, training, storage, other heads.
_HARMLESS = {
    "architectures", "attention_dropout", "attn_implementation", "attn_pdrop", "auto_map", "begin_suppress_tokens",
    "bos_token_id", "cache_implementation", "chunk_size_feed_forward", "dtype", "embd_pdrop", "eos_token_id",
    "finetuning_task", "gradient_checkpointing", "id2label", "initializer_range", "is_decoder", "is_llama_config",
    "keys_to_ignore_at_inference", "label2id", "model_type", "n_ctx", "n_special", "name_or_path", "num_labels",
    "output_attentions", "output_hidden_states", "output_past", "output_scores", "pad_token_id",
    "predict_special_tokens", "prefix", "pretraining_tp", "problem_type", "resid_pdrop", "return_dict",
    "return_dict_in_generate", "sep_token_id", "suppress_tokens", "task_specific_params", "tokenizer_class",
    "torch_dtype", "torchscript", "transformers.js_config", "transformers_version", "use_cache",
}  # fmt: skip
_HARMLESS_PREFIXES = ("_", "summary_", "unsloth")
# Keys of every config of transformers, with what they are where they change nothing.
_NEUTRAL: dict[str, tuple] = {
    "cross_attention_hidden_size": (None,),
    "is_encoder_decoder": (False,),
    "partial_rotary_factor": (None, 1.0),
    "pruned_heads": (None, {}),
    "quantization_config": (None,),
    "tie_encoder_decoder": (False,),
}


def family_of(raw: Mapping[str, Any], where: Any) -> Family:
    """The family of a ``config.json``.

    Raises:
      InputError: none that is known.
    """
    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise InputError(f"base {where}: model_type is {kind!r}, known: {', '.join(FAMILIES)}")
    return FAMILIES[kind]


def decoder_config(raw: Any, where: Any, *, dtype: str = "float32", remat: bool = False) -> DecoderConfig:
    """The `DecoderConfig` of a ``config.json``.

    Args:
      raw: its content.
      where: it is from, for messages.
      dtype: of the computation.
      remat: gradient checkpointing.

    Raises:
      InputError: another kind of model, a setting that is missing, has a wrong value, or is not known here.
    """
    if not isinstance(raw, dict):
        raise InputError(f"base {where}: config.json is {type(raw).__name__}, expected an object")
    family, fields = family_of(raw, where), _Fields(raw, where)
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
        raise InputError(f"base {where}: {own['heads']} heads can't be divided by {own['kv_heads']} of keys and values")
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
        own["rope"], own["local_rope"] = _ropes(family, fields, own["head_width"], own["positions"])
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


class _Fields:
    """A ``config.json``, read key by key; what was not read in the end is not known."""

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
            if default is _REQUIRED:
                raise InputError(f"base {self._where}: config.json has no {key!r}")
            return default
        if type(value) is not int or not 0 < value <= _MOST:
            raise self.refuse(key, value, f"a whole number above 0, at most {_MOST}")
        return value

    def number(self, key: str, default: float | None, source: Mapping[str, Any] | None = None) -> float:
        """A number above 0, of the config or of a part of it."""
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


def _local_layers(family: Family, fields: _Fields, layers: int) -> tuple[int, tuple[bool, ...]]:
    """(window, which layers see no more than it), by the family's rule."""
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
            raise fields.refuse("layer_types", kinds, f"{layers} of {', '.join(names)}")
        local = tuple(names[kind] for kind in kinds)
    if window is None:
        if kinds is not None and any(local):
            raise fields.refuse("sliding_window", None, "a whole number, since layer_types has sliding_attention")
        return 0, ()
    return window, local


def _ropes(family: Family, fields: _Fields, width: int, positions: int) -> tuple[Rope, Rope | None]:
    """The rotary positions of a model, and those of its layers with a window where they are others."""
    if width % 2:
        raise fields.refuse("head_dim", width, "an even number, since positions rotate pairs")
    parameters, scaling = fields.get("rope_parameters"), fields.get("rope_scaling")
    for key, value in (("rope_parameters", parameters), ("rope_scaling", scaling)):
        if value is not None and not isinstance(value, dict):
            raise fields.refuse(key, value, "an object")
    theta = fields.number("rope_theta", family.theta)
    whole: Any = scaling or parameters or {}
    if family.local_theta is None:
        return _rope(fields, whole, theta, width, positions), None
    near: Any = {}
    if "full_attention" in whole or "sliding_attention" in whole:
        near, whole = whole.get("sliding_attention") or {}, whole.get("full_attention") or {}
        for value in (near, whole):
            if not isinstance(value, dict):
                raise fields.refuse("rope_parameters", value, "an object for each kind of layer")
    local_theta = fields.number(*family.local_theta)
    return _rope(fields, whole, theta, width, positions), _rope(fields, near, local_theta, width, positions)


def _rope(fields: _Fields, given: Mapping[str, Any], theta: float, width: int, positions: int) -> Rope:
    """What a ``rope_parameters`` says. Scalings: linear; Llama 3's; YaRN (arXiv 2309.00071)."""
    kind = given.get("rope_type", given.get("type", "default"))
    known = {
        "default": set(),
        "linear": {"factor"},
        "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
        "yarn": {"factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "mscale",
                 "mscale_all_dim", "truncate"},
    }  # fmt: skip
    if not isinstance(kind, str) or kind not in known:
        raise fields.refuse("rope_type", kind, " or ".join(known))
    for key, value in given.items():
        if key not in known[kind] | {"rope_type", "type", "rope_theta"} and (key, value) != (
            "partial_rotary_factor",
            1.0,
        ):
            raise fields.refuse(f"rope_parameters[{key!r}]", value, f"settings of rope_type {kind} alone")
    theta = fields.number("rope_theta", theta, given)
    if theta <= 1:
        raise fields.refuse("rope_theta", theta, "a number above 1")
    frequencies = theta ** -(np.arange(0, width, 2, dtype=np.float64) / width)
    if kind == "default":
        return Rope(tuple(frequencies.tolist()))
    factor, scale = fields.number("factor", None, given), 1.0
    original = fields.number("original_max_position_embeddings", positions, given)
    if kind == "linear":
        frequencies = frequencies / factor
    elif kind == "llama3":
        low, high = (fields.number(f"{end}_freq_factor", None, given) for end in ("low", "high"))
        if high <= low:
            raise fields.refuse("high_freq_factor", high, f"more than low_freq_factor = {low}")
        turns = original * frequencies / (2 * math.pi)  # of each pair in a sequence of the original length
        kept = np.clip((turns - low) / (high - low), 0, 1)
        frequencies = frequencies * (kept + (1 - kept) / factor)
    else:
        frequencies, scale = _yarn(fields, given, frequencies, theta, width, factor, original)
    return Rope(tuple(frequencies.tolist()), scale)


def _yarn(fields, given, frequencies, theta, width, factor, original) -> tuple[np.ndarray, float]:
    """YaRN: pairs that turn often in the original length are kept, those that turn seldom are stretched."""

    def attention(mscale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0

    def pair_of(turns: float) -> float:
        return width * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair_of(fields.number("beta_fast", 32, given)), pair_of(fields.number("beta_slow", 1, given))
    truncate = given.get("truncate", True)
    if truncate not in (True, False):
        raise fields.refuse("truncate", truncate, "true or false")
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    stretched = np.clip((np.arange(width // 2) - low) / (high - low if high != low else 0.001), 0, 1)
    frequencies = frequencies * (1 - stretched + stretched / factor)
    if given.get("attention_factor") is not None:
        return frequencies, fields.number("attention_factor", 1, given)
    if given.get("mscale") and given.get("mscale_all_dim"):
        mscale, of_all = fields.number("mscale", 1, given), fields.number("mscale_all_dim", 1, given)
        return frequencies, attention(mscale) / attention(of_all)
    return frequencies, attention(1)
