# Each target installs what it needs into this folder, says what it does, and is quick the second time.
# As root on Debian, `make test` also installs the servers that the tests start.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help demo up down cluster cluster-down test test-quick test-image-volumes check bench bench-peers bench-growth bench-kubernetes bench-wrapper chaos
.PHONY: chaos-kubernetes fuzz wrapper lock clean format
VENV := .venv/installed
WRAPPER := wrapper/bin/hubflow-wrapper-linux-amd64

help:  ## this list
	@awk 'BEGIN { FS = ":.*## " } \
	  /^##@ / { printf "\n%s\n", substr($$0, 5) } \
	  /^[a-z-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  T=tests/unit K=quota     choose tests by path and by name"
	@echo "  RUNS=500 SEED=7 FAULTS=kill,broker RUNTIME=docker     how \`make chaos\` storms (docs/chaos.md)"
	@echo "  PART=history PAST=20000 QUEUED=500 TENANTS=50     a quick look by \`make bench-growth\`"
	@echo "  PYTHON=python3.13        choose the Python that .venv is made with (after \`make clean\`)"

##@ See it
demo: $(VENV) $(WRAPPER)  ## a real project is built, tested, approved and delivered
	.venv/bin/hubflow demo
up: $(VENV) $(WRAPPER)  ## start everything and leave it running; prints the console's address
	.venv/bin/hubflow dev --detach
down: $(VENV)  ## stop what `make up` has started
	.venv/bin/hubflow dev --stop

cluster: $(VENV)  ## a real one-node Kubernetes on this machine (root on Debian; the first time takes 10 minutes)
	@scripts/packages.sh servers
	@.venv/bin/python -m tests.cluster up
cluster-down: $(VENV)  ## end it, and forget its state
	@.venv/bin/python -m tests.cluster down

##@ Work on it
test: $(VENV) $(WRAPPER)  ## all tests, with real RabbitMQ, PostgreSQL, S3, registry and dockerd (minutes)
	@scripts/packages.sh servers
	@T="$(T)" K="$(K)" X="$(X)" scripts/test.sh all
test-quick: $(VENV) $(WRAPPER)  ## tests that need no server but the embedded ones (under a minute)
	@T="$(T)" K="$(K)" X="$(X)" scripts/test.sh quick
test-image-volumes: $(VENV) $(WRAPPER)  ## tests of pods whose wrapper is mounted from its image, on containerd 2 (root on Debian)
	@scripts/packages.sh servers
	@HUBFLOW_CLUSTER_CONTAINERD=2.2.9 T="tests/contract/test_kubernetes.py tests/contract/test_runtime.py" \
	  K="$(or $(K),kubernetes)" X="$(X)" scripts/test.sh all
check: $(VENV)  ## ruff, mypy, import contracts, go vet, generated files (seconds)
	@scripts/check.sh
format: $(VENV)  ## put the code into shape
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

##@ Measure it, and try to break it
bench: $(VENV) $(WRAPPER)  ## how quick the main line is, beside its floors; writes build/bench.json (needs RabbitMQ)
	@scripts/packages.sh servers
	.venv/bin/python -m bench.main_line
bench-peers: $(VENV) $(WRAPPER)  ## Celery, Temporal and Restate beside Hubflow, in one run (minutes); writes build/bench-peers.json
	@scripts/packages.sh servers
	@command -v npm >/dev/null || scripts/packages.sh npm
	.venv/bin/python -m bench.peers $(if $(ROUNDS),--rounds $(ROUNDS))
bench-growth: $(VENV) $(WRAPPER)  ## replicas, a long queue, a million past runs, 1000 tenants (a quarter of an hour); writes build/bench-growth.json
	@scripts/packages.sh servers
	.venv/bin/python -m bench.growth $(foreach part,$(PART),--part $(part)) $(if $(QUEUED),--queued $(QUEUED)) \
	  $(if $(PAST),--past $(PAST)) $(if $(TENANTS),--tenants $(TENANTS)) $(if $(ROUNDS),--rounds $(ROUNDS))
bench-kubernetes: $(VENV) $(WRAPPER)  ## what Hubflow adds to a pod (half an hour); writes build/bench-kubernetes.json (root on Debian)
	@scripts/packages.sh servers
	@.venv/bin/python -m tests.cluster build >/dev/null
	.venv/bin/python -m bench.kubernetes
bench-wrapper: $(VENV) $(WRAPPER)  ## CommandWrapper against cat, tar and zstd (minutes); writes build/bench-wrapper.json
	@scripts/packages.sh zstd curl
	.venv/bin/python wrapper/bench/bench.py
chaos: $(VENV) $(WRAPPER)  ## break everything in random order under load, then check every promise; writes build/chaos.json
	@scripts/packages.sh servers
	.venv/bin/python -m tests.chaos $(if $(RUNS),--runs $(RUNS)) $(if $(SEED),--seed $(SEED)) \
	  $(if $(FAULTS),--faults $(FAULTS)) $(if $(RUNTIME),--runtime $(RUNTIME)) $(if $(PACE),--pace $(PACE))
chaos-kubernetes: $(VENV) $(WRAPPER)  ## the same with jobs as pods, and the API server killed too (root on Debian); writes build/chaos-kubernetes.json
	@scripts/packages.sh servers
	@.venv/bin/python -m tests.cluster build >/dev/null
	.venv/bin/python -m tests.chaos --runtime $(or $(RUNTIME),pods) --runs $(or $(RUNS),100) $(if $(SEED),--seed $(SEED)) \
	  $(if $(FAULTS),--faults $(FAULTS)) --pace 3 --at-once 15 --output build/chaos-kubernetes.json
fuzz: $(VENV)  ## fuzz the wrapper's parsers for an hour (FUZZTIME=10m: each of the five that long)
	@scripts/fuzz.sh

##@ Parts of it
wrapper: $(WRAPPER)  ## build CommandWrapper for linux amd64 and arm64 into wrapper/bin
lock: $(VENV)  ## write requirements/*.txt anew from pyproject.toml (UPGRADE=1: newest versions)
	@UPGRADE="$(UPGRADE)" scripts/lock.sh
clean:  ## remove what was built or installed here; keeps .hubflow, the data of `make up`
	rm -rf .venv build wrapper/bin *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV): requirements/dev.txt pyproject.toml
	@scripts/venv.sh
$(WRAPPER): $(wildcard wrapper/*.go wrapper/go.mod wrapper/go.sum) | $(VENV)
	@scripts/wrapper.sh
