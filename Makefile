# Two commands: `make demo` shows the whole path, `make test` proves it. Both make their own environment.
# They need python3 (3.10 to 3.13) with venv, and a package index; PYTHON=... chooses another interpreter.
PYTHON ?= python3
DEMO := .demo
# Left out: what needs a GPU, TensorRT, Ray or Debian packages (see tests/README.md).
MARKS ?= not gpu and not tensorrt and not rtx and not ray and not system

.PHONY: demo docs page test test-rtx fuzz coverage clean

demo: .venv-demo/installed
	PATH="$(CURDIR)/.venv-demo/bin:$$PATH" bash docs/demo.sh $(DEMO)

test: .venv/installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/python -m pytest -m '$(MARKS)' $(PYTEST_ARGS)

# TensorRT-RTX builds engines without a GPU. Its wheels lie apart: nobody else needs them.
test-rtx: .venv-rtx/installed
	PYTHONPATH=.venv-rtx .venv/bin/python -m pytest -m rtx tests/test_rtx.py $(PYTEST_ARGS)

.venv-rtx/installed: .venv/installed
	.venv/bin/python -m pip install --quiet --no-compile --no-deps --upgrade --target $(@D) \
	  $$(sed -n '/^rtx = /,/^]/s/^ *"\([^;"]*\).*/\1/p' pyproject.toml)
	touch $@

# The site, in site/: opens from the folder, without a network.
docs: .venv/installed
	.venv/bin/python -m mkdocs build

# The page that scores in the browser: files to serve. It needs npm, for onnxruntime-web. BUNDLE=... for another model.
BUNDLE ?= runtime/default_model
ORT := build/npm/node_modules/onnxruntime-web/dist
page: build/npm/installed
	rm -rf build/page && mkdir -p build/page/ort build/page/bundle
	cp deploy/browser/*.html deploy/browser/*.css deploy/browser/*.js build/page
	cp $(addprefix runtime/static/,dashboard.css chart.js words.js favicon.svg) build/page
	cp $(addprefix $(ORT)/,ort.wasm.min.mjs ort-wasm-simd-threaded.mjs ort-wasm-simd-threaded.wasm) build/page/ort
	cp $(BUNDLE)/* build/page/bundle
	@echo 'next: python3 -m http.server -b 127.0.0.1 -d build/page'

build/npm/installed: deploy/browser/package-lock.json
	mkdir -p $(@D) && cp deploy/browser/package*.json $(@D)
	npm ci --prefix $(@D) --silent --no-audit --no-fund --ignore-scripts
	touch $@

# Other examples than those of `test`, so many of each reader.
FUZZ ?= 3000
fuzz: .venv/installed
	GRMP_EDGE_FUZZ=$(FUZZ) .venv/bin/python -m pytest tests/test_fuzz.py $(PYTEST_ARGS)

# Apart from `test`, since tracing makes light tests half as slow again (heavy ones hardly).
coverage: .venv/installed
	-.venv/bin/python -m coverage run -m pytest -m '$(MARKS)' $(PYTEST_ARGS)
	.venv/bin/python -m coverage report

# A stamp newer than pyproject.toml: the second run installs nothing. Compiling all of 6 GB takes pip as long as all
# else it does; Python compiles what is imported.
.venv/installed: EXTRAS := cpu,train,export,data,dev
.venv-demo/installed: EXTRAS := cpu,train,export
.venv/installed .venv-demo/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 10) else "grmp-edge needs Python 3.10 or newer")'
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --upgrade pip
	$(@D)/bin/python -m pip install --quiet --no-compile -e '.[$(EXTRAS)]'
	touch $@

clean:
	rm -rf .venv .venv-demo .venv-rtx $(DEMO) build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache .coverage
