"""docs/architectures.md, from a run of what test_architectures.py asserts: architectures_page.py -o FILE

`make architectures` calls it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests" / "support"))
from collected import (
    DRAFT,
    NO_ATTENTION,
    NO_BLOCK,
    NO_TEXT,
    NOT_COVERED,
    NOT_MADE,
    ROOT,
    Collected,
    Records,
    collect,
)

from pyskip.binding.library import BUILD

INTRO = """# Architectures

What can skip in each architecture of llama.cpp. `make architectures` wrote this page for
{build}
from a tiny random model of each, by upstream's own descriptions (`test-llama-archs`) and a few more.
`tests/test_architectures.py` asserts on the same models that

- `off` gives the logits of unpatched llama.cpp, bit for bit,
- `static:L` those of unpatched llama.cpp on the model whose layer-L `ffn_down` are zero, bit for bit, for every layer,
- `static:attn=L` those of unpatched llama.cpp on the model whose layer-L `attn_output` is zero, bit for bit, for every
  layer whose attention is found,
- gates that always run give those of `off`, bit for bit,
- one batch and single steps decide alike, and their logits differ by float noise (no test for `gemma3n`, where they
  differ by 9 % of their spread in unpatched llama.cpp too),
- every token of every layer is counted as evaluated or as skipped,
- `info`, `generate`, `eval` and `calibrate` end with an answer or with an error of one line, on every model.

At the command line, which `make architectures` goes through and the tests do not, {commands}.

**{covered} of {of} decoder architectures with an FFN can skip ({share:.1%}).** RWKV's channel mixing and the decoder of
T5 are counted as such. The {n_drafts} drafts that need another model could not be tried and are not counted.

**Attention is found in all layers that have it in {attention} of these {n_able} models.** K and V are computed and
written to the cache whether it is skipped or not. Where the table says *none*, layers have a recurrent state in its
place.

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


def wrong_ends(commands: Records) -> list[str]:
    """Commands that ended with neither an answer nor one line of error, behind notes of pyskip's own."""
    wrong = []
    for name, record in commands.items():
        for command, end in record.items() if "error" not in record else ():
            lines = end["said"].splitlines()
            answered = end["exit"] == 0 and end["n_out"] > 0
            refused = end["exit"] == 1 and len(lines) == 1 + any("chat template" in line for line in lines)
            if not (answered or refused) or any(not line.startswith("pyskip: ") for line in lines):
                wrong.append(f"{command} {name}: exit {end['exit']}: {end['said'][-500:]!r}")
    return wrong + [f"{name}: {record['error']}" for name, record in commands.items() if "error" in record]


def commands_line(commands: Records) -> str:
    """How many models each command had an answer for; all others were refused in one line."""
    answered = Counter(command for record in commands.values() for command, end in record.items() if end["exit"] == 0)
    counts = ", ".join(f"`{command}` for {n}" for command, n in answered.items())
    return f"""\
each of {len(commands)} models was given to four commands,
which had an answer ({counts}) or an error of one line:
encoders have no text to write, `eval` takes no encoder-decoder, and `bench` needs more than the 128 learned positions
that some of these models have"""


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def attention_cell(name: str, record: dict[str, Any]) -> str:
    if name in NO_ATTENTION:
        return f"no: {NO_ATTENTION[name]}"
    return f"{len(record['attention'])} of {record['n_layer']}" if record["attention"] else "none"


def able_rows(records: Records) -> list[list[str]]:
    rows = []
    for name, record in sorted(records.items()):
        policies = ["static", "profile"] if len(record["layers"]) == 1 else ["static", "cosine", "profile"]
        calibrates = f"no: {NO_TEXT[name]}" if name in NO_TEXT else "yes"
        rows.append([f"`{name}`", kinds(record), f"{len(record['layers'])} of {record['n_layer']}",
                     attention_cell(name, record), ", ".join(policies), calibrates])  # fmt: skip
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
            commands=commands_line(collected.commands),
            attention=sum(bool(record["attention"]) for record in collected.able().values()),
            n_able=len(collected.able()),
        ),
        "## What can skip\n",
        "`+experts` is a model with experts, of an architecture that has both or only these. The last column says "
        "whether\n`calibrate`, its profile and `generate` were run through.\n",
        table(["model", "FFN", "layers", "attention", "policies", "calibrate"], able_rows(collected.able())),
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
    collected = collect(reference, commands=True)
    for line in wrong_ends(collected.commands):
        print(line, file=sys.stderr)
    if wrong_ends(collected.commands):
        sys.exit("architectures: the command line did not end as it should: nothing was written")
    args.output.write_text(page(collected))


if __name__ == "__main__":
    main()
