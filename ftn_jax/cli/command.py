"""What all commands share: flags and settings, signals, one-line error messages, and exit codes."""

import atexit
import contextlib
import difflib
import importlib.util
import logging
import os
import pathlib
import re
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import rich.console
from absl import flags
from ml_collections import ConfigDict, FrozenConfigDict, config_flags

from ftn_jax.cli.signals import asked_to_stop
from ftn_jax.core.elsewhere import what_is_known
from ftn_jax.core.errors import InputError, Interrupted
from ftn_jax.core.rules import flatten
from ftn_jax.runs.settings_text import Described, in_words
from ftn_jax.training.processes import end, is_of_another_process

_PIPED_WIDTH = 120  # columns of the tables if the output is not a terminal
CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
OURS = tuple(sorted(path.stem for path in CONFIGS.glob("*.py")))  # names that --config accepts in place of a file
CLOSED = 141  # exit code when the reader of a pipe has closed it, as in a shell
_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "tuple": "a tuple"}


class UsageError(InputError):
    """An error in the command line; the exit code is 2, not 1."""


# --- reading the command line ----------------------------------------------------------------------------------------


def parse(
    argv: Sequence[str],
    doc: str,
    define: Callable[[flags.FlagValues], Any],
    *,
    rest: bool = False,
    settings: Callable[[ConfigDict | None], Sequence[Described]] | None = None,
) -> Any:
    """The flags of a command line ``argv`` (its first entry is the program).

    Args:
      argv: the command line.
      doc: the beginning of the text of --help.
      define: defines the flags.
      rest: whether to return arguments that are none of these flags; otherwise they are refused.
      settings: gives the settings of a config, or all settings, for the end of the text of --help.

    Returns:
      The flags, and with ``rest`` the other arguments, the program first.

    Raises:
      UsageError: a flag that is unknown, missing or has an invalid value, or an argument that is not a flag.
      SystemExit: after --help.
    """
    own = flags.FlagValues()
    define(own)
    flags.DEFINE_bool("help", False, "Show this.", short_name="h", flag_values=own)
    own.set_gnu_getopt(True)
    fault = None
    try:
        others = own(list(argv), known_only=rest)
    except flags.Error as error:
        fault = error
    if own["help"].value:
        print(f"{doc}\n{own.get_help(include_special_flags=False)}")
        if settings:
            file = own["config"].value
            print(in_words(settings(load_config(file) if file else None), file))
        sys.exit()
    if fault:
        raise _usage(fault, own) from fault
    if rest:
        return own, others
    _check_no_words(others)
    return own


def define_config(own: flags.FlagValues) -> None:
    """Defines the flag that names the file of settings; to be parsed with ``rest``, for `configure`."""
    what = "A config file, such as configs/lora.py:quick, or one of ours by its name, such as lora:quick."
    flags.DEFINE_string("config", None, what, required=True, flag_values=own)


def configure(
    own: flags.FlagValues,
    rest: Sequence[str],
    fill_in: Callable[[ConfigDict, Sequence[str]], Any] = lambda config, methods: None,
) -> ConfigDict:
    """The settings of the file that --config names, with the values that the flags in ``rest`` give.

    Args:
      own: the flags.
      rest: the other arguments that `parse` returned, the program first.
      fill_in: adds defaults for settings that the file leaves out, including those of methods that flags name, so that
        flags can replace them.

    Raises:
      UsageError: see `load_config`; a setting that the config does not have, or a value of another type.
    """
    config = load_config(own.config)
    said = flatten(config)
    fill_in(config, re.findall(r"^--?(?:no)?config\.variants\.(\w+)", "\n".join(rest[1:]), re.MULTILINE))
    added = flatten(config).keys() - said.keys()
    replaced = _check_names(rest, config, own.config)
    overrides = flags.FlagValues()
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=overrides, sys_argv=list(rest))
        others = overrides(list(rest))
    except flags.Error as error:
        raise _usage(error, own, overrides) from error
    except (KeyError, config_flags.config_flags.FlagOrderError) as error:
        raise UsageError(
            f"flags set both a section of the config and settings in it ({error}): set only the single settings"
        ) from error
    _check_no_words(others)
    # Another kind of pool or stream has other defaults, and a section that was replaced lacks some.
    with config.unlocked():
        tree: Any = config
        for name in added:
            if not any(f"{name}.".startswith(f"config.{other}.") for other in replaced):
                _, *path, last = name.split(".")
                tree = config
                for part in path:
                    tree = tree[part]
                del tree[last]
        tree = config.get("variants", {})
        for name in (_variants_of(added) - _variants_of(flatten(config))) & set(tree):
            del tree[name]
    fill_in(config, ())
    return config


def load_config(argument: str) -> ConfigDict:
    """The result of ``get_config`` in ``file.py``, or in our own ``lora``, either with an optional ``:argument``.

    Raises:
      UsageError: a file that does not exist or fails, or an argument that it refuses.
    """
    file, *parts = argument.split(":", 1)
    if file in OURS:
        file = str(CONFIGS / f"{file}.py")
    spec = importlib.util.spec_from_file_location("config", file)
    if spec is None or spec.loader is None or not os.path.isfile(file):
        raise UsageError(
            f"--config={argument}: {file!r} is not a Python file that exists, expected one, or {', '.join(OURS)}"
        )
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config(*parts)
    except (OSError, ValueError) as error:
        raise UsageError(f"--config={argument}: {error}") from error
    except (Exception, SystemExit) as error:  # any error of the file's own code
        lines = [f"line {f.lineno}: " for f in traceback.extract_tb(error.__traceback__) if f.filename == spec.origin]
        where = "".join(lines[-1:])
        raise UsageError(f"--config={argument}: {where}{type(error).__name__}: {error}") from error
    if isinstance(config, FrozenConfigDict):
        config = ConfigDict(config.to_dict())
    if not isinstance(config, ConfigDict):
        raise UsageError(f"--config={argument}: get_config returned a {type(config).__name__}, expected a ConfigDict")
    return config


def _usage(error: flags.Error, own: flags.FlagValues, overrides: flags.FlagValues | None = None) -> UsageError:
    """Absl's error about a flag, with what was expected."""
    message = str(error).removeprefix("flag ")
    missing = re.match(r"--(\w+)=None: ", message)
    if missing:
        meaning = str(own[missing[1]].help).removesuffix(".")
        return UsageError(f"--{missing[1]} is missing ({meaning}); see --help")
    if isinstance(error, flags.UnrecognizedFlagError):
        known = list(own)
        close = difflib.get_close_matches(error.flagname, known, 1) or [name for name in known if name != "h"]
        return UsageError(f"unknown flag --{error.flagname}, known: {', '.join(f'--{name}' for name in close)}")
    if isinstance(error, flags.IllegalFlagValueError):
        name = message.removeprefix("--").partition("=")[0]
        message = message.removeprefix("--") if name.startswith("config.") else message
        holder = overrides if overrides is not None and name in overrides else own
        kind = _KINDS.get(holder[name].flag_type()) if name in holder else None
        return UsageError(f"{message}; expected {kind}" if kind else message)
    return UsageError(f"{error}; see --help")


def _check_no_words(rest: Sequence[str]) -> None:
    if len(rest) > 1:
        raise UsageError(f"unexpected argument {rest[1]!r}, expected only flags; see --help")


def _variants_of(names: Iterable[str]) -> set[str]:
    """The variants whose settings are among these full names."""
    return {name.split(".")[2] for name in names if name.startswith("config.variants.")}


def _check_names(argv: Sequence[str], config: ConfigDict, file: str) -> set[str]:
    """The settings that flags replace, such as "pool.size". Refuses settings not in the config, and repetitions."""
    leaves, seen = list(flatten(config)), set[str]()
    for argument in argv[1:]:
        match = re.match(r"--?(?:no)?config\.([^=]*)", argument)
        if match and match[1] in seen:
            raise UsageError(f"config.{match[1]} is set twice, expected once")
        seen |= {match[1]} if match else set()
        if not match or any(f"{leaf}.".startswith(f"config.{match[1]}.") for leaf in leaves):
            continue
        name = f"config.{match[1]}"
        raise UsageError(f"{name} is not a setting of {file}, {what_is_known(name, leaves)}")
    return seen


# --- running a command ------------------------------------------------------------------------------------


def run(
    main: Callable[..., int | None],
    argv: Sequence[str] | None = None,
    *,
    resume: Sequence[str] = (),
    saved: str = "what was trained",
    name: str = "ftn_jax",
) -> None:
    """Entry point of a command: reports an error of the user in one line, and always ends with an exit code.

    Args:
      main: runs a command line; may return an exit code. With ``resume`` it also takes a function that says whether a
        signal has asked it to stop; it then saves its state and raises `Interrupted`.
      argv: the command line; by default that of the process.
      resume: the beginning of the command that continues from what was saved, without flags; empty for a command that
        saves nothing.
      saved: what that is, in words.
      name: begins each line that is printed.

    Raises:
      SystemExit: with code 2 after an error in the command line, 1 after another error of the user, 128 + its number
        after a signal, `CLOSED`, or a code that ``main`` returns or raises. After a signal to a command that saves
        nothing, the process ends at once, without this exception.
    """
    argv = sys.argv if argv is None else argv

    def farewell(number: int, late: bool = False) -> str:
        # --fresh would set aside what is saved.
        again = [argument for argument in argv[1:] if not re.match(r"--?fresh\b", argument)]
        what = f"{saved} is saved, to continue"
        if late:
            what = "its last steps could not be saved in time, to continue from what was saved before"
        kept = f"; {what}: {shlex.join([*resume, *again])}" if resume else ""
        return f"{name}: stopped by {signal.Signals(number).name}{kept}"

    prepare_output()
    _ignore_what_is_told()
    atexit.register(_end_silently)
    number, code = None, 0
    with _log_lines(), asked_to_stop(farewell, interrupt=not resume) as asked:
        try:
            code = main(argv, lambda: asked() is not None) if resume else main(argv)
            sys.stdout.flush()
        except BrokenPipeError:
            _discard_output()
            code = CLOSED
        except Interrupted:
            # If this process got no signal, another process of the run did.
            number = asked() or signal.SIGTERM
        except KeyboardInterrupt:
            number = asked() or signal.SIGINT
        except Exception as error:
            message = explain(error)
            if message is None:
                raise
            print(f"{name}: {' '.join(message.split())}", file=sys.stderr)
            atexit.register(_hush)
            _flush()
            end(2 if isinstance(error, UsageError) else 1)
        number = number or asked()
    if number:
        _end_silently()
        print(farewell(number), file=sys.stderr)
        _flush()
        code = 128 + number
        if asked() and not resume:
            os._exit(code)  # while Python shuts down, a compilation that still runs would find its devices gone
    if code:
        sys.exit(code)


def prepare_output() -> None:
    """Makes output never fail on characters that a terminal or pipe can't encode: they appear as \\x.., \\u.. ."""
    # If a stream is closed from the start, output to it is discarded.
    sys.stdout = sys.stdout or open(os.devnull, "w")
    sys.stderr = sys.stderr or open(os.devnull, "w")
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)  # a replacement of the stream may have none
        if reconfigure:
            reconfigure(errors="backslashreplace")


class Console(rich.console.Console):
    """A console on standard output: as wide as the terminal or as COLUMNS, otherwise wide enough for the tables."""

    def __init__(self) -> None:
        wide = sys.stdout.isatty() or "COLUMNS" in os.environ
        super().__init__(width=None if wide else _PIPED_WIDTH, highlight=False, markup=False, emoji=False)

    def on_broken_pipe(self) -> None:
        """Leaves the error to `run`; rich would end the process silently with code 1."""
        raise BrokenPipeError


def keep_compiled_programs() -> None:
    """Keeps compiled programs between runs, unless the user has named a cache folder already."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        jax.config.update("jax_compilation_cache_dir", os.path.join(caches, "ftn_jax", "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def explain(error: Exception) -> str | None:
    """The message for an error of the user; None for any other error."""
    if is_of_another_process(error):
        return f"another process has ended or can't be reached: to continue, start all processes again ({error})"
    if isinstance(error, InputError | FloatingPointError | OSError):
        return str(error)
    if isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in str(error):
        sizes = "config.pool, config.stream.batch, config.configurer.support or config.seeds"
        return f"not enough memory: lower the sizes of {sizes} ({error})"
    return None


@contextlib.contextmanager
def _log_lines() -> Iterator[None]:
    """Prints our own log as bare lines on stderr, and silences libraries whose errors `run` reports in its one line."""
    handler = logging.StreamHandler()
    logging.basicConfig(format="%(message)s", handlers=[handler], force=True)  # libraries may have set up their own
    ours = logging.getLogger("ftn_jax")
    level = ours.level
    for name in ("absl", "asyncio"):  # orbax logs each file that it can't read or write, until the process ends
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        ours.setLevel(level)


def _ignore_what_is_told() -> None:
    """Keeps Python from printing exceptions in callbacks that are reported in one line anyway.

    When a checkpoint can't be written, orbax raises one error, and its other writes then find a closed event loop.
    Ctrl-C may come within a callback, which swallows it: see `asked_to_stop`.
    """
    earlier = sys.unraisablehook

    def tell(fault: Any) -> None:
        if not isinstance(fault.exc_value, KeyboardInterrupt) and str(fault.exc_value) != "Event loop is closed":
            earlier(fault)

    sys.unraisablehook = tell


def _hush() -> None:
    """Silences the errors of objects that can't be closed at the exit, since one line has reported the cause."""
    sys.unraisablehook = lambda fault: None
    threading.excepthook = lambda fault: None


def _end_silently() -> None:
    """From now on, a signal ends the process at once."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _flush() -> None:
    """Writes the output so far, or discards it if that fails, so that Python does not report it at the exit."""
    try:
        sys.stdout.flush()
    except OSError:
        _discard_output()


def _discard_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
