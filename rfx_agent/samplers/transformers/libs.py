"""The libraries of the extra ``transformers``, and how to keep them quiet."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rfx_agent._extras import need_patient

__all__ = ["library", "quiet"]

_loading = threading.RLock()


def library(name: str) -> Any:
    """A library of the extra ``transformers``; PyTorch's threads are told to wait without spinning."""
    return need_patient(name, "transformers")


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no advice on the terminal while a model loads.

    These settings belong to the whole process: they are put back afterwards, and one thread loads at a time.
    """
    logging = library("transformers.utils.logging")
    gguf = library("transformers.modeling_gguf_pytorch_utils")
    with _loading:
        verbosity, bars, bar = logging.get_verbosity(), logging.is_progress_bar_enabled(), getattr(gguf, "tqdm", None)
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        if bar is not None:  # this one obeys no setting
            gguf.tqdm = functools.partial(bar, disable=True)
        try:
            yield
        finally:
            logging.set_verbosity(verbosity)
            if bars:
                logging.enable_progress_bar()
            if bar is not None:
                gguf.tqdm = bar
