"""Which of the many peers known are worth weighing for a query: all of a few, the likeliest of a thousand.

Weighing one costs some 20 us of Python, so of those whose load nobody told us only the best by claimed
quality and speed are weighed. For these that is the whole of J, but for what was learnt of them. It knows
capabilities as arrays; nothing of loads, links and beliefs.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from p2pmesh.config import Routing
from p2pmesh.protocol.routing import why_not
from p2pmesh.protocol.workload import AnswerLength, prompt_tokens
from p2pmesh.query import Query
from p2pmesh.record import Capability, ModelInfo, PeerId, unit

_FAR_S = 1e9
"""Seconds that put one model behind all others."""
ALL_WEIGHED_MAX = 128
"""Peers known up to which all are weighed. A guess: some 3 ms."""
SHORTLIST_MAX = 64
"""Peers weighed beside the links. Four times the leads that research found to be enough."""

Floats = NDArray[np.float64]


class Directory:
    """The models of all peers known, a row each, and their skills."""

    def __init__(self, capabilities: Mapping[PeerId, Capability]) -> None:
        peers: list[PeerId] = []
        prefill: list[float] = []
        decode: list[float] = []
        self._models: list[tuple[Capability, ModelInfo]] = []
        general: list[float] = []
        near: dict[tuple[str, int], list[tuple[int, float, NDArray[np.float32]]]] = {}
        for peer, capability in capabilities.items():
            for model in capability.models:
                row = len(peers)
                peers.append(peer)
                prefill.append(max(model.prefill_tps, 1e-3))
                decode.append(max(model.decode_tps, 1e-3))
                self._models.append((capability, model))
                its = [skill for skill in capability.skills if skill.model in ("", model.name)]
                plain = [skill.quality for skill in its if skill.vector is None]
                general.append(max(plain, default=-1.0 if its else -2.0))
                for skill in its:
                    if skill.vector is not None:
                        place = (capability.space, len(skill.vector))
                        near.setdefault(place, []).append((row, skill.quality, unit(skill.vector)))
        self._peers = peers
        self._prefill, self._decode = np.array(prefill), np.array(decode)
        self._general = np.array(general)
        self._near = {
            place: (
                np.array([row for row, _, _ in skills]),
                np.array([claim for _, claim, _ in skills]),
                np.stack([direction for _, _, direction in skills]),
            )
            for place, skills in near.items()
        }

    def shortlist(
        self, query: Query, lengths: AnswerLength, config: Routing, most: int = SHORTLIST_MAX
    ) -> list[PeerId]:
        """Return the peers of the `most` best models for `query`, best first, by work and claimed quality, of
        those that may see it and are asked for."""
        if not self._peers:
            return []
        quality = self._quality(query, config)
        answer = lengths.left(query.options.max_tokens)
        cost = prompt_tokens(query, config) / self._prefill + answer / self._decode
        cost += config.lambda_s * (1.0 - quality)
        cost[[why_not(query, its, model, config) is not None for its, model in self._models]] = np.inf
        if query.accepted is not None:
            digest = query.accepted.digest
            cost[[model.digest != digest for _, model in self._models]] += _FAR_S
        best = np.argsort(cost, kind="stable")[:most]
        return list(dict.fromkeys(self._peers[row] for row in best if np.isfinite(cost[row])))

    def _quality(self, query: Query, config: Routing) -> Floats:
        """What each row claims to be worth for this query, 0..1; where it cannot be told how near a skill is,
        as `routing.quality` has it. A thin lead over another topic is left out: it moves all alike."""
        value = np.where(self._general == -2.0, config.general_quality, self._general)
        for (space, width), (rows, claims, directions) in self._near.items():
            if query.vector is not None and query.space == space and len(query.vector) == width:
                cosines = directions @ unit(query.vector)
                share = np.clip((cosines - config.far) / (config.near - config.far), 0.0, 1.0)
            else:
                share = np.full(len(rows), config.general_quality)
            np.maximum.at(value, rows, claims * share)
        return np.maximum(value, 0.0)
