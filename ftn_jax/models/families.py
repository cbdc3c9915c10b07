"""Families of language models as data: how to read their configurations and weights.

There is one record for each ``model_type`` of Hugging Face.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ftn_jax.core.errors import InputError
from ftn_jax.models.decoder import DecoderConfig

REQUIRED = object()
"""Stands in the place of a default: the key has to be in the configuration."""


class Family(NamedTuple):
    """How to read the configurations and weights of one ``model_type``. Names are Hugging Face's."""

    keys: Mapping[str, tuple[str, Any]]  # field of `DecoderConfig` -> (key of config.json, default; None: derived)
    fixed: Mapping[str, Any]  # fields that are the same for all models of the family
    activation: tuple[str, str]  # key of the activation in config.json, and its default
    linears: Mapping[str, str]  # role -> linear module of a block
    norms: dict[str, str]  # our name -> norm of a block
    embed: str  # the embeddings
    norm: str  # the final norm
    blocks: str  # a block, with {} for its number
    prefix: str  # stands before all names in a language model's checkpoint, but not in a bare decoder's
    named: str  # a block's full name, with {} for its number, by which modules are chosen
    positions: str | None = None  # the table of learned positions
    transposed: bool = True  # whether kernels are stored [d_out, d_in]
    biases: tuple[str, ...] = ()  # roles that always have a bias
    bias_keys: Mapping[str, tuple[str, ...]] = {}  # switch of config.json -> roles that have a bias if it is on
    windows: str | None = None  # names the rule for local layers: a key of config.json, see `config_json._local_layers`
    theta: float = 1e4  # default of RoPE's base
    local_theta: tuple[str, float] | None = None  # key and default of RoPE's base in local layers
    query_scalar: tuple[str, float] | None = None  # key and default of s, where s^-0.5 scales scores; None: head width
    scaled: bool = False  # whether embeddings are multiplied by the square root of the width
    allowed: Mapping[str, tuple] = {}  # other keys -> their allowed values, the default first
    architecture: str | None = None  # transformers' class, which servers read in a config.json; None: not written
    start: str = "tokenizer"  # what precedes a document: "tokenizer" (what it adds itself), "bos", or "end" (of text)

    def tensors(self, config: DecoderConfig) -> dict[tuple[str, ...], tuple[str, bool]]:
        """Path in our parameters -> (name of the tensor without `prefix`, whether it is transposed).

        A block's tensors have {} in place of the layer's number, and paths that begin with "h".
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


def _keys(positions: int, kv_heads: int | None = None, head_width: int | None = None) -> dict[str, tuple[str, Any]]:
    """The keys of Llama and similar families, with defaults; None means that the field is derived from the others."""
    return {
        "vocabulary": ("vocab_size", REQUIRED),
        "positions": ("max_position_embeddings", positions),
        "width": ("hidden_size", REQUIRED),
        "layers": ("num_hidden_layers", REQUIRED),
        "heads": ("num_attention_heads", REQUIRED),
        "kv_heads": ("num_key_value_heads", kv_heads),
        "head_width": ("head_dim", head_width),
        "inner": ("intermediate_size", REQUIRED),
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
    keys=_keys(2048),
    fixed={"norm": "rms"},
    activation=("hidden_act", "silu"),
    linears=_LLAMA_LINEARS,
    norms={"attn_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"},
    embed="embed_tokens",
    norm="norm",
    blocks="layers.{}",
    prefix="model.",
    named="model.layers.{}",
    architecture="LlamaForCausalLM",
    bias_keys={"attention_bias": ("q", "k", "v", "o"), "mlp_bias": ("gate", "up", "down")},
    start="bos",
    allowed={"tie_word_embeddings": (False, True), "rope_interleaved": (False,)},
)
_QK_NORMS = {"q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"}

FAMILIES: dict[str, Family] = {
    "gpt2": Family(
        keys={
            "vocabulary": ("vocab_size", REQUIRED),
            "positions": ("n_positions", REQUIRED),
            "width": ("n_embd", REQUIRED),
            "layers": ("n_layer", REQUIRED),
            "heads": ("n_head", REQUIRED),
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
        architecture="GPT2LMHeadModel",
        positions="wpe",
        transposed=False,
        biases=("qkv", "o", "up", "down"),
        allowed={
            "tie_word_embeddings": (True,),
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
            "reorder_and_upcast_attn": (False, True),  # the same operations in another order
            "add_cross_attention": (False,),
        },
        start="end",
    ),
    "llama": _LLAMA,
    "mistral": _LLAMA._replace(
        architecture="MistralForCausalLM",
        keys=_keys(4096 * 32, kv_heads=8),
        bias_keys={},
        windows="sliding_window",
        allowed={"tie_word_embeddings": (False, True), "attention_bias": (False,), "mlp_bias": (False,)},
    ),
    "qwen2": _LLAMA._replace(
        architecture="Qwen2ForCausalLM",
        keys=_keys(32768, kv_heads=32),
        biases=("q", "k", "v"),
        bias_keys={},
        start="tokenizer",
        windows="use_sliding_window",
        allowed={
            "tie_word_embeddings": (False, True),
            "use_mrope": (False,),
            "attention_bias": (False,),
            "mlp_bias": (False,),
        },
    ),
    "qwen3": _LLAMA._replace(
        architecture="Qwen3ForCausalLM",
        keys=_keys(32768, kv_heads=32, head_width=128),
        fixed={"norm": "rms", "qk_norm": True},
        norms=_LLAMA.norms | _QK_NORMS,
        bias_keys={"attention_bias": ("q", "k", "v", "o")},
        start="tokenizer",
        windows="use_sliding_window",
        allowed={"tie_word_embeddings": (False, True)},
    ),
    "gemma3_text": _LLAMA._replace(
        architecture="Gemma3ForCausalLM",
        keys=_keys(131072, kv_heads=4, head_width=256),
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


def family_of(raw: Mapping[str, Any], where: Any) -> Family:
    """The family of a ``config.json``.

    Raises:
      InputError: its model_type is unknown.
    """
    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise InputError(
            f"base {where}: model_type is {kind!r}, known: {', '.join(FAMILIES)}; to add a family of your own, import "
            "its module (on the command line: --import=MODULE)"
        )
    return FAMILIES[kind]
