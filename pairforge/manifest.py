"""What a snapshot is made of: its manifest, and the pointer that names the latest one."""

from collections.abc import Mapping, Sequence

from pairforge.config import fingerprint
from pairforge.records import Frozen
from pairforge.shards import Shard

DESCRIPTIONS = ("README.md", "croissant.json", "sizes.json", "wids.json")
"""Files of a snapshot that say for other tools what its manifest says."""


class Manifest(Frozen):
    """What a snapshot holds.

    `content` is the fingerprint of everything but the date and the descriptions; `id` is the date and its
    first 8 digits. `files` are the SHA-256 of the snapshot's other files by name.
    """

    schema_version: int
    id: str
    content: str
    date: str
    name: str
    shards: tuple[Shard, ...]
    excluded: tuple[str, ...]
    sources: Mapping[str, int]
    licences: tuple[str, ...]
    files: Mapping[str, str]

    @property
    def kept(self) -> int:
        """Samples in the tars, excluded ones too."""
        return sum(shard.kept for shard in self.shards)

    def categories(self) -> list[str]:
        return sorted({shard.category for shard in self.shards})

    def tars(self, category: str) -> dict[str, list[Shard]]:
        """Shards with a tar of one category, by split."""
        found: dict[str, list[Shard]] = {}
        for shard in self.shards:
            if shard.category == category and shard.tar_name:
                found.setdefault(shard.split, []).append(shard)
        return dict(sorted(found.items()))

    def computed_content(self) -> str:
        """What `content` must be."""
        extra = {name: sha256 for name, sha256 in self.files.items() if name not in DESCRIPTIONS}
        return content_of(self.name, self.shards, self.excluded, self.sources, self.licences, extra)


class Pointer(Frozen):
    """Content of `latest.json`. `fence` grows by one with every move and never falls."""

    snapshot: str
    manifest_sha256: str
    fence: int


def content_of(
    name: str,
    shards: Sequence[Shard],
    excluded: Sequence[str],
    sources: Mapping[str, int],
    licences: Sequence[str],
    extra: Mapping[str, str],
) -> str:
    """Fingerprint of what a snapshot holds; `extra` are SHA-256 by file name, lists are in their final order."""
    return fingerprint(
        {
            "name": name,
            "shards": [shard.model_dump(mode="json") for shard in shards],
            "excluded": list(excluded),
            "sources": dict(sources),
            "licences": list(licences),
            "extra": dict(extra),
        }
    )
