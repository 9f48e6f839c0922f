"""Finds what an embedding model consists of: the ONNX file, its tokenizer, and how vectors are made of its output.

Three layouts:

::

    all-MiniLM-L6-v2/                   my-model/              model.onnx, and tokenizer.json beside it
      modules.json                        model.onnx           or wherever the option `tokenizer` says
      sentence_bert_config.json           tokenizer.json
      1_Pooling/config.json
      tokenizer.json, tokenizer_config.json
      onnx/model.onnx

A model file may come from anywhere, so what it says is checked, and nothing outside its folder is read on its word.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from runners.worker.engines.base import EngineError

Pooling = Literal["mean", "cls", "max"]
Positive = Annotated[int, msgspec.Meta(ge=1)]

_MODELS = ("onnx/model.onnx", "model.onnx")
_DEFAULT_MAX_TOKENS = 512
#: Files that say how vectors are made.
_SETTINGS = ("modules.json", "sentence_bert_config.json", "tokenizer_config.json", "*_Pooling/config.json")
#: An entry of external data in a graph: the key, and the length and the bytes of its value.
_LOCATION = re.compile(rb"\x0a\x08location\x12(?=([\x01-\x7f].{0,127}))", re.DOTALL)
_LARGEST_GRAPH = 64 * 2**20
#: transformers writes 1e30 for "no limit", and some models leave numbers that no encoder reaches.
_SANE_MAX_TOKENS = 100_000
_POOLINGS: dict[str, Pooling] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
}


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the onnx engine takes. None: decided from the model or the machine.

    Attributes:
        path: a folder or an ``.onnx`` file.
        tokenizer: a ``tokenizer.json``; None: the one beside the model.
        max_tokens: longer texts are cut; None: as the model's files say, else 512.
        pooling: how the vectors of the tokens become one; None: as the folder says, else the mean.
        normalize: whether vectors are scaled to length 1; None: as the folder says, else yes.
        threads: processor threads for the model; None: all that this process may use.
        lanes: passes that run at the same time; None: 2, or 1 with one thread or another provider than the CPU.
        token_budget: padded tokens of one pass, at most; raised to `max_tokens` where that is more.
        providers: onnxruntime's execution providers, best first; None: the CPU.
    """

    path: Annotated[str, msgspec.Meta(min_length=1)]
    tokenizer: str | None = None
    max_tokens: Positive | None = None
    pooling: Pooling | None = None
    normalize: bool | None = None
    threads: Positive | None = None
    lanes: Positive | None = None
    token_budget: Positive = 512
    providers: Annotated[list[str], msgspec.Meta(min_length=1)] | None = None


class ModelFiles(msgspec.Struct, frozen=True, kw_only=True):
    """What was found.

    Attributes:
        max_tokens: tokens of one text, special ones included, at most.
    """

    model: Path
    tokenizer: Path
    max_tokens: int
    pooling: Pooling
    normalize: bool


def parse_options(options: dict[str, Any]) -> Options:
    """The options, checked.

    Raises:
        EngineError: ``bad_option``; it names the option.
    """
    try:
        return msgspec.convert(options, Options)
    except msgspec.ValidationError as error:
        known = ", ".join(Options.__struct_fields__)
        raise EngineError("bad_option", f"option {_name(error)}; the onnx engine takes {known}") from None


def _name(error: msgspec.ValidationError) -> str:
    what, _, where = str(error).partition(" - at `$")
    return f"{where.strip('.`')}: {what}" if where else what


def find(options: Options) -> ModelFiles:
    """Find the files, and read what they say.

    Raises:
        EngineError: ``model_not_found``, ``tokenizer_not_found``, ``model_invalid`` (a broken file beside the model),
            ``model_unsupported`` (a step after the model that is not done here).
    """
    path = Path(options.path).expanduser()
    if path.is_dir():
        root = path
        modules = _modules(root)
        base = _module_folder(root, modules, "Transformer")
        model = _model_in(base if base != root and any((base / name).is_file() for name in _MODELS) else root)
    elif path.is_file():
        model = path
        root = path.parent
        if root.name == "onnx" and _has_tokenizer(root.parent) and not _has_tokenizer(root):
            root = root.parent  # the file itself was named, inside a sentence-transformers folder
        modules = _modules(root)
        base = _module_folder(root, modules, "Transformer")
    else:
        raise EngineError("model_not_found", f"there is no file or folder {str(path.absolute())!r}")
    _check_content(model)
    tokenizer = _tokenizer(options, root, base)
    return ModelFiles(
        model=model,
        tokenizer=tokenizer,
        max_tokens=options.max_tokens or _max_tokens(tokenizer, (base, root)),
        pooling=options.pooling or _pooling(root, modules),
        normalize=_normalize(options, modules),
    )


def all_files(found: ModelFiles) -> list[Path]:
    """What was found, the files that the model's file names, and those that say how it is used."""
    folders = dict.fromkeys((found.model.parent, found.tokenizer.parent))
    settings = [file for folder in folders for pattern in _SETTINGS for file in sorted(folder.glob(pattern))]
    return list(dict.fromkeys((found.model, *_external(found.model), found.tokenizer, *settings)))


def _external(model: Path) -> list[Path]:
    """The files beside it that hold its weights. Their names stand in the graph, of which a large file has no need."""
    if model.stat().st_size > _LARGEST_GRAPH:
        return []
    names = {match[1][1 : 1 + match[1][0]] for match in _LOCATION.finditer(model.read_bytes())}
    paths = [Path(os.fsdecode(name)) for name in sorted(names)]
    inside = [model.parent / path for path in paths if not path.is_absolute() and ".." not in path.parts]
    return [file for file in inside if file.is_file()]


def _model_in(folder: Path) -> Path:
    for name in _MODELS:
        if (folder / name).is_file():
            return folder / name
    others = sorted(file.relative_to(folder) for pattern in ("*.onnx", "onnx/*.onnx") for file in folder.glob(pattern))
    if len(others) == 1:
        return folder / others[0]
    if others:
        names = ", ".join(str(name) for name in others)
        message = f"{str(folder)!r} has several models ({names}): give the path of one of them"
        raise EngineError("model_not_found", message)
    message = f"the folder {str(folder)!r} has no ONNX model: looked for {', '.join(_MODELS)} and other *.onnx files"
    if (folder / "model.safetensors").is_file() or (folder / "pytorch_model.bin").is_file():
        message += "; it has PyTorch weights: export them first (optimum-cli export onnx)"
    raise EngineError("model_not_found", message)


def _check_content(model: Path) -> None:
    """Say in plain words what the commonest wrong files are; the rest is found by loading it."""
    if model.stat().st_size == 0:
        raise EngineError("model_invalid", f"{str(model)!r} is empty: fetch it again")
    with model.open("rb") as file:
        start = file.read(64)
    if start.startswith(b"version https://git-lfs"):
        raise EngineError("model_invalid", f"{str(model)!r} is a Git LFS pointer, not the model: run 'git lfs pull'")


def _tokenizer(options: Options, root: Path, base: Path) -> Path:
    if options.tokenizer is not None:
        given = Path(options.tokenizer).expanduser()
        given = given / "tokenizer.json" if given.is_dir() else given
        if not given.is_file():
            raise EngineError("tokenizer_not_found", f"there is no file {options.tokenizer!r} (the option 'tokenizer')")
        return given
    for folder in (base, root):
        if _has_tokenizer(folder):
            return folder / "tokenizer.json"
    message = f"there is no tokenizer.json in {str(root)!r}: put it beside the model, or give its path as tokenizer="
    if any((root / name).is_file() for name in ("vocab.txt", "sentencepiece.bpe.model", "spiece.model")):
        message += (
            "; there is an older tokenizer: AutoTokenizer.from_pretrained(folder).save_pretrained(folder) converts it"
        )
    raise EngineError("tokenizer_not_found", message)


def _has_tokenizer(folder: Path) -> bool:
    return (folder / "tokenizer.json").is_file()


def _read(path: Path) -> Any:
    """A JSON file; None if there is none."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError, OSError) as error:
        raise EngineError("model_invalid", f"{str(path)!r} cannot be read as JSON: {error}") from None


def _modules(root: Path) -> list[tuple[str, str]]:
    """What a sentence-transformers folder does after another, as (class, folder); empty for other folders."""
    path = root / "modules.json"
    content = _read(path)
    if content is None:
        return []
    try:
        modules = [(str(module["type"]).rpartition(".")[2], str(module["path"])) for module in content]
    except (TypeError, KeyError):
        raise EngineError("model_invalid", f"{str(path)!r} is not a list of modules with 'type' and 'path'") from None
    for kind, folder in modules:
        if kind not in {"Transformer", "Pooling", "Normalize"}:
            message = f"{str(path)!r} has a {kind} step, which is not done here: export the whole to one ONNX file"
            raise EngineError("model_unsupported", message)
        if Path(folder).is_absolute() or ".." in Path(folder).parts:
            raise EngineError("model_invalid", f"{str(path)!r} points out of its folder, to {folder!r}")
    return modules


def _module_folder(root: Path, modules: list[tuple[str, str]], kind: str) -> Path:
    return next((root / folder for name, folder in modules if name == kind), root)


def _pooling(root: Path, modules: list[tuple[str, str]]) -> Pooling:
    named = any(kind == "Pooling" for kind, _ in modules)
    path = (_module_folder(root, modules, "Pooling") if named else root / "1_Pooling") / "config.json"
    config = _read(path)
    if config is None:
        return "mean"
    if not isinstance(config, dict):
        raise EngineError("model_invalid", f"{str(path)!r} is not a JSON object")
    chosen = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
    if isinstance(config.get("pooling_mode"), str):
        chosen = [f"pooling_mode_{config['pooling_mode']}"]
    chosen = [_ALIASES.get(key, key) for key in chosen]
    if len(chosen) != 1 or chosen[0] not in _POOLINGS:
        asked = " with ".join(chosen) or "no pooling"
        message = f"{str(path)!r} asks for {asked}; one of mean, cls and max is done here"
        raise EngineError("model_unsupported", message)
    return _POOLINGS[chosen[0]]


_ALIASES = {
    "pooling_mode_cls": "pooling_mode_cls_token",
    "pooling_mode_max": "pooling_mode_max_tokens",
    "pooling_mode_mean": "pooling_mode_mean_tokens",
}


def _normalize(options: Options, modules: list[tuple[str, str]]) -> bool:
    if options.normalize is not None:
        return options.normalize
    return any(kind == "Normalize" for kind, _ in modules) if modules else True


def _max_tokens(tokenizer: Path, folders: tuple[Path, Path]) -> int:
    said = (
        *(_get(_read(folder / "sentence_bert_config.json"), "max_seq_length") for folder in folders),
        _get(_get(_read_tokenizer(tokenizer), "truncation"), "max_length"),
        *(_get(_read(folder / "tokenizer_config.json"), "model_max_length") for folder in (tokenizer.parent, *folders)),
    )
    for value in said:
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _SANE_MAX_TOKENS:
            return value
    return _DEFAULT_MAX_TOKENS


def _read_tokenizer(path: Path) -> Any:
    try:
        return _read(path)
    except EngineError as error:
        raise EngineError("tokenizer_invalid", str(error)) from None


def _get(content: Any, key: str) -> Any:
    return content.get(key) if isinstance(content, dict) else None
