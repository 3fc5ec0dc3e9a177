"""A kiosk: a chat that keeps its pace while the board gets hot, and forgets its guest when nobody types.

    python kiosk.py [MODEL] [--target-tps 8] [--max-skip R] [--forget 120] [--thermal /sys/class/thermal]

One line is one turn; answers go to stdout, the board's state to stderr. Ends with its input. pyskip-kiosk.service runs
it on a board's own screen and keyboard.
"""

from __future__ import annotations

import argparse
import select
import sys
from collections.abc import Iterator
from pathlib import Path

import pyskip
from pyskip.models import resolve

SYSTEM = {"role": "system", "content": "You are a friendly guide. Answer in two or three short sentences."}


def temperature(thermal: Path) -> float | None:
    """The hottest zone in degrees Celsius, None where the kernel shows none."""
    found = []
    for path in thermal.glob("thermal_zone*/temp"):
        try:
            found.append(int(path.read_text()) / 1000)
        except (OSError, ValueError):
            continue  # a sensor that is asleep
    return max(found, default=None)


def is_throttled(thermal: Path) -> bool:
    """Whether the kernel holds the processor's clock down. What a firmware does by itself it does not know."""
    for device in thermal.glob("cooling_device*"):
        try:
            is_clock = "cpufreq" in (device / "type").read_text()
            if is_clock and int((device / "cur_state").read_text()) > 0:
                return True
        except (OSError, ValueError):
            continue
    return False


def status(llm: pyskip.Llama, thermal: Path) -> str:
    degrees = temperature(thermal)
    parts = ["no sensor" if degrees is None else f"{degrees:.0f} °C"]
    if is_throttled(thermal):
        parts.append("throttled")
    parts.append(f"{llm.skip_stats().rate:.1%} of FFN blocks skipped")
    if llm.pace is not None:
        parts.append(str(llm.pace.stats()))
    return ", ".join(parts)


class Guest:
    """One guest's conversation."""

    def __init__(self, llm: pyskip.Llama, n_answer: int) -> None:
        self.llm, self.n_answer = llm, n_answer
        self.messages = [SYSTEM]

    def say(self, text: str) -> Iterator[str]:
        """The pieces of the answer. The oldest turns go where the context is full."""
        self.messages.append({"role": "user", "content": text})
        self.llm.reset_skip_stats()
        answer = ""
        while True:
            try:
                for chunk in self.llm.create_chat_completion(
                    messages=self.messages, stream=True, max_tokens=self.n_answer, temperature=0.3
                ):
                    piece = chunk["choices"][0]["delta"].get("content") or ""
                    answer += piece
                    yield piece
                break
            except pyskip.DecodeError:
                if len(self.messages) < 4:
                    self.messages.pop()
                    raise
                del self.messages[1:3]
        self.messages.append({"role": "assistant", "content": answer})


def lines(forget: float) -> Iterator[str | None]:
    """What is typed, line by line; None where nobody typed for so many seconds."""
    while True:
        ready, _, _ = select.select([sys.stdin], [], [], forget)
        if not ready:
            yield None
            continue
        line = sys.stdin.readline()
        if not line:
            return
        yield line.strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="demo", help="path of a GGUF file with a profile, or demo")
    parser.add_argument("--target-tps", type=float, default=8.0, help="tokens/s to keep; about what people read")
    parser.add_argument("--max-skip", type=float, help="rate that this may cost (default: the recommended one)")
    parser.add_argument("--forget", type=float, default=120.0, metavar="SECONDS")
    parser.add_argument("--thermal", type=Path, default=Path("/sys/class/thermal"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    try:
        llm = pyskip.Llama(
            resolve(args.model), target_tps=args.target_tps, max_skip=args.max_skip, n_ctx=2048, verbose=False
        )
    except pyskip.PyskipError as error:
        print(f"kiosk: {error}", file=sys.stderr)
        return 1
    sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
    guest = Guest(llm, n_answer=160)
    print("Hello! Ask me something.", flush=True)
    for line in lines(args.forget):
        if line is None:
            if len(guest.messages) > 1:
                guest = Guest(llm, n_answer=160)
                print("\x1b[2J\x1b[HHello! Ask me something.", flush=True)
        elif line:
            try:
                for piece in guest.say(line):
                    print(piece, end="", flush=True)
            except pyskip.DecodeError as error:
                print(f"kiosk: {error}", file=sys.stderr)
            print(flush=True)
            print(status(llm, args.thermal), file=sys.stderr, flush=True)
    llm.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
