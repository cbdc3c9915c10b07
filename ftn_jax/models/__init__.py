"""Base models, and the registry of their families: a ``model_type``, and how its models are written down."""

from ftn_jax.core.errors import InputError
from ftn_jax.models.families import FAMILIES, Family

__all__ = ["FAMILIES", "Family", "register_family"]

_ROLES = ("qkv", "q", "k", "v", "o", "gate", "up", "down")  # of `ftn_jax.models.decoder.DecoderConfig`


def register_family(model_type: str, family: Family) -> None:
    """Adds a family, by which bases of that ``model_type`` are read from then on.

    Args:
      model_type: as ``config.json`` has it; a new one.
      family: how its models are written down (docs/add_a_base.md).

    Raises:
      InputError: the name is taken by another family, or a module has a role that the decoder does not have.
    """
    if FAMILIES.get(model_type, family) != family:
        raise InputError(f"family {model_type!r} is registered already")
    strange = sorted(family.linears.keys() - set(_ROLES))
    if strange:
        known = ", ".join(_ROLES)
        raise InputError(f"family {model_type!r}: linears has role {strange[0]!r}, expected some of {known}")
    FAMILIES[model_type] = family
