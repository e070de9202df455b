"""Artifact folders on a local disk or an object store, each published atomically.

An artifact is a folder `STORE/<kind>/<key12>/` whose `manifest.json` lists every file with its size
and sha256; without a manifest it is unfinished. A local artifact is built under a hidden temporary
name, synced and renamed; on an object store the files are uploaded first and the manifest last.
References in manifests are relative to the store, so that a store may be moved or copied.
"""

from pipelines.storage.folders import (
    MANIFEST,
    claimed,
    nearest_path,
    remove,
    sha256_file,
    sync_tree,
    verify,
    without_links,
)
from pipelines.storage.hub import local_base_dir
from pipelines.storage.os_errors import as_user_error, client_errors
from pipelines.storage.store import Artifact, Draft, Store
from pipelines.storage.upgrade import schema_note

__all__ = [
    "MANIFEST",
    "Artifact",
    "Draft",
    "Store",
    "as_user_error",
    "claimed",
    "client_errors",
    "local_base_dir",
    "nearest_path",
    "remove",
    "schema_note",
    "sha256_file",
    "sync_tree",
    "verify",
    "without_links",
]
