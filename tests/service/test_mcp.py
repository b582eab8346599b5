"""The tools for language models, called by the protocol's own client: over stdin and stdout, and over HTTP."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from lemur_ann import LemurIndex, TextIndex
from lemur_ann.demo import demo_encoder
from lemur_ann.service.access import Keys, new_key
from lemur_ann.service.app import make_app
from lemur_ann.service.hosted import Hosted
from lemur_ann.service.service import Service

from .doors import COMMAND, served

mcp = pytest.importorskip("mcp")
httpx2 = pytest.importorskip("httpx2")
from mcp.client.client import Client  # noqa: E402
from mcp.client.stdio import StdioServerParameters, stdio_client  # noqa: E402
from mcp.client.streamable_http import streamable_http_client  # noqa: E402

from lemur_ann.service.agents import MAX_CHARACTERS, make_server  # noqa: E402


@pytest.fixture(scope="module")
def saved(tmp_path_factory, demo_data):
    """40 documents of the demo with texts and years; two of them have long texts."""
    table = demo_data.documents[:40].append_column("year", pa.array(np.arange(40) % 4 + 2000))
    folder = tmp_path_factory.mktemp("mcp") / "demo"
    LemurIndex().add(table).save(folder)
    return folder


@pytest.fixture(scope="module")
def query(demo_data):
    return demo_data.queries.column("text")[0].as_py()


@pytest.fixture(scope="module")
def expected(saved, query):
    return TextIndex(demo_encoder(), LemurIndex.load(saved)).search(query, 5)


async def check(client, query, expected):
    tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert set(tools) == {"search", "get_documents", "list_indexes"}
    for tool in tools.values():
        assert len(tool.description) > 40
        assert tool.output_schema is not None
        assert tool.annotations.read_only_hint
    assert tools["search"].input_schema["required"] == ["query"]
    listed = (await client.call_tool("list_indexes", {})).structured_content
    assert [(one["name"], one["num_documents"]) for one in listed["indexes"]] == [("demo", 40)]
    assert listed["indexes"][0]["columns"]["year"] == "int64"
    found = (await client.call_tool("search", {"query": query, "k": 5})).structured_content["hits"]
    assert [hit["id"] for hit in found] == expected.ids.tolist()
    assert [hit["score"] for hit in found] == pytest.approx(expected.scores.tolist())
    asked = {"query": query, "index": "demo", "filter": {"year": 2001}}
    filtered = (await client.call_tool("search", asked)).structured_content["hits"]
    assert {hit["document"]["year"] for hit in filtered} == {2001}
    got = (await client.call_tool("get_documents", {"ids": [found[0]["id"]]})).structured_content["documents"]
    assert got[0]["text"].startswith(found[0]["document"]["text"].removesuffix("...")[:MAX_CHARACTERS])


async def refused(client, tool, **arguments):
    result = await client.call_tool(tool, arguments)
    assert result.is_error
    return result.content[0].text


async def test_over_stdio(saved, query, expected, tmp_path):
    arguments = ["mcp", str(saved), "--encoder", "demo", "--num-threads", "1"]
    with open(tmp_path / "errors", "w") as errors:
        server = StdioServerParameters(command=COMMAND, args=arguments, env={"OMP_NUM_THREADS": "1"})
        async with Client(stdio_client(server, errlog=errors)) as client:
            assert "search" in client.instructions
            await check(client, query, expected)
    assert "Traceback" not in Path(tmp_path / "errors").read_text()


async def test_over_http(saved, query, expected, tmp_path):
    with served(tmp_path, f"demo={saved}", "--read-only", "--encoder", "demo", flight=False) as (url, _, _):
        async with Client(f"{url}/mcp") as client:
            await check(client, query, expected)


async def test_errors_are_told(saved, query):
    with_texts = Hosted("demo", saved, read_only=True, encoder=demo_encoder())
    other = Hosted("other", saved, read_only=True, encoder=demo_encoder())
    service = Service([with_texts, other], Keys(None))
    try:
        async with Client(make_server(service)) as client:
            assert "say which index; there are demo, other" in await refused(client, "search", query=query)
            assert "no index 'x' here" in await refused(client, "search", query=query, index="x")
            assert "no column 'yer'" in await refused(client, "search", query=query, index="demo", filter={"yer": 1})
            assert "nobody" in await refused(client, "get_documents", ids=["nobody"], index="demo")
            assert "greater than or equal to 1" in await refused(client, "search", query=query, index="demo", k=0)
    finally:
        service.close()


async def test_keys(saved, query, tmp_path):
    keys = tmp_path / "keys.json"
    secret = new_key(keys, "model", ["demo"], "read")
    with served(
        tmp_path, f"demo={saved}", f"other={saved}", "--read-only", "--encoder", "demo", "--keys", keys, flight=False
    ) as (
        url,
        _,
        _,
    ):
        initialize = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
        async with httpx2.AsyncClient() as client:
            answer = await client.post(f"{url}/mcp", json=initialize)
            assert (answer.status_code, answer.json()["error"]) == (401, "unauthorized")
            assert answer.headers["www-authenticate"] == "Bearer"
        async with (
            httpx2.AsyncClient(headers={"authorization": f"Bearer {secret}"}) as http,
            Client(streamable_http_client(f"{url}/mcp", http_client=http)) as client,
        ):
            listed = (await client.call_tool("list_indexes", {})).structured_content
            assert [one["name"] for one in listed["indexes"]] == ["demo"]
            hits = (await client.call_tool("search", {"query": query, "k": 1})).structured_content["hits"]
            assert len(hits) == 1
            assert "does not allow to read index 'other'" in await refused(client, "search", query=query, index="other")


def test_nothing_is_mounted_without_an_encoder(saved):
    service = Service([Hosted("demo", saved, read_only=True)], Keys(None))
    try:
        assert not [route for route in make_app(service)._app.routes if getattr(route, "path", "") == "/mcp"]
    finally:
        service.close()


def test_the_command_says_what_it_needs():
    done = subprocess.run([COMMAND, "mcp", "nowhere"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "--encoder" in done.stderr
