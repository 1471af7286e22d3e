"""What a snapshot says to tools that do not know PairForge: dataset card, Croissant, wids index, sizes."""

import json
from collections.abc import Iterator
from typing import Any

import yaml

from pairforge.manifest import Manifest
from pairforge.shards import Shard

_HUB_LICENCES = frozenset(
    "apache-2.0 mit cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 "
    "cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-4.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 odbl pddl".split()
)
"""Licence ids that dataset hubs know and that people give to photos; any other is `other` there."""
_SIDES = {
    "lq": ("lq.png", "image/png", "sc:ImageObject"),
    "hq": ("hq.png", "image/png", "sc:ImageObject"),
    "json": ("json", "application/json", "sc:Text"),
}
"""Files of a sample: extension, media type, and data type in Croissant."""
_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "dct": "http://purl.org/dc/terms/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "sc": "https://schema.org/",
    "wd": "https://www.wikidata.org/wiki/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
} | {
    name: f"cr:{name}"
    for name in "citeAs column dataBiases dataCollection equivalentProperty extract field fileProperty fileObject "
    "fileSet format includes isLiveDataset jsonPath key md5 parentField path personalSensitiveInformation recordSet "
    "references regex repeated replace samplingRate separator source subField transform".split()
}
"""The JSON-LD context that Croissant 1.0 prescribes (mlcommons.org/croissant/1.0)."""


def describe(manifest: Manifest) -> dict[str, bytes]:
    """All descriptions of a snapshot by file name; they depend on the manifest's `files` in nothing."""
    return {
        "README.md": dataset_card(manifest).encode(),
        "croissant.json": json.dumps(croissant(manifest), indent=1, ensure_ascii=False).encode(),
        "sizes.json": json.dumps(_sizes(manifest), indent=1).encode(),
        "wids.json": json.dumps(_wids_index(manifest), indent=1).encode(),
    }


def _with_tar(manifest: Manifest) -> Iterator[Shard]:
    return (shard for shard in manifest.shards if shard.tar_name)


def _wids_index(manifest: Manifest) -> dict[str, Any]:
    entries = [
        {"url": _above(shard), "md5sum": shard.tar_md5, "nsamples": shard.kept, "filesize": shard.tar_bytes}
        for shard in _with_tar(manifest)
    ]
    return {"__kind__": "wids-shard-index-v1", "wids_version": 1, "name": manifest.name, "shardlist": entries}


def _above(shard: Shard) -> str:
    """A tar as seen from the snapshot's folder."""
    return f"../../{shard.tar_name}"


def _sizes(manifest: Manifest) -> dict[str, int]:
    counts = {shard.tar_name.rpartition("/")[2]: shard.kept for shard in _with_tar(manifest)}
    assert len(counts) == sum(1 for _ in _with_tar(manifest)), "two shards share a base name"
    return counts


def dataset_card(manifest: Manifest) -> str:
    """README.md with the YAML header that dataset hubs read; its paths start at the root of the dataset."""
    header = {
        "pretty_name": manifest.name,
        **_hub_licence(manifest.licences),
        "task_categories": ["image-to-image"],
        "size_categories": [_size_category(manifest.kept)],
        "tags": ["image-restoration", "webdataset", *manifest.categories()],
        "configs": [
            {
                "config_name": category,
                "data_files": [
                    {"split": split, "path": [shard.tar_name for shard in shards]}
                    for split, shards in manifest.tars(category).items()
                ],
            }
            for category in manifest.categories()
            if manifest.tars(category)
        ],
    }
    yaml_header = yaml.safe_dump(header, sort_keys=False, allow_unicode=True, width=1000)
    return f"---\n{yaml_header}---\n\n" + "\n".join(_card_body(manifest)) + "\n"


def _hub_licence(licences: tuple[str, ...]) -> dict[str, str]:
    if len(licences) == 1 and licences[0].lower() in _HUB_LICENCES:
        return {"license": licences[0].lower()}
    return {"license": "other", "license_name": "licences-of-the-sources", "license_details": "; ".join(licences)}


def _size_category(count: int) -> str:
    bounds = ("n<1K", 10**3), ("1K<n<10K", 10**4), ("10K<n<100K", 10**5), ("100K<n<1M", 10**6), ("1M<n<10M", 10**7)
    return next((name for name, limit in bounds if count < limit), "10M<n<100M" if count < 10**8 else "100M<n<1B")


def _card_body(manifest: Manifest) -> Iterator[str]:
    yield f"# {manifest.name}, snapshot {manifest.id}\n"
    yield f"{manifest.kept} pairs (degraded LQ, clean HQ) for image restoration, in WebDataset tars.\n"
    yield "| category | split | pairs | shards | bytes |\n| --- | --- | ---: | ---: | ---: |"
    for category in manifest.categories():
        for split, shards in manifest.tars(category).items():
            pairs, size = sum(shard.kept for shard in shards), sum(shard.tar_bytes for shard in shards)
            yield f"| {category} | {split} | {pairs} | {len(shards)} | {size} |"
    yield "\nOne sample is `{key}.lq.png`, `{key}.hq.png` (8-bit RGB) and `{key}.json`: source, licence, attribution,"
    yield "base, and every step with its parameters and seed, from which the pixels can be rendered again."
    yield "`{key}.base.png` is there where rendering started from another image than HQ."
    yield "Beside each tar, a parquet file of the same name has a row for every planned record, kept or not.\n"
    yield "```python\nfrom pairforge.snapshot import open_snapshot\n"
    yield f'snapshot = open_snapshot("PATH_OR_URL_OF_THE_DATASET/snapshots/{manifest.id}")'
    yield "for sample in snapshot.dataset():"
    yield '    sample["lq"], sample["hq"], sample["json"]\n```\n'
    yield f"Licences of the sources: {'; '.join(manifest.licences)}. Each sample's JSON names its own."
    if manifest.excluded:
        yield f"\nReview excluded {len(manifest.excluded)} samples that are still in the tars: `excluded` in"
        yield "`manifest.json` lists their keys. `open_snapshot` leaves them out; other readers must do so themselves."
    yield "\nThe paths above start at the root of the dataset, where this file belongs when it is published on a hub."


def croissant(manifest: Manifest) -> dict[str, Any]:
    """Croissant 1.0 JSON-LD: every tar with its SHA-256; the LQ, HQ and JSON files of each category and split.

    Records of the three kinds of file belong together where their keys are equal.
    """
    groups = [(c, split, shards) for c in manifest.categories() for split, shards in manifest.tars(c).items()]
    tars = [
        {
            "@type": "cr:FileObject",
            "@id": shard.tar_name,
            "name": shard.tar_name,
            "contentUrl": _above(shard),
            "contentSize": f"{shard.tar_bytes} B",
            "encodingFormat": "application/x-tar",
            "sha256": shard.tar_sha256,
        }
        for shard in _with_tar(manifest)
    ]
    sets = [
        {
            "@type": "cr:FileSet",
            "@id": f"{category}-{split}-{side}-files",
            "name": f"{category}-{split}-{side}-files",
            "containedIn": [{"@id": shard.tar_name} for shard in shards],
            "encodingFormat": media_type,
            "includes": f"*.{extension}",
        }
        for category, split, shards in groups
        for side, (extension, media_type, _) in _SIDES.items()
    ]
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": manifest.name,
        "description": f"{manifest.kept} pairs of degraded and clean images for image restoration.",
        "license": list(manifest.licences),
        "version": manifest.date.replace("-", "."),
        "datePublished": manifest.date,
        "distribution": [*tars, *sets],
        "recordSet": [_record_set(f"{category}-{split}", side) for category, split, _ in groups for side in _SIDES],
    }


def _record_set(group: str, side: str) -> dict[str, Any]:
    extension, _, data_type = _SIDES[side]
    name = f"{group}-{side}"
    pattern = "^(.*)\\." + extension.replace(".", "\\.") + "$"

    def field(label: str, kind: str, **source: Any) -> dict[str, Any]:
        uid = f"{name}/{label}"
        return {
            "@type": "cr:Field",
            "@id": uid,
            "name": uid,
            "dataType": kind,
            "source": {"fileSet": {"@id": f"{name}-files"}, **source},
        }

    return {
        "@type": "cr:RecordSet",
        "@id": name,
        "name": name,
        "key": {"@id": f"{name}/key"},
        "field": [
            field("key", "sc:Text", extract={"fileProperty": "filename"}, transform={"regex": pattern}),
            field("content", data_type, extract={"fileProperty": "content"}),
        ],
    }
