"""Reading and writing the demo's files."""

from leeboard.draft.files import read_json, replacing, write_json

__all__ = ["read_json", "replacing", "write_json"]
