"""The registry client against a real registry: open, with passwords, and with a token server; and against a hostile one."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID

from shared.errors import PermanentError, TemporaryError
from shared.oci import RegistryClient, credentials_for, open_registry_client, parse_reference
from shared.oci.client import CONFIG_BYTES, MANIFEST_BYTES
from tests.servers.images import File, Image, architecture
from tests.servers.pushing import push_blob, push_image, push_manifest
from tests.servers.registry import Registry, started_registry

TINY = Image(
    "tiny:1",
    [[("hello", File(b"hello"))]],
    entrypoint=["/hello", "you"],
    cmd=["and", "all"],
    workdir="/work",
    env=["PATH=/bin", "EQUALS=a=b", "EMPTY="],
    user="1000:1000",
    labels={"TencentHubComponent": '{"input": []}'},
)
OCI_INDEX = "application/vnd.oci.image.index.v1+json"


@pytest.fixture
async def client() -> AsyncIterator[RegistryClient]:
    async with open_registry_client() as opened:
        yield opened


async def _push(client: RegistryClient, name: str, image: Image = TINY, auth: Any = None) -> str:
    manifest, blobs = image.pushable()
    return await push_image(client, parse_reference(name), manifest, blobs, auth)


async def test_what_was_pushed_is_read_back(client: RegistryClient, registry: Registry) -> None:
    name = f"{registry.host}/team/tiny"
    digest = await _push(client, f"{name}:1")
    for reference in (f"{name}:1", f"{name}@{digest}", f"{name}:ignored@{digest}"):
        config = await client.image_config(parse_reference(reference))
        assert config.command == ("/hello", "you", "and", "all")
        assert config.env == {"PATH": "/bin", "EQUALS": "a=b", "EMPTY": ""}
        assert (config.workdir, config.user, config.digest) == ("/work", "1000:1000", digest)
        assert config.labels == {"TencentHubComponent": '{"input": []}'}
        assert config.architecture == architecture()


async def test_an_index_gives_the_image_of_the_wanted_machine(client: RegistryClient, registry: Registry) -> None:
    name = f"{registry.host}/team/many"
    entries = []
    for machine in ("arm64", "amd64", "s390x"):
        image = Image("x", [[("machine", File(machine.encode()))]], cmd=[machine])
        digest = await _push(client, f"{name}:{machine}", image)
        entries.append({"digest": digest, "size": 1, "platform": {"os": "linux", "architecture": machine}})
        entries[-1]["mediaType"] = "application/vnd.docker.distribution.manifest.v2+json"
        entries[-1]["size"] = len(image.pushable()[0])
    index = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).encode()
    await push_manifest(client, parse_reference(f"{name}:all"), index, OCI_INDEX)
    for machine in ("arm64", "s390x"):
        assert (await client.image_config(parse_reference(f"{name}:all"), architecture=machine)).cmd == (machine,)
    with pytest.raises(PermanentError, match=r"no image for linux/mips, only for linux/amd64, linux/arm64"):
        await client.image_config(parse_reference(f"{name}:all"), architecture="mips")


async def test_tags_over_pages_and_blobs_up_to_a_limit(client: RegistryClient, registry: Registry) -> None:
    name = f"{registry.host}/team/tagged"
    for number in range(3):
        await _push(client, f"{name}:v{number}")
    assert sorted(await client.tags(parse_reference(name))) == ["v0", "v1", "v2"]
    blob = secrets.token_bytes(1_200_000)
    digest = f"sha256:{hashlib.sha256(blob).hexdigest()}"
    reference = parse_reference(name)
    await push_blob(client, reference, digest, blob)
    assert await client.blob_bytes(reference, digest, limit=2_000_000) == blob
    with pytest.raises(PermanentError, match="larger than 1000000"):
        await client.blob_bytes(reference, digest, limit=1_000_000)


async def test_t09_unknown_images_are_named(client: RegistryClient, registry: Registry) -> None:
    for name in (f"{registry.host}/team/absent:1", f"{registry.host}/team/absent@sha256:{'0' * 64}"):
        with pytest.raises(PermanentError, match="is not known to its registry") as caught:
            await client.image_config(parse_reference(name))
        assert name in str(caught.value)
        assert caught.value.reason == "ImagePull"


async def test_a_registry_that_is_away_is_a_temporary_error(client: RegistryClient) -> None:
    with pytest.raises(TemporaryError, match="does not answer"):
        await client.image_config(parse_reference("127.0.0.1:9/x"))


async def test_basic_authentication(client: RegistryClient, registry: Registry, tmp_path: Path) -> None:
    auth = {"username": "alice", "password": "wönder: land"}
    async with started_registry(tmp_path, users={"alice": auth["password"]}) as closed:
        reference = parse_reference(f"{closed.host}/team/tiny:1")
        await _push(client, str(reference), auth=auth)
        assert (await client.image_config(reference, auth)).user == "1000:1000"
        for wrong in (None, {"username": "alice", "password": "no"}):
            with pytest.raises(PermanentError, match="refused") as caught:
                await client.image_config(reference, wrong)
            assert "wönder" not in str(caught.value)


async def test_token_authentication(client: RegistryClient, registry: Registry, tmp_path: Path) -> None:
    async with _token_server(tmp_path) as (address, certificate, scopes):
        token = {"realm": address, "service": "test", "issuer": "tests", "rootcertbundle": certificate}
        async with started_registry(tmp_path / "registry", token=token) as closed:
            reference = parse_reference(f"{closed.host}/team/tiny:1")
            auth = {"username": "bob", "password": "builder"}
            await _push(client, str(reference), auth=auth)
            before = len(scopes)
            for _ in range(3):
                assert (await client.image_config(reference, auth)).user == "1000:1000"
            assert len(scopes) == before + 1  # one token serves until it expires
            assert scopes[-1] == "repository:team/tiny:pull"
            with pytest.raises(PermanentError, match="refused"):
                await client.image_config(reference, {"username": "bob", "password": "wrong"})


async def test_pushes_are_told_to_the_hook(client: RegistryClient, registry: Registry, tmp_path: Path) -> None:
    told: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def hear(request: web.Request) -> web.Response:
        for event in json.loads(await request.read())["events"]:
            told.put_nowait(event)
        return web.Response()

    async with _served(hear) as address, started_registry(tmp_path, notify=f"{address}/hook") as telling:
        digest = await _push(client, f"{telling.host}/team/tiny:7")
        async with asyncio.timeout(20):
            while (event := await told.get())["target"].get("tag") != "7":
                pass
    assert (event["action"], event["target"]["digest"]) == ("push", digest)


# ---------------------------------------------------------------- hostile registries (no real one does this)


async def test_credentials_do_not_follow_a_redirect(client: RegistryClient) -> None:
    seen: list[str | None] = []

    async def elsewhere(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Authorization"))
        return web.Response(status=404)

    async with _served(elsewhere) as other:

        async def redirecting(request: web.Request) -> web.Response:
            if "Authorization" not in request.headers:
                return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})
            return web.Response(status=307, headers={"Location": f"{other}/blob"})

        async with _served(redirecting) as address:
            reference = parse_reference(address.removeprefix("http://") + "/a")
            with pytest.raises(PermanentError):
                await client.image_config(reference, {"username": "u", "password": "p"})
    assert seen == [None]


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (lambda _: web.Response(body=b"x" * (MANIFEST_BYTES + 1)), "larger than"),
        (lambda _: web.Response(body=b"[" * 100_000), "not a JSON object"),
        (lambda _: web.Response(text="[]"), "not a JSON object"),
        (
            lambda _: web.json_response({"mediaType": "application/vnd.docker.distribution.manifest.v1+json"}),
            "not an image",
        ),
        (lambda _: web.json_response({"mediaType": OCI_INDEX, "manifests": "no"}), "no image for"),
        (lambda _: web.json_response({}, headers={"Docker-Content-Digest": "sha256:1"}), "does not have the digest"),
        (lambda _: web.Response(status=307, headers={"Location": "file:///etc/passwd"}), "not safe"),
        (lambda request: web.Response(status=307, headers={"Location": str(request.url)}), "in circles"),
        (lambda _: web.Response(status=307, headers={"Location": "http://[x"}), "unusable address"),
        (lambda _: web.Response(status=307, headers={"Location": "http://x:99999999/"}), "unusable address"),
        (lambda _: web.Response(status=307, headers={"Location": "http://x..y/"}), "unusable address"),
        (
            lambda _: web.Response(status=401, headers={"WWW-Authenticate": 'Bearer realm="http://["'}),
            "unusable address",
        ),
        (lambda _: web.Response(status=401, headers={"WWW-Authenticate": 'Bearer realm="ftp://x"'}), "no token server"),
        (lambda _: web.json_response({"mediaType": OCI_INDEX, "manifests": [{"digest": "\ud800"}]}), "is not a digest"),
        (
            lambda _: web.Response(status=403, text='{"errors":[{"code":"DENIED","message":"go away"}]}'),
            "DENIED go away",
        ),
    ],
)
async def test_hostile_manifests(
    client: RegistryClient, answer: Callable[[web.Request], web.Response], complaint: str
) -> None:
    async def serve(request: web.Request) -> web.Response:
        return answer(request)

    async with _served(serve) as address:
        with pytest.raises(PermanentError, match=complaint):
            await client.image_config(parse_reference(address.removeprefix("http://") + "/a"))


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        (b"{}x", "does not have the digest"),
        (b"{" * (CONFIG_BYTES + 1), "larger than"),
        (b'{"config": {"Cmd": [1]}}', "Cmd in its configuration"),
        (b'{"config": {"Env": {"a": "b"}}}', "Env in its configuration"),
        (b'{"config": {"Labels": []}}', None),
        (b'{"config": {"Labels": ["a"]}}', "labels"),
        (b'{"config": {"WorkingDir": 7}}', "not text"),
    ],
)
async def test_hostile_configurations(client: RegistryClient, config: bytes, complaint: str | None) -> None:
    digest = f"sha256:{hashlib.sha256(config.removesuffix(b'x')).hexdigest()}"
    media_type = "application/vnd.oci.image.manifest.v1+json"

    async def serve(request: web.Request) -> web.Response:
        if "/blobs/" in request.path:
            return web.Response(body=config)
        return web.json_response({"mediaType": media_type, "config": {"digest": digest}})

    async with _served(serve) as address:
        reference = parse_reference(address.removeprefix("http://") + "/a")
        if complaint is None:
            assert (await client.image_config(reference)).labels == {}
        else:
            with pytest.raises(PermanentError, match=complaint):
                await client.image_config(reference)


@pytest.mark.parametrize("link", ["http://[x", "http://x:99999999/", "http://elsewhere.test/"])
async def test_hostile_links_to_the_next_page(client: RegistryClient, link: str) -> None:
    async def serve(_: web.Request) -> web.Response:
        return web.json_response({"tags": ["1"]}, headers={"Link": f'<{link}>; rel="next"'})

    async with _served(serve) as address:
        with pytest.raises(PermanentError):
            await client.tags(parse_reference(address.removeprefix("http://") + "/a"))


@pytest.mark.parametrize(
    ("after", "delay"), [("7", 7), ("3601", None), pytest.param("9" * 5000, None, id="5000 digits"), ("soon", None)]
)
async def test_a_busy_registry_says_when_to_come_back(client: RegistryClient, after: str, delay: float | None) -> None:
    async def busy(_: web.Request) -> web.Response:
        return web.Response(status=429, headers={"Retry-After": after})

    async with _served(busy) as address:
        with pytest.raises(TemporaryError) as caught:
            await client.image_config(parse_reference(address.removeprefix("http://") + "/a"))
    assert caught.value.delay == delay


# ---------------------------------------------------------------- names and credentials


@pytest.mark.parametrize(
    ("text", "registry", "repository", "tag"),
    [
        ("alpine", "docker.io", "library/alpine", "latest"),
        ("alpine:3.20", "docker.io", "library/alpine", "3.20"),
        ("team/app", "docker.io", "team/app", "latest"),
        ("index.docker.io/alpine", "docker.io", "library/alpine", "latest"),
        ("localhost/app:1", "localhost", "app", "1"),
        ("localhost:5000/a/b/c", "localhost:5000", "a/b/c", "latest"),
        ("[::1]:5000/a", "[::1]:5000", "a", "latest"),
        ("hub.tencentyun.com/ns/repo_x:v1", "hub.tencentyun.com", "ns/repo_x", "v1"),
    ],
)
def test_references_are_read_as_docker_does(text: str, registry: str, repository: str, tag: str) -> None:
    reference = parse_reference(text)
    assert (reference.registry, reference.repository, reference.tag) == (registry, repository, tag)
    assert parse_reference(str(reference)) == reference


@pytest.mark.parametrize(
    "text",
    ["", "Upper", "a b", "a//b", "../etc", "a/../b", "x:", "x:-t", "x@sha256:12", "x@", "host:99999/a", "ho st.com/a",
     "user:pass@host.com/a", "a?b", "http://host/a", "x" * 2000, "a:b:c", "é", "a\n"],
)  # fmt: skip
def test_wrong_references_are_refused_with_a_reason(text: str) -> None:
    with pytest.raises(PermanentError, match="is not an image reference") as caught:
        parse_reference(text)
    assert caught.value.reason == "ImagePull"
    assert len(str(caught.value)) < 600


def test_credentials_are_found_in_a_docker_config() -> None:
    encoded = base64.b64encode(b"me:pa:ss").decode()
    config = {
        "auths": {
            "https://index.docker.io/v1/": {"auth": encoded},
            "reg.example:5000": {"username": "u", "password": "p"},
            "reg.example:5000/team": {"username": "team", "password": "p"},
            "https://empty.example": {},
        }
    }
    for text, name in (("alpine", "me"), ("reg.example:5000/x", "u"), ("reg.example:5000/team/x", "team")):
        found = credentials_for(json.dumps(config), parse_reference(text))
        assert found is not None
        assert found["username"] == name
    assert credentials_for(config, parse_reference("alpine")) == {"username": "me", "password": "pa:ss"}
    assert credentials_for(config, parse_reference("reg.example:5000/teams/x"))["username"] == "u"  # type: ignore[index]
    for text in ("other.example/x", "empty.example/x", "reg.example/x"):
        assert credentials_for(config, parse_reference(text)) is None
    for bad in ("secret-not-json", '{"auths": 7}', '{"auths": {"docker.io": {"auth": "%%secret"}}}'):
        with pytest.raises(PermanentError, match="cannot be used") as caught:
            credentials_for(bad, parse_reference("alpine"))
        assert "secret" not in str(caught.value)


# ---------------------------------------------------------------- helpers


@asynccontextmanager
async def _served(handler: Callable[[web.Request], Any]) -> AsyncIterator[str]:
    """A small HTTP server on a free port; gives its address."""
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def _token_server(folder: Path) -> AsyncIterator[tuple[str, str, list[str]]]:
    """A token server as the distribution specification describes; gives (address, certificate file, scopes asked for)."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1)).sign(key, hashes.SHA256())
    )  # fmt: skip
    path = folder / "token.pem"
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    chain = [base64.b64encode(certificate.public_bytes(serialization.Encoding.DER)).decode()]
    scopes: list[str] = []

    async def token(request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != aiohttp.encode_basic_auth("bob", "builder"):
            return web.Response(status=401)
        scope = request.query["scope"]
        scopes.append(scope)
        kind, repository, actions = scope.split(":")
        access = [{"type": kind, "name": repository, "actions": actions.split(",")}]
        seconds = int(time.time())
        claims = {
            "iss": "tests",
            "sub": "bob",
            "aud": request.query["service"],
            "exp": seconds + 300,
            "nbf": seconds - 60,
        }
        claims |= {"iat": seconds, "jti": secrets.token_hex(8), "access": access}
        parts = [{"typ": "JWT", "alg": "ES256", "x5c": chain}, claims]
        signed = ".".join(_base64url(json.dumps(part).encode()) for part in parts)
        r, s = decode_dss_signature(key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        signature = _base64url(r.to_bytes(32, "big") + s.to_bytes(32, "big"))
        return web.json_response({"token": f"{signed}.{signature}", "expires_in": 300})

    async with _served(token) as address:
        yield f"{address}/token", str(path), scopes


def _base64url(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()
