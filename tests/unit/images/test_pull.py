"""Pulls from a simulated registry, whole and broken."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cri_py.config import RegistryConfig
from cri_py.errors import (
    ConfigError,
    CriError,
    DataLoss,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unavailable,
)
from cri_py.images.service import Images
from cri_py.model import ImageId, RegistryAuth
from tests.simulators.registry import (
    ARCHITECTURE,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    TOKEN,
    Fault,
    File,
    Pushed,
    RegistrySimulator,
    sha256,
    tar_layer,
)
from tests.unit.images.conftest import OpenImages
from tests.unit.images.nodes import HERMETIC, leftovers

BOTTOM = tar_layer(File("etc/base", b"base" * 5000))
TOP = tar_layer(File("etc/top", b"top"))


def content(images: Images, image_id: ImageId, path: str) -> bytes:
    for lower in images.lower_dirs(image_id):
        if os.path.exists(f"{lower}/{path}"):
            return Path(lower, path).read_bytes()
    raise FileNotFoundError(path)


# ------------------------------------------------------------------ what works


async def test_a_tag_is_pulled_with_its_layers(images: Images, registry: RegistrySimulator, root: Path) -> None:
    pushed = registry.push("team/app", "1", [BOTTOM, TOP], config={"Cmd": ["/bin/app"], "User": "7"})
    image = await images.pull(f"{registry.host}/team/app:1", None)
    assert image.id == pushed.config
    assert image.repo_tags == (f"{registry.host}/team/app:1",)
    assert image.repo_digests == (f"{registry.host}/team/app@{pushed.index}",)
    assert (image.config.cmd, image.config.user) == (("/bin/app",), "7")
    sizes = sum(len(registry.blobs[digest]) for digest in (pushed.config, *pushed.layers))
    assert image.size == sizes + len(registry.manifests["team/app", pushed.manifest][0])
    assert content(images, image.id, "etc/base") == b"base" * 5000
    assert content(images, image.id, "etc/top") == b"top"
    assert len(leftovers(root)) == 2


@pytest.mark.parametrize("suffix", ["", ":latest", "@{index}", ":nothing@{index}", "@{manifest}"])
async def test_every_form_of_ref_is_pulled(images: Images, registry: RegistrySimulator, suffix: str) -> None:
    pushed = registry.push("app", "latest", [BOTTOM])
    written = suffix.format(index=pushed.index, manifest=pushed.manifest)
    image = await images.pull(f"{registry.host}/app{written}", None)
    assert image.id == pushed.config
    assert bool(image.repo_tags) == ("@" not in written)
    assert images.find(f"{registry.host}/app{written}") == image


async def test_uncompressed_layers_are_pulled(images: Images, registry: RegistrySimulator) -> None:
    registry.push("app", "1", [BOTTOM, TOP], compressed=False)
    image = await images.pull(f"{registry.host}/app:1", None)
    assert content(images, image.id, "etc/top") == b"top"


async def test_a_nested_index_is_followed(images: Images, registry: RegistrySimulator) -> None:
    pushed = registry.push("app", "inner", [BOTTOM])
    inner = {"mediaType": OCI_INDEX, "digest": pushed.index, "size": 1}
    outer = json.dumps({"schemaVersion": 2, "manifests": [inner]}).encode()
    registry.put_manifest("app", "1", outer, OCI_INDEX)
    assert (await images.pull(f"{registry.host}/app:1", None)).id == pushed.config


async def test_layers_that_images_share_are_fetched_and_unpacked_once(
    images: Images, registry: RegistrySimulator, root: Path
) -> None:
    first = registry.push("one", "1", [BOTTOM, TOP])
    registry.push("two", "1", [BOTTOM, tar_layer(File("etc/other", b"o"))])
    one, two = await asyncio.gather(*(images.pull(f"{registry.host}/{name}:1", None) for name in ("one", "two")))
    assert registry.count(first.layers[0]) == 1
    assert images.lower_dirs(one.id)[-1] == images.lower_dirs(two.id)[-1]
    assert len(leftovers(root)) == 3


async def test_a_blob_in_two_places_of_stacks_is_fetched_once(images: Images, registry: RegistrySimulator) -> None:
    pushed = registry.push("app", "1", [TOP, BOTTOM, TOP])
    image = await images.pull(f"{registry.host}/app:1", None)
    assert len(set(images.lower_dirs(image.id))) == 3
    assert registry.count(pushed.layers[0]) <= 2  # the second place may come after the first has let go of the blob


async def test_equal_pulls_join(images: Images, registry: RegistrySimulator) -> None:
    registry.push("app", "1", [BOTTOM])
    pulled = await asyncio.gather(*(images.pull(f"{registry.host}/app:1", None) for _ in range(5)))
    assert len({image.id for image in pulled}) == 1
    assert registry.count("/manifests/1") == 1


async def test_a_pull_of_what_is_here_asks_for_the_manifest_only(images: Images, registry: RegistrySimulator) -> None:
    registry.push("app", "1", [BOTTOM])
    await images.pull(f"{registry.host}/app:1", None)
    registry.asked.clear()
    await images.pull(f"{registry.host}/app:1", None)
    assert [(asked.method, asked.path) for asked in registry.asked] == [("HEAD", "/v2/app/manifests/1")]


async def test_a_pull_of_what_is_here_works_where_head_does_not(images: Images, registry: RegistrySimulator) -> None:
    pushed = registry.push("app", "1", [BOTTOM])
    await images.pull(f"{registry.host}/app:1", None)
    registry.faults.append(Fault("/manifests/1", status=405, times=1))
    assert (await images.pull(f"{registry.host}/app:1", None)).id == pushed.config
    assert [asked.method for asked in registry.asked[-2:]] == ["HEAD", "GET"]


async def test_a_tag_that_moves_leaves_the_old_image_its_digest(images: Images, registry: RegistrySimulator) -> None:
    ref = f"{registry.host}/app:1"
    registry.push("app", "1", [BOTTOM])
    old = await images.pull(ref, None)
    registry.push("app", "1", [TOP])
    new = await images.pull(ref, None)
    assert images.find(ref) == new
    left = images.find(old.id)
    assert left is not None
    assert (left.repo_tags, left.repo_digests) == ((), old.repo_digests)


def test_a_daemon_that_never_pulls_does_not_load_the_http_library() -> None:
    program = "import sys, cri_py.images.service; print('aiohttp' in sys.modules, 'ssl' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", program], text=True).split()[0] == "False"


# ---------------------------------------------------------------------- mirrors


async def test_mirrors_are_asked_in_order_and_failing_ones_passed_over(
    open_images: OpenImages, registry: RegistrySimulator
) -> None:
    pushed = registry.push("app", "1", [BOTTOM])
    with RegistrySimulator() as broken, RegistrySimulator() as empty:
        broken.faults.append(Fault("/v2/", status=500))
        mirrors = (broken.url, empty.url, registry.url, "http://127.0.0.1:1")
        async with open_images(registries={"registry.example": RegistryConfig(mirrors=mirrors)}) as images:
            image = await images.pull("registry.example/app:1", None)
            assert image.repo_tags == ("registry.example/app:1",)
            assert image.id == pushed.config
            assert (broken.count("manifests/1"), empty.count("manifests/1")) == (1, 1)
            assert empty.count("blobs") == 0, "the mirror that served the manifest is asked first for the rest"


async def test_a_mirror_that_serves_damaged_content_is_passed_over(
    open_images: OpenImages, registry: RegistrySimulator
) -> None:
    pushed = registry.push("app", "1", [BOTTOM])
    with RegistrySimulator() as damaged:
        damaged.push("app", "1", [BOTTOM])
        damaged.faults.append(Fault(pushed.layers[0], replace=b"x" * len(registry.blobs[pushed.layers[0]])))
        config = {"registry.example": RegistryConfig(mirrors=(damaged.url, registry.url))}
        async with open_images(registries=config) as images:
            assert (await images.pull("registry.example/app:1", None)).id == pushed.config
        assert (damaged.count(pushed.layers[0]), registry.count(pushed.layers[0])) == (1, 1)


async def test_credentials_for_the_host_are_not_shown_to_its_mirrors(
    open_images: OpenImages, registry: RegistrySimulator
) -> None:
    registry.push("app", "1", [BOTTOM])
    with RegistrySimulator("basic") as nosy:
        nosy.push("app", "1", [BOTTOM])
        async with open_images(registries={registry.host: RegistryConfig(mirrors=(nosy.url,))}) as images:
            await images.pull(f"{registry.host}/app:1", RegistryAuth(nosy.user, nosy.secret))
        assert [asked.authorization for asked in nosy.asked if asked.authorization] == []


async def test_credentials_that_name_a_mirror_are_for_it(open_images: OpenImages) -> None:
    with RegistrySimulator("basic") as mirror:
        mirror.push("app", "1", [BOTTOM])
        auth = RegistryAuth(mirror.user, mirror.secret, server_address=mirror.host)
        async with open_images(registries={"registry.example": RegistryConfig(mirrors=(mirror.url,))}) as images:
            await images.pull("registry.example/app:1", auth)
        assert mirror.asked[-1].authorization == mirror.basic()


async def test_a_registry_that_stalls_holds_up_no_pull_from_another(
    open_images: OpenImages, registry: RegistrySimulator
) -> None:
    registry.push("app", "1", [BOTTOM, TOP])
    with RegistrySimulator() as stalling:
        noise = [tar_layer(File(str(number), random.Random(number).randbytes(100_000))) for number in range(3)]
        pushed = stalling.push("slow", "1", noise)
        stalling.faults.append(Fault("/blobs/", stall_after=50_000))
        stalling.faults.insert(0, Fault(pushed.config, times=1))
        async with open_images(max_parallel_downloads=2, max_parallel_unpacks=2) as images:
            slow = asyncio.create_task(images.pull(f"{stalling.host}/slow:1", None))
            while len(begun := [layer for layer in pushed.layers if stalling.count(layer)]) < 2:  # noqa: ASYNC110 (any two; as asked_for)
                await asyncio.sleep(0.005)
            async with asyncio.timeout(HERMETIC.pull_progress_timeout_s / 2):
                await images.pull(f"{registry.host}/app:1", None)
            assert not slow.done()
            assert [layer for layer in pushed.layers if stalling.count(layer)] == begun, "two at once from one registry"
            slow.cancel()
            with pytest.raises(asyncio.CancelledError):
                await slow


async def test_a_short_name_is_searched_for_and_found_again(
    open_images: OpenImages, registry: RegistrySimulator, root: Path
) -> None:
    pushed = registry.push("app", "1", [BOTTOM])
    conf = root / "registries.conf"
    with RegistrySimulator() as empty:
        conf.write_text(f'unqualified-search-registries = ["{empty.host}", "{registry.host}"]\n')
        async with open_images(registries_conf=str(conf)) as images:
            assert (await images.pull("app:1", None)).repo_tags == (f"{registry.host}/app:1",)
            found = images.find("app:1")
            assert found is not None
            assert found.id == pushed.config
            with pytest.raises(NotFound, match=f"none of what .*{empty.url} has no .*{registry.url} has no"):
                await images.pull("nothing:1", None)
            conf.write_text("unqualified")
            with pytest.raises(ConfigError, match=rf"{conf}:1: not TOML"):
                await images.pull("app:1", None)
            assert images.find(f"{registry.host}/app:1") is not None


# ------------------------------------------------------------------ who may pull


@pytest.mark.parametrize("login", ["basic", "bearer"])
async def test_a_user_and_password_open_a_registry(images: Images, registry: RegistrySimulator, login: str) -> None:
    registry.login = login
    registry.push("app", "1", [BOTTOM, TOP])
    await images.pull(f"{registry.host}/app:1", RegistryAuth(registry.user, registry.secret))
    assert registry.count("/token") == (login == "bearer"), "one token serves the whole pull"


@pytest.mark.parametrize("auth", [RegistryAuth(identity_token="s3cr3t"), RegistryAuth(registry_token=TOKEN)])
async def test_tokens_open_a_registry(images: Images, registry: RegistrySimulator, auth: RegistryAuth) -> None:
    registry.login = "bearer"
    registry.push("app", "1", [BOTTOM])
    await images.pull(f"{registry.host}/app:1", auth)


async def test_nobody_gets_an_anonymous_token(images: Images, registry: RegistrySimulator) -> None:
    registry.login, registry.anonymous = "bearer", True
    registry.push("app", "1", [BOTTOM])
    await images.pull(f"{registry.host}/app:1", None)


@pytest.mark.parametrize("login", ["basic", "bearer"])
@pytest.mark.parametrize("auth", [None, RegistryAuth("robot", "wr0ng"), RegistryAuth(registry_token="wr0ng")])
async def test_wrong_credentials_are_denied_and_not_shown(
    images: Images, registry: RegistrySimulator, root: Path, login: str, auth: RegistryAuth | None
) -> None:
    registry.login = login
    registry.push("app", "1", [BOTTOM])
    with pytest.raises(PermissionDenied) as denied:
        await images.pull(f"{registry.host}/app:1", auth)
    assert f"{registry.host}/app" in str(denied.value)
    assert "wr0ng" not in str(denied.value)
    assert len(registry.asked) <= 3, "a 401 that stays is no loop"
    assert leftovers(root) == []


async def test_a_redirect_to_another_host_gets_no_credentials(images: Images, registry: RegistrySimulator) -> None:
    registry.login = "basic"
    pushed = registry.push("app", "1", [BOTTOM])
    with RegistrySimulator() as other:
        other.blobs.update(registry.blobs)
        registry.faults.append(Fault("/blobs/", redirect=f"{other.url}{{path}}?signature=a%2Fb"))
        await images.pull(f"{registry.host}/app:1", RegistryAuth(registry.user, registry.secret))
        assert [asked.authorization for asked in other.asked] == ["", ""]
        assert other.count(f"{pushed.layers[0]}?signature=a%2Fb") == 1, "signed URLs travel unchanged"
    assert all(asked.authorization for asked in registry.asked if "/blobs/" in asked.path)


async def test_a_redirect_within_the_host_keeps_credentials(images: Images, registry: RegistrySimulator) -> None:
    registry.login = "basic"
    registry.push("app", "1", [BOTTOM])
    registry.faults.append(Fault("/blobs/", redirect="{path}?again", times=1))
    await images.pull(f"{registry.host}/app:1", RegistryAuth(registry.user, registry.secret))
    assert [asked.authorization for asked in registry.asked if "?again" in asked.path] == [registry.basic()]


# -------------------------------------------------------------------- what breaks

Break = Callable[[RegistrySimulator, Pushed], Fault]

FAULTS: dict[str, tuple[Break, type[CriError], str]] = {
    "manifest of the index missing": (lambda _, p: Fault(p.manifest, status=404), NotFound, "has no"),
    "forbidden": (lambda _, p: Fault("/manifests/1", status=403), PermissionDenied, "denies"),
    "too many requests": (lambda _, p: Fault("/manifests/1", status=429), Unavailable, "429"),
    "too many requests for an hour": (
        lambda _, p: Fault("/manifests/1", status=429, headers={"Retry-After": "3600"}),
        Unavailable,
        "takes no more now for 3600 s",
    ),
    "no answer": (lambda _, p: Fault("/manifests/1", hang_up=True), Unavailable, "cut the connection"),
    "no answer for a layer": (lambda _, p: Fault(p.layers[1], hang_up=True), Unavailable, "cut the connection"),
    "gone": (lambda _, p: Fault(p.layers[0], status=410), Unavailable, "answers 410"),
    "broken registry": (lambda _, p: Fault(p.layers[0], status=500), Unavailable, "answers 500"),
    "blob missing": (lambda _, p: Fault(p.layers[1], status=404), NotFound, "has no"),
    "wrong manifest": (lambda _, p: Fault(p.manifest, replace=b"{}"), DataLoss, "not sha256:"),
    "tag with a wrong digest": (
        lambda _, p: Fault("/manifests/1", headers={"Docker-Content-Digest": "sha256:" + "0" * 64}),
        DataLoss,
        "not sha256:0",
    ),
    "wrong config": (lambda r, p: Fault(p.config, replace=b"x" * len(r.blobs[p.config])), DataLoss, "is sha256:"),
    "wrong layer": (lambda r, p: Fault(p.layers[1], replace=b"x" * len(r.blobs[p.layers[1]])), DataLoss, "damaged"),
    "short layer": (lambda r, p: Fault(p.layers[0], replace=r.blobs[p.layers[0]][:-1]), DataLoss, "has only"),
    "long layer": (lambda r, p: Fault(p.layers[0], replace=r.blobs[p.layers[0]] * 2), DataLoss, "has more"),
    "cut layer": (lambda _, p: Fault(p.layers[0], cut_after=20), Unavailable, "cut the connection"),
    "cut manifest": (lambda _, p: Fault("/manifests/1", cut_after=20), Unavailable, "cut the connection"),
    "huge manifest": (lambda _, p: Fault("/manifests/1", replace=b" " * (5 << 20)), DataLoss, "more than"),
    "huge header": (lambda _, p: Fault("/manifests/1", headers={"X": "y" * 100_000}), Unavailable, "properly"),
    "endless redirects": (lambda _, p: Fault(p.layers[0], redirect="{path}"), Unavailable, "redirects more than"),
    "redirect to a file": (lambda _, p: Fault(p.layers[0], redirect="file:///etc/passwd"), Unavailable, "no http"),
    "redirect to nobody": (lambda _, p: Fault(p.config, redirect="http://127.0.0.1:1/"), Unavailable, "be reached"),
}


@pytest.mark.parametrize("name", FAULTS)
async def test_a_broken_pull_says_why_leaves_nothing_and_can_be_repeated(
    images: Images, registry: RegistrySimulator, root: Path, name: str
) -> None:
    pushed = registry.push("app", "1", [BOTTOM, TOP])
    fault, expected, words = FAULTS[name]
    registry.faults.append(fault(registry, pushed))
    with pytest.raises(expected, match=words):
        await images.pull(f"{registry.host}/app:1", None)
    assert images.list() == []
    assert leftovers(root) == []
    registry.faults.clear()
    assert (await images.pull(f"{registry.host}/app:1", None)).id == pushed.config


async def test_a_layer_goes_on_after_a_restart_where_it_was_cut(
    open_images: OpenImages, registry: RegistrySimulator
) -> None:
    pushed = registry.push("app", "1", [tar_layer(File("noise", random.Random(1).randbytes(500_000)))])
    registry.faults.append(Fault(pushed.layers[0], cut_after=300_000))
    async with open_images(pull_attempts=1) as images:
        with pytest.raises(Unavailable, match="cut the connection"):
            await images.pull(f"{registry.host}/app:1", None)
    registry.faults.clear()
    async with open_images() as images:
        assert (await images.pull(f"{registry.host}/app:1", None)).id == pushed.config
    asked = [asked.headers.get("range") for asked in registry.asked if pushed.layers[0] in asked.path]
    assert asked == [None, "bytes=300000-"]


async def test_a_registry_that_heals_is_pulled_from(images: Images, registry: RegistrySimulator) -> None:
    pushed = registry.push("app", "1", [BOTTOM, TOP])
    registry.faults += [
        *(Fault("/manifests/", status=503, times=2), Fault(pushed.config, hang_up=True, times=2)),
        *(Fault(pushed.layers[0], cut_after=7, times=2), Fault(pushed.layers[1], status=500, times=2)),
    ]
    assert (await images.pull(f"{registry.host}/app:1", None)).id == pushed.config


async def test_a_401_without_end_is_denied(images: Images, registry: RegistrySimulator, root: Path) -> None:
    pushed = registry.push("app", "1", [BOTTOM])
    registry.login = "loop"
    with pytest.raises(PermissionDenied, match="denies"):
        await images.pull(f"{registry.host}/app:1", RegistryAuth(registry.user, registry.secret))
    assert (images.list(), leftovers(root)) == ([], [])
    registry.login = "bearer"
    await images.pull(f"{registry.host}/app:1", RegistryAuth(registry.user, registry.secret))
    assert images.find(pushed.config) is not None


@pytest.mark.parametrize("where", ["/manifests/1", "layer"])
async def test_a_dripping_registry_is_given_up(
    open_images: OpenImages, registry: RegistrySimulator, where: str
) -> None:
    pushed = registry.push("app", "1", [BOTTOM])
    registry.faults.append(Fault(pushed.layers[0] if where == "layer" else where, drip_s=0.01))
    async with open_images(pull_progress_timeout_s=0.6, pull_minimum_bytes_per_s=10_000) as images:
        with pytest.raises(DeadlineExceeded, match=r"sent only \d+ bytes in 0\.6"):
            await images.pull(f"{registry.host}/app:1", None)
        assert images.list() == []


@pytest.mark.parametrize("where", ["/manifests/1", "layer"])
async def test_a_stalled_registry_is_given_up(
    open_images: OpenImages, registry: RegistrySimulator, root: Path, where: str
) -> None:
    pushed = registry.push("app", "1", [BOTTOM])
    registry.faults.append(Fault(pushed.layers[0] if where == "layer" else where, stall_after=10))
    async with open_images(pull_progress_timeout_s=0.2) as images:
        with pytest.raises(DeadlineExceeded, match=r"sent nothing for 0\.2 s"):
            await images.pull(f"{registry.host}/app:1", None)
    assert leftovers(root) == []


async def test_a_registry_that_is_down_is_unavailable(images: Images) -> None:
    with pytest.raises(Unavailable, match=r"http://127\.0\.0\.1:1 can't be reached"):
        await images.pull("127.0.0.1:1/app:1", None)


@pytest.mark.parametrize("ref", ["missing:1", "app:2"])
async def test_what_the_registry_lacks_is_not_found(images: Images, registry: RegistrySimulator, ref: str) -> None:
    registry.push("app", "1", [BOTTOM])
    with pytest.raises(NotFound, match=ref):
        await images.pull(f"{registry.host}/{ref}", None)


async def test_a_ref_that_can_t_be_read_is_refused(images: Images) -> None:
    with pytest.raises(InvalidArgument):
        await images.pull("A:b:c", None)


async def test_a_layer_that_is_not_its_diff_id_is_refused(
    images: Images, registry: RegistrySimulator, root: Path
) -> None:
    registry.push("app", "1", [BOTTOM, TOP], diff_ids=[sha256(BOTTOM), sha256(BOTTOM)])
    with pytest.raises(DataLoss, match=r"layer 2 of .* unpacks to"):
        await images.pull(f"{registry.host}/app:1", None)
    assert leftovers(root) == []


@pytest.mark.parametrize("layer", [b"x" * 600, b"\x1f\x8b" + b"x" * 600, gzip.compress(BOTTOM)[:40]])
async def test_a_layer_that_is_no_tar_is_refused(
    images: Images, registry: RegistrySimulator, root: Path, layer: bytes
) -> None:
    registry.push("app", "1", [layer], compressed=False)
    with pytest.raises(DataLoss, match="layer 1 of"):
        await images.pull(f"{registry.host}/app:1", None)
    assert leftovers(root) == []


@pytest.mark.parametrize("discarded", [False, True])
async def test_an_artifact_is_kept_as_it_is(
    open_images: OpenImages, registry: RegistrySimulator, root: Path, discarded: bool
) -> None:
    config = registry.describe(b"{}", "application/vnd.oci.empty.v1+json")
    for name in ("one", "two"):
        layer = registry.describe(name.encode(), "text/plain")
        document = {"schemaVersion": 2, "artifactType": "text/plain", "config": config, "layers": [layer]}
        registry.put_manifest("app", name, json.dumps(document).encode(), OCI_MANIFEST)
    async with open_images(discard_unpacked_layers=discarded) as images:
        one = await images.pull(f"{registry.host}/app:one", None)
        two = await images.pull(f"{registry.host}/app:two", None)
        assert one.id != two.id
        assert one.artifact_type == "text/plain"
        assert one.chain_ids == ()
        assert json.loads(images.verbose(one)["info"])["artifactType"] == "text/plain"
        assert await images.check(deep=True) == []
        assert await images.pull(f"{registry.host}/app:one", None) == one
        blob = root / "blobs" / "sha256" / hashlib.sha256(b"one").hexdigest()
        assert blob.read_bytes() == b"one"
        await images.remove(one.id)
        assert not blob.exists()
        assert await images.check(deep=True) == []


@pytest.mark.parametrize("algorithm", ["sha384", "sha512"])
async def test_content_may_go_by_other_hashes_than_sha256(
    open_images: OpenImages, registry: RegistrySimulator, algorithm: str
) -> None:
    def described(content: bytes, media_type: str) -> dict[str, object]:
        digest = f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"
        registry.blobs[digest] = content
        return {"mediaType": media_type, "digest": digest, "size": len(content)}

    diff_id = f"{algorithm}:{hashlib.new(algorithm, BOTTOM).hexdigest()}"
    config = {"os": "linux", "architecture": ARCHITECTURE, "rootfs": {"type": "layers", "diff_ids": [diff_id]}}
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": described(json.dumps(config).encode(), OCI_CONFIG),
        "layers": [described(gzip.compress(BOTTOM), "application/vnd.oci.image.layer.v1.tar+gzip")],
    }
    content = json.dumps(manifest).encode()
    digest = f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"
    registry.manifests["app", digest] = (content, OCI_MANIFEST)
    async with open_images() as images:
        image = await images.pull(f"{registry.host}/app@{digest}", None)
    async with open_images() as images:
        assert images.list() == [image]
        assert await images.check(deep=True) == []
        await images.remove(image.id)
        assert images.content.digests() == []


async def test_an_index_that_holds_itself_ends(images: Images, registry: RegistrySimulator) -> None:
    document = json.dumps({"schemaVersion": 2, "manifests": []}).encode()
    for _ in range(6):
        described = registry.put_manifest("app", "1", document, OCI_INDEX)
        document = json.dumps({"schemaVersion": 2, "manifests": [described]}).encode()
    with pytest.raises(DataLoss, match="deep"):
        await images.pull(f"{registry.host}/app:1", None)


async def test_the_index_that_fits_is_found_among_those_that_tell_no_platform(
    images: Images, registry: RegistrySimulator
) -> None:
    entries = []
    for architecture in ("s390x", "riscv64", ARCHITECTURE):
        pushed = registry.push("app", architecture, [TOP], architecture=architecture)
        content, media_type = registry.manifests["app", architecture]
        entries.append(registry.put_manifest("app", architecture, content, media_type))
    registry.put_manifest("app", "1", json.dumps({"schemaVersion": 2, "manifests": entries}).encode(), OCI_INDEX)
    assert (await images.pull(f"{registry.host}/app:1", None)).id == pushed.config
    few = json.dumps({"schemaVersion": 2, "manifests": entries[:2]}).encode()
    registry.put_manifest("app", "few", few, OCI_INDEX)
    with pytest.raises(NotFound, match="holds: linux/riscv64"):
        await images.pull(f"{registry.host}/app:few", None)


async def test_a_wide_index_is_not_searched_for_ever(images: Images, registry: RegistrySimulator) -> None:
    empty = json.dumps({"schemaVersion": 2, "manifests": []}).encode()
    entry = registry.put_manifest("app", "none", empty, OCI_INDEX)
    document = {"schemaVersion": 2, "manifests": [entry] * 1000}
    registry.put_manifest("app", "1", json.dumps(document).encode(), OCI_INDEX)
    with pytest.raises(DataLoss, match="among the first 32"):
        await images.pull(f"{registry.host}/app:1", None)
    assert registry.count(entry["digest"]) <= 32


async def test_a_config_over_the_limit_is_not_read(images: Images, registry: RegistrySimulator) -> None:
    config = registry.describe(b" ", OCI_CONFIG) | {"size": 1 << 40}
    document = {"schemaVersion": 2, "config": config, "layers": []}
    registry.put_manifest("app", "1", json.dumps(document).encode(), OCI_MANIFEST)
    with pytest.raises(DataLoss, match="at most"):
        await images.pull(f"{registry.host}/app:1", None)
