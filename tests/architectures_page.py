"""docs/architectures.md, from a run of what test_architectures.py asserts: architectures_page.py -o FILE

`make architectures` calls it.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from collected import (
    DRAFT,
    NO_BLOCK,
    NO_TEXT,
    NOT_COVERED,
    NOT_MADE,
    ROOT,
    Collected,
    Records,
    collect,
)

from pyskip._library import BUILD

INTRO = """# Architectures

What can skip in each architecture of llama.cpp. `make architectures` wrote this page for
{build}
from a tiny random model of each, by upstream's own descriptions (`test-llama-archs`) and a few more.
`tests/test_architectures.py` asserts on the same models that

- `off` gives the logits of unpatched llama.cpp, bit for bit,
- `static:L` those of unpatched llama.cpp on the model whose layer-L `ffn_down` are zero, bit for bit, for every layer,
- gates that always run give those of `off`, bit for bit,
- one batch and single steps decide alike, and their logits differ by float noise (no test for `gemma3n`, where they
  differ by 9 % of their spread in unpatched llama.cpp too),
- every token of every layer is counted as evaluated or as skipped,
- `info`, `generate`, `eval` and `calibrate` end with an answer or with an error of one line, on every model.

**{covered} of {of} decoder architectures with an FFN can skip ({share:.1%}).** RWKV's channel mixing and the decoder of
T5 are counted as such. The {n_drafts} drafts that need another model could not be tried and are not counted.

A model that passes is no proof for a large one of its kind, whose keys may lead llama.cpp's graph another way; `pyskip
info MODEL` says what can skip in it. That `calibrate` runs says nothing of what its profile is worth.

A block is *dense* (`ffn_down`), or of *experts*, which are skipped whole and with their router, with *shared experts*
beside them or not, or *channel mixing* (`channel_mix_value`), which reads the normed token before as well: that is part
of the model's state, and kept whether the block runs or not. *Recurrent* says that some layers have a state in
attention's place.
"""


def kinds(record: dict[str, object]) -> str:
    names = {"shared": "shared experts", "mixing": "channel mixing"}
    keys = ("dense", "experts", "shared", "mixing", "recurrent")
    return ", ".join(names.get(key, key) for key in keys if record[key])


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def able_rows(records: Records) -> list[list[str]]:
    rows = []
    for name, record in sorted(records.items()):
        policies = ["static", "profile"] if len(record["layers"]) == 1 else ["static", "cosine", "profile"]
        calibrates = f"no: {NO_TEXT[name]}" if name in NO_TEXT else "yes"
        rows.append([f"`{name}`", kinds(record), f"{len(record['layers'])} of {record['n_layer']}",
                     ", ".join(policies), calibrates])  # fmt: skip
    return rows


def page(collected: Collected) -> str:
    covered, of = collected.coverage()
    refused = dict(sorted(NO_BLOCK.items()))
    for name, record in sorted(collected.found.items()):
        if record["encoder"]:
            has_cache = "without logits" in record["policy_error"]
            refused[name] = "an encoder" if has_cache else "no KV cache: an encoder, diffusion or a decoder of sound"
    parts = [
        INTRO.format(
            build=BUILD,
            covered=covered,
            of=of,
            share=covered / of,
            n_drafts=sum(reason == DRAFT for reason in NOT_MADE.values()),
        ),
        "## What can skip\n",
        "`+experts` is a model with experts, of an architecture that has both or only these. The last column says "
        "whether\n`calibrate`, its profile and `generate` were run through.\n",
        table(["model", "FFN", "layers", "policies", "calibrate"], able_rows(collected.able())),
        "## Decoders whose FFN is not found\n",
        "They run dense; a policy is refused with a `PolicyError`.\n",
        table(["model", "reason"], [[f"`{name}`", reason] for name, reason in sorted(NOT_COVERED.items())]),
        "## Nothing to skip\n",
        "They run dense; a policy is refused with a `PolicyError`.\n",
        table(["model", "what it is"], [[f"`{name}`", reason] for name, reason in refused.items()]),
        "## Not tried\n",
        table(["name", "what it is"], [[f"`{name}`", reason] for name, reason in sorted(NOT_MADE.items())]),
    ]
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    reference = Path(os.environ.get("PYSKIP_REFERENCE_LIB", ROOT / "build" / "reference" / "lib"))
    args.output.write_text(page(collect(reference)))


if __name__ == "__main__":
    main()
