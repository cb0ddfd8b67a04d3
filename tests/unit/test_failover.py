"""The routers that failover is measured beside: each is told of every worker, and is gone afterwards."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import trio

from benchmarks import failover

URLS = ("http://127.0.0.1:1", "http://127.0.0.1:2", "http://127.0.0.1:3")


@pytest.mark.parametrize("name", failover.RIVALS)
def test_a_router_is_told_of_every_worker_and_listens_on_loopback_alone(name: str, tmp_path: Path) -> None:
    command = failover.RIVALS[name](7, URLS, tmp_path)
    told = " ".join([*command, *(file.read_text() for file in tmp_path.iterdir())])
    assert all(url.removeprefix("http://") in told for url in URLS)
    assert "0.0.0.0" not in told
    assert "127.0.0.1:7" in told or "--host 127.0.0.1 --port 7" in told


def test_retries_are_on_where_a_router_has_them(tmp_path: Path) -> None:
    failover.haproxy(7, URLS, tmp_path)
    assert "retry-on all-retryable-errors" in (tmp_path / "haproxy.cfg").read_text()
    failover.litellm(7, URLS, tmp_path)
    assert json.loads((tmp_path / "litellm.json").read_text())["router_settings"]["num_retries"] == 3
    assert "--disable-retries" not in failover.sglang(7, URLS, tmp_path)


async def test_a_router_is_gone_when_the_block_is_left(tmp_path: Path) -> None:
    def sleeper(port: int, workers: object, folder: Path) -> list[str]:
        return ["sh", "-c", "echo $$ > pid; exec sleep 600"]

    async with failover.open_router(sleeper, URLS, tmp_path, os.environ["PATH"]) as url:
        assert url.startswith("http://127.0.0.1:")
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():  # noqa: ASYNC110
            await trio.sleep(0.01)
        pid = int((tmp_path / "pid").read_text())
        os.kill(pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
