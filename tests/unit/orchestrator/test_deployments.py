import json
from pathlib import Path

import pytest

from agent.errors import HubProtocolError, HubUnreachableError
from agent.hub.fake import ORGANIZATION, FakeHub
from agent.hub.protocol import ManifestService, SignedManifest
from agent.orchestrator.deployments import DeploymentError, Deployments
from agent.paths import Paths

SOURCE = "class Pump:\n    pass\n"


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(state=tmp_path / "state", runtime=tmp_path / "run")


@pytest.fixture
def hub() -> FakeHub:
    """Not listening: only its key and its manifests are used."""
    return FakeHub()


@pytest.fixture
def deployments(paths: Paths, hub: FakeHub) -> Deployments:
    return Deployments(paths, manifest_key=hub.manifest_key, node_id="node-1")


def signed(hub: FakeHub, *services: ManifestService) -> SignedManifest:
    return SignedManifest(**hub.signed_manifest(services or None))


class Portal:
    """Hands out scripts and counts."""

    def __init__(self, hub: FakeHub) -> None:
        self.hub = hub
        self.fetched: list[str] = []

    async def __call__(self, path: str) -> bytes:
        self.fetched.append(path)
        return self.hub.scripts[path.split("/")[-2]]


async def test_staged_deployment_starts_from_the_disk_after_a_switch(
    paths: Paths, hub: FakeHub, deployments: Deployments
) -> None:
    hub.assign({"Pump.py": SOURCE}, pin=17)
    document = signed(hub)
    staged = await deployments.stage(document, Portal(hub))
    assert deployments.load() is None, "staging alone changes nothing"
    deployments.switch(document)

    again = Deployments(paths, manifest_key=hub.manifest_key, node_id="node-1")
    loaded = again.load()
    assert loaded == staged
    spec = again.specs(loaded)[0]
    assert (spec.id, spec.class_name) == ("pump_py", "Pump")
    assert spec.script.read_text("utf-8") == SOURCE
    assert spec.config.static_config[0].value == 17


async def test_script_is_downloaded_once(hub: FakeHub, deployments: Deployments) -> None:
    hub.assign({"Pump.py": SOURCE})
    portal = Portal(hub)
    await deployments.stage(signed(hub), portal)
    await deployments.stage(signed(hub), portal)
    assert portal.fetched == [f"/api/Scripts/{ORGANIZATION}/Pump.py/1.0"]


async def test_script_that_is_not_what_the_manifest_says_is_refused(
    paths: Paths, hub: FakeHub, deployments: Deployments
) -> None:
    hub.assign({"Pump.py": SOURCE})
    hub.scripts["Pump.py"] = SOURCE.encode() + b"import os\n"
    with pytest.raises(DeploymentError, match="SHA-256 differs"):
        await deployments.stage(signed(hub), Portal(hub))
    assert not list(paths.state.rglob("*.py"))


async def test_page_of_an_error_never_becomes_a_script(hub: FakeHub, deployments: Deployments) -> None:
    hub.assign({"Pump.py": "<html>404</html>"})
    with pytest.raises(DeploymentError, match="not valid Python"):
        await deployments.stage(signed(hub), Portal(hub))


async def test_class_must_be_named_as_its_file(hub: FakeHub, deployments: Deployments) -> None:
    hub.assign({"Pump.py": "class Heater:\n    pass\n"})
    with pytest.raises(DeploymentError, match=r"Pump.py has no class Pump.*it has Heater"):
        await deployments.stage(signed(hub), Portal(hub))


@pytest.mark.parametrize("file", ["../Pump.py", "/etc/Pump.py", "Pump.sh", "a b.py", ".py", "P" * 200 + ".py"])
async def test_file_name_that_leads_elsewhere_is_refused(hub: FakeHub, deployments: Deployments, file: str) -> None:
    hub.assign({"Pump.py": SOURCE})
    service = hub._services[0]
    service.file = file
    service.id = file.lower().replace(".", "_")
    with pytest.raises(DeploymentError, match="cannot be stored"):
        await deployments.stage(signed(hub, service), Portal(hub))


async def test_manifest_of_another_key_is_refused(hub: FakeHub, deployments: Deployments) -> None:
    hub.assign({"Pump.py": SOURCE})
    stranger = SignedManifest(**FakeHub().signed_manifest(hub._services))
    with pytest.raises(HubProtocolError, match="signature is not the organisation's"):
        await deployments.stage(stranger, Portal(hub))


async def test_deployment_of_another_node_is_refused(paths: Paths, hub: FakeHub) -> None:
    hub.assign({"Pump.py": SOURCE})
    with pytest.raises(HubProtocolError, match="another node's"):
        await Deployments(paths, manifest_key=hub.manifest_key, node_id="node-2").stage(signed(hub), Portal(hub))


async def test_script_of_another_host_is_not_fetched(hub: FakeHub, deployments: Deployments) -> None:
    hub.assign({"Pump.py": SOURCE})
    hub._services[0].path = "@elsewhere.example/Pump.py"
    portal = Portal(hub)
    with pytest.raises(DeploymentError, match="no path"):
        await deployments.stage(signed(hub), portal)
    assert portal.fetched == []


async def test_download_that_breaks_off_leaves_what_runs(hub: FakeHub, deployments: Deployments) -> None:
    hub.assign({"Pump.py": SOURCE})
    first = signed(hub)
    await deployments.stage(first, Portal(hub))
    deployments.switch(first)
    before = deployments.load()
    hub.assign({"Pump.py": SOURCE + "# newer\n"})

    async def broken(_: str) -> bytes:
        raise HubUnreachableError("gone")

    with pytest.raises(HubUnreachableError):
        await deployments.stage(signed(hub), broken)
    assert deployments.load() == before


async def test_damaged_script_is_left_out_and_the_others_start(
    hub: FakeHub, deployments: Deployments, caplog: pytest.LogCaptureFixture
) -> None:
    hub.assign({"Pump.py": SOURCE, "Fan.py": "class Fan:\n    pass\n"})
    manifest = await deployments.stage(signed(hub), Portal(hub))
    deployments.script_path(manifest.services[0]).write_text("torn", "utf-8")
    assert [spec.id for spec in deployments.specs(manifest)] == ["fan_py"]
    assert "Pump.py 1.0 is not on this node or is damaged" in caplog.text


async def test_damaged_deployment_is_set_aside(paths: Paths, hub: FakeHub, deployments: Deployments) -> None:
    hub.assign({"Pump.py": SOURCE})
    document = signed(hub)
    await deployments.stage(document, Portal(hub))
    deployments.switch(document)
    stored = json.loads(paths.deployment.read_text("utf-8"))
    stored["document"] = stored["document"].replace("Pump", "Bump")
    paths.deployment.write_text(json.dumps(stored), "utf-8")
    assert deployments.load() is None
    assert (paths.state / "deployment.json.damaged").exists()


async def test_scripts_that_nothing_names_any_more_are_removed(
    paths: Paths, hub: FakeHub, deployments: Deployments
) -> None:
    hub.assign({"Pump.py": SOURCE})
    await deployments.stage(signed(hub), Portal(hub))
    hub.assign({"Pump.py": SOURCE + "# newer\n"})
    manifest = await deployments.stage(signed(hub), Portal(hub))
    deployments.collect(manifest)
    assert [folder.name for folder in paths.scripts.iterdir()] == [manifest.services[0].sha256]
