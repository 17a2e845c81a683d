"""Models to a hub and back: a server on this machine speaks the part of the protocol that the client uses."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants

from hibiost.errors import ModelError, WeightsUnavailableError
from hibiost.model import card, load, untrained
from hibiost.model.registry import ours

TOKEN = "hf_write"


class Hub(BaseHTTPRequestHandler):
    """Repositories as revision -> files, in memory."""

    def reply(self, status, about=None, content=b"", **headers):
        body = content if about is None else json.dumps(about).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self):
        hub, body = self.server, self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.reply(403, {"error": "no right to write"})
        if self.path == "/api/validate-yaml":
            return self.reply(200, {"errors": [], "warnings": []})
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}"
            hub.repos.setdefault(repo, {"main": {}})
            hub.private[repo] = bool(asked.get("private")) or asked.get("visibility") == "private"
            return self.reply(200, {"url": f"{hub.url}/{repo}"})
        found = re.fullmatch(r"/api/models/(\w+/\w+)/(\w+)/(\w+)", self.path)
        repo, action, revision = found.groups()
        if action == "branch":
            hub.repos[repo].setdefault(revision, {})
            return self.reply(200, {})
        if action == "preupload":
            paths = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]
            return self.reply(200, {"files": modes})
        header, *lines = [json.loads(line)["value"] for line in body.splitlines()]
        added = {line["path"]: base64.b64decode(line["content"]) for line in lines}
        hub.repos[repo][revision] = {**hub.repos[repo][revision], **added}
        hub.commits.append((revision, header["summary"], sorted(added)))
        return self.reply(200, {"success": True, "commitOid": "0" * 40, "commitUrl": f"{hub.url}/{repo}/commit/0"})

    def do_GET(self):
        found = re.fullmatch(r"/(\w+/\w+)/resolve/(\w+)/([\w.]+)", self.path)
        if found is None:
            return self.reply(404)
        repo, revision, file = found.groups()
        revisions = self.server.repos.get(repo, {})
        commits = {commit_of(name, files): files for name, files in revisions.items()}
        if not revisions:
            return self.reply(401, X_Error_Code="RepoNotFound")
        commit = revision if revision in commits else commit_of(revision, revisions.get(revision, {}))
        if commit not in commits:
            return self.reply(404, X_Error_Code="RevisionNotFound")
        if file not in commits[commit]:
            return self.reply(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        self.server.fetched.append((self.command, file))
        content = commits[commit][file]
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        return self.reply(200, content=content, ETag=etag, X_Repo_Commit=commit)

    do_HEAD = do_GET

    def log_message(self, *args):
        pass


def commit_of(revision, files):
    return hashlib.sha1(repr([revision, *sorted(files.items())]).encode()).hexdigest()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.url = f"http://127.0.0.1:{server.server_port}"
        server.repos, server.private, server.commits, server.fetched = {}, {}, [], []
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def got(hub):
    return [file for command, file in hub.fetched if command == "GET"]


def test_to_the_hub_and_back(hub, tiny):
    told = {"licence": "mit"}
    address = tiny.push_to_hub("lab/mini", token=TOKEN, private=True, precision="float16", card=told)
    assert address == f"{hub.url}/lab/mini"
    assert hub.private == {"lab/mini": True}
    files = ["README.md", "config.json", "model.safetensors"]
    assert hub.commits == [("main", "Upload a model of hibiost", files)]
    readme = hub.repos["lab/mini"]["main"]["README.md"].decode()
    assert 'hb.model.load("hf-hub:lab/mini")' in readme
    assert card("hf-hub:lab/mini") == readme
    assert got(hub) == ["config.json"]
    again = load("hf-hub:lab/mini")
    assert again.fingerprint() == tiny.fingerprint(precision="float16")
    assert again.card_info == told
    assert got(hub) == ["config.json", "model.safetensors"]
    hub.fetched.clear()
    assert load("hf-hub:lab/mini").fingerprint() == again.fingerprint()
    assert not hub.fetched


def test_branches_and_commits(hub, tiny):
    tiny.push_to_hub("lab/mini", token=TOKEN)
    other = untrained(tiny, rng=5)
    other.push_to_hub("lab/mini", token=TOKEN, revision="v2", commit_message="Better")
    assert hub.commits[1][:2] == ("v2", "Better")
    assert "hf-hub:lab/mini@v2" in hub.repos["lab/mini"]["v2"]["README.md"].decode()
    assert load("hf-hub:lab/mini").fingerprint() == tiny.fingerprint()
    assert load("hf-hub:lab/mini@v2").fingerprint() == other.fingerprint()
    commit = commit_of("v2", hub.repos["lab/mini"]["v2"])
    assert load(f"hf-hub:lab/mini@{commit}").fingerprint() == other.fingerprint()
    with pytest.raises(ModelError, match="huggingface.co/lab/mini has no revision 'v3'"):
        load("hf-hub:lab/mini@v3")


def test_both_files_are_of_one_commit(hub, tiny):
    """The weights of a model that changed after its configuration was fetched."""
    tiny.push_to_hub("lab/mini", token=TOKEN)
    card("hf-hub:lab/mini")
    untrained(tiny, rng=5).push_to_hub("lab/mini", token=TOKEN)
    with pytest.raises(ModelError, match=r"has no revision '[0-9a-f]{40}'"):  # this hub keeps no old commits
        load("hf-hub:lab/mini")


def test_uploads_that_are_refused(hub, tiny, monkeypatch):
    with pytest.raises(ModelError, match=r"not uploaded to .*/lab/mini \(.*403.*a token that may write"):
        tiny.push_to_hub("lab/mini", token="hf_read")
    with pytest.raises(ModelError, match="'mini//x' is no name on the hub"):
        tiny.push_to_hub("mini//x", token=TOKEN)
    with pytest.raises(ModelError, match=r"no entry 'licens'.*Did you mean 'licence'"):
        tiny.push_to_hub("lab/mini", token=TOKEN, card={"licens": "mit"})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="not uploaded .*HF_HUB_OFFLINE"):
        tiny.push_to_hub("lab/mini", token=TOKEN)
    assert not hub.commits


def put(hub, **files):
    hub.repos["lab/other"] = {"main": {name.replace("__", "."): text.encode() for name, text in files.items()}}


def test_repositories_of_others_are_refused(hub):
    put(hub, config__json='{"architecture": "resnet10t"}', model__safetensors="")
    with pytest.raises(ModelError, match=r"hf-hub:lab/other holds no model of hibiost.*feature_encoder\('hf-hub:lab/"):
        load("hf-hub:lab/other")
    assert not ours("hf-hub:lab/other")
    with pytest.raises(WeightsUnavailableError, match="no access to huggingface.co/lab/none"):
        load("hf-hub:lab/none")
    assert not ours("hf-hub:lab/none")


def test_a_repository_of_pickles_is_refused(hub):
    put(hub, pytorch_model__bin="")
    with pytest.raises(ModelError, match=r"lab/other has no config.json: it holds no model of hibiost"):
        load("hf-hub:lab/other")


def test_another_format_is_refused_before_the_weights_are_fetched(hub, tiny):
    tiny.push_to_hub("lab/mini", token=TOKEN)
    files = hub.repos["lab/mini"]["main"]
    files["config.json"] = json.dumps({**json.loads(files["config.json"]), "format_version": 2}).encode()
    with pytest.raises(ModelError, match="has model format 2, this hibiost reads format 1"):
        load("hf-hub:lab/mini")
    assert got(hub) == ["config.json"]
    assert ours("hf-hub:lab/mini")


def test_offline(hub, tiny, monkeypatch):
    tiny.push_to_hub("lab/mini", token=TOKEN)
    card("hf-hub:lab/mini")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert ours("hf-hub:lab/mini")
    for name in ("hf-hub:lab/mini", "hf-hub:lab/another@v1"):
        repository = name.removeprefix("hf-hub:").partition("@")[0]
        with pytest.raises(WeightsUnavailableError, match=f"cannot be reached.*'hf download {repository} model"):
            load(name)
    assert not ours("hf-hub:lab/another")
