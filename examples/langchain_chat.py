"""LangChain on pyskip serve: its OpenAI client, and `skip` for each request.

pyskip serve demo
pip install langchain-openai
python langchain_chat.py [--url http://127.0.0.1:8000/v1] [--model demo] [--skip 0.25] [-n 96] QUESTION
"""

from __future__ import annotations

import argparse
import os

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI
from pydantic import SecretStr


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question")
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--skip", default="0.25")
    parser.add_argument("-n", type=int, default=96)
    args = parser.parse_args()

    key = SecretStr(os.environ.get("PYSKIP_API_KEY", "none"))
    chat = ChatOpenAI(
        model=args.model, base_url=args.url, api_key=key, temperature=0, max_completion_tokens=args.n,
        extra_body={"skip": args.skip},
    )  # fmt: skip
    prompt = ChatPromptTemplate.from_messages([("system", "Answer in one sentence."), ("user", "{question}")])
    for piece in (prompt | chat | StrOutputParser()).stream({"question": args.question}):
        print(piece, end="", flush=True)
    print()
    message = chat.invoke(args.question)
    usage = message.response_metadata["token_usage"]
    print(f"without the system message: {usage['completion_tokens']} tokens, {usage.get('skip_rate', 0):.1%} skipped")


if __name__ == "__main__":
    main()
