"""``bitwright verify``"""

from __future__ import annotations

from bitwright.cli import console
from bitwright.cli.options import ArtifactArgument, JsonOption


def command(artifact: ArtifactArgument, json: JsonOption = False) -> None:
    """Check an artifact: every file's digest, and whether this machine can run its code.

    Nothing of the artifact is executed. Exit code 3: damaged; 5: made for another machine or another TVM.
    """
    from bitwright.runtime.artifact import Artifact

    opened = Artifact.open(artifact)
    opened.verify()
    opened.check_host()
    manifest = opened.manifest
    total = sum(record.bytes for record in manifest.files.values())
    if json:
        console.print_json(
            {
                "ok": True,
                "model": manifest.model.name,
                "kind": manifest.kind,
                "bytes": manifest.run_bytes,
                "files": {name: record.sha256 for name, record in sorted(manifest.files.items())},
                "target": manifest.target.model_dump(mode="json"),
            }
        )
        return
    print(f"{artifact}: {manifest.model.name}, {len(manifest.files)} files, {console.format_bytes(total)}: intact")
    print(f"target {manifest.target.fingerprint} ({manifest.target.arch}): this machine can run it")
