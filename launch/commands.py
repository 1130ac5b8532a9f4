"""What all commands share: the application, how an error ends one, and how the words of a command line are read."""

import functools
import os
import re
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import ConfigError, ForgepressError

app = typer.Typer(
    help="Train PyTorch models on any mesh and compress them while they train.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
verify_app = typer.Typer(help="Prove on your own config that the promises hold.", no_args_is_help=True)
app.add_typer(verify_app, name="verify")

Words = Annotated[
    list[str],
    typer.Argument(
        metavar="CONFIG... [KEY=VALUE]...",
        help="Config files (.yaml; later ones override earlier ones), then single settings such as data.batch=64.",
    ),
]
Ranks = Annotated[
    str | None,
    typer.Option(
        "--ranks",
        metavar="N|auto",
        help="Processes; by default as many as the config's mesh needs. auto: one for each GPU, else for each core.",
    ),
]


def command(group: typer.Typer, name: str) -> Callable[[Callable[..., int | None]], Callable[..., None]]:
    """Registers a command; ForgepressErrors become one line on stderr and their own exit code."""

    def register(function: Callable[..., int | None]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(*args: Any, **options: Any) -> None:
            try:
                code = function(*args, **options)
            except ForgepressError as error:
                if os.environ.get("FORGEPRESS_DEBUG") == "1":
                    traceback.print_exc()
                typer.echo(f"error: {error}", err=True)
                code = error.exit_code
            except KeyboardInterrupt:
                code = 130
            raise typer.Exit(code or 0)

        return group.command(name)(run)

    return register


def load(words: list[str], *, techniques: bool = True) -> Any:
    """The RunConfig of the command line's words; techniques: False as for `load_config`."""
    files, overrides = split_words(words)
    from ..trainer.config_file import load_config

    return load_config(files, overrides, techniques=techniques)


def split_words(words: list[str]) -> tuple[list[Path], list[str]]:
    """Config files and key=value overrides; `demo` is the config that ships with the package.

    raises: ConfigError for anything else.
    """
    files: list[Path] = []
    overrides: list[str] = []
    for word in words:
        is_yaml = word.endswith((".yaml", ".yml"))
        if is_yaml and ("=" not in word or Path(word).exists()):
            files.append(Path(word))
        elif word == "demo":
            files.append(Path(__file__).with_name("demo.yaml"))
        elif re.match(r"[^=\s]+=", word):
            overrides.append(word)
        else:
            raise ConfigError(f"{word!r} is neither a config file (.yaml, .yml) nor a setting (key=value)")
    if not files:
        raise ConfigError(f"no config file given, only {' '.join(overrides)}; want at least one .yaml file")
    return files, overrides


def degrees(text: str) -> dict[str, int]:
    """ "shard=2,tensor=2" → {"shard": 2, "tensor": 2}; raises ConfigError."""
    axes = ("pipeline", "replicate", "shard", "context", "tensor")
    result: dict[str, int] = {}
    for part in text.split(","):
        axis, _, degree = part.strip().partition("=")
        if axis not in axes or not degree.isdigit() or int(degree) < 1 or axis in result:
            raise ConfigError(
                f"mesh {text!r}: {part!r} is not AXIS=DEGREE; want each of {', '.join(axes)} at most once, from 1"
            )
        result[axis] = int(degree)
    return result


def mesh_and_engine(text: str) -> dict[str, Any]:
    """Keys of `parallel`: "shard=2" → {"shard": 2}, "shard=2,engine=zero-3" → those of DeepSpeed's stage 3 too.

    raises: ConfigError.
    """
    parts = [part.strip() for part in text.split(",")]
    engines = [part.removeprefix("engine=") for part in parts if part.startswith("engine=")]
    axes = ",".join(part for part in parts if not part.startswith("engine="))
    keys: dict[str, Any] = dict(degrees(axes)) if axes else {}
    for engine in engines:
        stage = engine.removeprefix("zero-")
        if engine in ("native", "deepspeed", "accelerate"):
            keys["engine"] = engine
        elif engine != stage and stage in ("0", "1", "2", "3"):
            keys |= {"engine": "deepspeed", "deepspeed": {"stage": int(stage)}}
        else:
            wanted = "native, accelerate, deepspeed or zero-0 to zero-3"
            raise ConfigError(f"mesh {text!r}: engine {engine!r} is not known; want {wanted}")
    return keys


def existing(path: Path) -> Path:
    """`path` itself; raises ConfigError if it is not there."""
    if not path.exists():
        raise ConfigError(f"{path} does not exist")
    return path
