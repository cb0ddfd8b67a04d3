"""Weaken one guard at a time, and see whether the tests notice: `python -m tests.guards` (`make mutants`).

Each weakening is a line of trust/, of the wire's checks, or of what seals and signs, made to let something
through. It is planted in a copy of the package; the tests named beside it must fail there. A guard that
nobody misses is either not needed or not tested.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
GOAL = 0.95
"""Share of them that must be noticed."""
_HANG_S = 300.0


class Weakening(NamedTuple):
    """One guard, made to let something through."""

    file: str
    """Within p2pmesh/."""
    line: str
    weak: str
    tests: str
    """Files of tests/unit, or of another folder of tests/, by their names without `test_` and `.py`."""


WEAKENINGS = (
    # who is in
    Weakening("trust/keys.py", "return False", "return True", "keys identity statements roster receipt"),
    Weakening(
        "trust/keys.py",
        "if len(raw) != 38 or not raw.startswith(_PREFIX):",
        "if len(raw) != 38:",
        "keys identity",
    ),
    Weakening(
        "trust/statements.py",
        "if signer in known and signer not in self._holds:",
        "if signer not in self._holds:",
        "statements roster",
    ),
    Weakening(
        "trust/statements.py", "if holds and signer in known", "if signer in known", "statements roster"
    ),
    Weakening(
        "trust/statements.py",
        "if len({signer for signer, _ in signatures}) < len(signatures):",
        "if False:",
        "statements",
    ),
    Weakening("trust/statements.py", "if len(data) > BYTES_MAX:", "if False:", "statements"),
    Weakening(
        "trust/statements.py",
        "if list(quorum.signers) != sorted(set(quorum.signers)):",
        "if False:",
        "statements",
    ),
    Weakening(
        "trust/statements.py",
        "if not quorum.admit <= quorum.zoned <= len(quorum.signers):",
        "if False:",
        "statements",
    ),
    Weakening(
        "trust/roster.py",
        "if not isinstance(said, Certificate) or said.mesh != self.mesh:",
        "if not isinstance(said, Certificate):",
        "roster standing",
    ),
    Weakening("trust/roster.py", "if said.mesh != self.mesh:", "if False:", "roster standing"),
    Weakening("trust/roster.py", "if said.peer != peer:", "if False:", "roster standing"),
    Weakening("trust/roster.py", "if said.not_after - said.not_before > LIFE_MAX_S:", "if False:", "roster"),
    Weakening("trust/roster.py", "if now < said.not_before - SKEW_S:", "if False:", "roster standing"),
    Weakening("trust/roster.py", "if now >= said.not_after:", "if False:", "roster standing"),
    Weakening("trust/roster.py", "if signed < quorum.admit:", "if False:", "roster standing"),
    Weakening(
        "trust/roster.py", "if said.since <= self.revoked_at(peer, now):", "if False:", "roster standing"
    ),
    Weakening(
        "trust/roster.py", "if said.since <= self.banned.get(peer, -1):", "if False:", "roster standing"
    ),
    Weakening(
        "trust/roster.py",
        "if not _any_admits(certificate, [quorum for _, _, quorum in self._heads]):",
        "if False:",
        "roster standing",
    ),
    Weakening("trust/roster.py", "if said.at > now + AHEAD_MAX_S and not judged:", "if False:", "signers"),
    Weakening(
        "trust/roster.py", "signed = signed if judged else signed.only(self.signers(now))", "pass", "signers"
    ),
    Weakening("protocol/equivocation.py", "if one.mark == other.mark:", "if False:", "equivocation"),
    Weakening(
        "protocol/equivocation.py",
        "if (one.record.id, one.record.version) != (other.record.id, other.record.version):",
        "if one.record.id != other.record.id:",
        "equivocation",
    ),
    Weakening(
        "protocol/equivocation.py",
        "if not self._signer.verify(signed.record.id, signed.signed, signed.signature):",
        "if False:",
        "equivocation",
    ),
    Weakening("record.py", "hashlib.sha256(certificate).digest() + body", "body", "record equivocation"),
    Weakening(
        "trust/roster.py",
        "if said.since <= self.revoked_at(peer, now):",
        "if said.since < self.revoked_at(peer, now):",
        "roster standing",
    ),
    Weakening(
        "trust/roster.py",
        "zones = said.zones if signed >= quorum.zoned else ()",
        "zones = said.zones",
        "roster",
    ),
    Weakening(
        "trust/roster.py",
        "if not signed.signers(_ids(*(quorum for _, _, quorum in self._heads))):",
        "if False:",
        "roster standing",
    ),
    Weakening("trust/standing.py", "return granted.issuperset(zones)", "return True", "standing"),
    Weakening(
        "trust/grants.py",
        "and (new.mesh, new.peer, new.since) == (old.mesh, old.peer, old.since)",
        "and (new.mesh, new.peer) == (old.mesh, old.peer)",
        "standing",
    ),
    Weakening("trust/grants.py", "and member.zones.issuperset(new.zones)", "", "standing"),
    Weakening("trust/grants.py", "and abs(now - new.not_before) <= SKEW_S / 2", "", "standing"),
    Weakening(
        "trust/grants.py",
        "and new.not_after - new.not_before <= old.not_after - old.not_before",
        "",
        "standing",
    ),
    Weakening("trust/standing.py", "and new.not_before > self._said.not_before", "", "standing"),
    Weakening(
        "trust/standing.py",
        "if not anew and self.approved[0] == number and self.approved[1] != change.digest:",
        "if False:",
        "signers",
    ),
    Weakening(
        "trust/roster.py",
        "if said.number != len(self._heads) or said.after != digest:",
        "if said.number != len(self._heads):",
        "signers",
    ),
    Weakening(
        "trust/roster.py",
        "return [last, *(self.quorum(turn) for turn in turns if turn < last_since)]",
        "return [last]",
        "signers",
    ),
    Weakening(
        "trust/roster.py",
        "turns = [at, *(since for _, since, _ in self._heads if at < since)]",
        "turns = [at]",
        "signers",
    ),
    Weakening(
        "trust/roster.py", "if said.since > said.not_before + SINCE_AHEAD_MAX_S:", "if False:", "roster"
    ),
    Weakening("trust/roster.py", "if news and not for_good:", "if news:", "roster"),
    Weakening(
        "trust/standing.py",
        "at = max(math.ceil(tickets.newest(self.invites, self._clock())) + SKEW_S, self._seen.since(peer))",
        "at = math.ceil(tickets.newest(self.invites, self._clock())) + SKEW_S",
        "standing",
    ),
    Weakening("protocol/routing.py", "if not model.answers_in(query.zone):", "if False:", "routing"),
    Weakening(
        "trust/roster.py",
        "if (said.quorum.admit, said.quorum.zoned) != (quorum.admit, quorum.zoned):",
        "if False:",
        "signers",
    ),
    Weakening("trust/roster.py", "return len(quorum.signers) // 2 + 1", "return 1", "signers"),
    Weakening("trust/roster.py", "if signed.digest != self._heads[said.number][0]:", "if False:", "signers"),
    Weakening(
        "trust/roster.py",
        "for signer in self.quorum(now).signers]",
        "for signer in self.signers]",
        "signers",
    ),
    Weakening(
        "trust/standing.py",
        "self.invites = tuple(one for one in self.invites if out not in one.used or int(one.made) > at)",
        "pass",
        "standing",
    ),
    Weakening("trust/welcome.py", "if genesis.digest != ticket.mesh:", "if False:", "standing"),
    Weakening("trust/tickets.py", "if now >= found.until:", "if False:", "tickets standing"),
    Weakening(
        "trust/tickets.py",
        "if out_since >= 0 and not out_since < found.made <= now + _AHEAD_MAX_S:",
        "if False:",
        "tickets standing",
    ),
    Weakening("trust/tickets.py", "if len(found.used) >= found.uses:", "if False:", "tickets standing"),
    Weakening(
        "trust/tickets.py",
        "if hashlib.sha256(body).digest()[:_CHECK_BYTES] != check:",
        "if False:",
        "tickets",
    ),
    # what is sealed, and what is signed
    Weakening(
        "trust/sealing.py",
        "if not verify(origin, _signed(context, public, head, data), signature):",
        "if False:",
        "trust_sealing",
    ),
    Weakening("trust/sealing.py", "if not -EARLY_S <= age <= LATE_S:", "if False:", "trust_sealing"),
    Weakening(
        "trust/sealing.py",
        "if len(salt) < SALT_BYTES or (self._salt and salt != self._salt):",
        "if len(salt) < SALT_BYTES:",
        "trust_sealing",
    ),
    Weakening(
        "trust/sealing.py",
        'return bytes([last]) + index.to_bytes(11, "big")',
        'return bytes([0]) + index.to_bytes(11, "big")',
        "trust_sealing",
    ),
    Weakening(
        "trust/sealing.py",
        "return data, AnswerCipher(head[8:], context, self._dice(SALT_BYTES))",
        "return data, AnswerCipher(head[8:], context, bytes(SALT_BYTES))",
        "trust_sealing",
    ),
    Weakening(
        "trust/sealing.py",
        'return _SIGNED + len(context).to_bytes(2, "big") + context + key + head + digest',
        'return _SIGNED + len(context).to_bytes(2, "big") + context + head + digest',
        "trust_sealing",
    ),
    Weakening(
        "trust/sealing.py",
        "filled = _filled(plain, bucket(4 + len(plain)))",
        "filled = _filled(plain, 4 + len(plain))",
        "trust_sealing",
    ),
    Weakening("protocol/sealing.py", "if _context(inside) != _context(query):", "if False:", "sealing"),
    Weakening("protocol/sealing.py", "if query.zone != GENERAL:", "if False:", "sealing"),
    Weakening(
        "protocol/sealing.py",
        "if not isinstance(said, Copy) or not _same(said.chunk, chunk):",
        "if not isinstance(said, Copy):",
        "sealing",
    ),
    Weakening(
        "protocol/sealing.py",
        "if not isinstance(said, End) or replace(said, ended=end.ended) != end:",
        "if not isinstance(said, End):",
        "sealing",
    ),
    Weakening("protocol/sealing.py", "path=veiled(query.path),", "path=query.path,", "sealing"),
    Weakening("protocol/flight.py", "if bool(sealed) != bool(self.query.sealed):", "if False:", "sealing"),
    Weakening(
        "protocol/flights.py", 'path, digest, eta_s = veiled(path), "", 0.0', "path = veiled(path)", "sealing"
    ),
    Weakening(
        "protocol/receipts.py",
        'if replace(ended.receipt, signature=b"") != expected:',
        "if False:",
        "receipt relay",
    ),
    Weakening(
        "protocol/receipts.py",
        "return self._signer.verify(executor, expected.body(), ended.receipt.signature)",
        "return True",
        "receipt relay",
    ),
    Weakening(
        "protocol/receipts.py",
        "if ended.receipt is None or not ended.path:",
        "if ended.receipt is None: return True\n        if not ended.path:",
        "receipt relay",
    ),
    Weakening(
        "protocol/planning.py",
        "return query.zone != GENERAL and query.origin != self.me",
        "return False",
        "sealing",
    ),
    Weakening(
        "protocol/planning.py",
        "if zone in able.zones and not self._may_see(peer, zone):",
        "if False:",
        "admission",
    ),
    # who is charged
    Weakening(
        "protocol/serving.py",
        "sure = flight.closes or (life is not None and self._origins.proven(flight.query, life))",
        "sure = True",
        "quotas",
    ),
    Weakening(
        "protocol/serving.py",
        "sure = flight.closes or (life is not None and self._origins.proven(flight.query, life))",
        "sure = False",
        "quotas",
    ),
    Weakening("protocol/serving.py", "if wait_s:", "if False:", "quotas"),
    Weakening(
        "protocol/serving.py",
        "if origin == upstream or not self._quotas.knows(origin, flight.query.zone):",
        "if origin == upstream:",
        "quotas",
    ),
    Weakening("protocol/quotas.py", "if used > limit else 0.0", "if used < limit else 0.0", "quotas"),
    Weakening("protocol/quotas.py", "if a[1] == GENERAL or self._may_see(peer, a[1])", "", "quotas"),
    # what comes from outside
    Weakening(
        "protocol/codec.py",
        "if len(data) > bytes_max:\n            f.bad(",
        "if False:\n            f.bad(",
        "codec",
    ),
    Weakening(
        "protocol/codec.py",
        "if depth > self._limits.decode_depth_max or items > self._limits.decode_items_max:",
        "if False:",
        "codec",
    ),
    Weakening(
        "protocol/codec.py", "if unpacked.prompt_bytes > limits.prompt_bytes_max:", "if False:", "codec"
    ),
    Weakening("protocol/codec.py", "if unpacked.successes > unpacked.trials:", "if False:", "codec"),
    Weakening(
        "protocol/codec.py",
        "if unpacked.sealed and (unpacked.tokens or unpacked.text or unpacked.logprobs):",
        "if False:",
        "sealing",
    ),
    Weakening(
        "protocol/fields.py",
        "if type(raw) not in (int, float) or not math.isfinite(raw) or not low <= raw <= high:",
        "if type(raw) not in (int, float) or raw < low or raw > high:",
        "codec property/codec",
    ),
    Weakening(
        "protocol/fields.py",
        "if type(raw) is not tuple or len(raw) > count_max:",
        "if type(raw) is not tuple:",
        "codec property/codec",
    ),
    Weakening(
        "protocol/fields.py",
        "if not vector.any() or int(vector.min()) == -128:",
        "if False:",
        "codec property/codec",
    ),
)


def spoilt(weakening: Weakening, source: str) -> str:
    """Return a file's text with the guard weakened. Raises ValueError where its line is not to be found."""
    if source.count(weakening.line) < 1:
        raise ValueError(f"{weakening.file} has no line {weakening.line!r} any more")
    return source.replace(weakening.line, weakening.weak, 1)


def watchers(weakening: Weakening) -> list[str]:
    """Return the files of tests that are to notice."""
    parts = [name.rpartition("/") for name in weakening.tests.split()]
    return [f"tests/{folder or 'unit'}/test_{name}.py" for folder, _, name in parts]


def noticed(weakening: Weakening, folder: Path) -> bool:
    """Plant it in the copy in `folder`, run its tests there, and take it back."""
    path = folder / "p2pmesh" / weakening.file
    source = path.read_text("utf-8")
    path.write_text(spoilt(weakening, source), "utf-8")
    try:
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *watchers(weakening)]
        env = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, timeout=_HANG_S, check=False)
    except subprocess.TimeoutExpired:
        return True
    finally:
        path.write_text(source, "utf-8")
    if done.returncode not in (0, 1, 2):
        raise RuntimeError(done.stdout.decode("utf-8", "replace")[-2_000:])
    return done.returncode != 0


def main(arguments: Sequence[str] | None = None) -> None:
    """Plant them all, one after the other."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.guards", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    began, missed = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="p2pmesh-guards-") as name:
        folder = Path(name)
        for part in ("p2pmesh", "tests"):
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "setup.cfg", folder)
        for number, weakening in enumerate(WEAKENINGS, 1):
            print(f"{number} of {len(WEAKENINGS)}: {weakening.file}", file=sys.stderr)
            if not noticed(weakening, folder):
                missed.append(weakening)
    killed = len(WEAKENINGS) - len(missed)
    told = {
        "weakenings": len(WEAKENINGS),
        "noticed": killed,
        "share": round(killed / len(WEAKENINGS), 3),
        "goal": GOAL,
        "missed": [{"file": m.file, "line": m.line, "weak": m.weak} for m in missed],
        "seconds": round(time.monotonic() - began, 1),
    }
    print(json.dumps(told, indent=1) if options.json else "\n".join(f"{k}: {v}" for k, v in told.items()))
    sys.exit(killed / len(WEAKENINGS) < GOAL)


if __name__ == "__main__":
    main()
