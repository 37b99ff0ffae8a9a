"""The sidecar's application under plain uvicorn, without Ray: ``python -m benchmarks.sidecar.plain FILE``.

It is what the sidecar costs without its host, and starts in two seconds where Ray takes ten or more.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(path: str) -> None:
    """Serve the configuration in a JSON file until SIGTERM."""
    import uvicorn

    from serve.api import create_app
    from serve.config import SidecarConfig

    config = SidecarConfig.from_dict(json.loads(Path(path).read_text(encoding="utf-8")), source=path)
    uvicorn.run(
        create_app(config),
        host=config.http.host,
        port=config.http.port,
        timeout_keep_alive=config.http.keep_alive_s,
        log_level="warning",
        access_log=False,
    )


if __name__ == "__main__":
    main(sys.argv[1])
