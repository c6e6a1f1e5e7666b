"""Keys open doors, and are nowhere to be read afterwards."""

import asyncio
import json

from tests.fake_vllm import cluster

TRAFFIC, ADMIN = "sk-traffic-4711", "sk-admin-0815"


def test_keys_are_in_no_log_page_or_answer(capsys, tmp_path, monkeypatch, caplog):
    asyncio.run(scenario(capsys, tmp_path, monkeypatch, caplog))


async def scenario(capsys, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("TRAFFIC_KEYS", TRAFFIC)
    monkeypatch.setenv("ADMIN_KEYS", ADMIN)
    log = tmp_path / "decisions.jsonl"
    over = {
        "listen": {"port": 0, "keys": {"env": "TRAFFIC_KEYS"}},
        "admin": {"port": 0, "keys": {"env": "ADMIN_KEYS"}},
        "log": {"path": str(log)},
    }
    with caplog.at_level(0):
        async with cluster("PT", **over) as (client, a, b):
            traffic, admin = ({"Authorization": f"Bearer {key}"} for key in (TRAFFIC, ADMIN))
            assert (await client.complete(headers=traffic))[0] == 200
            assert (await client.complete(headers=admin))[0] == 401, "one does not open the other"
            a.status = b.status = 500
            said = [(await client.complete(headers=traffic))[2]]
            for path in ("/", "/metrics", "/admin/state"):
                async with client.session.get(client.admin + path, headers=admin) as response:
                    assert response.status == 200
                    said.append(await response.read())
                async with client.session.get(client.admin + path, headers=traffic) as response:
                    assert response.status == (200 if path == "/" else 401)
            seen = a.calls[0][3]["Authorization"]
    assert seen == f"Bearer {TRAFFIC}", "what a client sends to its server is passed on"
    printed = capsys.readouterr()
    told = [log.read_text(), printed.out, printed.err, caplog.text, *(raw.decode() for raw in said)]
    assert json.loads(told[0].splitlines()[-1])["event"] == "stop"
    for text in told:
        assert TRAFFIC not in text and ADMIN not in text
