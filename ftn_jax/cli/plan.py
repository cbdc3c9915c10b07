"""Estimates what a run would need on other machines: memory, FLOPs and exchanged bytes.

    python -m ftn_jax.plan --config=configs/lora.py --config.base=gpt2-xl --devices=8 --device=a100 --config.mesh.data=8

Compiles the real training step and mask search for virtual devices, with abstract arrays; needs no weights, no such
devices and no network.
"""

from collections.abc import Sequence

import jax
from absl import flags

from ftn_jax.cli.command import Console, configure, define_config, parse
from ftn_jax.report import tables
from ftn_jax.runs.build import fill_in, settings
from ftn_jax.runs.own_parts import define_import, import_parts
from ftn_jax.runs.plan import DEVICES, Machine, describe, make_plan


def main(argv: Sequence[str]) -> None:
    """Prints the plan of the command line ``argv`` (its first entry is the program).

    Raises:
      InputError: see `ftn_jax.cli.command.configure` and `make_plan`.
      SystemExit: after --help.
    """
    own, rest = parse(argv, __doc__ or "", _define, rest=True, settings=settings)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", own.devices)
    console = Console()
    import_parts(own)
    plan = make_plan(configure(own, rest, fill_in))
    asked = {field: value for field in Machine._fields if (value := getattr(own, field)) is not None}
    for table in describe(plan, DEVICES[own.device]._replace(**asked)):
        console.print(tables.terminal(table))


def _define(own: flags.FlagValues) -> None:
    define_config(own)
    define_import(own)
    flags.DEFINE_integer("devices", 1, "Number of devices.", 1, flag_values=own)
    flags.DEFINE_enum("device", "h100", list(DEVICES), "Their kind: the defaults of the next three.", flag_values=own)
    flags.DEFINE_float("memory", None, "Memory of a device, in bytes.", 0, flag_values=own)
    flags.DEFINE_float("flops", None, "FLOP per second of a device.", 0, flag_values=own)
    flags.DEFINE_float("bandwidth", None, "Bytes per second that a device receives.", 0, flag_values=own)
