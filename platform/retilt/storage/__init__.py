"""Files by URI: local paths, file://, s3://, gs://, memory://. The only door to pyarrow.fs and fsspec.

Everything takes and returns URIs as strings, and file systems are built in the process that uses them; where S3 is and
by whose credentials, see ``s3``. Actions that may be repeated are, when a remote store fails (``patience``).
"""

from retilt.storage.conditional import create, read_tagged, replace
from retilt.storage.files import (
    CHUNK,
    copy,
    delete,
    exists,
    is_file,
    open_input,
    open_output,
    read_bytes,
    read_json,
    require_reachable,
    require_writable,
    sha256,
    size,
    write_bytes,
    write_json,
)
from retilt.storage.listing import FileInfo, expand, list_files, list_leftovers
from retilt.storage.paths import absolute, is_local, join, name, parent, scheme
from retilt.storage.patience import retried, retries, within
from retilt.storage.stores import reading

__all__ = [
    "CHUNK",
    "FileInfo",
    "absolute",
    "copy",
    "create",
    "delete",
    "exists",
    "expand",
    "is_file",
    "is_local",
    "join",
    "list_files",
    "list_leftovers",
    "name",
    "open_input",
    "open_output",
    "parent",
    "read_bytes",
    "read_json",
    "read_tagged",
    "reading",
    "replace",
    "require_reachable",
    "require_writable",
    "retried",
    "retries",
    "scheme",
    "sha256",
    "size",
    "within",
    "write_bytes",
    "write_json",
]
