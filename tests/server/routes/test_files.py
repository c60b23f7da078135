"""/v1/files: uploads are whole or not there, bounded, and never leave their folder."""

import json
import socket

import httpx
import openai
import pytest

from distaff.server.batches.limits import BatchLimits

from ..conftest import Server
from .batch_client import client_of, ended, line, started, until, upload

LIMITS = BatchLimits(most_file_bytes=300_000, most_bytes=1_000_000)


@pytest.fixture
def server(make_server, tmp_path) -> Server:
    return make_server(batches=tmp_path / "batches", batch_limits=LIMITS)


@pytest.fixture
def client(server):
    with client_of(server) as client:
        yield client


def test_a_file_from_its_upload_to_its_end(client, server, tmp_path):
    content = bytes(range(256)) * 1000
    file = client.files.create(file=("../../etc/in.jsonl", content), purpose="batch")
    assert (file.bytes, file.filename, file.purpose, file.status) == (
        256_000,
        "in.jsonl",
        "batch",
        "processed",
    )
    assert client.files.retrieve(file.id) == file
    assert client.files.content(file.id).content == content
    assert [each.id for each in client.files.list()] == [file.id]
    deleted = client.files.delete(file.id)
    assert (deleted.id, deleted.deleted) == (file.id, True)
    for ask in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError, match=f"No such File object: {file.id}"):
            ask(file.id)
    folder = tmp_path / "batches"
    assert [path.name for path in folder.rglob("*") if path.is_file()] == ["lock"]


def test_lists_can_be_filtered_turned_and_cut(client):
    first, second = upload(client, line("a")), upload(client, line("b"))
    done = ended(client, started(client, line("c")))
    files = [done.output_file_id, done.input_file_id, second.id, first.id]
    assert [each.id for each in client.files.list()] == files
    assert [each.id for each in client.files.list(order="asc", limit=1)] == files[::-1]
    assert [each.id for each in client.files.list(purpose="batch_output")] == [done.output_file_id]
    with pytest.raises(
        openai.BadRequestError, match=r"Invalid 'purpose': 'vision'\. Expected one of 'batch'"
    ):
        client.files.list(purpose="vision")


@pytest.mark.parametrize(
    ("fields", "file", "param", "text"),
    [
        ({}, ("a", b"x"), "purpose", "Missing required parameter: 'purpose'."),
        (
            {"purpose": "vision"},
            ("a", b"x"),
            "purpose",
            "Invalid value: 'vision'. Supported values are: 'batch'.",
        ),
        ({"purpose": "batch"}, ("a", b""), "file", "the file is empty"),
        ({"purpose": "batch"}, (None, b"x"), "file", "expected a file with a name"),
        ({"purpose": "batch", "expires_after[seconds]": "9"}, ("a", b"x"), "expires_after", "not supported"),
    ],
)
def test_a_bad_upload_says_what_is_wrong(server, tmp_path, fields, file, param, text):
    reply = httpx.post(f"{server.url}/v1/files", data=fields, files={"file": file})
    error = reply.json()["error"]
    assert reply.status_code == 400 and error["param"] == param and text in error["message"]
    until(lambda: not list((tmp_path / "batches" / "uploads").iterdir()))


def test_what_is_no_form_is_refused(server):
    reply = httpx.post(f"{server.url}/v1/files", json={})
    assert (
        reply.status_code == 400 and "only accepts 'multipart/form-data'" in reply.json()["error"]["message"]
    )
    head = {"content-type": "multipart/form-data; boundary=x"}
    reply = httpx.post(f"{server.url}/v1/files", headers=head)
    assert reply.status_code == 400 and reply.json()["error"]["param"] == "file"
    reply = httpx.post(f"{server.url}/v1/files", headers=head, content=b"--y")
    assert reply.status_code == 400 and reply.json()["error"]["code"] == "invalid_multipart"


def test_files_are_bounded_one_by_one_and_together(client, server, tmp_path):
    with pytest.raises(
        openai.APIStatusError, match=r"The file is too large\. Expected at most 300000 bytes"
    ) as large:
        client.files.create(file=("a", b"x" * 300_001), purpose="batch")
    assert large.value.status_code == 413
    files = [client.files.create(file=("a", b"x" * 300_000), purpose="batch") for _ in range(3)]
    with pytest.raises(
        openai.BadRequestError, match=r"The server's files are full: \d+ bytes are used"
    ) as full:
        client.files.create(file=("a", b"x" * 100_000), purpose="batch")
    assert full.value.code == "storage_limit_exceeded"
    client.files.delete(files[0].id)
    client.files.create(file=("a", b"x" * 100_000), purpose="batch")
    until(lambda: not list((tmp_path / "batches" / "uploads").iterdir()))


def test_a_body_without_a_length_is_bounded_as_well(server, tmp_path):
    def pieces():
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        for _ in range(500):
            yield b"x" * 1000

    head = {"content-type": "multipart/form-data; boundary=x"}
    try:
        reply = httpx.post(f"{server.url}/v1/files", headers=head, content=pieces())
        assert reply.status_code == 413
    except httpx.TransportError:
        pass  # the connection was closed while the rest was sent
    until(lambda: not list((tmp_path / "batches" / "uploads").iterdir()))


def test_an_upload_that_stops_leaves_nothing(make_server, tmp_path):
    server = make_server(batches=tmp_path / "b", body_seconds=0.3)
    head = b"POST /v1/files HTTP/1.1\r\nhost: x\r\ncontent-type: multipart/form-data; boundary=x\r\n"
    with server.connect() as slow, server.connect() as gone:
        for connection in (slow, gone):
            connection.sendall(head + b"content-length: 1000\r\n\r\n--x")
        until(lambda: len(list((tmp_path / "b" / "uploads").iterdir())) == 2)
        gone.shutdown(socket.SHUT_RDWR)
        assert slow.recv(65536).startswith(b"HTTP/1.1 408")
    until(lambda: not list((tmp_path / "b" / "uploads").iterdir()))


def test_uploads_that_arrive_count_before_they_are_there(client, server):
    head = b"POST /v1/files HTTP/1.1\r\nhost: x\r\ncontent-type: multipart/form-data; boundary=x\r\n"
    slow = [server.connect() for _ in range(3)]
    for connection in slow:
        connection.sendall(head + b"content-length: 300000\r\n\r\n--x")
    batches = server.app.ctx.batches
    until(lambda: batches.store.reserved == 900_000)
    with pytest.raises(openai.BadRequestError, match="The server's files are full: 900000 bytes are used"):
        client.files.create(file=("a", b"x" * 200_000), purpose="batch")
    for connection in slow:
        connection.close()
    until(lambda: batches.store.reserved == 0)
    assert client.files.create(file=("a", b"x" * 200_000), purpose="batch").bytes == 200_000


def test_the_input_of_a_batch_in_progress_stays(client, server):
    server.engine.gate.clear()
    batch = started(client, line("a"))
    with pytest.raises(openai.BadRequestError, match=f"is the input of {batch.id}") as refusal:
        client.files.delete(batch.input_file_id)
    assert refusal.value.code == "file_in_use"
    server.engine.gate.set()
    ended(client, batch)
    assert client.files.delete(batch.input_file_id).deleted


@pytest.mark.parametrize("id", ["..", "../lock", "%2e%2e%2flock", "..%2Flock", "file-x/../../lock", "a%00b"])
def test_ids_are_no_paths(server, id):
    for path in (f"/v1/files/{id}/content", f"/v1/files/{id}"):
        with server.connect() as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
            answer = b""
            while data := connection.recv(65536):
                answer += data
        status, body = answer.split(b" ", 2)[1], answer.split(b"\r\n\r\n", 1)[1]
        assert status == b"404" and set(json.loads(body)) == {"error"}
