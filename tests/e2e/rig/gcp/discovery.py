#!/usr/bin/env python3
"""Cuts Google's discovery documents to the methods that kprov calls, for the fake beside this file.

    python3 tests/e2e/rig/gcp/discovery.py        writes discovery.json.gz

The documents come from PyPI's google-api-python-client (Apache-2.0) in a virtual environment below target/; nothing is called at Google.
"""

import gzip
import json
import pathlib
import subprocess
import sys
import venv

PACKAGE = "google-api-python-client==2.202.0"
HERE = pathlib.Path(__file__).resolve().parent
ENVIRONMENT = HERE.parents[3] / "target" / "google-discovery"

CRUD = ["insert", "get", "list", "delete"]
COMPUTE = {
    "networks": CRUD,
    "subnetworks": CRUD,
    "firewalls": CRUD + ["patch"],
    "addresses": CRUD,
    "healthChecks": CRUD,
    "regionHealthChecks": CRUD + ["patch"],
    "regionBackendServices": CRUD + ["patch"],
    "forwardingRules": CRUD,
    "instanceGroups": ["insert", "get", "aggregatedList", "delete", "addInstances", "removeInstances", "listInstances"],
    "instances": ["insert", "get", "aggregatedList", "delete", "start", "resume", "setMetadata", "getGuestAttributes"],
    "globalOperations": ["wait", "get"],
    "regionOperations": ["wait", "get"],
    "zoneOperations": ["wait", "get"],
    "zones": ["list"],
    "regions": ["get"],
    "machineTypes": ["aggregatedList", "get"],
    "images": ["getFromFamily"],
    "projects": ["get"],
}
FILE = {"projects.locations.instances": ["create", "get", "list", "patch", "delete"], "projects.locations.operations": ["get"]}
KEEP = ["type", "format", "pattern", "enum", "required", "location", "repeated", "readOnly", "$ref", "items", "properties", "additionalProperties"]


def documents():
    python = ENVIRONMENT / "bin" / "python"
    if not python.exists():
        venv.create(ENVIRONMENT, with_pip=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", PACKAGE], check=True)
    return next(ENVIRONMENT.glob("lib/python*/site-packages/googleapiclient/discovery_cache/documents"))


def resource(document, path):
    node = document
    for part in path.split("."):
        node = node["resources"][part]
    return node


def slim(node):
    """Types without prose."""
    kept = {key: node[key] for key in KEEP if key in node}
    for key in ("properties",):
        if key in kept:
            kept[key] = {name: slim(value) for name, value in kept[key].items()}
    for key in ("items", "additionalProperties"):
        if isinstance(kept.get(key), dict):
            kept[key] = slim(kept[key])
    return kept


def references(node):
    if isinstance(node, dict):
        if "$ref" in node:
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def cut(document, wanted):
    methods, open_schemas = [], []
    for path, names in wanted.items():
        for name in names:
            method = resource(document, path)["methods"][name]
            body = method.get("request", {}).get("$ref")
            methods.append({
                "id": method["id"],
                "method": method["httpMethod"],
                "path": document["servicePath"] + method.get("flatPath", method["path"]),
                "parameters": {key: slim(value) for key, value in method.get("parameters", {}).items()},
                "body": body,
            })
            open_schemas += [body] if body else []
    schemas = {}
    while open_schemas:
        name = open_schemas.pop()
        if name not in schemas:
            schemas[name] = slim(document["schemas"][name])
            open_schemas += references(schemas[name])
    common = {key: slim(value) for key, value in document["parameters"].items()}
    return {"revision": document["revision"], "methods": methods, "schemas": schemas, "parameters": common}


def main():
    folder = documents()
    read = lambda name: json.loads((folder / name).read_text())
    cuts = {"compute": cut(read("compute.v1.json"), COMPUTE), "file": cut(read("file.v1.json"), FILE)}
    text = json.dumps(cuts, sort_keys=True, separators=(",", ":")).encode()
    # No time and no name inside: the same documents give the same bytes.
    (HERE / "discovery.json.gz").write_bytes(gzip.compress(text, mtime=0))
    print(f"{len(text)} bytes of JSON, {(HERE / 'discovery.json.gz').stat().st_size} compressed", file=sys.stderr)


if __name__ == "__main__":
    main()
