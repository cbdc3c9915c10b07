"""Base models, and the registry of their families: for each ``model_type``, how to read and run its models."""

from ftn_jax.core.errors import InputError
from ftn_jax.models.families import FAMILIES, Family

__all__ = ["FAMILIES", "Family", "register_family"]

_ROLES = ("qkv", "q", "k", "v", "o", "gate", "up", "down")  # the roles of `ftn_jax.models.decoder.DecoderConfig`


def register_family(model_type: str, family: Family) -> None:
    """Adds a family; bases of this ``model_type`` can then be loaded.

    Args:
      model_type: a new name, as in ``config.json``.
      family: how to read and run its models (docs/add_a_base.md).

    Raises:
      InputError: another family has this name, or ``linears`` names a role that the decoder does not have.
    """
    if FAMILIES.get(model_type, family) != family:
        raise InputError(f"family {model_type!r} is registered already")
    strange = sorted(family.linears.keys() - set(_ROLES))
    if strange:
        known = ", ".join(_ROLES)
        raise InputError(f"family {model_type!r}: linears has role {strange[0]!r}, expected some of {known}")
    FAMILIES[model_type] = family
