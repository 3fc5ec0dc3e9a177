"""The server's page as C++: ui.h and ui.cpp, by the interface that upstream's server has for a page of its own.

    embed_page.py PAGE OUT

Files but index.html get a name with their hash in it, which changes when any of them does: a browser may keep them, and
files of two releases never meet. Run by cmake/server.cmake.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
}
TYPES |= {".svg": "image/svg+xml", ".json": "application/json"}

HEADER = """#pragma once

#include <array>
#include <cstddef>
#include <string>

#define LLAMA_UI_HAS_ASSETS 1

struct llama_ui_asset {{
    std::string           name;
    const unsigned char * data;
    std::size_t           size;
    std::string           etag;
    std::string           type;
}};

const llama_ui_asset * llama_ui_find_asset(const std::string & name);
bool llama_ui_use_gzip();
const std::array<llama_ui_asset, {n}> & llama_ui_get_assets();
"""

FUNCTIONS = """
const std::array<llama_ui_asset, {n}> & llama_ui_get_assets() {{
    static const std::array<llama_ui_asset, {n}> assets = {{{{
{table}
    }}}};
    return assets;
}}

const llama_ui_asset * llama_ui_find_asset(const std::string & name) {{
    for (const auto & asset : llama_ui_get_assets()) {{
        if (asset.name == name) {{
            return &asset;
        }}
    }}
    return nullptr;
}}

bool llama_ui_use_gzip() {{
    return false;
}}
"""


def pages(folder: Path) -> dict[str, bytes]:
    """Name in an address -> content."""
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix in TYPES}
    mark = hashlib.sha256(b"".join(name.encode() + b"\0" + data for name, data in files.items())).hexdigest()[:12]
    index = files.pop("index.html").replace(b'"page/', f'"page/{mark}/'.encode())
    return {"index.html": index, **{f"page/{mark}/{name}": data for name, data in files.items()}}


def write(path: Path, text: str) -> None:
    if not path.is_file() or path.read_text("utf-8") != text:
        path.write_text(text, "utf-8")


def main() -> None:
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    files = pages(folder)
    arrays, rows = [], []
    for i, (name, data) in enumerate(files.items()):
        lines = [", ".join(f"0x{byte:02x}" for byte in data[at : at + 24]) for at in range(0, len(data), 24)]
        arrays.append(f"static const unsigned char asset_{i}[] = {{\n" + ",\n".join(lines) + "\n};\n")
        etag = hashlib.sha256(data).hexdigest()[:16]
        rows.append(f'        {{ "{name}", asset_{i}, {len(data)}, "\\"{etag}\\"", "{TYPES[Path(name).suffix]}" }},')
    out.mkdir(parents=True, exist_ok=True)
    write(out / "ui.h", HEADER.format(n=len(files)))
    body = FUNCTIONS.format(n=len(files), table="\n".join(rows))
    write(out / "ui.cpp", '#include "ui.h"\n\n' + "\n".join(arrays) + body)


if __name__ == "__main__":
    main()
