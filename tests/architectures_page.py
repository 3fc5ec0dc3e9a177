"""docs/architectures.md, from a run of what test_architectures.py asserts: architectures_page.py -o FILE

`make architectures` calls it.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from collected import (
    ARGUABLE,
    NO_BLOCK,
    NO_CHAIN,
    NOT_COVERED,
    NOT_MADE,
    NOT_REFUSED,
    ROOT,
    Collected,
    Records,
    collect,
)

from pyskip._library import BUILD

INTRO = """# Architectures

What can skip in each architecture of llama.cpp. `make architectures` wrote this page for {build}:
from a tiny random model of each, by upstream's own descriptions (`test-llama-archs`) and a few more.
`tests/test_architectures.py` asserts on the same models that

- `off` gives the logits of unpatched llama.cpp, bit for bit,
- `static:L` those of unpatched llama.cpp on the model whose layer-L `ffn_down` are zero, bit for bit, for every layer,
- gates that always run give those of `off`, bit for bit,
- one batch and single steps decide alike, and their logits differ by float noise (no test for `gemma3n`, where they
  differ by 9 % of their spread in unpatched llama.cpp too),
- every token of every layer is counted as evaluated or as skipped.

**{covered} of {of} decoder architectures with an FFN can skip ({share:.1%}).** RWKV's channel mixing and T5's decoder
are not counted as such; with {also} it is {covered} of {all} ({strict:.1%}). Drafts that need another model are in
neither number.

A model that passes is no proof for a large one of its kind, whose keys may lead llama.cpp's graph another way; `pyskip
info MODEL` says what can skip in it. That `calibrate` runs says nothing of what its profile is worth. The models are
made so that it can: a context of 1,024 tokens, since it aborts where learned positions are fewer than its windows of
512, and small embeddings, since it fails where skipping moves no logit.

A block is *dense* (`ffn_down`), or of *experts*, which are skipped whole and with their router, with *shared experts*
beside them or not. *Recurrent* says that some layers have a state in attention's place.
"""


def kinds(record: dict[str, object]) -> str:
    names = {"dense": "dense", "experts": "experts", "shared": "shared experts", "recurrent": "recurrent"}
    return ", ".join(text for key, text in names.items() if record[key])


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def able_rows(records: Records) -> list[list[str]]:
    rows = []
    for name, record in sorted(records.items()):
        policies = ["static", "profile"] if len(record["layers"]) == 1 else ["static", "cosine", "profile"]
        chain = f"no: {NO_CHAIN[name]}" if name in NO_CHAIN else "yes"
        rows.append([f"`{name}`", kinds(record), f"{len(record['layers'])} of {record['n_layer']}",
                     ", ".join(policies), chain])  # fmt: skip
    return rows


def page(collected: Collected) -> str:
    (covered, of), (_, with_also) = collected.coverage(), collected.coverage(ARGUABLE)
    encoders = {name for name, record in collected.found.items() if record["encoder"]}
    refused = dict(sorted(NO_BLOCK.items()))
    no_cache = "no KV cache: an encoder, a diffusion model or a decoder of sound"
    refused |= {name: no_cache for name in sorted(encoders - set(NOT_REFUSED))}
    parts = [
        INTRO.format(
            build=BUILD,
            covered=covered,
            of=of,
            share=covered / of,
            all=with_also,
            strict=covered / with_also,
            also=", ".join(f"`{name}`" for name in ARGUABLE),
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
        "Encoders with a KV cache that they do not read, where a policy is not refused: "
        + ", ".join(f"`{name}`" for name in sorted(NOT_REFUSED))
        + ".\n",
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
