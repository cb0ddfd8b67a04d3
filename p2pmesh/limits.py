"""Bounds on what one query or one frame may hold. A part of `config`, where users find it.

Frozen values and the relations between them, as there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from p2pmesh.errors import ConfigError


def positive(section: object, *names: str) -> None:
    """Raise ConfigError where one of a section's values is not above 0, or not finite."""
    for name in names:
        value, key = getattr(section, name), f"{type(section).__name__.lower()}.{name}"
        if not 0 < value < math.inf:
            raise ConfigError(f"{key} must be above 0 and finite, not {value!r}")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds on what one query or one frame may hold. Breaking one is a clear refusal, never a cut."""

    frame_bytes_max: int = 262_144
    """Longest frame on the wire, in bytes. Room for a prompt of 128 KiB and its envelope."""
    decode_items_max: int = 8_192
    """Most msgpack items in one frame; 1 MB of empty maps would decode to 73 MB (measured)."""
    decode_depth_max: int = 8
    """Deepest nesting in one frame; our own messages need 6."""
    prompt_bytes_max: int = 131_072
    """Longest prompt, all messages together, in UTF-8 bytes."""
    messages_max: int = 256
    """Most messages in one conversation."""
    max_tokens_max: int = 8_192
    """Longest answer that may be asked for, in tokens."""
    stop_max: int = 8
    """Most stop texts in one query. OpenAI allows 4."""
    stop_bytes_max: int = 256
    """Longest stop text, in UTF-8 bytes."""
    top_k_max: int = 256
    """Most tokens a draw may choose among: sorting more costs more than the draw (measured)."""
    logit_bias_max: int = 256
    """Most tokens whose likelihood a query may shift. OpenAI allows 300."""
    top_logprobs_max: int = 20
    """Most likely tokens that may be told beside each token of an answer. As OpenAI's."""
    schema_bytes_max: int = 16_384
    """Longest JSON schema of an answer, in UTF-8 bytes. A guess: those of most tools have a few hundred."""
    hops_max: int = 16
    """Longest path of a query, in peers."""
    excluded_max: int = 32
    """Most peers a query may carry as dead or tried."""
    records_per_frame_max: int = 16
    """Most signed records in one frame, so that one stays under `frame_bytes_max`, certificates too."""
    digest_max: int = 1_024
    """Most lines in one digest: the record cache."""
    record_bytes_max: int = 7_700
    """Longest signed record, in bytes: 16 skills of 384 bytes and their names, and 8 GPUs."""
    skills_max: int = 16
    """Most skills of one peer."""
    models_max: int = 16
    """Most models of one peer."""
    addresses_max: int = 8
    """Most addresses of one peer."""
    name_bytes_max: int = 64
    """Longest name of a peer, a skill, a model or a zone, in UTF-8 bytes."""
    dimensions_max: int = 1_024
    """Longest vector, in dimensions. all-MiniLM-L6-v2 has 384."""
    accepted_bytes_max: int = 65_536
    """Longest part of an answer that another peer goes on from, in UTF-8 bytes: 8 192 tokens of English twice
    over. A longer one cannot be resumed."""
    chunk_bytes_max: int = 16_384
    """Longest text of one chunk, in UTF-8 bytes."""

    def __post_init__(self) -> None:
        positive(self, *self.__dataclass_fields__)
        if self.prompt_bytes_max > self.frame_bytes_max // 2:
            raise ConfigError("limits.prompt_bytes_max must be at most half of limits.frame_bytes_max")
        if max(2, self.records_per_frame_max) * (self.record_bytes_max + 8_300) > self.frame_bytes_max:
            raise ConfigError(
                "limits.records_per_frame_max records, and at least two, must fit in a frame: "
                "lower limits.record_bytes_max or raise limits.frame_bytes_max"
            )
