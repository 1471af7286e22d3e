"""Deployment files: Ray's own checker accepts the cluster, the image holds what the package needs."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

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
    tracked = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert tracked <= copied
    assert {"pyproject.toml", "constraints.txt"} <= copied
