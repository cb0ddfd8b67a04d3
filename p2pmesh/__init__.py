"""A mesh of language models that nobody leads.

The public names. Each is loaded when it is first used, so that `import p2pmesh` costs next to nothing:
neither libp2p nor llama.cpp is imported by it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from p2pmesh.config import Config as Config
    from p2pmesh.config import ModelConfig as ModelConfig
    from p2pmesh.config import SkillConfig as SkillConfig
    from p2pmesh.errors import AnswerInterrupted as AnswerInterrupted
    from p2pmesh.errors import BudgetSpent as BudgetSpent
    from p2pmesh.errors import ConfigError as ConfigError
    from p2pmesh.errors import MeshError as MeshError
    from p2pmesh.errors import NoRoute as NoRoute
    from p2pmesh.errors import QueryError as QueryError
    from p2pmesh.errors import Reason as Reason
    from p2pmesh.errors import Refused as Refused
    from p2pmesh.peer.answer import Answer as Answer
    from p2pmesh.peer.peer import Member as Member
    from p2pmesh.peer.peer import Peer as Peer
    from p2pmesh.peer.peer import open_peer as open_peer
    from p2pmesh.peer.settings import load as load_config
    from p2pmesh.query import Chunk as Chunk
    from p2pmesh.query import Message as Message
    from p2pmesh.query import Options as Options
    from p2pmesh.query import Resume as Resume

_HOMES = {
    "Answer": "p2pmesh.peer.answer",
    "AnswerInterrupted": "p2pmesh.errors",
    "BudgetSpent": "p2pmesh.errors",
    "Chunk": "p2pmesh.query",
    "Config": "p2pmesh.config",
    "ConfigError": "p2pmesh.errors",
    "Member": "p2pmesh.peer.peer",
    "MeshError": "p2pmesh.errors",
    "Message": "p2pmesh.query",
    "ModelConfig": "p2pmesh.config",
    "NoRoute": "p2pmesh.errors",
    "Options": "p2pmesh.query",
    "Peer": "p2pmesh.peer.peer",
    "QueryError": "p2pmesh.errors",
    "Reason": "p2pmesh.errors",
    "Refused": "p2pmesh.errors",
    "Resume": "p2pmesh.query",
    "SkillConfig": "p2pmesh.config",
    "load_config": "p2pmesh.peer.settings",
    "open_peer": "p2pmesh.peer.peer",
}

__all__ = [
    "Answer",
    "AnswerInterrupted",
    "BudgetSpent",
    "Chunk",
    "Config",
    "ConfigError",
    "Member",
    "MeshError",
    "Message",
    "ModelConfig",
    "NoRoute",
    "Options",
    "Peer",
    "QueryError",
    "Reason",
    "Refused",
    "Resume",
    "SkillConfig",
    "load_config",
    "open_peer",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'p2pmesh' has no attribute {name!r}")
    home = importlib.import_module(_HOMES[name])
    value = getattr(home, "load" if name == "load_config" else name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
