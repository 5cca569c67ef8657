"""One causal language model in the process: its weights, its tokenizer and the lock that computations hold."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rfx_agent.checks import among, whole
from rfx_agent.errors import ConfigError, SamplerError, WeightsError
from rfx_agent.records import Message
from rfx_agent.samplers.transformers.gguf import file_sha256, unpacked
from rfx_agent.samplers.transformers.libs import library, quiet
from rfx_agent.samplers.transformers.source import folder_sha256, resolve, weight_files
from rfx_agent.samplers.transformers.tokens import pieces, stop_ids_of
from rfx_agent.samplers.weights.cache import fetched, weights_path
from rfx_agent.samplers.weights.known import QWEN_CODER_0_5B, Weights
from rfx_agent.samplers.weights.pinned import Mark, Pinned, mark_of, pin, unchanged
from rfx_agent.samplers.weights.sources import Progress

__all__ = ["CausalModel", "check_model"]

_DTYPES = ("bfloat16", "float16", "float32")


class CausalModel:
    """A causal language model that PyTorch runs in this process.

    The weights are had and loaded on first use or by ``start()``. A GGUF file is unpacked to float32 once and kept in
    the cache (about 4 bytes per parameter), from where it loads within seconds.

    Args:
        weights: a name in ``rfx_agent.samplers.weights.WEIGHTS``, a ``Weights`` record, the path of a GGUF file, a
            local model directory, or a model id on the Hugging Face Hub (``owner/name``).
        dtype: ``"float32"``, ``"bfloat16"`` or ``"float16"``: what is computed in.
        device: as PyTorch names it; by default ``"cuda"`` where there is one, else ``"cpu"``.
        threads: threads of PyTorch on the CPU. The setting is of the whole process; None leaves it alone.
        cache_dir: where weights are kept; by default ``RFX_CACHE``, else the user's cache directory.
        progress: called with bytes done, bytes in all and their source while weights are fetched.
        name: for records and messages; by default ``transformers:`` and the model's name.

    Attributes:
        lock: held by whoever computes with the model; one computation runs at a time.

    Raises:
        ConfigError: a parameter that cannot work, or a library of the extra ``transformers`` is missing.
        WeightsError: the path is no model. Fetching and loading raise it too, on first use.

    One instance serves any number of threads.

    Example:
        >>> CausalModel("smollm2-135m", device="cpu")  # fetches and loads nothing yet
        CausalModel('transformers:smollm2-135m', dtype='float32', device='cpu')
    """

    def __init__(
        self,
        weights: str | Path | Weights = "qwen2.5-coder-0.5b",
        *,
        dtype: str = "float32",
        device: Any = None,
        threads: int | None = None,
        cache_dir: str | Path | None = None,
        progress: Progress | None = None,
        name: str | None = None,
    ) -> None:
        among("CausalModel: dtype", dtype, _DTYPES)
        if threads is not None:
            whole("CausalModel: threads", threads, least=1)
        torch = library("torch")
        try:
            self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        except (RuntimeError, TypeError) as error:
            raise ConfigError(
                f"CausalModel: device is {device!r}; give a device of PyTorch such as 'cpu' or 'cuda:0'"
            ) from error
        self._source = resolve(weights)
        self.dtype = dtype
        source = self._source
        model = source if isinstance(source, str) else source.name if isinstance(source, Weights) else source.stem
        self.name = name or f"transformers:{model}"
        self.lock = threading.RLock()
        self._threads = threads
        self._cache_dir = cache_dir
        self._progress = progress
        self._loading = threading.RLock()  # not ``lock``: text is read and written while the model computes
        self._digest: str | None = source.sha256 if isinstance(source, Weights) else None
        self._folder: str | None = None
        self._marks: dict[Path, Mark] = {}  # of the files that were hashed or first read
        self._tokenizer: Any = None
        self._module: Any = None
        self._stop_ids: frozenset[int] | None = None

    def __repr__(self) -> str:
        return f"CausalModel({self.name!r}, dtype={self.dtype!r}, device={str(self.device)!r})"

    def start(self) -> None:
        """Have the weights and load them now. Idempotent."""
        with self._loading:
            self._text()
            if self._module is None:
                torch, transformers = library("torch"), library("transformers")
                if self._threads is not None:
                    torch.set_num_threads(self._threads)
                module = self._load(transformers.AutoModelForCausalLM, dtype=getattr(torch, self.dtype))
                try:
                    module = module.to(self.device)
                except (RuntimeError, AssertionError) as error:
                    raise WeightsError(f"{self.name}: could not be moved to {self.device}: {error}") from error
                self._module = module.eval().requires_grad_(False)

    @property
    def module(self) -> Any:
        """The ``torch.nn.Module``, in evaluation mode, on ``device``."""
        if self._module is None:
            self.start()
        return self._module

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of ``transformers``; loads no weights."""
        return self._text()

    @property
    def digest(self) -> str:
        """Provenance: SHA-256 of the weights file, of a directory's weight files, or the revision on the Hub."""
        with self._loading:
            if self._digest is None:
                source = self._source
                if isinstance(source, Path) and source.is_dir():
                    self._digest, marks = folder_sha256(source)
                    self._seen(marks)
                elif isinstance(source, Path):
                    self._digest = file_sha256(source)
                else:
                    config = self._load(library("transformers").AutoConfig)
                    self._digest = str(getattr(config, "_commit_hash", None) or "unknown")
            return str(self._digest)

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids of the tokens that end a turn; never empty of the tokenizer's own."""
        with self._loading:
            if self._stop_ids is None:
                transformers = library("transformers")
                config = self._load(transformers.AutoConfig)
                configured = [getattr(config, "eos_token_id", None)]
                try:
                    with quiet():
                        generation = transformers.GenerationConfig.from_pretrained(self._prepare())
                    configured.append(generation.eos_token_id)
                except OSError:
                    pass  # many models have no such file
                self._stop_ids = stop_ids_of(self._text(), *configured)
            return self._stop_ids

    @property
    def end_id(self) -> int | None:
        """The token that ends the assistant's turn in the chat template; without a template, the tokenizer's."""
        tokenizer = self._text()
        if not tokenizer.chat_template:
            return None if tokenizer.eos_token_id is None else int(tokenizer.eos_token_id)
        turn = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        with self._loading:
            ids = tokenizer.apply_chat_template(turn, return_dict=False)
        return next((int(i) for i in reversed(ids) if int(i) in self.stop_ids), tokenizer.eos_token_id)

    @property
    def vocabulary(self) -> int:
        """Number of ids that the model can read and write, padding of its embedding included."""
        return int(self.module.get_output_embeddings().weight.shape[0])

    @property
    def context(self) -> int:
        """Most tokens that the model can read."""
        return int(getattr(self.module.config, "max_position_embeddings", None) or 1 << 30)

    def prompt_ids(self, messages: Sequence[Message], prefix: str = "") -> tuple[int, ...]:
        """The chat template's tokens up to the answer, then those of ``prefix``.

        What the messages hold is untrusted: the text of a control token in them is encoded as text.

        Raises:
            ConfigError: the model has no chat template.
            SamplerError: the template refuses these messages.
        """
        tokenizer = self._text()
        if not tokenizer.chat_template:
            raise ConfigError(f"{self.name} has no chat template; use an instructed model, or give ids")
        chat = [dict(message) for message in messages]
        with self._loading:
            try:
                ids = tokenizer.apply_chat_template(
                    chat, add_generation_prompt=True, sanitize_control_tokens=True, return_dict=False
                )
            # Jinja and the template raise what they like.
            except Exception as error:
                raise SamplerError(f"{self.name}: the chat template refuses the messages: {error}") from error
        return (*map(int, ids), *self.encode(prefix))

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of ``text``. No special token is added, and one that ``text`` spells out is read as plain text."""
        tokenizer = self._text()
        text = text.encode("utf-8", "replace").decode()  # half a surrogate pair is no character
        with self._loading:  # the tokenizer keeps this setting in itself
            return tuple(map(int, tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of tokens; special ones, those that end a turn among them, have none."""
        stops = self.stop_ids
        kept = [int(i) for i in ids if int(i) not in stops]
        return str(self._text().decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def token_texts(self, ids: Sequence[int]) -> tuple[str, ...]:
        """One text per token, whose concatenation is ``decode(ids)``; a character that several tokens spell
        belongs to the last of them."""
        return pieces(ids, self.decode)

    def _text(self) -> Any:
        with self._loading:
            if self._tokenizer is None:
                self._tokenizer = self._load(library("transformers").AutoTokenizer)
            return self._tokenizer

    def _prepare(self) -> str:
        """What ``transformers`` loads from: a folder, or an id on the Hub."""
        if self._folder is None:
            source = self._source
            if isinstance(source, str):
                self._folder = source
            elif isinstance(source, Path) and source.is_dir():
                self._folder = str(source)
            else:
                # Any record: only the cache's root is asked for.
                root = weights_path(QWEN_CODER_0_5B, cache_dir=self._cache_dir).parent.parent
                folder, self._marks = unpacked(root, self.digest, self._file)
                self._folder = str(folder)
        return self._folder

    def _file(self) -> Pinned | None:
        if isinstance(self._source, Weights):
            return fetched(self._source, cache_dir=self._cache_dir, progress=self._progress)
        try:
            return pin(Path(self._source), self.digest)
        except OSError as error:
            raise WeightsError(
                f"weights {self._source} cannot be read: {error.strerror}; give a model's file"
            ) from error

    def _seen(self, marks: Mapping[Path, Mark] | None = None) -> None:
        """Hold ``marks``, by default today's, against those that the files had when they were hashed or first read."""
        if marks is None and isinstance(self._source, Path) and self._source.is_dir():
            marks = {file: mark_of(file.stat()) for file in weight_files(self._source)}
        for file, mark in (marks or {}).items():
            self._marks.setdefault(file, mark)
        unchanged(self._marks)

    def _load(self, loader: Any, **given: Any) -> Any:
        folder = self._prepare()
        self._seen()
        try:
            with quiet():
                made = loader.from_pretrained(folder, **given)
        # Readers of files that others wrote raise whatever these lead them to.
        except Exception as error:
            raise WeightsError(
                f"{self.name}: transformers could not load {folder}: {error}; check that it is a causal language "
                "model in a format that transformers reads"
            ) from error
        self._seen()
        return made


def check_model(who: str, model: Any) -> CausalModel:
    """``model``, if it is one; else ``ConfigError``."""
    if not isinstance(model, CausalModel):
        raise ConfigError(f"{who} is {model!r}; give a CausalModel")
    return model
