"""Reading pages as a browser does: by a parser, and in headless Chromium where there is one."""

from __future__ import annotations

import base64
import re
import shutil
import struct
import subprocess
from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "source", "img", "br", "hr", "link", "input"}
REFERENCES = ("src", "srcset", "href", "data", "poster", "action")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)


class Page(HTMLParser):
    """A parsed page: elements that are closed as they were opened, references, text."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.source = path.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.faults: list[str] = []
        self.texts: list[str] = []
        self.feed(self.source)
        self.close()
        self.faults += [f"<{tag}> is never closed" for tag in self.open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open[-1] != tag:
            self.faults.append(f"</{tag}> where {self.open[-1:]} is open")
        else:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))

    @property
    def ids(self) -> list[str]:
        return [attrs["id"] for _, attrs in self.tags if "id" in attrs]

    @property
    def references(self) -> list[str]:
        return [attrs[key] for _, attrs in self.tags for key in REFERENCES if key in attrs]

    @property
    def images(self) -> list[tuple[str, bytes]]:
        """Whether for light or dark paper, and the bytes of the file."""
        found = []
        for tag, attrs in self.tags:
            address = attrs.get("srcset") if tag == "source" else attrs.get("src")
            if address:
                kind = "dark" if tag == "source" else "light"
                found.append((kind, base64.b64decode(address.partition(",")[2])))
        return found


def size_of(png: bytes) -> tuple[int, int]:
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", png[16:24])
    return width, height


WATCH = """<script>
const seen = [];
addEventListener("error", e => seen.push(e.message || (e.target.tagName + " failed")), true);
addEventListener("securitypolicyviolation", e => seen.push("blocked " + e.blockedURI));
addEventListener("load", () => {
  const images = [...document.images];
  const dark = images.map(i => i.currentSrc).filter(s => s !== images[0].src).length;
  document.body.dataset.errors = JSON.stringify(seen);
  document.body.dataset.broken = images.filter(i => !i.complete || !i.naturalWidth).length;
  document.body.dataset.images = images.length;
  document.body.dataset.other = images.filter(i => i.currentSrc !== i.src).length;
  document.body.dataset.wide = Math.max(0, document.documentElement.scrollWidth - innerWidth);
});
</script>"""


def in_browser(
    path: Path, folder: Path, *, dark: bool = False, width: int = 1400
) -> dict[str, str]:
    """Open a page in Chromium and return what a script saw there: errors, images, overflow."""
    assert CHROMIUM is not None
    source = path.read_text(encoding="utf-8")
    # The page allows no script; the one that watches is let in, and nothing else.
    watched = source.replace(
        "default-src 'none';", "default-src 'none'; script-src 'unsafe-inline';"
    )
    watched = watched.replace("<head>", f"<head>{WATCH}", 1)
    copy = folder / f"watched-{path.name}"
    copy.write_text(watched, encoding="utf-8")
    done = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--enable-logging=stderr",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            f"--window-size={width},900",
            f"--user-data-dir={folder / 'chromium'}",
            "--dump-dom",
            copy.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    found = dict(re.findall(r'data-(\w+)="([^"]*)"', done.stdout[done.stdout.rfind("<body") :]))
    found["console"] = "\n".join(line for line in done.stderr.splitlines() if ":CONSOLE" in line)
    return found
