"""Draw docs/report.png: the demo's report in a headless Chromium.

python benchmarks/screenshot.py --out docs/report.png
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


def main() -> None:
    """Run the demo, open its report, save the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("docs/report.png"))
    arguments = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("no Chromium on this machine")
    with tempfile.TemporaryDirectory() as folder:
        demo = [
            sys.executable,
            "-c",
            "from clipspect.cli import main; main()",
            "demo",
            "--out",
            f"{folder}/demo",
        ]
        subprocess.run(demo, check=True)
        shot = Path(folder) / "shot.png"
        subprocess.run(
            [chromium, *FLAGS, f"--user-data-dir={folder}/profile", "--window-size=1280,1180",
             "--virtual-time-budget=5000",  # the heat of cards is drawn a few milliseconds per frame
             f"--screenshot={shot}", f"file://{folder}/demo/report.html"],
            check=True, capture_output=True, timeout=120,
        )  # fmt: skip
        with Image.open(shot) as image:
            image.convert("RGB").save(arguments.out, optimize=True)


if __name__ == "__main__":
    main()
