"""A conversation, streamed. Lines from stdin, on a terminal or a pipe.

python chat.py [MODEL] [--skip SPEC] [-n 256]
"""

from __future__ import annotations

import argparse
import sys

import pyskip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--skip", default="off")
    parser.add_argument("-n", type=int, default=256)
    args = parser.parse_args()

    llm = pyskip.Llama(args.model, skip=args.skip, n_ctx=2048, verbose=False)
    messages: list[dict[str, str]] = []
    print("> ", end="", flush=True)
    for line in sys.stdin:
        messages.append({"role": "user", "content": line.strip()})
        answer = ""
        for chunk in llm.create_chat_completion(messages, stream=True, max_tokens=args.n):
            piece = chunk["choices"][0]["delta"].get("content") or ""
            answer += piece
            print(piece, end="", flush=True)
        messages.append({"role": "assistant", "content": answer})
        print(f"\n[{llm.skip_stats().rate:.1%} of FFN blocks skipped so far]\n> ", end="", flush=True)
    print()


if __name__ == "__main__":
    main()
