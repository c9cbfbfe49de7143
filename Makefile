# make run    the whole product on this machine        make build  functions and bridges, in build/
# make unblock  a new PIN for its software card, at this terminal; make change  by the present one
# make open   the same in a browser: the page at which people help themselves
# make test   all tests                                make bench  figures, each beside something known
# make check  format, vet, staticcheck, modules        make deps   the servers that tests run against
# make race   all tests with the race detector (needs gcc)
# make assets the scripts of the pages, made anew     make screenshots  pictures of every page, in build/

# Without libpcsclite the bridge is built and tested without real readers, only
# with cards in software.
TAGS := $(shell pkg-config --exists libpcsclite 2>/dev/null || echo -tags=nopcsc)

.PHONY: run unblock change open test race check build assets screenshots pam bench deps clean

run:
	go run ./infra/local $(ARGS)

# What a person does at the terminal of a desk PC, with the software card of `make run`.
unblock:
	go run $(TAGS) ./bridge unblock -dir data/bridge -soft http://127.0.0.1:8080/_local/card/reader $(ARGS)

change:
	go run $(TAGS) ./bridge change -dir data/bridge -soft http://127.0.0.1:8080/_local/card/reader $(ARGS)

open:
	go run $(TAGS) ./bridge open -dir data/bridge -soft http://127.0.0.1:8080/_local/card/reader $(ARGS)

test: deps
	@[ -z "$(TAGS)" ] || echo "libpcsclite is not here: NOT TESTED with real readers (infra/softcard/install.sh installs it)"
	go test -p 3 $(TAGS) ./...

# Each program built with the race detector sleeps for a second before it ends, and there
# are hundreds: that is time enough for what still runs only if nothing else is waited for.
# Left out of the race detector's run: what does nothing at the same time, and tests that
# run other programs only. vet is in check and test.
ALONE := shared/(apdu|card|offline|problem|relay|secret)|functions/console/page/script|infra/(deployment|layers)

race: deps
	GORACE=atexit_sleep_ms=50 CGO_ENABLED=1 go test -p 3 -race -vet=off $(TAGS) $$(go list $(TAGS) ./... | grep -vE '/($(ALONE))$$')

# The servers that tests run against come from npm; they are installed anew when
# their list changes.
deps: infra/testserver/npm/node_modules/.installed

infra/testserver/npm/node_modules/.installed: infra/testserver/npm/package.json infra/testserver/npm/package-lock.json
	cd infra/testserver/npm && npm ci --no-audit --no-fund --loglevel=error
	touch $@

check:
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); if [ -n "$$unformatted" ]; then echo "gofmt -w these:"; echo "$$unformatted"; exit 1; fi
	go vet $(TAGS) ./...
	GOOS=windows CGO_ENABLED=0 go vet ./bridge/...
	go run honnef.co/go/tools/cmd/staticcheck@v0.8.2 $(TAGS) ./...
	go mod tidy -diff

FUNCTIONS := api console relay sweep trigger
LAMBDA := CGO_ENABLED=0 GOOS=linux GOARCH=arm64 go build -tags lambda.norpc -trimpath -ldflags "-s -w"

build:
	@for f in $(FUNCTIONS); do echo "build/$$f/bootstrap"; $(LAMBDA) -o build/$$f/bootstrap ./functions/$$f || exit 1; done
	go build -trimpath -o build/pinward ./infra/local
	go build $(TAGS) -trimpath -ldflags "-s -w" -o build/bridge ./bridge
	@for a in amd64 arm64; do echo "build/bridge-windows-$$a.exe"; CGO_ENABLED=0 GOOS=windows GOARCH=$$a go build -trimpath -ldflags "-s -w" -o build/bridge-windows-$$a.exe ./bridge || exit 1; done

# What pages load is committed; a test holds it to this.
assets: deps
	go test ./functions/console/page/script -run TestAssets -v -update

# Every page in light, in dark and on a phone.
screenshots: deps
	go test ./functions/console/page -count=1 -run 'EveryPageInABrowser|Kiosk' -screenshots $(CURDIR)/build/screenshots

# The module for logins and locked screens on Linux; it needs gcc and libpam0g-dev.
pam:
	mkdir -p build
	gcc -O2 -Wall -fPIC -shared -o build/pam_pinward.so bridge/pam/pam_pinward.c -lpam

bench: deps
	go test -run '^$$' -bench . -benchmem $(TAGS) ./...

clean:
	rm -rf build infra/testserver/npm/node_modules
