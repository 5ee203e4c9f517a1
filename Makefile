# Two commands do everything: "make run" and "make test". Both need Go, gcc and
# make, and nothing else; so does "make cluster".

BIN ?= bin
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X main.version=$(VERSION)

# go-nvml declares all of NVML, its deprecated functions too; nobody calls those.
export CGO_CFLAGS := -O2 -g -Wno-deprecated-declarations

.PHONY: help build run test cluster e2e bench bench-fleet bench-day fuzz lint images image-bases fixtures proto clean

help: ## Show what there is
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

build: ## Build the scaler (static), the sidecar and the fake driver into bin
	CGO_ENABLED=0 go build -trimpath -ldflags "$(LDFLAGS)" -o $(BIN)/ ./scaler
	CGO_ENABLED=1 go build -trimpath -ldflags "$(LDFLAGS)" -o $(BIN)/ ./nvmlsidecar
	go run ./nvmlsidecar/fakenvml/cmd $(BIN)

run: build ## Run sidecar and scaler on this machine's GPUs, or on a recording (RUN_FOR=10s FIXTURE=testdata/t4.csv)
	@CGO_ENABLED=0 go build -o $(BIN)/ ./scaler/cmd/demo
	@$(BIN)/demo --bin $(BIN)

test: ## Run all tests with the race detector
	go test -race ./...

cluster: ## A real Kubernetes with KEDA and three GPU nodes to look at, no GPU needed (Ctrl-C removes it)
	@cd deploy/e2e && go build -o $(abspath $(BIN))/ ./cmd/cluster
	@exec $(BIN)/cluster --repo .

e2e: ## Test on a real Kubernetes with KEDA; as root also on a real node (13 minutes more the first time)
	@# One package at a time: two clusters at once are too much for two cores. The stories
	@# of package scenarios take turns by what they need, so none is held back by -parallel.
	cd deploy/e2e && go build ./... && go test -v -count=1 -p 1 -timeout 45m -parallel 100 ./...
	cd deploy/e2e/oracle && go test -v -count=1 ./...

bench: ## Measure, and print the ratios that matter
	go test -run '^$$' -bench . -benchtime 1x ./scaler/bench

bench-fleet: ## Measure a front with up to 5,000 nodes (GPUSCALER_BENCH_SIZES=10,100 for less)
	go test -timeout 20m -run '^$$' -bench . -benchtime 1x ./scaler/bench/fleet

bench-day: ## A day of an LLM service in 40 minutes, scaled in several ways side by side on a real Kubernetes (DAY=20m)
	cd deploy/e2e && GPUSCALER_E2E_DAY=$(or $(DAY),40m) GPUSCALER_E2E_DAY_PLOT=$(abspath deploy/e2e/day.svg) \
		go test -v -count=1 -timeout 90m -run '^TestDay$$' ./scenarios

fuzz: ## Fuzz every decoder and parser (FUZZTIME=300000x each, or 5m)
	.ci/fuzz $(FUZZTIME)

lint: ## Run the linters
	.ci/lint

images: build ## Build both images with buildah or docker
	deploy/images/build

image-bases: ## Make a local base for the sidecar's image, where no registry can be reached
	deploy/images/glibc-base

fixtures: ## Make the synthetic fixtures anew
	go run ./shared/fixture/synth/cmd testdata

proto: ## Generate the Go code of the .proto (needs protoc)
	go build -o $(BIN)/ google.golang.org/protobuf/cmd/protoc-gen-go
	GOBIN=$(abspath $(BIN)) go install google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.6.2
	protoc -I . --plugin=$(BIN)/protoc-gen-go --plugin=$(BIN)/protoc-gen-go-grpc --go_out=. --go_opt=module=gpuscaler \
		--go-grpc_out=. --go-grpc_opt=module=gpuscaler shared/snapshotpb/sample.proto scaler/peer/peerpb/peer.proto

clean: ## Remove what was built
	rm -rf $(BIN)
