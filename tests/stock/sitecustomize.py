"""For test_llm_plugin.py: a llama_cpp that is not pyskip's is there before anything else."""

import sys
import types

for name in ("llama_cpp", "llama_cpp.llama_cpp"):
    sys.modules[name] = types.ModuleType(name)
