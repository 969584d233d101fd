"""The verb `weights`: the list for people and programs, and downloads."""

import json

import pytest
from support.http_server import Served, file_server

from mindrepvgg.weights import cache, load, released


def test_the_list_for_people(call, tmp_path, monkeypatch):
    monkeypatch.setenv(cache.CACHE, str(tmp_path))
    sealed = cache.sealed_file(released.find_released("timm/repvgg_d2se"))
    sealed.parent.mkdir(parents=True)
    sealed.touch()
    status, out, err = call("weights")
    assert (status, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert ["mmpretrain/repvgg_a1", "yes", "74.23", "224", "train", "SHA-256", "f81bf3df..."] in lines
    assert ["timm/repvgg_d2se", "83.55", "320", "train", "SHA-256", "told", "by", "the", "hub", "yes"] in lines
    assert ["mindcv/repvgg_b1", "78.81", "224", "train", "recorded", "at", "the", "first", "download"] in lines
    assert f"Kept in {tmp_path}/weights; MINDREPVGG_CACHE=FOLDER moves the cache." in out
    for source in released.SOURCES:
        assert f"{source.name}: {source.note}." in out


def test_the_list_for_programs(call):
    status, out, _ = call("weights", "--json")
    facts = {fact["name"]: fact for fact in json.loads(out)}
    assert status == 0
    assert len(facts) == len(released.RELEASED)
    assert sum(fact["default"] for fact in facts.values()) == 12
    assert facts["timm/repvgg_a0"]["file"] is None


def test_names_and_addresses_are_downloaded_and_their_files_printed(call, tmp_path, monkeypatch):
    monkeypatch.setenv(cache.CACHE, str(tmp_path))
    monkeypatch.setattr(load, "_seal", lambda wanted: wanted.destination.write_bytes(wanted.source.read_bytes()))
    with file_server() as server:
        monkeypatch.setenv(released.MIRROR, server.address)
        server.files["/toolkits/mindcv/repvgg/repvgg_a1-539513ac.ckpt"] = Served(b"a1")
        server.files["/x.pth"] = Served(b"x")
        status, out, err = call("weights", "mindcv/RepVGG-A1", f"{server.address}/x.pth")
        assert status == 0, err
        first, second = out.splitlines()
        assert first == f"{tmp_path}/weights/mindcv/repvgg_a1-539513ac.sealed.ckpt"
        assert second.startswith(f"{tmp_path}/weights/addresses/")
        status, out, _ = call("weights", "mindcv/repvgg_a1", "--json")
        assert json.loads(out) == {"mindcv/repvgg_a1": first}
        assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("repvgg_b2g2", "error: no weights of 'repvgg_b2g2' are known; did you mean "),
        ("best.ckpt", "error: 'best.ckpt' is no name of weights; mindrepvgg weights lists them"),
    ],
)
def test_a_wrong_name_is_told_before_anything_is_downloaded(call, name, text):
    status, _, err = call("weights", "mindcv/repvgg_a1", name)
    assert status == 2
    assert err.startswith(text)
