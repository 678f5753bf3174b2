"""Object storage and local disk behind one form of URI. Runs anywhere; the only package that knows S3.

A URI is "s3://bucket/key", "file:///absolute/path", or a plain local path; relative paths are made absolute at once.
Endpoint, region, and credentials come from the usual AWS variables and profiles: AWS_ENDPOINT_URL_S3 or
AWS_ENDPOINT_URL (for S3-compatible stores), AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_PROFILE,
AWS_REGION or AWS_DEFAULT_REGION.

    uri.py         URIs: one spelling, parts, parents
    s3.py          the clients of pyarrow and boto3, and the store's settings in the environment
    disk.py        files that survive a power failure
    diagnosis.py   what a failure was: whether it is transient, and what the user can do
    retry.py       how long to wait for an unavailable store, and what to report meanwhile
    files.py       reading, writing, listing, and deleting
    filesystem.py  the same for Ray Tune, as a pyarrow filesystem

A request is retried until `patience_seconds` have passed if the store does not answer or says that it is temporarily
unavailable. Permanent failures (no such key, no permission) are never retried.
"""

from tpn_ray.storage.diagnosis import clock_skew_seconds
from tpn_ray.storage.files import (
    CREATE_BYTES,
    StoredFile,
    can_create,
    check_readable,
    check_writable,
    create,
    delete_file,
    delete_folder,
    download,
    exists,
    list_files,
    read_bytes,
    read_range,
    stamp,
    write_bytes,
)
from tpn_ray.storage.filesystem import patient_filesystem
from tpn_ray.storage.retry import (
    CHECK_SECONDS,
    PATIENCE,
    PATIENCE_SECONDS,
    patience,
    patience_seconds,
    set_patience,
    tell_outages,
)
from tpn_ray.storage.uri import absolute, is_absolute, is_s3, join, name, parent

__all__ = [
    "CHECK_SECONDS", "CREATE_BYTES", "PATIENCE", "PATIENCE_SECONDS", "StoredFile", "absolute", "can_create",
    "check_readable", "check_writable", "clock_skew_seconds", "create", "delete_file", "delete_folder", "download",
    "exists", "is_absolute", "is_s3", "join", "list_files", "name", "parent", "patience", "patience_seconds",
    "patient_filesystem", "read_bytes", "read_range", "set_patience", "stamp", "tell_outages", "write_bytes",
]  # fmt: skip
