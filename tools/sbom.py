"""The list of what a wheel of pyskip contains and requires, as CycloneDX 1.6: `sbom.py -o FILE`. Run for a release.

Versions are read from the pinned sources themselves. Needs cyclonedx-python-lib. A failure is one line on stderr, and
exit 1.
"""

from __future__ import annotations

import argparse
import re
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

import upstream
from upstream import Failure

ROOT = Path(__file__).resolve().parent.parent
if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class Part:
    """Of a wheel, compiled in. version: a pattern of it in `file` of llama.cpp's tree, groups joined by dots."""

    name: str
    licence: str  # SPDX
    file: str
    version: str


PARTS = (
    Part("cpp-httplib", "MIT", "vendor/cpp-httplib/httplib.h", r'#define CPPHTTPLIB_VERSION "(.+)"'),
    Part("nlohmann-json", "MIT", "vendor/nlohmann/json.hpp",
         r"#define NLOHMANN_JSON_VERSION_MAJOR (\d+)[^#]*#define \w+_MINOR (\d+)[^#]*#define \w+_PATCH (\d+)"),
    Part("xxhash", "BSD-2-Clause", "vendor/hash/xxhash/xxhash.h",
         r"#define XXH_VERSION_MAJOR +(\d+)[^#]*#define \w+_MINOR +(\d+)[^#]*#define \w+_RELEASE +(\d+)"),
    Part("miniaudio", "MIT-0", "vendor/miniaudio/miniaudio.h",
         r"#define MA_VERSION_MAJOR +(\d+)[^#]*#define \w+_MINOR +(\d+)[^#]*#define \w+_REVISION +(\d+)"),
    Part("stb_image", "MIT", "vendor/stb/stb_image.h", r"stb_image - v(\S+)"),
)  # fmt: skip


def versions(sdist: Path) -> dict[str, str]:
    """Of PARTS, by name."""
    found = {}
    with tarfile.open(sdist) as tar:
        members = {member.name.partition("/vendor/llama.cpp/")[2]: member for member in tar if member.isfile()}
        for part in PARTS:
            source = tar.extractfile(members[part.file]) if part.file in members else None
            match = re.search(part.version, source.read().decode("utf-8", "replace")) if source else None
            if match is None:
                raise Failure(f"{sdist.name}: no version of {part.name} in {part.file}: correct PARTS in tools/sbom.py")
            found[part.name] = ".".join(match.groups())
    return found


def document(project: dict[str, object], pin: dict[str, str], found: dict[str, str]) -> str:
    """JSON. project: of pyproject.toml."""
    from cyclonedx.contrib.license.factories import LicenseFactory
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output.json import JsonV1Dot6
    from packageurl import PackageURL

    def component(name: str, version: str | None, licence: str | None, **more: object) -> Component:
        licences = [LicenseFactory().make_with_expression(licence)] if licence else []
        return Component(name=name, version=version, type=ComponentType.LIBRARY, licenses=licences, **more)

    def pypi(name: str, version: str | None = None) -> PackageURL:
        return PackageURL("pypi", None, name, version)

    version = str(project["version"])
    whole = component("pyskip", version, "MIT", bom_ref="pyskip", purl=pypi("pyskip", version))
    sdist = component(
        "llama-cpp-python", pin["llama_cpp_python"], "MIT", bom_ref="llama-cpp-python",
        purl=pypi("llama-cpp-python", pin["llama_cpp_python"]),
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=pin["sha256"])],
    )  # fmt: skip
    inside = [component("llama.cpp", pin["llama_cpp_commit"], "MIT", bom_ref="llama.cpp")]
    inside += [component(part.name, found[part.name], part.licence, bom_ref=part.name) for part in PARTS]
    required = []
    for line in project["dependencies"]:  # type: ignore[attr-defined]
        name = re.match(r"[\w.-]+", line)
        assert name
        if name[0] != sdist.name:
            required.append(component(name[0], None, None, bom_ref=name[0], purl=pypi(name[0]), description=line))
    bom = Bom(components=[sdist, *inside, *required])
    bom.metadata.component = whole
    bom.register_dependency(whole, [sdist, *inside, *required])
    bom.register_dependency(sdist, inside[:1])
    return JsonV1Dot6(bom).output_as_string(indent=2) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, required=True)
    args = parser.parse_args()
    try:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
        found = versions(upstream.sdist(ROOT / "build" / "sdist"))
        args.out.write_text(document(project, upstream.pin(), found), "utf-8")
    except (Failure, OSError, tarfile.TarError) as error:
        print(f"pyskip: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
