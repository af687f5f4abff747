"""Generator of the stubs beside the .proto files: ``python -m esm_protos.compile [--check]``.

It needs grpcio-tools at the version that constraints.txt pins. Stubs refuse a runtime older than
their generator, so that version sets the oldest grpcio and protobuf that users can have.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
ROOT = PACKAGE.parent
STUBS = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py")


def compile_protos(out: Path) -> None:
    """Write the stubs of every .proto file under ``out``, laid out as in this package."""
    from grpc_tools import protoc

    sources = sorted(str(path.relative_to(ROOT)) for path in PACKAGE.rglob("*.proto"))
    arguments = [f"--{kind}={out}" for kind in ("python_out", "pyi_out", "grpc_python_out")]
    if protoc.main(["protoc", f"--proto_path={ROOT}", *arguments, *sources]) != 0:
        raise SystemExit("protoc failed: see its message above")
    for stub in out.rglob("onnx_*_pb2_grpc.py"):
        stub.unlink()  # these files define no service


def stale_stubs() -> list[str]:
    """Return the committed stubs that differ from fresh ones, as paths under ``protos/``."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        compile_protos(out)
        fresh = {p.relative_to(out): p.read_text() for p in out.rglob("*_pb2*.py*")}
    committed = {
        p.relative_to(ROOT): p.read_text() for p in PACKAGE.rglob("*") if p.name.endswith(STUBS)
    }
    names = fresh.keys() | committed.keys()
    return sorted(str(name) for name in names if fresh.get(name) != committed.get(name))


if __name__ == "__main__":
    if "--check" in sys.argv:
        if stale := stale_stubs():
            raise SystemExit(f"stale stubs: {', '.join(stale)}: run `make protos`")
    else:
        compile_protos(ROOT)
