"""Deployment files: Ray's own checker accepts the cluster, the image holds what the package needs."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.settings import RunSettings

ROOT = Path(__file__).parent.parent


def checked(data: dict[str, Any]) -> dict[str, Any]:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared: dict[str, Any] = prepare_config(data)
    validate_config(prepared)
    return prepared


def cluster() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())
    return loaded


def test_rays_checker_accepts_the_cluster() -> None:
    prepared = checked(cluster())
    assert prepared["head_node_type"] == "head"
    kinds = prepared["available_node_types"]
    assert {"head", "cpu_worker", "gpu_worker"} == set(kinds)
    assert kinds["head"]["resources"]["CPU"] == 0, "parts must not run on the head"
    assert prepared["cluster_name"]
    assert sum(kind.get("max_workers", 0) for name, kind in kinds.items() if name != "head") <= prepared["max_workers"]
    for commands in (prepared["head_start_ray_commands"], prepared["worker_start_ray_commands"]):
        assert any("RAY_AUTH_MODE=token ray start" in command for command in commands)


@pytest.mark.parametrize(
    "damage",
    [
        lambda c: c.update(head_node_type="nowhere"),
        lambda c: c.update(max_workers="many"),
        lambda c: c["available_node_types"]["cpu_worker"].update(node_config="m7i"),
        lambda c: c.update(unknown_key=1),
    ],
)
def test_the_checker_would_notice(damage: Any) -> None:
    data = cluster()
    damage(data)
    with pytest.raises(Exception, match=r"."):
        checked(data)


def test_the_image_copies_every_package() -> None:
    text = (ROOT / "deploy" / "Dockerfile").read_text()
    copied = {name for line in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE) for name in line.split()}
    tracked = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "benchmarks"}
    assert tracked <= copied
    assert {"pyproject.toml", "constraints.txt"} <= copied


def test_the_clusters_in_the_docs_are_valid() -> None:
    text = (ROOT / "docs" / "cluster.md").read_text()
    blocks = [yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)]
    (own_hosts,) = [block for block in blocks if "provider" in block]
    assert checked(own_hosts)["provider"]["worker_ips"]
    del own_hosts["provider"]["head_ip"]
    with pytest.raises(Exception, match="head_ip"):
        checked(own_hosts)
    (settings,) = [block["run"] for block in blocks if "run" in block]
    assert RunSettings.model_validate(settings).stages["render"].labels
    (job,) = [block["spec"] for block in blocks if block.get("kind") == "RayJob"]
    for group in (job["rayClusterSpec"]["headGroupSpec"], *job["rayClusterSpec"]["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        assert {entry["name"] for entry in container["env"]} == {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"}


def test_every_extra_that_the_image_installs_exists() -> None:
    import tomllib

    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    (wanted,) = re.findall(r"pip install .*\'\.\[(.+)\]\'", dockerfile)
    assert set(wanted.split(",")) <= extras
