"""Predict with a checkpoint: `python predict.py --checkpoint OUT --input FILE|DIR|- [--output FILE]`.

A language model continues prompts and answers chats (JSON lines in and out); a policy plans actions for recorded
observations (HDF5 in and out), or with `--serve PORT` for those that a robot sends. The checkpoint's folder is all that
is needed. An input with an error is named in one line and left out; with --strict it ends the run, nothing written.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import functools
import os
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

from data.processor import Item, Processor, Source, input_sources
from eval import checkpoint_run, load_model, usable_device, with_remote_code
from loader.command_line.entry import (
    check_output,
    command_line,
    entry_flags,
    in_words,
    print_problems,
    refuse_useless,
    refusing,
)
from loader.errors import ConfigError
from loader.resolve.resolver import read_saved
from loader.resolve.run_config import RunConfig
from loader.schema.keys import component_module, shipped
from prepare import load_encoder
from storage import atomic
from storage.config_keys import RemembersGiven, key

INTERRUPTED, TERMINATED = 130, 143  # as shells have it: 128 + the signal's number


@dataclass
class PredictArguments(RemembersGiven):
    """What to predict on, or whom to serve."""

    checkpoint: str | None = key(None, "A run's output directory, or a checkpoint-N folder in it.")
    input: str | None = key(None, "A file, a folder (searched recursively), or - for standard input.")
    output: str | None = key(None, "File to write; text goes to standard output without it.")
    batch_size: int = key(16, "Inputs at a time; it changes no prediction.", ge=1)
    device: str | None = key(None, "Where the model runs: cpu, cuda … Default: an accelerator where there is one.")
    strict: bool = key(False, "End at the first input with an error, with exit code 2 and nothing written.")
    trust_remote_code: bool = key(False, "Run code that comes with the checkpoint's model or tokenizer.")
    serve: int | None = key(None, "Serve a policy on this port (0: a free one).", ge=0, le=65535)
    host: str = key("127.0.0.1", "Server: address to listen on; any but this machine's own needs --token.")
    token: str | None = key(None, "Server: what clients must send; @FILE reads it from a file.")
    max_message_mb: int = key(64, "Server: longest message of a client, in megabytes.", ge=1)


OF_FILES = ("input", "output", "batch_size", "strict")
OF_A_SERVER = ("host", "token", "max_message_mb")


def main(arguments: list[str] | None = None) -> None:
    """Predict on files, or serve a policy, as the command line describes."""
    asked = entry_flags(flag_class(arguments), arguments, "predict.py", __doc__)
    folder, run = refusing(checkpoint_run, asked.checkpoint)
    run = with_remote_code(run, asked.trust_remote_code)
    kind = refusing(processor_class, run)
    flags = kind_flags(asked, run)
    refusing(check_flags, asked, run, kind, flags)
    if asked.serve is not None:
        serve(asked, folder, run)
        return
    sources = refusing(checked_sources, asked, kind)
    processor, model = refusing(load, asked, folder, run, flags)
    try:
        refusing(predict, processor, model, sources, asked)
    except KeyboardInterrupt:
        kept = f"; {asked.output} is as it was" if asked.output is not None else ""
        print(f"interrupted{kept}", file=sys.stderr, flush=True)
        raise SystemExit(INTERRUPTED) from None


# ---- flags ----


def flag_class(arguments: list[str] | None) -> type:
    """`PredictArguments` and the flags of every kind of data: that of the checkpoint first, then Keel's."""
    modules = [component_module("dataset", name) for name in shipped("dataset")]
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    peek.add_argument("--checkpoint", nargs="?")
    words = sys.argv[1:] if arguments is None else arguments
    checkpoint = peek.parse_known_args(words)[0].checkpoint
    with contextlib.suppress(ConfigError, OSError, AttributeError, TypeError):  # reported once the flags are known
        modules.insert(0, read_saved(Path(checkpoint).expanduser() / "run.yaml").dataset.module)
    kinds = dict.fromkeys(module.PredictFlags for module in modules if hasattr(module, "PredictFlags"))
    return dataclass(type("AllFlags", (*kinds, PredictArguments), {"__module__": __name__}))


def kind_flags(asked: Any, run: RunConfig) -> Any:
    """The flags of the checkpoint's own kind of data, with its own defaults, or None."""
    kind = getattr(run.dataset.module, "PredictFlags", None)
    given = {field.name for field in dataclasses.fields(kind)} & asked.given if kind is not None else ()
    return kind and kind(**{name: getattr(asked, name) for name in given})


def check_flags(asked: Any, run: RunConfig, kind: type[Processor], flags: Any) -> None:
    """Raises ConfigError for a flag that has no effect here, and for a missing one."""
    if empty := [name for name in asked.given if getattr(asked, name) == ""]:
        raise ConfigError(f"`--{empty[0]}` is empty; give it a value, or leave it out")
    names = {field.name for field in dataclasses.fields(asked)} - {f.name for f in dataclasses.fields(PredictArguments)}
    own = {field.name for field in dataclasses.fields(flags)} if flags is not None else set()
    dead = dict.fromkeys(names - own, f"{run.dataset.name} data has no use for it")
    if asked.serve is None:
        dead |= dict.fromkeys(OF_A_SERVER, "no --serve is given")
        dead |= flags.without_effect(asked.output) if hasattr(flags, "without_effect") else {}
    else:
        if not kind.SERVES:
            raise ConfigError(f"`--serve {asked.serve}`: {run.dataset.name} data has no policy to serve")
        dead |= dict.fromkeys([*OF_FILES, *own], "--serve reads no files")
    refuse_useless(asked, dead)
    if asked.serve is None and asked.input is None:
        raise ConfigError("name what to predict on: --input FILE, a folder, or - for standard input")


def processor_class(run: RunConfig) -> type[Processor]:
    kind = getattr(run.dataset.module, "Processor", None)
    if kind is None:
        raise ConfigError(f"dataset `{run.dataset.name}` has no Processor to read inputs with; see data/processor.py")
    return kind


# ---- files ----


def checked_sources(asked: Any, kind: type[Processor]) -> list[Source]:
    """The input files; raises ConfigError where they or the output cannot be used, before a model is loaded."""
    sources, others = input_sources(asked.input, kind.SUFFIXES, kind.LISTS)
    if others:
        print(f"{others} other files in {asked.input} are not read", file=sys.stderr, flush=True)
    if asked.output is None:
        if not kind.TO_STDOUT:
            raise ConfigError("predictions of this task are no text: name a file to write with --output FILE")
        return sources
    if kind.OUTPUTS and Path(asked.output).suffix not in kind.OUTPUTS:
        known = ", ".join(f"*{suffix}" if suffix else "a folder" for suffix in kind.OUTPUTS)
        raise ConfigError(f"`--output {asked.output}` is none of {known}, which this task writes")
    output = check_output("output", asked.output, may_be_folder="" in kind.OUTPUTS)
    given = Path(asked.input).expanduser()
    if any(source.path is not None and output.resolve() == source.path.resolve() for source in sources):
        raise ConfigError(f"`--output {asked.output}` is an input; name another file")
    if given.is_dir() and output.name.endswith(kind.SUFFIXES) and output.resolve().is_relative_to(given.resolve()):
        raise ConfigError(f"`--output {asked.output}` lies in the input folder, where a second run would read it")
    return sources


def load(asked: Any, folder: Path, run: RunConfig, flags: Any) -> tuple[Processor, Any]:
    """The checkpoint's processor, and its model in evaluation mode."""
    device = usable_device(asked.device)
    module, config = run.dataset.module, run.dataset.config
    processor = module.Processor.from_pretrained(folder, config, run.process, flags)
    if hasattr(module, "encoder_path") and (path := module.encoder_path(config)) is not None:
        processor.use_encoder(load_encoder(path))
    return processor, load_model(folder, run, device)


def predict(processor: Processor, model: Any, sources: list[Source], asked: Any) -> None:
    """Predict on all inputs and write the records; raises ValueError if no input is left, or for the first bad one."""
    with terminable(), output_target(asked) as target, contextlib.closing(processor.writer(target)) as writer:
        run = Prediction(processor, model, writer, asked.strict)
        examples, size = run.examples(sources), 1 if processor.reads_back else asked.batch_size
        with progress(processor, sources) as advance:
            while batch := list(islice(examples, size)):
                run.predict(batch)
                advance(len(batch))
        if not run.predicted.total():
            raise ConfigError(f"no input of `--input {asked.input}` could be used; nothing is written")
    left_out = f"; {run.problems} with errors left out" if run.problems else ""
    print(f"{run.predicted.total()} inputs predicted{left_out}", file=sys.stderr, flush=True)


@dataclass
class Prediction:
    """Inputs through the model to the writer, in their order; counts what was predicted and what could not be."""

    processor: Processor
    model: Any
    writer: Any
    strict: bool
    predicted: Counter[Source] = field(default_factory=Counter)
    problems: int = 0
    dropped: set[Source] = field(default_factory=set)

    def examples(self, sources: list[Source]) -> Iterator[tuple[Item, Any]]:
        """Items with the model's input for each. One with an error is reported and left out."""
        for source in chain.from_iterable(map(self.recordings, sources)):
            for item in self.items(source):
                try:
                    inputs = self.processor.encode(item.raw)
                    self.processor.check(self.model, inputs)
                except ValueError as error:
                    self.refuse(source, item.place, error)
                    if source in self.dropped:
                        break
                else:
                    yield item, inputs

    def recordings(self, file: Source) -> list[Source]:
        """The recordings of a file; none if it cannot be read, which is reported."""
        try:
            return self.processor.recordings(file)
        except (ValueError, OSError) as error:
            self.refuse(file, str(file), error)
            return []

    def items(self, source: Source) -> Iterator[Item]:
        """A file's items up to its end or to where it cannot be read further, which is reported."""
        try:
            yield from self.processor.read(source)
        except (ValueError, OSError) as error:
            self.refuse(source, str(source), error)

    def refuse(self, source: Source, place: str, error: Exception) -> None:
        """Report an input that is left out, or with --strict end the run."""
        reason = in_words(error) if isinstance(error, OSError) else " ".join(str(error).split())
        line = reason if str(source) in reason else f"{place}: {reason}"
        if self.strict:
            raise ConfigError(line)
        from tqdm import tqdm

        self.problems += 1
        with tqdm.external_write_mode(file=sys.stderr):
            print_problems([line])
        if self.processor.WHOLE_FILES:
            self.dropped.add(source)
            self.predicted.pop(source, None)
            self.writer.drop(source)

    def predict(self, batch: list[tuple[Item, Any]]) -> None:
        """Predict one batch and write its records."""
        import torch

        batch = [(item, inputs) for item, inputs in batch if item.source not in self.dropped]
        if not batch:
            return
        try:
            outputs = self.processor.predict(self.model, [inputs for _, inputs in batch])
        except torch.OutOfMemoryError as error:
            raise ConfigError(f"{len(batch)} inputs at a time do not fit in memory; lower --batch_size") from error
        for (item, _), record in zip(batch, self.processor.decode(outputs), strict=True):
            self.writer.write(item.source, record)
            self.predicted[item.source] += 1


@contextlib.contextmanager
def output_target(asked: Any) -> Iterator[Path | BinaryIO]:
    """Where to write: a file or folder, which appears when complete; or standard output, with --strict at the end."""
    if asked.output is not None:
        final = Path(asked.output).expanduser().absolute()
        with tempfile.TemporaryDirectory(prefix=f".{final.name}.", dir=final.parent) as staging:
            target = Path(staging, final.name)  # writers may choose a format by the name
            yield target
            if target.is_file():
                atomic.sync(target)
            atomic.publish(target, final)
        return
    try:
        if not asked.strict:
            yield sys.stdout.buffer
            return
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "records")
            yield file
            with open(file, "rb") as content:
                shutil.copyfileobj(content, sys.stdout.buffer)
            sys.stdout.buffer.flush()
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def progress(processor: Processor, sources: list[Source]) -> Iterator[Any]:
    """A bar on stderr if that is a terminal; yields what to call with the number of inputs done."""
    from tqdm import tqdm

    total = 0
    if sys.stderr.isatty():
        for source in sources:
            with contextlib.suppress(ValueError, OSError, KeyError):  # reported when the file is read
                total += processor.count(source) if source.path is not None else 0
    with tqdm(total=total or None, unit=" inputs", disable=not sys.stderr.isatty()) as bar:
        yield bar.update


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM as an exception, so that temporary files are deleted."""

    def leave(number: int, frame: Any) -> None:
        raise SystemExit(TERMINATED)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# ---- the server ----


def serve(asked: Any, folder: Path, run: RunConfig) -> None:
    """Serve the policy until SIGINT or SIGTERM."""
    server_module = refusing(import_server)
    token = refusing(read_token, asked.token)
    refusing(check_address, asked.host, token, server_module.is_loopback(asked.host))
    processor, model = refusing(load, asked, folder, run, None)
    metadata = {"task": run.task, "checkpoint": str(folder), **processor.metadata(model)}
    server = server_module.PolicyServer(functools.partial(processor.session, model), metadata, token)
    announce = functools.partial(print, f"serving {folder} at", flush=True)
    refusing(asyncio.run, server.run(asked.host, asked.serve, asked.max_message_mb * 2**20, announce))


def import_server() -> Any:
    try:
        from serving import server
    except ImportError as error:
        raise ConfigError(f"--serve needs the package {error.name}: pip install websockets msgpack") from error
    return server


def check_address(host: str, token: str | None, is_loopback: bool) -> None:
    """Raises ConfigError for a server that anybody in the network could use."""
    if token is None and not is_loopback:
        raise ConfigError(f"`--host {host}` lets other machines use the policy: set --token")


def read_token(given: str | None) -> str | None:
    """The token, or the content of the file that `@FILE` names.

    Raises:
        ValueError: empty, or with characters that a header cannot have.
    """
    token = Path(given[1:]).expanduser().read_text(encoding="utf-8").strip() if (given or "").startswith("@") else given
    if token is not None and not (token.isascii() and token.isprintable() and token.strip() == token and token):
        raise ConfigError("--token must be printable ASCII characters, at least one, without spaces around them")
    return token


if __name__ == "__main__":
    command_line(main)
